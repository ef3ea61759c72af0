//! Where nodes come from.
//!
//! Owns: the two provider traits with their contract and typed errors, the providers that need no SDK, how a bare machine
//! becomes a node, and the conformance suite that every provider passes. Must never: decide, retry, or know the wire, agents'
//! insides or runtimes. A provider lists, creates and deletes; who asks knows why.

pub mod blocking;
pub mod conformance;
mod error;
pub mod external;
pub mod kind;
pub mod local;
pub mod machine;
mod node;
mod registry;
pub mod simulated;
pub mod workspace;

pub use error::{Error, WireError};
pub use kind::{Kind, Machines};
pub use local::{LocalTransport as ThisMachine, inherited_environment};
pub use node::{Capabilities, CreateNode, DeleteNode, NodeProvider, instance_id, parse_instance};
pub use registry::{Chosen, Registry, machines_of};
pub use workspace::WorkspaceProvider;
