//! What registers a provider: its name, its settings, its catalogue, and how its machines and workspaces are reached.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cloudtik_config::reader::{Problems, Table};
use cloudtik_model::node::Instance;
use cloudtik_model::{Bytes, ClusterName, Generation, InstanceId, NodeId, Resources, Shape, ShapeName};
use serde_json::Value;

use crate::{Error, NodeProvider, WorkspaceProvider};

/// The shapes of machines that a provider has.
pub type Catalogue = BTreeMap<ShapeName, Shape>;

/// What types of workers may say beyond their number and resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers {
    /// Machines are to be had in several places.
    pub zones: bool,
    /// Machines are to be had cheaper, for as long as nobody pays more.
    pub spot: bool,
}

/// Memory of a node, where many share this machine and its type says nothing of it.
const SHARED_MEMORY: Bytes = Bytes(2 << 30);

/// What a node has where many share this machine and its type says nothing of it.
pub fn share_of_this_machine() -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    Resources { cpus, memory: SHARED_MEMORY, gpus: 0 }
}

/// One kind of provider.
pub trait Kind: Send + Sync {
    /// As `[provider] kind` names it.
    fn name(&self) -> &'static str;

    /// What machines it is about, in one line.
    fn summary(&self) -> &'static str;

    /// None, unless the kind says otherwise.
    fn offers(&self) -> Offers {
        Offers { zones: false, spot: false }
    }

    /// Reads the provider's own keys of `[provider]` into its own document. Problems are noted with their places; then the
    /// result counts for nothing.
    fn read(&self, table: &mut Table<'_>, problems: &Problems) -> Value;

    /// The shapes of machines, with their prices; there are none, unless the kind says otherwise.
    fn catalogue(&self, _settings: &Value) -> Catalogue {
        Catalogue::new()
    }

    /// What a worker has whose type says nothing of it; none if types must say it.
    fn default_resources(&self) -> Option<Resources>;

    /// None if the kind exists for simulations only.
    fn machines(&self) -> Option<&dyn Machines>;
}

/// A cluster's place on the machine of whoever brings it up.
#[derive(Debug, Clone, Copy)]
pub struct ClusterSite<'a> {
    pub cluster: &'a ClusterName,
    /// The name of the workspace.
    pub workspace: &'a str,
    /// The directory of the cluster's file, by which paths in it go.
    pub base: &'a Path,
    /// The directory of the workspace.
    pub workspace_directory: &'a Path,
    /// The directory of the cluster.
    pub directory: &'a Path,
    /// The directory for the nodes that are on this machine.
    pub nodes: &'a Path,
    /// The agent's program.
    pub agent: &'a Path,
    /// The directory of the launcher's programs.
    pub programs: &'a Path,
    /// What nodes need of this machine as it is here: software, programs.
    pub shared: &'a [PathBuf],
    /// The same, of the head's node alone: its state.
    pub for_heads: &'a [PathBuf],
    /// The directory of everything that is kept of the user's clusters, which nodes need not see otherwise.
    pub state: &'a Path,
    /// The ports that must be free on the head's address.
    pub ports: &'a [u16],
}

/// A workspace's place on the machine of whoever makes it.
#[derive(Debug, Clone, Copy)]
pub struct WorkspaceSite<'a> {
    /// The directory of the workspace.
    pub directory: &'a Path,
    /// The directory of the file that describes it, by which paths in it go.
    pub base: &'a Path,
    /// The agent's program.
    pub agent: &'a Path,
    /// The directory of the launcher's programs.
    pub programs: &'a Path,
}

/// What was settled for a cluster when it was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// The provider's own document, kept for the cluster's life.
    pub site: Value,
    /// The address that the head listens on.
    pub head_address: String,
}

/// Processes that are left of a node whose directory, or whose cluster's state, was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The directory of the node.
    pub directory: PathBuf,
    pub processes: Vec<i32>,
}

/// Whether what runs of an instance on this machine is left of something that was removed. An instance is `nodes/INSTANCE` in its
/// cluster's directory, beside `head`.
pub fn is_orphaned(instance: &Path) -> bool {
    let cluster = instance.parent().and_then(Path::parent);
    !instance.is_dir() || cluster.is_none_or(|cluster| !cluster.join("head").is_dir())
}

/// How the machines and workspaces of a kind are made and reached. The documents are those of [`Kind::read`] and
/// [`Machines::settle`]; one that the provider did not write is [`Error::Permanent`].
#[async_trait]
pub trait Machines: Send + Sync {
    async fn workspace(&self, settings: &Value, site: &WorkspaceSite<'_>) -> Result<Arc<dyn WorkspaceProvider>, Error>;

    /// Settles what stays for a new cluster's life, such as its addresses. Nothing is made.
    async fn settle(&self, settings: &Value, cluster: &ClusterSite<'_>) -> Result<Settled, Error>;

    /// The machines of one cluster.
    fn nodes(&self, settings: &Value, site: &Value) -> Result<Arc<dyn NodeProvider>, Error>;

    /// The id that a machine will have, where the provider makes it from these.
    fn instance_of(&self, node: &NodeId, generation: Generation) -> Option<InstanceId>;

    /// The machine of the head's node, if there is one. Several are listed by their generations, the latest last.
    async fn heads(&self, settings: &Value, site: &Value) -> Result<Vec<Instance>, Error>;

    /// Ends what still runs on this machine for nodes whose directories are, or were, below `nodes`: where the cluster's own
    /// records are lost, that is all there is to go by.
    fn end_leftovers(&self, nodes: &Path) -> Result<(), Error>;

    /// What still runs on this machine of nodes below `workspaces` that nobody can account for.
    fn leftovers(&self, workspaces: &Path) -> Result<Vec<Leftover>, Error>;
}
