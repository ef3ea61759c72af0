//! What the brain decides from: the validated description of a cluster, reduced to what decisions need.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::{Bytes, MoneyPerHour, NodeTypeName, Resources, ServiceKey};

/// What a cluster is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Grows with every accepted change; nodes' goals are made from one revision.
    pub revision: u64,
    pub workers: BTreeMap<NodeTypeName, WorkerType>,
    /// Never more workers than this, of all types together.
    pub max_workers: u32,
    #[serde(default)]
    pub budget: Option<MoneyPerHour>,
    pub services: Vec<ServicePlacement>,
    #[serde(default)]
    pub policies: Vec<Policy>,
    /// Milliseconds that a worker that is not wanted any more must have been idle before it is scaled in.
    #[serde(default = "Spec::default_idle_after")]
    pub idle_after_ms: u64,
    /// The change restarts processes that run, so nodes take it one after the other.
    #[serde(default)]
    pub rolling: bool,
    /// The types of node on which services or their checks change. One node of a type takes the revision first; it counts as
    /// working when it has run well for so many milliseconds, and then others of the type take it.
    #[serde(default)]
    pub trials: BTreeMap<NodeTypeName, u64>,
    #[serde(default)]
    pub jobs: JobRules,
}

/// How jobs of a cluster are treated: `[jobs]` of its description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRules {
    /// So many run at once.
    pub parallel: u32,
    /// So many that have ended are kept at most.
    pub keep: u32,
    /// Milliseconds that one that has ended is kept at most.
    pub keep_for_ms: u64,
    /// Of each output of a job, in bytes.
    pub log_limit: Bytes,
}

impl JobRules {
    /// More would be in each other's way on most machines: every job has its driver on the head's node.
    pub const DEFAULT_PARALLEL: u32 = 8;
    pub const DEFAULT_KEEP: u32 = 100;
    /// A week.
    pub const DEFAULT_KEEP_FOR_MS: u64 = 7 * 24 * 3_600_000;
    /// What a job that prints without end may take of the disk, per output.
    pub const DEFAULT_LOG_LIMIT: Bytes = Bytes(4 << 30);
}

impl Default for JobRules {
    fn default() -> Self {
        Self {
            parallel: Self::DEFAULT_PARALLEL,
            keep: Self::DEFAULT_KEEP,
            keep_for_ms: Self::DEFAULT_KEEP_FOR_MS,
            log_limit: Self::DEFAULT_LOG_LIMIT,
        }
    }
}

/// How nodes take a revision; see [`Spec::rolling`] and [`Spec::trials`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    pub rolling: bool,
    pub trials: BTreeMap<NodeTypeName, u64>,
}

impl Spec {
    /// Whether the change reaches what nodes run, so that not all of them take it at once.
    pub fn is_stepwise(&self) -> bool {
        self.rolling || !self.trials.is_empty()
    }
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            revision: 0,
            workers: BTreeMap::new(),
            max_workers: 0,
            budget: None,
            services: Vec::new(),
            policies: Vec::new(),
            idle_after_ms: Self::default_idle_after(),
            rolling: false,
            trials: BTreeMap::new(),
            jobs: JobRules::default(),
        }
    }
}

/// A shape of worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerType {
    pub min: u32,
    pub max: u32,
    /// Of one that nobody can take away.
    #[serde(default)]
    pub price: Option<MoneyPerHour>,
    /// What is known before a node of the type reports itself.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// What else it offers, under names that the description chose.
    #[serde(default)]
    pub custom: BTreeMap<String, u32>,
    /// Where several types would do, those of the highest priority are taken first, whatever they cost.
    #[serde(default)]
    pub priority: i32,
    /// Where in the provider's region it may be made; empty where the provider chooses.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Bought as spot machines, if it is given.
    #[serde(default)]
    pub spot: Option<Spot>,
}

impl WorkerType {
    pub fn shape(&self) -> RequestedShape {
        RequestedShape { resources: self.resources, custom: self.custom.clone() }
    }
}

/// What a machine offers, as the description said when it was requested: it stays what it is when the description changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestedShape {
    #[serde(default)]
    pub resources: Option<Resources>,
    #[serde(default)]
    pub custom: BTreeMap<String, u32>,
}

/// Machines that are cheaper and may be taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// The most that is paid.
    #[serde(default)]
    pub price: Option<MoneyPerHour>,
    /// If there are none, others are bought at the type's price.
    pub or_on_demand: bool,
}

/// How a machine is bought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Market {
    #[default]
    OnDemand,
    Spot,
}

impl Market {
    pub fn name(self) -> &'static str {
        match self {
            Self::OnDemand => "on-demand",
            Self::Spot => "spot",
        }
    }
}

/// One way to come to a machine of a type.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Offer {
    #[serde(default)]
    pub market: Market,
    #[serde(default)]
    pub zone: Option<String>,
}

impl std::fmt::Display for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.zone {
            Some(zone) => write!(f, "{} in {zone}", self.market.name()),
            None => f.write_str(self.market.name()),
        }
    }
}

impl WorkerType {
    /// The ways to come to a machine of the type, preferred ones first, and what each costs.
    pub fn offers(&self) -> Vec<(Offer, Option<MoneyPerHour>)> {
        let mut markets = Vec::new();
        if let Some(spot) = &self.spot {
            markets.push((Market::Spot, spot.price.or(self.price)));
        }
        if self.spot.as_ref().is_none_or(|s| s.or_on_demand) {
            markets.push((Market::OnDemand, self.price));
        }
        let zones: Vec<Option<String>> = if self.zones.is_empty() { vec![None] } else { self.zones.iter().cloned().map(Some).collect() };
        markets
            .iter()
            .flat_map(|(market, price)| zones.iter().map(|zone| (Offer { market: *market, zone: zone.clone() }, *price)))
            .collect()
    }

    /// What one costs at most, as far as that is known.
    pub fn most_expensive(&self) -> Option<MoneyPerHour> {
        self.offers().into_iter().filter_map(|(_, price)| price).max()
    }
}

/// A service and the nodes that it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlacement {
    pub key: ServiceKey,
    pub role: Role,
    /// Services that must be ready, wherever they are placed, before this one starts.
    #[serde(default)]
    pub after: Vec<ServiceKey>,
    /// The processes of the service on all nodes are members of one group.
    #[serde(default)]
    pub membership: Option<Membership>,
    /// Milliseconds that it may take to let its work go before it is stopped.
    #[serde(default)]
    pub drain_ms: u64,
}

/// What the members of a service need of each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// More than half of them must be up at any time.
    pub quorum: bool,
    /// Fewer members than this are of no use.
    pub minimum: u32,
}

/// On which nodes a service runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Head,
    Workers,
    All,
    NodeType(NodeTypeName),
}

impl Role {
    /// Whether a service of this role runs on a node of `node_type`.
    pub fn covers(&self, node_type: &NodeTypeName) -> bool {
        let is_head = node_type.as_str() == NodeTypeName::HEAD;
        match self {
            Self::Head => is_head,
            Self::Workers => !is_head,
            Self::All => true,
            Self::NodeType(wanted) => wanted == node_type,
        }
    }
}

impl Spec {
    fn default_idle_after() -> u64 {
        300_000
    }

    /// The services placed on nodes of a type.
    pub fn services_on<'a>(&'a self, node_type: &'a NodeTypeName) -> impl Iterator<Item = &'a ServicePlacement> {
        self.services.iter().filter(move |s| s.role.covers(node_type))
    }
}
