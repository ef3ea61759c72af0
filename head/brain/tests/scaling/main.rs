//! Scaling, rule by rule.

mod promises;
mod world;

use cloudtik_brain::{FailureKind, Input, Wish};
use cloudtik_model::demand::{Bundle, Counted, Quantity, Wants};
use cloudtik_model::event::EventKind;
use cloudtik_model::node::{InstanceState, NodeState};
use cloudtik_model::policy::{Counts, Hours, Metric, Policy, Rule, Workers};
use cloudtik_model::spec::{Membership, Offer, Spot, WorkerType};
use cloudtik_model::{Bytes, MoneyPerHour, Resources, Timestamp};
use std::collections::BTreeMap;

use world::*;

#[test]
fn room_is_bought_from_the_cheapest_type_and_said_why() {
    let gpu = WorkerType { resources: Some(Resources { cpus: 8, memory: Bytes(1 << 36), gpus: 2 }), ..kind(0, 4, 8, 90) };
    let mut world =
        World::new(spec(&[("default", kind(0, 10, 4, 100)), ("dear", kind(0, 10, 4, 130)), ("gpu", gpu), ("small", kind(0, 10, 1, 10))]));
    world.wish(bundles(&[(6, 2, 0)])).expect("there is room");
    assert_eq!((world.machines("default"), world.machines("dear"), world.machines("gpu"), world.machines("small")), (3, 0, 0, 0));
    let event = world.events.iter().find(|e| e.message.starts_with("request w1")).expect("it is told");
    assert_eq!(event.details["for"], "2 × 2 cpus");
    assert_eq!(event.details["asked by"], "room");
    assert_eq!(event.details["not small"], "has only 1 cpu");
    assert!(event.details["not gpu"].contains("GPUs"), "{:?}", event.details);
    assert!(event.details["not dear"].contains("dearer"), "{:?}", event.details);
    // What wants GPUs gets them, and what does not may go beside it.
    world.wish(bundles(&[(4, 1, 1), (1, 4, 0)])).expect("there is room");
    assert_eq!(world.machines("gpu"), 2);
}

#[test]
fn what_cannot_be_had_is_refused_with_what_it_would_take() {
    let mut of = spec(&[("default", kind(1, 6, 4, 500))]);
    of.budget = Some(MoneyPerHour(2_000_000));
    let mut world = World::new(of);
    for (wants, says) in [
        (Wants::Workers { node_type: name("default"), count: 5 }, "would bring the cluster to 2.50/h, its budget is 2.00/h"),
        (Wants::Workers { node_type: name("default"), count: 7 }, "not between its min 1 and max 6"),
        (Wants::Workers { node_type: name("other"), count: 1 }, "there is no node type other; there is default"),
        (bundles(&[(1, 5, 0)]), "no node type has 5 cpus: default has only 4 cpus"),
        (bundles(&[(1, 1, 1)]), "default has no gpus"),
        (bundles(&[(17, 1, 0)]), "the budget is 2.00/h, 2.50/h is needed"),
        (bundles(&[(25, 1, 0)]), "workers.default.max is 6, 7 are needed"),
    ] {
        let refusal = world.wish(wants.clone()).expect_err("too much");
        assert!(refusal.contains(says), "{wants}: {refusal}");
    }
    assert_eq!(world.machines("default"), 1, "nothing was changed");
    assert!(world.asks.is_empty());
    world.wish(bundles(&[(16, 1, 0)])).expect("just within the budget");
    assert_eq!(world.machines("default"), 4);
    let refusal = world.workers(5).expect_err("together they are too much");
    assert!(refusal.contains("budget"), "{refusal}");
}

#[test]
fn a_gang_is_served_whole_or_not_at_all() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    let gang = |spread| Wants::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity(3_000), ..Bundle::default() }, count: 3 }],
        gang: true,
        spread,
    };
    world.wish(gang(false)).expect("it could be had");
    assert_eq!(world.calls.len(), 3);
    assert_eq!(world.machines("default"), 0);
    world.pass(30_000);
    assert_eq!(world.calls.len(), 3, "what is out of stock is left alone");
    assert_eq!(world.brain.asks()[0].unmet.as_deref().map(|u| u.contains("StockOut")), Some(true));
    world.failing.clear();
    world.pass(60_000);
    assert_eq!(world.machines("default"), 3, "and tried again after a while");
    // Two more nodes cannot be had: one of the gang's demands would be left.
    let refusal = world.wish(Wants::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity(3_000), ..Bundle::default() }, count: 5 }],
        gang: true,
        spread: false,
    });
    assert!(refusal.expect_err("five do not fit").contains("max is 4, 5 are needed"));
}

