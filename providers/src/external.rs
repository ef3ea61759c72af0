//! Machines of a third party's provider: an executable that speaks the provider contract as JSON lines over its standard
//! streams. `docs/providers/external.md` is its contract.
//!
//! The head's node is a process on the machine where the cluster is brought up; the executable makes the workers.

mod executable;
mod nodes;
mod wire;
mod workspace;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cloudtik_config::reader::{Problems, Table};
use cloudtik_model::node::Instance;
use cloudtik_model::{Generation, InstanceId, NodeId, Resources, Shape, ShapeName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::executable::{Executable, Program};
use self::nodes::ExternalNodes;
use self::wire::{CapabilitiesDocument, Started};
use self::workspace::ExternalWorkspace;
use crate::kind::{Catalogue, ClusterSite, Kind, Leftover, Machines, Offers, Settled, WorkspaceSite};
use crate::local::{self, Local, LocalProvider, LocalWorkspace};
use crate::{Error, NodeProvider, WorkspaceProvider};

/// How long a call may take, unless the file says otherwise: less than what the head waits for any provider.
const TIMEOUT: Duration = Duration::from_secs(45);

#[derive(Debug)]
pub struct External;

/// What `[provider]` says.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    command: Vec<String>,
    timeout_ms: u64,
    head_address: Option<IpAddr>,
    /// For the executable alone.
    settings: Value,
    shapes: Catalogue,
}

/// What a cluster keeps.
#[derive(Debug, Serialize, Deserialize)]
struct Site {
    cluster: String,
    workspace: String,
    /// Where the executable runs: the directory of the cluster's file.
    directory: PathBuf,
    capabilities: CapabilitiesDocument,
    /// The head's node on this machine.
    head: local::Settings,
}

impl Settings {
    fn of(document: &Value) -> Result<Self, Error> {
        Self::deserialize(document).map_err(|e| Error::permanent("read the settings of an external provider", e))
    }

    fn executable(self, cluster: &str, workspace: &str, directory: &Path, agent: &Path) -> Executable {
        Executable::new(Program {
            command: self.command,
            directory: directory.to_owned(),
            cluster: cluster.to_owned(),
            workspace: workspace.to_owned(),
            settings: self.settings,
            agent: agent.to_owned(),
            timeout: Duration::from_millis(self.timeout_ms),
        })
    }
}

impl Site {
    fn of(document: &Value) -> Result<Self, Error> {
        Self::deserialize(document).map_err(|e| Error::permanent("read what is known of a cluster of an external provider", e))
    }
}

impl Kind for External {
    fn name(&self) -> &'static str {
        "external"
    }

    fn summary(&self) -> &'static str {
        "machines of an executable of yours, which speaks JSON over its standard streams"
    }

    fn offers(&self) -> Offers {
        Offers { zones: true, spot: true }
    }

    fn read(&self, table: &mut Table<'_>, problems: &Problems) -> Value {
        let command: Vec<String> = table.texts("command").into_iter().map(|part| part.value).collect();
        if command.first().is_none_or(String::is_empty) {
            let help = Some("such as command = [\"python3\", \"provider.py\"]; it runs in the directory of this file".to_owned());
            problems.note(table.span_of("command"), "`provider.command` must be a program with its arguments", help);
        }
        let timeout = table.duration("timeout");
        if let Some(timeout) = timeout.as_ref().filter(|timeout| timeout.value > TIMEOUT) {
            let help = Some(format!("at most {} s, after which the head takes a call for lost", TIMEOUT.as_secs()));
            problems.note(timeout.span.clone(), "`provider.timeout` is too long", help);
        }
        let settings = Settings {
            command,
            timeout_ms: timeout.map_or(TIMEOUT, |timeout| timeout.value).as_millis() as u64,
            head_address: table.parse("head_address").map(|address| address.value),
            settings: table.json("settings").unwrap_or_else(|| Value::Object(serde_json::Map::new())),
            shapes: read_shapes(table),
        };
        serde_json::to_value(settings).unwrap_or_default()
    }

    fn catalogue(&self, settings: &Value) -> Catalogue {
        Settings::of(settings).map(|settings| settings.shapes).unwrap_or_default()
    }

    fn default_resources(&self) -> Option<Resources> {
        None
    }

    fn machines(&self) -> Option<&dyn Machines> {
        Some(self)
    }
}

