//! Agents that report without end: what they can make the head store and keep.

use cloudtik_model::ServiceKey;

use super::*;

/// A world with two workers, that are ready.
fn world() -> World {
    let mut world = World::new(spec(&[("default", kind(2, 3, 4, 100))]));
    world.pass(5_000);
    world.events.clear();
    world
}

fn report(world: &mut World, node: &str, key: &ServiceKey, state: ServiceState) {
    let report = ServiceReport {
        key: key.clone(),
        state,
        detail: String::new(),
        pid: None,
        restarts: 0,
        since: Timestamp(0),
        goal_version: world.versions[&id(node)],
        gauges: BTreeMap::new(),
        failure: None,
        log: Vec::new(),
    };
    let session = world.links[&id(node)];
    world.tell(Input::Reported { session, node: id(node), complete: false, services: vec![report], jobs: Vec::new() });
}

fn of_service<'a>(world: &'a World, key: &ServiceKey) -> Vec<&'a Event> {
    world.events.iter().filter(|e| matches!(&e.what, What::ServiceChanged { service, .. } if service == key)).collect()
}

#[test]
fn a_service_that_flaps_is_stored_with_its_number_and_ends_with_how_it_is() {
    let mut world = world();
    for n in 0..2_000 {
        report(&mut world, "w1", &key(), if n % 2 == 0 { ServiceState::Unhealthy } else { ServiceState::Ready });
        world.pass(100);
    }
    let stored = of_service(&world, &key()).len();
    assert!((10..100).contains(&stored), "{stored} events of 2,000 changes in 200 s");
    // Then it stays as it is: the log says so, and how much it left out.
    report(&mut world, "w1", &key(), ServiceState::Unhealthy);
    world.pass(60_000);
    let events = of_service(&world, &key());
    let last = events.last().expect("an event");
    assert!(matches!(last.what, What::ServiceChanged { state: ServiceState::Unhealthy, .. }), "{last:?}");
    let told: u64 = events.iter().map(|event| 1 + event.more).sum();
    assert_eq!(told, 2_001, "each change is stored or counted");
}

#[test]
fn the_flapping_of_many_services_of_a_node_takes_no_room_of_others() {
    let mut world = world();
    let keys: Vec<ServiceKey> = (0..60).map(|n| format!("run/s{n}").parse().expect("a key")).collect();
    for n in 0..200 {
        for key in &keys {
            report(&mut world, "w1", key, if n % 2 == 0 { ServiceState::Unhealthy } else { ServiceState::Ready });
        }
        world.pass(1_000);
    }
    let of = |world: &World, node: &str| world.events.iter().filter(|e| e.node == Some(id(node))).count();
    assert!(of(&world, "w1") < 400, "{} events of 12,000 changes in 200 s", of(&world, "w1"));
    report(&mut world, "w2", &key(), ServiceState::Unhealthy);
    assert_eq!(of(&world, "w2"), 1, "another node's are stored at once");
}

#[test]
fn a_connection_that_opens_and_closes_without_end_is_stored_with_its_number() {
    let mut world = world();
    for _ in 0..1_000 {
        let session = world.links[&id("w1")];
        world.tell(Input::LinkClosed { session, node: id("w1"), cause: "reset".to_owned() });
        world.link(&id("w1"));
        world.pass(10);
    }
    let stored = world.events.iter().filter(|e| e.node == Some(id("w1"))).count();
    assert!(stored < 200, "{stored} events of 1,000 connections in 10 s");
    world.pass(60_000);
    let last = world.events.iter().rfind(|e| matches!(e.what, What::StateChanged { .. })).expect("an event");
    assert!(matches!(last.what, What::StateChanged { to: StateName::Ready, .. }), "{last:?}");
    let told: u64 = world.events.iter().filter(|e| matches!(e.what, What::StateChanged { .. })).map(|e| 1 + e.more).sum();
    // Suspect, preparing, ready.
    assert_eq!(told, 3_000, "each change is stored or counted");
}

#[test]
fn services_that_a_node_is_not_to_run_are_kept_up_to_a_number_and_that_is_said() {
    let mut world = world();
    for n in 0..5_000 {
        report(&mut world, "w1", &format!("made/s{n}").parse().expect("a key"), ServiceState::Starting);
    }
    let kept = |world: &World| world.brain.node(&id("w1")).expect("a node").services.len();
    assert!((64..=65).contains(&kept(&world)), "{} services are kept", kept(&world));
    let said = world.told(|what| matches!(what, What::ServicesIgnored { .. }));
    assert_eq!(said, 1, "{:#?}", world.events);
    // What it is to run still counts.
    report(&mut world, "w1", &key(), ServiceState::Unhealthy);
    assert_eq!(of_service(&world, &key()).len(), 1);
    // A complete report takes what is gone away, and makes room.
    let session = world.links[&id("w1")];
    world.tell(Input::Reported { session, node: id("w1"), complete: true, services: Vec::new(), jobs: Vec::new() });
    assert_eq!(kept(&world), 0);
}

/// An agent that refuses its goal with ever other words, among the same ones again and again.
#[test]
fn complaints_that_differ_have_a_budget_whatever_comes_between_them() {
    let mut world = world();
    let refuse = |world: &mut World, error: String| {
        let (session, version) = (world.links[&id("w1")], world.versions[&id("w1")]);
        world.tell(Input::GoalAcknowledged { session, node: id("w1"), version, refusal: Some(error) });
    };
    for round in 0..100 {
        for n in 0..20 {
            refuse(&mut world, format!("{round} {n}"));
        }
        world.pass(30_000);
        for _ in 0..20 {
            refuse(&mut world, "again".to_owned());
        }
    }
    let stored = world.events.iter().filter(|event| matches!(event.what, What::GoalRefused { .. })).count();
    assert!(stored <= 20 + 100 + 6, "{stored} of 4,000 complaints in 50 minutes: 20, and one more for every 30 s");
}