#[test]
fn demands_that_are_apart_are_on_nodes_of_their_own() {
    let mut world = World::new(spec(&[("default", kind(1, 5, 8, 100))]));
    let wants = Wants::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity(1_000), ..Bundle::default() }, count: 4 }],
        gang: false,
        spread: true,
    };
    world.wish(wants).expect("there is room");
    assert_eq!(world.machines("default"), 4, "one was there");
}

#[test]
fn requests_add_up_end_and_survive_a_restart() {
    let mut world = World::new(spec(&[("default", kind(1, 9, 4, 100))]));
    world.workers(3).expect("within the bounds");
    let more = |count, until| Wish {
        name: None,
        wants: Wants::Workers { node_type: name("default"), count },
        additive: true,
        until,
        reason: "a test".to_owned(),
    };
    world.ask(|request| Input::Scale { request, wish: more(2, None) }).expect("two more");
    let until = Some(Timestamp(MONDAY + 600_000));
    world.ask(|request| Input::Scale { request, wish: more(1, until) }).expect("one more for a while");
    assert_eq!(world.machines("default"), 6);
    world.restart();
    world.pass(5_000);
    let names: Vec<String> = world.brain.asks().into_iter().map(|a| a.ask.name).collect();
    assert_eq!(names, ["ask-1", "ask-2", "workers-default"]);
    (1..=6).for_each(|n| world.busy(&format!("w{n}"), 900));
    world.pass(600_000);
    assert_eq!((world.brain.asks().len(), world.machines("default")), (2, 6), "what ends by itself ends gently");
    (1..=6).for_each(|n| world.busy(&format!("w{n}"), 0));
    world.pass(290_000);
    assert_eq!(world.machines("default"), 6);
    world.pass(20_000);
    assert_eq!(world.machines("default"), 5, "once it is idle for long enough");
    world.ask(|request| Input::Revoke { request, name: "ask-1".to_owned() }).expect("it stands");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3, "what is taken back goes at once");
    let refusal = world.ask(|request| Input::Revoke { request, name: "ask-1".to_owned() }).expect_err("it is gone");
    assert!(refusal.contains("there is workers-default"), "{refusal}");
}

#[test]
fn what_is_out_of_stock_falls_over_to_the_next_offer_and_the_next_type() {
    let spot = WorkerType {
        zones: vec!["a".to_owned(), "b".to_owned()],
        spot: Some(Spot { price: Some(MoneyPerHour(30_000)), or_on_demand: true }),
        ..kind(0, 4, 4, 100)
    };
    let mut world = World::new(spec(&[("default", spot), ("other", kind(0, 4, 4, 150))]));
    let all = |market: &str| ["a", "b"].map(|zone| format!("{market} in {zone}"));
    for offer in world.cluster.spec.clone().expect("a specification").workers[&name("default")].offers() {
        world.failing.insert(("default".to_owned(), offer.0), FailureKind::StockOut);
    }
    world.wish(bundles(&[(1, 4, 0)])).expect("it could be had");
    let tried: Vec<String> = world.calls.iter().map(|(_, of, offer)| format!("{of} {offer}")).collect();
    let mut expected: Vec<String> = all("spot").into_iter().chain(all("on-demand")).map(|o| format!("default {o}")).collect();
    expected.push("other on-demand".to_owned());
    assert_eq!(tried, expected);
    assert_eq!((world.machines("default"), world.machines("other")), (0, 1));
    assert_eq!(world.said(EventKind::Decision, "left alone for 60 s"), 4);
}

