//! Maxima and the budget, also where they change.

use super::*;

#[test]
fn limits_that_are_lowered_hold_for_what_is_there() {
    let mut of = spec(&[("default", kind(1, 6, 4, 500)), ("dear", kind(0, 3, 8, 900))]);
    let mut world = World::new(of.clone());
    world.workers(5).expect("within the bounds");
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 8, 0)]), "big", None) }).expect("there is room");
    assert_eq!((world.machines("default"), world.machines("dear")), (5, 1));
    (of.revision, of.max_workers) = (2, 4);
    assert_eq!(world.brain.excess(&of).len(), 2, "it is told beforehand, of both types");
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    world.pass(2_000);
    assert_eq!((world.machines("default"), world.machines("dear")), (4, 0), "numbers come before room");
    (of.revision, of.budget) = (3, Some(MoneyPerHour(1_000_000)));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    world.pass(2_000);
    assert_eq!((world.machines("default"), world.machines("dear")), (2, 0), "1.00/h and no more");
    let requests = world.brain.request_views();
    assert!(requests.iter().all(|a| a.unmet.is_some()), "what is not there is not met: {requests:?}");
    world.workers(1).expect("less is always to be had");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 1);
}

#[test]
fn a_budget_that_comes_later_counts_what_was_made_without_a_price() {
    let free = |revision, budget: Option<u64>| {
        let mut of = spec(&[("default", WorkerType { price: budget.map(|_| MoneyPerHour(100_000)), ..kind(1, 4, 4, 0) })]);
        (of.revision, of.budget) = (revision, budget.map(|b| MoneyPerHour(b * 1_000)));
        of
    };
    let mut world = World::new(free(1, None));
    world.workers(4).expect("there is room");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 4);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: free(2, Some(250)) });
    world.pass(60_000);
    assert_eq!(world.machines("default"), 2);
}

