//! How long deciding takes: the whole step of the brain, on one core, records and events included.
//!
//! `cargo xtask bench decide` runs it as the head is shipped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cloudtik_brain::packing::{Amounts, Class, Kind, purchase};
use cloudtik_brain::{Action, Brain, ClusterRecord, Config, Input, Memory, NewRequest, Request, Session};
use cloudtik_model::demand::{Bundle, Counted, Quantity, RequestedCapacity, ResourceRequest};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::report::{Facts, ServiceReport, ServiceState};
use cloudtik_model::spec::{Role, ServicePlacement, Spec, WorkerType};
use cloudtik_model::{
    Actor, Bytes, Epoch, Generation, InstanceId, Moment, MoneyPerHour, NodeId, NodeTypeName, Resources, ServiceKey, Timestamp,
};
use cloudtik_simulation::Random;

const TYPES: u64 = 50;
/// Demands per node.
const LOAD: u64 = 10;
const GIB: u64 = 1 << 30;

fn type_name(n: u64) -> NodeTypeName {
    NodeTypeName::new(format!("t{n}")).expect("a valid name")
}

/// Types such as a cloud sells: from 2 to 64 cores, 2, 4 or 8 GiB each, every tenth with GPUs.
fn types(random: &mut Random) -> BTreeMap<NodeTypeName, WorkerType> {
    let mut types = BTreeMap::new();
    for n in 0..TYPES {
        let cpus = 1u64 << random.between(1, 6);
        let memory = cpus * [2, 4, 8][random.between(0, 2) as usize];
        let gpus = if n % 10 == 9 { random.between(1, 8) } else { 0 };
        let price = (cpus * 40_000 + memory * 5_000) * random.between(90, 110) / 100 + gpus * 1_000_000;
        let kind = WorkerType {
            max: 100_000,
            price: Some(MoneyPerHour(price)),
            resources: Some(Resources { cpus: cpus as u32, memory: Bytes(memory * GIB), gpus: gpus as u32 }),
            ..WorkerType::default()
        };
        types.insert(type_name(n), kind);
    }
    types
}

fn bundle(random: &mut Random, shapes: u64) -> Bundle {
    // Of so many shapes, one; each is always the same.
    let mut shape = Random::new(random.between(1, shapes) * 7_919);
    let gpus = if shape.between(0, 19) == 0 { shape.between(1, 4) } else { 0 };
    Bundle {
        cpus: Quantity(shape.between(1, 16) * 500),
        memory: Bytes(shape.between(1, 64) * GIB / 2),
        gpus: Quantity(gpus * 1_000),
        resources: BTreeMap::new(),
    }
}

/// A cluster of so many nodes, and ten times as many demands, of which those that have no room are to get new nodes.
fn cluster(nodes: u64, shapes: u64) -> Memory {
    let mut random = Random::new(nodes);
    let workers = types(&mut random);
    let mut records = Vec::new();
    for n in 0..nodes {
        let name = type_name(n % TYPES);
        let id = NodeId::worker(&name, (n / TYPES + 1) as u32);
        records.push(NodeRecord {
            life: NodeState::Ready,
            instance: InstanceId::new(format!("i-{n}")).ok(),
            address: Some("10.0.0.1".to_owned()),
            price: workers[&name].price,
            revision: 1,
            ..NodeRecord::requested(id, Generation(1), name, Timestamp(0))
        });
    }
    // Requests of a hundred demands each.
    let mut requests = Vec::new();
    for n in 0..(nodes * LOAD / 100).max(1) {
        let bundles = (0..100).map(|_| Counted { bundle: bundle(&mut random, shapes), count: 1 }).collect();
        let wants = RequestedCapacity::Bundles { bundles, gang: false, spread: false };
        requests.push(ResourceRequest {
            name: format!("job-{n}"),
            number: n + 1,
            at: Timestamp(0),
            until: None,
            wants,
            reason: String::new(),
        });
    }
    let spec = Spec { revision: 1, workers, max_workers: 1_000_000, ..Spec::default() };
    Memory { cluster: ClusterRecord { spec: Some(spec), ..ClusterRecord::default() }, requests, nodes: records, ..Memory::default() }
}

