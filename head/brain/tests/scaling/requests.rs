//! Requests: what is granted, refused, ended and taken back, and where it lies.

use super::*;

/// What a machine was bought for, for which requests, and why none of another type.
fn bought(world: &World, node: &str) -> (Vec<Counted>, Vec<String>, BTreeMap<NodeTypeName, NotChosen>) {
    let of_node = world.events.iter().filter(|e| e.node == Some(id(node)));
    let mut found = of_node.filter_map(|e| match &e.what {
        What::Launch(launch) => Some(&launch.purpose),
        _ => None,
    });
    match found.next_back() {
        Some(Purpose::Room { needs, requests, choice: TypeChoice::Not { types } }) => (needs.clone(), requests.clone(), types.clone()),
        other => panic!("{other:?}"),
    }
}

/// Whether an event tells that so many workers were refused.
fn is_refused(world: &World, workers: u32) -> bool {
    let is_told = |what: &What| match what {
        What::ScaleRefused { refusal: Refusal::OutOfBounds { count, .. } | Refusal::AboveTypeMaximum { count, .. } } => *count == workers,
        _ => false,
    };
    world.told(is_told) > 0
}

#[test]
fn room_is_bought_from_the_cheapest_type_and_said_why() {
    let gpu = WorkerType { resources: Some(Resources { cpus: 8, memory: Bytes(1 << 36), gpus: 2 }), ..kind(0, 4, 8, 90) };
    let mut world =
        World::new(spec(&[("default", kind(0, 10, 4, 100)), ("dear", kind(0, 10, 4, 130)), ("gpu", gpu), ("small", kind(0, 10, 1, 10))]));
    world.scale(bundles(&[(6, 2, 0)])).expect("there is room");
    assert_eq!((world.machines("default"), world.machines("dear"), world.machines("gpu"), world.machines("small")), (3, 0, 0, 0));
    let (needs, requests, types) = bought(&world, "w1");
    let cpus = |n: u64| Bundle { cpus: Quantity(n * 1_000), ..Bundle::default() };
    assert_eq!((needs, requests), (vec![Counted { bundle: cpus(2), count: 2 }], vec!["room".to_owned()]));
    assert_eq!(types[&name("small")], NotChosen::Lacks { what: Lack::HasOnly { bundle: cpus(1) } });
    assert_eq!(types[&name("gpu")], NotChosen::GpusNotNeeded);
    assert!(matches!(types[&name("dear")], NotChosen::MoreExpensive { .. }), "{types:?}");
    // What wants GPUs gets them, and what does not may go beside it.
    world.scale(bundles(&[(4, 1, 1), (1, 4, 0)])).expect("there is room");
    assert_eq!(world.machines("gpu"), 2);
}

#[test]
fn what_cannot_be_had_is_refused_with_what_it_would_take() {
    let mut of = spec(&[("default", kind(1, 6, 4, 500))]);
    of.budget = Some(MoneyPerHour(2_000_000));
    let mut world = World::new(of);
    for (wants, says) in [
        (RequestedCapacity::Workers { node_type: name("default"), count: 5 }, "would bring the cluster to 2.50/h, its budget is 2.00/h"),
        (RequestedCapacity::Workers { node_type: name("default"), count: 7 }, "not between its min 1 and max 6"),
        (RequestedCapacity::Workers { node_type: name("other"), count: 1 }, "there is no node type other; there is default"),
        (bundles(&[(1, 5, 0)]), "no node type has 5 cpus: default has only 4 cpus"),
        (bundles(&[(1, 1, 1)]), "default has no gpus"),
        (bundles(&[(17, 1, 0)]), "the budget is 2.00/h, 2.50/h is needed"),
        (bundles(&[(25, 1, 0)]), "workers.default.max is 6, 7 are needed"),
    ] {
        let refusal = world.scale(wants.clone()).expect_err("too much");
        assert!(refusal.contains(says), "{wants}: {refusal}");
    }
    assert_eq!(world.machines("default"), 1, "nothing was changed");
    assert!(world.requests.is_empty());
    world.scale(bundles(&[(16, 1, 0)])).expect("just within the budget");
    assert_eq!(world.machines("default"), 4);
    let refusal = world.workers(5).expect_err("together they are too much");
    assert!(refusal.contains("budget"), "{refusal}");
}