#[test]
fn the_provider_s_pace_is_kept() {
    let mut world = World::new(spec(&[("default", kind(0, 50, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::Throttled);
    world.workers(50).expect("within the bounds");
    let first = world.calls.len();
    world.pass(20_000);
    let then = world.calls.len() - first;
    assert!((1..=20).contains(&then), "{first} at once, before anything was said, and {then} in the next 20 s");
    world.failing.clear();
    world.pass(600_000);
    assert_eq!(world.machines("default"), 50);
}

#[test]
fn a_type_that_keeps_failing_is_paused_and_others_go_on() {
    let mut world = World::new(spec(&[("default", kind(2, 4, 4, 100)), ("other", kind(0, 4, 4, 150))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::Permanent);
    world.workers(4).expect("within the bounds");
    world.pass(200_000);
    let calls = world.calls.len();
    assert!(calls <= 6, "{calls} calls");
    assert_eq!(world.said(EventKind::Alarm, "nothing of type default is made for 300 s"), 1);
    assert!(world.brain.snapshot().alarms[0].contains("default"), "it is shown");
    world.wish(bundles(&[(3, 4, 0)])).expect("it could be had");
    assert_eq!(world.machines("other"), 1, "others go on");
    world.restart();
    assert_eq!(world.calls.len(), calls + 1, "a restart ends no pause");
    world.failing.clear();
    world.ask(|request| Input::Resume { request }).expect("a person may");
    world.pass(1_000);
    assert_eq!(world.machines("default"), 4);
    assert_eq!(world.said(EventKind::Alarm, "nothing of type default is made for"), 1, "what was under way meanwhile says nothing new");
}

#[test]
fn a_held_cluster_is_left_as_it_is() {
    let mut world = World::new(spec(&[("default", kind(3, 5, 4, 100))]));
    world.ask(|request| Input::Hold { request, reason: "the network moves".to_owned() }).expect("held");
    world.ask(|request| Input::Kill { request, node: id("w2") }).expect("a person may");
    world.silent.insert(id("w3"));
    world.links.remove(&id("w3"));
    world.pass(600_000);
    assert_eq!(world.machines("default"), 2, "nothing is replaced");
    world.restart();
    world.pass(60_000);
    assert_eq!(world.machines("default"), 2, "also after a restart");
    assert!(world.outlook.held.as_deref().is_some_and(|h| h.contains("the network moves")));
    world.silent.clear();
    world.ask(|request| Input::Resume { request }).expect("resumed");
    world.pass(120_000);
    assert_eq!(world.machines("default"), 3);
}

#[test]
fn a_node_in_quarantine_is_replaced_and_kept() {
    let mut world = World::new(spec(&[("default", kind(2, 3, 4, 100))]));
    world.ask(|request| Input::Quarantine { request, node: id("w1"), reason: "odd".to_owned() }).expect("set aside");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3);
    assert!(world.services.contains(&id("w1")), "it runs on");
    world.silent.insert(id("w1"));
    world.links.remove(&id("w1"));
    world.restart();
    world.pass(600_000);
    assert_eq!(world.machines("default"), 3, "it is left alone, silent or not");
    world.silent.clear();
    world.link(&id("w1"));
    world.ask(|request| Input::Release { request, node: id("w1") }).expect("taken back");
    world.pass(5_000);
    assert_eq!(world.brain.node(&id("w1")).map(|n| n.record.life.name()), Some("ready"));
    world.pass(400_000);
    assert_eq!(world.machines("default"), 2, "one too many is let go when it is idle");
}

fn load_policy() -> Policy {
    Policy {
        name: "busy".to_owned(),
        node_type: name("default"),
        least: 0,
        most: 6,
        pause_ms: 60_000,
        rule: Rule::Load { metric: Metric::Cpu, high: 800, low: 300, window_ms: 30_000 },
    }
}

#[test]
fn load_makes_more_and_lets_idle_ones_go() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    (of.policies, of.idle_after_ms) = (vec![load_policy()], 60_000);
    let mut world = World::new(of);
    world.busy("w1", 900);
    world.pass(20_000);
    assert_eq!(world.machines("default"), 1, "the window is not full yet");
    world.pass(40_000);
    assert_eq!(world.machines("default"), 2, "one and a quarter are two");
    let why = &world.brain.outlook().types[&name("default")].sources[0];
    assert!(why.contains("policy busy: 2") && why.contains("above 80 %"), "{why}");
    world.busy("w2", 900);
    world.pass(60_000);
    assert_eq!(world.machines("default"), 3);
    world.restart();
    world.pass(10_000);
    assert_eq!(world.machines("default"), 3, "a restart forgets the window and lets nobody go");
    (1..=3).for_each(|n| world.busy(&format!("w{n}"), 10));
    world.busy("w3", 500);
    world.pass(400_000);
    assert_eq!(world.nodes[&id("w3")].life, NodeState::Ready, "what works stays");
    assert_eq!(world.machines("default"), 1);
    assert_eq!(world.said(EventKind::Decision, "let w3 go"), 0);
}

#[test]
fn a_policy_that_flaps_is_damped_and_says_so() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    (of.policies, of.idle_after_ms) = (vec![load_policy()], 1_000);
    let mut world = World::new(of);
    for round in 0..120 {
        let cpu = if round % 2 == 0 { 1_000 } else { 0 };
        for n in 1..=6 {
            world.busy(&format!("w{n}"), cpu);
        }
        world.pass(90_000);
    }
    assert!(world.said(EventKind::Alarm, "policy busy flaps") > 0);
    let changes = |from: u64| {
        let of_policy = world.events.iter().filter(|e| e.message.starts_with("policy busy:"));
        of_policy.filter(|e| (from..from + 1_800_000).contains(&(e.at.0 - MONDAY))).count()
    };
    let (first, last) = (changes(0), changes(9_000_000));
    assert!(last * 2 < first, "{first} changes in the first half hour, {last} in the last");
    // A calm day, and what comes then is answered at once.
    let busy = |world: &mut World, cpu| (1..=6).for_each(|n| world.busy(&format!("w{n}"), cpu));
    busy(&mut world, 0);
    world.pass(86_400_000);
    assert_eq!(world.machines("default"), 1);
    busy(&mut world, 1_000);
    world.pass(90_000);
    assert!(world.machines("default") > 1, "it is forgiven");
}

#[test]
fn schedules_begin_and_end() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    let hours = Hours { days: vec![0], from: 60, until: 120, time_zone: "UTC".to_owned() };
    let policy =
        |name: &str, workers| Policy { name: name.to_owned(), rule: Rule::Schedule { hours: hours.clone(), workers }, ..load_policy() };
    (of.policies, of.idle_after_ms) = (vec![policy("day", Workers::AtLeast(3)), policy("more", Workers::More(4))], 60_000);
    // The Monday began at midnight UTC.
    assert_eq!(MONDAY % 86_400_000, 0);
    let mut world = World::new(of);
    world.pass(3_599_000);
    assert_eq!(world.machines("default"), 1);
    world.pass(2_000);
    assert_eq!(world.machines("default"), 5, "the larger of the two");
    world.pass(3_600_000 - 2_000);
    assert_eq!(world.machines("default"), 5);
    world.pass(120_000);
    assert_eq!(world.machines("default"), 1);
}

#[test]
fn signals_are_followed_without_overshooting() {
    for counts in [Counts::All, Counts::Waiting] {
        let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
        let rule = Rule::Signal { signal: "run.cores".to_owned(), per_worker: Quantity(4_000), counts };
        (of.policies, of.idle_after_ms) = (vec![Policy { rule, ..load_policy() }], 60_000);
        let mut world = World::new(of);
        world.pass(20_000);
        let say = |world: &mut World, cores: u64| {
            world
                .gauges
                .insert(id("w1"), BTreeMap::from([("cores".to_owned(), Quantity(cores * 1_000)), ("work".to_owned(), Quantity(1_000))]));
            world.report(&id("w1"));
        };
        say(&mut world, 9);
        let wanted = if counts == Counts::All { 3 } else { 4 };
        world.pass(5_000);
        assert_eq!(world.machines("default"), wanted, "{counts:?}");
        world.pass(8_000);
        assert_eq!(world.machines("default"), wanted, "new ones have had no time to take work yet: {counts:?}");
        say(&mut world, 0);
        world.pass(300_000);
        assert_eq!(world.machines("default"), 1, "{counts:?}");
    }
}

#[test]
fn a_quorum_is_never_given_up() {
    let mut of = spec(&[("default", kind(3, 5, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 3 });
    let mut world = World::new(of.clone());
    world.workers(5).expect("within the bounds");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 5);
    // Two are silent: the other three are just a quorum of five.
    for node in ["w4", "w5"] {
        world.silent.insert(id(node));
        world.links.remove(&id(node));
    }
    world.pass(5_000);
    let refusal = world.ask(|request| Input::Drain { request, node: id("w1") }).expect_err("it is needed");
    assert!(refusal.contains("needs 3"), "{refusal}");
    world.workers(3).expect("within the bounds");
    world.pass(1_000);
    assert!(["w1", "w2", "w3"].iter().all(|n| world.nodes[&id(n)].life == NodeState::Ready), "none of those that are up may go");
    world.silent.clear();
    world.link(&id("w4"));
    world.link(&id("w5"));
    let mut fewest = 5;
    for _ in 0..120 {
        world.pass(500);
        let ready = world.nodes.values().filter(|r| r.life == NodeState::Ready).count();
        fewest = fewest.min(ready);
    }
    assert_eq!((world.machines("default"), fewest), (3, 3));
    // The last three stay whatever a description says: the service needs them.
    of.revision = 2;
    of.workers.insert(name("default"), kind(1, 5, 4, 100));
    world.tell(Input::Specified { spec: of });
    world.workers(1).expect("within the bounds");
    world.pass(600_000);
    assert_eq!(world.machines("default"), 3);
    let why: Vec<&String> = world.outlook.types[&name("default")].surplus.values().collect();
    assert!(why[0].contains("run/worker"), "{why:?}");
}

#[test]
fn dearest_and_least_useful_go_first_and_never_what_a_request_needs() {
    let mut world = World::new(spec(&[("default", kind(0, 6, 4, 100)), ("dear", kind(0, 6, 4, 300))]));
    world.wish(Wants::Workers { node_type: name("dear"), count: 2 }).expect("within the bounds");
    world.workers(4).expect("within the bounds");
    world
        .ask(|request| {
            let wish =
                Wish { name: Some("job".to_owned()), wants: bundles(&[(3, 4, 0)]), additive: true, until: None, reason: String::new() };
            Input::Scale { request, wish }
        })
        .expect("it fits on what is there");
    assert_eq!((world.machines("default"), world.machines("dear")), (4, 2), "nothing new is bought for it");
    world.wish(Wants::Workers { node_type: name("dear"), count: 0 }).expect("within the bounds");
    world.pass(2_000);
    assert_eq!((world.machines("default"), world.machines("dear")), (4, 0), "what lay on them fits on the others");
    world.workers(0).expect("within the bounds");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 3, "three are needed by the job");
    world.ask(|request| Input::Revoke { request, name: "job".to_owned() }).expect("it stands");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 0);
}

fn add(wants: Wants, named: &str, until: Option<u64>) -> Wish {
    let until = until.map(|at| Timestamp(MONDAY + at));
    Wish { name: Some(named.to_owned()), wants, additive: true, until, reason: "two\nlines".to_owned() }
}

#[test]
fn limits_that_are_lowered_hold_for_what_is_there() {
    let mut of = spec(&[("default", kind(1, 6, 4, 500)), ("dear", kind(0, 3, 8, 900))]);
    let mut world = World::new(of.clone());
    world.workers(5).expect("within the bounds");
    world.ask(|request| Input::Scale { request, wish: add(bundles(&[(1, 8, 0)]), "big", None) }).expect("there is room");
    assert_eq!((world.machines("default"), world.machines("dear")), (5, 1));
    (of.revision, of.max_workers) = (2, 4);
    assert_eq!(world.brain.excess(&of).len(), 2, "it is told beforehand, of both types");
    world.tell(Input::Specified { spec: of.clone() });
    world.pass(2_000);
    assert_eq!((world.machines("default"), world.machines("dear")), (4, 0), "numbers come before room");
    (of.revision, of.budget) = (3, Some(MoneyPerHour(1_000_000)));
    world.tell(Input::Specified { spec: of.clone() });
    world.pass(2_000);
    assert_eq!((world.machines("default"), world.machines("dear")), (2, 0), "1.00/h and no more");
    let asks = world.brain.asks();
    assert!(asks.iter().all(|a| a.unmet.is_some()), "what is not there is not met: {asks:?}");
    world.workers(1).expect("less is always to be had");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 1);
}

