//! What only some machines have, as GPUs, is not used up by what does not need it.

use super::*;

/// Work that needs no GPU takes none that other work of the same request needs.
#[test]
fn work_without_gpus_is_in_no_gpu_s_way() {
    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, 30))]));
    world.pass(20_000);
    put(&mut world, "job", bundles(&[(2, 4, 0), (2, 1, 1)]), None).expect("fits");
    world.pass(3_600_000);
    assert_eq!((world.machines("default"), world.machines("gpu")), (1, 1), "{:?}", world.brain.plan());
}

/// What only one type offers is to be had though work that would do with any node lies on it.
#[test]
fn what_is_rare_is_not_wasted() {
    for min in [0, 1] {
        let mut rare = kind(min, 1, 4, 300);
        rare.custom = BTreeMap::from([("licence".to_owned(), 2)]);
        let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("rare", rare)]));
        world.pass(10_000);
        put(&mut world, "first", licensed(1, 1), None).expect("fits");
        world.pass(20_000);
        put(&mut world, "plain", bundles(&[(1, 3, 0)]), None).expect("fits");
        world.pass(20_000);
        let said = put(&mut world, "second", licensed(1, 2), None);
        world.pass(3_600_000);
        assert!(world.brain.is_ready("second"), "min {min}: {said:?} {:?} {:?}", unmet(&world), world.brain.plan());
    }
}

/// The same with GPUs, whose machines are full of work that needs none.
#[test]
fn gpus_are_not_wasted() {
    for min in [0, 1] {
        let gpu = WorkerType { resources: Some(Resources { cpus: 4, memory: Bytes(1 << 36), gpus: 2 }), ..kind(min, 1, 4, 900) };
        let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", gpu)]));
        world.pass(10_000);
        put(&mut world, "first", bundles(&[(1, 1, 1)]), None).expect("fits");
        world.pass(20_000);
        put(&mut world, "plain", bundles(&[(1, 3, 0)]), None).expect("fits");
        world.pass(20_000);
        let said = put(&mut world, "second", bundles(&[(1, 2, 1)]), None);
        world.pass(3_600_000);
        assert!(world.brain.is_ready("second"), "min {min}: {said:?} {:?} {:?}", unmet(&world), world.brain.plan());
    }
}

/// The same with a shape: only the large type holds the large piece.
#[test]
fn large_machines_are_not_wasted() {
    let mut large = kind(0, 1, 4, 300);
    large.resources = Some(Resources { cpus: 4, memory: Bytes(64 << 30), gpus: 0 });
    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("large", large)]));
    world.pass(10_000);
    let memory = |cpus: u64| RequestedCapacity::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity(cpus * 1_000), memory: Bytes(30 << 30), ..Bundle::default() }, count: 1 }],
        gang: false,
        spread: false,
    };
    put(&mut world, "first", memory(1), None).expect("fits");
    world.pass(20_000);
    put(&mut world, "plain", bundles(&[(1, 3, 0)]), None).expect("fits");
    world.pass(20_000);
    let said = put(&mut world, "second", memory(2), None);
    world.pass(3_600_000);
    assert!(world.brain.is_ready("second"), "{said:?} {:?} {:?}", unmet(&world), world.brain.plan());
}

/// Plain work that lies on GPUs that are there anyway goes elsewhere when what needs them comes.
#[test]
fn plain_work_makes_room_for_what_needs_gpus() {
    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, 30))]));
    world.pass(20_000);
    put(&mut world, "plain", bundles(&[(2, 4, 0)]), None).expect("fits");
    world.pass(20_000);
    assert_eq!((world.machines("default"), world.machines("gpu")), (0, 1));
    put(&mut world, "gpus", bundles(&[(2, 1, 1)]), None).expect("fits");
    assert!(world.brain.is_ready("gpus"), "{:?}", world.brain.plan());
    world.pass(3_600_000);
    assert_eq!((world.machines("default"), world.machines("gpu")), (1, 1), "{:?}", world.brain.plan());
    assert!(world.brain.is_ready("plain") && world.brain.is_ready("gpus"), "{:?}", unmet(&world));
    let moved = |what: &What| matches!(what, What::PlacementsMoved { requests } if requests.contains(&"plain".to_owned()));
    assert!(world.told(moved) > 0, "{:?}", decisions(&world));
}

/// The same with what a person named.
#[test]
fn plain_work_makes_room_for_what_needs_a_licence() {
    let rare = WorkerType { custom: BTreeMap::from([("licence".to_owned(), 2)]), ..kind(1, 3, 4, 300) };
    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("rare", rare)]));
    world.pass(20_000);
    put(&mut world, "plain", bundles(&[(2, 2, 0)]), None).expect("fits");
    world.pass(20_000);
    put(&mut world, "rare", licensed(2, 1), None).expect("fits");
    world.pass(3_600_000);
    assert_eq!((world.machines("default"), world.machines("rare")), (1, 1), "{:?}", world.brain.plan());
    assert!(world.brain.is_ready("plain") && world.brain.is_ready("rare"), "{:?}", unmet(&world));
}

