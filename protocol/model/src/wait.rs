//! What a cluster waits for before it is ready.

use serde::{Deserialize, Serialize};

use crate::node::StateName;
use crate::outlook::{Blocked, Unmet};
use crate::reason::Obstacle;
use crate::report::{ServiceFailure, ServiceState};
use crate::{NodeId, NodeTypeName, ServiceKey};

/// Something that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Wait {
    Specification,
    Workers {
        missing: usize,
        node_type: NodeTypeName,
        why: Option<WorkersMissing>,
    },
    /// Its node type was removed.
    Removal {
        node: NodeId,
        why: Option<Obstacle>,
    },
    Room {
        unmet: Unmet,
    },
    /// It was not heard since the head started.
    Heartbeat {
        node: NodeId,
    },
    Gone {
        node: NodeId,
        state: StateName,
        undeletable: bool,
    },
    State {
        node: NodeId,
        state: StateName,
    },
    Service {
        service: ServiceKey,
        node: NodeId,
        /// Nothing if its agent has not reported it yet.
        report: Option<WaitingService>,
    },
    Stop {
        service: ServiceKey,
        node: NodeId,
        state: ServiceState,
    },
    Revision {
        node: NodeId,
        revision: u64,
        why: Option<RevisionWaits>,
    },
    Goal {
        node: NodeId,
    },
}

/// Why workers are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum WorkersMissing {
    OnHold,
    Leaving { count: usize },
    Blocked { by: Blocked },
}

/// A service that is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingService {
    pub state: ServiceState,
    pub detail: String,
    pub failure: Option<ServiceFailure>,
}

/// Why a node has not taken a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum RevisionWaits {
    RolloutHeld,
    Obstacle { why: Obstacle },
}
