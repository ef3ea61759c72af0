//! A node's life, and what is remembered of it.

use serde::{Deserialize, Serialize};

pub use crate::evidence::{DialOutcome, Evidence, EvidenceKind, InstanceState};
use crate::reason::Reason;
use crate::spec::{Offer, RequestedShape};
use crate::{Generation, InstanceId, MoneyPerHour, NodeId, NodeTypeName, Resources, Timestamp};

/// Where a node is in its life.
///
/// ```text
/// Requested → Launched → Joined → Preparing → Ready → (Suspect → Down) → Draining → Terminating → Gone
///      └──────────┴─────────┴─────────┴→ Failed(reason) → Terminating        Quarantined: not ours to kill
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum NodeState {
    /// Stored, with its idempotency key, before the provider is called.
    Requested,
    /// The provider says that the instance exists.
    Launched,
    /// The agent proved who it is and has its certificate.
    Joined,
    /// The agent's link is up and it works towards its goal.
    Preparing,
    /// Everything that the node is to run is ready.
    Ready,
    /// Something speaks against the node; evidence is being collected.
    Suspect { evidence: Vec<Evidence> },
    /// The verdict that the node does not answer.
    Down { evidence: Vec<Evidence> },
    /// Its services are being stopped before it is scaled in.
    Draining { reason: Reason },
    /// The provider is asked to delete the instance until it says that it is gone.
    Terminating { reason: Reason },
    /// No instance exists.
    Gone,
    /// It could not be made; what there is of it will be deleted.
    Failed { reason: Reason },
    /// Set aside: it runs on as it is, counts for nothing but money and maxima, and is left alone until somebody looks.
    Quarantined { reason: Reason },
}

impl NodeState {
    pub fn name(&self) -> StateName {
        match self {
            Self::Requested => StateName::Requested,
            Self::Launched => StateName::Launched,
            Self::Joined => StateName::Joined,
            Self::Preparing => StateName::Preparing,
            Self::Ready => StateName::Ready,
            Self::Suspect { .. } => StateName::Suspect,
            Self::Down { .. } => StateName::Down,
            Self::Draining { .. } => StateName::Draining,
            Self::Terminating { .. } => StateName::Terminating,
            Self::Gone => StateName::Gone,
            Self::Failed { .. } => StateName::Failed,
            Self::Quarantined { .. } => StateName::Quarantined,
        }
    }

    /// Whether an instance may exist, so that it counts against every maximum and the budget.
    pub fn may_exist(&self) -> bool {
        !matches!(self, Self::Gone)
    }

    /// Whether the node counts as one of those that are wanted.
    pub fn is_counted(&self) -> bool {
        !self.is_leaving() && !matches!(self, Self::Quarantined { .. })
    }

    /// Whether the node is on its way out.
    pub fn is_leaving(&self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Terminating { .. } | Self::Failed { .. } | Self::Gone)
    }
}

/// A node's state, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateName {
    Requested,
    Launched,
    Joined,
    Preparing,
    Ready,
    Suspect,
    Down,
    Draining,
    Terminating,
    Gone,
    Failed,
    Quarantined,
}

/// What the store remembers of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub id: NodeId,
    pub generation: Generation,
    /// Its place in the order in which the cluster's nodes were requested.
    #[serde(default)]
    pub number: u64,
    pub node_type: NodeTypeName,
    pub life: NodeState,
    /// When it entered that state.
    pub since: Timestamp,
    /// When this generation was requested.
    pub requested_at: Timestamp,
    #[serde(default)]
    pub instance: Option<InstanceId>,
    #[serde(default)]
    pub address: Option<String>,
    /// The fingerprint of the key that this generation joined with: its join token serves no other key.
    #[serde(default)]
    pub key: Option<String>,
    /// The revision of the specification that its goal is made from.
    #[serde(default)]
    pub revision: u64,
    /// What it costs, as its type said when it was requested; unknown if that did not say.
    #[serde(default)]
    pub price: Option<MoneyPerHour>,
    /// This generation was ready once.
    #[serde(default)]
    pub was_ready: bool,
    /// The generation before this one was lost with what it had on its disks, and this one was not ready yet.
    #[serde(default)]
    pub was_lost: bool,
    /// How it was bought.
    #[serde(default)]
    pub offer: Offer,
    /// Where its agent answers, once it has linked.
    #[serde(default)]
    pub health_port: Option<u16>,
    /// What the description said of it when it was requested.
    #[serde(default)]
    pub shape: Option<RequestedShape>,
    /// What its agent found on it, once it has linked.
    #[serde(default)]
    pub found: Option<Resources>,
}

impl NodeRecord {
    pub fn requested(id: NodeId, generation: Generation, node_type: NodeTypeName, at: Timestamp) -> Self {
        Self {
            id,
            generation,
            number: 0,
            node_type,
            life: NodeState::Requested,
            since: at,
            requested_at: at,
            instance: None,
            address: None,
            key: None,
            revision: 0,
            price: None,
            was_ready: false,
            was_lost: false,
            offer: Offer::default(),
            health_port: None,
            shape: None,
            found: None,
        }
    }
}

/// A machine as its provider lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub id: InstanceId,
    /// From its tags.
    pub node: NodeId,
    /// From its tags.
    pub generation: Generation,
    pub address: Option<String>,
    pub state: InstanceState,
}