#[test]
fn what_is_promised_while_held_fits_together() {
    let mut world = World::new(spec(&[("default", kind(0, 6, 4, 100))]));
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("held");
    world.workers(4).expect("within the bounds");
    world.ask(|request| Input::Scale { request, wish: add(bundles(&[(6, 4, 0)]), "all", None) }).expect("just fits");
    let refusal = world.ask(|request| Input::Scale { request, wish: add(bundles(&[(1, 4, 0)]), "more", None) });
    assert!(refusal.expect_err("six are promised").contains("max is 6, 7 are needed"));
    assert!(world.brain.asks().iter().all(|a| a.unmet.is_some()), "nothing of it is there");
    world.ask(|request| Input::Resume { request }).expect("resumed");
    world.pass(1_000);
    assert_eq!(world.machines("default"), 6);
    assert!(world.brain.asks().iter().all(|a| a.unmet.is_none()), "{:?}", world.brain.asks());
}

#[test]
fn a_policy_remembers_its_own_number_and_nobody_else_s() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100)), ("other", kind(0, 6, 4, 100))]);
    of.policies = vec![Policy { most: 3, ..load_policy() }];
    let mut world = World::new(of.clone());
    world.workers(5).expect("within the bounds");
    world.restart();
    world.pass(5_000);
    world.workers(1).expect("within the bounds");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 1, "what people asked for is no policy's wish");
    (1..=6).for_each(|n| world.busy(&format!("w{n}"), 1_000));
    world.pass(200_000);
    assert_eq!(world.machines("default"), 3, "its own most");
    world.restart();
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3, "what it asked for holds");
    (of.revision, of.policies[0].node_type) = (2, name("other"));
    world.tell(Input::Specified { spec: of });
    world.pass(5_000);
    assert_eq!(world.machines("other"), 0, "a number for one type is none for another");
}

