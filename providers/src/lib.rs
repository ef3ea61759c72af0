//! Where nodes come from.
//!
//! Owns: the two provider traits with their contract and typed errors, the providers that need no SDK, and the
//! conformance suite that every provider passes. Must never: decide, retry, or know the wire, agents' insides or
//! runtimes. A provider lists, creates and deletes; who asks knows why.

pub mod conformance;
mod error;
pub mod local;
mod node;
pub mod workspace;

pub use error::Error;
pub use node::{Capabilities, CreateNode, DeleteNode, NodeProvider};
pub use workspace::WorkspaceProvider;
