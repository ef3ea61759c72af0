//! Where nodes come from.
//!
//! Owns: the two provider traits with their contract and typed errors, the providers that need no SDK, and the
//! conformance suite that every provider passes. Must never: decide, retry, or know the wire, agents' insides or
//! runtimes. A provider lists, creates and deletes; who asks knows why.

pub mod conformance;
mod error;
pub mod local;
mod node;

use async_trait::async_trait;
use cloudtik_model::ClusterName;

pub use error::Error;
pub use node::{Capabilities, CreateNode, DeleteNode, NodeProvider};

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
