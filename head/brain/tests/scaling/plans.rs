//! Where demands are planned: nobody who has room loses it because something else changed.

use super::*;

/// A machine that a request needs and that boots while the head starts again stays.
#[test]
fn a_restart_lets_nobody_go_who_boots_for_room() {
    let mut world = World::new(spec(&[("default", detected(1, 4, 100))]));
    world.pass(5_000);
    world.silent.insert(id("w2"));
    world.scale(bundles(&[(2, 2, 0)])).expect("two cpus on each of two");
    assert_eq!(world.machines("default"), 2);
    world.pass(20_000);
    let calls = world.calls.len();
    world.restart();
    world.silent.remove(&id("w2"));
    world.pass(10_000);
    let w2 = world.nodes[&id("w2")].clone();
    assert!(w2.generation == Generation(1) && !w2.life.is_leaving(), "w2 is {} (generation {})", w2.life.name(), w2.generation);
    assert_eq!(world.calls.len(), calls, "nothing new is needed");
}

/// A restart buys nothing for what lies on machines that are there.
#[test]
fn a_restart_buys_nothing_for_what_has_room() {
    let mut world = World::new(spec(&[("default", detected(1, 4, 100)), ("dear", kind(0, 4, 4, 900))]));
    world.pass(5_000);
    world.scale(bundles(&[(2, 2, 0)])).expect("two cpus on each of two");
    world.pass(10_000);
    assert_eq!((world.machines("default"), world.machines("dear")), (2, 0));
    assert!(world.brain.is_ready("room"));
    world.restart();
    let calls: Vec<_> = world.calls.iter().filter(|(_, of, _)| of == "dear").cloned().collect();
    assert!(calls.is_empty(), "bought by a head that only started again: {calls:?}");
}

/// Three machines that are used up: 4 + 3 + 3, 4 + 3 + 3, 9 + 1.
fn used_up(max: u32, until: Option<u64>) -> (Spec, World) {
    let of = spec(&[("default", kind(0, max, 10, 100))]);
    let mut world = World::new(of.clone());
    for (n, cpus) in [4, 3, 3, 4, 3, 3, 9].into_iter().enumerate() {
        one(&mut world, &format!("job-{n}"), cpus, None);
    }
    one(&mut world, "last", 1, until);
    assert_eq!(world.machines("default"), 3);
    assert!(world.brain.request_views().iter().all(|a| a.unmet.is_none()));
    (of, world)
}

/// Taking something back buys nothing.
#[test]
fn what_is_taken_back_buys_nothing() {
    let (_, mut world) = used_up(10, None);
    let calls = world.calls.len();
    world.ask(|request| Input::Revoke { request, name: "last".to_owned(), now: true }).expect("it stands");
    world.pass(60_000);
    assert_eq!(world.calls.len(), calls, "bought because less is wanted");
}

/// A request that ends buys nothing.
#[test]
fn what_ends_buys_nothing() {
    let (_, mut world) = used_up(10, Some(300_000));
    let calls = world.calls.len();
    world.pass(300_000);
    assert!(!world.requests.contains_key("last"));
    assert_eq!(world.calls.len(), calls, "bought because less is wanted");
}

/// A new price buys nothing.
#[test]
fn a_new_price_buys_nothing() {
    let (mut of, mut world) = used_up(10, None);
    let calls = world.calls.len();
    (of.revision, of.workers) = (2, BTreeMap::from([(name("default"), kind(0, 10, 10, 110))]));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(60_000);
    assert_eq!(world.calls.len(), calls, "bought because a price changed");
}

/// What was served is still served when something else was taken back.
#[test]
fn what_is_taken_back_leaves_nobody_without_room() {
    let (_, mut world) = used_up(3, None);
    let before = world.outlook.unmet.clone();
    world.ask(|request| Input::Revoke { request, name: "last".to_owned(), now: true }).expect("it stands");
    let unmet: Vec<_> = world.brain.request_views().into_iter().filter_map(|a| a.unmet.map(|why| (a.request.name, why))).collect();
    world.pass(60_000);
    let later = world.outlook.unmet.clone();
    assert!(unmet.is_empty(), "{before:?} before, {unmet:?} then, {later:?} a minute later");
}

