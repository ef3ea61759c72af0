//! What people hold, set aside and look at; roll-outs.

use super::*;

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
    assert_eq!(world.outlook.held, Some(Blocked::OnHold { reason: "the network moves".to_owned() }));
    world.silent.clear();
    world.ask(|request| Input::Resume { request }).expect("resumed");
    world.pass(120_000);
    assert_eq!(world.machines("default"), 3);
}

/// A hold stops drains and sweeps too.
#[test]
fn a_held_head_lets_nothing_go() {
    let mut of = spec(&[("default", kind(1, 4, 4, 100))]);
    of.services[0].drain_ms = 600_000;
    let mut world = World::new(of);
    world.workers(4).expect("fits");
    world.pass(10_000);
    let asked = NewRequest {
        name: None,
        wants: RequestedCapacity::Workers { node_type: name("default"), count: 1 },
        additive: false,
        until: None,
        reason: String::new(),
    };
    world.brain.handle(world.moment(), Input::Scale { request: Request::new(900, Actor::LOCAL), asked });
    world.ask(|request| Input::Hold { request, reason: "a mistake".to_owned() }).expect("held");
    let stray = Instance {
        id: InstanceId::new("i-stray").expect("valid"),
        node: id("w77"),
        ..world.machines.values().next().expect("one").clone()
    };
    world.machines.insert(stray.id.clone(), stray);
    world.pass(1_200_000);
    assert_eq!(world.machines.len(), 5, "three that were draining, and one that nobody knows, were deleted while held");
}

#[test]
fn a_held_head_gives_up_no_launch() {
    let mut world = World::new(spec(&[("default", kind(0, 2, 4, 100))]));
    world.silent.insert(id("w1"));
    world.workers(1).expect("fits");
    world.ask(|request| Input::Hold { request, reason: "looking into it".to_owned() }).expect("held");
    world.pass(400_000);
    assert_eq!(
        world.machines("default"),
        1,
        "while held: {:?}",
        world.events.iter().rev().take(4).map(|e| e.message()).collect::<Vec<_>>()
    );
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
    assert_eq!(world.brain.node(&id("w1")).map(|n| n.record.life.name()), Some(StateName::Ready));
    world.pass(400_000);
    assert_eq!(world.machines("default"), 2, "one too many is scaled in when it is idle");
}

#[test]
fn what_a_person_looks_at_is_not_deleted_when_it_stops() {
    let mut world = World::new(spec(&[("default", kind(2, 4, 4, 100))]));
    world.pass(5_000);
    world.ask(|request| Input::Quarantine { request, node: id("w1"), reason: String::new() }).expect("it is there");
    let stop = |world: &mut World, node: &str| {
        let machine = world.machines.values_mut().find(|m| m.node == id(node)).expect("it is there");
        machine.state = InstanceState::Stopped;
        world.silent.insert(id(node));
        if let Some(session) = world.links.remove(&id(node)) {
            world.tell(Input::LinkClosed { session, node: id(node), cause: "it stopped".to_owned() });
        }
    };
    stop(&mut world, "w1");
    world.pass(120_000);
    assert_eq!(world.nodes[&id("w1")].life.name(), StateName::Quarantined);
    world.ask(|request| Input::Hold { request, reason: String::new() }).expect("a person may");
    stop(&mut world, "w2");
    world.pass(120_000);
    assert_eq!(world.machines("default"), 3, "nothing is scaled in while the head is held");
    assert!(world.told(|what| matches!(what, What::KeptOnHold { .. })) > 0);
    world.ask(|request| Input::Resume { request }).expect("a person may");
    world.pass(60_000);
    assert!(world.nodes[&id("w2")].life == NodeState::Gone && world.machines("default") == 3, "now it is replaced");
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
    world.tell(Input::Specified { actor: Actor::LOCAL, spec });
    world.pass(3_000);
    let revisions = |world: &World| [1, 2, 3].map(|n| world.nodes[&id(&format!("w{n}"))].revision);
    assert_eq!(revisions(&world), [1, 1, 1], "two of three are needed, and one is silent already");
    let waits: Vec<String> = world.brain.snapshot().waiting_for.iter().map(ToString::to_string).collect();
    let waits = waits.join("; ");
    assert!(waits.contains("run/worker has 1 of 3 members up beside it, and needs 2"), "{waits}");
    world.silent.clear();
    world.links.extend(link.map(|link| (id("w3"), link)));
    world.pass(300_000);
    assert_eq!(revisions(&world), [2, 2, 2]);
}

