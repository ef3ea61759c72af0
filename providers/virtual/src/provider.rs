//! The machines of a cluster.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use cloudtik_files::{PRIVATE, RemoveError, create_private_directory_in_place, refuse_mounts, remove_tree};
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::{Generation, InstanceId, NodeId};
use cloudtik_providers::blocking::{blocking, each};
use cloudtik_providers::local::{BOOTSTRAP_FILE, inherited_environment};
use cloudtik_providers::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider};
use rustix::process::Signal;

use crate::failure::Failure;
use crate::ground::is_root;
use crate::groups::Hierarchies;
use crate::instance::{Machine, Place, instance_id, parse_instance};
use crate::netlink::Netlink;
use crate::network::Network;
use crate::range::Range;
use crate::root::{HOSTS_DIRECTORY, HOSTS_FILE};
use crate::service;
use crate::settings::{CAPABILITIES, Settings};
use crate::sweep;

/// How long a first process may take to end after SIGKILL before the call fails, to be repeated.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Ends the name of the directory of what was an instance and is being removed.
const GONE: &str = ".gone";
/// What ends a node from within, where nothing else is given.
const POWER_OFF: [&str; 3] = ["/bin/sh", "-c", "kill -TERM 1"];

#[derive(Debug, Clone)]
pub struct VirtualProvider {
    settings: Settings,
}

impl VirtualProvider {
    pub fn new(settings: Settings) -> Self {
        let all = |paths: Vec<PathBuf>| paths.iter().map(|path| crate::absolute(path)).collect();
        // A node may lack what a symbolic link on the way lies in: it is shown by both names.
        let both = |path: PathBuf| if crate::absolute(&path) == path { vec![path] } else { vec![crate::absolute(&path), path] };
        let settings = Settings {
            nodes: crate::absolute(&settings.nodes),
            workspace: crate::absolute(&settings.workspace),
            shared: settings.shared.into_iter().flat_map(both).collect(),
            for_heads: all(settings.for_heads),
            hidden: all(settings.hidden),
            ..settings
        };
        Self { settings }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The agent's directory of an instance, at the same path on this machine and on the node.
    pub fn home(&self, instance: &InstanceId) -> PathBuf {
        self.place(instance).home()
    }

    /// The address that the cluster's head has, in all its generations.
    pub fn head_address(&self) -> Result<Ipv4Addr, Error> {
        self.make_nodes_directory()?;
        self.take_address(&self.settings.nodes).map(|(address, _)| address)
    }

    /// Ends everything on a node and leaves its disk. It can be started again by a reboot.
    pub fn stop(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        let place = self.matching(node, generation, instance)?;
        self.end(&place, instance).map(drop)
    }

    /// Starts what the cluster's head asks for its nodes, unless it runs or the cluster has no head's node.
    pub fn ensure_service(&self) -> Result<(), Error> {
        if !service::has_head(&self.settings.nodes) {
            return Ok(());
        }
        service::start(&self.settings).map_err(|e| Error::transient("start the service of the cluster", e))
    }

    /// How many processes of a node the kernel killed because the node's memory was used up, since it was started.
    pub fn memory_kills(&self, instance: &InstanceId) -> Result<u64, Error> {
        let machine = self.read(&self.place(instance), instance)?;
        let hierarchies = Hierarchies::find().map_err(|e| Error::transient("find the control groups", e))?;
        Ok(hierarchies.memory_kills(&machine.group()))
    }

    pub(crate) fn place(&self, instance: &InstanceId) -> Place {
        Place::new(self.settings.nodes.join(instance.as_str()))
    }

    /// The place of an instance that exists, if it is that generation of that node.
    fn matching(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<Place, Error> {
        if *instance != instance_id(node, generation) {
            return Err(Error::Mismatch(format!("{instance} is not {node}, generation {generation}")));
        }
        let place = self.place(instance);
        if place.file().exists() { Ok(place) } else { Err(Error::NotFound(instance.to_string())) }
    }

    fn read(&self, place: &Place, instance: &InstanceId) -> Result<Machine, Error> {
        place.read().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(instance.to_string()),
            _ => Error::permanent(format!("read {instance}"), error),
        })
    }

    fn make_nodes_directory(&self) -> Result<(), Error> {
        // Not its parents: a cluster whose directory was removed does not come back.
        create_private_directory_in_place(&self.settings.nodes).map_err(|e| Error::transient("make the node directory", e))
    }

