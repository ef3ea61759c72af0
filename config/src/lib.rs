//! What people write: cluster files, read strictly and explained kindly.
//!
//! Owns: the reader that turns TOML into validated types and reports every problem at once, with its place and a
//! suggestion, and the shape of cluster files, workspace files and scenarios. Must never: ask a provider, know what a runtime needs, or do anything.

pub mod cluster;
pub mod diagnostics;
pub mod reader;
pub mod scaling;
pub mod scenario;
pub mod secrets;
mod syntax;
pub mod text;
pub mod undo;
mod workers;
pub mod workspace;

pub use cluster::{Cluster, Head, RuntimeUse};
pub use diagnostics::{InvalidFile, Problem};
pub use workers::Workers;
pub use workspace::Workspace;
