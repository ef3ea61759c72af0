//! Descriptions of the cluster as they were accepted, by revision, and the planner of each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_config::Cluster;
use cloudtik_config::cluster::{DEFAULT_LIFETIME, Workers};
use cloudtik_config::diagnostics::InvalidFile;
use cloudtik_config::secrets;
use cloudtik_model::{NodeTypeName, RuntimeName};
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::pki;
use cloudtik_providers::Chosen;
use cloudtik_registry::registry;
use cloudtik_runtimes::{Catalog, Folder, Planner, changes};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::Store;

/// A description as somebody sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub cluster_file: String,
    /// `<runtime>/<path>` → text.
    #[serde(default)]
    pub runtime_files: BTreeMap<String, String>,
}

impl Description {
    /// The description for people who look for what is wrong: values of keys that are named like secrets, and passwords in
    /// URLs, are left out, and the files of runtimes are named only.
    pub fn without_secrets(mut self) -> Self {
        self.cluster_file = secrets::redacted(&self.cluster_file);
        self.runtime_files.values_mut().for_each(|text| *text = format!("{} bytes", text.len()));
        self
    }

    /// Reads and checks everything; problems are as a person reads them.
    pub(crate) fn read(&self) -> Result<Checked, String> {
        let name = "the cluster file";
        let mut cluster = Cluster::read(name, &self.cluster_file).map_err(|e| e.render(false, 100))?;
        let provider = registry().read(name, &self.cluster_file).map_err(|e| e.render(false, 100))?;
        let provider = provider.expect("a cluster that was read names its provider");
        provider.fill_in(&mut cluster);
        let mut folders: BTreeMap<RuntimeName, Folder> = BTreeMap::new();
        for (path, text) in &self.runtime_files {
            let Some((runtime, file)) = path.split_once('/') else { return Err(format!("{path:?} names no file of a runtime")) };
            let runtime = RuntimeName::new(runtime).map_err(|e| e.to_string())?;
            folders.entry(runtime).or_default().insert(file.to_owned(), text.clone());
        }
        let catalog = Catalog::of_cluster(&cluster.runtimes, &folders, name, &self.cluster_file)
            .map_err(|errors| errors.iter().map(|e: &InvalidFile| e.render(false, 100)).collect::<Vec<_>>().join("\n"))?;
        catalog.check_signals(&cluster.scaling, name, &self.cluster_file).map_err(|e| e.render(false, 100))?;
        catalog.check_properties(&cluster, name, &self.cluster_file).map_err(|e| e.render(false, 100))?;
        let planner = Planner::new(cluster, catalog);
        // Templates that cannot be filled in show here, not on a node.
        changes::check(&planner).map_err(|e| chain(&e))?;
        Ok(Checked { planner, provider })
    }
}

/// A description, read and checked.
pub struct Checked {
    pub planner: Planner,
    pub provider: Chosen,
}

/// Why a worker cannot be created as it was described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undescribed {
    #[error(
        "this head cannot read revision {0} of the cluster's description, from which the node is to be created; run `cloudtik up` again"
    )]
    Revision(u64),
    #[error("revision {revision} of the cluster's description has no [workers.{node_type}]")]
    NodeType { revision: u64, node_type: NodeTypeName },
}

fn with_secrets(read: Checked, secret: &[u8]) -> Checked {
    Checked { planner: read.planner.with_secrets(|runtime| pki::runtime_secret(secret, runtime)), ..read }
}

/// One revision that may still be in use.
struct Accepted {
    description: Description,
    planner: Arc<Planner>,
    provider: Chosen,
}

impl Accepted {
    fn new(description: Description, read: Checked) -> Self {
        Self { description, planner: Arc::new(read.planner), provider: read.provider }
    }
}

/// A cheap handle on every revision that may still be in use.
#[derive(Clone)]
pub struct Revisions {
    all: Arc<Mutex<BTreeMap<u64, Accepted>>>,
    /// The highest number that was ever given away, be it readable or not.
    highest: Arc<AtomicU64>,
    /// What the secrets of runtimes are derived from.
    secret: Arc<Vec<u8>>,
}

