//! Where demands are planned: nobody who has room loses it because something else changed.

use super::*;

/// A machine that a request needs and that boots while the head starts again is let go.
#[test]
fn a_restart_lets_nobody_go_who_boots_for_room() {
    let mut world = World::new(spec(&[("default", detected(1, 4, 100))]));
    world.pass(5_000);
    world.silent.insert(id("w2"));
    world.wish(bundles(&[(2, 2, 0)])).expect("two cpus on each of two");
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

/// A restart buys dear machines for what lies on machines that are there.
#[test]
fn a_restart_buys_nothing_for_what_has_room() {
    let mut world = World::new(spec(&[("default", detected(1, 4, 100)), ("dear", kind(0, 4, 4, 900))]));
    world.pass(5_000);
    world.wish(bundles(&[(2, 2, 0)])).expect("two cpus on each of two");
    world.pass(10_000);
    assert_eq!((world.machines("default"), world.machines("dear")), (2, 0));
    assert!(world.brain.is_ready("room"));
    world.restart();
    let calls: Vec<_> = world.calls.iter().filter(|(_, of, _)| of == "dear").cloned().collect();
    assert!(calls.is_empty(), "bought by a head that only started again: {calls:?}");
}

/// What a type offers is forgotten at a restart, and a request is never served again.
#[test]
fn what_was_learned_outlives_the_head() {
    for restarts in [false, true] {
        let mut world = World::new(spec(&[("default", detected(0, 4, 100))]));
        world.workers(1).expect("fits");
        world.pass(5_000);
        world.ask(|request| Input::Scale { request, wish: add(bundles(&[(1, 2, 0)]), "job", None) }).expect("there is room");
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
            world.brain.asks().into_iter().find(|a| a.ask.name == "job").map(|a| a.unmet)
        );
    }
}

fn one(world: &mut World, named: &str, cpus: u64, until: Option<u64>) {
    world.ask(|request| Input::Scale { request, wish: add(bundles(&[(1, cpus, 0)]), named, until) }).expect("there is room");
    world.pass(15_000);
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
    assert!(world.brain.asks().iter().all(|a| a.unmet.is_none()));
    (of, world)
}

/// Taking something back buys a machine.
#[test]
fn what_is_taken_back_buys_nothing() {
    let (_, mut world) = used_up(10, None);
    let calls = world.calls.len();
    world.ask(|request| Input::Revoke { request, name: "last".to_owned() }).expect("it stands");
    world.pass(60_000);
    assert_eq!(world.calls.len(), calls, "bought because less is wanted");
}

/// A request that ends buys a machine.
#[test]
fn what_ends_buys_nothing() {
    let (_, mut world) = used_up(10, Some(300_000));
    let calls = world.calls.len();
    world.pass(300_000);
    assert!(!world.asks.contains_key("last"));
    assert_eq!(world.calls.len(), calls, "bought because less is wanted");
}

/// A new price buys a machine.
#[test]
fn a_new_price_buys_nothing() {
    let (mut of, mut world) = used_up(10, None);
    let calls = world.calls.len();
    (of.revision, of.workers) = (2, BTreeMap::from([(name("default"), kind(0, 10, 10, 110))]));
    world.tell(Input::Specified { spec: of });
    world.pass(60_000);
    assert_eq!(world.calls.len(), calls, "bought because a price changed");
}

/// What was served is served no more because something else was taken back.
#[test]
fn what_is_taken_back_leaves_nobody_without_room() {
    let (_, mut world) = used_up(3, None);
    let before = world.outlook.unmet.clone();
    world.ask(|request| Input::Revoke { request, name: "last".to_owned() }).expect("it stands");
    let unmet: Vec<_> = world.brain.asks().into_iter().filter_map(|a| a.unmet.map(|why| (a.ask.name, why))).collect();
    world.pass(60_000);
    let later = world.outlook.unmet.clone();
    assert!(unmet.is_empty(), "{before:?} before, {unmet:?} then, {later:?} a minute later");
}