    fn lock(&self) -> Result<File, Error> {
        let failed = |source| Error::transient("lock the node directory", source);
        self.make_nodes_directory()?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(self.settings.nodes.join(".lock"));
        let lock = lock.map_err(failed)?;
        lock.lock().map_err(failed)?;
        Ok(lock)
    }

    /// The address of an owner, and the lock under which it was given.
    fn take_address(&self, owner: &Path) -> Result<(Ipv4Addr, File), Error> {
        let network = Network::of(&self.settings.workspace);
        let failed = |e| Error::transient("give an address", e);
        let range = self.range()?;
        let lock = network.lock().map_err(failed)?;
        let full = || Error::Quota { quota: "addresses".to_owned(), message: format!("every address of the range {range} is taken") };
        Ok((network.take(range, owner).map_err(failed)?.ok_or_else(full)?, lock))
    }

    fn range(&self) -> Result<Range, Error> {
        let workspace = self.settings.workspace.display();
        let range = Network::of(&self.settings.workspace).range();
        let range = range.map_err(|e| Error::permanent(format!("read the range of the workspace at {workspace}"), e))?;
        range.ok_or_else(|| Error::NotFound(format!("the network of the workspace at {workspace}; make the workspace")))
    }

    pub(crate) fn instances(&self) -> Result<Vec<Instance>, Error> {
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
            found.push(self.look(id, node, generation));
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn look(&self, id: InstanceId, node: NodeId, generation: Generation) -> Instance {
        let place = self.place(&id);
        let address = place.read().ok().map(|machine| machine.address.to_string());
        let state = if place.is_running().unwrap_or(false) { InstanceState::Running } else { InstanceState::Stopped };
        Instance { id, node, generation, address, state }
    }

    fn create_now(&self, request: &CreateNode) -> Result<Instance, Error> {
        let Bootstrap { node, generation, .. } = &request.bootstrap;
        let id = instance_id(node, *generation);
        let place = self.place(&id);
        {
            let _lock = self.lock()?;
            match place.read() {
                Ok(_) => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::transient(format!("read {id}"), error)),
                // It was made, and somebody removed what said so: not ours to make again beside what may still run there.
                Err(_) if place.path().exists() => {
                    return Err(Error::permanent(format!("create {id}"), io::Error::from(io::ErrorKind::AlreadyExists)));
                }
                Err(_) => self.make_directory(&place, request)?,
            }
            self.write_hosts()?;
        }
        self.start_node(&place, node)?;
        Ok(self.look(id, node.clone(), *generation))
    }

    /// Makes the instance's directory under another name and renames it, so that it is there whole or not at all.
    fn make_directory(&self, place: &Place, request: &CreateNode) -> Result<(), Error> {
        let Bootstrap { node, generation, resources, artifacts, .. } = &request.bootstrap;
        let owner = if node.is_head() { &self.settings.nodes } else { place.path() };
        let (address, _addresses) = self.take_address(owner)?;
        let (mut shared, mut hidden) = (self.settings.shared.clone(), self.settings.hidden.clone());
        shared.extend(artifacts.as_ref().map(PathBuf::from));
        if node.is_head() { &mut shared } else { &mut hidden }.extend(self.settings.for_heads.iter().cloned());
        let machine = Machine {
            cluster: self.settings.cluster.clone(),
            node: node.clone(),
            generation: *generation,
            address,
            range: self.range()?,
            workspace: self.settings.workspace.clone(),
            nodes: self.settings.nodes.clone(),
            agent: self.settings.agent.clone(),
            resources: *resources,
            shared,
            hidden,
            nat: Network::of(&self.settings.workspace).has_nat(),
        };
        let mut bootstrap = Bootstrap { address: Some(address.to_string()), ..request.bootstrap.clone() };
        if bootstrap.power_off.is_empty() {
            bootstrap.power_off = POWER_OFF.map(str::to_owned).to_vec();
        }
        let make = || -> io::Result<()> {
            let temporary = self.settings.nodes.join(format!(".{}.new", machine.id()));
            remove_tree(&temporary).map_err(io::Error::other)?;
            let new = Place::new(&temporary);
            for directory in [new.path(), &new.home()] {
                fs::DirBuilder::new().mode(PRIVATE).create(directory)?;
            }
            new.make_lock()?;
            write_new(&new.file(), &serde_json::to_vec(&machine)?)?;
            write_new(&new.home().join(BOOTSTRAP_FILE), &serde_json::to_vec(&bootstrap)?)?;
            // Nothing is forced to the disk. A power cut ends the node too; what is left of its directory, if anything, says by
            // its name whose it is, and is replaced as a machine that does not run.
            fs::rename(&temporary, place.path())
        };
        make().map_err(|e| Error::transient(format!("create {}", place.path().display()), e))
    }

