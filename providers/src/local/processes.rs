//! The processes of a node, found by the mark in their environment.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill as send_signal};
use nix::unistd::Pid;

use crate::kind::is_orphaned;

/// The variable whose value is the instance's directory.
pub use cloudtik_model::bootstrap::NODE_HOME_VARIABLE as MARK;

/// A file of the agent's: the control groups that it made, a path in each line.
const GROUPS_FILE: &str = "cgroups";

/// Removes the control groups of a node whose processes are gone. One that is in use stays.
pub fn remove_groups(home: &Path) {
    for group in fs::read_to_string(home.join(GROUPS_FILE)).unwrap_or_default().lines().filter(|l| l.starts_with("/sys/fs/cgroup/")) {
        let _ = fs::remove_dir(group);
    }
}

/// Kills every process of the node at `home`, until none is left: those that carry its mark, what descends from them,
/// and what is in a session that one of them led, so that clearing the environment is no way out.
pub fn kill_marked(home: &Path, within: Duration) -> io::Result<()> {
    let mut wanted = format!("{MARK}=").into_bytes();
    wanted.extend_from_slice(home.as_os_str().as_bytes());
    kill_those(&|mark| mark == wanted, led_by_shims(home), within)
}

/// The same for every node whose home is below a directory.
pub fn kill_below(nodes: &Path, within: Duration) -> io::Result<()> {
    let mut prefix = format!("{MARK}=").into_bytes();
    prefix.extend_from_slice(nodes.as_os_str().as_bytes());
    prefix.push(b'/');
    let homes = fs::read_dir(nodes).map(|entries| entries.flatten().map(|e| e.path()).collect::<Vec<_>>()).unwrap_or_default();
    kill_those(&|mark| mark.starts_with(&prefix), homes.iter().flat_map(|home| led_by_shims(home)).collect(), within)
}

/// The processes of instances below a directory that have no directory any more, or whose cluster has no head's state, by
/// the directory of the instance.
pub fn orphans(below: &Path) -> io::Result<BTreeMap<PathBuf, Vec<i32>>> {
    let prefix = format!("{MARK}=").into_bytes();
    let mut homes = BTreeSet::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        if entry.file_name().to_string_lossy().parse::<i32>().is_err() {
            continue;
        }
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let mark = environment.split(|b| *b == 0).find_map(|variable| variable.strip_prefix(prefix.as_slice()));
        homes.extend(mark.map(|home| PathBuf::from(OsStr::from_bytes(home))).filter(|home| home.starts_with(below) && is_orphaned(home)));
    }
    let mut orphans = BTreeMap::new();
    for home in homes {
        let mut wanted = prefix.clone();
        wanted.extend_from_slice(home.as_os_str().as_bytes());
        let processes = find(&|mark| mark == wanted, &mut BTreeSet::new())?;
        // They may have ended, or the node may have been deleted, since the first look.
        if !processes.is_empty() && is_orphaned(&home) {
            orphans.insert(home, processes.into_iter().collect());
        }
    }
    Ok(orphans)
}

/// The sessions that the shims of a node's services and jobs led, also of shims that are gone: their sessions are what is left of
/// a process that clears its environment. (`shim.json` is the agent's; a session's number is its leader's process id.)
fn led_by_shims(home: &Path) -> BTreeSet<i32> {
    let below = |directory: PathBuf| fs::read_dir(directory).map(|e| e.flatten().map(|e| e.path()).collect::<Vec<_>>()).unwrap_or_default();
    let directories = ["services", "jobs"].into_iter().flat_map(|name| below(home.join(name))).flat_map(below);
    let states = directories.filter_map(|directory| fs::read(directory.join("shim.json")).ok());
    let leaders = states.filter_map(|text| {
        let state: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let (pid, started) = (state["shim"]["pid"].as_i64()? as i32, state["shim"]["started"].as_u64()?);
        // A process of another time that has the number by now is nobody of ours, and neither is its session.
        let is_another = start_time(pid).is_some_and(|now| now != started);
        (!is_another).then_some(pid)
    });
    leaders.collect()
}

fn kill_those(wanted: &dyn Fn(&[u8]) -> bool, mut sessions: BTreeSet<i32>, within: Duration) -> io::Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let found = find(wanted, &mut sessions)?;
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("processes {found:?} do not end")));
        }
        for pid in found {
            kill(pid)?;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends SIGKILL; a process that is gone already is fine.
pub fn kill(pid: i32) -> io::Result<()> {
    match send_signal(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The node's processes; `sessions` grows by those that they lead.
fn find(wanted: &dyn Fn(&[u8]) -> bool, sessions: &mut BTreeSet<i32>) -> io::Result<BTreeSet<i32>> {
    let prefix = format!("{MARK}=").into_bytes();
    let own = std::process::id() as i32;
    let mut found = BTreeSet::new();
    let mut relatives = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        // Whoever deletes a node from within it goes on to the end.
        if pid == own {
            continue;
        }
        let Some((parent, session)) = family(pid) else { continue };
        // Other users' processes cannot be read and are not ours; dead ones have nothing left to read.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        match environment.split(|b| *b == 0).find(|variable| variable.starts_with(&prefix)) {
            Some(mark) if wanted(mark) => {
                found.insert(pid);
                if session == pid {
                    sessions.insert(session);
                }
            }
            // Another node's, whoever started it.
            Some(_) => continue,
            None => {}
        }
        relatives.push((pid, parent, session));
    }
    found.extend(relatives.iter().filter(|(_, _, session)| sessions.contains(session)).map(|(pid, _, _)| *pid));
    // Children of children, until nothing is added.
    loop {
        let before = found.len();
        let children: Vec<i32> = relatives.iter().filter(|(_, parent, _)| found.contains(parent)).map(|(pid, _, _)| *pid).collect();
        found.extend(children);
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// Clock ticks from boot to a process's start.
fn start_time(pid: i32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// Parent and session of a process that has not ended.
fn family(pid: i32) -> Option<(i32, i32)> {
    let fields = stat(pid)?;
    let number = |n: usize| fields.get(n)?.parse().ok();
    if fields.first()? == "Z" { None } else { Some((number(1)?, number(3)?)) }
}

/// The fields of `/proc/PID/stat` from the third, the state, on (proc(5)).
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    Some(stat.get(stat.rfind(')')? + 2..)?.split(' ').map(str::to_owned).collect())
}
