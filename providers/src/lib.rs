//! Where nodes come from.
//!
//! Owns: the two provider traits with their contract and typed errors, the providers that need no SDK, and the
//! conformance suite that every provider passes. Must never: decide, retry, or know the wire, agents' insides or
//! runtimes. A provider lists, creates and deletes; who asks knows why.

pub mod conformance;
pub mod local;

use std::time::Duration;

use async_trait::async_trait;
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::node::Instance;
use cloudtik_model::spec::Offer;
use cloudtik_model::{ClusterName, Generation, InstanceId, NodeId, NodeTypeName};

/// How a provider's call failed: what failed decides what the caller may do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no capacity: {0}")]
    StockOut(String),
    #[error("quota exceeded: {0}")]
    Quota(String),
    #[error("throttled: {message}")]
    Throttled { message: String, retry_after: Option<Duration> },
    #[error("not permitted: {action} is missing")]
    Permission { action: String },
    #[error("not found: {0}")]
    NotFound(String),
    /// What is asked for and what exists under that id differ.
    #[error("mismatch: {0}")]
    Mismatch(String),
    /// Nothing of it was deleted, since something is in the way that only a person can remove.
    #[error("{what} cannot be deleted")]
    Undeletable { what: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {operation}")]
    Transient { operation: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {operation}")]
    Permanent { operation: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl Error {
    pub fn transient(operation: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Transient { operation: operation.into(), source: source.into() }
    }

    pub fn permanent(operation: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Permanent { operation: operation.into(), source: source.into() }
    }

    /// Whether the same call will fail the same way.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Permission { .. } | Self::Mismatch(_) | Self::Undeletable { .. } | Self::Permanent { .. })
    }

    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What a provider can do beyond listing, creating and deleting, and how it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`NodeProvider::restart_agent`] works.
    pub restart_agent: bool,
    /// [`NodeProvider::reboot`] works, and this long after it the agent is back.
    pub reboot: Option<Duration>,
    /// The machines are the user's own: never deleted for being unreachable.
    pub owned_machines: bool,
    /// How long an instance that exists may be missing from the list.
    pub visibility: Duration,
}

/// What is to be made.
#[derive(Debug, Clone)]
pub struct CreateNode {
    pub node_type: NodeTypeName,
    /// How and where it is bought, for providers that have a choice.
    pub offer: Offer,
    /// Carries cluster, node and generation, which are the idempotency key and the tags of the instance.
    pub bootstrap: Bootstrap,
}

/// Makes and deletes the machines of one cluster.
///
/// The contract, checked by [`conformance`]:
/// - `create` is idempotent in (node, generation): repeated, also by another process, it returns the same instance and
///   its first bootstrap payload stands.
/// - `list` shows every instance of the cluster, and of no other, with the tags that it was created with, at the latest
///   `visibility` after its creation.
/// - `delete` returns when the instance cannot run anything any more; deleting what is gone succeeds; node, generation
///   and instance must match, else [`Error::Mismatch`] and nothing happens. Data that was brought from elsewhere (a mount)
///   is never deleted with it: that is [`Error::Undeletable`], and the instance stays.
/// - Nothing is retried inside; errors say whether repeating helps.
#[async_trait]
pub trait NodeProvider: Send + Sync {
    fn capabilities(&self) -> Capabilities;

    async fn list(&self) -> Result<Vec<Instance>, Error>;

    async fn create(&self, request: &CreateNode) -> Result<Instance, Error>;

    async fn delete(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error>;

    /// Starts the node's agent again where it is, leaving everything else on the node alone. An agent that hangs is
    /// ended first; one that runs well is not disturbed.
    async fn restart_agent(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error>;

    /// Starts the machine anew: everything on it ends, its disks stay, and its agent starts by itself.
    async fn reboot(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error>;
}

/// Makes what the clusters of a workspace share. Every verb is idempotent and goes on where an interrupted one stopped.
#[async_trait]
pub trait WorkspaceProvider: Send + Sync {
    async fn create(&self) -> Result<(), Error>;
    async fn exists(&self) -> Result<bool, Error>;
    /// Refuses while clusters live in it.
    async fn delete(&self) -> Result<(), Error>;
    /// The clusters that live in it.
    async fn clusters(&self) -> Result<Vec<ClusterName>, Error>;
}
