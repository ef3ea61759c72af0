//! What happened and what was decided, as stored facts for `events` and `why`.

mod details;

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::demand::RequestedCapacity;
use crate::evidence::Evidence;
use crate::job::JobEnd;
pub use crate::node::StateName;
use crate::outlook::ShortageCause;
use crate::policy::Hours;
use crate::reason::{InstanceReport, Obstacle, Reason, RestartCause, ServiceProblem};
use crate::refusal::Refusal;
use crate::report::{FailureCause, MemoryKills, ServiceState};
use crate::spec::Offer;
pub use details::{
    Activity, Again, Launch, NotChosen, PolicyChange, Purpose, Replan, RequestDetails, Scale, ScaleIn, ScaleInChoice, TypeChoice,
};

use crate::{Actor, AdministratorName, Generation, InstanceId, JobId, JobName, NodeId, NodeTypeName, ServiceKey, Timestamp};

/// One line of the cluster's durable log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
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
    pub what: What,
    /// So many that were alike were not stored since the last.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
    /// The last lines of the log of the service that it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Event {
    /// Something that happened to the cluster as a whole, asked for by nobody.
    pub fn new(at: Timestamp, what: What) -> Self {
        Self { position: 0, at, node: None, generation: None, kind: what.kind(), actor: None, what, more: 0, log: Vec::new() }
    }

    /// Whether it says the same again as another, whatever amounts and times they name.
    pub fn repeats(&self, other: &Self) -> bool {
        (&self.node, self.generation, self.kind, &self.actor) == (&other.node, other.generation, other.kind, &other.actor)
            && self.what.essence() == other.what.essence()
    }
}

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
    /// A job changed its state.
    Job,
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
            Self::Job => "job",
            Self::Request => "request",
            Self::Alarm => "alarm",
            Self::Head => "head",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum What {
    // The head.
    HeadStarted {
        epoch: u64,
    },
    SpecificationAccepted {
        revision: u64,
    },
    /// The head did not run, and extended every deadline.
    HeadDelayed {
        seconds: u64,
    },

    // A node's life.
    StateChanged {
        from: StateName,
        to: StateName,
        why: Reason,
    },
    ListFailed {
        error: String,
    },
    AgentRestartFailed {
        error: String,
    },
    RebootFailed {
        error: String,
    },

    // Verdicts.
    NodeDown {
        evidence: Vec<Evidence>,
    },
    InstanceLost {
        evidence: Vec<Evidence>,
    },
    NodeFailed {
        why: Reason,
    },

    // Decisions about nodes.
    Launch(Box<Launch>),
    /// Another node is made in its place.
    ReplacedBy {
        node: NodeId,
        generation: Generation,
    },
    CreateFailed {
        error: String,
    },
    RestartAgent {
        cause: RestartCause,
    },
    Reboot,
    Replace,
    ScaleIn(Box<ScaleIn>),
    /// An instance that belongs to no node is deleted.
    DeleteOrphan {
        instance: InstanceId,
        owner: NodeId,
        of: Generation,
    },
    BrakeReleased,

    // Decisions about the size.
    /// An offer had nothing.
    OfferUnavailable {
        node_type: NodeTypeName,
        offer: Offer,
        why: ShortageCause,
        pause_s: u64,
    },
    TypeResumed {
        node_type: NodeTypeName,
    },
    PolicyBegan {
        policy: String,
        node_type: NodeTypeName,
        count: u32,
        hours: Hours,
    },
    PolicyEnded {
        policy: String,
        hours: Hours,
    },
    PolicyChanged(Box<PolicyChange>),
    RequestEnded {
        request: String,
        wants: RequestedCapacity,
    },
    /// It ended because its node type was removed.
    RequestWithoutType {
        request: String,
    },
    /// Work that needs nothing rare moves away from a machine that has it.
    PlacementsMoved {
        requests: Vec<String>,
    },
    PlacementsReplanned {
        why: Replan,
    },
    RolloutComplete {
        revision: u64,
    },

    // Requests.
    Hold {
        reason: String,
    },
    Resume,
    Quarantine {
        reason: String,
    },
    Release,
    Kill,
    Drain,
    Down,
    ResumeRollout {
        revision: u64,
    },
    Scale(Box<Scale>),
    Revoke {
        request: RequestDetails,
    },
    /// A program was run for somebody.
    Exec {
        program: String,
    },
    JobSubmitted {
        job: JobId,
        name: JobName,
    },
    JobCancelRequested {
        job: JobId,
        name: JobName,
    },
    JobDeleted {
        job: JobId,
        name: JobName,
    },
    AccessGranted {
        name: AdministratorName,
        role: Role,
    },
    AccessAccepted {
        name: AdministratorName,
        role: Role,
        /// The address that accepted it.
        from: String,
    },
    AccessRevoked {
        name: AdministratorName,
        role: Role,
    },

    // Refusals.
    Refused {
        refusal: Refusal,
    },
    ScaleRefused {
        refusal: Refusal,
    },
    RevokeRefused {
        refusal: Refusal,
    },
    JoinRefused {
        claimed: NodeId,
        of: Generation,
        address: String,
        refusal: Refusal,
    },
    ConnectionRefused {
        claimed: NodeId,
        of: Generation,
        refusal: Refusal,
    },
    NotReplaced {
        why: Obstacle,
    },
    /// The provider says that its instance does not run, and it is kept.
    LossNotReplaced {
        instance: InstanceReport,
        why: Obstacle,
    },
    KeptOnHold {
        instance: InstanceReport,
    },
    KeptAboveLimit {
        limit: Reason,
        why: Obstacle,
    },

    // Alarms.
    RolloutHeld {
        revision: u64,
        on: NodeId,
        problem: ServiceProblem,
    },
    PolicyFlaps {
        policy: String,
        wait_s: u64,
    },
    TypePaused {
        node_type: NodeTypeName,
        pause_s: u64,
        attempts: u32,
        why: Reason,
    },
    GoalRefused {
        error: String,
    },
    DeleteFailed {
        error: String,
    },
    OrphanDeleteFailed {
        instance: InstanceId,
        error: String,
    },
    Throttled {
        error: String,
    },
    /// Many workers are silent together.
    Brake {
        silent: u32,
        workers: u32,
    },
    /// A node reports services that the description places nowhere on it, more than are kept.
    ServicesIgnored {
        /// The first that was not kept.
        service: ServiceKey,
        kept: u32,
    },
    ClockOff {
        /// How far the node's clock is behind the head's; negative if it is ahead.
        behind_s: i64,
    },
    /// The kernel killed processes because a limit of memory was reached.
    MemoryUsedUp {
        #[serde(flatten)]
        kills: MemoryKills,
    },
    /// Something goes wrong at the head that no decision depends on, as software that cannot be fetched.
    HeadProblem {
        error: String,
    },

    // Services.
    ServiceFailed {
        service: ServiceKey,
        failure: FailureCause,
        restart_in_ms: u64,
    },
    ServiceChanged {
        service: ServiceKey,
        state: ServiceState,
        /// As its agent said.
        detail: String,
    },

    // Jobs.
    JobStarted {
        job: JobId,
        name: JobName,
        attempt: u32,
    },
    JobEnded {
        job: JobId,
        name: JobName,
        /// 0 if it never began.
        attempt: u32,
        #[serde(flatten)]
        end: JobEnd,
    },
    /// An attempt failed, and another follows.
    JobRetried {
        job: JobId,
        name: JobName,
        /// The one that failed.
        attempt: u32,
        /// So many there may be.
        attempts: u32,
        pause_s: u64,
        #[serde(flatten)]
        end: JobEnd,
    },
}

