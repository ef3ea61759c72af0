//! What machines have: written, found, learned.

use super::*;

/// What lies on a machine fits on what that machine has.
#[test]
fn a_machine_holds_what_it_has() {
    let shapeless = WorkerType { resources: None, ..kind(2, 4, 4, 100) };
    let mut world = World::new(spec(&[("default", shapeless)]));
    world.link_with(&id("w1"), 4);
    world.link_with(&id("w2"), 8);
    let taken = world.scale(bundles(&[(2, 8, 0)]));
    world.pass(60_000);
    assert!(
        taken.is_err() || !world.brain.is_ready("room") || world.machines("default") > 2,
        "2 x 8 cpus are ready on a machine of 4 and one of 8"
    );
}

/// What lies on a machine that turns out to be smaller than its like lies there no more.
#[test]
fn a_machine_that_turns_out_small_holds_no_more_than_it_has() {
    let shapeless = WorkerType { resources: None, ..kind(2, 2, 4, 100) };
    let mut world = World::new(spec(&[("default", shapeless)]));
    world.scale(bundles(&[(2, 2, 0)])).expect("two cpus on each of two");
    world.pass(60_000);
    assert!(world.brain.is_ready("room"));
    world.link_with(&id("w2"), 1);
    world.pass(60_000);
    assert!(!world.brain.is_ready("room"), "2 x 2 cpus are ready on a machine of 2 and one of 1");
    world.link_with(&id("w2"), 2);
    world.pass(60_000);
    assert!(world.brain.is_ready("room"), "it has two again: {:?}", world.outlook.unmet);
}

/// A machine keeps the shape that it was made with.
#[test]
fn a_machine_grows_by_no_description() {
    let mut of = spec(&[("default", kind(1, 4, 2, 100))]);
    let mut world = World::new(of.clone());
    world.pass(5_000);
    (of.revision, of.workers) = (2, BTreeMap::from([(name("default"), kind(1, 4, 16, 400))]));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(5_000);
    world.scale(bundles(&[(1, 16, 0)])).expect("there is room on a new one");
    assert_eq!(world.machines("default"), 2, "one that has 16, beside the one that has 2");
    world.restart();
    world.pass(30_000);
    assert_eq!((world.calls.len(), world.brain.is_ready("room")), (2, true));
}

/// The same where the type's shape became smaller.
#[test]
fn what_lies_on_an_old_shape_is_in_nobodys_way() {
    let mut of = spec(&[("default", kind(0, 10, 8, 100))]);
    let mut world = World::new(of.clone());
    put(&mut world, "old", bundles(&[(1, 8, 0)]), None).expect("fits");
    world.pass(10_000);
    of.revision = 2;
    of.workers = BTreeMap::from([(name("default"), kind(0, 10, 4, 100))]);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(10_000);
    assert!(world.brain.is_ready("old"), "{:?}", unmet(&world));
    let number = world.workers(5);
    assert!(number.is_ok(), "number: {number:?}, {:?}", unmet(&world));
}

/// What was found on a type's machines is known when it is written no more.
#[test]
fn what_was_found_is_known_when_nothing_is_written() {
    for restarts in [false, true] {
        let mut of = spec(&[("default", kind(1, 4, 2, 100))]);
        let mut world = World::new(of.clone());
        world.pass(20_000);
        of.revision = 2;
        of.workers = BTreeMap::from([(name("default"), detected(1, 4, 100))]);
        world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
        world.pass(20_000);
        if restarts {
            world.restart();
        }
        let said = put(&mut world, "job", bundles(&[(1, 1, 0)]), None);
        assert!(said.is_ok(), "restarts: {restarts}: {said:?}");
    }
}

/// While a type's shape is being found out, the largest that was found serves.
#[test]
fn the_largest_that_was_found_serves() {
    let mut world = World::new(spec(&[("default", detected(1, 4, 100))]));
    world.pass(20_000);
    put(&mut world, "job", bundles(&[(1, 2, 0)]), None).expect("fits");
    world.pass(20_000);
    // Another of the type has less, as machines of one type do by some MiB.
    world.silent.insert(id("w2"));
    world.workers(2).expect("two");
    world.silent.remove(&id("w2"));
    world.link_with(&id("w2"), 1);
    world.pass(20_000);
    let said = world.workers(3);
    let again = put(&mut world, "job", bundles(&[(1, 2, 0)]), Some(7_200_000));
    assert!(said.is_ok() && again.is_ok(), "{said:?} {again:?} {:?}", unmet(&world));
}