#[test]
fn a_drain_takes_one_from_what_was_asked_for() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    let wish = Wish {
        name: Some("batch".to_owned()),
        additive: false,
        ..add(Wants::Workers { node_type: name("default"), count: 4 }, "", Some(60_000))
    };
    world.ask(|request| Input::Scale { request, wish }).expect("within the bounds");
    let said = world.ask(|request| Input::Drain { request, node: id("w4") }).expect("it may go");
    assert!(said.contains("shrinks by one"), "{said}");
    let ask = &world.brain.asks()[0].ask;
    assert_eq!((ask.name.as_str(), ask.until, ask.reason.as_str()), ("batch", Some(Timestamp(MONDAY + 60_000)), "two lines"));
    world.ask(|request| Input::Quarantine { request, node: id("w2"), reason: String::new() }).expect("set aside");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 4);
    let said = world.ask(|request| Input::Drain { request, node: id("w2") }).expect("it may go");
    assert!(said.contains("no number asks for it"), "{said}");
    world.pass(2_000);
    assert_eq!(world.machines("default"), 3, "those that are well stay");
}

#[test]
fn taking_room_back_disturbs_nobody_who_works() {
    let mut world = World::new(spec(&[("default", kind(1, 6, 4, 100))]));
    world.wish(bundles(&[(3, 4, 0)])).expect("there is room");
    world.ask(|request| Input::Scale { request, wish: add(bundles(&[(1, 4, 0)]), "small", None) }).expect("there is room");
    ["w1", "w2", "w3"].iter().for_each(|n| world.busy(n, 900));
    world.busy("w4", 0);
    world.pass(2_000);
    for ask in ["small", "room"] {
        world.ask(|request| Input::Revoke { request, name: ask.to_owned() }).expect("it stands");
    }
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3, "the idle one goes at once, the others when they are done");
    world.busy("w3", 0);
    world.pass(5_000);
    assert_eq!(world.machines("default"), 2);
}