/// A head that starts again buys nothing for what had room, however many requests differ.
#[test]
fn a_restart_buys_nothing_for_many_that_differ() {
    for rounds in [100, 140] {
        let mut of = spec(&[("default", kind(0, 400, 10, 100))]);
        of.max_workers = 400;
        let mut world = World::new(of);
        let mut memory = 0;
        for n in 0..rounds {
            for (m, cpus) in [4, 3, 3].into_iter().enumerate() {
                memory += 1;
                let bundle = Bundle { cpus: Quantity(cpus * 1_000), memory: Bytes((1 << 30) + memory), ..Bundle::default() };
                let wants = RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count: 1 }], gang: false, spread: false };
                world.ask(|request| Input::Scale { request, asked: add(wants, &format!("job-{n}-{m}"), None) }).expect("there is room");
                world.pass(100);
            }
        }
        world.pass(60_000);
        let (calls, there) = (world.calls.len(), world.machines("default"));
        world.restart();
        world.pass(60_000);
        assert_eq!(world.calls.len(), calls, "{} requests on {there} machines", rounds * 3);
    }
}

/// The same for what lies on the minimum's machines.
#[test]
fn a_restart_buys_nothing_for_what_lies_on_the_minimum() {
    let mut world = World::new(spec(&[("default", kind(2, 10, 10, 100))]));
    for (n, cpus) in [4, 3, 3, 4, 3, 3].into_iter().enumerate() {
        one(&mut world, &format!("job-{n}"), cpus, None);
    }
    world.pass(600_000);
    assert_eq!(world.machines("default"), 2);
    assert!(world.brain.request_views().iter().all(|a| a.unmet.is_none() && a.ready));
    world.restart();
    world.pass(3_600_000);
    assert_eq!((world.calls.len(), world.machines("default")), (2, 2), "an hour after a restart");
}

/// The same for what is taken back: what is there by number is enough, and nothing beyond it is kept.
#[test]
fn what_is_taken_back_keeps_nothing_beyond_the_minimum() {
    let mut world = World::new(spec(&[("default", kind(3, 10, 10, 100))]));
    for (n, cpus) in [4, 3, 3, 4, 3, 3, 9, 1].into_iter().enumerate() {
        one(&mut world, &format!("job-{n}"), cpus, None);
    }
    world.pass(60_000);
    assert_eq!((world.calls.len(), world.brain.request_views().iter().filter(|a| a.unmet.is_some()).count()), (3, 0));
    world.ask(|request| Input::Revoke { request, name: "job-7".to_owned(), now: true }).expect("it stands");
    world.pass(3_600_000);
    assert_eq!((world.calls.len(), world.machines("default")), (3, 3), "an hour after less was wanted");
}

/// What had room has it after a restart, and when something else was taken back, where nothing more is to be had.
#[test]
fn who_has_room_keeps_it_where_no_more_is_to_be_had() {
    for restarts in [false, true] {
        let mut world = World::new(spec(&[("default", kind(3, 3, 10, 100))]));
        for (n, cpus) in [4, 3, 3, 4, 3, 3, 9, 1].into_iter().enumerate() {
            one(&mut world, &format!("job-{n}"), cpus, None);
        }
        assert!(world.brain.request_views().iter().all(|a| a.unmet.is_none() && a.ready));
        if restarts {
            world.restart();
        } else {
            world.ask(|request| Input::Revoke { request, name: "job-7".to_owned(), now: true }).expect("it stands");
        }
        world.pass(3_600_000);
        let unmet: Vec<_> = world.brain.request_views().into_iter().filter_map(|a| a.unmet.map(|why| (a.request.name, why))).collect();
        assert!(unmet.is_empty(), "an hour later (restarts: {restarts}): {unmet:?}");
    }
}

