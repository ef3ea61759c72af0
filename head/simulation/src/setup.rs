//! What a world is made from: a seed, or a scenario that a person wrote.

use std::collections::BTreeMap;

use cloudtik_brain::Config;
use cloudtik_model::policy::{Metric, Policy, Rule};
use cloudtik_model::scenario::{Scenario, Span};
use cloudtik_model::spec::JobRules;
use cloudtik_model::spec::{Membership, Role, ServicePlacement, Spec, Spot, WorkerType};
use cloudtik_model::{Bytes, MoneyPerHour, NodeTypeName, Resources, ServiceKey, Timestamp};

use crate::faults::Faults;
use crate::provider::VISIBILITY;
use crate::random::Random;

/// How long faults and people trouble a seeded world, in virtual milliseconds.
const TROUBLE: u64 = 600_000;
/// How long it then has to settle.
const PEACE: u64 = 1_200_000;
/// How long a reboot takes until the head may look for another way, in milliseconds.
const REBOOT_TIME: u64 = 40_000;
/// Heartbeats of a scenario, at most: more are not worth waiting for.
const HEARTBEATS: u64 = 2_000_000;

#[derive(Debug, Clone)]
pub struct Setup {
    pub seed: u64,
    /// Revision 1 of what the cluster is to be.
    pub spec: Spec,
    pub config: Config,
    pub faults: Faults,
    pub pace: Pace,
    /// On the wall clock.
    pub start: Timestamp,
    /// How long the world is troubled, or lives through its scenario, in milliseconds.
    pub length: u64,
    /// How long it then has to come to rest, in milliseconds. 0: it ends as it is.
    pub peace: u64,
    pub scenario: Option<Scenario>,
}

/// How long things take, in milliseconds.
#[derive(Debug, Clone)]
pub struct Pace {
    /// From a call to its effect.
    pub call: Span,
    /// Of calls, how many in a thousand take about as long as the head waits for one.
    pub slow_calls: u64,
    /// From a call's effect to its answer.
    pub answer: Span,
    pub boot: Span,
    pub service: Span,
    /// From a machine's end to the end of its agent's link.
    pub silence: u64,
}

fn key(text: &str) -> ServiceKey {
    text.parse().expect("a valid key")
}

pub fn default_type() -> NodeTypeName {
    NodeTypeName::new(NodeTypeName::DEFAULT).expect("a valid name")
}

impl Setup {
    /// A small cluster to which much happens. Seeds differ in what they are about.
    pub fn of_seed(seed: u64) -> Self {
        Self::troubled(seed, Faults::of_seed(seed))
    }

    /// The same cluster with other faults.
    pub fn troubled(seed: u64, faults: Faults) -> Self {
        let config = Config {
            visibility: faults.visibility,
            can_restart_agent: faults.can_restart_agent,
            reboot_time: faults.can_reboot.then_some(REBOOT_TIME),
            ..Config::default()
        };
        let pace = Pace {
            call: Span { least: 50, most: 8_000 },
            slow_calls: 20,
            answer: Span { least: 1, most: 2_000 },
            boot: Span { least: 500, most: 20_000 },
            service: Span { least: 100, most: 9_000 },
            silence: 2,
        };
        let start = Timestamp(1_700_000_000_000);
        Self { seed, spec: spec_of_seed(seed), config, faults, pace, start, length: TROUBLE, peace: PEACE, scenario: None }
    }

    /// A cluster in a scenario; every type must say what its nodes have. It must come to rest afterwards if `peace` is not 0.
    pub fn of_scenario(mut spec: Spec, scenario: Scenario, peace: u64) -> Self {
        spec.revision = 1;
        // A heartbeat of a node that is well says nothing new: in long scenarios there are fewer.
        let nodes = u64::from(spec.max_workers) + 1;
        let heartbeat = (scenario.length_ms.saturating_mul(nodes) / HEARTBEATS).clamp(1_000, 3_600_000).next_multiple_of(1_000);
        let usual = Config::default();
        let config = Config {
            pulse: (heartbeat / 2).max(usual.pulse),
            heartbeat,
            suspect_after: heartbeat * 5 / 2,
            deaf_after: usual.deaf_after.max(4 * heartbeat),
            list_every: usual.list_every.max(heartbeat),
            ..usual
        };
        let model = &scenario.provider;
        let half = |span: Span| Span { least: span.least / 2, most: span.most.div_ceil(2) };
        let pace = Pace {
            call: half(model.call),
            slow_calls: 0,
            answer: half(model.call),
            boot: model.boot,
            service: model.service,
            silence: usual.suspect_after,
        };
        let fails = u64::from(model.fails / 2);
        let faults =
            Faults { call_fails: u64::from(model.fails) - fails, call_fails_after: fails, visibility: VISIBILITY, ..Faults::none() };
        let (seed, start, length) = (scenario.seed, scenario.start, scenario.length_ms);
        Self { seed, spec, config, faults, pace, start, length, peace, scenario: Some(scenario) }
    }
}

