//! What a head is given when it is made: `head.json` in its state directory.

use std::path::{Path, PathBuf};

use anyhow::Context;
use cloudtik_config::cluster::{Cluster, Workers};
use cloudtik_model::spec::{Spec, Steps};
use cloudtik_model::{Bytes, ClusterName, Generation, Resources};
use cloudtik_providers::local;
use cloudtik_runtimes::Planner;
use serde::{Deserialize, Serialize};

/// What a worker of the local provider may use, unless its type says otherwise.
pub const LOCAL_MEMORY: Bytes = Bytes(2 << 30);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    pub cluster: ClusterName,
    /// The address that the head listens on.
    pub address: String,
    /// The cluster's root certificate in PEM.
    pub ca: String,
    /// SHA-256 of the join token of the head's own node, which the launcher made.
    pub head_token_sha256: String,
    /// Of the head's own node.
    pub generation: Generation,
    /// Archives of software, shared by the user's clusters on this machine.
    pub artifacts: PathBuf,
    /// Where nodes of this machine unpack artifacts, if they share it.
    #[serde(default)]
    pub unpacked: Option<PathBuf>,
    pub provider: Provider,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// The brain's inputs are recorded.
    #[serde(default)]
    pub record: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Provider {
    Local(local::Settings),
}

impl Settings {
    pub const FILE: &str = "head.json";

    pub fn read(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(Self::FILE);
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is malformed", path.display()))
    }

    /// What the brain needs to know of a description.
    pub fn spec(&self, planner: &Planner, revision: u64, steps: Steps) -> Spec {
        let mut spec = planner.spec(revision, steps);
        let Provider::Local(_) = self.provider;
        fill_in(&mut spec, planner.cluster(), local_resources());
        spec
    }

    /// What a node of a type offers: what its description says, and what the provider gives where it says nothing.
    pub fn resources_of(&self, workers: Option<&Workers>) -> Resources {
        let Provider::Local(_) = self.provider;
        or_default(workers, local_resources())
    }
}

fn or_default(workers: Option<&Workers>, default: Resources) -> Resources {
    Resources {
        cpus: workers.and_then(|w| w.cpus).unwrap_or(default.cpus),
        memory: workers.and_then(|w| w.memory).unwrap_or(default.memory),
        gpus: workers.and_then(|w| w.gpus).unwrap_or(default.gpus),
    }
}

/// Says what nodes have where their description leaves that to the provider.
pub fn fill_in(spec: &mut Spec, cluster: &Cluster, default: Resources) {
    for (name, kind) in &mut spec.workers {
        kind.resources.get_or_insert(or_default(cluster.workers.get(name), default));
    }
}

/// What a node of this machine may use by default.
pub fn local_resources() -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    Resources { cpus, memory: LOCAL_MEMORY, gpus: 0 }
}
