//! What came of decisions in virtual time: the documents of `cloudtik simulate`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::{ClusterName, MoneyPerHour, NodeTypeName, Timestamp};

/// What came of a replay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// Of the head that recorded.
    pub version: String,
    pub epoch: u64,
    /// Inputs that were fed.
    pub inputs: u64,
    /// What was decided, in order.
    pub events: Vec<Event>,
    /// The first line whose decision was another one.
    pub differs: Option<Difference>,
    /// The last line was cut off: the head was killed while it wrote.
    pub cut_off: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub line: u64,
    pub input: String,
    /// What is decided now.
    pub decided: Vec<String>,
}

/// A cluster, and what is to happen to it: what `cloudtik-head --simulate` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub cluster_file: String,
    /// `<runtime>/<path>` → text.
    #[serde(default)]
    pub runtime_files: BTreeMap<String, String>,
    /// A scenario as somebody wrote it.
    pub scenario: String,
    /// In the place of the scenario's own.
    #[serde(default)]
    pub seed: Option<u64>,
}

/// What a scenario did to a cluster. Money is in currency units, times are in milliseconds after the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Simulated {
    pub cluster: ClusterName,
    pub seed: u64,
    pub start: Timestamp,
    pub length_ms: u64,
    /// Between two heartbeats: longer than in life where that would take too long to simulate.
    pub heartbeat_ms: u64,
    /// Inputs of the brain.
    pub steps: u64,
    /// What all workers cost together, as far as it is known.
    pub cost: f64,
    /// Types that have no price.
    pub unpriced: Vec<NodeTypeName>,
    /// Of all workers' core time, the share in which demands that asked for cores ran or work was done; what of both fell on
    /// the same cores counts twice, up to 1.
    pub used: f64,
    pub types: BTreeMap<NodeTypeName, TypeUse>,
    /// At even distances.
    pub samples: Vec<Sample>,
    /// What was asked for, in order of arrival.
    pub arrivals: Vec<Arrival>,
    /// Work that load tables offered, by type.
    pub work: BTreeMap<NodeTypeName, Work>,
    pub mishaps: Mishaps,
    /// Everything that was decided, in order.
    pub decisions: Vec<Event>,
}

/// What became of a type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TypeUse {
    /// Machines that were made.
    pub launched: u64,
    /// Machines at the same time, at most.
    pub most: u32,
    pub node_hours: f64,
    pub cost: f64,
}

/// How things stood.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub at_ms: u64,
    pub types: BTreeMap<NodeTypeName, Count>,
    /// What the machines that there are cost.
    pub cost: MoneyPerHour,
    /// Arrivals that wait for room.
    pub waiting: u32,
}

/// Workers of a type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub ready: u32,
    pub coming: u32,
    /// Leaving, silent or set aside.
    pub other: u32,
}

/// One demand that came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// Which table of the scenario it came from.
    pub demand: String,
    /// The request's name.
    pub request: String,
    pub at_ms: u64,
    /// From its arrival until all of it had room on nodes that were ready; absent if it never had.
    pub waited_ms: Option<u64>,
    /// How often it lost some of its room while it ran.
    #[serde(default)]
    pub lost: u32,
    /// When it was done.
    pub done_ms: Option<u64>,
    /// Why it was refused last, if it was.
    pub refused: Option<String>,
}

/// Work of load tables, as a fluid that waits where there is no core.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    pub core_hours: f64,
    /// By Little's law, over everything that was offered.
    pub mean_wait_ms: u64,
    /// At most, first come first served.
    pub longest_wait_ms: u64,
    /// Core hours that were still waiting at the end.
    pub left: f64,
}

/// What went wrong, as the scenario wanted it to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mishaps {
    pub machines_broke: u64,
    pub spot_taken: u64,
    pub calls_failed: u64,
    pub calls_throttled: u64,
    pub calls_without_stock: u64,
    pub head_crashes: u64,
}