#[test]
fn demands_that_are_apart_are_on_nodes_of_their_own() {
    let mut world = World::new(spec(&[("default", kind(1, 5, 8, 100))]));
    let wants = RequestedCapacity::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity(1_000), ..Bundle::default() }, count: 4 }],
        gang: false,
        spread: true,
    };
    world.scale(wants).expect("there is room");
    assert_eq!(world.machines("default"), 4, "one was there");
}

#[test]
fn requests_add_up_end_and_survive_a_restart() {
    let mut world = World::new(spec(&[("default", kind(1, 9, 4, 100))]));
    world.workers(3).expect("within the bounds");
    let more = |count, until| NewRequest {
        name: None,
        wants: RequestedCapacity::Workers { node_type: name("default"), count },
        additive: true,
        until,
        reason: "a test".to_owned(),
    };
    world.ask(|request| Input::Scale { request, asked: more(2, None) }).expect("two more");
    let until = Some(Timestamp(MONDAY + 600_000));
    world.ask(|request| Input::Scale { request, asked: more(1, until) }).expect("one more for a while");
    assert_eq!(world.machines("default"), 6);
    world.restart();
    world.pass(5_000);
    let names: Vec<String> = world.brain.request_views().into_iter().map(|a| a.request.name).collect();
    assert_eq!(names, ["workers-default", "request-1", "request-2"]);
    (1..=6).for_each(|n| world.busy(&format!("w{n}"), 900));
    world.pass(600_000);
    assert_eq!((world.brain.request_views().len(), world.machines("default")), (2, 6), "what ends by itself ends gently");
    (1..=6).for_each(|n| world.busy(&format!("w{n}"), 0));
    world.pass(290_000);
    assert_eq!(world.machines("default"), 6);
    world.pass(20_000);
    assert_eq!(world.machines("default"), 5, "once it is idle for long enough");
    world.ask(|request| Input::Revoke { request, name: "request-1".to_owned(), now: true }).expect("it stands");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3, "what is taken back goes at once");
    let refusal = world.ask(|request| Input::Revoke { request, name: "request-1".to_owned(), now: true }).expect_err("it is gone");
    assert!(refusal.contains("there is workers-default"), "{refusal}");
}

/// Asking again for what stands keeps when it came and why, unless another reason is given, and says how long it stands now.
#[test]
fn asking_again_changes_how_long_it_stands() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100))]));
    put(&mut world, "job", bundles(&[(1, 4, 0)]), Some(600_000)).expect("fits");
    let came = world.brain.request_views()[0].request.at;
    world.pass(10_000);
    let silent = NewRequest { reason: String::new(), ..add(bundles(&[(1, 4, 0)]), "job", None) };
    let said = world.ask(|request| Input::Scale { request, asked: silent }).expect("it stands");
    assert!(said.ends_with("; it now lasts until it is revoked"), "{said}");
    let ask = world.brain.request_views().remove(0).request;
    assert_eq!((ask.at, ask.until, ask.reason.as_str()), (came, None, "two lines"));
}

#[test]
fn what_is_promised_while_held_fits_together() {
    let mut world = World::new(spec(&[("default", kind(0, 6, 4, 100))]));
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    world.workers(4).expect("within the bounds");
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(6, 4, 0)]), "all", None) }).expect("just fits");
    let refusal = world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 4, 0)]), "more", None) });
    assert!(refusal.expect_err("six are promised").contains("max is 6, 7 are needed"));
    assert!(world.brain.request_views().iter().all(|a| a.unmet.is_some()), "nothing of it is there");
    world.ask(|request| Input::Resume { request }).expect("resumed");
    world.pass(1_000);
    assert_eq!(world.machines("default"), 6);
    assert!(world.brain.request_views().iter().all(|a| a.unmet.is_none()), "{:?}", world.brain.request_views());
}

#[test]
fn a_drain_takes_one_from_what_was_asked_for() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    let asked = NewRequest {
        name: Some("batch".to_owned()),
        additive: false,
        ..add(RequestedCapacity::Workers { node_type: name("default"), count: 4 }, "", Some(60_000))
    };
    world.ask(|request| Input::Scale { request, asked }).expect("within the bounds");
    let said = world.ask(|request| Input::Drain { request, node: id("w4") }).expect("it may go");
    assert!(said.contains("drops by one"), "{said}");
    let ask = &world.brain.request_views()[0].request;
    assert_eq!((ask.name.as_str(), ask.until, ask.reason.as_str()), ("batch", Some(Timestamp(MONDAY + 60_000)), "two lines"));
    world.ask(|request| Input::Quarantine { request, node: id("w2"), reason: String::new() }).expect("set aside");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 4);
    let said = world.ask(|request| Input::Drain { request, node: id("w2") }).expect("it may go");
    assert!(said.contains("above the desired count"), "{said}");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 3, "those that are well stay");
}

