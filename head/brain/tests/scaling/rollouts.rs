//! Roll-outs that fail, and what is held then.

use super::*;

/// Four workers of which one is wanted, all idle: the others are to go after a minute.
fn idle_four() -> (World, Spec) {
    let mut of = spec(&[("default", kind(1, 6, 4, 100))]);
    of.idle_after_ms = 60_000;
    let mut world = World::new(of.clone());
    let more = RequestedCapacity::Workers { node_type: name("default"), count: 3 };
    world.ask(|request| Input::Scale { request, asked: add(more, "job", Some(30_000)) }).expect("fits");
    world.pass(10_000);
    assert_eq!(healthy(&world), 4);
    (world, of)
}

/// Takes another revision, under which the service fails or not.
fn roll(world: &mut World, of: &mut Spec, revision: u64, is_bad: bool) {
    (of.revision, of.rolling) = (revision, true);
    if is_bad {
        world.bad.insert(revision);
    }
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
}

fn healthy(world: &World) -> usize {
    world.nodes.values().filter(|n| n.life == NodeState::Ready).count()
}

fn took(world: &World, revision: u64) -> Vec<String> {
    world.nodes.values().filter(|n| n.revision == revision && n.life != NodeState::Gone).map(|n| n.id.to_string()).collect()
}

fn resume(world: &mut World) -> Result<String, String> {
    world.ask(|request| Input::ResumeRollout { request })
}

#[test]
fn a_revision_that_fails_on_a_node_takes_no_further_one() {
    let (mut world, mut of) = idle_four();
    roll(&mut world, &mut of, 2, true);
    world.pass(3_600_000);
    assert!(healthy(&world) >= 3, "one of four took it: {:?}", world.events.iter().rev().take(12).map(|e| e.message()).collect::<Vec<_>>());
    let status = world.brain.rollout();
    let failure = status.failure.clone().expect("it failed");
    assert_eq!((status.state, status.revision, status.from), (RolloutState::Held, 2, Some(1)));
    assert_eq!((failure.node.as_str(), failure.problem.to_string().as_str()), ("w1", "run/worker crashed: exit status 1"));
    let alarms = world.brain.snapshot().alarms;
    assert!(alarms.iter().any(|a| matches!(a, Alarm::RolloutHeld { revision: 2, node, .. } if *node == id("w1"))), "{alarms:?}");
    assert_eq!(world.told(|what| matches!(what, What::RolloutHeld { revision: 2, .. })), 1);
    assert!(!world.brain.snapshot().waiting_for.is_empty(), "it is not what was asked for");
}

#[test]
fn a_held_roll_out_stays_held_without_the_node_it_failed_on_and_after_a_restart_of_the_head() {
    let (mut world, mut of) = idle_four();
    roll(&mut world, &mut of, 2, true);
    world.pass(20_000);
    world.restart();
    world.pass(20_000);
    assert_eq!(world.brain.rollout().state, RolloutState::Held);
    world.ask(|request| Input::Kill { request, node: id("w1") }).expect("a person may");
    world.pass(600_000);
    world.restart();
    world.pass(600_000);
    assert_eq!((healthy(&world), took(&world, 2)), (3, Vec::<String>::new()), "the three that work stay, and work");
    assert_eq!(world.brain.rollout().failure.map(|f| f.node), Some(id("w1")));
}

/// What is needed while a roll-out is held comes up with what works.
#[test]
fn new_nodes_run_what_worked_while_a_roll_out_is_held() {
    let (mut world, mut of) = idle_four();
    of.services.push(ServicePlacement { key: "more/worker".parse().expect("a key"), ..of.services[0].clone() });
    roll(&mut world, &mut of, 2, true);
    world.pass(20_000);
    world.workers(5).expect("fits");
    world.ask(|request| Input::Kill { request, node: id("w3") }).expect("a person may");
    world.pass(60_000);
    assert_eq!((healthy(&world), took(&world, 2)), (4, vec!["w1".to_owned()]), "two new ones, of revision 1");
}

