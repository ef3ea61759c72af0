//! Load, schedules and signals.

use super::*;

fn flaps(what: &What) -> bool {
    matches!(what, What::PolicyFlaps { policy, .. } if policy == "busy")
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
    let Source::Policy { policy, count: 2, says } = why else { panic!("{why:?}") };
    assert_eq!(policy, "busy");
    assert!(matches!(says.sees, PolicyView::Load { level: LoadLevel::Above { percent: 80 }, .. }), "{says:?}");
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
    assert_eq!(world.scaled_in("w3"), 0);
}

/// Nodes whose load is not known yet are not too many while the others have too much to do.
#[test]
fn much_load_asks_for_no_fewer() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    let rule = Rule::Load { metric: Metric::Gpu, high: 800, low: 300, window_ms: 30_000 };
    of.policies = vec![Policy { pause_ms: 1_000, rule, ..load_policy() }];
    let mut world = World::new(of);
    world.gpu_load.extend((1..=6).map(|n| (id(&format!("w{n}")), 900)));
    world.pass(200_000);
    assert_eq!(world.machines("default"), 6);
    world.gpu_load = (1..=2).map(|n| (id(&format!("w{n}")), 850)).collect();
    world.pass(120_000);
    let seen = &world.brain.outlook().policies["busy"];
    let is_seen = matches!(seen.sees, PolicyView::Load { metric: Metric::Gpu, percent: 85, nodes: 2, .. });
    assert!(
        is_seen && world.told(|what| matches!(what, What::PolicyChanged(of) if of.before == 6)) == 0,
        "{seen}: {:?}",
        decisions(&world)
    );
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
    assert!(world.told(flaps) > 0);
    let alarms = world.brain.snapshot().alarms;
    assert!(alarms.iter().any(|alarm| matches!(alarm, Alarm::PolicyFlaps { policy, .. } if policy == "busy")), "{alarms:?}");
    let changes = |from: u64| {
        let of_policy = world.events.iter().filter(|e| matches!(&e.what, What::PolicyChanged(of) if of.policy.name == "busy"));
        of_policy.filter(|e| (from..from + 1_800_000).contains(&(e.at.0 - MONDAY))).count()
    };
    let (first, last) = (changes(0), changes(9_000_000));
    assert!(last * 2 < first, "{first} changes in the first half hour, {last} in the last");
    // A calm day, and what comes then is answered at once.
    let busy = |world: &mut World, cpu| (1..=6).for_each(|n| world.busy(&format!("w{n}"), cpu));
    busy(&mut world, 0);
    world.pass(86_400_000);
    assert_eq!(world.machines("default"), 1);
    assert!(world.brain.snapshot().alarms.is_empty(), "{:?}", world.brain.snapshot().alarms);
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
        world.pass(4_000);
        assert_eq!(world.machines("default"), wanted, "new ones have had no time to take work yet: {counts:?}");
        say(&mut world, 0);
        world.pass(300_000);
        assert_eq!(world.machines("default"), 1, "{counts:?}");
    }
}

/// What waits only is counted beside what those have that are at work, once they have had time to take some; who is missed, or
/// known to an earlier head, has its work still.
#[test]
fn what_waits_is_counted_beside_what_runs() {
    let mut of = spec(&[("default", kind(0, 6, 4, 100)), ("source", kind(1, 1, 4, 100))]);
    let rule = Rule::Signal { signal: "run.lag".to_owned(), per_worker: Quantity(1_000), counts: Counts::Waiting };
    of.policies = vec![Policy { rule, pause_ms: 1_000, ..load_policy() }];
    of.idle_after_ms = 600_000;
    let mut world = World::new(of);
    world.pass(20_000);
    let lag = |n: u64| BTreeMap::from([("lag".to_owned(), Quantity(n * 1_000))]);
    world.gauges.insert(id("source-1"), lag(1));
    world.report(&id("source-1"));
    world.pass(5_000);
    assert_eq!(world.machines("default"), 1);
    // Nothing changes but the time: it waits still, though one has been at work for ten seconds.
    world.pass(8_000);
    assert_eq!(world.machines("default"), 2, "{:?}", world.brain.outlook().policies);
    world.pass(12_000);
    let most = world.machines("default");
    assert!(most >= 3);
    world.restart();
    world.report(&id("source-1"));
    world.pass(500);
    let missed: Vec<_> = world.links.keys().filter(|node| node.as_str().starts_with('w')).cloned().collect();
    for node in missed {
        world.silent.insert(node.clone());
        let session = world.links.remove(&node).expect("it is linked");
        world.tell(Input::LinkClosed { session, node, cause: "a blink".to_owned() });
    }
    world.pass(2_000);
    let fewer = world.told(|what| matches!(what, What::PolicyChanged(of) if of.now == 1));
    assert!(fewer <= 1 && world.cluster.policy_wants["busy"].count >= most as u32, "{:?}", decisions(&world));
}

