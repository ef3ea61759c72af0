//! Ways in which promises were broken once.

use cloudtik_brain::Record;
use cloudtik_model::Moment;

use super::*;

fn default_offer() -> (String, Offer) {
    ("default".to_owned(), Offer::default())
}

#[test]
fn a_maximum_that_was_lowered_holds_for_what_is_not_made_yet() {
    let mut of = spec(&[("default", kind(3, 5, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 1 });
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    world.failing.insert(default_offer(), FailureKind::Transient);
    of.revision = 2;
    world.tell(Input::Specified { spec: of.clone() });
    assert_eq!(world.machines("default"), 0);
    of.revision = 3;
    of.workers.insert(name("default"), kind(1, 1, 4, 100));
    of.max_workers = 1;
    world.tell(Input::Specified { spec: of });
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
fn a_launch_that_waits_costs_what_it_costs_when_it_is_made() {
    let mut of = spec(&[("default", kind(0, 5, 4, 100))]);
    of.budget = Some(MoneyPerHour(400_000));
    let mut world = World::new(of.clone());
    world.failing.insert(default_offer(), FailureKind::Throttled);
    world.workers(4).expect("4 x 0.10 are within 0.40");
    assert_eq!(world.machines("default"), 0);
    of.revision = 2;
    of.workers.insert(name("default"), kind(0, 5, 4, 200));
    world.tell(Input::Specified { spec: of.clone() });
    let from = world.calls.len();
    world.failing.clear();
    let mut most = 0;
    for _ in 0..600 {
        world.pass(200);
        most = most.max(world.machines("default"));
    }
    let calls: Vec<u64> = world.calls[from..].iter().map(|(at, ..)| *at).collect();
    assert!(
        most <= 2,
        "{most} machines at 0.20 exist, the budget is 0.40; calls after the price had risen at ms {calls:?}; the brain says it costs {:?}",
        world.outlook.cost
    );
}

#[test]
fn the_step_that_lowers_a_limit_launches_nothing_beyond_it() {
    let mut of = spec(&[("default", kind(3, 3, 4, 100))]);
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    world.failing.insert(default_offer(), FailureKind::Transient);
    of.revision = 2;
    world.tell(Input::Specified { spec: of.clone() });
    let calls = world.calls.len();
    world.failing.clear();
    // Their pause of half a second is over in the moment in which the limit comes down.
    world.now += 600;
    of.revision = 3;
    of.workers.insert(name("default"), kind(0, 0, 4, 100));
    of.max_workers = 0;
    world.tell(Input::Specified { spec: of });
    assert_eq!(world.calls.len(), calls, "launched in the step that took the maximum of 0 in; {} machines", world.machines("default"));
}

#[test]
fn a_head_that_just_started_takes_nobody_for_idle() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100)), ("gpu", kind(0, 2, 4, 100))]));
    let until = Some(10_000);
    world
        .ask(|request| Input::Scale { request, wish: add(Wants::Workers { node_type: name("default"), count: 2 }, "m", until) })
        .expect("fits");
    (1..=3).for_each(|n| world.busy(&format!("w{n}"), 900));
    world.failing.insert(("gpu".to_owned(), Offer::default()), FailureKind::StockOut);
    world.wish(Wants::Workers { node_type: name("gpu"), count: 1 }).expect("ok");
    world.pass(20_000);
    assert_eq!(world.machines("default"), 3, "busy ones stay");
    world.restart();
    world.pass(5_000);
    assert_eq!(
        world.machines("default"),
        3,
        "busy ones stay: {:?}",
        world.events.iter().rev().take(8).map(|e| &e.message).collect::<Vec<_>>()
    );
}

#[test]
fn a_restart_of_the_head_cuts_no_drain_off() {
    let mut of = spec(&[("default", kind(2, 2, 4, 100))]);
    of.services[0].drain_ms = 600_000;
    let mut world = World::new(of);
    world.pass(5_000);
    let mut record = world.nodes[&id("w2")].clone();
    record.life = NodeState::Draining { reason: "not needed any more".to_owned() };
    world.nodes.insert(id("w2"), record);
    let links = std::mem::take(&mut world.links);
    world.restart();
    // Agents pause up to 3 s between attempts to connect.
    world.pass(2_900);
    assert!(world.machines.keys().any(|instance| instance.as_str() == "i-w2.1"), "its agent is still on its way back");
    (links.len() == 2).then(|| world.link(&id("w2")));
    world.pass(1_000);
    assert_eq!(world.said(EventKind::Node, "draining → terminating: drained"), 1);
}