#[test]
fn a_corrected_revision_goes_to_the_node_first_on_which_the_last_one_failed() {
    let (mut world, mut of) = idle_four();
    of.workers.insert(name("default"), kind(4, 6, 4, 100));
    roll(&mut world, &mut of, 2, true);
    world.pass(20_000);
    roll(&mut world, &mut of, 3, true);
    world.pass(60_000);
    assert_eq!((healthy(&world), took(&world, 3)), (3, vec!["w1".to_owned()]), "no better: no other node learns of it");
    assert_eq!(world.brain.rollout().from, Some(1), "what worked last");
    roll(&mut world, &mut of, 4, false);
    world.pass(60_000);
    assert_eq!((healthy(&world), took(&world, 4).len()), (4, 4));
    assert_eq!(world.brain.rollout().state, RolloutState::Complete);
    assert!(world.cluster.rollout.is_none() && world.brain.snapshot().alarms.is_empty());
}

#[test]
fn a_roll_out_that_is_resumed_is_tried_again_and_goes_on_if_it_works_now() {
    let (mut world, mut of) = idle_four();
    of.workers.insert(name("default"), kind(4, 6, 4, 100));
    resume(&mut world).expect_err("none is held");
    roll(&mut world, &mut of, 2, true);
    world.pass(20_000);
    assert_eq!(resume(&mut world), Ok("the roll-out of revision 2 is tried again".to_owned()));
    assert_eq!(world.brain.rollout().state, RolloutState::Progressing);
    world.pass(20_000);
    assert_eq!((world.brain.rollout().state, healthy(&world)), (RolloutState::Held, 3), "it fails again, and is held again");
    // Somebody mends what was missing on the machines.
    world.bad.clear();
    world.failing_on.clear();
    world.services.insert(id("w1"));
    world.report(&id("w1"));
    world.pass(60_000);
    assert_eq!(took(&world, 2), ["w1"], "it is for a person to say that it goes on");
    resume(&mut world).expect("it is held");
    world.pass(60_000);
    assert_eq!((world.brain.rollout().state, took(&world, 2).len(), healthy(&world)), (RolloutState::Complete, 4, 4));
}

/// Nothing crashes, and nothing becomes ready.
#[test]
fn a_revision_that_never_becomes_ready_is_held_too() {
    let (mut world, mut of) = idle_four();
    of.workers.insert(name("default"), kind(3, 6, 4, 100));
    (of.revision, of.rolling) = (2, true);
    world.never_starts.insert(name("default"));
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(300_000);
    assert_eq!((healthy(&world), took(&world, 2).len()), (3, 1), "what is on trial is not let go as idle");
    world.pass(3_300_000);
    assert!(healthy(&world) >= 3);
    let problem = world.brain.rollout().failure.expect("held").problem;
    assert!(matches!(problem, ServiceProblem::NotReadyInTime { within_s: 600, .. }), "{problem}");
}

/// Who is scaled in before it was known that it fails takes that knowledge along, unless it is written down.
#[test]
fn a_node_that_leaves_while_the_revision_fails_on_it_holds_the_roll_out() {
    let (mut world, mut of) = idle_four();
    roll(&mut world, &mut of, 2, true);
    world.pass(1_000);
    assert_eq!(world.brain.rollout().state, RolloutState::Progressing);
    world.ask(|request| Input::Drain { request, node: id("w1") }).expect("a person may");
    world.pass(600_000);
    assert_eq!((world.brain.rollout().state, healthy(&world)), (RolloutState::Held, 3));
}