impl Revisions {
    pub fn load(store: &dyn Store, secret: &[u8]) -> anyhow::Result<Self> {
        let (mut all, mut highest) = (BTreeMap::new(), 0);
        for (revision, document) in store.revisions()? {
            highest = highest.max(revision);
            let description: Description = serde_json::from_slice(&document)?;
            // One that this version cannot read any more is no use; nodes that have it keep running what they run.
            match description.read().map(|read| with_secrets(read, secret)) {
                Ok(read) => {
                    all.insert(revision, Accepted::new(description, read));
                }
                Err(error) => tracing::warn!("revision {revision} is not readable any more: {error}"),
            }
        }
        Ok(Self { all: Arc::new(Mutex::new(all)), highest: Arc::new(AtomicU64::new(highest)), secret: Arc::new(secret.to_vec()) })
    }

    /// Reads and checks a description; its planner has the cluster's secrets.
    pub fn read(&self, description: &Description) -> Result<Checked, String> {
        description.read().map(|read| with_secrets(read, &self.secret))
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Accepted>> {
        self.all.lock().expect("nothing panics while holding the lock")
    }

    pub fn put(&self, revision: u64, description: Description, read: Checked) {
        self.highest.fetch_max(revision, Ordering::Relaxed);
        self.all().insert(revision, Accepted::new(description, read));
    }

    /// The planner of a revision.
    pub fn get(&self, revision: u64) -> Option<Arc<Planner>> {
        self.all().get(&revision).map(|accepted| accepted.planner.clone())
    }

    /// How a revision describes a type of worker, and the timer of [`cloudtik_config::cluster::Head`].
    pub fn workers(&self, revision: u64, node_type: &NodeTypeName) -> Result<(Workers, Option<Duration>), Undescribed> {
        let planner = self.get(revision).ok_or(Undescribed::Revision(revision))?;
        let workers = planner.cluster().workers.get(node_type).cloned();
        let workers = workers.ok_or_else(|| Undescribed::NodeType { revision, node_type: node_type.clone() })?;
        Ok((workers, planner.cluster().head.dead_man_timer))
    }

    /// What a revision said.
    pub fn description(&self, revision: u64) -> Option<Description> {
        self.all().get(&revision).map(|accepted| accepted.description.clone())
    }

    pub fn forget_before(&self, revision: u64) {
        let mut all = self.all();
        *all = all.split_off(&revision);
    }

    /// A number that no description has had.
    pub fn next(&self) -> u64 {
        self.highest.load(Ordering::Relaxed) + 1
    }

    /// How long certificates are good for, as the latest description says.
    pub fn certificate_lifetime(&self) -> Duration {
        self.latest().map_or(DEFAULT_LIFETIME, |(_, _, planner)| planner.cluster().head.certificate_lifetime)
    }

    /// The provider's settings of the latest revision, if there is any.
    pub fn provider_settings(&self) -> Option<Value> {
        self.all().values().next_back().map(|latest| latest.provider.settings.clone())
    }

    /// The latest revision, if there is any.
    pub fn latest(&self) -> Option<(u64, Description, Arc<Planner>)> {
        let all = self.all();
        all.iter().next_back().map(|(number, latest)| (*number, latest.description.clone(), latest.planner.clone()))
    }
}

#[cfg(test)]
mod tests {
    use cloudtik_model::Epoch;

    use super::*;
    use crate::store::{EmbeddedDatabase, Leadership};

    #[test]
    fn a_worker_is_described_by_a_revision_that_can_be_read_or_not_at_all() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let database = EmbeddedDatabase::open(&directory.path().join("store"), true).expect("opens");
        let (_, store) = database.begin(b"secret", Epoch(0)).expect("begins");
        let describe = |cluster_file: &str| {
            let description = Description { cluster_file: cluster_file.to_owned(), runtime_files: BTreeMap::new() };
            serde_json::to_vec(&description).expect("becomes JSON")
        };
        let readable = "[cluster]\nname = \"c\"\n[provider]\nkind = \"local\"\n[workers.default]\ncpus = 3\n";
        store.put_revision(1, &describe(readable)).expect("stores");
        store.put_revision(2, &describe(&format!("{readable}of_another_version = 1\n"))).expect("stores");
        store.put_revision(3, &describe(readable)).expect("stores");
        let revisions = Revisions::load(&*store, b"secret").expect("loads");
        let (default, other) = (NodeTypeName::new("default").expect("valid"), NodeTypeName::new("other").expect("valid"));
        assert_eq!(revisions.workers(1, &default).expect("described").0.cpus, Some(3));
        assert_eq!(revisions.workers(2, &default).expect_err("unreadable"), Undescribed::Revision(2));
        assert_eq!(revisions.workers(1, &other).expect_err("no such type"), Undescribed::NodeType { revision: 1, node_type: other });
    }
}
