//! The local provider as the registry knows it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use cloudtik_config::reader::{Problems, Table};
use cloudtik_model::node::Instance;
use cloudtik_model::{Generation, InstanceId, NodeId, Resources};
use serde_json::Value;

use super::{KILL_DEADLINE, LocalProvider, LocalWorkspace, Settings, processes};
use crate::kind::{ClusterSite, Kind, Leftover, Machines, Settled, WorkspaceSite, share_of_this_machine};
use crate::node::instance_id;
use crate::{Error, NodeProvider, WorkspaceProvider};

/// Networks that are looked at before none is taken for free.
const ATTEMPTS: u32 = 64;

#[derive(Debug)]
pub struct Local;

impl Kind for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn summary(&self) -> &'static str {
        "nodes as processes on this machine"
    }

    fn read(&self, _: &mut Table<'_>, _: &Problems) -> Value {
        Value::Null
    }

    fn default_resources(&self) -> Option<Resources> {
        Some(share_of_this_machine())
    }

    fn machines(&self) -> Option<&dyn Machines> {
        Some(self)
    }
}

#[async_trait]
impl Machines for Local {
    async fn workspace(&self, _: &Value, site: &WorkspaceSite<'_>) -> Result<Arc<dyn WorkspaceProvider>, Error> {
        Ok(Arc::new(LocalWorkspace { directory: site.directory.to_owned() }))
    }

    async fn settle(&self, _: &Value, cluster: &ClusterSite<'_>) -> Result<Settled, Error> {
        let settings = Settings::free(cluster)?;
        let head_address = settings.head_address().to_string();
        let site = serde_json::to_value(settings).map_err(|e| Error::permanent("note the addresses of a local cluster", e))?;
        Ok(Settled { site, head_address })
    }

    fn nodes(&self, _: &Value, site: &Value) -> Result<Arc<dyn NodeProvider>, Error> {
        Ok(Arc::new(provider(site)?))
    }

    fn instance_of(&self, node: &NodeId, generation: Generation) -> Option<InstanceId> {
        Some(instance_id(node, generation))
    }

    async fn heads(&self, _: &Value, site: &Value) -> Result<Vec<Instance>, Error> {
        provider(site)?.heads()
    }

    fn end_leftovers(&self, nodes: &Path) -> Result<(), Error> {
        processes::kill_below(nodes, KILL_DEADLINE).map_err(|e| Error::transient("end what is left of a cluster", e))
    }

    fn leftovers(&self, workspaces: &Path) -> Result<Vec<Leftover>, Error> {
        let found = processes::orphans(workspaces).map_err(|e| Error::transient("look for what is left of clusters", e))?;
        Ok(found.into_iter().map(|(directory, processes)| Leftover { directory, processes }).collect())
    }
}

fn provider(site: &Value) -> Result<LocalProvider, Error> {
    let settings: Settings =
        serde_json::from_value(site.clone()).map_err(|e| Error::permanent("read what is known of a local cluster", e))?;
    Ok(LocalProvider::new(settings))
}

impl Settings {
    /// For addresses of loopback on which the cluster's ports are free.
    pub fn free(cluster: &ClusterSite<'_>) -> Result<Self, Error> {
        Ok(Self { network: free_network(cluster)?, ..Self::anywhere(cluster) })
    }

    /// Without addresses of its own.
    pub fn anywhere(cluster: &ClusterSite<'_>) -> Self {
        Self { nodes: cluster.nodes.to_owned(), network: [127, 0, 0], agent: cluster.agent.to_owned(), head: None }
    }
}

/// Loopback addresses on which the cluster's ports are free. The first guess comes from the cluster's place, so that it is usually
/// the same.
fn free_network(cluster: &ClusterSite<'_>) -> Result<[u8; 3], Error> {
    let mut hasher = DefaultHasher::new();
    (nix::unistd::getuid().as_raw(), cluster.directory).hash(&mut hasher);
    let start = hasher.finish() as u32;
    for attempt in 0..ATTEMPTS {
        let n = start.wrapping_add(attempt);
        // 127.0 and 127.1 are used by others: Debian's own host name, resolvers.
        let network = [127, 16 + (n >> 8) as u8 % 224, n as u8];
        let address = Ipv4Addr::new(network[0], network[1], network[2], 1);
        let is_free = |port: &u16| TcpListener::bind(SocketAddr::from((address, *port))).is_ok();
        if cluster.ports.iter().all(is_free) {
            return Ok(network);
        }
    }
    let ports: Vec<String> = cluster.ports.iter().map(u16::to_string).collect();
    Err(Error::StockOut(format!("no loopback address has the ports {} free", ports.join(" and "))))
}
