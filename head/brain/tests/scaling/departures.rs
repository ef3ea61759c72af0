//! Who is scaled in, when, and how.

use super::*;

#[test]
fn a_quorum_is_never_given_up() {
    let mut of = spec(&[("default", kind(3, 5, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 3 });
    let mut world = World::new(of.clone());
    world.workers(5).expect("within the bounds");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 5);
    // Two are silent: the other three are just a quorum of five.
    for node in ["w4", "w5"] {
        world.silent.insert(id(node));
        world.links.remove(&id(node));
    }
    world.pass(5_000);
    let refusal = world.ask(|request| Input::Drain { request, node: id("w1") }).expect_err("it is needed");
    assert!(refusal.contains("needs 3"), "{refusal}");
    world.workers(3).expect("within the bounds");
    world.pass(1_000);
    assert!(["w1", "w2", "w3"].iter().all(|n| world.nodes[&id(n)].life == NodeState::Ready), "none of those that are up may go");
    world.silent.clear();
    world.link(&id("w4"));
    world.link(&id("w5"));
    let mut fewest = 5;
    for _ in 0..120 {
        world.pass(500);
        let ready = world.nodes.values().filter(|r| r.life == NodeState::Ready).count();
        fewest = fewest.min(ready);
    }
    assert_eq!((world.machines("default"), fewest), (3, 3));
    // The last three stay whatever a description says: the service needs them.
    of.revision = 2;
    of.workers.insert(name("default"), kind(1, 5, 4, 100));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.workers(1).expect("within the bounds");
    world.pass(600_000);
    assert_eq!(world.machines("default"), 3);
    let why: Vec<&Obstacle> = world.outlook.types[&name("default")].surplus.values().collect();
    assert!(
        matches!(why[0], Obstacle::QuorumNeedsIt { service, .. } | Obstacle::OtherMemberLeaves { service, .. } if *service == key()),
        "{why:?}"
    );
}

/// Members of a group that are too many go one after the other.
#[test]
fn members_of_a_whole_go_one_at_a_time() {
    let mut of = spec(&[("default", kind(3, 9, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 3 });
    let mut world = World::new(of);
    world.workers(9).expect("fits");
    world.pass(10_000);
    let asked = NewRequest {
        name: None,
        wants: RequestedCapacity::Workers { node_type: name("default"), count: 3 },
        additive: false,
        until: None,
        reason: String::new(),
    };
    world.brain.handle(world.moment(), Input::Scale { request: Request::new(900, Actor::LOCAL), asked });
    let draining = world.brain.snapshot().nodes.iter().filter(|n| n.record.life.name() == StateName::Draining).count();
    assert_eq!(draining, 1, "members leave one at a time");
}

#[test]
fn dearest_and_least_useful_go_first_and_never_what_a_request_needs() {
    let mut world = World::new(spec(&[("default", kind(0, 6, 4, 100)), ("dear", kind(0, 6, 4, 300))]));
    world.scale(RequestedCapacity::Workers { node_type: name("dear"), count: 2 }).expect("within the bounds");
    world.workers(4).expect("within the bounds");
    world
        .ask(|request| {
            let asked = NewRequest {
                name: Some("job".to_owned()),
                wants: bundles(&[(3, 4, 0)]),
                additive: true,
                until: None,
                reason: String::new(),
            };
            Input::Scale { request, asked }
        })
        .expect("it fits on what is there");
    assert_eq!((world.machines("default"), world.machines("dear")), (4, 2), "nothing new is bought for it");
    world.scale(RequestedCapacity::Workers { node_type: name("dear"), count: 0 }).expect("within the bounds");
    world.pass(2_000);
    assert_eq!((world.machines("default"), world.machines("dear")), (4, 0), "what lay on them fits on the others");
    world.workers(0).expect("within the bounds");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 3, "three are needed by the job");
    world.ask(|request| Input::Revoke { request, name: "job".to_owned(), now: true }).expect("it stands");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 0);
}

#[test]
fn taking_room_back_disturbs_nobody_who_works() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    world.scale(bundles(&[(3, 4, 0)])).expect("there is room");
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 4, 0)]), "small", None) }).expect("there is room");
    ["w1", "w2", "w3"].iter().for_each(|n| world.busy(n, 900));
    world.busy("w4", 0);
    world.pass(2_000);
    for ask in ["small", "room"] {
        world.ask(|request| Input::Revoke { request, name: ask.to_owned(), now: true }).expect("it stands");
    }
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3, "the idle one goes at once, the others when they are done");
    world.busy("w3", 0);
    world.pass(5_000);
    assert_eq!(world.machines("default"), 2);
}