fn main() {
    println!("{TYPES} node types, {LOAD} demands per node; one core; the whole step, with its records, events and reasons");
    println!(
        "{:>7} {:>9} {:>7} {:>10} {:>10} {:>9} {:>22} {:>22}",
        "nodes", "demands", "shapes", "restart", "full", "launched", "one demand (p99)", "one node dies (p99)"
    );
    for (nodes, shapes) in [(100, 200), (1_000, 200), (10_000, 200), (10_000, 100_000)] {
        measure(nodes, shapes);
    }
    for nodes in [1_000, 10_000] {
        coming_up(nodes);
    }
    quality();
}

/// Nodes on which three services run, one after the other; then some of them lose their link and come up again.
fn coming_up(nodes: u64) {
    let mut memory = cluster(nodes, 200);
    memory.requests.clear();
    let key = |n: usize| -> ServiceKey { format!("run{n}/worker").parse().expect("a valid key") };
    if let Some(spec) = &mut memory.cluster.spec {
        let placed = |n: usize| {
            let after = if n > 0 { vec![key(n - 1)] } else { Vec::new() };
            ServicePlacement { key: key(n), role: Role::Workers, after, membership: None, drain_ms: 0 }
        };
        spec.services = (0..3).map(placed).collect();
        spec.workers.values_mut().for_each(|kind| kind.min = (nodes / TYPES) as u32);
    }
    let ids: Vec<NodeId> = memory.nodes.iter().map(|n| n.id.clone()).collect();
    let moment = |mono: u64| Moment { mono, wall: Timestamp(1_700_000_000_000 + mono) };
    let mut brain = Brain::restore(Config::default(), Epoch(1), memory, moment(0));
    brain.handle(moment(0), Input::Started);
    let mut session = 0;
    let mut steps = |brain: &mut Brain, node: &NodeId| -> Vec<Duration> {
        session += 1;
        let linked =
            Input::LinkOpened { session: Session(session), node: node.clone(), generation: Generation(1), facts: Facts::default() };
        let mut inputs = vec![linked];
        for running in 1..=3 {
            let report = |n: usize| ServiceReport {
                key: key(n),
                state: if n < running { ServiceState::Ready } else { ServiceState::Waiting },
                detail: String::new(),
                pid: None,
                restarts: 0,
                since: Timestamp(0),
                goal_version: 0,
                gauges: BTreeMap::new(),
                failure: None,
                log: Vec::new(),
            };
            let services = (0..3).map(report).collect();
            inputs.push(Input::Reported { session: Session(session), node: node.clone(), complete: true, services, jobs: Vec::new() });
        }
        let timed = |input| {
            let begun = Instant::now();
            brain.handle(moment(1), input);
            begun.elapsed()
        };
        inputs.into_iter().map(timed).collect()
    };
    let begun = Instant::now();
    ids.iter().for_each(|node| drop(steps(&mut brain, node)));
    let all = begun.elapsed();
    let mut again: Vec<Duration> = ids.iter().step_by(ids.len() / 100).flat_map(|node| steps(&mut brain, node)).collect();
    println!("{nodes} nodes come up with three services: {}; one again, each step (p99): {}", shown(all), spread(&mut again));
    // The network goes: every link ends, and nobody answers.
    let begun = Instant::now();
    for (n, node) in ids.iter().enumerate() {
        let session = brain.node(node).and_then(|node| node.link).expect("it is linked");
        brain.handle(moment(2 + n as u64 / 100), Input::LinkClosed { session, node: node.clone(), cause: String::new() });
    }
    let closed = begun.elapsed();
    let begun = Instant::now();
    let cut = 2 + nodes / 100;
    (1..=20).for_each(|tick| drop(brain.handle(moment(cut + tick * 500), Input::Tick)));
    println!("{nodes} links are cut: {}; each second of the ten after: {}", shown(closed), shown(begun.elapsed() / 10));
}