fn read_shapes(table: &mut Table<'_>) -> Catalogue {
    let mut shapes = Catalogue::new();
    let Some(mut all) = table.table("shapes") else { return shapes };
    for name in all.names::<ShapeName>() {
        let Some(mut table) = all.table(name.value.as_str()) else { continue };
        let cpus = table.require_integer("cpus", 1, 4096, "4");
        let memory = table.require("memory", "\"16GiB\"");
        let gpus = table.integer("gpus", 0, 4096).map_or(0, |gpus| gpus.value as u32);
        let price = table.parse("price").map(|price| price.value);
        table.finish();
        if let (Some(cpus), Some(memory)) = (cpus, memory) {
            shapes.insert(name.value, Shape { resources: Resources { cpus: cpus.value as u32, memory: memory.value, gpus }, price });
        }
    }
    shapes
}

#[async_trait]
impl Machines for External {
    async fn workspace(&self, settings: &Value, site: &WorkspaceSite<'_>) -> Result<Arc<dyn WorkspaceProvider>, Error> {
        let local = LocalWorkspace { directory: site.directory.to_owned() };
        // It runs for no cluster.
        let executable = Settings::of(settings)?.executable("", &local.name(), site.base, site.agent);
        let Started { workspace, .. } = executable.start().await?;
        let shared = workspace.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Arc::new(ExternalWorkspace { local, executable, shared }))
    }

    async fn settle(&self, settings: &Value, cluster: &ClusterSite<'_>) -> Result<Settled, Error> {
        let settings = Settings::of(settings)?;
        let head = match settings.head_address {
            Some(address) => local::Settings { head: Some(address), ..local::Settings::anywhere(cluster) },
            None => local::Settings::free(cluster)?,
        };
        let executable = settings.executable(cluster.cluster.as_str(), cluster.workspace, cluster.base, cluster.agent);
        let Started { capabilities, .. } = executable.start().await?;
        let head_address = head.head_address().to_string();
        let site = Site {
            cluster: cluster.cluster.to_string(),
            workspace: cluster.workspace.to_owned(),
            directory: cluster.base.to_owned(),
            capabilities,
            head,
        };
        let site = serde_json::to_value(site).map_err(|e| Error::permanent("note what is known of the cluster", e))?;
        Ok(Settled { site, head_address })
    }

    fn nodes(&self, settings: &Value, site: &Value) -> Result<Arc<dyn NodeProvider>, Error> {
        let (settings, site) = (Settings::of(settings)?, Site::of(site)?);
        let executable = settings.executable(&site.cluster, &site.workspace, &site.directory, &site.head.agent);
        Ok(Arc::new(ExternalNodes { head: LocalProvider::new(site.head), executable, capabilities: site.capabilities.into() }))
    }

    fn instance_of(&self, node: &NodeId, generation: Generation) -> Option<InstanceId> {
        if node.is_head() { Local.instance_of(node, generation) } else { None }
    }

    async fn heads(&self, _: &Value, site: &Value) -> Result<Vec<Instance>, Error> {
        LocalProvider::new(Site::of(site)?.head).heads()
    }

    fn end_leftovers(&self, _: &Path) -> Result<(), Error> {
        // The head's node is like those of the local provider, which looks for all of them.
        Ok(())
    }

    fn leftovers(&self, _: &Path) -> Result<Vec<Leftover>, Error> {
        Ok(Vec::new())
    }
}
