//! The processes of a node, found by the mark in their environment.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill as send_signal};
use nix::unistd::Pid;

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
    let deadline = Instant::now() + within;
    let mut sessions = BTreeSet::new();
    loop {
        let found = find(home, &mut sessions)?;
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
fn find(home: &Path, sessions: &mut BTreeSet<i32>) -> io::Result<BTreeSet<i32>> {
    let prefix = format!("{MARK}=").into_bytes();
    let wanted = [prefix.as_slice(), home.as_os_str().as_bytes()].concat();
    let mut found = BTreeSet::new();
    let mut relatives = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Some((parent, session)) = family(&entry.path()) else { continue };
        // Other users' processes cannot be read and are not ours; dead ones have nothing left to read.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        match environment.split(|b| *b == 0).find(|variable| variable.starts_with(&prefix)) {
            Some(mark) if mark == wanted => {
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

/// Parent and session of a process that has not ended (proc(5), fields 3, 4 and 6 of `stat`).
fn family(process: &Path) -> Option<(i32, i32)> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    let (parent, session) = (fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?);
    Some((parent, session))
}