#[test]
fn a_drain_that_says_smaller_makes_it_smaller() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    let mut world = World::new(of.clone());
    world.workers(5).expect("fits");
    of.revision = 2;
    of.workers.insert(name("default"), kind(1, 3, 4, 100));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3);
    let said = world.ask(|request| Input::Drain { request, node: id("w3") }).expect("may go");
    world.pass(60_000);
    let n = world.machines("default");
    assert!(!said.contains("shrinks") || n == 2, "said {said:?}, there are {n}");
}

#[test]
fn a_resource_that_is_gone_is_missed() {
    let licensed = WorkerType { custom: BTreeMap::from([("licence".to_owned(), 1)]), ..kind(0, 3, 4, 100) };
    let mut of = spec(&[("default", licensed)]);
    let mut world = World::new(of.clone());
    let bundle = Bundle { resources: BTreeMap::from([("licence".to_owned(), Quantity::ONE)]), ..Bundle::default() };
    let wants = RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count: 2 }], gang: false, spread: false };
    world.scale(wants).expect("there is room");
    assert_eq!(world.machines("default"), 2);
    (of.revision, of.workers) = (2, [(name("default"), kind(0, 3, 4, 100))].into());
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(1_000);
    let unmet = world.brain.request_views()[0].unmet.clone().expect("it has no room");
    let is_unknown = |cause: &UnmetCause| matches!(cause, UnmetCause::NotOffered { resources } if *resources == ["licence"]);
    assert!(matches!(&unmet, Shortfall::NoRoom { why, .. } if why.iter().any(is_unknown)), "{unmet:?}");
}

#[test]
fn room_does_not_take_what_a_minimum_needs() {
    let mut of = spec(&[("default", kind(1, 2, 4, 100)), ("large", kind(0, 2, 8, 300))]);
    of.max_workers = 1;
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    of.revision = 2;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.scale(bundles(&[(1, 2, 0)])).expect("the minimum's node has room for it");
    world.pass(5_000);
    assert_eq!((world.machines("default"), world.machines("large")), (0, 0), "the only place is the minimum's");
    world.failing.clear();
    world.pass(70_000);
    assert_eq!((world.machines("default"), world.machines("large")), (1, 0));
}

#[test]
fn where_room_lies_is_planned_anew_if_that_makes_room() {
    let mut world = World::new(spec(&[("default", kind(2, 4, 1, 100)), ("big", kind(0, 2, 4, 350))]));
    world.scale(bundles(&[(8, 1, 0)])).expect("there is room");
    world.pass(5_000);
    let apart = RequestedCapacity::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity::ONE, ..Bundle::default() }, count: 3 }],
        gang: true,
        spread: true,
    };
    world.ask(|request| Input::Scale { request, asked: add(apart, "apart", None) }).expect("both fit");
    world.pass(30_000);
    assert!(world.brain.request_views().iter().all(|ask| ask.ready), "{:?}", world.brain.request_views());
}

/// No dear node is kept for what a node that is there anyway has room for.
#[test]
fn room_moves_to_what_is_there_anyway() {
    let mut of = spec(&[("default", kind(1, 3, 4, 100)), ("dear", kind(0, 2, 4, 900))]);
    let hours = Hours { days: vec![0], from: 0, until: 60, time_zone: "UTC".to_owned() };
    let rule = Rule::Schedule { hours, workers: Workers::AtLeast(1) };
    of.policies = vec![Policy { node_type: name("dear"), rule, ..load_policy() }];
    let mut world = World::new(of);
    world.pass(5_000);
    for job in ["a", "b"] {
        world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 4, 0)]), job, None) }).expect("fits");
    }
    world.workers(2).expect("fits");
    assert_eq!((world.machines("default"), world.machines("dear")), (2, 1));
    world.pass(86_400_000);
    let of = |t: &str| &world.outlook.types[&name(t)];
    assert_eq!(
        (world.machines("default"), world.machines("dear")),
        (2, 0),
        "a day later; w2 is empty, {:?}, {:?}",
        of("default"),
        of("dear")
    );
}

