//! Scaling, rule by rule.

mod boots;
mod departures;
mod failing;
mod floods;
mod gangs;
mod jobs;
mod limits;
mod lives;
mod plans;
mod policies;
mod rare;
mod recovery;
mod requests;
mod rollouts;
mod shapes;
mod steering;
mod supply;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_brain::{Action, Brain, ClusterRecord, Config, Failure, FailureKind, Input, Memory, NewRequest, Record, Request, Session};
use cloudtik_model::alarm::Alarm;
use cloudtik_model::conflict::{ConflictCause, RequestConflict};
use cloudtik_model::demand::{Bundle, Counted, Quantity, RequestedCapacity};
use cloudtik_model::event::{Event, EventKind, NotChosen, Purpose, Replan, ScaleInChoice, StateName, TypeChoice, What};
use cloudtik_model::node::{DialOutcome, Instance, InstanceState, NodeRecord, NodeState};
use cloudtik_model::outlook::{BeyondMax, Blocked, LoadLevel, PolicyView, Shortfall, Source, UnmetCause};
use cloudtik_model::policy::{Counts, Hours, Metric, Policy, Rule, Workers};
use cloudtik_model::reason::{Obstacle, Reason, ServiceProblem};
use cloudtik_model::refusal::{Lack, NoRoom, Refusal, ShortLimit};
use cloudtik_model::report::{Facts, ServiceReport, ServiceState};
use cloudtik_model::spec::{Membership, Offer, Role, ServicePlacement, Spec, Spot, WorkerType};
use cloudtik_model::status::RolloutState;
use cloudtik_model::{Actor, Bytes, Epoch, Generation, InstanceId, Moment, MoneyPerHour, NodeTypeName, Resources, Timestamp};
use world::*;

pub fn load_policy() -> Policy {
    Policy {
        name: "busy".to_owned(),
        node_type: name("default"),
        least: 0,
        most: 6,
        pause_ms: 60_000,
        rule: Rule::Load { metric: Metric::Cpu, high: 800, low: 300, window_ms: 30_000 },
    }
}

pub fn add(wants: RequestedCapacity, named: &str, until: Option<u64>) -> NewRequest {
    let until = until.map(|at| Timestamp(MONDAY + at));
    NewRequest { name: Some(named.to_owned()), wants, additive: true, until, reason: "two\nlines".to_owned() }
}

pub fn gang(count: u32, cpus: u64) -> RequestedCapacity {
    let bundle = Bundle { cpus: Quantity(cpus * 1_000), ..Bundle::default() };
    RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count }], gang: true, spread: false }
}

pub fn throttled() -> Failure {
    Failure { message: "too many".to_owned(), retry_after: None, kind: FailureKind::Throttled }
}

pub fn default_offer() -> (String, Offer) {
    ("default".to_owned(), Offer::default())
}

pub fn unmet(world: &World) -> Vec<(String, String)> {
    world.brain.request_views().into_iter().filter_map(|a| a.unmet.map(|why| (a.request.name, why.to_string()))).collect()
}

pub fn decisions(world: &World) -> Vec<String> {
    world.events.iter().filter(|e| e.kind == EventKind::Decision).map(|e| e.message()).collect()
}

pub fn put(world: &mut World, named: &str, wants: RequestedCapacity, until: Option<u64>) -> Result<String, String> {
    world.ask(|request| Input::Scale { request, asked: add(wants, named, until) })
}

/// One piece of room, and time to have it.
pub fn one(world: &mut World, named: &str, cpus: u64, until: Option<u64>) {
    world.ask(|request| Input::Scale { request, asked: add(bundles(&[(1, cpus, 0)]), named, until) }).expect("there is room");
    world.pass(15_000);
}

pub fn licensed(count: u32, cpus: u64) -> RequestedCapacity {
    let resources = BTreeMap::from([("licence".to_owned(), Quantity(1_000))]);
    let bundle = Bundle { cpus: Quantity(cpus * 1_000), resources, ..Bundle::default() };
    RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count }], gang: false, spread: false }
}

pub fn with_gpus(min: u32, max: u32) -> WorkerType {
    WorkerType { resources: Some(Resources { cpus: 8, memory: Bytes(1 << 36), gpus: 2 }), ..kind(min, max, 8, 900) }
}

/// Choices from a seed.
pub struct Dice(u64);

impl Dice {
    pub fn of_seed(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Lives many lives, or the one of `CLOUDTIK_SEED` in full; `CLOUDTIK_LIVES` says how many, from `CLOUDTIK_FROM` on.
pub fn live_many(usual: u64, live: impl Fn(u64, bool) -> Result<(), String>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("CLOUDTIK_SEED") {
        return live(seed, true).expect("it ends well");
    }
    let from = number("CLOUDTIK_FROM").unwrap_or(0);
    let lives = (from..from + number("CLOUDTIK_LIVES").unwrap_or(usual)).map(|seed| (seed, live(seed, false)));
    let bad: Vec<(u64, String)> = lives.filter_map(|(seed, end)| Some((seed, end.err()?))).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