#[test]
fn a_resource_that_is_gone_is_missed() {
    let licensed = WorkerType { custom: BTreeMap::from([("licence".to_owned(), 1)]), ..kind(0, 3, 4, 100) };
    let mut of = spec(&[("default", licensed)]);
    let mut world = World::new(of.clone());
    let bundle = Bundle { resources: BTreeMap::from([("licence".to_owned(), Quantity::ONE)]), ..Bundle::default() };
    let wants = Wants::Bundles { bundles: vec![Counted { bundle, count: 2 }], gang: false, spread: false };
    world.wish(wants).expect("there is room");
    assert_eq!(world.machines("default"), 2);
    (of.revision, of.workers) = (2, [(name("default"), kind(0, 3, 4, 100))].into());
    world.tell(Input::Specified { spec: of });
    world.pass(1_000);
    assert!(world.brain.asks()[0].unmet.is_some(), "{:?}", world.brain.asks());
}

#[test]
fn a_launch_that_may_still_be_under_way_is_waited_for() {
    let mut world = World::new(spec(&[("default", kind(0, 1, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::Transient);
    world.workers(1).expect("within the bounds");
    // The first call had no answer; that there is nothing for the second says nothing of the first.
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    world.pass(5_000);
    assert_eq!(world.nodes[&id("w1")].life.name(), "terminating");
    world.pass(90_000);
    assert_eq!(world.nodes[&id("w1")].life.name(), "terminating", "it may come yet, and lists may be late too");
    world.pass(60_000);
    assert!(world.nodes[&id("w1")].generation.0 > 1, "then it is asked for anew");
}

#[test]
fn room_does_not_take_what_a_minimum_needs() {
    let mut of = spec(&[("default", kind(1, 2, 4, 100)), ("large", kind(0, 2, 8, 300))]);
    of.max_workers = 1;
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    of.revision = 2;
    world.tell(Input::Specified { spec: of });
    world.wish(bundles(&[(1, 2, 0)])).expect("the minimum's node has room for it");
    world.pass(5_000);
    assert_eq!((world.machines("default"), world.machines("large")), (0, 0), "the only place is the minimum's");
    world.failing.clear();
    world.pass(70_000);
    assert_eq!((world.machines("default"), world.machines("large")), (1, 0));
}

#[test]
fn a_roll_out_waits_for_the_quorum_of_what_it_restarts() {
    let mut spec = spec(&[("default", kind(3, 3, 2, 100))]);
    spec.services[0].membership = Some(Membership { quorum: true, minimum: 1 });
    let mut world = World::new(spec.clone());
    world.pass(120_000);
    assert!(world.nodes.values().all(|n| n.life == NodeState::Ready) && world.machines("default") == 3);
    world.silent.insert(id("w3"));
    let link = world.links.remove(&id("w3"));
    world.pass(5_000);
    assert_ne!(world.nodes[&id("w3")].life, NodeState::Ready);
    spec.revision = 2;
    spec.rolling = true;
    world.tell(Input::Specified { spec });
    world.pass(3_000);
    let revisions = |world: &World| [1, 2, 3].map(|n| world.nodes[&id(&format!("w{n}"))].revision);
    assert_eq!(revisions(&world), [1, 1, 1], "two of three are needed, and one is silent already");
    let waits = world.brain.snapshot().waiting_for.join("; ");
    assert!(waits.contains("run/worker has 1 of 3 members up beside it, and needs 2"), "{waits}");
    world.silent.clear();
    world.links.extend(link.map(|link| (id("w3"), link)));
    world.pass(300_000);
    assert_eq!(revisions(&world), [2, 2, 2]);
}

#[test]
fn what_was_out_of_stock_is_tried_again() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    world.wish(bundles(&[(1, 4, 0)])).expect("it could be had");
    world.pass(30_000);
    assert_eq!((world.calls.len(), world.machines("default")), (1, 0));
    world.failing.clear();
    world.pass(40_000);
    assert_eq!(world.machines("default"), 1, "nothing else happened that could have woken the head up");
}

#[test]
fn a_worker_that_is_missed_or_begins_anew_is_no_idle_one() {
    let mut of = spec(&[("default", kind(1, 4, 4, 100))]);
    of.idle_after_ms = 1_000;
    let mut world = World::new(of.clone());
    world.wish(bundles(&[(3, 4, 0)])).expect("there is room");
    ["w1", "w2", "w3"].iter().for_each(|n| world.busy(n, 900));
    world.pass(5_000);
    world.ask(|request| Input::Revoke { request, name: "room".to_owned() }).expect("it stands");
    let session = world.links.remove(&id("w3")).expect("it is linked");
    world.tell(Input::LinkClosed { session, node: id("w3"), cause: "a blink".to_owned() });
    world.pass(2_000);
    assert_eq!(world.machines("default"), 3, "it works, whoever hears it");
    world.link(&id("w3"));
    of.revision = 2;
    world.tell(Input::Specified { spec: of });
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3, "a new description ends no work");
    world.restart();
    assert_eq!(world.machines("default"), 3, "nor does a head that knows nothing yet");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 3);
    world.busy("w2", 0);
    world.busy("w3", 0);
    world.pass(60_000);
    assert_eq!(world.machines("default"), 1);
}

#[test]
fn what_a_person_looks_at_is_not_deleted_when_it_stops() {
    let mut world = World::new(spec(&[("default", kind(2, 4, 4, 100))]));
    world.pass(5_000);
    world.ask(|request| Input::Quarantine { request, node: id("w1"), reason: String::new() }).expect("it is there");
    let stop = |world: &mut World, node: &str| {
        let machine = world.machines.values_mut().find(|m| m.node == id(node)).expect("it is there");
        machine.state = InstanceState::Stopped;
    };
    stop(&mut world, "w1");
    world.pass(120_000);
    assert_eq!(world.nodes[&id("w1")].life.name(), "quarantined");
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("a person may");
    stop(&mut world, "w2");
    world.pass(120_000);
    assert_eq!(world.machines("default"), 3, "nothing is let go while the head is held");
    assert!(world.said(EventKind::Refusal, "it is kept while the head is held") > 0);
    world.ask(|request| Input::Resume { request }).expect("a person may");
    world.pass(60_000);
    assert!(world.nodes[&id("w2")].life == NodeState::Gone && world.machines("default") == 3, "now it is replaced");
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
    world.tell(Input::Specified { spec: free(2, Some(250)) });
    world.pass(60_000);
    assert_eq!(world.machines("default"), 2);
}

#[test]
fn a_saturated_type_doubles_and_an_even_little_load_lets_go() {
    let mut of = spec(&[("default", kind(1, 20, 4, 100))]);
    (of.policies, of.idle_after_ms) = (vec![Policy { most: 20, ..load_policy() }], 60_000);
    let mut world = World::new(of);
    let busy = |world: &mut World, cpu| (1..=20).for_each(|n| world.busy(&format!("w{n}"), cpu));
    busy(&mut world, 1_000);
    world.pass(150_000);
    assert!(world.machines("default") >= 8, "what is saturated may need any number: {}", world.machines("default"));
    // A quarter of the cores of each, below `low`: so many do what fewer could.
    busy(&mut world, 250);
    let before = world.machines("default");
    world.pass(400_000);
    assert!(world.machines("default") < before, "{before} are still there");
}

#[test]
fn where_room_lies_is_planned_anew_if_that_makes_room() {
    let mut world = World::new(spec(&[("default", kind(2, 4, 1, 100)), ("big", kind(0, 2, 4, 350))]));
    world.wish(bundles(&[(8, 1, 0)])).expect("there is room");
    world.pass(5_000);
    let apart = Wants::Bundles {
        bundles: vec![Counted { bundle: Bundle { cpus: Quantity::ONE, ..Bundle::default() }, count: 3 }],
        gang: true,
        spread: true,
    };
    world.ask(|request| Input::Scale { request, wish: add(apart, "apart", None) }).expect("both fit");
    world.pass(30_000);
    assert!(world.brain.asks().iter().all(|ask| ask.ready), "{:?}", world.brain.asks());
}

#[test]
fn what_was_decided_before_a_hold_is_made_after_it() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::Throttled);
    world.workers(2).expect("there is room");
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("a person may");
    let calls = world.calls.len();
    world.failing.clear();
    world.pass(120_000);
    assert_eq!(world.calls.len(), calls, "nothing is made while the head is held");
    world.ask(|request| Input::Resume { request }).expect("a person may");
    world.pass(60_000);
    assert_eq!(world.machines("default"), 2);
}

#[test]
fn who_speaks_over_a_link_that_was_replaced_is_not_heard() {
    let mut world = World::new(spec(&[("default", kind(2, 2, 4, 100))]));
    world.pass(5_000);
    let old = world.links[&id("w2")];
    world.link(&id("w2"));
    // Somebody else holds the old link: the node itself is silent.
    world.links.insert(id("w2"), old);
    world.silent.insert(id("w2"));
    world.pass(6_000);
    assert_ne!(world.brain.node(&id("w2")).expect("it is known").record.life, NodeState::Ready);
}