/// Three that are asked for, and three whose request ended; all of them work.
fn three_and_three_that_ended() -> World {
    let mut world = World::new(spec(&[("default", kind(1, 9, 4, 100))]));
    world.workers(3).expect("fits");
    let more = RequestedCapacity::Workers { node_type: name("default"), count: 3 };
    world.ask(|request| Input::Scale { request, asked: add(more, "job", Some(60_000)) }).expect("fits");
    (1..=6).for_each(|n| world.busy(&format!("w{n}"), 900));
    world.pass(120_000);
    world
}

/// Who takes one back lets one go: what merely ended and works stays.
#[test]
fn one_less_is_one_less() {
    let mut world = three_and_three_that_ended();
    assert_eq!(world.machines("default"), 6, "what merely ended goes when it is idle");
    let said = world.workers(2).expect("less");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 5, "{said}: one less; the other three work");
}

#[test]
fn who_is_idle_goes_before_who_works() {
    let mut world = three_and_three_that_ended();
    world.busy("w4", 10);
    world.pass(10_000);
    world.workers(2).expect("less");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 5);
    assert_eq!(world.scaled_in("w4"), 1, "{:?}", decisions(&world));
}

#[test]
fn a_worker_that_is_missed_or_begins_anew_is_no_idle_one() {
    let mut of = spec(&[("default", kind(1, 4, 4, 100))]);
    of.idle_after_ms = 1_000;
    let mut world = World::new(of.clone());
    world.scale(bundles(&[(3, 4, 0)])).expect("there is room");
    ["w1", "w2", "w3"].iter().for_each(|n| world.busy(n, 900));
    world.pass(5_000);
    world.ask(|request| Input::Revoke { request, name: "room".to_owned(), now: true }).expect("it stands");
    let session = world.links.remove(&id("w3")).expect("it is linked");
    world.tell(Input::LinkClosed { session, node: id("w3"), cause: "a blink".to_owned() });
    world.pass(2_000);
    assert_eq!(world.machines("default"), 3, "it works, whoever hears it");
    world.link(&id("w3"));
    of.revision = 2;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3, "a new description ends no work");
    world.restart();
    assert_eq!(world.machines("default"), 3, "nor does a head that knows nothing yet");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3);
    world.busy("w2", 0);
    world.busy("w3", 0);
    world.pass(60_000);
    assert_eq!(world.machines("default"), 1);
}

#[test]
fn a_head_that_just_started_takes_nobody_for_idle() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100)), ("gpu", kind(0, 2, 4, 100))]));
    let until = Some(10_000);
    world
        .ask(|request| Input::Scale {
            request,
            asked: add(RequestedCapacity::Workers { node_type: name("default"), count: 2 }, "m", until),
        })
        .expect("fits");
    (1..=3).for_each(|n| world.busy(&format!("w{n}"), 900));
    world.failing.insert(("gpu".to_owned(), Offer::default()), FailureKind::StockOut);
    world.scale(RequestedCapacity::Workers { node_type: name("gpu"), count: 1 }).expect("ok");
    world.pass(20_000);
    assert_eq!(world.machines("default"), 3, "busy ones stay");
    world.restart();
    world.pass(5_000);
    assert_eq!(
        world.machines("default"),
        3,
        "busy ones stay: {:?}",
        world.events.iter().rev().take(8).map(|e| e.message()).collect::<Vec<_>>()
    );
}

