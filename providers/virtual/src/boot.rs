//! The start of a node, from outside of it. Whoever starts a node may be killed at any moment: before [`GO`] the first
//! process then ends by itself, and from there on it goes on alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::failure::Failure;
use crate::ground::Ground;
use crate::groups::Hierarchies;
use crate::instance::{Held, Machine, Place, clear, record};
use crate::names;
use crate::netlink::{Netlink, Veth};

/// The first process is in namespaces of its own.
pub const SEPARATE: u8 = b'n';
/// Its link is made and it is noted in the lock.
pub const GO: u8 = b'g';
/// How long somebody else's start of the same node is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a first process may take.
const START: Duration = Duration::from_secs(10);

/// Starts the node of the instance in a directory, unless it runs. Once this returns it is set up and its agent is being
/// started. This process must have one thread, and starts nothing else afterwards.
pub fn boot(directory: &Path) -> Result<(), Failure> {
    let place = Place::new(directory);
    let Some(mut lock) = take(&place)? else { return Ok(()) };
    place.end_unlocked(START).map_err(|e| Failure::io("end what runs without its lock", e))?;
    clear(&mut lock).map_err(|e| Failure::io("clear the lock", e))?;
    let machine = match place.read() {
        Ok(machine) => machine,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Failure::NotFound(directory.display().to_string())),
        Err(error) => return Err(Failure::io(format!("read {}", place.file().display()), error)),
    };
    let ground = Ground::of(&machine.workspace).enter()?;
    let hierarchies = Hierarchies::find().map_err(|e| Failure::io("find the control groups", e))?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(place.log());
    let mut log = log.map_err(|e| Failure::io(format!("open {}", place.log().display()), e))?;
    let enforced = hierarchies.create(&machine.group(), machine.resources);
    // Of a node that was paused and then ended the group is still frozen.
    hierarchies.freeze(&machine.group(), false).map_err(|e| Failure::io("let the node's processes run", e))?;
    for error in &enforced.failures {
        let _ = writeln!(log, "a limit of this node is not enforced: {error}");
    }
    let mut netlink = Netlink::open().map_err(|e| Failure::io("open a netlink socket", e))?;
    let bridge = names::bridge(&machine.workspace);
    let found = netlink.link(&bridge).map_err(|e| Failure::io(format!("find the bridge {bridge}"), e))?;
    let Some(bridge) = found else {
        let workspace = machine.workspace.display();
        return Err(Failure::NotFound(format!("the bridge {bridge} of the workspace at {workspace}; make the workspace again")));
    };
    // What is left of an earlier start goes with its network namespace, but not at once.
    netlink.remove_link(&place.link()).map_err(|e| Failure::io(format!("remove the link {}", place.link()), e))?;

    let (mut way, theirs) = UnixStream::pair().map_err(|e| Failure::io("make a pair of sockets", e))?;
    way.set_read_timeout(Some(START)).map_err(|e| Failure::io("limit the wait", e))?;
    // Where the namespaces of the workspace may end, the first process watches them, and opens its log by itself.
    let mut child = start(&place, &lock, theirs, ground.unwrap_or(log.into()))?;
    let answer = set_up(&machine, &place, &mut netlink, bridge.index, &mut child, &mut lock, &mut way);
    if answer.is_err() {
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
    answer
}

/// Takes the lock; none if the node runs and is set up.
fn take(place: &Place) -> Result<Option<File>, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        match place.try_lock() {
            Ok(lock) => return Ok(Some(lock)),
            Err(Held::ByOther) => {}
            Err(Held::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::NotFound(place.path().display().to_string()));
            }
            Err(Held::Io(error)) => return Err(Failure::io(format!("lock {}", place.path().display()), error)),
        }
        if place.is_running().map_err(|e| Failure::io("look at the lock", e))? {
            return Ok(None);
        }
        if Instant::now() > until {
            let late = io::Error::new(io::ErrorKind::TimedOut, "another start of it does not end");
            return Err(Failure::io(format!("start {}", place.path().display()), late));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts the first process: the first child after the numbers of processes were separated.
fn start(place: &Place, lock: &File, way: UnixStream, errors: OwnedFd) -> Result<Child, Failure> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(|e| Failure::io("separate the numbers of processes", e.into()))?;
    let lock: OwnedFd = lock.try_clone().map_err(|e| Failure::io("share the lock", e))?.into();
    let program = std::env::current_exe().map_err(|e| Failure::io("find this program", e))?;
    let mut command = Command::new(&program);
    command.arg("init").arg(place.path()).stdin(lock).stdout(OwnedFd::from(way)).stderr(errors);
    command.spawn().map_err(|e| Failure::io(format!("start {}", program.display()), e))
}

fn set_up(
    machine: &Machine,
    place: &Place,
    netlink: &mut Netlink,
    bridge: u32,
    child: &mut Child,
    lock: &mut File,
    way: &mut UnixStream,
) -> Result<(), Failure> {
    let mut separate = [0];
    match way.read(&mut separate) {
        Ok(1) if separate[0] == SEPARATE => {}
        Ok(1) => {
            let mut rest = vec![separate[0]];
            let _ = way.read_to_end(&mut rest);
            return Err(said(place, &rest));
        }
        Ok(_) => return Err(said(place, b"it ended")),
        Err(error) => return Err(Failure::io("wait for the node's first process", error)),
    }
    let alias = alias(place.path());
    let veth = Veth { host: &place.link(), alias: &alias, bridge, node: names::NODE_LINK, mac: machine.mac(), process: child.id() };
    netlink.add_veth(&veth).map_err(|e| Failure::io(format!("make the link {}", veth.host), e))?;
    record(lock, child.id().cast_signed()).map_err(|e| Failure::io("note the node's first process", e))?;
    way.write_all(&[GO]).map_err(|e| Failure::io("let the node's first process go on", e))?;
    let mut rest = Vec::new();
    way.read_to_end(&mut rest).map_err(|e| Failure::io("wait for the node's first process", e))?;
    if rest == b"\n" { Ok(()) } else { Err(said(place, &rest)) }
}

/// What the first process said of its failure.
fn said(place: &Place, text: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(text).trim().to_owned();
    let text = if text.is_empty() { format!("it ended; see {}", place.log().display()) } else { text };
    Failure::io("start the node's first process", io::Error::other(text))
}

/// What is written on the host's end of a link: the kernel takes 255 bytes.
pub fn alias(instance: &Path) -> String {
    let text = format!("{ALIAS}{}", instance.display());
    if text.len() < 256 { text } else { ALIAS.trim_end().to_owned() }
}

pub const ALIAS: &str = "cloudtik node ";
