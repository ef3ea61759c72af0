//! Gangs: all of it or nothing, and in nobody's way meanwhile.

use super::*;

#[test]
fn a_gang_is_served_whole_or_not_at_all() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    let gang = |spread| RequestedCapacity::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity(3_000), ..Bundle::default() }, count: 3 }],
        gang: true,
        spread,
    };
    world.scale(gang(false)).expect("it could be had");
    assert_eq!(world.calls.len(), 3);
    assert_eq!(world.machines("default"), 0);
    world.pass(30_000);
    assert_eq!(world.calls.len(), 3, "what is out of stock is left alone");
    assert_eq!(world.brain.request_views()[0].unmet.as_ref().map(|u| u.to_string().contains("StockOut")), Some(true));
    world.failing.clear();
    world.pass(60_000);
    assert_eq!(world.machines("default"), 3, "and tried again after a while");
    // Two more nodes cannot be had: one of the gang's demands would be left.
    let refusal = world.scale(RequestedCapacity::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity(3_000), ..Bundle::default() }, count: 5 }],
        gang: true,
        spread: false,
    });
    assert!(refusal.expect_err("five do not fit").contains("max is 4, 5 are needed"));
}

/// A gang that cannot be served keeps no later one waiting for which there is room.
#[test]
fn a_gang_that_cannot_be_served_is_in_nobody_s_way() {
    let mut of = spec(&[("default", kind(0, 6, 4, 100)), ("other", kind(0, 3, 1, 10))]);
    let hours = Hours { days: vec![0, 1, 2, 3, 4, 5, 6], from: 0, until: 1440, time_zone: "UTC".to_owned() };
    let rule = Rule::Schedule { hours, workers: Workers::AtLeast(3) };
    of.policies = vec![Policy { node_type: name("other"), rule, ..load_policy() }];
    of.max_workers = 6;
    let mut world = World::new(of);
    // What the policy wants could make room, but it works.
    (1..=3).for_each(|n| world.busy(&format!("other-{n}"), 900));
    world.pass(5_000);
    assert_eq!(world.machines("other"), 3);
    world.ask(|request| Input::Scale { request, asked: add(gang(5, 4), "large", None) }).expect("beside the schedule");
    world.ask(|request| Input::Scale { request, asked: add(gang(1, 4), "small", None) }).expect("fits");
    world.pass(600_000);
    assert_eq!(world.machines("default"), 1, "three places are free: {:?}", world.outlook.unmet);
}

/// A gang of three, of which two are to be had, does not buy two again and again.
#[test]
fn a_gang_that_gets_two_of_three_buys_no_two_again_and_again() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100))]));
    let mut waiting: std::collections::VecDeque<Input> =
        [Input::Scale { request: Request::new(900, Actor::LOCAL), asked: add(gang(3, 4), "gang", None) }].into();
    let (mut alive, mut bought) = (BTreeSet::new(), 0);
    while world.now < 6 * 3_600_000 {
        while let Some(input) = waiting.pop_front() {
            for action in world.brain.handle(world.moment(), input).actions {
                match action {
                    Action::Create { node, generation, .. } if alive.len() < 2 => {
                        bought += 1;
                        let instance = InstanceId::new(format!("i-{node}.{generation}")).expect("short");
                        alive.insert(instance.clone());
                        let made = Instance {
                            id: instance,
                            node: node.clone(),
                            generation,
                            address: Some("10.0.0.1".to_owned()),
                            state: InstanceState::Running,
                        };
                        waiting.push_back(Input::Created { node, generation, result: Ok(made) });
                    }
                    Action::Create { node, generation, .. } => {
                        let failure = Failure { message: "none".to_owned(), retry_after: None, kind: FailureKind::StockOut };
                        waiting.push_back(Input::Created { node, generation, result: Err(failure) });
                    }
                    Action::Delete { node, generation, instance } => {
                        alive.remove(&instance);
                        waiting.push_back(Input::Deleted { node, generation, instance, result: Ok(()) });
                    }
                    _ => {}
                }
            }
        }
        world.now = world.brain.next_wake();
        waiting.push_back(Input::Tick);
    }
    assert!((8..30).contains(&bought), "{bought} machines were bought in six hours for a gang that never was whole");
}

