//! The documents that `-o json` prints. Their shape is stable: fields are added, never renamed or removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::alarm::Alarm;
use crate::conflict::RequestConflict;
use crate::job::JobsSummary;
use crate::reason::ServiceProblem;
use crate::report::{ServiceFailure, ServiceReport};
use crate::software::Fetch;
use crate::{Bytes, ClusterName, Epoch, Generation, InstanceId, NodeId, NodeTypeName, RuntimeName, Timestamp};

/// `cloudtik status -o json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub cluster: ClusterName,
    pub phase: Phase,
    /// Everything that was asked for is there and ready.
    pub ready: bool,
    /// The revision of the specification that the cluster works towards.
    pub revision: u64,
    /// What `ready` waits for, by name.
    pub waiting_for: Vec<String>,
    /// Software that the head fetches just now, or could not fetch.
    #[serde(default)]
    pub fetching: Vec<Fetch>,
    /// All that is waited for is beyond the minima of the cluster's file, and not to be had within the limits or just now.
    #[serde(default)]
    pub lacks_only_room: bool,
    pub alarms: Vec<Alarm>,
    pub head: Head,
    /// Jobs that have not ended.
    #[serde(default)]
    pub jobs: JobsSummary,
    pub nodes: Vec<Node>,
    pub runtimes: Vec<Runtime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No specification yet.
    Empty,
    /// Working towards the specification.
    Converging,
    Ready,
    /// `down` was asked for.
    Stopping,
    /// No worker is left; the head can be removed.
    Stopped,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Converging => "converging",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub address: String,
    pub epoch: Epoch,
    pub version: String,
    pub pid: u32,
    pub started: Timestamp,
    /// What archives of software may take before those that no node needs are removed; unknown before there is a description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_limit: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    /// `head` or `worker`.
    pub kind: String,
    #[serde(rename = "type")]
    pub node_type: NodeTypeName,
    pub generation: Generation,
    pub state: String,
    /// Why it is in that state, where there is a reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    pub address: Option<String>,
    pub instance: Option<InstanceId>,
    pub since: Timestamp,
    pub heartbeat_age_ms: Option<u64>,
    pub agent: Option<Agent>,
    pub cpus: Option<u32>,
    pub memory: Option<u64>,
    pub runtimes: BTreeMap<RuntimeName, String>,
    pub services: Vec<Service>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    pub version: String,
    pub pid: u32,
    pub home: String,
    pub health_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub state: String,
    pub detail: String,
    pub pid: Option<u32>,
    pub restarts: u32,
    pub since: Timestamp,
    /// State and detail in one text, such as `crashed (exit 1); restarts in 30 s`.
    #[serde(default)]
    pub description: String,
    /// How it failed last; absent when it never did or has worked for a while since.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<ServiceFailure>,
    /// The last lines of its log while it fails.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub log: Vec<String>,
}

impl Service {
    pub fn of(report: &ServiceReport) -> Self {
        Self {
            name: report.key.to_string(),
            state: report.state.name().to_owned(),
            detail: report.detail.clone(),
            pid: report.pid,
            restarts: report.restarts,
            since: report.since,
            description: report.describe(),
            failure: report.failure.clone(),
            log: report.log.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    pub name: RuntimeName,
    pub version: String,
    pub state: String,
    pub endpoints: Vec<Endpoint>,
    /// So many more there are, which are not named.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub endpoints_left_out: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Where a runtime can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub name: String,
    pub url: String,
}

/// `cloudtik rollout status -o json`: how far the newest revision has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    pub revision: u64,
    pub state: RolloutState,
    /// The revision that the cluster ran before, as long as the roll-out is not complete.
    pub from: Option<u64>,
    /// Nodes that count, the head's included.
    pub nodes: u32,
    /// Those that have the revision.
    pub updated: u32,
    /// Those that have it and run all of it.
    pub ready: u32,
    /// Those that have an older one.
    pub outdated: Vec<NodeId>,
    /// Why it is held.
    pub failure: Option<RolloutFailure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutState {
    /// Nodes take the revision one after the other.
    Progressing,
    /// It failed on a node, and no further node takes it.
    Held,
    /// No roll-out is under way.
    Complete,
}

impl RolloutState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Progressing => "progressing",
            Self::Held => "held",
            Self::Complete => "complete",
        }
    }
}

/// Where and how a revision failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutFailure {
    pub node: NodeId,
    pub generation: Generation,
    pub since: Timestamp,
    pub problem: ServiceProblem,
}

/// What `up` or `up --plan` would change, in the order in which people read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub changes: Vec<Change>,
    /// Money per hour of the cluster after the change, at the nodes' written prices; absent when no price is known.
    #[serde(default)]
    pub price: Option<crate::MoneyPerHour>,
    /// Requests that the change ends or leaves without room; each is a change too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<RequestConflict>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `create`, `change`, `restart` or `destroy`.
    pub action: String,
    pub what: String,
    #[serde(default)]
    pub detail: String,
    /// Something that runs is stopped, restarted or deleted for it.
    #[serde(default)]
    pub disturbs: bool,
}
