//! What a node observes of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::demand::Quantity;
use crate::{Bytes, ServiceKey, Timestamp, goal};

/// What an agent says of its machine when its link opens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub agent_version: String,
    pub agent_pid: u32,
    pub hostname: String,
    pub kernel: String,
    pub cpus: u32,
    pub memory: Bytes,
    #[serde(default)]
    pub gpus: u32,
    /// The address that the node's services listen on.
    pub address: String,
    /// The port of the agent's own `/healthz` and `/metrics`.
    pub health_port: u16,
    /// The agent's directory on the node.
    pub home: String,
    /// Where artifacts are unpacked, each in a directory named by its digest.
    pub artifacts: String,
    /// Java installations of the host: their homes and major versions.
    #[serde(default)]
    pub javas: Vec<Java>,
    /// How far the machine's clock is behind the head's, in seconds, where that is known to be much.
    #[serde(default)]
    pub clock_offset_s: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Java {
    pub home: String,
    pub major: u32,
}

/// How busy a node is, in thousandths of what it may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub cpu: u32,
    pub memory: u32,
    /// Of all its GPUs, if it has any that say so.
    #[serde(default)]
    pub gpu: Option<u32>,
}

/// What a service does just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Its goal is known; it is held until what it needs is ready.
    Waiting,
    /// Its artifacts are being fetched.
    Fetching,
    /// Its process runs and is not ready yet.
    Starting,
    Ready,
    /// It was ready and its health probe fails.
    Unhealthy,
    /// Its process ended; it will be started again.
    Backoff,
    /// It is being stopped.
    Stopping,
    /// It is not to run any more, and does not.
    Stopped,
}

impl ServiceState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Fetching => "fetching",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// The latest of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub key: ServiceKey,
    pub state: ServiceState,
    /// Why, for people: a probe's answer, an exit status, a share of a download.
    pub detail: String,
    pub pid: Option<u32>,
    /// Starts after the first.
    pub restarts: u32,
    pub since: Timestamp,
    /// The version of the goal that this was observed under.
    pub goal_version: u64,
    /// The latest of the numbers that its goal asks for, by name.
    #[serde(default)]
    pub gauges: BTreeMap<String, Quantity>,
}

impl ServiceReport {
    /// How much work it has, in whatever its runtime counts, if that can be asked: 0 is idle.
    pub fn work(&self) -> Option<Quantity> {
        self.gauges.get(goal::Gauge::WORK).copied()
    }
}