#[test]
fn a_roll_out_waits_for_no_launch() {
    let mut of = spec(&[("default", kind(3, 3, 4, 100)), ("gpu", kind(0, 1, 4, 100))]);
    let mut world = World::new(of.clone());
    world.pass(5_000);
    world.failing.insert(("gpu".to_owned(), Offer::default()), FailureKind::Transient);
    of.workers.insert(name("gpu"), kind(1, 1, 4, 100));
    (of.revision, of.rolling) = (2, true);
    world.tell(Input::Specified { spec: of });
    world.pass(3_600_000);
    let behind: Vec<String> = world.nodes.values().filter(|n| n.revision < 2).map(|n| n.id.to_string()).collect();
    assert!(
        behind.is_empty(),
        "after an hour these have not taken the revision: {behind:?}; waits for {:?}",
        world.brain.snapshot().waiting_for
    );
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
    world.tell(Input::Specified { spec: of });
    let took: Vec<String> = world.nodes.values().filter(|n| n.revision == 2).map(|n| n.id.to_string()).collect();
    assert!(took.is_empty(), "restarted with w3 down, 1 of 3 is left up: {took:?}; w3 is {}", world.nodes[&id("w3")].life.name());
}

#[test]
fn a_drain_that_says_smaller_makes_it_smaller() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    let mut world = World::new(of.clone());
    world.workers(5).expect("fits");
    of.revision = 2;
    of.workers.insert(name("default"), kind(1, 3, 4, 100));
    world.tell(Input::Specified { spec: of });
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3);
    let said = world.ask(|request| Input::Drain { request, node: id("w3") }).expect("may go");
    world.pass(60_000);
    let n = world.machines("default");
    assert!(!said.contains("shrinks") || n == 2, "said {said:?}, there are {n}");
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
    world.ask(|request| Input::Revoke { request, name: "nothing".to_owned() }).expect_err("unknown");
    if world.events.len() == before {
        missing.push("revoke nothing");
    }
    world.pass(5_000);
    let before = world.events.len();
    world.workers(77).expect_err("too many");
    world.workers(78).expect_err("too many");
    if world.said(EventKind::Refusal, "78") == 0 {
        missing.push("scale 78, right after scale 77");
    }
    let _ = before;
    world.pass(5_000);
    world.tell(Input::Complained { what: "something else".to_owned() });
    world.workers(79).expect_err("too many");
    world.pass(700_000);
    if world.said(EventKind::Refusal, "79") == 0 {
        missing.push("scale 79, within a second of another complaint");
    }
    assert!(missing.is_empty(), "no stored fact tells of: {missing:?}");
}

#[test]
fn what_boots_while_nobody_is_heard_is_waited_for() {
    let mut world = World::new(spec(&[("default", kind(0, 20, 4, 100))]));
    for n in 1..=20 {
        world.silent.insert(id(&format!("w{n}")));
    }
    world.workers(20).expect("fits");
    assert_eq!(world.machines("default"), 20);
    // The head's network is gone for six minutes; the provider is still reached.
    let mut seen = 20;
    for _ in 0..400 {
        world.pass(1_000);
        seen = seen.min(world.nodes.values().filter(|n| n.generation.0 == 1 && !n.life.is_leaving()).count());
    }
    assert_eq!(seen, 20, "terminated because nobody linked: {} of 20 are left", seen);
}

#[test]
fn a_held_head_gives_up_no_launch() {
    let mut world = World::new(spec(&[("default", kind(0, 2, 4, 100))]));
    world.silent.insert(id("w1"));
    world.workers(1).expect("fits");
    world.ask(|request| Input::Hold { request, reason: "looking into it".to_owned() }).expect("held");
    world.pass(400_000);
    assert_eq!(world.machines("default"), 1, "while held: {:?}", world.events.iter().rev().take(4).map(|e| &e.message).collect::<Vec<_>>());
}

#[test]
fn a_wall_clock_that_jumps_ends_no_request() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    let until = Some(3_600_000);
    world
        .ask(|request| Input::Scale { request, wish: add(Wants::Workers { node_type: name("default"), count: 2 }, "job", until) })
        .expect("fits");
    let mut gone = false;
    for _ in 0..160 {
        world.now += 400;
        let moment = Moment { mono: world.now, wall: Timestamp(MONDAY + 7_200_000 + world.now) };
        gone |= world.brain.handle(moment, Input::Tick).records.iter().any(|r| matches!(r, Record::AskGone { .. }));
    }
    assert!(!gone, "a request for an hour is over after a minute of a wrong clock, and does not come back");
}

#[test]
fn nothing_is_made_of_a_type_that_is_gone() {
    let mut of = spec(&[("default", kind(0, 3, 4, 100)), ("old", kind(3, 3, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 1 });
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    world.failing.insert(("old".to_owned(), Offer::default()), FailureKind::Throttled);
    of.revision = 2;
    world.tell(Input::Specified { spec: of.clone() });
    of.revision = 3;
    of.workers.remove(&name("old"));
    world.tell(Input::Specified { spec: of });
    let from = world.calls.len();
    world.failing.clear();
    world.pass(60_000);
    assert!(world.calls[from..].iter().all(|(_, of, _)| of != "old"), "calls for a type that is gone: {:?}", &world.calls[from..]);
}
