//! What a machine is given when it is made, so that its agent can find its head and prove who it is.

use serde::{Deserialize, Serialize};

use crate::program::AgentProgram;
use crate::{ClusterName, Generation, NodeId, NodeTypeName, Resources, goal};

/// The bootstrap payload: a file that only the agent can read. It holds a one-time token and no key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Bootstrap {
    pub cluster: ClusterName,
    pub node: NodeId,
    pub generation: Generation,
    pub node_type: NodeTypeName,
    /// `host:port` of the head's bus.
    pub head: String,
    /// The cluster's root certificate in PEM: the only one that the agent trusts.
    pub ca: String,
    /// Serves one key, once, until the node's join deadline.
    pub token: String,
    /// The address that the node's services listen on, where the provider chose one.
    #[serde(default)]
    pub address: Option<String>,
    /// What the node may use, where the provider shares one machine among nodes.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// Services that belong to the node itself rather than to a goal of the head: on the head's node, the head.
    #[serde(default)]
    pub pinned: Vec<goal::Service>,
    /// Where unpacked artifacts go, if several nodes of one machine share them.
    #[serde(default)]
    pub artifacts: Option<String>,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds that the node goes on without hearing its head; then it lets its work go and ends. For ever, if absent.
    #[serde(default)]
    pub dead_man_ms: Option<u64>,
    /// What shuts the machine down, where it is the node's own: program and arguments.
    #[serde(default)]
    pub power_off: Vec<String>,
    /// What the head serves at `/agent/SHA256` to a machine that has this payload and no agent yet, for each architecture.
    #[serde(default)]
    pub agents: Vec<AgentProgram>,
    /// When this was made, in milliseconds since the Unix epoch, by the clock of whoever made it.
    #[serde(default)]
    pub made_at: i64,
}

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bootstrap").field("cluster", &self.cluster).field("node", &self.node).finish_non_exhaustive()
    }
}

/// The environment variable that every process of a node inherits, where a provider shares one machine among nodes; its
/// value is the node's directory.
pub const NODE_HOME_VARIABLE: &str = "CLOUDTIK_NODE_HOME";
