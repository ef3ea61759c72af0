//! What accidents leave on the machine, found by its name and removed.
//!
//! A directory is the proof that something is wanted: a bridge is there for the directory of its workspace, and a link, a
//! control group or a first process for the directory of its instance, which stands in the workspace's list of addresses
//! before anything else of the instance is made. Whatever has no such directory is left over.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;

use crate::boot;
use crate::bridge;
use crate::failure::Failure;
use crate::groups::Hierarchies;
use crate::instance::{FirstProcess, INSTANCE_FILE, start_time};
use crate::names;
use crate::netlink::Netlink;
use crate::network::Network;

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

/// Finds and removes what is left of nodes and workspaces whose directories are gone, and in the workspace of a directory
/// what is left of nodes that do not run. Answers what it removed.
pub fn sweep(workspace: Option<&Path>) -> Result<Vec<Leftover>, Failure> {
    let workspace = workspace.map(crate::absolute);
    let mut removed = Vec::new();
    processes(&mut removed)?;
    links(workspace.as_deref(), &mut removed)?;
    groups(workspace.as_deref(), &mut removed)?;
    if let Some(workspace) = &workspace {
        addresses(workspace, &mut removed)?;
    }
    removed.sort();
    removed.dedup();
    Ok(removed)
}

/// The first processes of the machine, each with the directory of its instance.
pub(crate) fn first_processes() -> io::Result<Vec<(FirstProcess, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // What ends meanwhile is no concern.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let [program, b"init", instance, ..] = words.as_slice() else { continue };
        if !program.ends_with(b"/cloudtik-virtual") {
            continue;
        }
        let Some(started) = start_time(pid) else { continue };
        found.push((FirstProcess { pid, started, is_ready: true }, PathBuf::from(OsStr::from_bytes(instance))));
    }
    Ok(found)
}

/// Ends the first process of an instance that has no directory, which is found by its arguments.
pub(crate) fn end_without_directory(instance: &Path, within: Duration) -> io::Result<()> {
    if instance.exists() {
        return Ok(());
    }
    let until = Instant::now() + within;
    loop {
        let found: Vec<FirstProcess> =
            first_processes()?.into_iter().filter(|(_, of)| of == instance).map(|(process, _)| process).collect();
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its first process does not end"));
        }
        found.iter().try_for_each(|process| process.signal(Signal::KILL))?;
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_instance(path: &Path) -> bool {
    path.join(INSTANCE_FILE).exists()
}

fn processes(removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("end what is left of nodes", e);
    for (process, instance) in first_processes().map_err(failed)? {
        if is_instance(&instance) {
            continue;
        }
        process.signal(Signal::KILL).map_err(failed)?;
        let until = Instant::now() + KILL_DEADLINE;
        while process.is_alive() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        removed.push(Leftover::Node { instance });
    }
    Ok(())
}

/// The instances that a workspace knows.
fn known(workspace: &Path) -> Result<Vec<PathBuf>, Failure> {
    let owners = Network::of(workspace).owners().map_err(|e| Failure::io("read the addresses of the workspace", e))?;
    let mut known = Vec::new();
    for (_, owner) in owners {
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

fn links(workspace: Option<&Path>, removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("look at the links of the machine", e);
    let mut netlink = Netlink::open().map_err(failed)?;
    let links = netlink.links().map_err(failed)?;
    let own = workspace.map(names::bridge).and_then(|name| links.iter().find(|link| link.name == name)).map(|link| link.index);
    let known: BTreeSet<String> = match workspace {
        Some(workspace) => known(workspace)?.iter().map(|instance| names::link(instance)).collect(),
        None => BTreeSet::new(),
    };
    let mut bridges = BTreeSet::new();
    for link in links {
        if link.name.starts_with(names::BRIDGE_PREFIX) {
            let directory = link.alias.as_deref().and_then(|alias| alias.strip_prefix(bridge::ALIAS)).map(PathBuf::from);
            if directory.is_some_and(|directory| !directory.is_dir()) {
                netlink.remove_link(&link.name).map_err(failed)?;
                removed.push(Leftover::Bridge { name: link.name });
            } else {
                bridges.insert(link.name);
            }
            continue;
        }
        if !link.name.starts_with(names::LINK_PREFIX) {
            continue;
        }
        let instance = link.alias.as_deref().and_then(|alias| alias.strip_prefix(boot::ALIAS)).map(PathBuf::from);
        let is_deserted = instance.is_some_and(|instance| !is_instance(&instance));
        let is_unknown = own.is_some() && link.bridge == own && !known.contains(&link.name);
        if is_deserted || is_unknown {
            netlink.remove_link(&link.name).map_err(failed)?;
            removed.push(Leftover::Link { name: link.name });
        }
    }
    for table in bridge::tables()? {
        let tag = table.trim_start_matches(names::PREFIX);
        if !bridges.contains(&format!("{}{tag}", names::BRIDGE_PREFIX)) {
            bridge::remove_table(&table)?;
            removed.push(Leftover::Rules { table });
        }
    }
    Ok(())
}

fn groups(workspace: Option<&Path>, removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("look at the control groups of the machine", e);
    let hierarchies = Hierarchies::find().map_err(failed)?;
    let mut netlink = Netlink::open().map_err(failed)?;
    let own = workspace.map(names::workspace_group);
    for name in hierarchies.children(Path::new("")).into_iter().filter(|name| name.starts_with(names::PREFIX)) {
        let of_workspace = PathBuf::from(&name);
        let tag = name.trim_start_matches(names::PREFIX);
        if own.as_ref() == Some(&of_workspace) {
            let workspace = workspace.unwrap_or(Path::new(""));
            let instances = known(workspace)?;
            // A cluster's nodes have the names of their directories.
            let is_known = |instance: &str| instances.iter().any(|path| path.file_name() == Some(OsStr::new(instance)));
            for cluster in hierarchies.children(&of_workspace) {
                let of_cluster = of_workspace.join(&cluster);
                for instance in hierarchies.children(&of_cluster).into_iter().filter(|name| !is_known(name)) {
                    let group = of_cluster.join(instance);
                    if hierarchies.processes(&group).is_empty() {
                        hierarchies.remove(&group).map_err(failed)?;
                        removed.push(Leftover::Group { path: group });
                    }
                }
                hierarchies.remove_empty(&of_cluster);
            }
            continue;
        }
        // Nodes are started where there is a bridge.
        let has_bridge = netlink.link(&format!("{}{tag}", names::BRIDGE_PREFIX)).map_err(failed)?.is_some();
        if !has_bridge && hierarchies.processes(&of_workspace).is_empty() {
            hierarchies.remove(&of_workspace).map_err(failed)?;
            removed.push(Leftover::Group { path: of_workspace });
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
