//! Where a check of a provider takes place: a workspace and a cluster of its own, of which nothing stays.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cloudtik_model::{ClusterName, Generation, NodeId, Resources};
use cloudtik_protocol::files::{create_private_directory, remove_tree};
use cloudtik_protocol::{BUS_PORT, HEALTH_PORT, pki};
use cloudtik_providers::conformance::workspace::World;
use cloudtik_providers::conformance::{self, Breach, Checked};
use cloudtik_providers::kind::{ClusterSite, WorkspaceSite};
use cloudtik_providers::machine::AGENT;
use cloudtik_providers::workspace::{Patience, ResourceId, WorkspaceProvider, run};
use cloudtik_providers::{CreateNode, Error, NodeProvider};
use cloudtik_registry::registry;
use tokio::sync::watch;

use super::gate::{Gate, Gated};
use crate::clusters::{CLUSTERS, ClusterPaths, home, program, programs_directory};
use crate::described::Described;
use crate::failure::Failure;

/// Of the workspace and the cluster that are made for a check.
pub const NAME: &str = "provider-check";
/// Where the agents of a check look for a head, in vain.
const NO_HEAD: &str = "127.0.0.1:9";
/// Looks at a workspace before something is said not to become visible: about half a minute.
const LOOKS: u32 = 6_000;

/// Why a check came to no good end.
pub enum Ended {
    Breach(Breach),
    Failure(Failure),
}

impl From<Breach> for Ended {
    fn from(breach: Breach) -> Self {
        Self::Breach(breach)
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// What a check needs, resolved once. Its directory is removed at the end.
pub struct Ground<'a> {
    described: &'a Described,
    cluster: ClusterName,
    directory: PathBuf,
    base: PathBuf,
    agent: PathBuf,
    programs: PathBuf,
    /// Before whatever makes a resource of the workspace, and before whatever makes a machine.
    resources: Arc<Gate>,
    machines: Arc<Gate>,
}

impl Drop for Ground<'_> {
    fn drop(&mut self) {
        let _ = remove_tree(&self.directory);
    }
}

impl<'a> Ground<'a> {
    pub fn make(described: &'a Described) -> Result<Self, Failure> {
        let (base, agent, programs) = (described.base()?, program(AGENT)?, programs_directory()?);
        let directory = home()?.join(format!("{NAME}-{}", pki::hex(&pki::random::<6>())));
        create_private_directory(&directory)?;
        let cluster = ClusterName::new(NAME).expect("a valid name");
        Ok(Self { described, cluster, directory, base, agent, programs, resources: Arc::default(), machines: Arc::default() })
    }

    /// Both suites, the one of machines in a workspace that is made for it.
    pub async fn run(&self, machines: usize, record: &mut (dyn FnMut(&str) + Send)) -> Result<(), Ended> {
        conformance::workspace::check(self, record).await?;
        let workspace = self.open().await.map_err(Failure::from)?;
        apply(&*workspace, false).await?;
        let nodes = self.nodes().await?;
        let request = self.request()?;
        let checked = Checked { provider: &*nodes, request: &request, many: machines.saturating_sub(1), hold: None };
        conformance::check(&checked, record).await?;
        apply(&*workspace, true).await?;
        Ok(())
    }

    /// Returns when no call is under way that creates something. What [`Ground::run`] does then must not go on.
    pub async fn settled(&self) {
        let _closed = tokio::join!(self.resources.close(), self.machines.close());
    }

    /// Deletes what a check that broke off has left, as far as that can be done.
    pub async fn clear(&self) -> Result<(), Failure> {
        let machines = if self.machines.was_passed() { self.delete_machines().await } else { Ok(()) };
        let processes = registry().end_leftovers(&self.directory).map_err(Failure::from);
        let workspace = if self.resources.was_passed() { self.delete_workspace().await } else { Ok(()) };
        machines.and(processes).and(workspace)
    }

    async fn delete_machines(&self) -> Result<(), Failure> {
        let nodes = self.nodes().await?;
        Ok(conformance::clear(&*nodes).await?)
    }