#[test]
fn a_maximum_that_was_lowered_holds_for_what_is_not_made_yet() {
    let mut of = spec(&[("default", kind(3, 5, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 1 });
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    world.failing.insert(default_offer(), FailureKind::Transient);
    of.revision = 2;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    assert_eq!(world.machines("default"), 0);
    of.revision = 3;
    of.workers.insert(name("default"), kind(1, 1, 4, 100));
    of.max_workers = 1;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    let from = world.calls.len();
    world.failing.clear();
    let mut most = 0;
    for _ in 0..300 {
        world.pass(200);
        most = most.max(world.machines("default"));
    }
    assert!(
        world.calls.len() - from <= 1,
        "{most} machines at once, the maximum had been 1 before any was made: {:?}",
        &world.calls[from..]
    );
}

#[test]
fn the_step_that_lowers_a_limit_launches_nothing_beyond_it() {
    let mut of = spec(&[("default", kind(3, 3, 4, 100))]);
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    world.failing.insert(default_offer(), FailureKind::Transient);
    of.revision = 2;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    let calls = world.calls.len();
    world.failing.clear();
    // Their pause of half a second is over in the moment in which the limit comes down.
    world.now += 600;
    of.revision = 3;
    of.workers.insert(name("default"), kind(0, 0, 4, 100));
    of.max_workers = 0;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    assert_eq!(world.calls.len(), calls, "launched in the step that took the maximum of 0 in; {} machines", world.machines("default"));
}

/// Where some may not be spared, others go for a limit that is exceeded.
#[test]
fn who_may_leave_leaves_for_a_limit() {
    let mut of = spec(&[("default", kind(3, 6, 4, 100)), ("zk", kind(3, 3, 4, 100))]);
    of.services.push(ServicePlacement {
        key: "zk/server".parse().expect("valid"),
        role: Role::NodeType(name("zk")),
        after: Vec::new(),
        membership: Some(Membership { quorum: true, minimum: 3 }),
        drain_ms: 0,
    });
    of.services[0].role = Role::NodeType(name("default"));
    of.services[1].key = key();
    let mut world = World::new(of.clone());
    world.pass(5_000);
    assert_eq!((world.machines("default"), world.machines("zk")), (3, 3));
    assert!(world.nodes.values().all(|n| n.life == NodeState::Ready));
    (of.revision, of.max_workers) = (2, 4);
    of.workers.insert(name("zk"), kind(0, 3, 4, 100));
    of.workers.insert(name("default"), kind(1, 6, 4, 100));
    (1..=3).for_each(|n| {
        world.busy(&format!("w{n}"), 900);
    });
    world
        .ask(|request| Input::Scale {
            request,
            asked: NewRequest {
                additive: false,
                name: None,
                ..add(RequestedCapacity::Workers { node_type: name("default"), count: 3 }, "", None)
            },
        })
        .expect("ok");
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(600_000);
    assert!(
        world.machines.len() <= 4,
        "{} default, {} zk; the maximum is 4, and those of default may leave",
        world.machines("default"),
        world.machines("zk")
    );
}

/// Where limits leave too little for all, minima come first, then requests, then policies.
#[test]
fn a_policy_takes_nothing_that_a_minimum_or_a_request_needs() {
    let mut of = spec(&[("alpha", kind(0, 5, 4, 100)), ("zeta", kind(2, 2, 4, 100))]);
    let hours = Hours { days: vec![0, 1, 2, 3, 4, 5, 6], from: 0, until: 1440, time_zone: "UTC".to_owned() };
    let rule = Rule::Schedule { hours, workers: Workers::AtLeast(5) };
    of.policies = vec![Policy { node_type: name("alpha"), rule, ..load_policy() }];
    of.max_workers = 5;
    let mut world = World::new(of.clone());
    world.pass(5_000);
    assert_eq!((world.machines("alpha"), world.machines("zeta")), (3, 2));
    let said = &world.outlook.types[&name("alpha")].sources;
    assert!(matches!(said[0], Source::Policy { count: 5, .. }) && said.contains(&Source::Limits { count: 3 }), "{said:?}");
    // One that dies is replaced by one of its kind.
    world.ask(|request| Input::Kill { request, node: id("zeta-1") }).expect("a person may");
    world.pass(5_000);
    assert_eq!((world.machines("alpha"), world.machines("zeta")), (3, 2));
    // A minimum that rises takes from the policy.
    (of.revision, of.workers) = (2, BTreeMap::from([(name("alpha"), kind(0, 5, 4, 100)), (name("zeta"), kind(4, 4, 4, 100))]));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(400_000);
    assert_eq!((world.machines("alpha"), world.machines("zeta")), (1, 4));
}

/// Where a maximum or the budget is in the way of the choice that is the usual one, another is made.
#[test]
fn what_only_another_choice_leaves_room_for_is_had() {
    let small_and_big = |priority: i32| {
        let big = WorkerType { priority, ..kind(0, 10, 4, 500) };
        spec(&[("small", kind(0, 10, 1, 100)), ("big", big)])
    };
    // Four small ones are the cheapest, and one too many of them is there at two.
    let mut of = small_and_big(0);
    of.max_workers = 2;
    let mut world = World::new(of);
    world.scale(bundles(&[(4, 1, 0)])).expect("one big one has room for them");
    world.pass(10_000);
    assert_eq!((world.machines("small"), world.machines("big")), (0, 1));
    assert!(world.brain.is_ready("room"));
    // Big ones are preferred, and the budget has room for small ones only.
    let mut of = small_and_big(1);
    of.budget = Some(MoneyPerHour(450_000));
    let mut world = World::new(of);
    world.scale(bundles(&[(4, 1, 0)])).expect("four small ones have room for them");
    world.pass(10_000);
    assert_eq!((world.machines("small"), world.machines("big")), (4, 0));
    // Of many that do not all have room, as many as possible do.
    let mut of = small_and_big(0);
    of.max_workers = 2;
    let mut world = World::new(of.clone());
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    (of.revision, of.max_workers) = (2, 20);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    for n in 0..10 {
        world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 1, 0)]), &format!("job-{n}"), None) }).expect("there is room");
    }
    (of.revision, of.max_workers) = (3, 2);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.ask(|request| Input::Resume { request }).expect("resumed");
    world.pass(10_000);
    assert_eq!(world.brain.request_views().iter().filter(|ask| ask.ready).count(), 8);
}

/// What is used is not exchanged for what would hold more: that is for a person to say.
#[test]
fn what_is_in_its_own_way_is_told() {
    let mut of = spec(&[("small", kind(0, 10, 2, 100)), ("large", kind(0, 10, 8, 500))]);
    of.max_workers = 3;
    let mut world = World::new(of);
    world.scale(bundles(&[(6, 1, 0)])).expect("three small ones are the cheapest");
    world.pass(10_000);
    assert_eq!(world.machines("small"), 3);
    (1..=3).for_each(|n| world.busy(&format!("small-{n}"), 900));
    let answer = world.scale(bundles(&[(20, 1, 0)])).expect("three large ones would do");
    let told = "machines of other types would hold all of it, but machines in use are not exchanged: `cloudtik drain` those that can go";
    assert!(answer.contains("it waits: ") && answer.contains(told), "{answer}");
    for n in 1..=3 {
        world.ask(|request| Input::Drain { request, node: id(&format!("small-{n}")) }).expect("a person may");
        world.pass(60_000);
    }
    assert_eq!((world.machines("small"), world.machines("large")), (0, 3));
    assert!(world.brain.is_ready("room"));
}

