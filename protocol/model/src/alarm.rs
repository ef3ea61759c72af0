//! What a person should look at now, as data: alarms hold until their cause is gone. The words are in `words`.

use serde::{Deserialize, Serialize};

use crate::outlook::PolicySays;
use crate::reason::{Reason, ServiceProblem};
use crate::{Bytes, NodeId, NodeTypeName, RuntimeName};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Alarm {
    /// Many workers are silent together: no node is terminated.
    Brake,
    OnHold {
        /// As somebody wrote it; empty if nothing was said.
        reason: String,
    },
    TypePaused {
        node_type: NodeTypeName,
        why: Reason,
    },
    RolloutHeld {
        revision: u64,
        node: NodeId,
        problem: ServiceProblem,
    },
    PolicyFlaps {
        policy: String,
        /// It waits so long before it changes direction.
        wait_s: u64,
    },
    PolicyWithoutSignal {
        policy: String,
        says: PolicySays,
    },
    /// A node that is to go and whose machine stays.
    Undeletable {
        node: NodeId,
    },
    /// A runtime's jobs would wait for ever.
    JobsCannotRun(Misfit),
    /// So many further alarms are not named.
    More {
        count: usize,
    },
}

/// A runtime whose jobs would wait for ever: their parts are larger than any worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misfit {
    pub runtime: RuntimeName,
    /// What the runtime calls a part of a job, such as `executor`.
    pub part: String,
    pub needs: PartNeeds,
    /// What the workers have, the largest first.
    pub rooms: Vec<Room>,
    /// What to do, in the runtime's words; may be empty.
    pub advice: String,
}

/// What one part of a job needs of one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartNeeds {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory: Bytes,
}

/// What one worker of a type has for a runtime.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Room {
    pub node_type: NodeTypeName,
    pub cpus: u32,
    pub memory: Bytes,
}

crate::worded::worded!(Alarm);