fn part_is_kept(restarts: bool) {
    let shape = |n: u32, cpus: u64, gib: u64| Counted {
        bundle: Bundle { cpus: Quantity(cpus * 1_000), memory: Bytes(gib << 30), ..Bundle::default() },
        count: n,
    };
    let room = |of: Counted| RequestedCapacity::Bundles { bundles: vec![of], gang: false, spread: false };
    let mut ten = kind(0, 3, 10, 100);
    ten.resources = Some(Resources { cpus: 10, memory: Bytes(10 << 30), gpus: 0 });
    let mut world = World::new(spec(&[("default", ten)]));

    put(&mut world, "tiny", room(Counted { bundle: Bundle { cpus: Quantity(1), ..Bundle::default() }, count: 1 }), None).expect("fits");
    world.pass(20_000);
    world.failing.insert(default_offer(), FailureKind::StockOut);
    put(&mut world, "first", room(shape(2, 1, 10)), None).expect("two machines");
    world.pass(5_000);
    put(&mut world, "second", room(shape(4, 2, 2)), None).expect("one machine");
    world.pass(5_000);
    let of = |world: &World| -> u32 {
        let number = world.requests["first"].number;
        world.brain.plan().values().flatten().filter(|p| p.request == number).map(|p| p.count).sum()
    };
    assert_eq!(of(&world), 1, "{:?}", unmet(&world));
    if restarts {
        world.restart();
    } else {
        world.ask(|request| Input::Revoke { request, name: "tiny".to_owned(), now: true }).expect("it stands");
    }
    world.pass(60_000);
    assert_eq!(of(&world), 1, "restarts: {restarts}: {:?}", unmet(&world));
}

/// Asking again for what stands (to prolong it, say) buys nothing.
#[test]
fn prolonging_a_request_buys_nothing() {
    for max in [3, 2] {
        let mut world = World::new(spec(&[("default", kind(0, max, 10, 100))]));
        put(&mut world, "job", bundles(&[(2, 4, 0), (4, 3, 0)]), None).expect("two machines");
        world.pass(20_000);
        assert_eq!(world.machines("default"), 2);
        assert!(world.brain.is_ready("job"));
        let until = world.now + 3_600_000;
        put(&mut world, "job", bundles(&[(2, 4, 0), (4, 3, 0)]), Some(until)).expect("the same again");
        assert_eq!((world.calls.len(), unmet(&world)), (2, vec![]), "max {max}");
        world.pass(20_000);
        assert_eq!((world.calls.len(), unmet(&world)), (2, vec![]), "max {max}");
    }
}

/// The same where all machines are the minimum's.
#[test]
fn prolonging_a_request_on_the_minimum() {
    let mut of = spec(&[("default", kind(0, 2, 10, 100))]);
    let mut world = World::new(of.clone());
    put(&mut world, "job", bundles(&[(2, 4, 0), (4, 3, 0)]), None).expect("two machines");
    world.pass(20_000);
    of.revision = 2;
    of.workers = BTreeMap::from([(name("default"), kind(2, 2, 10, 100))]);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(20_000);
    assert!(world.brain.is_ready("job"));
    let until = world.now + 3_600_000;
    let said = put(&mut world, "job", bundles(&[(2, 4, 0), (4, 3, 0)]), Some(until));
    world.pass(60_000);
    assert!(said.is_ok() && unmet(&world).is_empty(), "{said:?} {:?}", unmet(&world));
}

/// What has room does not lose it to what came later, by a plan that counts on a machine that is not to be had.
#[test]
fn nobody_loses_room_for_a_hope() {
    let mut world = World::new(spec(&[("big", kind(0, 1, 10, 100)), ("small", kind(0, 1, 4, 120))]));
    world.pass(10_000);
    put(&mut world, "first", bundles(&[(1, 4, 0)]), None).expect("fits");
    world.pass(20_000);
    assert!(world.brain.is_ready("first"));
    assert_eq!(world.calls.len(), 1);
    world.failing.insert(("small".to_owned(), Offer::default()), FailureKind::StockOut);
    let said = put(&mut world, "second", bundles(&[(1, 8, 0)]), None);
    for _ in 0..40 {
        world.pass(30_000);
        assert!(world.brain.is_ready("first"), "{said:?} {:?} {:?}", unmet(&world), decisions(&world));
    }
}