    async fn delete_workspace(&self) -> Result<(), Failure> {
        // A cluster that the suite put there holds the workspace.
        match fs::read_dir(self.workspace_directory().join(CLUSTERS)) {
            Ok(clusters) => {
                for cluster in clusters {
                    let path = cluster?.path();
                    if path.is_dir() {
                        fs::remove_dir(path)?;
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let workspace = self.open().await?;
        apply(&*workspace, true).await
    }

    fn workspace_directory(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    fn cluster_directory(&self, name: &ClusterName) -> PathBuf {
        ClusterPaths::within(self.workspace_directory(), name.clone()).directory
    }

    async fn nodes(&self) -> Result<Arc<dyn NodeProvider>, Failure> {
        let (directory, nodes) = (self.directory.join("cluster"), self.directory.join("cluster/nodes"));
        create_private_directory(&directory)?;
        let site = ClusterSite {
            cluster: &self.cluster,
            workspace: NAME,
            base: &self.base,
            workspace_directory: &self.workspace_directory(),
            directory: &directory,
            nodes: &nodes,
            agent: &self.agent,
            programs: &self.programs,
            shared: &[],
            for_heads: &[],
            state: &self.directory,
            ports: &[BUS_PORT, HEALTH_PORT],
        };
        let provider = &self.described.provider;
        let settled = provider.machines()?.settle(&provider.settings, &site).await?;
        let provider = provider.machines()?.nodes(&provider.settings, &settled.site)?;
        Ok(Arc::new(Gated { gate: self.machines.clone(), provider }))
    }

    /// Machines as the first type of worker has them.
    fn request(&self) -> Result<impl Fn(&NodeId, Generation) -> CreateNode + Send + Sync + use<>, Failure> {
        let ca = pki::Root::generate(&self.cluster)?.certificate_pem();
        let workers = self.described.cluster.workers.values().next().cloned();
        let resources = workers.as_ref().and_then(|w| Some(Resources { cpus: w.cpus?, memory: w.memory?, gpus: w.gpus.unwrap_or(0) }));
        let zone = workers.as_ref().and_then(|w| w.zones.first().cloned());
        let shape = workers.and_then(|w| w.shape);
        Ok(move |node: &NodeId, generation: Generation| {
            let mut request = conformance::request(node, generation, NO_HEAD, &ca);
            request.shape.clone_from(&shape);
            request.offer.zone.clone_from(&zone);
            request.bootstrap.resources = resources;
            request
        })
    }
}

async fn apply(workspace: &dyn WorkspaceProvider, is_removal: bool) -> Result<(), Failure> {
    let plan = if is_removal { workspace.delete_plan().await? } else { workspace.plan().await? };
    let (_stop, stopped) = watch::channel(false);
    run(workspace, &plan, Patience::default(), stopped, |_| {}).await.map_err(|failed| Failure::from(failed.source))?;
    Ok(())
}

#[async_trait]
impl World for Ground<'_> {
    async fn open(&self) -> Result<Arc<dyn WorkspaceProvider>, Error> {
        let (directory, chosen) = (self.workspace_directory(), &self.described.provider);
        let site = WorkspaceSite { directory: &directory, base: &self.base, agent: &self.agent, programs: &self.programs };
        let provider = chosen.machines()?.workspace(&chosen.settings, &site).await?;
        Ok(Arc::new(Gated { gate: self.resources.clone(), provider }))
    }

    fn patience(&self) -> (Patience, u32) {
        (Patience::default(), LOOKS)
    }

    async fn add_cluster(&self, name: &ClusterName) -> bool {
        fs::create_dir(self.cluster_directory(name)).is_ok()
    }

    async fn remove_cluster(&self, name: &ClusterName) {
        let _ = fs::remove_dir(self.cluster_directory(name));
    }

    async fn damage(&self, _: &ResourceId) -> bool {
        false
    }

    async fn exists(&self) -> Option<Vec<String>> {
        None
    }
}