/// `why` names what really leaves too little for a gang.
#[test]
fn a_gang_without_room_names_the_budget() {
    let mut of = spec(&[("default", kind(0, 9, 4, 100)), ("other", kind(0, 3, 1, 100))]);
    let hours = Hours { days: vec![0, 1, 2, 3, 4, 5, 6], from: 0, until: 1440, time_zone: "UTC".to_owned() };
    let rule = Rule::Schedule { hours, workers: Workers::AtLeast(3) };
    of.policies = vec![Policy { node_type: name("other"), rule, ..load_policy() }];
    of.budget = Some(MoneyPerHour(500_000));
    let mut world = World::new(of);
    // What a policy wants could make room for it, but they work.
    (1..=3).for_each(|n| world.busy(&format!("other-{n}"), 900));
    world.pass(5_000);
    world.ask(|request| Input::Scale { request, asked: add(gang(3, 4), "gang", None) }).expect("beside the schedule");
    world.pass(10_000);
    let why = &world.outlook.unmet[0].why;
    let is_budget = |cause: &UnmetCause| matches!(cause, UnmetCause::NeedsMoney { .. } | UnmetCause::BudgetLeaves { .. });
    assert!(why.iter().any(is_budget), "0.30 of 0.50 are spent and three cost 0.30: {why:?}");
    (1..=3).for_each(|n| world.busy(&format!("other-{n}"), 0));
    world.pass(60_000);
    assert_eq!((world.machines("default"), world.machines("other")), (3, 2), "a policy gives way to a request");
}

/// Many gangs that cannot be had keep nobody else waiting.
#[test]
fn many_gangs_that_cannot_be_served_are_in_nobody_s_way() {
    for gangs in [10, 40] {
        let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("large", kind(0, 90, 16, 500))]));
        let large = ("large".to_owned(), Offer::default());
        world.failing.insert(large, FailureKind::Permanent);
        world.ask(|request| Input::Scale { request, asked: add(gang(3, 16), "first", None) }).expect("there is room");
        world.pass(5_000);
        assert!(world.cluster.paused.contains_key(&name("large")));
        for n in 0..gangs {
            world.ask(|request| Input::Scale { request, asked: add(gang(2, 16), &format!("gang-{n}"), None) }).expect("there is room");
        }
        world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 4, 0)]), "small", None) }).expect("there is room");
        world.pass(240_000);
        assert_eq!(world.machines("default"), 1, "{gangs} gangs: {:?}", world.brain.request_views().last().map(|a| a.unmet.clone()));
    }
}

/// What can be had does not wait behind many that ask for more than a lowered limit leaves.
#[test]
fn many_that_cannot_be_served_are_in_nobody_s_way_under_a_limit() {
    for gangs in [10, 40] {
        let mut of = spec(&[("default", kind(0, 200, 4, 100))]);
        of.max_workers = 200;
        let mut world = World::new(of.clone());
        world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
        for n in 0..gangs {
            world.ask(|request| Input::Scale { request, asked: add(gang(4, 4), &format!("gang-{n}"), None) }).expect("there is room");
        }
        world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 4, 0)]), "small", None) }).expect("there is room");
        (of.revision, of.max_workers) = (2, 3);
        world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
        world.ask(|request| Input::Resume { request }).expect("resumed");
        world.pass(240_000);
        assert_eq!(world.machines("default"), 1, "{gangs} gangs: {:?}", world.brain.request_views().last().map(|a| a.unmet.clone()));
    }
}

/// The same where what stands needs more than the limit leaves.
#[test]
fn many_gangs_that_do_not_fit_are_in_nobody_s_way() {
    for gangs in [10, 40] {
        let mut of = spec(&[("default", kind(0, 300, 4, 100)), ("tiny", kind(0, 300, 2, 60))]);
        of.max_workers = 300;
        let mut world = World::new(of.clone());
        world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
        for n in 0..gangs {
            let RequestedCapacity::Bundles { bundles, .. } = bundles(&[(2, 3, 0), (1, 2, 0)]) else { unreachable!() };
            let wants = RequestedCapacity::Bundles { bundles, gang: true, spread: false };
            let Ok(_) = put(&mut world, &format!("g{n}"), wants, None) else { break };
        }
        let n = world.requests.len();
        of.revision = 2;
        of.max_workers = 2;
        let said = put(&mut world, "small", bundles(&[(1, 2, 0)]), None);
        world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
        world.ask(|request| Input::Resume { request }).expect("goes on");
        world.pass(600_000);
        assert!(world.brain.is_ready("small"), "{n} gangs: {said:?} {:?}", unmet(&world).last());
    }
}