#[test]
fn a_restart_of_the_head_cuts_no_drain_off() {
    let mut of = spec(&[("default", kind(2, 2, 4, 100))]);
    of.services[0].drain_ms = 600_000;
    let mut world = World::new(of);
    world.pass(5_000);
    let mut record = world.nodes[&id("w2")].clone();
    record.life = NodeState::Draining { reason: Reason::NotNeeded };
    world.nodes.insert(id("w2"), record);
    let links = std::mem::take(&mut world.links);
    world.restart();
    // Agents pause up to 3 s between attempts to connect.
    world.pass(2_900);
    assert!(world.machines.keys().any(|instance| instance.as_str() == "i-w2.1"), "its agent is still on its way back");
    (links.len() == 2).then(|| world.link(&id("w2")));
    world.pass(1_000);
    assert_eq!(
        world.told(|what| matches!(
            what,
            What::StateChanged { from: StateName::Draining, to: StateName::Terminating, why: Reason::Drained }
        )),
        1
    );
}

/// Nodes that drain are not terminated for silence while everybody is silent.
#[test]
fn a_cut_of_the_head_s_network_cuts_no_drain_off() {
    let mut of = spec(&[("default", kind(0, 6, 4, 100))]);
    of.services[0].drain_ms = 600_000;
    let mut world = World::new(of);
    world.workers(6).expect("fits");
    (1..=6).for_each(|n| world.busy(&format!("w{n}"), 900));
    world.pass(10_000);
    // Three are scaled in; what runs on them takes ten minutes to let its work go: no agent answers the goal.
    world.next += 1;
    let asked = NewRequest {
        name: None,
        wants: RequestedCapacity::Workers { node_type: name("default"), count: 3 },
        additive: false,
        until: None,
        reason: String::new(),
    };
    world.brain.handle(world.moment(), Input::Scale { request: Request::new(world.next, Actor::LOCAL), asked });
    let draining: Vec<String> = world
        .brain
        .snapshot()
        .nodes
        .iter()
        .filter(|n| n.record.life.name() == StateName::Draining)
        .map(|n| n.record.id.to_string())
        .collect();
    assert_eq!(draining.len(), 3);
    world.pass(5_000);
    // The head's network is gone for eight seconds.
    for (node, session) in std::mem::take(&mut world.links) {
        world.silent.insert(node.clone());
        world.tell(Input::LinkClosed { session, node, cause: "cut".to_owned() });
    }
    world.pass(8_000);
    assert!(world.brain.snapshot().alarms.contains(&Alarm::Brake), "the brake is on");
    let ended: Vec<String> = world
        .events
        .iter()
        .filter(|e| matches!(e.what, What::StateChanged { to: StateName::Terminating, .. }))
        .map(|e| format!("{}: {}", e.node.as_ref().expect("of a node"), e.message()))
        .collect();
    assert!(ended.is_empty(), "{ended:?}; machines {}", world.machines("default"));
}

/// Machines that are being drained do not wake the head more and more often.
#[test]
fn a_drain_wakes_nobody_each_millisecond() {
    let mut of = spec(&[("default", kind(1, 2, 4, 100))]);
    of.services[0].drain_ms = 3_600_000;
    let mut world = World::new(of);
    world.workers(2).expect("fits");
    world.pass(5_000);
    let asked = NewRequest {
        name: None,
        wants: RequestedCapacity::Workers { node_type: name("default"), count: 1 },
        additive: false,
        until: None,
        reason: String::new(),
    };
    world.brain.handle(world.moment(), Input::Scale { request: Request::new(900, Actor::LOCAL), asked });
    let (mut beat, mut number, end, mut wakes) = (world.now + 1_000, 7u64, world.now + 3_000_000, BTreeMap::<u64, u64>::new());
    while world.now < end {
        world.now = world.brain.next_wake().min(beat).max(world.now);
        if world.now == beat {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            beat += 900 + (number >> 33) % 200;
            for (node, session) in &world.links.clone() {
                let input = Input::heartbeat(*session, node.clone(), world.moment().mono, None);
                world.brain.handle(world.moment(), input);
                // How much is left to do is told each second.
                let report = ServiceReport {
                    key: key(),
                    state: ServiceState::Stopping,
                    detail: String::new(),
                    pid: None,
                    restarts: 0,
                    since: Timestamp(0),
                    goal_version: 0,
                    gauges: BTreeMap::from([("left".to_owned(), Quantity(number % 1_000))]),
                    failure: None,
                    log: Vec::new(),
                };
                world.brain.handle(
                    world.moment(),
                    Input::Reported { session: *session, node: node.clone(), complete: true, services: vec![report], jobs: Vec::new() },
                );
            }
        } else {
            *wakes.entry((world.now) / 600_000).or_default() += 1;
            world.brain.handle(world.moment(), Input::Tick);
        }
    }
    let each: Vec<u64> = wakes.values().map(|n| n / 600).collect();
    assert!(each.iter().all(|n| *n < 20), "ticks a second, by ten minutes: {each:?}");
}

