//! What the head was given when it was made, and what its provider adds to descriptions.

use std::ops::Deref;
use std::path::Path;

use anyhow::Context;
use cloudtik_config::cluster::{Cluster, Workers};
use cloudtik_model::spec::{Spec, Steps};
use cloudtik_model::{Bytes, HeadSettings, Resources};
use cloudtik_providers::Kind;
use cloudtik_registry::registry;
use cloudtik_runtimes::Planner;

/// Of providers without defaults. Their types of workers say what they have, or their file is refused.
const FALLBACK_RESOURCES: Resources = Resources { cpus: 1, memory: Bytes(1 << 30), gpus: 0 };

/// `head.json`, with the provider that it names.
pub struct Settings {
    document: HeadSettings,
    kind: &'static dyn Kind,
}

impl Deref for Settings {
    type Target = HeadSettings;
    fn deref(&self) -> &HeadSettings {
        &self.document
    }
}

impl Settings {
    pub const FILE: &str = HeadSettings::FILE;

    pub fn read(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(Self::FILE);
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let document = serde_json::from_slice(&text).with_context(|| format!("{} is malformed", path.display()))?;
        Self::new(document).with_context(|| format!("reading {}", path.display()))
    }

    /// Fails if this program has no such provider.
    pub fn new(document: HeadSettings) -> anyhow::Result<Self> {
        let kind = registry().require(&document.provider.kind)?;
        Ok(Self { document, kind })
    }

    /// What the brain needs to know of a description.
    pub fn spec(&self, planner: &Planner, revision: u64, steps: Steps) -> Spec {
        let mut spec = planner.spec(revision, steps);
        fill_in(&mut spec, planner.cluster(), resources_without_type(self.kind));
        spec
    }

    /// What a node of a type offers: what its description says, and what the provider gives where it says nothing.
    pub fn resources_of(&self, workers: Option<&Workers>) -> Resources {
        or_default(workers, resources_without_type(self.kind))
    }
}

/// What a node has whose type says nothing of it.
pub fn resources_without_type(kind: &dyn Kind) -> Resources {
    kind.default_resources().unwrap_or(FALLBACK_RESOURCES)
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