/// What goes because a limit was lowered is chosen otherwise than what is not wanted, and told so.
#[test]
fn why_one_goes_is_told_as_it_was_chosen() {
    let mut of = spec(&[("default", kind(0, 4, 4, 100))]);
    of.budget = Some(MoneyPerHour(400_000));
    let mut world = World::new(of.clone());
    world.scale(bundles(&[(3, 4, 0)])).expect("fits");
    world.pass(10_000);
    (of.revision, of.budget) = (2, Some(MoneyPerHour(200_000)));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(10_000);
    let goes = |e: &&Event| matches!(&e.what, What::ScaleIn(of) if matches!(of.why, Reason::AboveBudget { .. }) && of.choice == ScaleInChoice::AboveLimits);
    assert!(world.events.iter().any(|e| goes(&e)), "one goes: {:?}", world.events);
}

/// Before a description is taken it is told how many go, those too that are not up yet and of which nobody knows what they have.
#[test]
fn workers_of_which_little_is_known_are_told_to_go() {
    let mut of = spec(&[("default", detected(0, 5, 100))]);
    let mut world = World::new(of.clone());
    world.silent.extend((1..=5).map(|n| id(&format!("w{n}"))));
    (of.revision, of.workers) = (2, [(name("default"), detected(5, 5, 100))].into());
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    assert_eq!(world.machines("default"), 5);
    of.workers.insert(name("default"), detected(1, 5, 100));
    assert_eq!(world.brain.excess(&of), [(name("default"), 5, 1)]);
}

/// Advice that does not help is not given: there is only one type, and what is set aside counts for its maximum.
#[test]
fn no_other_type_is_named_where_there_is_none() {
    let mut world = World::new(spec(&[("default", kind(0, 2, 4, 100))]));
    put(&mut world, "job", bundles(&[(2, 4, 0)]), None).expect("fits");
    world.pass(20_000);
    world.ask(|request| Input::Quarantine { request, node: id("w1"), reason: String::new() }).expect("aside");
    world.pass(20_000);
    let why = unmet(&world);
    assert!(!why[0].1.contains("machines of other types") && why[0].1.contains("`cloudtik release`"), "{why:?}");
}

/// What a type's lowered maximum leaves too little for is told before it is taken, and is not called ready afterwards.
#[test]
fn a_request_that_a_lowered_maximum_clips_waits() {
    let mut of = spec(&[("default", kind(1, 4, 4, 100))]);
    let mut world = World::new(of.clone());
    world.workers(3).expect("fits");
    world.pass(10_000);
    (of.revision, of.workers) = (2, [(name("default"), kind(1, 1, 4, 100))].into());
    let why = ConflictCause::AboveTypeMaximum { node_type: name("default"), wanted: 3, max: 1 };
    let expected = RequestConflict { requests: vec!["workers-default".to_owned()], more: 0, why };
    assert_eq!(world.brain.conflicting_requests(&of), [expected]);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(60_000);
    let ask = &world.brain.request_views()[0];
    assert!(!ask.ready && matches!(ask.unmet, Some(Shortfall::AboveTypeMaximum { present: 1, wanted: 3, max: 1, .. })), "{ask:?}");
}

/// What is slow to be deleted may still run and cost: nothing is made in its place beyond the cluster's maximum or the budget.
#[test]
fn what_still_exists_counts() {
    for (most, budget) in [(2, None), (4, Some(250_000))] {
        let mut of = spec(&[("default", kind(2, 4, 4, 100))]);
        (of.max_workers, of.budget) = (most, budget.map(MoneyPerHour));
        let mut world = World::new(of);
        world.pass(10_000);
        world.refuses_deletions = true;
        world.ask(|request| Input::Kill { request, node: id("w1") }).expect("a person may");
        world.pass(120_000);
        assert_eq!((world.calls.len(), world.machines("default")), (2, 2), "max_workers {most}, budget {budget:?}");
        world.refuses_deletions = false;
        world.pass(120_000);
        assert_eq!((world.calls.len(), world.machines("default")), (3, 2), "max_workers {most}, budget {budget:?}");
    }
}
