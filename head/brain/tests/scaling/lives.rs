//! Lives full of trouble, after which everything is well: nothing is missing, and nothing moves any more.

use super::*;

/// Lives that are lived unless `CLOUDTIK_LIVES` says otherwise.
const SEEDS: u64 = 40;

fn generous(revision: u64) -> Spec {
    let zoned = WorkerType {
        zones: vec!["a".to_owned(), "b".to_owned()],
        spot: Some(Spot { price: Some(MoneyPerHour(60_000)), or_on_demand: true }),
        ..kind(1, 40, 8, 190)
    };
    let mut of = spec(&[("default", kind(1, 60, 4, 100)), ("gpu", with_gpus(0, 30)), ("zoned", zoned)]);
    (of.revision, of.idle_after_ms) = (revision, 60_000);
    of
}

fn live(seed: u64, trace: bool) -> Result<(), String> {
    let mut dice = Dice::of_seed(seed);
    let mut revision = 1;
    let mut world = World::new(generous(revision));
    world.checks = true;
    let say = |what: String| {
        if trace {
            println!("{what}")
        }
    };
    let offers: Vec<(String, Offer)> = ["default", "gpu", "zoned"]
        .iter()
        .flat_map(|of| generous(1).workers[&name(of)].offers().into_iter().map(move |(offer, _)| ((*of).to_owned(), offer)))
        .collect();
    let kinds = [FailureKind::StockOut, FailureKind::Transient, FailureKind::Throttled, FailureKind::Permanent, FailureKind::Quota];
    for _ in 0..60 {
        for node in world.machines.values().map(|m| m.node.to_string()).collect::<Vec<_>>() {
            if dice.roll(6) == 0 {
                world.busy(&node, dice.roll(1_000) as u32);
            }
        }
        let all: Vec<_> = world.nodes.keys().cloned().collect();
        let some = all[dice.roll(all.len() as u64) as usize].clone();
        let requests: Vec<String> = world.requests.keys().cloned().collect();
        let op = dice.roll(18);
        say(format!("{} op {op} {some}", world.now));
        match op {
            0..=3 => {
                let shapes: Vec<(u32, u64, u64)> = (0..1 + dice.roll(2))
                    .map(|_| (1 + dice.roll(4) as u32, 1 + dice.roll(4), if dice.roll(5) == 0 { 1 } else { 0 }))
                    .collect();
                let RequestedCapacity::Bundles { bundles, .. } = bundles(&shapes) else { continue };
                let wants = RequestedCapacity::Bundles { bundles, gang: dice.roll(3) == 0, spread: dice.roll(4) == 0 };
                let until = (dice.roll(3) == 0).then(|| world.now + 1_000 + dice.roll(1_000_000));
                let named = format!("r{}", dice.roll(12));
                let said = world.ask(|request| Input::Scale { request, asked: add(wants.clone(), &named, until) });
                say(format!("  {named} {wants} until {until:?}: {said:?}"));
            }
            4 => {
                let of = ["default", "gpu", "zoned"][dice.roll(3) as usize];
                let wants = RequestedCapacity::Workers { node_type: name(of), count: 1 + dice.roll(5) as u32 };
                let said = world.ask(|request| Input::Scale {
                    request,
                    asked: NewRequest { name: None, wants, additive: dice.roll(2) == 0, until: None, reason: String::new() },
                });
                say(format!("  {said:?}"));
            }
            5 | 6 if !requests.is_empty() => {
                let named = requests[dice.roll(requests.len() as u64) as usize].clone();
                let _ = world.ask(|request| Input::Revoke { request, name: named, now: true });
            }
            7 => {
                let offer = offers[dice.roll(offers.len() as u64) as usize].clone();
                world.failing.insert(offer, kinds[dice.roll(5) as usize]);
            }
            8 => world.failing.clear(),
            9 => world.restart(),
            10 => drop(world.ask(|request| Input::Kill { request, node: some })),
            11 => drop(world.ask(|request| Input::Drain { request, node: some })),
            12 => drop(world.ask(|request| Input::Quarantine { request, node: some, reason: String::new() })),
            13 => drop(world.ask(|request| Input::Release { request, node: some })),
            14 => drop(world.ask(|request| Input::Hold { request, reason: String::new() })),
            15 => drop(world.ask(|request| Input::Resume { request })),
            16 => {
                if world.silent.len() < 2
                    && let Some(session) = world.links.remove(&some)
                {
                    world.silent.insert(some.clone());
                    world.tell(Input::LinkClosed { session, node: some, cause: "it hangs".to_owned() });
                }
            }
            17 => {
                revision += 1;
                let mut of = generous(revision);
                if dice.roll(2) == 0 {
                    of.max_workers = 5 + dice.roll(10) as u32;
                }
                if dice.roll(3) == 0 {
                    let hours = Hours { days: vec![0, 1, 2, 3, 4, 5, 6], from: 0, until: 20, time_zone: "Europe/Berlin".to_owned() };
                    let rule = Rule::Schedule { hours, workers: Workers::AtLeast(1 + dice.roll(6) as u32) };
                    of.policies = vec![load_policy(), Policy { name: "night".to_owned(), node_type: name("zoned"), rule, ..load_policy() }];
                }
                if dice.roll(3) == 0 {
                    of.services[0].membership = Some(Membership { quorum: true, minimum: dice.roll(4) as u32 });
                }
                if dice.roll(3) == 0 {
                    of.workers.get_mut(&name("zoned")).expect("there").zones = vec!["b".to_owned()];
                    of.workers.get_mut(&name("default")).expect("there").max = 2 + dice.roll(5) as u32;
                }
                if dice.roll(3) == 0 {
                    of.workers.remove(&name("gpu"));
                }
                if dice.roll(3) == 0 {
                    of.budget = Some(MoneyPerHour(1_000 * (500 + dice.roll(2_000))));
                }
                world.tell(Input::Specified { actor: Actor::LOCAL, spec: of });
            }
            _ => {}
        }
        let ms = [100, 1_000, 10_000, 70_000, 400_000][dice.roll(5) as usize];
        world.pass(ms);
        for machine in world.machines.values() {
            let node = world.nodes.get(&machine.node).ok_or_else(|| format!("a machine of nobody: {machine:?}"))?;
            if node.generation != machine.generation {
                return Err(format!("a machine of another generation: {machine:?}"));
            }
        }
    }
    // Everything is well from now on.
    world.load.clear();
    world.failing.clear();
    let _ = world.ask(|request| Input::Resume { request });
    for node in world.nodes.keys().cloned().collect::<Vec<_>>() {
        let _ = world.ask(|request| Input::Release { request, node });
    }
    for node in std::mem::take(&mut world.silent) {
        if world.machines.values().any(|m| m.node == node) {
            world.link(&node);
        }
    }
    revision += 1;
    world.tell(Input::Specified { actor: Actor::LOCAL, spec: generous(revision) });
    world.pass(7_200_000);
    let (calls, events) = (world.calls.len(), world.events.len());
    world.pass(1_800_000);
    let unmet: Vec<_> = world.brain.request_views().into_iter().filter_map(|a| a.unmet.map(|why| (a.request.name, why))).collect();
    if !unmet.is_empty() {
        return Err(format!("not served: {unmet:?}"));
    }
    let decisions: Vec<String> = world.events[events..].iter().map(|e| e.message()).collect();
    if world.calls.len() != calls || !decisions.is_empty() {
        return Err(format!("no rest: {} calls, {decisions:?}", world.calls.len() - calls));
    }
    if !world.brain.outlook().unmet.is_empty() {
        return Err("unmet".to_owned());
    }
    let fresh: Vec<_> = world
        .nodes
        .values()
        .filter(|n| !matches!(n.life, NodeState::Ready | NodeState::Gone))
        .map(|n| (n.id.clone(), n.life.clone()))
        .collect();
    if !fresh.is_empty() {
        return Err(format!("not settled: {fresh:?}"));
    }
    // What is there is as cheap as what another head would plan.
    let there = world.machines.len();
    let events = world.events.len();
    let requests: Vec<String> =
        world.brain.request_views().into_iter().map(|a| format!("{} {}", a.request.name, a.request.wants)).collect();
    world.restart();
    world.pass(1_800_000);
    if world.calls.len() != calls {
        let all: Vec<_> =
            world.events[events..].iter().map(|e| &e.what).filter(|w| matches!(w, What::Launch(_) | What::ScaleIn(_))).collect();
        println!(
            "{requests:#?} {all:#?} {:?}",
            world.nodes.values().filter(|n| n.life.is_counted()).map(|n| n.id.as_str()).collect::<Vec<_>>()
        );
        return Err(format!("a restart changes {there} machines to {}, {} calls", world.machines.len(), world.calls.len() - calls));
    }
    Ok(())
}

#[test]
fn lives_end_well() {
    live_many(SEEDS, live);
}
