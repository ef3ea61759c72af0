//! `cloudtik provider`: the providers that there are, and the contract run on one of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cloudtik_model::{ClusterName, Generation, NodeId, Resources};
use cloudtik_protocol::files::{create_private_directory, remove_tree};
use cloudtik_protocol::{BUS_PORT, HEALTH_PORT, pki};
use cloudtik_providers::conformance::workspace::World;
use cloudtik_providers::conformance::{self, Breach, Checked};
use cloudtik_providers::kind::{ClusterSite, WorkspaceSite};
use cloudtik_providers::workspace::{Patience, ResourceId, WorkspaceProvider, run};
use cloudtik_providers::{CreateNode, Error, NodeProvider};
use cloudtik_registry::registry;
use serde::Serialize;
use tokio::sync::watch;

use crate::cli::Provider;
use crate::clusters::{ClusterPaths, Described, describe, home, program, programs_directory};
use crate::failure::{FAILED, Failure, INTERRUPTED};
use crate::output::Printer;

/// Of the workspace and the cluster that are made for a check.
const NAME: &str = "provider-check";
/// Where the agents of a check look for a head, in vain.
const NO_HEAD: &str = "127.0.0.1:9";
/// Looks at a workspace before something is said not to become visible: about half a minute.
const LOOKS: u32 = 6_000;

#[derive(Serialize)]
struct Report<'a> {
    provider: &'a str,
    passed: bool,
    clauses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    breach: Option<Broken<'a>>,
}

#[derive(Serialize)]
struct Broken<'a> {
    clause: &'a str,
    found: &'a str,
}

pub async fn command(printer: &Printer, command: Provider) -> Result<u8, Failure> {
    match command {
        Provider::List => {
            list(printer);
            Ok(0)
        }
        Provider::Check { file, machines, yes } => check(printer, &file, machines as usize, yes).await,
    }
}

fn list(printer: &Printer) {
    #[derive(Serialize)]
    struct Listed<'a> {
        name: &'a str,
        summary: &'a str,
    }
    let all: Vec<_> = registry().kinds().map(|kind| Listed { name: kind.name(), summary: kind.summary() }).collect();
    if printer.is_json() {
        return printer.json(&all);
    }
    let rows: Vec<_> = all.iter().map(|kind| vec![kind.name.to_owned(), kind.summary.to_owned()]).collect();
    printer.table(&["PROVIDER", "SUMMARY"], &rows);
}

/// Where a check keeps what belongs to it; removed at its end.
struct Ground {
    directory: PathBuf,
}

impl Ground {
    fn make() -> Result<Self, Failure> {
        let directory = home()?.join(format!("{NAME}-{}", pki::hex(&pki::random::<6>())));
        create_private_directory(&directory)?;
        Ok(Self { directory })
    }

    fn workspace(&self) -> PathBuf {
        self.directory.join(NAME)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = remove_tree(&self.directory);
    }
}

/// Why a check came to no good end.
enum Ended {
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

/// The clauses that hold, each once.
struct Clauses<'a> {
    printer: &'a Printer,
    said: BTreeSet<String>,
    all: Vec<String>,
}

impl Clauses<'_> {
    fn tell(&mut self, clause: &str) {
        if !self.said.insert(clause.to_owned()) {
            return;
        }
        self.all.push(clause.to_owned());
        if !self.printer.is_json() {
            self.printer.line(&format!("ok    {clause}"));
        }
    }
}

async fn check(printer: &Printer, file: &Path, machines: usize, yes: bool) -> Result<u8, Failure> {
    let described = describe(file)?;
    let name = described.provider.kind().name();
    described.provider.machines()?;
    printer.confirm_async(&format!("Create up to {machines} machines of the provider {name}, and delete them?"), yes).await?;
    let ground = Ground::make()?;
    let mut clauses = Clauses { printer, said: BTreeSet::new(), all: Vec::new() };
    let outcome = tokio::select! {
        outcome = suites(&described, &ground, machines, &mut clauses) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(INTERRUPTED, "interrupted; what was created is deleted").into()),
    };
    if outcome.is_err() {
        clear(&described, &ground).await?;
    }
    let breach = match outcome {
        Ok(()) => None,
        Err(Ended::Breach(breach)) => Some(breach),
        Err(Ended::Failure(failure)) => return Err(failure),
    };
    if printer.is_json() {
        let broken = breach.as_ref().map(|breach| Broken { clause: &breach.clause, found: &breach.found });
        printer.json(&Report { provider: name, passed: breach.is_none(), clauses: clauses.all, breach: broken });
        return Ok(if breach.is_none() { 0 } else { FAILED });
    }
    match breach {
        None => {
            printer.say(&format!("the provider {name} keeps the contract: {} clauses", clauses.all.len()));
            Ok(0)
        }
        Some(Breach { clause, found }) => {
            printer.line(&format!("FAIL  {clause}"));
            let failure = Failure::new(FAILED, format!("the provider {name} breaks the contract: {clause}: {found}"));
            Err(failure.hint("what is asked of providers: docs/providers/external.md"))
        }
    }
}

