//! Nodes as plain processes of this user on this machine, each in a directory and on a loopback address of its own.
//!
//! An instance is its directory `<node>.<generation>` under the cluster's node directory; it is made under another name
//! and renamed, so that it is there whole or not at all. The machine that it stands for is always running: what can end
//! is its agent, which can be started again. Every process of a node carries the instance's directory in its environment
//! ([`MARK`]), which is how all of them are found when the node is deleted.

mod kind;
mod processes;
mod transport;
mod workspace;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloudtik_files::{PRIVATE, RemoveError, create_private_directory_in_place, refuse_mounts, remove_tree};
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::{Generation, InstanceId, NodeId};
use serde::{Deserialize, Serialize};

pub use kind::Local;
pub use processes::MARK;
pub use transport::LocalTransport;
pub use workspace::LocalWorkspace;

use crate::blocking::{blocking, each};
pub use crate::machine::BOOTSTRAP_FILE;
use crate::machine::{self, AGENT, Layout, Order, Program, Start};
use crate::node::{instance_id, parse_instance};
use crate::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider};

/// The file that marks a directory as an instance.
const INSTANCE_FILE: &str = "instance.json";
/// Held locked by an agent while it runs; contains its process id.
pub const AGENT_LOCK: &str = "agent.lock";
/// How long an agent that was told to stop may take.
const ENDING: Duration = Duration::from_secs(2);
/// An agent of this machine is back within moments.
const REBOOT_TIME: Duration = Duration::from_secs(5);
/// Few, since a call's answers come together and each item is a process on this machine anyway.
const BATCH: usize = 4;
/// How long processes may take to vanish after SIGKILL before the delete fails (to be repeated).
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Where and how nodes are made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// The directory of the cluster's instances.
    pub nodes: PathBuf,
    /// The first three octets of the cluster's loopback addresses; the head is `.1`.
    pub network: [u8; 3],
    /// The agent's program. Agents start as what is placed beside the directory of instances, by digest; the path that leads to
    /// that keeps other files of this name from changing what a running cluster's agents are.
    pub agent: PathBuf,
    /// The address of the head, if it is not of the network.
    #[serde(default)]
    pub head: Option<IpAddr>,
}

impl Settings {
    /// All nodes of the cluster are on one machine, so they share its programs.
    fn layout(&self, instance: &InstanceId) -> Layout {
        Layout { root: self.nodes.parent().unwrap_or(Path::new("/")).to_owned(), home: self.nodes.join(instance.as_str()) }
    }

    /// The address of the head.
    pub fn head_address(&self) -> IpAddr {
        let [a, b, c] = self.network;
        self.head.unwrap_or_else(|| Ipv4Addr::new(a, b, c, 1).into())
    }
}

#[derive(Debug, Clone)]
pub struct LocalProvider {
    settings: Settings,
}

#[derive(Debug, Serialize, Deserialize)]
struct InstanceFile {
    node: NodeId,
    generation: Generation,
    address: Option<IpAddr>,
}

impl LocalProvider {
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// The head's node in its generations.
    pub(crate) fn heads(&self) -> Result<Vec<Instance>, Error> {
        let heads = self.instances()?.into_iter().filter(|(_, file)| file.node.is_head());
        // What says which instance it is may be lost: then there is none to go on with.
        let is_whole = |id: &InstanceId| self.home(id).join(INSTANCE_FILE).exists();
        let mut heads: Vec<_> = heads.filter(|(id, _)| is_whole(id)).map(|(id, file)| describe(id, &file)).collect();
        heads.sort_by_key(|instance| instance.generation);
        Ok(heads)
    }

    /// The directory of an instance.
    pub fn home(&self, instance: &InstanceId) -> PathBuf {
        self.settings.nodes.join(instance.as_str())
    }

    /// Has an instance's agent run, by the program that is placed here. Blocks.
    fn start_agent(&self, instance: &InstanceId, bootstrap: Option<&Bootstrap>) -> Result<(), Error> {
        let layout = self.settings.layout(instance);
        let agent = Program::read(AGENT, &self.settings.agent);
        let agent = agent.map_err(|e| Error::transient(format!("read {}", self.settings.agent.display()), e))?;
        let programs = [agent];
        let order = Order { layout: &layout, may_create_root: false, programs: &programs, bootstrap, start: Start::Detached };
        let transport = LocalTransport::of_node(&layout.home);
        let made = tokio::runtime::Handle::current().block_on(machine::run(&transport, &order));
        made.map_err(|error| {
            let operation = format!("start {instance}");
            if error.is_permanent() { Error::permanent(operation, error) } else { Error::transient(operation, error) }
        })
    }