/// A wish that is refused does not move the end of a request.
#[test]
fn what_is_refused_moves_no_end() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    let wants = RequestedCapacity::Workers { node_type: name("default"), count: 3 };
    let asked = NewRequest { name: Some("job".to_owned()), additive: false, ..add(wants, "", Some(3_600_000)) };
    world.ask(|request| Input::Scale { request, asked }).expect("fits");
    // The wall clock is wrong by two hours for a moment; somebody asks for what is refused.
    world.now += 400;
    let wall = Moment { mono: world.now, wall: Timestamp(MONDAY + 7_200_000 + world.now) };
    let wants = RequestedCapacity::More { node_type: name("default"), count: 50 };
    let asked = NewRequest { name: Some("job".to_owned()), additive: false, ..add(wants, "", None) };
    let step = world.brain.handle(wall, Input::Scale { request: Request::new(900, Actor::LOCAL), asked });
    assert!(step.actions.iter().any(|a| matches!(a, Action::Reply { result: Err(_), .. })));
    world.now += 400;
    // Anything that has a decision made.
    let step2 = world
        .brain
        .handle(Moment { mono: world.now, ..wall }, Input::Hold { request: Request::new(901, Actor::LOCAL), reason: String::new() });
    let gone: Vec<_> =
        step.records.iter().chain(&step2.records).filter(|r| matches!(r, cloudtik_brain::Record::ResourceRequestGone { .. })).collect();
    assert!(gone.is_empty(), "{gone:?}: a request for an hour ends after a second, because another was refused");
}

/// A head that sleeps does not lengthen requests.
#[test]
fn a_request_for_an_hour_lasts_an_hour() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    let wants = RequestedCapacity::Workers { node_type: name("default"), count: 3 };
    world.ask(|request| Input::Scale { request, asked: add(wants, "job", Some(3_600_000)) }).expect("fits");
    world.pass(10_000);
    world.now += 8 * 3_600_000;
    world.tell(Input::Tick);
    world.pass(60_000);
    assert!(world.requests.is_empty(), "eight hours later a request for one hour still stands");
}

#[test]
fn a_wall_clock_that_jumps_ends_no_request() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    let until = Some(3_600_000);
    world
        .ask(|request| Input::Scale {
            request,
            asked: add(RequestedCapacity::Workers { node_type: name("default"), count: 2 }, "job", until),
        })
        .expect("fits");
    let mut gone = false;
    for _ in 0..160 {
        world.now += 400;
        let moment = Moment { mono: world.now, wall: Timestamp(MONDAY + 7_200_000 + world.now) };
        gone |= world.brain.handle(moment, Input::Tick).records.iter().any(|r| matches!(r, Record::ResourceRequestGone { .. }));
    }
    assert!(!gone, "a request for an hour is over after a minute of a wrong clock, and does not come back");
}

/// A type that was used up is not called dearer.
#[test]
fn a_type_that_was_used_up_is_not_called_dearer() {
    let mut world = World::new(spec(&[
        ("default", kind(0, 1, 4, 100)),
        ("dear", kind(0, 5, 4, 130)),
        ("best", WorkerType { priority: 9, ..kind(0, 1, 4, 300) }),
    ]));
    world.scale(bundles(&[(3, 4, 0)])).expect("fits");
    let (_, _, types) = bought(&world, "dear-1");
    let is_at_maximum = |name: &NodeTypeName| {
        matches!(types[name], NotChosen::MaximumReached { .. } | NotChosen::Blocked { by: Blocked::TypeMaximum { .. } })
    };
    assert!(is_at_maximum(&name("default")) && is_at_maximum(&name("best")), "{types:?}");
}

#[test]
fn every_refusal_is_stored() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    world.pass(5_000);
    let mut missing = Vec::new();
    let before = world.events.len();
    world.ask(|request| Input::Release { request, node: id("w1") }).expect_err("not set aside");
    if world.events.len() == before {
        missing.push("release w1");
    }
    let before = world.events.len();
    world.ask(|request| Input::Revoke { request, name: "nothing".to_owned(), now: true }).expect_err("unknown");
    if world.events.len() == before {
        missing.push("revoke nothing");
    }
    world.pass(5_000);
    world.workers(77).expect_err("too many");
    world.workers(78).expect_err("too many");
    if !is_refused(&world, 78) {
        missing.push("scale 78, right after scale 77");
    }
    world.pass(5_000);
    world.tell(Input::Complained { what: "something else".to_owned() });
    world.workers(79).expect_err("too many");
    world.pass(700_000);
    if !is_refused(&world, 79) {
        missing.push("scale 79, within a second of another complaint");
    }
    assert!(missing.is_empty(), "no stored fact tells of: {missing:?}");
}