/// Both suites, the one of machines in a workspace that is made for it.
async fn suites(described: &Described, ground: &Ground, machines: usize, clauses: &mut Clauses<'_>) -> Result<(), Ended> {
    let mut tell = |clause: &str| clauses.tell(clause);
    conformance::workspace::check(&Space { described, directory: ground.workspace() }, &mut tell).await?;
    let workspace = workspace(described, &ground.workspace()).await.map_err(Failure::from)?;
    apply(&*workspace, false).await?;
    let nodes = nodes(described, ground).await?;
    let request = request(described)?;
    let checked = Checked { provider: &*nodes, request: &request, many: machines.saturating_sub(1), hold: None };
    conformance::check(&checked, &mut tell).await?;
    apply(&*workspace, true).await?;
    Ok(())
}

/// Deletes what a check that broke off has left.
async fn clear(described: &Described, ground: &Ground) -> Result<(), Failure> {
    if ground.workspace().is_dir() {
        nodes(described, ground).await?.purge().await?;
    }
    registry().end_leftovers(&ground.directory)?;
    apply(&*workspace(described, &ground.workspace()).await?, true).await
}

async fn apply(workspace: &dyn WorkspaceProvider, is_removal: bool) -> Result<(), Failure> {
    let plan = if is_removal { workspace.delete_plan().await? } else { workspace.plan().await? };
    let (_stop, stopped) = watch::channel(false);
    run(workspace, &plan, Patience::default(), stopped, |_| {}).await.map_err(|failed| Failure::from(failed.source))?;
    Ok(())
}

async fn workspace(described: &Described, directory: &Path) -> Result<std::sync::Arc<dyn WorkspaceProvider>, Error> {
    let (base, agent) = (described.base().unwrap_or_default(), program("cloudtik-agent").unwrap_or_default());
    let programs = agent.parent().unwrap_or(Path::new("/")).to_owned();
    let site = WorkspaceSite { directory, base: &base, agent: &agent, programs: &programs };
    described.provider.machines()?.workspace(&described.provider.settings, &site).await
}

async fn nodes(described: &Described, ground: &Ground) -> Result<std::sync::Arc<dyn NodeProvider>, Failure> {
    let (base, agent, cluster) = (described.base()?, program("cloudtik-agent")?, name());
    let (directory, nodes) = (ground.directory.join("cluster"), ground.directory.join("cluster/nodes"));
    create_private_directory(&directory)?;
    let site = ClusterSite {
        cluster: &cluster,
        workspace: NAME,
        base: &base,
        workspace_directory: &ground.workspace(),
        directory: &directory,
        nodes: &nodes,
        agent: &agent,
        programs: &programs_directory()?,
        shared: &[],
        for_heads: &[],
        state: &ground.directory,
        ports: &[BUS_PORT, HEALTH_PORT],
    };
    let machines = described.provider.machines()?;
    let settled = machines.settle(&described.provider.settings, &site).await?;
    Ok(machines.nodes(&described.provider.settings, &settled.site)?)
}

fn name() -> ClusterName {
    ClusterName::new(NAME).expect("a valid name")
}

/// Machines as the first type of worker has them.
fn request(described: &Described) -> Result<impl Fn(&NodeId, Generation) -> CreateNode + Send + Sync, Failure> {
    let ca = pki::Root::generate(&name())?.certificate_pem();
    let workers = described.cluster.workers.values().next().cloned();
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

/// The workspace of a check.
struct Space<'a> {
    described: &'a Described,
    directory: PathBuf,
}

impl Space<'_> {
    fn cluster(&self, name: &ClusterName) -> PathBuf {
        ClusterPaths::within(self.directory.clone(), name.clone()).directory
    }
}

#[async_trait]
impl World for Space<'_> {
    async fn open(&self) -> Result<std::sync::Arc<dyn WorkspaceProvider>, Error> {
        workspace(self.described, &self.directory).await
    }

    fn patience(&self) -> (Patience, u32) {
        (Patience::default(), LOOKS)
    }

    async fn add_cluster(&self, name: &ClusterName) -> bool {
        fs::create_dir(self.cluster(name)).is_ok()
    }

    async fn remove_cluster(&self, name: &ClusterName) {
        let _ = fs::remove_dir(self.cluster(name));
    }

    async fn damage(&self, _: &ResourceId) -> bool {
        false
    }

    async fn exists(&self) -> Option<Vec<String>> {
        None
    }
}