/// A gang that is paused takes room for all of it as soon as there is any.
#[test]
fn a_paused_gang_takes_room_that_is_there() {
    for min in [0, 2] {
        let mut world = World::new(spec(&[("default", kind(min, 4, 4, 100))]));
        world.pass(20_000);
        put(&mut world, "a", bundles(&[(2, 4, 0)]), None).expect("fits");
        world.pass(20_000);
        world.failing.insert(default_offer(), FailureKind::StockOut);
        put(&mut world, "g", gang(2, 4), None).expect("fits");
        world.pass(1_200_000);
        assert!(!world.brain.is_ready("g"));
        world.ask(|request| Input::Revoke { request, name: "a".to_owned(), now: true }).expect("it stands");
        world.pass(30_000);
        assert!(world.brain.is_ready("g"), "min {min}: {} machines, {:?}", world.machines("default"), unmet(&world));
    }
}

/// Half a gang takes nobody's room while the head is held.
#[test]
fn half_a_gang_is_in_nobodys_way_while_held() {
    let mut world = World::new(spec(&[("default", kind(1, 4, 4, 100))]));
    world.pass(20_000);
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    put(&mut world, "g", gang(2, 4), None).expect("fits");
    let said = put(&mut world, "small", bundles(&[(1, 2, 0)]), None);
    world.pass(20_000);
    assert!(world.brain.is_ready("small"), "{said:?} {:?} {:?}", unmet(&world), world.brain.plan());
}

/// Nor does a restart meanwhile give it any.
#[test]
fn a_restart_gives_half_a_gang_no_room() {
    for restarts in [false, true] {
        let mut world = World::new(spec(&[("default", kind(1, 4, 4, 100))]));
        world.pass(20_000);
        world.failing.insert(default_offer(), FailureKind::StockOut);
        put(&mut world, "g", gang(2, 4), None).expect("fits");
        world.pass(5_000);
        world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
        if restarts {
            world.restart();
            world.pass(5_000);
        }
        let said = put(&mut world, "small", bundles(&[(1, 2, 0)]), None);
        world.pass(5_000);
        assert!(world.brain.is_ready("small"), "restarts: {restarts}: {said:?} {:?}", unmet(&world));
    }
}

/// A gang that is prolonged keeps its machines.
#[test]
fn prolonging_a_gang_lets_nothing_go() {
    let mut world = World::new(spec(&[("default", kind(0, 2, 10, 100))]));
    world.pass(60_000);
    let RequestedCapacity::Bundles { bundles, .. } = bundles(&[(2, 4, 0), (4, 3, 0)]) else { unreachable!() };
    let wants = RequestedCapacity::Bundles { bundles, gang: true, spread: false };
    put(&mut world, "job", wants.clone(), None).expect("two machines");
    world.pass(60_000);
    assert!(world.brain.is_ready("job"));
    let until = world.now + 7_200_000;
    let said = put(&mut world, "job", wants, Some(until)).expect("the same again");
    let leaving: Vec<_> = world.nodes.values().filter(|n| n.life.is_leaving()).map(|n| n.id.clone()).collect();
    assert!(
        leaving.is_empty() && world.calls.len() == 2,
        "{said}: {leaving:?} {:?} {:?} {:?} calls, {:#?}",
        unmet(&world),
        world.brain.plan(),
        world.calls.len(),
        decisions(&world)
    );
    world.pass(60_000);
    assert!(world.brain.is_ready("job") && world.calls.len() == 2, "{said}: {:?} {:?}", unmet(&world), decisions(&world));
}

