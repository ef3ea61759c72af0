//! What is seen of a node and its instance, and speaks for or against them.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// One thing that was seen and speaks for or against a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub at: Timestamp,
    pub kind: EvidenceKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "seen", rename_all = "kebab-case")]
pub enum EvidenceKind {
    /// No heartbeat for so many milliseconds.
    HeartbeatsMissed { for_ms: u64 },
    /// The agent's stream ended.
    StreamClosed { cause: String },
    /// The node's health port was dialled from the head.
    DialBack { outcome: DialOutcome },
    /// What the provider said of the instance.
    Provider { says: InstanceReport },
    /// The head itself was late, so its deadlines were stretched by so many milliseconds.
    HeadLag { by_ms: u64 },
}

/// What came of dialling a node's health port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DialOutcome {
    /// The agent answered over mutual TLS.
    Answered,
    /// The machine answered, and nothing listens there.
    Refused,
    /// Nothing answered in time.
    TimedOut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    Starting,
    Running,
    /// It exists but nothing runs on it.
    Stopped,
    /// It is being deleted or is gone; providers list such instances for a while.
    Terminated,
}

impl InstanceState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Terminated => "terminated",
        }
    }
}

/// What a provider says of an instance that should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceReport {
    Starting,
    Running,
    Stopped,
    Terminated,
    /// It is in no list.
    NotListed,
}

impl From<InstanceState> for InstanceReport {
    fn from(state: InstanceState) -> Self {
        match state {
            InstanceState::Starting => Self::Starting,
            InstanceState::Running => Self::Running,
            InstanceState::Stopped => Self::Stopped,
            InstanceState::Terminated => Self::Terminated,
        }
    }
}