/// What is served in part is served no less when something else was taken back.
#[test]
fn who_has_part_of_the_room_keeps_it() {
    for restarts in [true, false] {
        part_is_kept(restarts);
    }
}

/// A head that starts again finds no machine that the one before it did not know nobody needs.
#[test]
fn a_restart_lets_nothing_go() {
    let mut first = kind(0, 10, 4, 100);
    first.priority = 1;
    let mut world = World::new(spec(&[("default", first), ("gpu", with_gpus(0, 30))]));
    world.pass(60_000);
    put(&mut world, "job", bundles(&[(1, 3, 0), (1, 2, 1)]), None).expect("fits");
    world.pass(3_600_000);
    let before = (world.machines("default"), world.machines("gpu"));
    world.restart();
    world.pass(3_600_000);
    assert_eq!((world.machines("default"), world.machines("gpu")), before, "an hour after a restart, and an hour before");
}

/// Prolonging one request hurries nothing that another one left.
#[test]
fn prolonging_hurries_nothing() {
    for prolongs in [false, true] {
        let mut of = spec(&[("default", kind(0, 10, 4, 100))]);
        of.idle_after_ms = 600_000;
        let mut world = World::new(of);
        put(&mut world, "ends", bundles(&[(1, 4, 0)]), Some(60_000)).expect("fits");
        put(&mut world, "stays", bundles(&[(1, 4, 0)]), None).expect("fits");
        world.pass(65_000);
        assert_eq!(world.machines("default"), 2);
        if prolongs {
            put(&mut world, "stays", bundles(&[(1, 4, 0)]), Some(7_200_000)).expect("fits");
        }
        world.pass(60_000);
        assert_eq!(world.machines("default"), 2, "prolongs: {prolongs}");
    }
}

/// A head that runs finds by itself that what lies on a dear machine has room on a cheap one.
#[test]
fn a_head_that_runs_finds_what_is_cheaper() {
    // A machine of the cheap type comes back from being set aside; what lies on the dear one stays for ever.
    let mut world = World::new(spec(&[("cheap", kind(0, 1, 4, 100)), ("dear", kind(0, 1, 4, 900))]));
    world.pass(20_000);
    put(&mut world, "job", bundles(&[(1, 4, 0)]), None).expect("fits");
    world.pass(20_000);
    world.ask(|request| Input::Quarantine { request, node: id("cheap-1"), reason: String::new() }).expect("aside");
    world.pass(60_000);
    assert_eq!((world.machines("cheap"), world.machines("dear")), (1, 1));
    world.ask(|request| Input::Release { request, node: id("cheap-1") }).expect("back");
    world.pass(3_600_000);
    assert_eq!((world.machines("cheap"), world.machines("dear")), (1, 0), "{:?}", world.brain.plan());
}

/// Whoever replaces room by less of it, under another number, keeps the machines on which it lies.
#[test]
fn less_room_buys_nothing() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 10, 100))]));
    world.pass(60_000);
    world.scale(bundles(&[(2, 4, 0), (5, 3, 0), (1, 2, 0)])).expect("three");
    world.pass(60_000);
    let calls = world.calls.len();
    world.scale(bundles(&[(2, 4, 0), (4, 3, 0)])).expect("less");
    world.pass(60_000);
    assert_eq!(world.calls.len(), calls, "{:?}", decisions(&world));
}

