//! What a head is given when it is made.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ClusterName, Generation, InstanceId, ProviderKind};

/// A provider as a cluster keeps it: the two documents are the provider's own, and nobody else looks into them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderDocument {
    pub kind: ProviderKind,
    /// What the cluster file says in `[provider]`.
    pub settings: Value,
    /// What was settled when the cluster was made and stays for its life, such as its addresses.
    pub site: Value,
}

impl fmt::Debug for ProviderDocument {
    /// Settings may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderDocument").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// The document `head.json` in the head's state directory: the launcher writes it, the head reads it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeadSettings {
    pub cluster: ClusterName,
    /// The address that the head listens on.
    pub address: String,
    /// The cluster's root certificate in PEM.
    pub ca: String,
    /// SHA-256 of the join token of the head's own node, which the launcher made.
    pub head_token_sha256: String,
    /// Of the head's own node.
    pub generation: Generation,
    /// The machine of the head's own node, where that was known before it was made.
    pub instance: Option<InstanceId>,
    /// Archives of software, shared by the user's clusters on this machine.
    pub artifacts: PathBuf,
    /// Where nodes of this machine unpack artifacts, if they share it.
    pub unpacked: Option<PathBuf>,
    pub provider: ProviderDocument,
    /// The directory of programs that are placed on the head's node by digest: the head serves the agents among them.
    pub programs: Option<PathBuf>,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// The brain's inputs are recorded.
    #[serde(default)]
    pub record: bool,
}

impl HeadSettings {
    /// Its name in the head's state directory.
    pub const FILE: &'static str = "head.json";
}