/// The description that a seed is about.
fn spec_of_seed(seed: u64) -> Spec {
    let mut random = Random::new(seed ^ 0x57ec);
    let (priced, limited, zoned) = (random.permille(500), random.permille(500), random.permille(300));
    let spot = random.permille(300);
    let mut kind = |least: u64, most: u64, spread: u64, price: u64| {
        let min = random.between(least, most) as u32;
        let max = min + random.between(0, spread) as u32;
        let cpus = if price > 500_000 { 8 } else { 2 };
        WorkerType {
            min,
            max,
            price: priced.then_some(MoneyPerHour(price)),
            resources: Some(Resources { cpus, memory: Bytes(u64::from(cpus) << 30), gpus: 0 }),
            zones: if zoned { vec!["a".to_owned(), "b".to_owned()] } else { Vec::new() },
            spot: spot.then_some(Spot { price: priced.then_some(MoneyPerHour(price / 3)), or_on_demand: true }),
            ..WorkerType::default()
        }
    };
    let quorum = seed % 3 == 2;
    let mut workers = BTreeMap::from([(default_type(), if quorum { kind(3, 5, 3, 400_000) } else { kind(1, 5, 3, 400_000) })]);
    let mut large = kind(0, 2, 2, 1_000_000);
    let gpus = if random.permille(500) { 2 } else { 0 };
    large.resources = large.resources.map(|has| Resources { gpus, ..has });
    if random.permille(500) && large.max > 0 {
        workers.insert(NodeTypeName::new("large").expect("a valid name"), large);
    }
    // Limits lie anywhere between what the types need at least and what they may be at most.
    let sum = |of: &dyn Fn(&WorkerType) -> u64| workers.values().map(of).sum::<u64>();
    let cost = |kind: &WorkerType, count: u32| kind.price.map_or(0, |p| p.0) * u64::from(count);
    let max_workers = random.between(sum(&|k| k.min.into()), sum(&|k| k.max.into())) as u32;
    let (least, most) = (sum(&|k| cost(k, k.min)), sum(&|k| cost(k, k.max)));
    let budget = (priced && limited).then(|| MoneyPerHour(random.between(least, most)));
    let place = |name: &str, role, after: Vec<ServiceKey>| ServicePlacement { key: key(name), role, after, membership: None, drain_ms: 0 };
    let mut worker = place("a/worker", Role::Workers, vec![key("a/master")]);
    worker.membership = quorum.then_some(Membership { quorum: true, minimum: 1 });
    let most = workers[&default_type()].max;
    let policy = Policy {
        name: "busy".to_owned(),
        node_type: default_type(),
        least: 0,
        most,
        pause_ms: 30_000,
        rule: Rule::Load { metric: Metric::Cpu, high: 400, low: 100, window_ms: 20_000 },
    };
    let policies = if random.permille(300) { vec![policy] } else { Vec::new() };
    let mut random = Random::new(seed ^ 0x10b5);
    let jobs = JobRules {
        parallel: random.between(1, 4) as u32,
        keep: if random.permille(300) { random.between(1, 8) as u32 } else { JobRules::DEFAULT_KEEP },
        keep_for_ms: if random.permille(300) { random.between(30_000, 300_000) } else { JobRules::DEFAULT_KEEP_FOR_MS },
        ..JobRules::default()
    };
    Spec {
        jobs,
        policies,
        revision: 1,
        workers,
        max_workers,
        budget,
        services: vec![place("a/master", Role::Head, vec![]), worker],
        idle_after_ms: 30_000,
        ..Spec::default()
    }
}
