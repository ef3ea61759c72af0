//! What the brain hears, and what it wants done.

use std::collections::BTreeSet;

use cloudtik_model::answer::Answer;
use cloudtik_model::demand::RequestedCapacity;
use cloudtik_model::event::What;
use cloudtik_model::job::{JobRef, JobReport, JobSpec};
use cloudtik_model::node::{DialOutcome, Instance};
use cloudtik_model::refusal::{CloseCause, Refusal};
use cloudtik_model::report::{Facts, Load, MemoryKills, ServiceReport};
use cloudtik_model::spec::{Offer, Spec};
use cloudtik_model::{Actor, Generation, InstanceId, JobId, JobName, NodeId, NodeTypeName, ServiceKey, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Record;

/// The number of one bus connection, unique within a head's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Session(pub u64);

/// A question that waits for [`Action::Reply`], and who asks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Unique within a head's life.
    pub number: u64,
    pub actor: Actor,
}

impl Request {
    pub fn new(number: u64, actor: Actor) -> Self {
        Self { number, actor }
    }
}

/// What the brain hears.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "input", rename_all = "kebab-case")]
pub enum Input {
    /// The head started: records are loaded, nothing else is known.
    Started,
    /// A deadline came, or time simply passes.
    Tick,
    /// A new description of the cluster was accepted.
    Specified {
        spec: Spec,
        actor: Actor,
    },
    /// Somebody wants something of the cluster's size.
    Scale {
        request: Request,
        asked: NewRequest,
    },
    /// Somebody revokes a request.
    Revoke {
        request: Request,
        name: String,
        /// Workers that become free go without waiting for `idle_after`.
        #[serde(default)]
        now: bool,
    },
    /// Somebody wants the brain to make and end nothing by itself.
    Hold {
        request: Request,
        reason: String,
    },
    Resume {
        request: Request,
    },
    /// Somebody wants a roll-out that is held to be tried again.
    ResumeRollout {
        request: Request,
    },
    /// Somebody wants a node set aside.
    Quarantine {
        request: Request,
        node: NodeId,
        reason: String,
    },
    /// Somebody wants a node that was set aside back.
    Release {
        request: Request,
        node: NodeId,
    },
    /// Somebody wants a node gone at once.
    Kill {
        request: Request,
        node: NodeId,
    },
    /// Somebody wants a node drained.
    Drain {
        request: Request,
        node: NodeId,
    },
    /// Somebody did something that the log should tell and nothing is decided about.
    Noted {
        actor: Actor,
        node: NodeId,
        what: What,
    },
    /// Something goes wrong that a person should look at and nothing is decided about.
    Complained {
        what: String,
    },
    /// Somebody wants every worker gone.
    Shutdown {
        request: Request,
    },
    /// Somebody wants a job run. The head has its files, and knows its runtime.
    SubmitJob {
        request: Request,
        spec: Box<JobSpec>,
        /// The service of the head's node that must be ready before it starts.
        needs: Option<ServiceKey>,
    },
    /// Somebody wants a job ended.
    CancelJob {
        request: Request,
        job: JobRef,
    },
    /// Somebody wants a job that has ended forgotten, with its output.
    DeleteJob {
        request: Request,
        job: JobRef,
    },
    /// What is to run of an attempt cannot be made from the description as it is now.
    JobNotPlanned {
        id: JobId,
        attempt: u32,
        error: String,
    },
    /// An agent asks for a certificate. `token` says whether its join token is right.
    JoinAsked {
        request: Request,
        node: NodeId,
        generation: Generation,
        key: String,
        token: bool,
        address: String,
    },
    /// An agent's stream is open, and its certificate says who it is.
    LinkOpened {
        session: Session,
        node: NodeId,
        generation: Generation,
        facts: Facts,
    },
    LinkClosed {
        session: Session,
        node: NodeId,
        cause: String,
    },
    /// Heartbeats that arrived since the last step, at most one for each connection.
    Heartbeats {
        received: Vec<Heartbeat>,
    },
    Reported {
        session: Session,
        node: NodeId,
        complete: bool,
        services: Vec<ServiceReport>,
        /// Of the head's node; if the report is complete, of every job that it has.
        #[serde(default)]
        jobs: Vec<JobReport>,
    },
    /// The kernel killed processes of a node for want of memory.
    MemoryUsedUp {
        session: Session,
        node: NodeId,
        kills: MemoryKills,
    },
    GoalAcknowledged {
        session: Session,
        node: NodeId,
        version: u64,
        refusal: Option<String>,
    },
    /// The head failed to fetch software that a node's goal needs.
    SoftwareFailed {
        node: NodeId,
        /// Of the goal.
        version: u64,
        software: String,
        error: String,
        /// Attempts in a row that failed.
        tries: u32,
    },
    DialedBack {
        node: NodeId,
        generation: Generation,
        outcome: DialOutcome,
    },
    Created {
        node: NodeId,
        generation: Generation,
        result: Result<Instance, Failure>,
    },
    Deleted {
        node: NodeId,
        generation: Generation,
        instance: InstanceId,
        result: Result<(), Failure>,
    },
    /// The provider says that its machines may have changed since its last list.
    MachinesChanged,
    AgentRestarted {
        node: NodeId,
        generation: Generation,
        result: Result<(), Failure>,
    },
    Rebooted {
        node: NodeId,
        generation: Generation,
        result: Result<(), Failure>,
    },
    Listed {
        /// Of the question.
        number: u64,
        result: Result<Vec<Instance>, Failure>,
    },
}