    /// Writes the names and addresses of all nodes, which every node sees.
    fn write_hosts(&self) -> Result<(), Error> {
        let failed = |e| Error::transient("write the names of the nodes", e);
        let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        let mut nodes = Vec::new();
        for (address, owner) in Network::of(&self.settings.workspace).owners().map_err(failed)? {
            if owner == self.settings.nodes {
                if service::has_head(&self.settings.nodes) {
                    nodes.push((NodeId::head(), Generation(1), address));
                }
            } else if owner.parent() == Some(&self.settings.nodes) && owner.exists() {
                let id = owner.file_name().and_then(|name| InstanceId::new(name.to_string_lossy()).ok());
                nodes.extend(id.and_then(|id| parse_instance(&id)).map(|(node, generation)| (node, generation, address)));
            }
        }
        // Of the generations of a node, the newest counts.
        nodes.sort_by(|a, b| (&a.0, b.1).cmp(&(&b.0, a.1)));
        nodes.dedup_by(|later, first| later.0 == first.0);
        for (node, _, address) in nodes {
            text.push_str(&format!("{address} {node} {node}.{cluster}\n", cluster = self.settings.cluster));
        }
        let directory = self.settings.nodes.join(HOSTS_DIRECTORY);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&directory).map_err(failed)?;
        let path = directory.join(HOSTS_FILE);
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        // After a power cut, when no node runs, the next start of one writes them again.
        let new = directory.join(".new");
        let write = || {
            fs::write(&new, &text)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
            fs::rename(&new, &path)
        };
        write().map_err(failed)
    }

    /// Starts the node unless it runs; for a head's node, that also makes nodes, with what it makes them by.
    fn start_node(&self, place: &Place, node: &NodeId) -> Result<(), Error> {
        if node.is_head() {
            self.ensure_service()?;
        }
        self.boot(place)
    }

    fn boot(&self, place: &Place) -> Result<(), Error> {
        let program = &self.settings.program;
        let failed = |e| Error::transient(format!("start {}", program.display()), e);
        let mut command = Command::new(program);
        command.arg("boot").arg(place.path()).env_clear().envs(inherited_environment()).current_dir("/");
        let ran = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().map_err(failed)?;
        match serde_json::from_slice::<Result<(), Failure>>(&ran.stdout) {
            Ok(answer) => answer.map_err(Error::from),
            Err(_) => {
                let text = String::from_utf8_lossy(&ran.stderr);
                Err(failed(io::Error::other(format!("it ended with {}: {}", ran.status, text.trim()))))
            }
        }
    }

    /// Ends everything on a node; the lock that is returned keeps it from being started.
    fn end(&self, place: &Place, instance: &InstanceId) -> Result<Option<File>, Error> {
        let lock = place.end(KILL_DEADLINE).map_err(|e| Error::transient(format!("end {instance}"), e))?;
        // In the namespaces of an ordinary user's workspace it goes with the node's, and there are no control groups.
        if !is_root() {
            return Ok(lock);
        }
        let link = place.link();
        let removed = Netlink::open().and_then(|mut netlink| netlink.remove_link(&link));
        removed.map_err(|e| Error::transient(format!("remove the link {link}"), e))?;
        let hierarchies = Hierarchies::find().map_err(|e| Error::transient("find the control groups", e))?;
        let group = crate::names::group(&self.settings.workspace, &self.settings.cluster, instance);
        hierarchies.remove(&group).map_err(|e| Error::transient(format!("remove the control groups of {instance}"), e))?;
        hierarchies.remove_empty(&group);
        Ok(lock)
    }

    fn delete_now(&self, request: &DeleteNode) -> Result<(), Error> {
        let DeleteNode { node, generation, instance } = request;
        if *instance != instance_id(node, *generation) {
            return Err(Error::Mismatch(format!("{instance} is not {node}, generation {generation}")));
        }
        let place = self.place(instance);
        let failed = |e: io::Error| Error::transient(format!("remove {}", place.path().display()), e);
        let not_removed = |error: RemoveError| match error {
            RemoveError::Mounted(_) => Error::Undeletable { what: instance.to_string(), source: error.into() },
            RemoveError::Io { source, .. } => failed(source),
        };
        refuse_mounts(place.path()).map_err(not_removed)?;
        let _running = self.end(&place, instance)?;
        // What remains of a removal that broke off.
        let gone = self.settings.nodes.join(format!(".{instance}{GONE}"));
        self.remove(&gone).map_err(not_removed)?;
        if place.path().exists() {
            let _lock = self.lock()?;
            // From here on it is no instance, and another of that name can be made.
            match fs::rename(place.path(), &gone) {
                // Another manager did so meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed.map_err(failed)?,
            }
            self.write_hosts()?;
        }
        let network = Network::of(&self.settings.workspace);
        if network.directory().exists() {
            let failed = |e| Error::transient(format!("take back the address of {instance}"), e);
            let _addresses = network.lock().map_err(failed)?;
            network.release(place.path()).map_err(failed)?;
        }
        self.remove(&gone).map_err(not_removed)?;
        if node.is_head() && !service::has_head(&self.settings.nodes) {
            service::stop(&self.settings.nodes, KILL_DEADLINE).map_err(|e| Error::transient("end the service of the cluster", e))?;
        }
        Ok(())
    }

    /// Removes the directory of an instance. Some of it may be closed to all but root of the node.
    fn remove(&self, directory: &Path) -> Result<(), RemoveError> {
        if is_root() || !directory.exists() {
            return remove_tree(directory);
        }
        refuse_mounts(directory)?;
        let removed = crate::ground::run(&self.settings.program, "remove", directory, &());
        removed.map_err(|failure: Failure| RemoveError::Io { path: directory.to_owned(), source: io::Error::other(failure) })
    }

    /// Deletes what is listed, ends what runs without a directory, and removes what is left of removals that broke off.
    fn purge_now(&self) -> Result<(), Error> {
        for instance in self.instances()? {
            self.delete_now(&DeleteNode::of(&instance))?;
        }
        let failed = |e| Error::transient("end what is left of the cluster", e);
        sweep::end_below(&self.settings.nodes)?;
        let entries = match fs::read_dir(&self.settings.nodes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(GONE)) {
            self.remove(&entry.path()).map_err(|e| failed(io::Error::other(e)))?;
        }
        Ok(())
    }

    /// An agent that ends is started again by the node's first process; one that hangs is ended here.
    fn restart_now(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error> {
        let place = self.matching(node, generation, instance)?;
        let failed = |e| Error::transient(format!("restart the agent of {instance}"), e);
        if !place.is_running().map_err(failed)? {
            return Err(Error::permanent(
                format!("restart the agent of {instance}"),
                io::Error::other("the node is not running; reboot it"),
            ));
        }
        if force && let Some(first) = place.first_process().map_err(failed)? {
            first.signal(Signal::USR1).map_err(failed)?;
        }
        Ok(())
    }

    fn reboot_now(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        let place = self.matching(node, generation, instance)?;
        drop(self.end(&place, instance)?);
        self.start_node(&place, node)
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)
}

#[async_trait]
impl NodeProvider for VirtualProvider {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        blocking(self, Self::instances).await
    }

    async fn create(&self, requests: &[CreateNode]) -> Vec<Result<Instance, Error>> {
        each(self, requests, Self::create_now).await
    }

    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
        each(self, requests, Self::delete_now).await
    }

    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error> {
        let instance = instance.clone();
        blocking(self, move |provider| {
            let missing = || Error::NotFound(instance.to_string());
            let (node, generation) = parse_instance(&instance).ok_or_else(missing)?;
            if !provider.place(&instance).path().exists() {
                return Err(missing());
            }
            Ok(provider.look(instance, node, generation))
        })
        .await
    }

    async fn restart_agent(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error> {
        let (node, instance) = (node.clone(), instance.clone());
        blocking(self, move |provider| provider.restart_now(&node, generation, &instance, force)).await
    }

    async fn purge(&self) -> Result<(), Error> {
        blocking(self, Self::purge_now).await
    }

    async fn reboot(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        let (node, instance) = (node.clone(), instance.clone());
        blocking(self, move |provider| provider.reboot_now(&node, generation, &instance)).await
    }
}