#[test]
fn a_roll_out_that_works_ends() {
    let (mut world, mut of) = idle_four();
    roll(&mut world, &mut of, 2, false);
    world.pass(10_000);
    assert_eq!((world.brain.rollout().state, healthy(&world), took(&world, 2).len()), (RolloutState::Complete, 4, 4));
    assert_eq!(world.told(|what| *what == What::RolloutComplete { revision: 2 }), 1);
    // What fails later is no matter of the roll-out.
    world.services.remove(&id("w2"));
    world.failing_on.insert(id("w2"), 0);
    world.pass(40_000);
    assert_eq!(world.brain.rollout().state, RolloutState::Complete);
}

/// Takes another revision that restarts nothing: a check changed, or a service came.
fn adjust(world: &mut World, of: &mut Spec, revision: u64) {
    (of.revision, of.rolling) = (revision, false);
    of.trials = BTreeMap::from([(name("default"), 10_000)]);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
}

#[test]
fn a_check_that_fails_is_tried_on_one_node_and_held_there() {
    let (mut world, mut of) = idle_four();
    world.sickening.insert(2, 8_000);
    adjust(&mut world, &mut of, 2);
    world.pass(7_000);
    assert_eq!((healthy(&world), took(&world, 2)), (4, vec!["w1".to_owned()]), "it works so far, and nobody follows yet");
    world.pass(3_600_000);
    assert_eq!(world.brain.rollout().state, RolloutState::Held);
    assert!(world.brain.rollout().failure.is_some_and(|f| f.node == id("w1")));
    assert!(healthy(&world) >= 3 && took(&world, 2).len() <= 1, "{:?}", took(&world, 2));
    // Undone, as a new revision.
    adjust(&mut world, &mut of, 3);
    world.pass(60_000);
    assert_eq!((world.brain.rollout().state, took(&world, 3).len()), (RolloutState::Complete, healthy(&world)));
}

#[test]
fn a_check_that_works_goes_to_one_node_and_then_to_all_others_at_once() {
    let (mut world, mut of) = idle_four();
    of.workers.insert(name("default"), kind(4, 4, 4, 100));
    adjust(&mut world, &mut of, 2);
    world.pass(9_000);
    assert_eq!((took(&world, 2).len(), world.brain.rollout().state, world.brain.rollout().from), (1, RolloutState::Progressing, Some(1)));
    world.restart();
    world.pass(9_000);
    assert_eq!(took(&world, 2).len(), 1, "a new head saw it work for less long");
    world.pass(2_000);
    assert_eq!((took(&world, 2).len(), healthy(&world)), (4, 4));
    world.pass(1_000);
    assert_eq!(world.brain.rollout().state, RolloutState::Complete);
}

#[test]
fn a_service_that_comes_and_crashes_is_tried_on_one_node() {
    let (mut world, mut of) = idle_four();
    of.workers.insert(name("default"), kind(4, 4, 4, 100));
    world.bad.insert(2);
    adjust(&mut world, &mut of, 2);
    world.pass(600_000);
    assert_eq!((world.brain.rollout().state, healthy(&world), took(&world, 2)), (RolloutState::Held, 3, vec!["w1".to_owned()]));
}

#[test]
fn a_held_roll_out_stays_held_by_a_revision_that_leaves_services_alone() {
    let (mut world, mut of) = idle_four();
    of.workers.insert(name("default"), kind(4, 4, 4, 100));
    roll(&mut world, &mut of, 2, true);
    world.pass(20_000);
    world.bad.insert(3);
    (of.revision, of.rolling, of.max_workers) = (3, false, 50);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of.clone() });
    world.pass(600_000);
    let status = world.brain.rollout();
    assert_eq!((status.state, status.from, healthy(&world)), (RolloutState::Held, Some(1), 3));
    assert!(world.brain.snapshot().alarms.iter().any(|a| matches!(a, Alarm::RolloutHeld { revision: 2, .. })));
    // Tried again, it fails where it failed, and nowhere else.
    resume(&mut world).expect("it is held");
    world.pass(60_000);
    assert_eq!((world.brain.rollout().state, healthy(&world), took(&world, 3)), (RolloutState::Held, 3, vec!["w1".to_owned()]));
    roll(&mut world, &mut of, 4, false);
    world.pass(60_000);
    assert_eq!((world.brain.rollout().state, healthy(&world)), (RolloutState::Complete, 4));
}

