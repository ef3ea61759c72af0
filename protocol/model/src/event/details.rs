//! What belongs to single events: the launch of a machine, a scale-in, a policy's change of mind, a request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::demand::{Counted, RequestedCapacity};
use crate::outlook::{Blocked, PolicySays, Source};
use crate::policy::Policy;
use crate::reason::Reason;
use crate::refusal::Lack;
use crate::spec::Offer;
use crate::{Generation, MoneyPerHour, NodeId, NodeTypeName, RuntimeName};

/// A machine that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub node: NodeId,
    pub generation: Generation,
    pub offer: Offer,
    pub purpose: Purpose,
    /// The node that was lost and that this one replaces.
    pub replaces: Option<(NodeId, Generation)>,
}

/// What a machine is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "kebab-case")]
pub enum Purpose {
    /// So many more of its type are wanted.
    Count { missing: u32, node_type: NodeTypeName, source: Option<Source> },
    /// Work has no room elsewhere.
    Room {
        needs: Vec<Counted>,
        /// Requests of which some of that is; a few.
        requests: Vec<String>,
        choice: TypeChoice,
    },
}

/// Why a machine of this type is asked for and none of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "choice", rename_all = "kebab-case")]
pub enum TypeChoice {
    /// For much the same reasons as another that was asked for with it.
    AsFor {
        node: NodeId,
    },
    Not {
        types: BTreeMap<NodeTypeName, NotChosen>,
    },
}

/// Why a type was not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum NotChosen {
    Blocked {
        by: Blocked,
    },
    Lacks {
        what: Lack,
    },
    /// The preferred choice does not fit within the limits.
    PreferredDoesNotFit {
        max_workers: u32,
        budget: Option<MoneyPerHour>,
    },
    LowerPriority {
        its: i32,
        chosen: i32,
    },
    GpusNotNeeded,
    MaximumReached {
        max: u32,
    },
    SameCost,
    MoreExpensive {
        nodes: u64,
        price: MoneyPerHour,
        chosen: MoneyPerHour,
    },
    CheaperTogether,
}

/// A worker that is scaled in because less is wanted or allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleIn {
    pub node: NodeId,
    pub why: Reason,
    /// Who wants how many of its type.
    pub sources: Vec<Source>,
    /// Of its type, running or starting.
    pub present: u32,
    /// Of its type, by count.
    pub wanted: u32,
    pub activity: Activity,
    pub choice: ScaleInChoice,
}

/// What a worker does that is scaled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "activity", rename_all = "kebab-case")]
pub enum Activity {
    NotReadyYet,
    Idle {
        for_s: u64,
    },
    /// A job of one of its runtimes has not ended.
    ServesJobs {
        runtime: RuntimeName,
    },
    BusyOrUnknown,
}

/// Why this worker and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleInChoice {
    AllRemoved,
    /// The order in which what is above a limit goes.
    AboveLimits,
    /// The order in which what is not needed goes.
    NotNeeded,
    TypeRemoved,
}

/// A policy that wants another number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    pub policy: Policy,
    pub before: u32,
    pub now: u32,
    pub says: PolicySays,
    /// Before it was held to its bounds; nothing if it has no opinion.
    pub asked: Option<u32>,
    pub least: u32,
    pub most: u32,
}

/// Why it was planned anew where everything lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replan {
    /// Nodes become free, or what waits fits.
    Better,
    /// Otherwise not all would fit.
    ToFit,
    /// Machines that the plan counted on are not to be had.
    MachinesUnavailable,
}

/// A request as it is told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestDetails {
    pub name: String,
    pub wants: RequestedCapacity,
    /// In the words of who asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How long it stands.
    #[serde(default)]
    pub ends_in_s: Option<u64>,
}

/// A request that was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    pub request: RequestDetails,
    /// For a number of workers: how many there are to be, before and now.
    pub numbers: Option<(u32, u32)>,
    /// Other requests in whose place it stands.
    pub replaced: Vec<String>,
    /// What was wanted under this name before.
    pub instead_of: Option<RequestedCapacity>,
    /// Why there are more than that.
    pub more_because: Option<Source>,
    /// It stood already.
    pub again: Option<Again>,
}

/// What became of a request that stood already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Again {
    /// It ended by itself, and does not any more.
    Lasts,
    EndChanged,
    Same,
}
