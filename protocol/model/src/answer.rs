//! What was done for whoever asked, as data. The words are in `words`.

use serde::{Deserialize, Serialize};

use crate::event::{RequestDetails, Scale};
use crate::node::StateName;
use crate::outlook::Shortfall;
use crate::reason::Reason;
use crate::{JobId, JobName, NodeId, NodeTypeName};

/// The answer to a request that was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Answer {
    AlreadyOnHold {
        /// As somebody wrote it; empty if nothing was said.
        reason: String,
    },
    OnHold,
    NotOnHold,
    Resumed {
        /// Types of which the creation was paused.
        retried: Vec<NodeTypeName>,
    },
    AlreadyQuarantined {
        node: NodeId,
        why: Reason,
    },
    Quarantined {
        node: NodeId,
    },
    Released {
        node: NodeId,
    },
    Killed {
        node: NodeId,
        /// Its replacement waits until the cluster is resumed.
        on_hold: bool,
    },
    Draining {
        node: NodeId,
        then: AfterDrain,
    },
    /// It was being drained already, and goes on although the cluster is on hold.
    RemovedOnHold {
        node: NodeId,
    },
    AlreadyLeaving {
        node: NodeId,
        state: StateName,
    },
    ShuttingDown,
    Scaled {
        scale: Box<Scale>,
        /// What of it is not there or coming.
        waits: Option<Shortfall>,
        /// Why no node is created for what waits, if the cluster is on hold; empty if nothing was said.
        on_hold: Option<String>,
    },
    Revoked {
        request: RequestDetails,
    },
    JobSubmitted {
        job: JobId,
        name: JobName,
        /// It was submitted before; nothing was added.
        again: bool,
    },
    /// It had not begun, and never will.
    JobCancelled {
        job: JobId,
        name: JobName,
    },
    /// It is being ended.
    JobCancelling {
        job: JobId,
        name: JobName,
    },
    JobDeleted {
        job: JobId,
        name: JobName,
    },
    RolloutResumed {
        /// The revision that is rolled out now.
        revision: u64,
    },
    /// What nodes ran by an earlier revision is rolled out again.
    RolloutUndone {
        from: u64,
        /// The revision that is rolled out now.
        revision: u64,
    },
}

/// What becomes of the desired count when a node is drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "then", rename_all = "kebab-case")]
pub enum AfterDrain {
    /// It is above the desired count.
    NotReplaced,
    /// These requests ask for one fewer.
    CountLowered { requests: Vec<String> },
    Replaced {
        /// Its replacement waits until the cluster is resumed.
        on_hold: bool,
    },
}

crate::worded::worded!(Answer);
