//! Where and how the nodes of a cluster are made, and what the provider can do.

use std::path::PathBuf;
use std::time::Duration;

use cloudtik_model::ClusterName;
use cloudtik_providers::Capabilities;
use serde::{Deserialize, Serialize};

/// What the provider can do.
pub const CAPABILITIES: Capabilities =
    Capabilities { restart_agent: true, reboot: Some(REBOOT_TIME), owned_machines: false, visibility: Duration::ZERO, batch: BATCH };
/// A node is back within moments.
const REBOOT_TIME: Duration = Duration::from_secs(5);
/// A call's answers come together, and a machine has so many processors only.
const BATCH: usize = 16;

/// Where and how the nodes of a cluster are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub cluster: ClusterName,
    /// The directory of the cluster's instances.
    pub nodes: PathBuf,
    /// The directory of the workspace.
    pub workspace: PathBuf,
    /// The agent's program.
    pub agent: PathBuf,
    /// The program `cloudtik-virtual`.
    pub program: PathBuf,
    /// Directories and files of this machine that all nodes see and write; a directory that is missing is made.
    #[serde(default)]
    pub shared: Vec<PathBuf>,
    /// Directories and files of this machine that heads' nodes see and write, and other nodes find empty.
    #[serde(default)]
    pub for_heads: Vec<PathBuf>,
    /// Directories of this machine that nodes find empty, besides that of the instances.
    #[serde(default)]
    pub hidden: Vec<PathBuf>,
}