fn measure(nodes: u64, shapes: u64) {
    let memory = cluster(nodes, shapes);
    let moment = |mono: u64| Moment { mono, wall: Timestamp(1_700_000_000_000 + mono) };
    let (mut restart, mut full, mut last) = (Vec::new(), Vec::new(), None);
    for _ in 0..5 {
        let copy = memory.clone();
        let begun = Instant::now();
        let mut brain = Brain::restore(Config::default(), Epoch(1), copy, moment(0));
        restart.push(begun.elapsed());
        let begun = Instant::now();
        let step = brain.handle(moment(1), Input::Started);
        full.push(begun.elapsed());
        let launched = step.actions.iter().filter(|a| matches!(a, Action::Create { .. })).count();
        last = Some((brain, launched));
    }
    let (mut brain, launched) = last.expect("five were made");
    let (mut demand, mut death) = (Vec::new(), Vec::new());
    let mut random = Random::new(99);
    for n in 0..400u64 {
        let wants = RequestedCapacity::Bundles {
            bundles: vec![Counted { bundle: bundle(&mut random, 200), count: 1 }],
            gang: false,
            spread: false,
        };
        let asked = NewRequest { name: None, wants, additive: true, until: None, reason: String::new() };
        let begun = Instant::now();
        brain.handle(moment(10 + n / 4), Input::Scale { request: Request::new(n, Actor::LOCAL), asked });
        demand.push(begun.elapsed());
        let victim = memory.nodes[(n * 7 % nodes) as usize].id.clone();
        let begun = Instant::now();
        brain.handle(moment(10 + n / 4), Input::Kill { request: Request::new(10_000 + n, Actor::LOCAL), node: victim });
        death.push(begun.elapsed());
    }
    println!(
        "{nodes:>7} {:>9} {shapes:>7} {:>10} {:>10} {launched:>9} {:>22} {:>22}",
        nodes * LOAD,
        shown(median(&mut restart)),
        shown(median(&mut full)),
        spread(&mut demand),
        spread(&mut death),
    );
}

/// What a purchase costs above the sum of fair shares, which nothing can be below by much: at sizes where nobody knows the
/// optimum.
fn quality() {
    for (demands, shapes) in [(1_000u64, 50u64), (100_000, 200)] {
        let mut random = Random::new(demands);
        let kinds: Vec<Kind> = types(&mut random)
            .values()
            .filter_map(|kind| {
                let r = kind.resources?;
                let capacity = Amounts::of(u64::from(r.cpus) * 1_000, r.memory.0, u64::from(r.gpus) * 1_000);
                Some(Kind { capacity, price: kind.price?.0, most: u32::MAX })
            })
            .collect();
        let mut counts: BTreeMap<Amounts, u32> = BTreeMap::new();
        for _ in 0..demands {
            let bundle = bundle(&mut random, shapes);
            let need = Amounts::of(bundle.cpus.0, bundle.memory.0, bundle.gpus.0);
            *counts.entry(need).or_default() += 1;
        }
        let classes: Vec<Class> = counts.into_iter().map(|(need, count)| Class { need, count, apart: None }).collect();
        let fair: f64 = classes
            .iter()
            .map(|class| {
                let share = |k: &Kind| k.price as f64 * class.need.dominant_share(&k.capacity);
                let fitting = kinds.iter().filter(|k| class.need.fits(&k.capacity) && (class.need.wants_gpus() || k.capacity.0[2] == 0));
                fitting.map(share).fold(f64::INFINITY, f64::min) * f64::from(class.count)
            })
            .sum();
        let begun = Instant::now();
        let found = purchase(&kinds, &classes);
        let took = begun.elapsed();
        println!(
            "a purchase for {demands} demands of {} shapes: {} nodes in {}, {:.1} % of the sum of each demand's cheapest share",
            classes.len(),
            found.bins.len(),
            shown(took),
            found.cost(&kinds) as f64 / fair * 100.0
        );
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn spread(times: &mut [Duration]) -> String {
    let middle = median(times);
    format!("{} ({})", shown(middle), shown(times[times.len() * 99 / 100]))
}

fn shown(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
