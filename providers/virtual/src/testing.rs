//! For tests: what of a workspace is on the machine, seen without the provider's own records; programs that run on a node;
//! and faults, each of which the kernel makes and forgets with the node.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cloudtik_model::InstanceId;
use cloudtik_model::node::Instance;
use nix::sched::{CloneFlags, setns};
use rustix::process::Signal;

use crate::ground::{Ground, is_root};
use crate::groups::Hierarchies;
use crate::instance::Place;
use crate::netlink::Netlink;
use crate::provider::VirtualProvider;
use crate::{bridge, names, processes, service};

/// The machines of a cluster that has a head's node, by the directory of its nodes.
pub fn provider_of(nodes: &Path) -> io::Result<VirtualProvider> {
    let settings = fs::read(nodes.join(service::DIRECTORY).join(service::SETTINGS))?;
    Ok(VirtualProvider::new(serde_json::from_slice(&settings)?))
}

/// The bridge of a workspace.
pub fn bridge(workspace: &Path) -> String {
    names::bridge(&crate::absolute(workspace))
}

/// What of a workspace is on the machine: links, tables of rules, control groups, mounts and processes, each in words.
pub fn left(workspace: &Path) -> Vec<String> {
    let workspace = crate::absolute(workspace);
    let (bridge, tag) = (names::bridge(&workspace), names::workspace_tag(&workspace));
    let path = workspace.to_string_lossy().into_owned();
    let mut left = Vec::new();
    let links = Netlink::open().and_then(|mut netlink| netlink.links()).expect("the machine tells its links");
    let index = links.iter().find(|link| link.name == bridge).map(|link| link.index);
    for link in links {
        let is_own = link.alias.is_some_and(|alias| alias.contains(&path)) || (index.is_some() && link.bridge == index);
        if link.name == bridge || is_own {
            left.push(format!("link {}", link.name));
        }
    }
    // An ordinary user has none, and cannot look.
    let tables = if is_root() { bridge::tables().expect("the machine tells its tables") } else { Vec::new() };
    left.extend(tables.into_iter().filter(|table| table.ends_with(&tag)).map(|table| format!("table {table}")));
    for root in Hierarchies::find().expect("the machine tells its control groups").roots() {
        left.extend(group_directories(&root.join(names::workspace_group(&workspace))).iter().map(|g| format!("group {}", g.display())));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the machine tells its mounts");
    left.extend(mounts.lines().filter(|line| line.contains(&path)).map(|line| format!("mount {line}")));
    for (first, instance) in processes::first_processes().expect("the machine tells its processes") {
        if instance.starts_with(&workspace) {
            left.push(format!("process {} of {}", first.pid, instance.display()));
        }
    }
    for verb in ["serve", "ground", "boot"] {
        for (process, directory) in processes::doing(verb).expect("the machine tells its processes") {
            if directory.starts_with(&workspace) {
                left.push(format!("{verb} {} of {}", process.pid, directory.display()));
            }
        }
    }
    left
}

fn group_directories(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let mut found = vec![group.to_owned()];
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(group_directories(&entry.path()));
    }
    found
}

/// Which packets of a node are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Those that it sends.
    Sent,
    /// Those that are sent to it.
    Received,
    Both,
}

