//! What the provider has and bears: stock, pace, prices, types that fail, launches whose outcome is open.

use super::*;

fn is_paused(what: &What) -> bool {
    matches!(what, What::TypePaused { node_type, .. } if node_type.as_str() == "default")
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
    world.scale(bundles(&[(1, 4, 0)])).expect("it could be had");
    let tried: Vec<String> = world.calls.iter().map(|(_, of, offer)| format!("{of} {offer}")).collect();
    let mut expected: Vec<String> = all("spot").into_iter().chain(all("on-demand")).map(|o| format!("default {o}")).collect();
    expected.push("other on-demand".to_owned());
    assert_eq!(tried, expected);
    assert_eq!((world.machines("default"), world.machines("other")), (0, 1));
    assert_eq!(world.told(|what| matches!(what, What::OfferUnavailable { pause_s: 60, .. })), 4);
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
    assert_eq!(world.told(|what| is_paused(what) && matches!(what, What::TypePaused { pause_s: 300, .. })), 1);
    assert!(
        matches!(&world.brain.snapshot().alarms[0], Alarm::TypePaused { node_type, .. } if *node_type == name("default")),
        "it is shown"
    );
    world.scale(bundles(&[(3, 4, 0)])).expect("it could be had");
    assert_eq!(world.machines("other"), 1, "others go on");
    world.restart();
    assert_eq!(world.calls.len(), calls + 1, "a restart ends no pause");
    world.failing.clear();
    world.ask(|request| Input::Resume { request }).expect("a person may");
    world.pass(1_000);
    assert_eq!(world.machines("default"), 4);
    assert_eq!(world.told(is_paused), 1, "what was under way meanwhile says nothing new");
}

