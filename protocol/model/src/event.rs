//! What happened and what was decided, as stored facts for `events` and `why`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Actor, Generation, NodeId, Timestamp};

/// One line of the cluster's durable log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The position in the log, from 1; 0 before it is stored.
    #[serde(default)]
    pub position: u64,
    pub at: Timestamp,
    #[serde(default)]
    pub node: Option<NodeId>,
    #[serde(default)]
    pub generation: Option<Generation>,
    pub kind: EventKind,
    /// Who asked for it, if somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    pub message: String,
    /// Facts behind it: evidence, alternatives, inputs.
    #[serde(default)]
    pub details: BTreeMap<String, String>,
    /// What happened, without amounts and times: an event of the same topic and node says the same again. Absent where the
    /// message says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// The detail of an event that carries the last lines of a service's log.
pub const LOG_DETAIL: &str = "log";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A node changed its state.
    Node,
    /// Something was concluded from evidence.
    Verdict,
    /// The brain chose to act.
    Decision,
    /// The brain chose not to act, or refused to.
    Refusal,
    /// A service changed its state.
    Service,
    /// Somebody asked for something.
    Request,
    /// A person should look.
    Alarm,
    /// The head started, stopped or took a new specification.
    Head,
}

impl EventKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Verdict => "verdict",
            Self::Decision => "decision",
            Self::Refusal => "refusal",
            Self::Service => "service",
            Self::Request => "request",
            Self::Alarm => "alarm",
            Self::Head => "head",
        }
    }
}
