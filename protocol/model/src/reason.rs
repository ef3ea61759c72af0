//! Why a node is in a state, why it stays in one, and why its agent is restarted: as data.

use serde::{Deserialize, Serialize};

use crate::evidence::EvidenceKind;
pub use crate::evidence::InstanceReport;
use crate::report::{FailureCause, ServiceFailure, ServiceState};
use crate::{InstanceId, MoneyPerHour, NodeId, RuntimeName, ServiceKey};

/// Why a node entered a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Reason {
    /// Somebody asked to have it gone at once.
    KilledOnRequest,
    /// Somebody asked to have it drained.
    DrainedOnRequest,
    /// Somebody set it aside.
    Quarantined {
        /// As that person wrote it; empty if nothing was said.
        reason: String,
    },
    /// Somebody ended its quarantine.
    Released,
    /// The whole cluster is taken down.
    ClusterTakenDown,
    AboveTypeMaximum {
        max: u32,
    },
    AboveClusterMaximum {
        max: u32,
    },
    AboveBudget {
        budget: MoneyPerHour,
    },
    /// Less is wanted, and this one is not needed.
    NotNeeded,
    /// The provider made the instance.
    Created {
        instance: InstanceId,
    },
    /// The provider lists an instance that an interrupted launch left.
    Found {
        instance: InstanceId,
    },
    /// The provider could not make it.
    CreateFailed {
        /// What the provider said.
        error: String,
    },
    /// None of its type's offers is to be had.
    OfferGone,
    JoinTokenValid,
    AgentConnected,
    ServicesReady,
    ApplyingRevision {
        revision: u64,
    },
    /// Something speaks against it.
    Suspected {
        evidence: EvidenceKind,
    },
    NoHeartbeats,
    HeartbeatsResumed,
    /// It is down, and milder steps did not bring it back.
    NotRecovered,
    ToBeReplaced,
    InstanceLost,
    /// The provider said that its instance does not run.
    ProviderReports {
        instance: InstanceReport,
    },
    /// Its agent did not connect in time.
    NotConnected {
        within_s: u64,
    },
    /// One of its services failed again and again before all were ready.
    ServiceFailed {
        service: ServiceKey,
        tries: u32,
        cause: Option<FailureCause>,
        /// What its agent said where it knows no cause.
        #[serde(default)]
        detail: String,
    },
    Drained,
    /// It is drained, but a service left something.
    DrainedWith {
        service: ServiceKey,
        detail: String,
    },
    NeverRan,
    DrainTimedOut,
    /// It could not be told to drain.
    Disconnected,
    /// What exists of a node that failed is deleted.
    RemovingRemains,
    Deleted,
    NotListed,
}

/// Why an agent is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCause {
    /// It has not come back since the head started.
    NotReconnected,
    /// The machine answers, and its agent does not.
    AgentDead,
    NodeDown,
    /// It has not connected since its launch.
    NotConnected,
}

/// Why a node stays, or is not restarted, just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Obstacle {
    /// Without it, a member group would have too few members up.
    QuorumNeedsIt {
        service: ServiceKey,
        up: u32,
        members: u32,
        needed: u32,
    },
    /// A member group that has too few members up needs what it has on its disks.
    QuorumNeedsItBack {
        service: ServiceKey,
        up: u32,
        members: u32,
        needed: u32,
    },
    /// A member group has too few other members up for it to restart.
    QuorumNeedsOthers {
        service: ServiceKey,
        up: u32,
        members: u32,
        needed: u32,
    },
    /// Another member leaves.
    OtherMemberLeaves {
        service: ServiceKey,
        node: NodeId,
    },
    /// Whether it is down is decided first.
    MissesHeartbeats,
    /// A roll-out is held: what works stays.
    RolloutHeld {
        revision: u64,
    },
    /// It takes a revision of which it is not known whether it works.
    OnTrial {
        revision: u64,
    },
    /// Its placements move to machines that are still starting.
    PlacementsMove,
    /// A request waits for others that leave, and for this one.
    Awaited,
    /// It has not been idle for long enough.
    Idle {
        after_s: u64,
    },
    /// A job of one of its runtimes has not ended.
    ServesJobs {
        runtime: RuntimeName,
    },
    Busy,
    LoadUnknown,
}

/// What is wrong with a service, or with all that a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum ServiceProblem {
    Failed {
        service: ServiceKey,
        cause: FailureCause,
    },
    NotReady {
        service: ServiceKey,
        state: ServiceState,
        detail: String,
    },
    /// Services ended so often, and which of them is not known any more.
    Ended {
        times: u32,
    },
    /// The head cannot fetch what they need.
    NoSoftware {
        software: String,
        error: String,
    },
    /// Not all was ready in time.
    NotReadyInTime {
        within_s: u64,
        problem: Option<Box<ServiceProblem>>,
    },
}

/// What keeps a node from being ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Trouble {
    CreateFailed {
        error: String,
    },
    AgentRestartFailed {
        error: String,
    },
    Quarantined {
        reason: String,
    },
    /// A service that fails.
    Service {
        service: ServiceKey,
        state: ServiceState,
        detail: String,
        failure: Option<ServiceFailure>,
    },
}

crate::worded::worded!(Reason, Obstacle, ServiceProblem, Trouble);