impl What {
    pub fn kind(&self) -> EventKind {
        match self {
            Self::HeadStarted { .. } | Self::SpecificationAccepted { .. } | Self::HeadDelayed { .. } => EventKind::Head,
            Self::StateChanged { .. } | Self::ListFailed { .. } | Self::AgentRestartFailed { .. } | Self::RebootFailed { .. } => {
                EventKind::Node
            }
            Self::NodeDown { .. } | Self::InstanceLost { .. } | Self::NodeFailed { .. } => EventKind::Verdict,
            Self::Launch(_)
            | Self::ReplacedBy { .. }
            | Self::CreateFailed { .. }
            | Self::RestartAgent { .. }
            | Self::Reboot
            | Self::Replace
            | Self::ScaleIn(_)
            | Self::DeleteOrphan { .. }
            | Self::BrakeReleased
            | Self::OfferUnavailable { .. }
            | Self::TypeResumed { .. }
            | Self::PolicyBegan { .. }
            | Self::PolicyEnded { .. }
            | Self::PolicyChanged(_)
            | Self::RequestEnded { .. }
            | Self::RequestWithoutType { .. }
            | Self::PlacementsMoved { .. }
            | Self::PlacementsReplanned { .. }
            | Self::RolloutComplete { .. } => EventKind::Decision,
            Self::Hold { .. }
            | Self::Resume
            | Self::Quarantine { .. }
            | Self::Release
            | Self::Kill
            | Self::Drain
            | Self::Down
            | Self::ResumeRollout { .. }
            | Self::Scale(_)
            | Self::Revoke { .. }
            | Self::Exec { .. }
            | Self::JobSubmitted { .. }
            | Self::JobCancelRequested { .. }
            | Self::JobDeleted { .. }
            | Self::AccessGranted { .. }
            | Self::AccessAccepted { .. }
            | Self::AccessRevoked { .. } => EventKind::Request,
            Self::Refused { .. }
            | Self::ScaleRefused { .. }
            | Self::RevokeRefused { .. }
            | Self::JoinRefused { .. }
            | Self::ConnectionRefused { .. }
            | Self::NotReplaced { .. }
            | Self::LossNotReplaced { .. }
            | Self::KeptOnHold { .. }
            | Self::KeptAboveLimit { .. } => EventKind::Refusal,
            Self::RolloutHeld { .. }
            | Self::PolicyFlaps { .. }
            | Self::TypePaused { .. }
            | Self::GoalRefused { .. }
            | Self::DeleteFailed { .. }
            | Self::OrphanDeleteFailed { .. }
            | Self::Throttled { .. }
            | Self::Brake { .. }
            | Self::ServicesIgnored { .. }
            | Self::ClockOff { .. }
            | Self::MemoryUsedUp { .. }
            | Self::HeadProblem { .. } => EventKind::Alarm,
            Self::ServiceFailed { .. } | Self::ServiceChanged { .. } => EventKind::Service,
            Self::JobStarted { .. } | Self::JobEnded { .. } | Self::JobRetried { .. } => EventKind::Job,
        }
    }

    /// The same without amounts and texts that differ from time to time.
    fn essence(&self) -> Self {
        let mut essence = self.clone();
        match &mut essence {
            Self::ServiceFailed { restart_in_ms, .. } => *restart_in_ms = 0,
            Self::ServiceChanged { detail, .. } => detail.clear(),
            Self::MemoryUsedUp { kills } => kills.count = 0,
            _ => {}
        }
        essence
    }
}

crate::worded::worded!(Event, What);