/// A head that starts again buys for what had room, if there are many requests that differ.
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
                let wants = Wants::Bundles { bundles: vec![Counted { bundle, count: 1 }], gang: false, spread: false };
                world.ask(|request| Input::Scale { request, wish: add(wants, &format!("job-{n}-{m}"), None) }).expect("there is room");
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

/// A machine that a gang needs is let go because something else was taken back.
#[test]
fn what_is_taken_back_takes_nothing_from_a_gang() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 10, 100))]));
    for (n, cpus) in [4, 3, 3, 4].into_iter().enumerate() {
        one(&mut world, &format!("job-{n}"), cpus, None);
    }
    world.ask(|request| Input::Scale { request, wish: add(gang(5, 3), "gang", None) }).expect("there is room");
    world.pass(15_000);
    one(&mut world, "nine", 9, None);
    one(&mut world, "last", 1, None);
    assert_eq!(world.machines("default"), 4);
    assert!(world.brain.is_ready("gang"));
    world.ask(|request| Input::Revoke { request, name: "last".to_owned() }).expect("it stands");
    let leaving: Vec<_> = world.nodes.values().filter(|n| n.life.is_leaving()).map(|n| n.id.clone()).collect();
    world.pass(60_000);
    let again = world.calls.len();
    assert!(leaving.is_empty() && again == 4, "{leaving:?} are let go, {} machines are asked for again", again - 4);
}

/// A head that starts again buys a machine for what lies on the minimum's, and keeps it.
#[test]
fn a_restart_buys_nothing_for_what_lies_on_the_minimum() {
    let mut world = World::new(spec(&[("default", kind(2, 10, 10, 100))]));
    for (n, cpus) in [4, 3, 3, 4, 3, 3].into_iter().enumerate() {
        one(&mut world, &format!("job-{n}"), cpus, None);
    }
    world.pass(600_000);
    assert_eq!(world.machines("default"), 2);
    assert!(world.brain.asks().iter().all(|a| a.unmet.is_none() && a.ready));
    world.restart();
    world.pass(3_600_000);
    assert_eq!((world.calls.len(), world.machines("default")), (2, 2), "an hour after a restart");
}

/// The same for what is taken back: what is there by number is enough, and a machine is bought and kept.
#[test]
fn what_is_taken_back_keeps_nothing_beyond_the_minimum() {
    let mut world = World::new(spec(&[("default", kind(3, 10, 10, 100))]));
    for (n, cpus) in [4, 3, 3, 4, 3, 3, 9, 1].into_iter().enumerate() {
        one(&mut world, &format!("job-{n}"), cpus, None);
    }
    world.pass(60_000);
    assert_eq!((world.calls.len(), world.brain.asks().iter().filter(|a| a.unmet.is_some()).count()), (3, 0));
    world.ask(|request| Input::Revoke { request, name: "job-7".to_owned() }).expect("it stands");
    world.pass(3_600_000);
    assert_eq!((world.calls.len(), world.machines("default")), (3, 3), "an hour after less was wanted");
}

/// What had room has none any more, for ever: after a restart, or because something else was taken back.
#[test]
fn who_has_room_keeps_it_where_no_more_is_to_be_had() {
    for restarts in [false, true] {
        let mut world = World::new(spec(&[("default", kind(3, 3, 10, 100))]));
        for (n, cpus) in [4, 3, 3, 4, 3, 3, 9, 1].into_iter().enumerate() {
            one(&mut world, &format!("job-{n}"), cpus, None);
        }
        assert!(world.brain.asks().iter().all(|a| a.unmet.is_none() && a.ready));
        if restarts {
            world.restart();
        } else {
            world.ask(|request| Input::Revoke { request, name: "job-7".to_owned() }).expect("it stands");
        }
        world.pass(3_600_000);
        let unmet: Vec<_> = world.brain.asks().into_iter().filter_map(|a| a.unmet.map(|why| (a.ask.name, why))).collect();
        assert!(unmet.is_empty(), "an hour later (restarts: {restarts}): {unmet:?}");
    }
}