#[test]
fn software_that_takes_long_to_fetch_is_no_failure_of_the_revision() {
    let (mut world, mut of) = idle_four();
    of.workers.insert(name("default"), kind(4, 4, 4, 100));
    world.fetching.insert(id("w1"));
    roll(&mut world, &mut of, 2, false);
    for _ in 0..40 {
        world.pass(60_000);
        world.report(&id("w1"));
    }
    assert_eq!((world.brain.rollout().state, took(&world, 2), healthy(&world)), (RolloutState::Progressing, vec!["w1".to_owned()], 3));
    world.fetching.clear();
    world.report(&id("w1"));
    world.pass(60_000);
    assert_eq!((world.brain.rollout().state, healthy(&world)), (RolloutState::Complete, 4));
}

#[test]
fn a_revision_whose_software_cannot_be_fetched_is_held_with_the_cause() {
    let (mut world, mut of) = idle_four();
    world.fetching.insert(id("w1"));
    roll(&mut world, &mut of, 2, false);
    world.pass(10_000);
    assert_eq!((world.brain.rollout().state, took(&world, 2)), (RolloutState::Progressing, vec!["w1".to_owned()]));
    let failed = |world: &mut World, version, tries| {
        let (software, error) = ("web-2".to_owned(), "404 Not Found".to_owned());
        world.tell(Input::SoftwareFailed { node: id("w1"), version, software, error, tries });
    };
    let version = world.versions[&id("w1")];
    failed(&mut world, version, 2);
    failed(&mut world, version - 1, 9);
    assert_eq!(world.brain.rollout().state, RolloutState::Progressing, "once more may help, and an earlier goal says nothing");
    failed(&mut world, version, 3);
    let failure = world.brain.rollout().failure.expect("it is held");
    assert_eq!(failure.problem.to_string(), "the head cannot fetch web-2: 404 Not Found");
    assert_eq!(world.told(|what| matches!(what, What::RolloutHeld { revision: 2, .. })), 1);
    // Tried again, and fetched meanwhile, it goes on.
    world.fetching.clear();
    resume(&mut world).expect("it is held");
    world.report(&id("w1"));
    world.pass(300_000);
    assert_eq!(world.brain.rollout().state, RolloutState::Complete);
}

#[test]
fn a_node_that_comes_back_after_the_roll_out_takes_the_revision_when_the_trial_of_another_is_over() {
    let mut of = spec(&[("default", kind(2, 2, 4, 100))]);
    let mut world = World::new(of.clone());
    world.pass(10_000);
    assert_eq!(healthy(&world), 2);
    world.ask(|request| Input::Quarantine { request, node: id("w2"), reason: String::new() }).expect("a person may");
    world.failing.insert(default_offer(), FailureKind::StockOut);
    for node in world.nodes.keys().filter(|node| **node != id("w2")).cloned().collect::<Vec<_>>() {
        world.ask(|request| Input::Kill { request, node }).expect("a person may");
    }
    of.trials = BTreeMap::from([(name("default"), 20_000)]);
    roll(&mut world, &mut of, 2, false);
    world.pass(5_000);
    assert_eq!(world.brain.rollout().state, RolloutState::Complete, "no node that counts has an older one");
    world.failing.clear();
    while healthy(&world) == 0 {
        assert!(world.now < 1_200_000, "{:?}", world.nodes);
        world.pass(500);
    }
    world.ask(|request| Input::Release { request, node: id("w2") }).expect("it is quarantined");
    world.pass(10_000);
    assert_eq!(world.nodes[&id("w2")].revision, 1, "whether it works is not known yet");
    world.pass(120_000);
    assert_eq!(world.nodes[&id("w2")].revision, 2);
}
