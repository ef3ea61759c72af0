//! What is stored of the brain's decisions: a brain is rebuilt from it. Every type has a golden file (`tests/records.rs`): what one
//! version stores, later ones read.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::demand::ResourceRequest;
use cloudtik_model::event::Event;
use cloudtik_model::job::{Attempt, Cancellation, JobSpec, JobState};
use cloudtik_model::node::NodeRecord;
use cloudtik_model::outlook::Outlook;
use cloudtik_model::reason::{Reason, ServiceProblem};
use cloudtik_model::spec::Spec;
use cloudtik_model::{Actor, Generation, JobId, JobName, NodeId, NodeTypeName, Resources, ServiceKey, Timestamp};
use serde::{Deserialize, Serialize};

use crate::access::GrantRecord;

/// What is to be stored before any action of the same step is executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    Node(NodeRecord),
    Cluster(ClusterRecord),
    /// A request that stands now.
    ResourceRequest(ResourceRequest),
    /// A request that does not stand any more, by name.
    ResourceRequestGone {
        name: String,
    },
    /// What is planned on a node now; nothing if that is empty.
    Plan {
        node: NodeId,
        holds: Vec<Planned>,
    },
    Outlook(Outlook),
    Event(Event),
    /// Access that somebody has, had or was offered.
    Grant(GrantRecord),
    /// A grant that is not kept any longer, by number.
    GrantGone {
        number: u64,
    },
    Job(Box<JobRecord>),
    /// A job that is not kept any longer.
    JobGone {
        id: JobId,
    },
}

/// A job as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: JobId,
    pub name: JobName,
    pub spec: JobSpec,
    /// The service of the head's node that must be ready before it starts.
    #[serde(default)]
    pub needs: Option<ServiceKey>,
    pub by: Actor,
    pub submitted: Timestamp,
    pub state: JobState,
    /// The attempt that the state is of, from 1; 0 before the first.
    pub attempt: u32,
    /// Attempts that are over, the last [`Attempt::KEPT`].
    #[serde(default)]
    pub history: Vec<Attempt>,
    #[serde(default)]
    pub cancelled: Option<Cancellation>,
}

/// What a node is to have room for, of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Planned {
    /// The request's number.
    pub request: u64,
    /// Its place in the request's list of bundles.
    pub bundle: usize,
    pub count: u32,
}

/// What is stored of the cluster as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub spec: Option<Spec>,
    #[serde(default)]
    pub stopping: bool,
    /// Somebody holds the brain back.
    #[serde(default)]
    pub held: Option<Hold>,
    /// Types of which nothing is made for now.
    #[serde(default)]
    pub paused: BTreeMap<NodeTypeName, Pause>,
    /// Workers of a type, by number, that go at once even if busy, because the request for them was revoked.
    #[serde(default)]
    pub immediate: BTreeMap<NodeTypeName, u32>,
    /// Types whose workers go as soon as they are idle, because the request for them was revoked.
    #[serde(default)]
    pub when_idle: BTreeSet<NodeTypeName>,
    /// How long services may take to let their work go, in milliseconds, on workers of types that the description no longer
    /// has.
    #[serde(default)]
    pub former_drains: BTreeMap<NodeTypeName, u64>,
    /// What each policy wanted last: a head that knows no loads yet goes on with that.
    #[serde(default)]
    pub policy_wants: BTreeMap<String, PolicyWant>,
    /// What a node turned out to have of a type whose resources the description does not say.
    #[serde(default)]
    pub learned: BTreeMap<NodeTypeName, Learned>,
    /// The roll-out of the newest revision, until every node has it and runs it well.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// The last that was given to a job: numbers are never used again.
    #[serde(default)]
    pub last_job: JobId,
}

/// A revision that goes from node to node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// What the cluster ran before: the last description of which the roll-out was completed. Unknown if an earlier version
    /// began it.
    pub from: Option<Box<Spec>>,
    /// The revision failed on a node: no further node takes it until another revision comes or somebody resumes it.
    pub failed: Option<RolloutFailure>,
}

/// Where and how a revision failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutFailure {
    /// The revision that the node had.
    #[serde(default)]
    pub revision: u64,
    pub node: NodeId,
    pub generation: Generation,
    pub since: Timestamp,
    pub problem: ServiceProblem,
}

/// What one node turned out to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// The number of the newest node that told: those that were requested later know better.
    pub from: u64,
    pub resources: Resources,
    /// So many in a row turned out to have less.
    #[serde(default)]
    pub smaller: u32,
}

/// What a policy wanted of a type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyWant {
    pub node_type: NodeTypeName,
    pub count: u32,
    /// When it last changed its mind, and whether it then wanted more.
    #[serde(default)]
    pub changed: Option<(Timestamp, bool)>,
    /// How many times longer than it says it waits before it changes direction, because it flaps; 0 is 1.
    #[serde(default)]
    pub factor: u64,
}

/// Everything that a brain is rebuilt from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub cluster: ClusterRecord,
    pub requests: Vec<ResourceRequest>,
    pub outlook: Outlook,
    pub nodes: Vec<NodeRecord>,
    #[serde(default)]
    pub plan: BTreeMap<NodeId, Vec<Planned>>,
    #[serde(default)]
    pub jobs: Vec<JobRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub since: Timestamp,
    /// As somebody wrote it; empty if nothing was said.
    pub reason: String,
}

/// Nothing is made of a type until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub until: Timestamp,
    pub reason: Reason,
    /// Pauses in a row.
    pub times: u32,
}