/// The first process of a node that runs, by the machine's number.
pub fn first_process(provider: &VirtualProvider, instance: &InstanceId) -> io::Result<i32> {
    let first = place(provider, instance).first_process()?;
    first.map(|first| first.pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn place(provider: &VirtualProvider, instance: &InstanceId) -> Place {
    provider.place(instance)
}

/// The instances of a cluster.
pub fn list(provider: &VirtualProvider) -> Vec<Instance> {
    provider.instances().expect("the directory of the nodes is readable")
}

/// An instance that exists.
pub fn look(provider: &VirtualProvider, instance: &InstanceId) -> Instance {
    list(provider).into_iter().find(|found| found.id == *instance).expect("the instance exists")
}

/// Runs a program on a node, in its namespaces and under its limits, and waits for its end.
pub fn run_on(provider: &VirtualProvider, instance: &InstanceId, program: &str, arguments: &[&str]) -> io::Result<Output> {
    const ENTER: &str = "while [ \"$1\" != -- ]; do echo $$ > \"$1/cgroup.procs\"; shift; done; shift; exec \"$@\"";
    let pid = first_process(provider, instance)?.to_string();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", ENTER, "sh"]).args(Hierarchies::find()?.entrances(&place(provider, instance).read()?.group()));
    command.args(["--", "nsenter", "--target", &pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
    if !is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.args(["--", program]).args(arguments);
    command.stdin(Stdio::null()).output()
}

/// Does something in the network of a node: what it opens stays there.
pub fn on_network<T: Send>(provider: &VirtualProvider, instance: &InstanceId, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_network_of(first_process(provider, instance)?, work)
}

/// The same in the network of a process.
pub fn on_network_of<T: Send>(process: i32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let network = File::open(format!("/proc/{process}/ns/net"))?;
    // Threads have namespaces of their own, and this one ends with the work.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        thread.join().expect("the work does not panic")
    })
}

/// Loses so many of a hundred packets of a node, from now on, without telling either side.
pub fn lose(provider: &VirtualProvider, instance: &InstanceId, lost: Lost, percent: u8) -> io::Result<()> {
    let chance = if percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
    let chain = |hook: &str, way: &str| {
        format!("chain {hook} {{ type filter hook {hook} priority -300; policy accept; {way} != \"lo\" {chance}drop; }}\n")
    };
    let sent = if lost == Lost::Received { String::new() } else { chain("output", "oifname") };
    let received = if lost == Lost::Sent { String::new() } else { chain("input", "iifname") };
    rules(provider, instance, &format!("add table ip faults\ndelete table ip faults\ntable ip faults {{\n{sent}{received}}}\n"))
}

/// Ends what [`lose`] began.
pub fn heal(provider: &VirtualProvider, instance: &InstanceId) -> io::Result<()> {
    rules(provider, instance, "add table ip faults\ndelete table ip faults\n")
}

/// Packet rules in the node's network namespace, which go with it.
fn rules(provider: &VirtualProvider, instance: &InstanceId, script: &str) -> io::Result<()> {
    let pid = first_process(provider, instance)?.to_string();
    nft(Command::new("nsenter").args(["--target", &pid, "--net", "--", "nft"]), script)
}

fn nft(command: &mut Command, script: &str) -> io::Result<()> {
    let ran = command.args(["-f", "-"]).stdin(input(script)?).stdout(Stdio::null()).output()?;
    if ran.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&ran.stderr).into_owned())) }
}

/// A few bytes as the input of a program.
fn input(text: &str) -> io::Result<OwnedFd> {
    let (read, mut write) = io::pipe()?;
    // Less than a pipe holds.
    io::Write::write_all(&mut write, text.as_bytes())?;
    Ok(read.into())
}

/// A port of a bridge that loses packets, until this is dropped.
#[derive(Debug)]
pub struct LossyPort {
    table: String,
}

/// Loses so many of a hundred packets at the bridge's port of an instance, without telling either side. Unlike [`lose`] it
/// lasts when the node is rebooted, and spares the node that takes the instance's place.
pub fn lose_at_port(provider: &VirtualProvider, instance: &InstanceId, lost: Lost, percent: u8) -> io::Result<LossyPort> {
    let link = place(provider, instance).link();
    let table = format!("{}faults-{link}", names::PREFIX);
    let chance = if percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
    let sent = if lost == Lost::Received { String::new() } else { format!("iifname \"{link}\" {chance}drop;") };
    let received = if lost == Lost::Sent { String::new() } else { format!("oifname \"{link}\" {chance}drop;") };
    let chain = |hook: &str| format!("chain {hook} {{ type filter hook {hook} priority 0; policy accept; {sent} {received} }}\n");
    let chains: String = ["input", "forward", "output"].map(chain).concat();
    let port = LossyPort { table };
    nft(&mut Command::new("nft"), &format!("{}table bridge {} {{\n{chains}}}\n", port.removal(), port.table))?;
    Ok(port)
}

impl LossyPort {
    /// Also where there is no such table.
    fn removal(&self) -> String {
        format!("add table bridge {table}\ndelete table bridge {table}\n", table = self.table)
    }
}

impl Drop for LossyPort {
    fn drop(&mut self) {
        if let Err(error) = nft(&mut Command::new("nft"), &self.removal()) {
            eprintln!("the packet rules {} are left: {error}", self.table);
        }
    }
}

/// Pulls the plug of a node's link, or puts it back.
pub fn plug(provider: &VirtualProvider, instance: &InstanceId, plugged: bool) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link(&place(provider, instance).link())?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    netlink.set_up(link.index, plugged)
}

/// Stops every process of a node where it is, or lets all go on.
pub fn pause(provider: &VirtualProvider, instance: &InstanceId, paused: bool) -> io::Result<()> {
    let machine = place(provider, instance).read()?;
    let hierarchies = Hierarchies::find()?;
    if hierarchies.freeze(&machine.group(), paused)? {
        return Ok(());
    }
    let signal = if paused { Signal::STOP } else { Signal::CONT };
    for pid in hierarchies.processes(&machine.group()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
    Ok(())
}

/// Ends the namespaces of an ordinary user's workspace.
pub fn kill_ground(workspace: &Path) -> io::Result<()> {
    Ground::of(&crate::absolute(workspace)).remove().map_err(io::Error::other)
}

/// Kills a node at once, as a power cut does. Its instance stays, stopped.
pub fn kill(provider: &VirtualProvider, instance: &InstanceId) -> io::Result<()> {
    match place(provider, instance).first_process()? {
        Some(first) => first.signal(Signal::KILL),
        None => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}