/// That more has room in all is no reason to take it from somebody.
#[test]
fn many_that_wait_take_nothing_from_one_that_has() {
    let mut of = spec(&[("default", kind(0, 2, 10, 100))]);
    let mut world = World::new(of.clone());
    put(&mut world, "small", bundles(&[(1, 5, 0)]), None).expect("fits");
    put(&mut world, "last", bundles(&[(1, 1, 0)]), None).expect("fits");
    world.pass(10_000);
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    let RequestedCapacity::Bundles { bundles: of_gang, .. } = bundles(&[(1, 6, 0), (2, 2, 0)]) else { unreachable!("they are bundles") };
    put(&mut world, "gang", RequestedCapacity::Bundles { bundles: of_gang, gang: true, spread: false }, None).expect("fits");
    (of.revision, of.workers) = (2, [(name("default"), kind(0, 1, 10, 100))].into());
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.ask(|request| Input::Resume { request }).expect("resumed");
    world.ask(|request| Input::Revoke { request, name: "last".to_owned(), now: true }).expect("it stands");
    world.pass(60_000);
    assert!(world.brain.is_ready("small"), "{:?}", unmet(&world));
}

/// A machine that was asked for and that the plan of now can do without is no loss that undoes the plan.
#[test]
fn a_plan_outlives_a_machine_that_it_can_do_without() {
    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, 30))]));
    world.pass(20_000);
    put(&mut world, "plain", bundles(&[(2, 4, 0)]), None).expect("fits");
    world.pass(20_000);
    put(&mut world, "old", bundles(&[(1, 2, 0)]), None).expect("fits");
    world.pass(20_000);
    world.silent.insert(id("w2"));
    put(&mut world, "gpus", bundles(&[(1, 2, 1)]), None).expect("fits");
    world.pass(240_000);
    assert!(world.calls.len() <= 4, "{:?}", decisions(&world));
}

/// While a plan counts on a machine that is to come, nobody is planned into room that is there only by that.
#[test]
fn a_plan_that_is_taken_back_takes_room_from_nobody() {
    for is_out_of_stock in [false, true] {
        let mut of = spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, 1)), ("small", kind(0, 10, 3, 80))]);
        of.idle_after_ms = 30_000;
        let mut world = World::new(of);
        world.pass(20_000);
        put(&mut world, "plain", bundles(&[(2, 4, 0)]), None).expect("fits");
        world.pass(20_000);
        put(&mut world, "elder", bundles(&[(1, 3, 0)]), None).expect("fits");
        world.pass(600_000);
        world.silent.insert(id("w1"));
        put(&mut world, "gpus", bundles(&[(1, 1, 1)]), None).expect("fits");
        world.pass(200_000);
        let asked_for = |world: &World| world.calls.iter().filter(|(_, of, _)| of == "small").count();
        let before = asked_for(&world);
        if is_out_of_stock {
            world.failing.insert(default_offer(), FailureKind::StockOut);
            world.failing.insert(("small".to_owned(), Offer::default()), FailureKind::StockOut);
        }
        // What boots is given up after a while.
        world.pass(1_200_000);
        assert!(world.brain.is_ready("elder"), "out of stock: {is_out_of_stock}: {:?}", unmet(&world));
        assert_eq!(asked_for(&world), before, "out of stock: {is_out_of_stock}");
    }
}

/// Nor does anybody lose room because something is revoked meanwhile.
#[test]
fn what_is_revoked_meanwhile_takes_room_from_nobody() {
    let mut of = spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, 1))]);
    of.idle_after_ms = 300_000;
    let mut world = World::new(of);
    world.pass(20_000);
    put(&mut world, "plain", bundles(&[(2, 4, 0)]), None).expect("fits");
    put(&mut world, "other", bundles(&[(1, 4, 0)]), None).expect("fits");
    world.pass(20_000);
    world.silent.insert(id("w2"));
    put(&mut world, "gpus", bundles(&[(1, 1, 1)]), None).expect("fits");
    world.pass(15_000);
    assert!(world.brain.is_ready("gpus") && unmet(&world).is_empty());
    world.ask(|request| Input::Revoke { request, name: "other".to_owned(), now: true }).expect("it stands");
    for _ in 0..40 {
        world.pass(1_000);
        assert_eq!(unmet(&world), [], "{:?}", decisions(&world));
    }
}