/// Machines that are made and ended again every ten seconds are no calm, however short the pause.
#[test]
fn a_policy_with_a_short_pause_flaps_too() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100)), ("source", kind(1, 1, 4, 100))]);
    let rule = Rule::Signal { signal: "run.cores".to_owned(), per_worker: Quantity(1_000), counts: Counts::All };
    of.policies = vec![Policy { rule, pause_ms: 1_000, ..load_policy() }];
    of.idle_after_ms = 1_000;
    let mut world = World::new(of);
    world.pass(20_000);
    for round in 0..40 {
        let cores = if round % 2 == 0 { 2_000 } else { 0 };
        world.gauges.insert(id("source-1"), BTreeMap::from([("cores".to_owned(), Quantity(cores))]));
        world.report(&id("source-1"));
        world.pass(9_000);
    }
    assert!(world.told(flaps) > 0);
    let turns = world.told(|what| matches!(what, What::PolicyChanged(of) if of.policy.name == "busy"));
    assert!(turns <= 16, "{turns} turns in six minutes");
}

/// When a schedule begins and ends is told, and what a policy saw when it changed its mind.
#[test]
fn what_policies_decide_is_told() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    let hours = Hours { days: vec![0], from: 10 * 60, until: 11 * 60, time_zone: "UTC".to_owned() };
    let rule = Rule::Schedule { hours, workers: Workers::AtLeast(3) };
    of.policies = vec![load_policy(), Policy { name: "morning".to_owned(), rule, ..load_policy() }];
    let mut world = World::new(of);
    world.busy("w1", 900);
    world.pass(24 * 3_600_000);
    let begins = |what: &What| match what {
        What::PolicyBegan { policy, node_type, count: 3, .. } => policy == "morning" && *node_type == name("default"),
        _ => false,
    };
    assert_eq!(world.told(begins), 1, "{:?}", decisions(&world));
    assert_eq!(world.told(|what| matches!(what, What::PolicyEnded { policy, .. } if policy == "morning")), 1);
    let grows = |e: &&Event| match &e.what {
        What::PolicyChanged(of) => {
            (of.policy.name.as_str(), of.before, of.now) == ("busy", 1, 2)
                && matches!(of.says.sees, PolicyView::Load { level: LoadLevel::Above { percent: 80 }, .. })
        }
        _ => false,
    };
    assert!(world.events.iter().any(|e| grows(&e)), "it asks for more: {:?}", decisions(&world));
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
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(5_000);
    assert_eq!(world.machines("other"), 0, "a number for one type is none for another");
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

/// Damping outlives the head.
#[test]
fn a_head_that_starts_again_turns_no_policy_round() {
    let mut of = spec(&[("default", kind(0, 6, 4, 100))]);
    of.policies = vec![Policy { least: 1, pause_ms: 600_000, ..load_policy() }];
    let mut world = World::new(of);
    world.pass(1_000);
    world.busy("w1", 900);
    world.pass(60_000);
    let most = world.machines("default");
    assert!(most >= 2, "{most}");
    (1..=6).for_each(|n| world.busy(&format!("w{n}"), 10));
    world.restart();
    world.pass(120_000);
    assert!(world.cluster.policy_wants["busy"].count >= 2, "less is wanted only ten minutes after more was");
}

/// What an earlier head saw long ago damps nothing.
#[test]
fn what_flapped_long_ago_is_calm() {
    let mut of = spec(&[("default", kind(0, 6, 4, 100))]);
    of.policies = vec![Policy { least: 1, ..load_policy() }];
    let mut world = World::new(of);
    world.pass(172_800_000);
    let want = world.cluster.policy_wants.get_mut("busy").expect("it wants one");
    (want.changed, want.factor) = (Some((Timestamp(MONDAY), false)), 16);
    world.restart();
    world.pass(10_000);
    world.busy("w1", 900);
    world.pass(60_000);
    assert!(world.machines("default") > 1, "more is given at once");
}

