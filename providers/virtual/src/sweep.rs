//! What accidents leave on the machine, found by its name and removed.
//!
//! A directory is the proof that something is wanted: a bridge is there for the directory of its workspace, and a link, a
//! control group or a first process for the directory of its instance, which stands in the workspace's list of addresses
//! before anything else of the instance is made. Whatever has no such directory is left over.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloudtik_providers::Error;
use cloudtik_providers::kind::is_orphaned;
use rustix::process::Signal;
use serde::Serialize;

use crate::boot;
use crate::bridge;
use crate::failure::Failure;
use crate::ground::is_root;
use crate::groups::Hierarchies;
use crate::instance::INSTANCE_FILE;
use crate::names;
use crate::netlink::{Link, Netlink};
use crate::network::Network;
use crate::processes;

/// How long what is killed may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Something that was left and is removed now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Leftover {
    /// The processes of a node whose instance is gone.
    Node { instance: PathBuf },
    /// The host's end of the link of a node.
    Link { name: String },
    /// A bridge of a workspace that is gone.
    Bridge { name: String },
    /// Packet rules of a workspace that is gone.
    Rules { table: String },
    /// A control group below that of a workspace.
    Group { path: PathBuf },
    /// An address of an instance that is gone.
    Address { address: String, instance: PathBuf },
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { instance } => write!(f, "the processes of the node that was at {}", instance.display()),
            Self::Link { name } => write!(f, "the link {name}"),
            Self::Bridge { name } => write!(f, "the bridge {name}"),
            Self::Rules { table } => write!(f, "the packet rules {table}"),
            Self::Group { path } => write!(f, "the control group {}", path.display()),
            Self::Address { address, instance } => write!(f, "the address {address} of the node that was at {}", instance.display()),
        }
    }
}

/// Finds and removes what is left over and says what it removed: of the workspace of a directory, or without one of whatever
/// nodes and workspaces of this machine have no directory any more.
pub fn sweep(workspace: Option<&Path>) -> Result<Vec<Leftover>, Error> {
    find_and_remove(workspace).map_err(Error::from)
}

fn find_and_remove(workspace: Option<&Path>) -> Result<Vec<Leftover>, Failure> {
    let mut removed = Vec::new();
    match workspace.map(crate::absolute) {
        Some(workspace) => {
            let is_own = |instance: &Path, owners: &[PathBuf]| instance.starts_with(&workspace) || owners.iter().any(|o| o == instance);
            let owners = owners(&workspace)?;
            nodes(|instance| is_own(instance, &owners), &mut removed)?;
            // An ordinary user's workspace has namespaces of its own, and no control groups.
            if is_root() {
                links_of(&workspace, &mut removed)?;
                groups_of(&workspace, &mut removed)?;
            }
            addresses(&workspace, &mut removed)?;
        }
        None => {
            nodes(|_| true, &mut removed)?;
            if is_root() {
                links(&mut removed)?;
                groups(&mut removed)?;
            }
        }
    }
    removed.sort();
    removed.dedup();
    Ok(removed)
}

/// Ends whatever runs for nodes below a directory, with or without directories of theirs, and removes what is left of them.
pub fn end_below(nodes: &Path) -> Result<(), Failure> {
    let nodes = crate::absolute(nodes);
    let failed = |e| Failure::io("end what is left of nodes", e);
    let running = || {
        let mut found = processes::first_processes()?;
        // What would start more of them.
        for verb in ["serve", "start-service", "boot"] {
            found.extend(processes::doing(verb)?);
        }
        Ok(found.into_iter().filter(|(_, directory)| directory.starts_with(&nodes)).map(|(process, _)| process).collect())
    };
    processes::end(running, KILL_DEADLINE).map_err(failed)?;
    // An ordinary user's links go with the workspace, and there are no control groups.
    if !is_root() {
        return Ok(());
    }
    let mut netlink = Netlink::open().map_err(failed)?;
    let is_below = |alias: &str| alias.strip_prefix(boot::ALIAS).is_some_and(|instance| Path::new(instance).starts_with(&nodes));
    for link in netlink.links().map_err(failed)? {
        if link.name.starts_with(names::LINK_PREFIX) && link.alias.as_deref().is_some_and(is_below) {
            netlink.remove_link(&link.name).map_err(failed)?;
        }
    }
    if let Some(group) = cluster_group(&nodes) {
        let hierarchies = Hierarchies::find().map_err(failed)?;
        hierarchies.remove(&group).map_err(failed)?;
        hierarchies.remove_empty(&group);
    }
    Ok(())
}