    fn lock(&self) -> Result<File, Error> {
        let failed = |source| Error::transient("lock the node directory", source);
        // Not its parents: a cluster whose directory was removed does not come back.
        create_private_directory_in_place(&self.settings.nodes).map_err(failed)?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(self.settings.nodes.join(".lock"));
        let lock = lock.map_err(failed)?;
        lock.lock().map_err(failed)?;
        Ok(lock)
    }

    fn instances(&self) -> Result<Vec<(InstanceId, InstanceFile)>, Error> {
        let failed = |source| Error::transient("read the node directory", source);
        let entries = match fs::read_dir(&self.settings.nodes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(id) = InstanceId::new(entry.file_name().to_string_lossy()) else { continue };
            // The name says whose it is; what else the file says may be lost without the node being lost to us.
            let Some((node, generation)) = parse_instance(&id) else { continue };
            let known = fs::read(entry.path().join(INSTANCE_FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            found.push((id, known.unwrap_or(InstanceFile { node, generation, address: None })));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    fn free_address(&self, node: &NodeId) -> Result<IpAddr, Error> {
        let [a, b, c] = self.settings.network;
        if node.is_head() {
            return Ok(self.settings.head_address());
        }
        let used: Vec<IpAddr> = self.instances()?.into_iter().filter_map(|(_, i)| i.address).collect();
        let mut all = (2..=254).map(|last| IpAddr::from(Ipv4Addr::new(a, b, c, last)));
        all.find(|address| !used.contains(address))
            .ok_or_else(|| Error::Quota { quota: "addresses".to_owned(), message: "a local cluster has at most 253 workers".to_owned() })
    }

    fn create_now(&self, request: &CreateNode) -> Result<Instance, Error> {
        let Bootstrap { node, generation, .. } = &request.bootstrap;
        let generation = *generation;
        let id = instance_id(node, generation);
        let home = self.home(&id);
        let _lock = self.lock()?;
        let file = match fs::read(home.join(INSTANCE_FILE)) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::permanent(format!("read {id}"), e))?,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::transient(format!("read {id}"), error)),
            // It was made, and somebody removed what said so: not ours to make again beside what may still run there.
            Err(_) if home.exists() => return Err(Error::permanent(format!("create {id}"), io::Error::from(io::ErrorKind::AlreadyExists))),
            Err(_) => {
                let file = InstanceFile { node: node.clone(), generation, address: Some(self.free_address(node)?) };
                self.make_directory(&home, &file).map_err(|e| Error::transient(format!("create {}", home.display()), e))?;
                file
            }
        };
        let address = file.address.map(|a| a.to_string());
        self.start_agent(&id, Some(&Bootstrap { address, ..request.bootstrap.clone() }))?;
        Ok(describe(id, &file))
    }

    fn make_directory(&self, home: &Path, file: &InstanceFile) -> io::Result<()> {
        let temporary = self.settings.nodes.join(format!(".{}.new", instance_id(&file.node, file.generation)));
        remove_tree(&temporary).map_err(io::Error::other)?;
        fs::DirBuilder::new().mode(PRIVATE).create(&temporary)?;
        let path = temporary.join(INSTANCE_FILE);
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        io::Write::write_all(&mut out, &serde_json::to_vec(file)?)?;
        out.sync_all()?;
        fs::rename(&temporary, home)?;
        File::open(&self.settings.nodes)?.sync_all()
    }

    fn delete_now(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        if *instance != instance_id(node, generation) {
            return Err(Error::Mismatch(format!("{instance} is not {node}, generation {generation}")));
        }
        let home = self.home(instance);
        // Its processes first, also if somebody removed its directory; and nothing is started there meanwhile. Without the
        // directory of the nodes nothing can be started.
        let _lock = if self.settings.nodes.exists() { Some(self.lock()?) } else { None };
        processes::kill_marked(&home, KILL_DEADLINE).map_err(|e| Error::transient(format!("kill the processes of {instance}"), e))?;
        processes::remove_groups(&home);
        if !home.exists() {
            return Ok(());
        }
        let failed = |e: io::Error| Error::transient(format!("remove {}", home.display()), e);
        let not_removed = |error: RemoveError| match error {
            RemoveError::Mounted(_) => Error::Undeletable { what: instance.to_string(), source: error.into() },
            RemoveError::Io { source, .. } => failed(source),
        };
        refuse_mounts(&home).map_err(not_removed)?;
        // First what makes it an instance: a removal that breaks off leaves files, never half an instance.
        match fs::remove_file(home.join(INSTANCE_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        remove_tree(&home).map_err(not_removed)
    }

    fn restart_now(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error> {
        if *instance != instance_id(node, generation) {
            return Err(Error::Mismatch(format!("{instance} is not {node}, generation {generation}")));
        }
        let home = self.home(instance);
        let failed = |e| Error::transient(format!("end the agent of {instance}"), e);
        if !force {
            // It may just be ending: then there is nobody in a moment.
            let patience = Instant::now() + ENDING;
            while running_agent(&home).map_err(failed)?.is_some() {
                if Instant::now() > patience {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _lock = self.lock()?;
        if !home.join(INSTANCE_FILE).exists() {
            return Err(Error::NotFound(instance.to_string()));
        }
        if let Some(pid) = running_agent(&home).map_err(failed)? {
            if !force {
                return Ok(());
            }
            processes::kill(pid).map_err(failed)?;
            let deadline = Instant::now() + KILL_DEADLINE;
            while running_agent(&home).map_err(failed)?.is_some() {
                if Instant::now() > deadline {
                    return Err(failed(io::Error::new(io::ErrorKind::TimedOut, "it does not end")));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.start_agent(instance, None)
    }

    /// Ends everything that runs on the node, and starts its agent.
    fn reboot_now(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        if *instance != instance_id(node, generation) {
            return Err(Error::Mismatch(format!("{instance} is not {node}, generation {generation}")));
        }
        let home = self.home(instance);
        let _lock = self.lock()?;
        if !home.join(INSTANCE_FILE).exists() {
            return Err(Error::NotFound(instance.to_string()));
        }
        processes::kill_marked(&home, KILL_DEADLINE).map_err(|e| Error::transient(format!("end the processes of {instance}"), e))?;
        self.start_agent(instance, None)
    }
}

/// What of this user's environment nodes get: what the ecosystem's clients are configured by, and nothing that may be
/// somebody's secret.
pub fn inherited_environment() -> impl Iterator<Item = (String, String)> {
    const NAMES: [&str; 10] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "XDG_CONFIG_HOME", "CLOUDTIK_LOG"];
    let is_wanted = |name: &str| {
        let upper = name.to_ascii_uppercase();
        let is_clients =
            upper.ends_with("_PROXY") || upper.starts_with("PIP_") || upper.contains("CA_BUNDLE") || upper.starts_with("SSL_CERT_");
        NAMES.contains(&name) || name.starts_with("LC_") || is_clients
    };
    let readable = std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
    readable.filter(move |(name, _)| is_wanted(name))
}

/// The process id of the agent that holds the lock in `home`, if one does.
pub fn running_agent(home: &Path) -> io::Result<Option<i32>> {
    let lock = match File::open(home.join(AGENT_LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(fs::read_to_string(home.join(AGENT_LOCK))?.trim().parse().ok()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn describe(id: InstanceId, file: &InstanceFile) -> Instance {
    Instance {
        id,
        node: file.node.clone(),
        generation: file.generation,
        address: file.address.map(|a| a.to_string()),
        state: InstanceState::Running,
    }
}

#[async_trait]
impl NodeProvider for LocalProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities { restart_agent: true, reboot: Some(REBOOT_TIME), owned_machines: false, visibility: Duration::ZERO, batch: BATCH }
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        blocking(self, |p| Ok(p.instances()?.into_iter().map(|(id, file)| describe(id, &file)).collect())).await
    }

    async fn create(&self, requests: &[CreateNode]) -> Vec<Result<Instance, Error>> {
        each(self, requests, LocalProvider::create_now).await
    }

    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
        each(self, requests, |provider, request| provider.delete_now(&request.node, request.generation, &request.instance)).await
    }

    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error> {
        let instance = instance.clone();
        blocking(self, move |p| {
            let found = p.instances()?.into_iter().find(|(id, _)| *id == instance);
            found.map(|(id, file)| describe(id, &file)).ok_or_else(|| Error::NotFound(instance.to_string()))
        })
        .await
    }

    async fn purge(&self) -> Result<(), Error> {
        let failed = |e| Error::transient("kill what is left of the cluster", e);
        blocking(self, move |p| processes::kill_below(&p.settings.nodes, KILL_DEADLINE).map_err(failed)).await
    }

    async fn restart_agent(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error> {
        let (node, instance) = (node.clone(), instance.clone());
        blocking(self, move |p| p.restart_now(&node, generation, &instance, force)).await
    }

    async fn reboot(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        let (node, instance) = (node.clone(), instance.clone());
        blocking(self, move |p| p.reboot_now(&node, generation, &instance)).await
    }
}
