//! What nodes run: a runtime is a folder, not code.
//!
//! Owns: the manifest (`runtime.toml`) and its validation, templates, the catalog of shipped runtimes, and the planner,
//! a pure function from manifests, cluster, view and node to what the node is to run. Must never: fetch, start or watch
//! anything, or know how a goal travels.

pub mod catalog;
pub mod changes;
pub mod manifest;
pub mod planner;
mod size;
mod template;

pub use catalog::Catalog;
pub use manifest::{Folder, Manifest};
pub use planner::{NodeContext, Planner, View};