/// The control group of the cluster whose nodes are in a directory, `WORKSPACE/clusters/CLUSTER/nodes`.
fn cluster_group(nodes: &Path) -> Option<PathBuf> {
    let cluster = nodes.parent().filter(|_| nodes.ends_with("nodes"))?;
    let workspace = cluster.parent().filter(|clusters| clusters.ends_with("clusters"))?.parent()?;
    Some(names::workspace_group(workspace).join(cluster.file_name()?))
}

/// The nodes below a directory that run although their own, or their cluster's state, was removed: the directory of each, and its
/// first process.
pub fn left_below(directory: &Path) -> io::Result<Vec<(PathBuf, i32)>> {
    let real = crate::absolute(directory);
    let mut left = Vec::new();
    for (process, instance) in processes::first_processes()? {
        // As the caller names it.
        let Ok(below) = instance.strip_prefix(&real) else { continue };
        if !is_instance(&instance) || is_orphaned(&instance) {
            left.push((directory.join(below), process.pid));
        }
    }
    left.sort();
    Ok(left)
}

fn is_instance(path: &Path) -> bool {
    path.join(INSTANCE_FILE).exists()
}

fn nodes(is_meant: impl Fn(&Path) -> bool, removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("end what is left of nodes", e);
    let (ended, mut left) = (removed.len(), Vec::new());
    for (process, instance) in processes::first_processes().map_err(failed)? {
        if !is_instance(&instance) && is_meant(&instance) {
            process.signal(Signal::KILL).map_err(failed)?;
            left.push((process, instance));
        }
    }
    let until = Instant::now() + KILL_DEADLINE;
    while !left.is_empty() && Instant::now() < until {
        for (_, instance) in left.extract_if(.., |(process, _)| !process.is_alive()) {
            removed.push(Leftover::Node { instance });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let Some((process, instance)) = left.first() else { return Ok(()) };
    let ended = removed.len() - ended;
    let message = format!("the process {} of the node that was at {} does not end; {ended} others did", process.pid, instance.display());
    Err(failed(io::Error::new(io::ErrorKind::TimedOut, message)))
}

/// The directories that have addresses of a workspace, also those that are gone.
fn owners(workspace: &Path) -> Result<Vec<PathBuf>, Failure> {
    let owners = Network::of(workspace).owners().map_err(|e| Failure::io("read the addresses of the workspace", e))?;
    Ok(owners.into_iter().map(|(_, owner)| owner).collect())
}

/// The instances that a workspace knows.
fn known(workspace: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut known = Vec::new();
    for owner in owners(workspace)? {
        if is_instance(&owner) {
            known.push(owner);
            continue;
        }
        // The heads of a cluster have the address of the directory of its nodes.
        let entries = fs::read_dir(&owner).map(|entries| entries.flatten().map(|e| e.path()).collect::<Vec<_>>()).unwrap_or_default();
        known.extend(entries.into_iter().filter(|path| is_instance(path)));
    }
    Ok(known)
}

/// The links in the bridge of a workspace that no instance has.
fn links_of(workspace: &Path, removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("look at the links of the machine", e);
    let mut netlink = Netlink::open().map_err(failed)?;
    let links = netlink.links().map_err(failed)?;
    let name = names::bridge(workspace);
    let Some(bridge) = links.iter().find(|link| link.name == name).map(|link| link.index) else { return Ok(()) };
    // After the links: what is made meanwhile is known.
    let known: BTreeSet<String> = known(workspace)?.iter().map(|instance| names::link(instance)).collect();
    let is_left = |link: &&Link| link.bridge == Some(bridge) && link.name.starts_with(names::LINK_PREFIX) && !known.contains(&link.name);
    for link in links.iter().filter(is_left) {
        netlink.remove_link(&link.name).map_err(failed)?;
        removed.push(Leftover::Link { name: link.name.clone() });
    }
    Ok(())
}

/// The links, bridges and rules of the machine whose directories are gone.
fn links(removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("look at the links of the machine", e);
    let mut netlink = Netlink::open().map_err(failed)?;
    for link in netlink.links().map_err(failed)? {
        let Some(alias) = &link.alias else { continue };
        let leftover = if link.name.starts_with(names::BRIDGE_PREFIX) {
            let is_gone = alias.strip_prefix(bridge::ALIAS).is_some_and(|directory| !Path::new(directory).is_dir());
            is_gone.then(|| Leftover::Bridge { name: link.name.clone() })
        } else if link.name.starts_with(names::LINK_PREFIX) {
            let is_gone = alias.strip_prefix(boot::ALIAS).is_some_and(|instance| !is_instance(Path::new(instance)));
            is_gone.then(|| Leftover::Link { name: link.name.clone() })
        } else {
            None
        };
        if let Some(leftover) = leftover {
            netlink.remove_link(&link.name).map_err(failed)?;
            removed.push(leftover);
        }
    }
    for table in bridge::tables()? {
        let bridge = format!("{}{}", names::BRIDGE_PREFIX, table.trim_start_matches(names::PREFIX));
        if netlink.link(&bridge).map_err(failed)?.is_none() {
            bridge::remove_table(&table)?;
            removed.push(Leftover::Rules { table });
        }
    }
    Ok(())
}

/// The control groups of a workspace that no instance has.
fn groups_of(workspace: &Path, removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("look at the control groups of the machine", e);
    let hierarchies = Hierarchies::find().map_err(failed)?;
    let of_workspace = names::workspace_group(workspace);
    let clusters = hierarchies.children(&of_workspace).into_iter().map(|cluster| of_workspace.join(cluster));
    let found: Vec<PathBuf> =
        clusters.flat_map(|cluster| hierarchies.children(&cluster).into_iter().map(move |name| cluster.join(name))).collect();
    // After the groups: what is made meanwhile is known.
    let known = known(workspace)?;
    // A group ends as the directory of its instance does.
    for group in found.into_iter().filter(|group| !known.iter().any(|instance| instance.file_name() == group.file_name())) {
        if hierarchies.processes(&group).is_empty() {
            hierarchies.remove(&group).map_err(failed)?;
            hierarchies.remove_empty(&group);
            removed.push(Leftover::Group { path: group });
        }
    }
    Ok(())
}

/// The control groups of workspaces that have no bridge: nodes are started where there is one.
fn groups(removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("look at the control groups of the machine", e);
    let hierarchies = Hierarchies::find().map_err(failed)?;
    let mut netlink = Netlink::open().map_err(failed)?;
    for name in hierarchies.children(Path::new("")).into_iter().filter(|name| name.starts_with(names::PREFIX)) {
        let bridge = format!("{}{}", names::BRIDGE_PREFIX, name.trim_start_matches(names::PREFIX));
        let group = PathBuf::from(name);
        if netlink.link(&bridge).map_err(failed)?.is_none() && hierarchies.processes(&group).is_empty() {
            hierarchies.remove(&group).map_err(failed)?;
            removed.push(Leftover::Group { path: group });
        }
    }
    Ok(())
}

fn addresses(workspace: &Path, removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let network = Network::of(workspace);
    if !network.directory().is_dir() {
        return Ok(());
    }
    let failed = |e| Failure::io("read the addresses of the workspace", e);
    let _lock = network.lock().map_err(failed)?;
    for (address, owner) in network.owners().map_err(failed)? {
        if owner.symlink_metadata().is_err() {
            network.release(&owner).map_err(failed)?;
            removed.push(Leftover::Address { address: address.to_string(), instance: owner });
        }
    }
    Ok(())
}
