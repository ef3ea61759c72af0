//! What a node observes of itself.

use std::collections::BTreeMap;
use std::fmt;

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

/// Whose limit of memory was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryLimit {
    /// That of the service, or of the job.
    Service,
    Node,
}

/// Processes of a node that the kernel killed because a limit of memory was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryKills {
    /// Whose processes; absent for those of no service: of a job, or of a program that a person runs there.
    pub service: Option<ServiceKey>,
    pub count: u32,
    pub limit: MemoryLimit,
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

/// How a service failed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFailure {
    #[serde(flatten)]
    pub cause: FailureCause,
    pub at: Timestamp,
    /// Milliseconds from then to its next start.
    pub restart_in_ms: u64,
}

/// Why a service is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum FailureCause {
    /// Its process ended by itself.
    Crashed {
        /// Absent when a signal ended it, or when it is not known.
        exit_code: Option<i32>,
        /// For people, such as `exit 1` or `killed by SIGSEGV`.
        how: String,
    },
    /// Its health probe failed for so long that the agent restarts it.
    Unhealthy {
        /// What the last probe saw.
        seen: String,
    },
    /// It could not be started.
    NotStarted { why: String },
}

impl fmt::Display for MemoryKills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (of, limit) = match (&self.service, self.limit) {
            (Some(service), MemoryLimit::Service) => (format!(" of {service}"), "the service's"),
            (Some(service), MemoryLimit::Node) => (format!(" of {service}"), "the node's"),
            // What else has a limit of its own is a job.
            (None, MemoryLimit::Service) => (" of a job".to_owned(), "the job's"),
            (None, MemoryLimit::Node) => (String::new(), "the node's"),
        };
        match self.count {
            1 => write!(f, "the kernel killed a process{of}: {limit} memory limit was reached"),
            count => write!(f, "the kernel killed {count} processes{of}: {limit} memory limit was reached"),
        }
    }
}

impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crashed { exit_code: Some(0), how } => write!(f, "ended ({how})"),
            Self::Crashed { how, .. } => write!(f, "crashed ({how})"),
            Self::Unhealthy { seen } => write!(f, "failed its health checks ({seen})"),
            Self::NotStarted { why } => write!(f, "cannot start ({why})"),
        }
    }
}

impl ServiceFailure {
    /// The failure and what follows from it, such as `crashed (exit 1); restarts in 30 s`.
    pub fn describe(&self) -> String {
        describe_failure(&self.cause, self.restart_in_ms)
    }
}

/// A failure and what follows from it.
pub(crate) fn describe_failure(cause: &FailureCause, restart_in_ms: u64) -> String {
    let wait = span(restart_in_ms);
    match cause {
        FailureCause::NotStarted { .. } => format!("{cause}; tries again in {wait}"),
        FailureCause::Unhealthy { .. } => format!("{cause}; it is restarted"),
        FailureCause::Crashed { .. } => format!("{cause}; restarts in {wait}"),
    }
}

/// A state in words, such as `starting: waiting for port 8080`.
pub(crate) fn describe(state: ServiceState, detail: &str, failure: Option<&ServiceFailure>) -> String {
    let behind = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    match (failure, state) {
        (Some(failure), ServiceState::Backoff) => failure.describe(),
        (Some(failure @ ServiceFailure { cause: FailureCause::Unhealthy { .. }, .. }), ServiceState::Stopping) => failure.describe(),
        // An agent of an earlier version does not say more.
        (None, ServiceState::Backoff) => format!("crashed{behind}"),
        (Some(failure), ServiceState::Starting | ServiceState::Fetching) => {
            format!("{} again after it {}{behind}", state.name(), failure.cause)
        }
        (_, ServiceState::Waiting) if !detail.is_empty() => format!("waiting {detail}"),
        (Some(failure), ServiceState::Ready) => format!("ready again after it {}", failure.cause),
        _ => format!("{}{behind}", state.name()),
    }
}