/// A head that starts again tries a gang of which too little was to be had once more, and not each time anything happens.
#[test]
fn a_restart_tries_a_gang_once_more() {
    let mut calls = Vec::new();
    for restarts in [false, true] {
        let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100)), ("rare", kind(0, 4, 8, 100))]));
        world.pass(5_000);
        world.failing.insert(("rare".to_owned(), Offer::default()), FailureKind::StockOut);
        put(&mut world, "g", gang(2, 8), None).expect("fits");
        for _ in 0..60 {
            world.pass(60_000);
            if restarts {
                world.restart();
            }
        }
        calls.push(world.calls.len());
    }
    assert!(calls[1] <= calls[0] + 60, "{calls:?}");
}

/// A machine that a gang needs stays when something else is taken back.
#[test]
fn what_is_taken_back_takes_nothing_from_a_gang() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 10, 100))]));
    for (n, cpus) in [4, 3, 3, 4].into_iter().enumerate() {
        one(&mut world, &format!("job-{n}"), cpus, None);
    }
    world.ask(|request| Input::Scale { request, asked: add(gang(5, 3), "gang", None) }).expect("there is room");
    world.pass(15_000);
    one(&mut world, "nine", 9, None);
    one(&mut world, "last", 1, None);
    assert_eq!(world.machines("default"), 4);
    assert!(world.brain.is_ready("gang"));
    world.ask(|request| Input::Revoke { request, name: "last".to_owned(), now: true }).expect("it stands");
    let leaving: Vec<_> = world.nodes.values().filter(|n| n.life.is_leaving()).map(|n| n.id.clone()).collect();
    world.pass(60_000);
    let again = world.calls.len();
    assert!(leaving.is_empty() && again == 4, "{leaving:?} are scaled in, {} machines are asked for again", again - 4);
}

/// Nobody loses room to a gang whose machine is not to be had after all.
#[test]
fn a_gang_keeps_its_room() {
    let mut world = World::new(spec(&[("big", kind(0, 1, 10, 100)), ("small", kind(0, 1, 4, 120))]));
    world.pass(10_000);
    put(&mut world, "first", gang(2, 2), None).expect("fits");
    world.pass(20_000);
    assert!(world.brain.is_ready("first"), "{:?}", world.brain.plan());
    world.failing.insert(("small".to_owned(), Offer::default()), FailureKind::StockOut);
    let said = put(&mut world, "second", bundles(&[(1, 8, 0)]), None);
    world.pass(3_600_000);
    assert!(world.brain.is_ready("first"), "{said:?} {:?}", unmet(&world));
}

/// A gang of which one machine is slow to be deleted, where the type's maximum is just enough, keeps the others.
#[test]
fn the_others_of_a_gang_wait_for_the_one_that_leaves() {
    let mut of = spec(&[("default", kind(0, 2, 4, 100))]);
    of.idle_after_ms = 20_000;
    let mut world = World::new(of);
    world.pass(60_000);
    put(&mut world, "g", gang(2, 4), None).expect("two machines");
    world.pass(60_000);
    world.refuses_deletions = true;
    world.ask(|request| Input::Kill { request, node: id("w2") }).expect("a person may");
    world.pass(120_000);
    world.refuses_deletions = false;
    world.pass(200_000);
    assert!(world.brain.is_ready("g"));
    assert_eq!(world.nodes[&id("w1")].generation, Generation(1), "{:?}", decisions(&world));
}

/// A gang of whose spot machines one is taken away each time before it is up is tried less and less often.
#[test]
fn a_gang_whose_machines_are_taken_away_waits_longer() {
    let spot = WorkerType { spot: Some(Spot { price: Some(MoneyPerHour(30_000)), or_on_demand: false }), ..kind(0, 4, 4, 100) };
    let mut world = World::new(spec(&[("default", spot)]));
    world.silent.extend((1..=4).map(|n| id(&format!("w{n}"))));
    put(&mut world, "g", gang(3, 4), None).expect("fits");
    for _ in 0..6 * 3_600 {
        world.pass(1_000);
        if let Some(machine) = world.machines.values_mut().next() {
            machine.state = InstanceState::Stopped;
        }
    }
    assert!(world.calls.len() <= 40, "{} machines in six hours", world.calls.len());
}