/// What a type offers is remembered beyond a restart.
#[test]
fn what_was_learned_outlives_the_head() {
    for restarts in [false, true] {
        let mut world = World::new(spec(&[("default", detected(0, 4, 100))]));
        world.workers(1).expect("fits");
        world.pass(5_000);
        world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, 2, 0)]), "job", None) }).expect("there is room");
        world.workers(0).expect("less");
        world.pass(5_000);
        assert_eq!(world.machines("default"), 1, "the job is on it");
        // There is nothing to be had just then.
        world.failing.insert(default_offer(), FailureKind::StockOut);
        world.ask(|request| Input::Kill { request, node: id("w1") }).expect("a person may");
        world.pass(2_000);
        assert_eq!(world.machines("default"), 0);
        if restarts {
            world.restart();
        }
        world.failing.clear();
        world.pass(1_200_000);
        assert_eq!(
            world.machines("default"),
            1,
            "restarts: {restarts}: {:?}",
            world.brain.request_views().into_iter().find(|a| a.request.name == "job").map(|a| a.unmet)
        );
    }
}

/// Very many small pieces are counted as they are.
#[test]
fn very_many_small_pieces_are_counted() {
    let mut world = World::new(spec(&[("default", kind(0, 60, 4, 100))]));
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    for n in 0..4_400 {
        let bundle = Bundle { memory: Bytes(1), ..Bundle::default() };
        let wants = RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count: 1_000_000 }], gang: false, spread: false };
        world.ask(|request| Input::Scale { request, asked: add(wants, &format!("n-{n}"), None) }).expect("4.4 GB");
    }
    world.ask(|request| Input::Resume { request }).expect("resumed");
    world.pass(1_000);
    assert_eq!(world.machines("default"), 1);
}

/// They add up to less than two devices, and do not fit on two.
#[test]
fn fractions_of_several_sizes_are_ready_only_where_they_lie_on_devices() {
    let mut world = World::new(spec(&[("gpu", with_gpus(0, 2))]));
    let bundle = |gpus| Bundle { gpus: Quantity(gpus), ..Bundle::default() };
    let of = [(500, 1), (333, 2), (200, 4)];
    let bundles = of.iter().map(|(gpus, count)| Counted { bundle: bundle(*gpus), count: *count }).collect();
    put(&mut world, "mix", RequestedCapacity::Bundles { bundles, gang: false, spread: false }, None)
        .expect("there are four devices at most");
    world.pass(60_000);
    let laid = world.brain.request_views()[0].nodes.clone();
    assert!(world.brain.is_ready("mix") && world.machines("gpu") == 2, "{laid:?}");
    world.restart();
    world.pass(60_000);
    assert!(world.brain.is_ready("mix") && world.machines("gpu") == 2, "also for another head: {:?}", world.brain.request_views()[0].nodes);
    // A half, a fifth and a third lie on one device; a whole one beside them on the other.
    world.ask(|request| Input::Revoke { request, name: "mix".to_owned(), now: true }).expect("it stands");
    world.pass(60_000);
    for (name, gpus) in [("half", 500), ("third", 333), ("whole", 1_000)] {
        put(&mut world, name, fractions(1, gpus), None).expect("fits");
    }
    world.pass(60_000);
    assert!(["half", "third", "whole"].iter().all(|name| world.brain.is_ready(name)));
    assert_eq!(world.machines("gpu"), 1);
}

fn fractions(count: u32, gpus: u64) -> RequestedCapacity {
    let bundle = Bundle { gpus: Quantity(gpus), ..Bundle::default() };
    RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count }], gang: false, spread: false }
}

/// A fraction lies on one device: what is left of two is not a third one.
#[test]
fn fractions_of_gpus_are_placed_on_devices() {
    let mut world = World::new(spec(&[("gpu", with_gpus(0, 2))]));
    put(&mut world, "halves", fractions(4, 500), None).expect("two on each of two devices");
    world.pass(10_000);
    assert!(world.machines("gpu") == 1 && world.brain.is_ready("halves"));
    world.ask(|request| Input::Revoke { request, name: "halves".to_owned(), now: true }).expect("it stands");
    put(&mut world, "large", fractions(3, 600), None).expect("there are four devices at most");
    world.pass(10_000);
    let laid = world.brain.request_views()[0].nodes.clone();
    assert!(world.machines("gpu") == 2 && world.brain.is_ready("large"), "three need a device each: {laid:?}");
    world.restart();
    world.pass(10_000);
    assert_eq!((world.brain.request_views()[0].nodes.clone(), world.machines("gpu")), (laid, 2), "also for another head");
    put(&mut world, "more", fractions(2, 600), None).expect_err("there is one device left, of four");
    put(&mut world, "one", fractions(1, 600), None).expect("there is one device left");
}