#[test]
fn a_roll_out_waits_for_no_launch() {
    let mut of = spec(&[("default", kind(3, 3, 4, 100)), ("gpu", kind(0, 1, 4, 100))]);
    let mut world = World::new(of.clone());
    world.pass(5_000);
    world.failing.insert(("gpu".to_owned(), Offer::default()), FailureKind::Transient);
    of.workers.insert(name("gpu"), kind(1, 1, 4, 100));
    (of.revision, of.rolling) = (2, true);
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
    world.pass(3_600_000);
    let behind: Vec<String> = world.nodes.values().filter(|n| n.revision < 2).map(|n| n.id.to_string()).collect();
    assert!(
        behind.is_empty(),
        "after an hour these have not taken the revision: {behind:?}; waits for {:?}",
        world.brain.snapshot().waiting_for
    );
}

/// What was set aside and comes back is of use to what waits.
#[test]
fn what_is_taken_back_from_aside_serves_who_waits() {
    let mut of = spec(&[("default", kind(0, 3, 4, 100))]);
    of.max_workers = 3;
    let mut world = World::new(of);
    world.scale(gang(3, 4)).expect("there is room");
    world.pass(10_000);
    world.ask(|request| Input::Quarantine { request, node: id("w1"), reason: String::new() }).expect("it is there");
    world.pass(1_000);
    let unmet = world.brain.request_views()[0].unmet.clone().expect("two are too few");
    let aside = UnmetCause::Quarantined { nodes: vec![id("w1")] };
    assert!(matches!(&unmet, Shortfall::NoRoom { why, .. } if why.contains(&aside)), "{unmet:?}");
    let refusal = world.ask(|request| Input::Release { request, node: id("w2") }).expect_err("it is not");
    assert_eq!(refusal, "w2 is not quarantined; quarantined: w1");
    world.pass(4_000);
    world.ask(|request| Input::Release { request, node: id("w1") }).expect("it is set aside");
    world.pass(10_000);
    assert!(world.brain.is_ready("room"), "{:?}", world.brain.request_views()[0].unmet);
    assert_eq!(world.nodes.values().filter(|n| n.generation == Generation(1) && n.life == NodeState::Ready).count(), 3);
}

/// Whatever is asked for, taken or refused, says who asked; what the brain decides by itself names nobody.
#[test]
fn events_say_who_asked() {
    use cloudtik_model::access::Role;
    let mut world = World::new(spec(&[("default", kind(1, 1, 4, 100))]));
    world.pass(10_000);
    let ann = Actor::Administrator { name: "ann".parse().expect("a name"), role: Role::Operator };
    let request = |number| Request::new(number, ann.clone());
    let asked = |count| add(RequestedCapacity::More { node_type: name("default"), count }, "of-ann", None);
    let all = [
        Input::Hold { request: request(1), reason: String::new() },
        Input::Resume { request: request(2) },
        Input::Scale { request: request(3), asked: asked(2) },
        Input::Scale { request: request(4), asked: asked(9) },
        Input::Kill { request: request(5), node: id("w1") },
        Input::Noted { actor: ann.clone(), node: id("w1"), what: What::Exec { program: "true".to_owned() } },
    ];
    for input in all {
        let known = world.events.len();
        world.tell(input.clone());
        let told = world.events[known..].iter().find(|e| matches!(e.kind, EventKind::Request | EventKind::Refusal));
        assert_eq!(told.and_then(|event| event.actor.as_ref()), Some(&ann), "{input:?}");
    }
    assert!(world.events.iter().filter(|e| e.kind == EventKind::Decision).all(|e| e.actor.is_none()));
}