#[test]
fn a_launch_that_may_still_be_under_way_is_waited_for() {
    let mut world = World::new(spec(&[("default", kind(0, 1, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::Transient);
    world.workers(1).expect("within the bounds");
    // The first call had no answer; that there is nothing for the second says nothing of the first.
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    world.pass(5_000);
    assert_eq!(world.nodes[&id("w1")].life.name(), StateName::Terminating);
    world.pass(90_000);
    assert_eq!(world.nodes[&id("w1")].life.name(), StateName::Terminating, "it may come yet, and lists may be late too");
    world.pass(60_000);
    assert!(world.nodes[&id("w1")].generation.0 > 1, "then it is asked for anew");
}

#[test]
fn what_was_out_of_stock_is_tried_again() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    world.scale(bundles(&[(1, 4, 0)])).expect("it could be had");
    world.pass(30_000);
    assert_eq!((world.calls.len(), world.machines("default")), (1, 0));
    world.failing.clear();
    world.pass(40_000);
    assert_eq!(world.machines("default"), 1, "nothing else happened that could have woken the head up");
}

/// That what was launched before a stock-out has booted does not end its cool-down.
#[test]
fn a_boot_that_ends_says_nothing_of_stock() {
    let mut world = World::new(spec(&[("default", kind(0, 30, 4, 100))]));
    for n in 1..=10 {
        world.silent.insert(id(&format!("w{n}")));
    }
    world.workers(10).expect("fits");
    assert_eq!(world.machines("default"), 10);
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    world.workers(30).expect("fits");
    let before = world.calls.len();
    assert_eq!(before, 30);
    // The ten boot, one each second.
    for n in 1..=10 {
        world.silent.remove(&id(&format!("w{n}")));
        world.link(&id(&format!("w{n}")));
        world.pass(1_000);
    }
    assert_eq!(world.calls.len() - before, 0, "an offer of which there is none is left alone for a minute");
}

/// Spot machines that are taken away while they boot fall over to on demand.
#[test]
fn spot_machines_that_are_taken_away_fall_over_to_on_demand() {
    let spot = WorkerType { spot: Some(Spot { price: Some(MoneyPerHour(30_000)), or_on_demand: true }), ..kind(0, 4, 4, 100) };
    let mut world = World::new(spec(&[("default", spot)]));
    world.silent.extend((1..=8).map(|n| id(&format!("w{n}"))));
    world.workers(2).expect("fits");
    for _ in 0..7_200 {
        world.pass(1_000);
        // Whatever is bought as spot is taken away before it is up.
        let spot: Vec<InstanceId> = world
            .machines
            .values()
            .filter(|m| world.nodes[&m.node].offer.market == cloudtik_model::spec::Market::Spot)
            .map(|m| m.id.clone())
            .collect();
        for instance in spot {
            world.machines.get_mut(&instance).expect("there").state = InstanceState::Stopped;
        }
    }
    let on_demand = world.calls.iter().filter(|(_, _, o)| o.market == cloudtik_model::spec::Market::OnDemand).count();
    assert!(
        on_demand > 0,
        "in two hours {} spot machines were bought and none on demand: {:?}",
        world.calls.len(),
        world.brain.snapshot().alarms
    );
}

/// A price that rises while a call is under way leaves nothing that nobody ends.
#[test]
fn a_price_that_rose_during_a_call_strands_nobody() {
    let mut of = spec(&[("default", kind(0, 5, 4, 300)), ("other", kind(0, 5, 4, 350))]);
    of.budget = Some(MoneyPerHour(400_000));
    let mut world = World::new(of.clone());
    let asked = add(bundles(&[(1, 4, 0)]), "job", None);
    let step = world.brain.handle(world.moment(), Input::Scale { request: Request::new(900, Actor::LOCAL), asked });
    assert!(step.actions.iter().any(|a| matches!(a, Action::Create { .. })));
    of.revision = 2;
    of.workers.insert(name("default"), kind(0, 5, 4, 500));
    world.now += 100;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.now += 100;
    world.tell(Input::Created { node: id("w1"), generation: Generation(1), result: Err(throttled()) });
    world.pass(3_600_000);
    let snapshot = world.brain.snapshot();
    let nodes: Vec<String> =
        snapshot.nodes.iter().map(|n| format!("{} {} at {:?}", n.record.id, n.record.life.name(), n.record.price)).collect();
    assert_eq!(
        world.machines("other"),
        1,
        "after an hour: {nodes:?}, unmet {:?}, cost {:?}",
        snapshot.outlook.unmet,
        snapshot.outlook.cost
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
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
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

/// Orphans are deleted at the provider's pace.
#[test]
fn orphans_are_deleted_at_the_provider_s_pace() {
    let mut world = World::new(spec(&[("default", kind(1, 1, 4, 100))]));
    world.pass(1_000);
    let orphans: Vec<Instance> = (0..500)
        .map(|n| Instance {
            id: InstanceId::new(format!("o-{n}")).expect("valid"),
            node: id(&format!("w{}", n + 10)),
            generation: Generation(1),
            address: None,
            state: InstanceState::Running,
        })
        .collect();
    let (mut deletes, end) = (0, world.now + 60_000);
    let mut waiting = vec![];
    while world.now < end {
        world.now = world.brain.next_wake().min(end);
        waiting.push(Input::Tick);
        while let Some(input) = waiting.pop() {
            for action in world.brain.handle(world.moment(), input).actions {
                match action {
                    Action::ListInstances { number } => {
                        let all = world.machines.values().chain(&orphans).cloned().collect();
                        waiting.push(Input::Listed { number, result: Ok(all) });
                    }
                    Action::Delete { node, generation, instance } => {
                        deletes += 1;
                        waiting.push(Input::Deleted { node, generation, instance, result: Err(throttled()) });
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(deletes < 1_500, "{deletes} calls in a minute, each of which the provider called one too many");
}

/// The deletion of a duplicate is not taken for the node's own.
#[test]
fn the_end_of_a_duplicate_is_not_the_node_s_own() {
    let mut world = World::new(spec(&[("default", kind(1, 1, 4, 100))]));
    world.pass(5_000);
    // A repeated launch made a second machine of the same key.
    let twin = Instance { id: InstanceId::new("i-twin").expect("valid"), ..world.machines.values().next().expect("one").clone() };
    world.machines.insert(twin.id.clone(), twin.clone());
    world.brain.handle(world.moment(), Input::Kill { request: Request::new(900, Actor::LOCAL), node: id("w1") });
    // The provider takes its time to delete w1; the twin is swept meanwhile.
    let mut most = 0;
    for _ in 0..60 {
        world.pass(1_000);
        most = most.max(world.machines.values().filter(|m| m.node == id("w1") && m.id != twin.id).count());
    }
    let told: Vec<_> = world.events.iter().rev().take(6).map(|e| e.message()).collect();
    assert_eq!(most, 1, "the maximum is one, the twin not counted: {told:?}");
}

#[test]
fn nothing_is_made_of_a_type_that_is_gone() {
    let mut of = spec(&[("default", kind(0, 3, 4, 100)), ("old", kind(3, 3, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 1 });
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    world.failing.insert(("old".to_owned(), Offer::default()), FailureKind::Throttled);
    of.revision = 2;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    of.revision = 3;
    of.workers.remove(&name("old"));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    let from = world.calls.len();
    world.failing.clear();
    world.pass(60_000);
    assert!(world.calls[from..].iter().all(|(_, of, _)| of != "old"), "calls for a type that is gone: {:?}", &world.calls[from..]);
}

/// A list that lags ends no machine that is heard.
#[test]
fn a_list_that_lags_ends_nobody_who_is_heard() {
    let mut world = World::new(spec(&[("default", kind(3, 3, 4, 100))]));
    world.services.clear();
    (1..=3).for_each(|n| world.busy(&format!("w{n}"), 900));
    world.pass(60_000);
    world.machines.values_mut().find(|m| m.node == id("w2")).expect("there").state = InstanceState::Stopped;
    let mut lost = false;
    for _ in 0..40 {
        world.pass(1_000);
        lost |= world.lost_an_instance();
    }
    assert!(!lost, "w2 was linked, heard each second and at 90 % all the while");
}

/// Members of a group that the provider stopped are not all deleted with their disks.
#[test]
fn members_that_are_stopped_keep_their_disks() {
    let mut of = spec(&[("default", kind(3, 3, 4, 100))]);
    of.services[0].membership = Some(Membership { quorum: true, minimum: 3 });
    let mut world = World::new(of);
    world.pass(60_000);
    for machine in world.machines.values_mut() {
        machine.state = InstanceState::Stopped;
        world.silent.insert(machine.node.clone());
    }
    for (node, session) in std::mem::take(&mut world.links) {
        world.tell(Input::LinkClosed { session, node, cause: "stopped".to_owned() });
    }
    world.pass(60_000);
    assert!(!world.lost_an_instance(), "the disks of all three members are gone");
}

/// A machine that costs money and never is of use is given up.
#[test]
fn what_fails_again_and_again_while_it_prepares_is_given_up() {
    let mut world = World::new(spec(&[("default", WorkerType { priority: 5, ..kind(0, 3, 4, 100) }), ("other", kind(0, 3, 4, 200))]));
    world.never_starts.insert(name("default"));
    world.scale(bundles(&[(1, 4, 0)])).expect("fits");
    world.pass(3_600_000);
    let is_told =
        |what: &What| matches!(what, What::TypePaused { why: Reason::ServiceFailed { service, tries: 7, .. }, .. } if *service == key());
    assert!(world.told(is_told) > 0, "the type is paused, and why is said");
    assert_eq!(world.machines("other"), 1, "the work has its room elsewhere");
}

/// A link that blinks gives no new time.
#[test]
fn what_fails_while_its_link_blinks_is_given_up_too() {
    let mut world = World::new(spec(&[("default", kind(0, 3, 4, 100))]));
    world.never_starts.insert(name("default"));
    world.workers(1).expect("fits");
    for _ in 0..12 {
        world.pass(60_000);
        if let Some(session) = world.links.remove(&id("w1")) {
            world.tell(Input::LinkClosed { session, node: id("w1"), cause: "a blink".to_owned() });
            world.link(&id("w1"));
        }
    }
    assert_eq!(world.nodes[&id("w1")].life, NodeState::Gone, "ten minutes after it began");
}

#[test]
fn machines_are_deleted_at_the_provider_s_pace() {
    let mut world = World::new(spec(&[("default", kind(0, 50, 4, 100))]));
    world.workers(50).expect("fits");
    world.pass(5_000);
    world.refuses_deletions = true;
    world.workers(0).expect("less");
    world.pass(60_000);
    assert!(world.deletions > 5 && world.deletions < 150, "{} calls in a minute, each of which was one too many", world.deletions);
    world.refuses_deletions = false;
    world.pass(600_000);
    assert_eq!(world.machines("default"), 0);
}

/// A gang waits for its own stock-outs, not for those of another that had its name.
#[test]
fn a_smaller_gang_of_the_same_name_does_not_wait() {
    let mut world = World::new(spec(&[("default", kind(0, 9, 4, 100)), ("other", kind(0, 9, 2, 100))]));
    world.failing.insert(("default".to_owned(), Offer::default()), FailureKind::StockOut);
    world.ask(|request| Input::Scale { request, asked: add(gang(3, 4), "room", None) }).expect("fits");
    world.pass(1_000);
    let is_later = |cause: &UnmetCause| matches!(cause, UnmetCause::TriedLater { .. });
    assert!(world.outlook.unmet[0].why.iter().any(is_later), "{:?}", world.outlook.unmet);
    world.ask(|request| Input::Scale { request, asked: add(gang(3, 2), "room", None) }).expect("fits");
    assert_eq!(world.machines("other"), 3);
}

/// A list that was asked for before a machine was made says nothing of it, where lists hide nothing either.
#[test]
fn a_list_of_the_past_loses_nobody() {
    let config = Config { visibility: 0, ..Config::default() };
    let moment = |mono: u64| Moment { mono, wall: Timestamp(MONDAY + mono) };
    let mut brain = Brain::restore(config, Epoch(1), Memory::default(), moment(0));
    let started = brain.handle(moment(0), Input::Started).actions;
    let number = started.iter().find_map(|action| if let Action::ListInstances { number } = action { Some(*number) } else { None });
    let created =
        brain.handle(moment(10), Input::Specified { actor: Actor::LOCAL, spec: spec(&[("default", kind(1, 1, 4, 100))]) }).actions;
    assert!(created.iter().any(|action| matches!(action, Action::Create { .. })), "{created:?}");
    let (node, generation) = (id("w1"), Generation(1));
    let instance = Instance {
        id: InstanceId::new("i-1").expect("valid"),
        node: node.clone(),
        generation,
        address: Some("10.0.0.1".to_owned()),
        state: InstanceState::Running,
    };
    brain.handle(moment(20), Input::Created { node: node.clone(), generation, result: Ok(instance) });
    brain.handle(moment(30), Input::Listed { number: number.expect("a head that starts looks"), result: Ok(Vec::new()) });
    assert_eq!(brain.node(&node).expect("it is there").record.life, NodeState::Launched);
}

/// Lists go on showing what is being deleted, and for a while what is gone.
#[test]
fn an_orphan_is_asked_to_be_deleted_once() {
    let mut world = World::new(spec(&[("default", kind(1, 1, 4, 100))]));
    world.pass(1_000);
    let orphan =
        Instance { id: InstanceId::new("stray").expect("valid"), node: id("w7"), ..world.machines.values().next().expect("one").clone() };
    let (mut calls, mut told, end) = (0, 0, world.now + 80_000);
    let mut waiting = Vec::new();
    while world.now < end {
        world.now = world.brain.next_wake().min(end);
        waiting.push(Input::Tick);
        if calls == 1 && world.now > 40_000 {
            calls += 100;
            waiting.push(Input::Deleted { node: id("w7"), generation: Generation(1), instance: orphan.id.clone(), result: Ok(()) });
        }
        while let Some(input) = waiting.pop() {
            let step = world.brain.handle(world.moment(), input);
            told += step.records.iter().filter(|r| matches!(r, Record::Event(Event { what: What::DeleteOrphan { .. }, .. }))).count();
            for action in step.actions {
                match action {
                    Action::ListInstances { number } => {
                        let all = world.machines.values().chain([&orphan]).cloned().collect();
                        waiting.push(Input::Listed { number, result: Ok(all) });
                    }
                    Action::Delete { .. } => calls += 1,
                    _ => {}
                }
            }
        }
    }
    assert_eq!((calls, told), (101, 1), "one call, which took 40 s, and one event");
}

/// No machine is asked for in a zone that the description does not have any more.
#[test]
fn nothing_is_made_of_an_offer_that_is_gone() {
    let zoned = |zones: &[&str]| WorkerType { zones: zones.iter().map(|z| (*z).to_owned()).collect(), ..kind(1, 4, 4, 100) };
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    let mut of = spec(&[("default", zoned(&["a", "b"]))]);
    let in_a = ("default".to_owned(), Offer { zone: Some("a".to_owned()), ..Offer::default() });
    world.failing.insert(in_a.clone(), FailureKind::Throttled);
    of.revision = 2;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    assert_eq!(world.machines.len(), 0);
    world.failing.clear();
    (of.revision, of.workers) = (3, BTreeMap::from([(name("default"), zoned(&["b"]))]));
    let calls = world.calls.len();
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(120_000);
    let in_a: Vec<_> = world.calls[calls..].iter().filter(|(.., offer)| *offer == in_a.1).collect();
    assert!(in_a.is_empty(), "asked for in a zone that is not in the description any more: {in_a:?}");
    assert_eq!(world.machines("default"), 1);
}

/// The same for spot machines: the description wants none any more.
#[test]
fn no_spot_machine_is_made_when_none_is_wanted_any_more() {
    let spot = WorkerType { spot: Some(Spot { price: Some(MoneyPerHour(10_000)), or_on_demand: false }), ..kind(1, 4, 4, 100) };
    let mut world = World::new(spec(&[("default", kind(0, 0, 4, 100))]));
    let mut of = spec(&[("default", spot)]);
    let offer = Offer { market: cloudtik_model::spec::Market::Spot, zone: None };
    world.failing.insert(("default".to_owned(), offer.clone()), FailureKind::Throttled);
    of.revision = 2;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    world.failing.clear();
    (of.revision, of.workers) = (3, BTreeMap::from([(name("default"), kind(1, 4, 4, 100))]));
    let calls = world.calls.len();
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(120_000);
    assert!(world.calls[calls..].iter().all(|(.., of)| *of != offer), "{:?}", &world.calls[calls..]);
}

/// An offer of which there is none is left alone also by what was decided before that was known.
#[test]
fn what_is_out_of_stock_is_left_alone_by_what_waits() {
    let zoned = WorkerType { zones: vec!["a".to_owned(), "b".to_owned()], ..kind(0, 60, 4, 100) };
    let mut world = World::new(spec(&[("default", zoned)]));
    let offer = |zone: &str| ("default".to_owned(), Offer { zone: Some(zone.to_owned()), ..Offer::default() });
    world.failing.insert(offer("a"), FailureKind::Throttled);
    world.workers(30).expect("fits");
    world.pass(100);
    world.failing.insert(offer("a"), FailureKind::StockOut);
    let calls = world.calls.len();
    world.pass(58_000);
    let in_a = world.calls[calls..].iter().filter(|(.., of)| *of == offer("a").1).count();
    assert!(in_a <= 3, "{in_a} calls for what there is none of within a minute, {} machines", world.machines("default"));
}

/// A provider that says to wait for ever is asked again.
#[test]
fn a_provider_that_says_to_wait_for_ever_is_asked_again() {
    let mut world = World::new(spec(&[("default", kind(0, 4, 4, 100))]));
    world.failing.insert(default_offer(), FailureKind::Transient);
    world.workers(1).expect("fits");
    for kind in [FailureKind::Transient, FailureKind::Throttled] {
        let failure = Failure { message: "later".to_owned(), retry_after: Some(u64::MAX), kind };
        world.tell(Input::Created { node: id("w1"), generation: Generation(1), result: Err(failure) });
        world.pass(1_000);
    }
}

/// A clock that is set back buys no machines again and again that turn out smaller than the first was.
#[test]
fn a_clock_that_is_set_back_buys_no_small_machines_again_and_again() {
    for set_back in [0, 3_600_000] {
        let mut world = World::new(spec(&[("default", detected(0, 12, 100))]));
        world.silent.insert(id("w1"));
        world.pass(5_000);
        world.workers(1).expect("fits");
        world.silent.clear();
        world.link_with(&id("w1"), 8);
        world.pass(5_000);
        world.set_back = set_back;
        world.ask(|request| Input::Scale { request, asked: add(bundles(&[(2, 8, 0)]), "job", None) }).expect("there is room");
        world.pass(600_000);
        assert!(world.calls.len() <= 4, "set back by {set_back}: {} machines were asked for", world.calls.len());
    }
}

/// A pause ends when its time is over, whatever becomes of the clock.
#[test]
fn a_clock_that_is_set_back_pauses_no_type_for_longer() {
    for set_back in [0, 3_000_000] {
        let mut world = World::new(spec(&[("default", kind(0, 10, 4, 100))]));
        world.pass(3_600_000);
        world.failing.insert(default_offer(), FailureKind::Permanent);
        world.workers(3).expect("fits");
        world.pass(5_000);
        assert!(world.cluster.paused.contains_key(&name("default")));
        world.failing.clear();
        world.set_back = set_back;
        world.pass(400_000);
        assert_eq!(world.machines("default"), 3, "set back by {set_back}: {:?}", world.cluster.paused);
    }
}

/// A gang falls over to another zone, purchase option or type as anybody does.
#[test]
fn a_gang_falls_over_to_the_next_offer() {
    let zoned = WorkerType { zones: vec!["a".to_owned(), "b".to_owned()], ..kind(0, 9, 4, 100) };
    let spot = WorkerType { spot: Some(Spot { price: Some(MoneyPerHour(50_000)), or_on_demand: true }), ..kind(0, 9, 4, 100) };
    let in_a = Offer { zone: Some("a".to_owned()), ..Offer::default() };
    let as_spot = Offer { market: cloudtik_model::spec::Market::Spot, zone: None };
    let cases = [
        (vec![("default", zoned)], in_a),
        (vec![("default", spot)], as_spot),
        (vec![("default", kind(0, 9, 4, 100)), ("other", kind(0, 9, 4, 120))], Offer::default()),
    ];
    for (types, out) in cases {
        let mut world = World::new(spec(&types));
        world.failing.insert(("default".to_owned(), out.clone()), FailureKind::StockOut);
        world.scale(gang(3, 4)).expect("there is room");
        world.pass(10_000);
        assert!(world.brain.is_ready("room"), "{out}: {:?}", world.brain.request_views()[0].unmet);
        assert_eq!(world.machines.len(), 3, "{out}");
    }
}

/// That one machine of a type has less than the others says nothing of the type.
#[test]
fn one_odd_machine_spoils_no_type() {
    let mut world = World::new(spec(&[("default", detected(1, 4, 100))]));
    world.pass(20_000);
    world.silent.insert(id("w2"));
    put(&mut world, "a", bundles(&[(2, 2, 0)]), None).expect("fits");
    world.silent.remove(&id("w2"));
    world.link_with(&id("w2"), 1);
    world.pass(60_000);
    assert!(world.brain.is_ready("a"), "{:?} {}", unmet(&world), world.calls.len());
    assert_eq!(world.calls.len(), 3);
}