/// A service and its state as a sentence.
pub(crate) fn sentence(key: &ServiceKey, state: ServiceState, detail: &str, failure: Option<&ServiceFailure>) -> String {
    let tells_failure = match state {
        ServiceState::Backoff => true,
        ServiceState::Stopping => failure.is_some_and(|f| matches!(f.cause, FailureCause::Unhealthy { .. })),
        _ => false,
    };
    let verb = if tells_failure { "" } else { "is " };
    format!("{key} {verb}{}", describe(state, detail, failure))
}

fn span(milliseconds: u64) -> String {
    if milliseconds < 1_000 { format!("{milliseconds} ms") } else { format!("{} s", milliseconds / 1_000) }
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
    /// How it failed last; absent when it never did or has worked for a while since.
    #[serde(default)]
    pub failure: Option<ServiceFailure>,
    /// The last lines of its log while it fails: at most [`Self::MAX_LOG_LINES`], [`Self::MAX_LOG_BYTES`] together.
    #[serde(default)]
    pub log: Vec<String>,
}

impl ServiceReport {
    pub const MAX_LOG_LINES: usize = 10;
    pub const MAX_LOG_BYTES: usize = 2_048;

    /// Its state in words, such as `starting: waiting for port 8080` or `crashed (exit 1); restarts in 30 s`.
    pub fn describe(&self) -> String {
        describe(self.state, &self.detail, self.failure.as_ref())
    }

    /// The service and its state as a sentence, such as `queue/q crashed (exit 1); restarts in 30 s`.
    pub fn sentence(&self) -> String {
        sentence(&self.key, self.state, &self.detail, self.failure.as_ref())
    }

    /// How much work it has, in whatever its runtime counts, if that can be asked: 0 is idle.
    pub fn work(&self) -> Option<Quantity> {
        self.gauges.get(goal::Gauge::WORK).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: ServiceState, failure: Option<FailureCause>, detail: &str) -> ServiceReport {
        ServiceReport {
            key: "queue/q".parse().expect("a key"),
            state,
            detail: detail.to_owned(),
            pid: None,
            restarts: 0,
            since: Timestamp(0),
            goal_version: 0,
            gauges: BTreeMap::new(),
            failure: failure.map(|cause| ServiceFailure { cause, at: Timestamp(0), restart_in_ms: 30_000 }),
            log: Vec::new(),
        }
    }

    #[test]
    fn a_state_is_told_in_the_words_of_what_happened() {
        let crash = |exit_code, how: &str| Some(FailureCause::Crashed { exit_code, how: how.to_owned() });
        let unhealthy = Some(FailureCause::Unhealthy { seen: "port 80 answered 500".to_owned() });
        let unstarted = Some(FailureCause::NotStarted { why: "the disk is full".to_owned() });
        for (state, failure, detail, expected) in [
            (ServiceState::Backoff, crash(Some(1), "exit 1"), "", "crashed (exit 1); restarts in 30 s"),
            (ServiceState::Backoff, crash(Some(0), "exit 0"), "", "ended (exit 0); restarts in 30 s"),
            (ServiceState::Backoff, crash(None, "killed by SIGSEGV"), "", "crashed (killed by SIGSEGV); restarts in 30 s"),
            (ServiceState::Backoff, unstarted, "", "cannot start (the disk is full); tries again in 30 s"),
            (ServiceState::Stopping, unhealthy.clone(), "", "failed its health checks (port 80 answered 500); it is restarted"),
            (ServiceState::Starting, None, "waiting for port 80", "starting: waiting for port 80"),
            (
                ServiceState::Starting,
                unhealthy,
                "waiting for port 80",
                "starting again after it failed its health checks (port 80 answered 500): waiting for port 80",
            ),
            (ServiceState::Ready, None, "", "ready"),
            (ServiceState::Waiting, None, "for spark/master", "waiting for spark/master"),
        ] {
            assert_eq!(report(state, failure, detail).describe(), expected);
        }
        assert_eq!(report(ServiceState::Backoff, crash(Some(1), "exit 1"), "").sentence(), "queue/q crashed (exit 1); restarts in 30 s");
        assert_eq!(report(ServiceState::Starting, None, "").sentence(), "queue/q is starting");
    }
}
