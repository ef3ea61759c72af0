//! Descriptions of the cluster as they were accepted, by revision, and the planner of each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_config::Cluster;
use cloudtik_config::cluster::DEFAULT_LIFETIME;
use cloudtik_config::diagnostics::InvalidFile;
use cloudtik_config::secrets;
use cloudtik_model::RuntimeName;
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::pki;
use cloudtik_runtimes::{Catalog, Folder, Planner, changes};
use serde::{Deserialize, Serialize};

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
    pub(crate) fn planner(&self) -> Result<Planner, String> {
        let name = "the cluster file";
        let cluster = Cluster::read(name, &self.cluster_file).map_err(|e| e.render(false, 100))?;
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
        Ok(planner)
    }
}

fn equip(planner: Planner, secret: &[u8]) -> Planner {
    planner.with_secrets(|runtime| pki::runtime_secret(secret, runtime))
}

/// Descriptions and their planners by revision.
type Accepted = BTreeMap<u64, (Description, Arc<Planner>)>;

/// A cheap handle on every revision that may still be in use.
#[derive(Clone)]
pub struct Revisions {
    all: Arc<Mutex<Accepted>>,
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
            match description.planner().map(|planner| equip(planner, secret)) {
                Ok(planner) => {
                    all.insert(revision, (description, Arc::new(planner)));
                }
                Err(error) => tracing::warn!("revision {revision} is not readable any more: {error}"),
            }
        }
        Ok(Self { all: Arc::new(Mutex::new(all)), highest: Arc::new(AtomicU64::new(highest)), secret: Arc::new(secret.to_vec()) })
    }

    /// Reads and checks a description; the planner has the cluster's secrets.
    pub fn planner(&self, description: &Description) -> Result<Planner, String> {
        description.planner().map(|planner| equip(planner, &self.secret))
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Accepted> {
        self.all.lock().expect("nothing panics while holding the lock")
    }

    pub fn put(&self, revision: u64, description: Description, planner: Planner) {
        self.highest.fetch_max(revision, Ordering::Relaxed);
        self.all().insert(revision, (description, Arc::new(planner)));
    }

    /// The planner of a revision.
    pub fn get(&self, revision: u64) -> Option<Arc<Planner>> {
        self.all().get(&revision).map(|(_, planner)| planner.clone())
    }

    /// What a revision said.
    pub fn description(&self, revision: u64) -> Option<Description> {
        self.all().get(&revision).map(|(description, _)| description.clone())
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

    /// The latest revision, if there is any.
    pub fn latest(&self) -> Option<(u64, Description, Arc<Planner>)> {
        self.all().iter().next_back().map(|(n, (d, p))| (*n, d.clone(), p.clone()))
    }
}
