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

use cloudtik_providers::Error;
use rustix::process::Signal;
use serde::Serialize;

use crate::boot;
use crate::bridge;
use crate::failure::Failure;
use crate::ground::is_root;
use crate::groups::Hierarchies;
use crate::instance::{FirstProcess, INSTANCE_FILE, start_time};
use crate::names;
use crate::netlink::{Link, Netlink};
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
            processes(|instance| is_own(instance, &owners), &mut removed)?;
            // An ordinary user's workspace has namespaces of its own, and no control groups.
            if is_root() {
                links_of(&workspace, &mut removed)?;
                groups_of(&workspace, &mut removed)?;
            }
            addresses(&workspace, &mut removed)?;
        }
        None => {
            processes(|_| true, &mut removed)?;
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

/// The first processes of the machine, each with the directory of its instance.
pub(crate) fn first_processes() -> io::Result<Vec<(FirstProcess, PathBuf)>> {
    // What it starts looks like it for a moment.
    Ok(processes_of("init")?.into_iter().filter(|(process, _)| is_first(process.pid)).collect())
}

/// The processes of the program beside the provider that do one thing, each with the directory that it does it for.
pub(crate) fn processes_of(verb: &str) -> io::Result<Vec<(FirstProcess, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // What ends meanwhile is no concern.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let [program, does, directory, ..] = words.as_slice() else { continue };
        if !program.ends_with(b"/cloudtik-virtual") || *does != verb.as_bytes() {
            continue;
        }
        let Some(started) = start_time(pid) else { continue };
        found.push((FirstProcess { pid, started, is_ready: true }, PathBuf::from(OsStr::from_bytes(directory))));
    }
    Ok(found)
}

/// Whether a process is the first one of a namespace of process numbers (proc_pid_status(5)).
fn is_first(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
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

fn processes(is_meant: impl Fn(&Path) -> bool, removed: &mut Vec<Leftover>) -> Result<(), Failure> {
    let failed = |e| Failure::io("end what is left of nodes", e);
    for (process, instance) in first_processes().map_err(failed)? {
        if is_instance(&instance) || !is_meant(&instance) {
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
