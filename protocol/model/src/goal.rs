//! What a node is to run, as data. The agent converges to it and knows no runtime by name.
//!
//! A goal is a document: JSON on the wire and on the node's disk. Readers ignore keys that they do not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Epoch, Generation, NodeId, ServiceKey};

/// Everything that one node is to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    pub node: NodeId,
    pub generation: Generation,
    pub epoch: Epoch,
    /// Grows with every goal that the head makes for the node; the latest wins.
    pub version: u64,
    #[serde(default)]
    pub artifacts: Vec<Artifact>,
    #[serde(default)]
    pub services: Vec<Service>,
}

/// Software by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// A word for people, such as `pyspark-4.3.0`.
    pub name: String,
    /// SHA-256 of the archive, in hexadecimal. It is unpacked into a directory of this name.
    pub digest: String,
    /// Bytes of the archive.
    pub size: u64,
}

/// One long-running process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub key: ServiceKey,
    /// Program and arguments; the program is an absolute path.
    pub command: Vec<String>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Relative to the service's directory.
    #[serde(default)]
    pub files: Vec<File>,
    /// Made before the start and never removed by the agent; absolute paths.
    #[serde(default)]
    pub directories: Vec<String>,
    /// Digests of the artifacts that must be in place before the start.
    #[serde(default)]
    pub artifacts: Vec<String>,
    /// Not to be started yet. A process that runs already goes on.
    #[serde(default)]
    pub hold: bool,
    /// What it waits for while held, for people.
    #[serde(default)]
    pub waits_for: String,
    #[serde(default)]
    pub readiness: Option<Probe>,
    #[serde(default)]
    pub health: Option<Probe>,
    #[serde(default)]
    pub stop: Stop,
    #[serde(default)]
    pub restart: Restart,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub limits: Limits,
    /// Numbers to read while it runs.
    #[serde(default)]
    pub gauges: Vec<Gauge>,
    /// What is done before it is stopped for good.
    #[serde(default)]
    pub drain: Option<Drain>,
}

impl Service {
    /// The part of the service that a running process depends on, as a text: if it differs, the process must be
    /// restarted. Probes, restart policy and order may change under a running process.
    pub fn process_identity(&self) -> String {
        serde_json::to_string(&(&self.command, &self.environment, &self.files, &self.artifacts, &self.limits))
            .expect("plain data becomes JSON")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Relative to the service's directory; no `..`.
    pub path: String,
    pub content: String,
    /// Permission bits, such as 0o600.
    #[serde(default = "File::default_mode")]
    pub mode: u32,
    /// User name; only an agent that runs as root can give files away.
    #[serde(default)]
    pub owner: Option<String>,
}

impl File {
    fn default_mode() -> u32 {
        0o600
    }
}

/// How to find out whether a service is ready or healthy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    #[serde(flatten)]
    pub check: Check,
    /// Milliseconds between two probes.
    #[serde(default = "Probe::default_interval")]
    pub interval_ms: u64,
    /// Milliseconds until a probe counts as failed.
    #[serde(default = "Probe::default_timeout")]
    pub timeout_ms: u64,
    /// So many failures in a row make a healthy service unhealthy.
    #[serde(default = "Probe::default_failures")]
    pub failures: u32,
    /// What a service that answers and is not ready yet waits for, for people, such as `waiting to register with the master`;
    /// empty where what the probe saw says it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting: String,
}

impl Probe {
    fn default_interval() -> u64 {
        1_000
    }
    fn default_timeout() -> u64 {
        2_000
    }
    fn default_failures() -> u32 {
        3
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Check {
    /// A connection to `address` (`host:port`) is accepted.
    Tcp { address: String },
    /// `GET url` answers with `status` and, where given, the JSON `pointer` finds `equals`.
    Http {
        url: String,
        #[serde(default = "Check::default_status")]
        status: u16,
        #[serde(default)]
        pointer: Option<String>,
        #[serde(default)]
        equals: Option<serde_json::Value>,
    },
    /// The command ends with status 0.
    Command { command: Vec<String> },
}

impl Check {
    fn default_status() -> u16 {
        200
    }
}

/// A number that a service gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauge {
    pub name: String,
    /// Answers `GET` with status 200.
    pub url: String,
    pub read: Read,
    /// Milliseconds between two looks.
    pub interval_ms: u64,
    /// Milliseconds until a look counts as failed; the last number then holds no more.
    pub timeout_ms: u64,
}

impl Gauge {
    /// The gauge of how much a service does: 0 is idle.
    pub const WORK: &'static str = "work";
}

/// Where the number is in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "read", rename_all = "kebab-case")]
pub enum Read {
    /// In JSON: a number, or the length of a list or table. A `*` in the pointer stands for every element, and all are added.
    Json { pointer: String },
    /// In the Prometheus text format: the sum of all samples of the name that have these labels.
    Metric {
        name: String,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
}

/// How a service is told to let its work go, before it is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub by: DrainBy,
    /// Milliseconds. It is over earlier when the process ends, when its work is 0, or, if that cannot be asked, when the
    /// command or the request is done.
    pub timeout_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainBy {
    Signal(i32),
    Command(Vec<String>),
    Request { method: String, url: String, body: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Sent first.
    pub signal: i32,
    /// Milliseconds from the signal to SIGKILL.
    pub grace_ms: u64,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: 15, grace_ms: 10_000 }
    }
}

/// When a process that ended is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// The first delay in milliseconds; it doubles with every end in a row.
    pub first_ms: u64,
    /// The longest delay in milliseconds.
    pub longest_ms: u64,
    /// A run of so many milliseconds makes the next delay the first one again.
    pub settled_ms: u64,
}

impl Default for Restart {
    fn default() -> Self {
        Self { first_ms: 200, longest_ms: 30_000, settled_ms: 30_000 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Bytes at which the log is rotated.
    pub max_bytes: u64,
    /// Rotated logs that are kept.
    pub keep: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self { max_bytes: 16 << 20, keep: 3 }
    }
}

/// Limits that the agent sets where it has the right to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Thousandths of a core.
    #[serde(default)]
    pub cpu_millis: Option<u64>,
}

impl Limits {
    /// Whether anything is limited.
    pub fn any(&self) -> bool {
        self.memory.is_some() || self.cpu_millis.is_some()
    }
}