/// When something is taken back, the others do not stay on more than they need.
#[test]
fn what_stands_moves_to_the_cheapest_of_what_is_there() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 2, 400)), ("large", kind(0, 2, 8, 1_000))]));
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(4, 1, 0)]), "a", None) }).expect("fits");
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 8, 0)]), "b", None) }).expect("fits");
    assert_eq!((world.machines("default"), world.machines("large")), (2, 1));
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 1, 0)]), "b", None) }).expect("less");
    world.pass(600_000);
    assert_eq!((world.machines("default"), world.machines("large")), (0, 1), "five cores fit on the large one, at 1.00 instead of 1.80");
}

/// A request is there when its own are, whatever the clock said before.
#[test]
fn a_clock_that_is_set_back_makes_nothing_ready() {
    for set_back in [0, 3_600_000] {
        let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100))]));
        let more = |count| RequestedCapacity::More { node_type: name("default"), count };
        world.ask(|request| Input::Scale { request, asked: add(more(3), "a", None) }).expect("fits");
        world.pass(10_000);
        world.set_back = set_back;
        world.silent.extend([id("w4"), id("w5")]);
        world.ask(|request| Input::Scale { request, asked: add(more(2), "b", None) }).expect("fits");
        world.pass(10_000);
        assert_eq!(world.nodes.values().filter(|n| n.life == NodeState::Ready).count(), 3);
        assert!(!world.brain.is_ready("b"), "set back by {set_back}: two more are ready, and none of them has linked");
    }
}

/// Whoever asks is told at once what stands in the way.
#[test]
fn the_answer_says_what_waits() {
    let mut world = World::new(spec(&[("default", kind(0, 9, 4, 100))]));
    assert_eq!(world.scale(gang(2, 4)).as_deref(), Ok("room: room for 2 × 4 cpus, all or nothing"));
    world.ask(|request| Input::Hold { request, reason: "the network moves".to_owned() }).expect("held");
    let answer = world.workers(3).expect("within the bounds");
    assert!(answer.ends_with("no node is created for it until `cloudtik resume` (held on request: the network moves)"), "{answer}");
    world.ask(|request| Input::Resume { request }).expect("resumed");
    world.failing.insert(default_offer(), FailureKind::StockOut);
    world.workers(4).expect("within the bounds");
    world.pass(1_000);
    let answer = world.scale(gang(5, 4)).expect("there is room");
    assert!(answer.contains("; it waits: 5 × 4 cpus: default: not available"), "{answer}");
}

/// Before a description is taken, it is said what it does to requests.
#[test]
fn requests_that_another_description_is_at_odds_with_are_named() {
    let large = kind(0, 3, 16, 400);
    let mut of = spec(&[("default", kind(1, 4, 4, 100)), ("large", large)]);
    let mut world = World::new(of.clone());
    let asked =
        NewRequest { wants: RequestedCapacity::Workers { node_type: name("large"), count: 1 }, ..add(gang(1, 1), "two-large", None) };
    world.ask(|request| Input::Scale { request, asked }).expect("fits");
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 16, 0)]), "job", None) }).expect("fits");
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(2, 4, 0)]), "small", None) }).expect("fits");
    assert_eq!(world.brain.conflicting_requests(&of), Vec::new());
    of.max_workers = 2;
    let conflicts = world.brain.conflicting_requests(&of);
    assert_eq!((conflicts.len(), conflicts[0].requests.as_slice()), (1, &["small".to_owned()][..]), "what came first fits: {conflicts:?}");
    assert!(
        matches!(&conflicts[0].why, ConflictCause::NoRoom { why: NoRoom::Takes { limits, .. } }
        if matches!(limits[..], [ShortLimit::MaxWorkers { max: 2, .. }])),
        "{conflicts:?}"
    );
    of.workers.remove(&name("large"));
    let conflicts = world.brain.conflicting_requests(&of);
    let named: Vec<_> = conflicts.iter().map(|conflict| (conflict.requests[0].as_str(), &conflict.why)).collect();
    let [("two-large", ConflictCause::TypeRemoved), ("job", ConflictCause::NoLongerFits { why: Refusal::NoTypeFits { lacks, .. } })] =
        &named[..]
    else {
        panic!("{named:?}")
    };
    assert!(matches!(&lacks[&name("default")], Lack::HasOnly { bundle } if bundle.cpus.0 == 4_000), "{lacks:?}");
}

