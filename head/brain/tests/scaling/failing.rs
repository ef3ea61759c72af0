//! Services that fail, as events tell them; workers that are lost, and what replaces them.

use cloudtik_model::report::{FailureCause, ServiceFailure};
use cloudtik_model::wait::{Wait, WaitingService};

use super::*;

/// A world with one worker, that is ready.
fn world() -> World {
    let mut world = World::new(spec(&[("default", kind(1, 3, 4, 100))]));
    world.pass(5_000);
    world
}

fn crash(code: i32) -> FailureCause {
    FailureCause::Crashed { exit_code: Some(code), how: format!("exit {code}") }
}

/// The agent of `w1` reports its service.
fn report(world: &mut World, state: ServiceState, restarts: u32, failure: Option<(FailureCause, u64)>) {
    let failure = failure.map(|(cause, at)| ServiceFailure { cause, at: Timestamp(at), restart_in_ms: 30_000 });
    let log = if failure.is_some() { vec!["cannot bind".to_owned(), "giving up".to_owned()] } else { Vec::new() };
    let report = ServiceReport {
        key: key(),
        state,
        detail: String::new(),
        pid: None,
        restarts,
        since: Timestamp(0),
        goal_version: world.versions[&id("w1")],
        gauges: BTreeMap::new(),
        failure,
        log,
    };
    let session = world.links[&id("w1")];
    world.tell(Input::Reported { session, node: id("w1"), complete: true, services: vec![report], jobs: Vec::new() });
}

fn is(state: ServiceState) -> What {
    What::ServiceChanged { service: key(), state, detail: String::new() }
}

fn services(world: &World) -> Vec<&Event> {
    world.events.iter().filter(|e| e.kind == EventKind::Service).collect()
}

#[test]
fn a_crash_is_one_event_with_the_end_of_the_log_and_its_repetitions_have_one_topic() {
    let mut world = world();
    world.events.clear();
    for n in 1..=5 {
        report(&mut world, ServiceState::Backoff, n, Some((crash(1), u64::from(n))));
        // Said again, it is the same.
        report(&mut world, ServiceState::Backoff, n, Some((crash(1), u64::from(n))));
        report(&mut world, ServiceState::Starting, n, Some((crash(1), u64::from(n))));
    }
    let events = services(&world);
    assert_eq!(events.len(), 5, "{events:#?}");
    let crashed = What::ServiceFailed { service: key(), failure: crash(1), restart_in_ms: 30_000 };
    assert!(events.iter().all(|e| e.what == crashed), "{events:#?}");
    let logs: Vec<bool> = events.iter().map(|e| e.log == ["cannot bind", "giving up"]).collect();
    assert_eq!(logs, [true, true, true, false, false], "the same log again and again is not kept");
    // Another failure is news, with its log; one that came and went between two reports is told all the same.
    report(&mut world, ServiceState::Ready, 6, Some((crash(2), 9)));
    let last: Vec<What> = services(&world).iter().rev().take(2).map(|e| e.what.clone()).collect();
    assert_eq!(last, [is(ServiceState::Ready), What::ServiceFailed { service: key(), failure: crash(2), restart_in_ms: 30_000 }]);
    assert!(
        services(&world)
            .iter()
            .any(|e| matches!(&e.what, What::ServiceFailed { failure, .. } if *failure == crash(2)) && !e.log.is_empty())
    );
}

#[test]
fn a_restart_for_failed_health_checks_is_no_crash() {
    let mut world = world();
    world.events.clear();
    report(&mut world, ServiceState::Unhealthy, 0, None);
    report(&mut world, ServiceState::Stopping, 0, Some((FailureCause::Unhealthy { seen: "port 80 answered 500".to_owned() }, 3)));
    let waits = world.brain.snapshot().waiting_for;
    let unhealthy = FailureCause::Unhealthy { seen: "port 80 answered 500".to_owned() };
    let is_told = |wait: &Wait| match wait {
        Wait::Service { service, node, report: Some(WaitingService { failure: Some(failure), .. }) } => {
            *service == key() && *node == id("w1") && failure.cause == unhealthy
        }
        _ => false,
    };
    assert!(waits.iter().any(is_told), "{waits:?}");
    report(&mut world, ServiceState::Ready, 1, None);
    let told: Vec<What> = services(&world).iter().map(|e| e.what.clone()).collect();
    let restart = What::ServiceFailed { service: key(), failure: unhealthy, restart_in_ms: 30_000 };
    assert_eq!(told, [is(ServiceState::Unhealthy), restart, is(ServiceState::Ready)]);
}

#[test]
fn what_a_head_that_starts_hears_of_an_old_failure_is_no_news() {
    let mut world = world();
    let mut old = world.brain.node(&id("w1")).expect("it is there").services[&key()].clone();
    old.failure = Some(ServiceFailure { cause: crash(1), at: Timestamp(1), restart_in_ms: 200 });
    world.restart();
    world.events.clear();
    let session = world.links[&id("w1")];
    old.key = "run/other".parse().expect("a key");
    world.tell(Input::Reported { session, node: id("w1"), complete: false, services: vec![old], jobs: Vec::new() });
    assert!(services(&world).iter().all(|e| !matches!(e.what, What::ServiceFailed { .. })), "{:#?}", services(&world));
}

#[test]
fn a_lost_worker_is_told_with_what_replaces_it() {
    let mut world = world();
    world.ask(|request| Input::Kill { request, node: id("w1") }).expect("it may go");
    world.pass(10_000);
    let replaces = |e: &&Event| matches!(&e.what, What::Launch(launch) if launch.replaces == Some((id("w1"), Generation(1))));
    let requested: Vec<&Event> = world.events.iter().filter(replaces).collect();
    assert_eq!(requested.len(), 1, "{:#?}", world.events);
    let (node, generation) = (requested[0].node.clone().expect("of a node"), requested[0].generation.expect("of a generation"));
    let told: Vec<&Event> = world.events.iter().filter(|e| matches!(e.what, What::ReplacedBy { .. })).collect();
    if node == id("w1") {
        assert!(told.is_empty(), "the same name says it by its generation: {told:#?}");
    } else {
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!((told[0].node.clone(), told[0].what.clone()), (Some(id("w1")), What::ReplacedBy { node, generation }));
    }
    // What is asked for later replaces nothing.
    world.events.clear();
    world.workers(2).expect("there is room");
    world.pass(10_000);
    let launches: Vec<_> =
        world.events.iter().filter_map(|e| if let What::Launch(of) = &e.what { Some(&of.replaces) } else { None }).collect();
    assert_eq!(launches, [&None], "{:#?}", world.events);
}

#[test]
fn a_worker_that_is_given_up_leaves_the_end_of_its_log() {
    let mut world = World::new(spec(&[("default", kind(0, 3, 4, 100))]));
    world.never_starts.insert(name("default"));
    world.workers(1).expect("there is room");
    world.pass(1_000);
    for at in 0..30u64 {
        if world.nodes[&id("w1")].life == NodeState::Preparing {
            report(&mut world, ServiceState::Backoff, 7 + at as u32, Some((crash(1), at)));
        }
        world.pass(25_000);
    }
    let is_given_up = |e: &&Event| match &e.what {
        What::NodeFailed { why: Reason::ServiceFailed { cause, .. } } => *cause == Some(crash(1)),
        _ => false,
    };
    let given_up = world.events.iter().find(is_given_up).unwrap_or_else(|| panic!("{:#?}", world.events));
    assert_eq!(given_up.log, ["cannot bind", "giving up"]);
}