/// What those did that left comes to the others at once, and to averages later.
#[test]
fn less_load_is_believed_only_a_window_after_somebody_left() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    (of.policies, of.idle_after_ms) = (vec![Policy { pause_ms: 1_000, ..load_policy() }], 1_000);
    let mut world = World::new(of);
    let more = RequestedCapacity::Workers { node_type: name("default"), count: 3 };
    world.ask(|request| Input::Scale { request, asked: add(more, "job", Some(60_000)) }).expect("fits");
    (1..=4).for_each(|n| world.busy(&format!("w{n}"), 200));
    while world.machines("default") > 2 {
        world.pass(1_000);
        assert!(world.now < 600_000, "two are enough for a fifth of four");
    }
    (1..=2).for_each(|n| world.busy(&format!("w{n}"), 400));
    for _ in 0..120 {
        world.pass(1_000);
        assert_eq!(world.cluster.policy_wants["busy"].count, 2, "two at 40 % are as many as there should be");
    }
}

/// A window of half an hour is covered by what is remembered.
#[test]
fn a_long_window_is_covered() {
    for minutes in [10, 30] {
        let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
        let rule = Rule::Load { metric: Metric::Cpu, high: 800, low: 300, window_ms: minutes * 60_000 };
        of.policies = vec![Policy { rule, ..load_policy() }];
        let mut world = World::new(of);
        for n in 0..7_200 {
            world.busy("w1", 990 + n % 2);
            world.pass(1_000);
        }
        assert!(world.machines("default") > 1, "{minutes} min: {:?}", world.outlook.policies);
    }
}

/// What cannot be had for now takes nothing from a policy.
#[test]
fn a_policy_gives_nothing_up_for_what_cannot_be_had() {
    let mut of = spec(&[("default", kind(0, 5, 4, 100)), ("large", kind(0, 3, 16, 500))]);
    let hours = Hours { days: vec![0, 1, 2, 3, 4, 5, 6], from: 0, until: 1440, time_zone: "UTC".to_owned() };
    of.policies = vec![Policy { rule: Rule::Schedule { hours, workers: Workers::AtLeast(5) }, ..load_policy() }];
    (of.max_workers, of.idle_after_ms) = (5, 60_000);
    let mut world = World::new(of);
    world.failing.insert(("large".to_owned(), Offer::default()), FailureKind::StockOut);
    world.pass(10_000);
    assert_eq!(world.machines("default"), 5);
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(3, 16, 0)]), "large", None) }).expect("there is room");
    // What three large ones may take is left free, and not one of them is to be had.
    let (mut least, mut calls) = (5, world.calls.len());
    for _ in 0..120 {
        world.pass(60_000);
        least = least.min(world.machines("default"));
    }
    calls = world.calls[calls..].iter().filter(|(_, of, _)| of == "default").count();
    assert!(least == 5, "at times {least} of the policy's five are there, none of the others; {calls} calls for its type in two hours");
}

/// What runs and does not say what a policy follows is a thing to look at, and what does not run yet is none.
#[test]
fn a_policy_that_has_nothing_to_follow_says_so() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    let follow = |signal: &str| Rule::Signal { signal: signal.to_owned(), per_worker: Quantity(4_000), counts: Counts::All };
    let policy = |name: &str| Policy { name: name.to_owned(), rule: follow(&format!("{name}.cores")), ..load_policy() };
    of.policies = vec![policy("run"), policy("absent")];
    let mut world = World::new(of);
    world.pass(20_000);
    assert!(world.brain.snapshot().alarms.is_empty(), "it may come yet: {:?}", world.brain.snapshot().alarms);
    world.pass(20_000);
    world.report(&id("w1"));
    let alarms = world.brain.snapshot().alarms;
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    assert!(matches!(&alarms[0], Alarm::PolicyWithoutSignal { policy, .. } if policy == "run"), "{alarms:?}");
    world.gauges.insert(id("w1"), BTreeMap::from([("cores".to_owned(), Quantity(9_000))]));
    world.report(&id("w1"));
    assert!(world.brain.snapshot().alarms.is_empty(), "{:?}", world.brain.snapshot().alarms);
}

/// That it would ask for more than it may is worth knowing.
#[test]
fn a_policy_says_what_its_maximum_cuts_off() {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    let rule = Rule::Signal { signal: "run.cores".to_owned(), per_worker: Quantity(4_000), counts: Counts::All };
    of.policies = vec![Policy { rule, ..load_policy() }];
    let mut world = World::new(of);
    world.pass(10_000);
    world.gauges.insert(id("w1"), BTreeMap::from([("cores".to_owned(), Quantity(40_000))]));
    world.report(&id("w1"));
    world.pass(1_000);
    assert_eq!(world.machines("default"), 6);
    let says = &world.brain.outlook().policies["busy"];
    assert_eq!(says.beyond_max, Some(BeyondMax { asked: 10, max: 6 }), "{says}");
}