/// A request that no node can serve any more is in nobody's way.
#[test]
fn what_cannot_be_served_is_in_nobodys_way() {
    let mut with = kind(1, 10, 4, 100);
    with.custom = BTreeMap::from([("licence".to_owned(), 1)]);
    let mut of = spec(&[("default", with)]);
    let mut world = World::new(of.clone());
    world.pass(10_000);
    let bundle =
        Bundle { cpus: Quantity(1_000), resources: BTreeMap::from([("licence".to_owned(), Quantity(1_000))]), ..Bundle::default() };
    put(&mut world, "old", RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count: 2 }], gang: false, spread: false }, None)
        .expect("fits");
    world.pass(10_000);
    of.revision = 2;
    of.workers = BTreeMap::from([(name("default"), kind(1, 10, 4, 100))]);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(10_000);
    let room = put(&mut world, "new", bundles(&[(1, 2, 0)]), None);
    let number = world.workers(5);
    assert!(number.is_ok() && room.is_ok(), "number: {number:?}, room: {room:?}, {:?}", unmet(&world));
}

/// What has room is told that nothing is made for it.
#[test]
fn held_and_there_is_room() {
    let mut world = World::new(spec(&[("default", kind(1, 4, 4, 100))]));
    world.pass(20_000);
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    let said = put(&mut world, "small", bundles(&[(1, 2, 0)]), None).expect("fits");
    assert!(world.brain.is_ready("small"));
    assert!(!said.contains("no node is created for it"), "{said}");
}

/// What was refused is not what is asked for, though it reads the same.
#[test]
fn refusals_are_told_apart() {
    let mib = |n: u32, mib: u64| {
        let bundle = Bundle { memory: Bytes(mib << 20), ..Bundle::default() };
        RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count: n }], gang: false, spread: false }
    };
    let mut world = World::new(spec(&[("default", kind(0, 1, 4, 100))]));
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    put(&mut world, "large", mib(2, 8_233), None).expect_err("more than one machine holds");
    let said = put(&mut world, "small", mib(2, 8_151), None);
    assert!(said.is_ok(), "one machine holds it: {said:?}");
}

/// What fits on what is there by number and on one more is granted, in whatever order it was asked for.
#[test]
fn what_fits_on_the_minimum_and_one_more_is_granted() {
    for min in [0, 1] {
        let mut world = World::new(spec(&[("big", kind(min, 1, 10, 100)), ("small", kind(0, 1, 4, 120))]));
        world.pass(10_000);
        put(&mut world, "first", bundles(&[(1, 4, 0)]), None).expect("fits");
        world.pass(20_000);
        let said = put(&mut world, "second", bundles(&[(1, 8, 0)]), None);
        world.pass(20_000);
        assert!(said.is_ok() && unmet(&world).is_empty(), "min {min}: {said:?} {:?}", unmet(&world));
    }
}

/// Whoever has to wait is told for what, and gets it when it is to be had.
#[test]
fn what_was_out_of_stock_is_had_when_there_is_some() {
    let mut of = spec(&[("default", kind(0, 4, 4, 100))]);
    of.budget = Some(MoneyPerHour(200_000));
    let mut world = World::new(of);
    world.failing.insert(default_offer(), FailureKind::StockOut);
    put(&mut world, "a", bundles(&[(1, 4, 0)]), None).expect("fits");
    world.failing.clear();
    world.pass(400_000);
    assert!(world.brain.is_ready("a"));
}

/// A refusal is remembered as long as nothing changed.
#[test]
fn what_was_refused_is_granted_when_there_is_room() {
    let mut of = spec(&[("default", kind(0, 4, 4, 100))]);
    let mut world = World::new(of.clone());
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    put(&mut world, "a", bundles(&[(4, 4, 0)]), None).expect("fits");
    let refusal = put(&mut world, "b", bundles(&[(2, 4, 0)]), None).expect_err("four are promised");
    assert_eq!(put(&mut world, "c", bundles(&[(2, 4, 0)]), None), Err(refusal), "the same again is refused for the same");
    world.ask(|request| Input::Revoke { request, name: "a".to_owned(), now: true }).expect("it stands");
    put(&mut world, "b", bundles(&[(2, 4, 0)]), None).expect("there is room now");
    put(&mut world, "c", bundles(&[(3, 4, 0)]), None).expect_err("two are left");
    (of.revision, of.workers) = (2, [(name("default"), kind(0, 5, 4, 100))].into());
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    put(&mut world, "c", bundles(&[(3, 4, 0)]), None).expect("three are left");
}