/// The latest heartbeat of one connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub session: Session,
    pub node: NodeId,
    /// When it arrived: milliseconds of the head's monotonic clock. It may be later than the moment of the step.
    pub at: u64,
    /// How busy the node is, if that changed.
    #[serde(default)]
    pub load: Option<Load>,
}

impl Input {
    /// A single heartbeat.
    pub fn heartbeat(session: Session, node: NodeId, at: u64, load: Option<Load>) -> Self {
        Self::Heartbeats { received: vec![Heartbeat { session, node, at, load }] }
    }
}

/// How a provider's call failed, as far as deciding goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub message: String,
    /// Milliseconds to wait, if the provider said.
    pub retry_after: Option<u64>,
    pub kind: FailureKind,
}

impl Failure {
    /// How long to wait as the provider says, in milliseconds: an hour at most.
    pub(crate) fn wait(&self) -> u64 {
        self.retry_after.unwrap_or(0).min(3_600_000)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// There is none of what was asked for, and nothing was made.
    StockOut,
    /// The account may have no more of it, and nothing was made.
    Quota,
    /// Too many calls; nothing was made.
    Throttled,
    /// Asking again may help; whether something was made is not known.
    Transient,
    /// Asking again the same will fail the same.
    Permanent,
}

/// What somebody wants of the cluster's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRequest {
    /// Under which it is kept; made up if it is left out.
    #[serde(default)]
    pub name: Option<String>,
    pub wants: RequestedCapacity,
    /// Beside what was asked for before, and not in its place.
    #[serde(default)]
    pub additive: bool,
    /// When it ends by itself.
    #[serde(default)]
    pub until: Option<Timestamp>,
    #[serde(default)]
    pub reason: String,
}

/// What the body is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Make an instance; node and generation are the idempotency key.
    Create {
        node: NodeId,
        generation: Generation,
        node_type: NodeTypeName,
        /// Of the specification that says its shape.
        revision: u64,
        offer: Offer,
    },
    /// Delete an instance; all three must match.
    Delete {
        node: NodeId,
        generation: Generation,
        instance: InstanceId,
    },
    RestartAgent {
        node: NodeId,
        generation: Generation,
        instance: InstanceId,
        /// Also if it runs: it hangs.
        force: bool,
    },
    /// Start the machine anew, with everything on it; its disks stay.
    Reboot {
        node: NodeId,
        generation: Generation,
        instance: InstanceId,
    },
    /// Ask the provider what there is; the answer carries the number.
    ListInstances {
        number: u64,
    },
    DialBack {
        node: NodeId,
        generation: Generation,
        address: String,
        port: u16,
    },
    /// Make the node's goal from `revision` and send it: of the node's services, those in `start` may start.
    SendGoal {
        node: NodeId,
        order: GoalOrder,
    },
    /// Tell the head's node what it has to do with jobs.
    SendJobs {
        node: NodeId,
        order: JobsOrder,
    },
    CloseLink {
        session: Session,
        cause: CloseCause,
    },
    Reply {
        /// The number of the question.
        request: u64,
        result: Result<Reply, Refusal>,
    },
}

/// What a node's goal is to be made from, and over which link it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoalOrder {
    pub session: Session,
    pub version: u64,
    /// Of the specification.
    pub revision: u64,
    /// Of the node's services, those that may start.
    pub start: BTreeSet<ServiceKey>,
    /// Nothing is to run any more.
    pub drain: bool,
}

/// The jobs of the head's node, and over which link they are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsOrder {
    pub session: Session,
    pub version: u64,
    /// Those that have not ended and have left the queue.
    pub jobs: Vec<JobOrder>,
    /// Those that have ended and are kept.
    pub kept: Vec<JobId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOrder {
    pub id: JobId,
    pub name: JobName,
    /// From 1.
    pub attempt: u32,
    /// What is to be started, unless the attempt is known to have begun or is to end.
    pub start: Option<Box<JobSpec>>,
    pub cancel: bool,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Done {
        answer: Answer,
    },
    /// Certify the node's key, for this address.
    Admit {
        node: NodeId,
        generation: Generation,
        address: String,
    },
}

/// What one input led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    pub records: Vec<Record>,
    pub actions: Vec<Action>,
}