/// Workers of types that are gone drain as their services said.
#[test]
fn a_type_that_is_gone_drains_as_its_services_said() {
    let mut of = spec(&[("default", kind(0, 4, 4, 100)), ("kafka", kind(2, 4, 4, 100))]);
    of.services[0] = ServicePlacement { role: Role::NodeType(name("kafka")), drain_ms: 600_000, ..of.services[0].clone() };
    let mut world = World::new(of.clone());
    world.pass(10_000);
    assert_eq!(world.machines("kafka"), 2);
    of.revision = 2;
    of.workers.remove(&name("kafka"));
    of.services.clear();
    let step = world.brain.handle(world.moment(), Input::Specified { actor: Actor::LOCAL, spec: of });
    let orders: Vec<_> = step
        .actions
        .iter()
        .filter_map(|a| if let Action::SendGoal { order, .. } = a { Some((order.revision, order.drain)) } else { None })
        .collect();
    world.pass(120_000);
    let left = world.brain.snapshot().nodes.iter().filter(|n| n.record.life.name() == StateName::Draining).count();
    assert_eq!(left, 2, "cut off after a minute of the ten that they may take; goals (revision, drain) {orders:?}");
}

#[test]
fn a_minimum_that_cannot_be_kept_gives_no_quorum_up() {
    let mut of = spec(&[("default", kind(3, 3, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 3 });
    let mut world = World::new(of.clone());
    world.pass(5_000);
    // One of three is silent; two are just a quorum.
    world.silent.insert(id("w3"));
    world.links.remove(&id("w3"));
    world.pass(8_000);
    (of.revision, of.rolling) = (2, true);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    let took: Vec<String> = world.nodes.values().filter(|n| n.revision == 2).map(|n| n.id.to_string()).collect();
    assert!(took.is_empty(), "restarted with w3 down, 1 of 3 is left up: {took:?}; w3 is {}", world.nodes[&id("w3")].life.name());
}

/// A node whose GPUs work is not idle, whatever its cores do.
#[test]
fn what_works_on_gpus_is_not_idle() {
    let mut world = World::new(spec(&[("default", kind(1, 3, 4, 100))]));
    let more = RequestedCapacity::Workers { node_type: name("default"), count: 2 };
    world.ask(|request| Input::Scale { request, asked: add(more, "job", Some(60_000)) }).expect("fits");
    world.gpu_load = BTreeMap::from([(id("w2"), 900), (id("w3"), 20)]);
    world.pass(1_800_000);
    assert!(world.nodes[&id("w3")].life == NodeState::Gone && world.nodes[&id("w2")].life == NodeState::Ready);
}

/// That a node knows that it is to drain is not that it has.
#[test]
fn a_drain_waits_until_services_have_stopped() {
    let mut of = spec(&[("default", kind(1, 2, 4, 100))]);
    of.services[0].drain_ms = 600_000;
    let mut world = World::new(of);
    world.workers(2).expect("fits");
    world.pass(5_000);
    world.drains_slowly = true;
    world.workers(1).expect("less");
    world.pass(120_000);
    assert_eq!((world.machines("default"), world.nodes[&id("w2")].life.name()), (2, StateName::Draining));
    world.services.remove(&id("w2"));
    world.report(&id("w2"));
    world.pass(1_000);
    assert_eq!(world.machines("default"), 1);
}

/// Whoever is it misses heartbeats is judged for that, and not for being one too many.
#[test]
fn one_too_many_that_is_missed_is_not_let_go_for_that() {
    let mut of = spec(&[("default", kind(1, 3, 4, 100))]);
    of.idle_after_ms = 70_000;
    let mut world = World::new(of);
    let more = RequestedCapacity::Workers { node_type: name("default"), count: 2 };
    world.ask(|request| Input::Scale { request, asked: add(more, "job", Some(60_000)) }).expect("fits");
    world.pass(129_000);
    let session = world.links.remove(&id("w3")).expect("it is linked");
    world.tell(Input::LinkClosed { session, node: id("w3"), cause: "a blink".to_owned() });
    world.pass(3_000);
    assert_eq!(world.scaled_in("w3"), 0);
    assert!(world.brain.outlook().types[&name("default")].surplus[&id("w3")] == Obstacle::MissesHeartbeats);
    world.link(&id("w3"));
    world.pass(1_000);
    assert_eq!(world.scaled_in("w3"), 1, "it is heard, and was idle for long enough since its request ended");
}

/// A request that cannot be served just now makes every idle machine go at once, of types that do not help it too: what short
/// requests need is bought again and again.
#[test]
fn what_cannot_be_served_hurries_nobody_who_is_in_nobody_s_way() {
    let mut counts = Vec::new();
    for waits in [false, true] {
        let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("large", kind(0, 10, 16, 500))]));
        world.failing.insert(("large".to_owned(), Offer::default()), FailureKind::Permanent);
        if waits {
            world.ask(|request| Input::Scale { request, asked: add(bundles(&[(3, 16, 0)]), "large", None) }).expect("there is room");
        }
        world.pass(5_000);
        for n in 0..20 {
            let until = Some(world.now + 30_000);
            world
                .ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 4, 0)]), &format!("short-{n}"), until) })
                .expect("there is room");
            world.pass(60_000);
        }
        counts.push(world.calls.iter().filter(|(_, of, _)| of == "default").count());
    }
    assert_eq!(counts[0], counts[1], "machines that were asked for without and with one that waits");
}