/// Work that made room for others has it again when the machine that it was to have is not to be had.
#[test]
fn plain_work_that_made_room_has_it_back() {
    for (learns_late, has_gpus) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, 30))]));
        world.pass(20_000);
        put(&mut world, "plain", bundles(&[(2, 4, 0)]), None).expect("fits");
        world.pass(20_000);
        if learns_late {
            world.silent.insert(id("w1"));
            put(&mut world, "gpus", bundles(&[(2, 1, 1)]), None).expect("fits");
        }
        world.failing.insert(default_offer(), FailureKind::StockOut);
        if !has_gpus {
            world.failing.insert(("gpu".to_owned(), Offer::default()), FailureKind::StockOut);
        }
        if learns_late {
            // What boots is given up after a while.
            world.pass(1_800_000);
        } else {
            put(&mut world, "gpus", bundles(&[(2, 1, 1)]), None).expect("fits");
        }
        world.pass(60_000);
        let (says, machines) = (unmet(&world), (world.machines("default"), world.machines("gpu")));
        assert!(world.brain.is_ready("plain"), "late: {learns_late}: {says:?}");
        let back = What::PlacementsReplanned { why: Replan::MachinesUnavailable };
        assert!(world.told(|what| *what == back) > 0, "{:?}", decisions(&world));
        assert_eq!((world.brain.is_ready("gpus"), machines), (has_gpus, (0, 1 + usize::from(has_gpus))), "late: {learns_late}: {says:?}");
    }
}

/// A gang is not torn apart for what needs its machines.
#[test]
fn a_gang_makes_room_for_nobody() {
    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, 30))]));
    world.pass(20_000);
    put(&mut world, "gang", gang(2, 4), None).expect("fits");
    world.pass(20_000);
    put(&mut world, "gpus", bundles(&[(2, 1, 1)]), None).expect("fits");
    assert!(world.brain.is_ready("gang"), "{:?}", world.brain.plan());
}

/// Machines with GPUs are bought for plain work where all others are bought up.
#[test]
fn plain_work_gets_gpus_when_all_else_is_bought_up() {
    let mut world = World::new(spec(&[("default", kind(0, 1, 9, 270)), ("gpu", with_gpus(0, 1))]));
    world.pass(10_000);
    put(&mut world, "job", bundles(&[(1, 5, 0), (1, 6, 0)]), None).expect("one on each");
    world.pass(20_000);
    assert!(world.brain.is_ready("job"), "{:?}", unmet(&world));
}

/// One piece goes elsewhere where the largest could not, and each of two pieces goes to a machine of its own.
#[test]
fn as_little_makes_room_as_will_do() {
    let numbers = |world: &World| (world.machines("default"), world.machines("gpu"));
    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, 30))]));
    world.pass(20_000);
    put(&mut world, "plain", bundles(&[(1, 5, 0), (3, 1, 0)]), None).expect("fits");
    world.pass(20_000);
    put(&mut world, "gpus", bundles(&[(1, 1, 1)]), None).expect("fits");
    world.pass(3_600_000);
    assert_eq!(numbers(&world), (1, 1), "{:?}", world.brain.plan());

    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(2, 30))]));
    world.pass(20_000);
    let RequestedCapacity::Bundles { bundles: of, .. } = bundles(&[(2, 1, 1)]) else { unreachable!() };
    put(&mut world, "apart", RequestedCapacity::Bundles { bundles: of, gang: false, spread: true }, None).expect("one on each");
    put(&mut world, "plain", bundles(&[(2, 4, 0), (6, 1, 0)]), None).expect("fits");
    world.pass(20_000);
    put(&mut world, "gpus", bundles(&[(2, 1, 1)]), None).expect("fits");
    world.pass(3_600_000);
    assert_eq!(world.machines("gpu"), 2, "{:?}", world.brain.plan());
}

/// Machines on which nothing can make room are not the only ones that are looked at.
#[test]
fn plain_work_makes_room_behind_many_that_cannot() {
    let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(18, 30))]));
    world.pass(20_000);
    put(&mut world, "gangs", gang(17, 8), None).expect("fits");
    put(&mut world, "plain", bundles(&[(2, 4, 0)]), None).expect("fits");
    world.pass(20_000);
    put(&mut world, "gpus", bundles(&[(1, 1, 1)]), None).expect("fits");
    world.pass(3_600_000);
    assert_eq!((world.machines("default"), world.machines("gpu")), (1, 18), "{:?}", decisions(&world));
}

/// What is not to be had for now keeps nobody from room that could be made for them.
#[test]
fn who_waits_for_a_shortage_is_in_nobody_s_way() {
    for (max, kind_of_failure) in [(1, FailureKind::StockOut), (30, FailureKind::StockOut), (1, FailureKind::Permanent)] {
        let large = kind(0, 10, 16, 2_000);
        let mut world = World::new(spec(&[("large", large), ("default", kind(0, 10, 4, 100)), ("gpu", with_gpus(1, max))]));
        world.pass(20_000);
        put(&mut world, "plain", bundles(&[(2, 4, 0)]), None).expect("fits");
        world.pass(20_000);
        world.failing.insert(("large".to_owned(), Offer::default()), kind_of_failure);
        put(&mut world, "waits", bundles(&[(3, 16, 0)]), None).expect("could be had");
        world.pass(20_000);
        put(&mut world, "gpus", bundles(&[(1, 1, 1)]), None).expect("could be had");
        world.pass(240_000);
        assert!(world.brain.is_ready("gpus"), "max {max}: {:?}", unmet(&world));
        assert_eq!((world.machines("default"), world.machines("gpu")), (1, 1), "max {max}: {:?}", world.brain.plan());
    }
}
