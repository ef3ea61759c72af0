//! Why what was asked for is not done: nothing was changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::demand::Bundle;
use crate::goal::Limits;
use crate::job::{JobRef, JobStateName};
use crate::node::StateName;
use crate::reason::Obstacle;
use crate::{Generation, JobId, JobName, MoneyPerHour, NodeId, NodeTypeName};

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// It names what there is not.
    Unknown,
    /// It makes no sense, whatever there is.
    Malformed,
    /// It cannot be had as things are.
    Declined,
}

/// Why a question is answered with no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Refusal {
    // Of what is asked about a node.
    UnknownNode {
        node: NodeId,
    },
    /// The head's own node is only taken down with the cluster.
    HeadNode,
    AlreadyInState {
        node: NodeId,
        state: StateName,
    },
    CannotQuarantine {
        node: NodeId,
        state: StateName,
    },
    NotQuarantined {
        node: NodeId,
        quarantined: Vec<NodeId>,
    },
    CannotDrain {
        node: NodeId,
        why: Obstacle,
    },
    NoRolloutHeld,

    // Of requests for a size.
    NoSpecification,
    ClusterTakenDown,
    EndsBeforeStart,
    InvalidRequestName {
        name: String,
    },
    TooManyRequests {
        max: u32,
    },
    UnknownNodeType {
        node_type: NodeTypeName,
        known: Vec<NodeTypeName>,
    },
    OutOfBounds {
        node_type: NodeTypeName,
        count: u32,
        min: u32,
        max: u32,
    },
    AboveTypeMaximum {
        node_type: NodeTypeName,
        count: u32,
        max: u32,
    },
    NoMoreWorkers,
    EmptyBundle,
    TooManyBundles {
        count: u64,
        max: u64,
    },
    /// Each bundle needs a node of its own.
    TooManyForSpread {
        count: u64,
        max_workers: u32,
    },
    UnknownResource {
        resource: String,
        known: Vec<String>,
    },
    /// No node of any type is large enough.
    NoTypeFits {
        bundle: Bundle,
        lacks: BTreeMap<NodeTypeName, Lack>,
    },
    /// The limits leave too little for all that is asked for.
    NoRoom {
        why: NoRoom,
    },
    UnknownRequest {
        name: String,
        known: Vec<String>,
    },

    // Of jobs.
    UnknownJob {
        job: JobRef,
        /// Some that there are, the newest first.
        known: Vec<JobName>,
    },
    JobNameTaken {
        name: JobName,
        job: JobId,
        state: JobStateName,
    },
    TooManyJobs {
        max: u32,
    },
    /// It reserves more than the head's node has.
    JobTooLarge {
        needs: Limits,
        has: Limits,
    },
    JobAlreadyEnded {
        job: JobId,
        name: JobName,
        state: JobStateName,
    },
    /// Only a job that has ended is deleted.
    JobNotEnded {
        job: JobId,
        name: JobName,
        state: JobStateName,
    },
    JobWithoutSubmission,

    // Of an agent.
    NotAMember,
    OtherGeneration {
        node: NodeId,
        generation: Generation,
        current: Generation,
    },
    KeyAlreadyUsed,
    WrongToken,
    /// The provider has not said yet that the instance exists.
    LaunchNotConfirmed {
        node: NodeId,
    },
}

impl Refusal {
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::UnknownNode { .. }
            | Self::UnknownNodeType { .. }
            | Self::UnknownResource { .. }
            | Self::UnknownRequest { .. }
            | Self::UnknownJob { .. } => RefusalKind::Unknown,
            Self::EndsBeforeStart
            | Self::InvalidRequestName { .. }
            | Self::NoMoreWorkers
            | Self::EmptyBundle
            | Self::JobWithoutSubmission
            | Self::TooManyBundles { .. } => RefusalKind::Malformed,
            Self::HeadNode
            | Self::AlreadyInState { .. }
            | Self::CannotQuarantine { .. }
            | Self::NotQuarantined { .. }
            | Self::CannotDrain { .. }
            | Self::NoRolloutHeld
            | Self::NoSpecification
            | Self::ClusterTakenDown
            | Self::TooManyRequests { .. }
            | Self::OutOfBounds { .. }
            | Self::AboveTypeMaximum { .. }
            | Self::TooManyForSpread { .. }
            | Self::NoTypeFits { .. }
            | Self::NoRoom { .. }
            | Self::JobNameTaken { .. }
            | Self::TooManyJobs { .. }
            | Self::JobTooLarge { .. }
            | Self::JobAlreadyEnded { .. }
            | Self::JobNotEnded { .. }
            | Self::NotAMember
            | Self::OtherGeneration { .. }
            | Self::KeyAlreadyUsed
            | Self::WrongToken
            | Self::LaunchNotConfirmed { .. } => RefusalKind::Declined,
        }
    }
}

/// What a node of a type lacks for what is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lack", rename_all = "kebab-case")]
pub enum Lack {
    MaximumIsZero,
    /// It is not known what it has.
    Undeclared,
    HasNone {
        resource: String,
    },
    HasOnly {
        bundle: Bundle,
    },
}

/// Why the limits leave too little.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum NoRoom {
    /// By number alone there are too many.
    TooManyWorkers {
        numbers: Vec<(NodeTypeName, u32)>,
        max_workers: u32,
        needed: u32,
    },
    TooExpensive {
        numbers: Vec<(NodeTypeName, u32)>,
        cost: MoneyPerHour,
        budget: MoneyPerHour,
    },
    /// What all of it would take, and the limits that forbid that.
    Takes {
        numbers: Vec<(NodeTypeName, u32)>,
        limits: Vec<ShortLimit>,
    },
}

/// A limit that leaves too little.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "limit", rename_all = "kebab-case")]
pub enum ShortLimit {
    MaxWorkers { max: u32, needed: u32 },
    Budget { budget: MoneyPerHour, needed: MoneyPerHour },
    TypeMaximum { node_type: NodeTypeName, max: u32, needed: u32 },
}

/// Why the head closes an agent's connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum CloseCause {
    Refused { refusal: Refusal },
    NewerConnection,
    NodeGone,
}

crate::worded::worded!(Refusal, NoRoom);
