//! The virtual provider as the registry knows it.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use cloudtik_config::reader::{Problems, Table};
use cloudtik_model::node::Instance;
use cloudtik_model::{Generation, InstanceId, NodeId, Resources};
use cloudtik_providers::kind::{ClusterSite, Kind, Leftover, Machines, Settled, WorkspaceSite, share_of_this_machine};
use cloudtik_providers::{Error, NodeProvider, WorkspaceProvider};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Range, Settings, VirtualProvider, VirtualWorkspace, instance_id, open, sweep};

/// The program of the first process of nodes, beside the others.
const PROGRAM: &str = "cloudtik-virtual";

#[derive(Debug)]
pub struct Virtual;

/// What `[provider]` says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct WorkspaceSettings {
    range: Option<String>,
    nat: bool,
}

impl WorkspaceSettings {
    fn of(document: &Value) -> Result<Self, Error> {
        Self::deserialize(document).map_err(|e| Error::permanent("read the settings of a virtual workspace", e))
    }
}

fn settings(site: &Value) -> Result<Settings, Error> {
    Settings::deserialize(site).map_err(|e| Error::permanent("read what is known of a virtual cluster", e))
}

impl Kind for Virtual {
    fn name(&self) -> &'static str {
        "virtual"
    }

    fn summary(&self) -> &'static str {
        "isolated nodes on this machine's kernel: namespaces, a bridge, limits"
    }

    fn read(&self, table: &mut Table<'_>, _: &Problems) -> Value {
        let range = table.parse::<Range>("range").map(|range| range.value.to_string());
        let nat = table.boolean("nat").unwrap_or(false);
        serde_json::to_value(WorkspaceSettings { range, nat }).unwrap_or_default()
    }

    fn default_resources(&self) -> Option<Resources> {
        Some(share_of_this_machine())
    }

    fn machines(&self) -> Option<&dyn Machines> {
        Some(self)
    }
}

#[async_trait]
impl Machines for Virtual {
    async fn workspace(&self, settings: &Value, site: &WorkspaceSite<'_>) -> Result<Arc<dyn WorkspaceProvider>, Error> {
        let WorkspaceSettings { range, nat } = WorkspaceSettings::of(settings)?;
        let range = range.map(|range| range.parse()).transpose().map_err(|e| Error::permanent("read the range of addresses", e))?;
        let program = site.programs.join(PROGRAM);
        Ok(Arc::new(VirtualWorkspace { directory: site.directory.to_owned(), range, nat, program }))
    }

    async fn settle(&self, _: &Value, cluster: &ClusterSite<'_>) -> Result<Settled, Error> {
        let settings = Settings {
            cluster: cluster.cluster.clone(),
            nodes: cluster.nodes.to_owned(),
            workspace: cluster.workspace_directory.to_owned(),
            agent: cluster.agent.to_owned(),
            program: cluster.programs.join(PROGRAM),
            shared: cluster.shared.to_vec(),
            for_heads: cluster.for_heads.to_vec(),
            hidden: vec![cluster.state.to_owned()],
        };
        let head_address = VirtualProvider::new(settings.clone()).head_address()?.to_string();
        let site = serde_json::to_value(settings).map_err(|e| Error::permanent("note what is known of a virtual cluster", e))?;
        Ok(Settled { site, head_address })
    }

    fn nodes(&self, _: &Value, site: &Value) -> Result<Arc<dyn NodeProvider>, Error> {
        Ok(open(settings(site)?))
    }

    fn instance_of(&self, node: &NodeId, generation: Generation) -> Option<InstanceId> {
        Some(instance_id(node, generation))
    }

    async fn heads(&self, _: &Value, site: &Value) -> Result<Vec<Instance>, Error> {
        // Asked on the machine itself, where what the head needs of it is brought back, should somebody have ended it.
        let provider = VirtualProvider::new(settings(site)?);
        provider.ensure_service()?;
        let mut heads: Vec<_> = provider.list().await?.into_iter().filter(|instance| instance.node.is_head()).collect();
        heads.sort_by_key(|instance| instance.generation);
        Ok(heads)
    }

    fn end_leftovers(&self, nodes: &Path) -> Result<(), Error> {
        sweep::end_below(nodes).map_err(Error::from)
    }

    fn leftovers(&self, workspaces: &Path) -> Result<Vec<Leftover>, Error> {
        let found = sweep::left_below(workspaces).map_err(|e| Error::transient("look for what is left of clusters", e))?;
        // With its first process all of a node ends.
        Ok(found.into_iter().map(|(directory, first)| Leftover { directory, processes: vec![first] }).collect())
    }
}