/// Nothing on it has to end.
#[test]
fn a_worker_that_never_linked_goes_at_once() {
    let mut world = World::new(spec(&[("default", kind(0, 3, 4, 100))]));
    world.silent.insert(id("w1"));
    world.workers(1).expect("fits");
    assert_eq!(world.nodes[&id("w1")].life, NodeState::Launched);
    world.workers(0).expect("less");
    assert_eq!(world.machines("default"), 0);
}

/// Of demands that come back every ten minutes, each finds the workers of the last one.
#[test]
fn workers_that_are_free_of_a_request_wait_for_the_next_one() {
    let mut of = spec(&[("default", kind(0, 4, 4, 100))]);
    of.idle_after_ms = 900_000;
    let mut world = World::new(of);
    for round in 0..18 {
        let asked = add(bundles(&[(4, 4, 0)]), &format!("batch-{round}"), None);
        world.ask(|request| Input::Scale { request, asked }).expect("there is room");
        world.pass(180_000);
        world.ask(|request| Input::Revoke { request, name: format!("batch-{round}"), now: false }).expect("it stands");
        world.pass(420_000);
    }
    assert_eq!(world.calls.len(), 4, "in three hours each of four workers is launched once");
    world.pass(900_000);
    assert_eq!(world.machines("default"), 0, "and idle ones go in their time");
}

/// The same by number, and by requests in each other's place.
#[test]
fn a_number_that_is_revoked_ends_no_worker_before_its_time_unless_it_is_said() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    of.idle_after_ms = 300_000;
    let mut world = World::new(of);
    let more = || RequestedCapacity::Workers { node_type: name("default"), count: 3 };
    world.ask(|request| Input::Scale { request, asked: add(more(), "job", None) }).expect("fits");
    world.pass(10_000);
    world.ask(|request| Input::Revoke { request, name: "job".to_owned(), now: false }).expect("it stands");
    world.pass(120_000);
    assert_eq!(world.machines("default"), 4);
    world.scale(bundles(&[(4, 4, 0)])).expect("there is room");
    world.scale(bundles(&[(1, 4, 0)])).expect("in its place");
    world.pass(120_000);
    assert_eq!(world.machines("default"), 4, "a smaller request in the place of a larger one ends nothing either");
    world.ask(|request| Input::Scale { request, asked: add(more(), "job", None) }).expect("fits");
    world.ask(|request| Input::Revoke { request, name: "job".to_owned(), now: true }).expect("it stands");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 1, "what has room lies on the one that is left; the others were to go now");
}
