//! Nodes that are silent, and what is done for them.

use super::*;

/// Restart calls that hang hold up neither reboot nor replacement.
#[test]
fn slow_restarts_of_an_agent_hold_up_no_reboot() {
    let kind = name("default");
    let shape = WorkerType { min: 4, max: 4, ..WorkerType::default() };
    let of = Spec { revision: 1, workers: BTreeMap::from([(kind.clone(), shape)]), max_workers: 4, ..Spec::default() };
    let nodes = (1..=4).map(|n| NodeRecord {
        life: NodeState::Ready,
        instance: InstanceId::new(format!("i-{n}")).ok(),
        address: Some("10.0.0.1".to_owned()),
        revision: 1,
        ..NodeRecord::requested(id(&format!("w{n}")), Generation(1), kind.clone(), Timestamp(0))
    });
    let cluster = ClusterRecord { spec: Some(of), ..ClusterRecord::default() };
    let config = Config { can_restart_agent: true, reboot_time: Some(30_000), visibility: 3_600_000_000, ..Config::default() };
    let moment = |mono: u64| Moment { mono, wall: Timestamp(mono) };
    let mut brain = Brain::restore(config, Epoch(2), Memory { cluster, nodes: nodes.collect(), ..Memory::default() }, moment(0));
    let (mut now, mut queue, mut acted) = (0u64, vec![(0u64, Input::Started)], BTreeMap::<&str, u32>::new());
    for n in 1..=4u64 {
        let facts = Facts { health_port: 7071, ..Facts::default() };
        queue.push((1, Input::LinkOpened { session: Session(n), node: id(&format!("w{n}")), generation: Generation(1), facts }));
    }
    let mut beat = 1_000;
    while now < 3_600_000 {
        let next = queue.iter().map(|(at, _)| *at).min().unwrap_or(u64::MAX);
        now = brain.next_wake().min(beat).min(next).max(now);
        let mut inputs = vec![Input::Tick];
        while let Some(at) = queue.iter().position(|(at, _)| *at <= now) {
            inputs.push(queue.remove(at).1);
        }
        if now == beat {
            beat += 1_000;
            // The fourth is heard for five seconds; then its machine hangs.
            for n in (1..=4u64).filter(|n| *n < 4 || now < 5_000) {
                inputs.push(Input::heartbeat(Session(n), id(&format!("w{n}")), now, None));
            }
        }
        for input in inputs {
            for action in brain.handle(moment(now), input).actions {
                match action {
                    Action::RestartAgent { node, generation, .. } => {
                        *acted.entry("restart").or_default() += 1;
                        let failure = Failure { message: "no answer".to_owned(), retry_after: None, kind: FailureKind::Transient };
                        // The body's CALL_DEADLINE.
                        queue.push((now + 50_000, Input::AgentRestarted { node, generation, result: Err(failure) }));
                    }
                    Action::Reboot { node, generation, .. } => {
                        *acted.entry("reboot").or_default() += 1;
                        queue.push((now + 1_000, Input::Rebooted { node, generation, result: Ok(()) }));
                    }
                    Action::Delete { .. } => *acted.entry("delete").or_default() += 1,
                    Action::DialBack { node, generation, .. } => {
                        queue.push((now + 800, Input::DialedBack { node, generation, outcome: DialOutcome::TimedOut }))
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(acted.contains_key("reboot") && acted.contains_key("delete"), "in an hour: {acted:?}");
}

/// Down nodes that are not replaced do not wake the head more and more often.
#[test]
fn a_node_that_stays_down_wakes_nobody_each_millisecond() {
    let mut world = World::new(spec(&[("default", kind(4, 4, 4, 100))]));
    world.pass(5_000);
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    world.links.remove(&id("w4"));
    let mut brain = std::mem::replace(&mut world.brain, World::new(spec(&[])).brain);
    let (mut now, mut beat, mut dials, mut number) = (world.now, world.now + 1_000, Vec::<(u64, Input)>::new(), 7u64);
    let mut wakes = BTreeMap::<u64, u64>::new();
    while now < world.now + 3_600_000 {
        let next = dials.iter().map(|(at, _)| *at).min().unwrap_or(u64::MAX);
        now = brain.next_wake().min(beat).min(next).max(now);
        let mut inputs = Vec::new();
        while let Some(at) = dials.iter().position(|(at, _)| *at <= now) {
            inputs.push(dials.remove(at).1);
        }
        if now == beat {
            beat += 1_000;
            inputs.extend(world.links.iter().map(|(node, session)| Input::heartbeat(*session, node.clone(), now, None)));
        }
        if inputs.is_empty() {
            *wakes.entry((now - world.now) / 600_000).or_default() += 1;
            inputs.push(Input::Tick);
        }
        for input in inputs {
            for action in brain.handle(Moment { mono: now, wall: Timestamp(MONDAY + now) }, input).actions {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                match action {
                    Action::DialBack { node, generation, .. } => {
                        dials.push((
                            now + 20 + (number >> 33) % 700,
                            Input::DialedBack { node, generation, outcome: DialOutcome::TimedOut },
                        ));
                    }
                    Action::ListInstances { number } => {
                        dials.push((now + 200, Input::Listed { number, result: Ok(world.machines.values().cloned().collect()) }));
                    }
                    _ => {}
                }
            }
        }
    }
    let each: Vec<u64> = wakes.values().map(|n| n / 600).collect();
    assert!(each.iter().all(|n| *n < 20), "ticks a second, by ten minutes: {each:?}");
}

#[test]
fn what_boots_while_nobody_is_heard_is_waited_for() {
    let mut world = World::new(spec(&[("default", kind(0, 20, 4, 100))]));
    for n in 1..=20 {
        world.silent.insert(id(&format!("w{n}")));
    }
    world.workers(20).expect("fits");
    assert_eq!(world.machines("default"), 20);
    // The head's network is gone for six minutes; the provider is still reached.
    let mut seen = 20;
    for _ in 0..400 {
        world.pass(1_000);
        seen = seen.min(world.nodes.values().filter(|n| n.generation.0 == 1 && !n.life.is_leaving()).count());
    }
    assert_eq!(seen, 20, "terminated because nobody linked: {} of 20 are left", seen);
}

#[test]
fn who_speaks_over_a_link_that_was_replaced_is_not_heard() {
    let mut world = World::new(spec(&[("default", kind(2, 2, 4, 100))]));
    world.pass(5_000);
    let old = world.links[&id("w2")];
    world.link(&id("w2"));
    // Somebody else holds the old link: the node itself is silent.
    world.links.insert(id("w2"), old);
    world.silent.insert(id("w2"));
    world.pass(6_000);
    assert_ne!(world.brain.node(&id("w2")).expect("it is known").record.life, NodeState::Ready);
}

/// A group that is just as large as it must be gets a lost member back.
#[test]
fn a_member_of_a_whole_of_the_least_size_is_replaced() {
    let mut of = spec(&[("default", kind(3, 3, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 3 });
    let mut world = World::new(of);
    world.pass(10_000);
    world.silent.insert(id("w3"));
    let session = world.links.remove(&id("w3")).expect("it is linked");
    world.tell(Input::LinkClosed { session, node: id("w3"), cause: "it hangs".to_owned() });
    world.pass(120_000);
    assert_eq!(world.nodes[&id("w3")].generation, Generation(2), "the machine is listed as running, and never heard again");
}

fn falls_silent(world: &mut World, node: &str) {
    world.silent.insert(id(node));
    let session = world.links.remove(&id(node)).expect("it is linked");
    world.tell(Input::LinkClosed { session, node: id(node), cause: "it hangs".to_owned() });
    world.pass(60_000);
}

/// Five members, on the workers of a minimum or on those that a request for room needs; no more are to be had.
fn quorum_of_five(for_room: bool) -> World {
    let mut of = spec(&[("default", kind(if for_room { 0 } else { 5 }, 5, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 1 });
    let mut world = World::new(of);
    if for_room {
        put(&mut world, "job", bundles(&[(5, 4, 0)]), None).expect("fits");
    }
    world.pass(20_000);
    assert_eq!(world.nodes.values().filter(|n| n.life == NodeState::Ready).count(), 5);
    world.failing.insert(default_offer(), FailureKind::StockOut);
    world
}

/// Two of five were lost and are not to be had again: the disks of a third, without which there is no quorum, are kept.
#[test]
fn the_third_of_five_keeps_its_disks() {
    for (for_room, restarts) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = quorum_of_five(for_room);
        falls_silent(&mut world, "w5");
        falls_silent(&mut world, "w4");
        assert_eq!(world.machines("default"), 3);
        if restarts {
            world.restart();
            world.pass(5_000);
        }
        falls_silent(&mut world, "w3");
        let left = world.machines("default");
        assert_eq!(left, 3, "two of five are left, and what the third had is deleted (room {for_room}, restart {restarts})");
    }
}

/// The same by hand: a drain is refused where it costs a quorum.
#[test]
fn the_third_of_five_is_not_drained() {
    for for_room in [false, true] {
        let mut world = quorum_of_five(for_room);
        falls_silent(&mut world, "w5");
        falls_silent(&mut world, "w4");
        let said = world.ask(|request| Input::Drain { request, node: id("w3") });
        assert!(said.is_err(), "two of five are left (room {for_room}): {said:?}");
    }
}

/// A policy that lowers its number by itself gives nobody up.
#[test]
fn quorum_and_a_policy_that_wants_fewer() {
    let mut of = spec(&[("default", kind(1, 5, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 1 });
    of.policies = vec![Policy { pause_ms: 1_000, ..load_policy() }];
    let mut world = World::new(of);
    for _ in 0..40 {
        for n in 1..=5 {
            world.busy(&format!("w{n}"), 900);
        }
        world.pass(10_000);
    }
    assert_eq!(world.machines("default"), 5);
    world.failing.insert(default_offer(), FailureKind::StockOut);
    falls_silent(&mut world, "w5");
    falls_silent(&mut world, "w4");
    assert_eq!(world.machines("default"), 3);
    for n in 1..=3 {
        world.busy(&format!("w{n}"), 500);
    }
    world.pass(120_000);
    for n in 1..=3 {
        world.busy(&format!("w{n}"), 290);
    }
    world.pass(60_000);
    falls_silent(&mut world, "w3");
    assert!(world.machines("default") >= 3, "two of five are left");
}

/// Who was lost is missed no more when a person wants fewer.
#[test]
fn who_wants_fewer_gives_up_who_was_lost() {
    let mut world = quorum_of_five(false);
    falls_silent(&mut world, "w5");
    falls_silent(&mut world, "w4");
    let mut of = world.cluster.spec.clone().expect("there is one");
    of.revision += 1;
    of.workers.insert(name("default"), kind(3, 3, 4, 100));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    falls_silent(&mut world, "w3");
    assert_eq!(world.machines("default"), 2, "two of three are a quorum: the third is replaced as soon as there is one");
}
