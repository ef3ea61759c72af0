//! Processes that are not our children: recognised by process id and start time, waited for by file descriptor.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use cloudtik_model::bootstrap::NODE_HOME_VARIABLE;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// Clock ticks per second in `/proc`: fixed for user space on Linux.
pub const TICKS: f64 = 100.0;

/// A process, which a later one with the same id is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub started: u64,
}

impl Process {
    /// The process that has this id now.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: start_time(pid)? })
    }

    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) -> io::Result<()> {
        let Some(descriptor) = self.descriptor()? else { return Ok(()) };
        #[expect(deprecated, reason = "the replacement is unsafe to call; this descriptor stays open as long as it is watched")]
        let watched = AsyncFd::new(descriptor)?;
        watched.readable().await?.retain_ready();
        Ok(())
    }

    fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Checked after opening: the descriptor means one process, whatever becomes of its id.
            Ok(descriptor) => Ok(self.is_alive().then_some(descriptor)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        ignore_missing(kill(Pid::from_raw(self.pid), signal))
    }

    /// Kills every process of the group that this one leads.
    pub fn kill_group(&self) -> io::Result<()> {
        ignore_missing(killpg(Pid::from_raw(self.pid), Signal::SIGKILL))
    }
}

/// Kills every process of a session whose leader is gone; returns how many there were.
pub fn end_session(leader: i32) -> usize {
    let mut ended = 0;
    // Twice: what was starting another process just then.
    for _ in 0..2 {
        let Ok(entries) = fs::read_dir("/proc") else { return ended };
        for pid in entries.flatten().filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok()) {
            if pid != leader && session_of(pid) == Some(leader) && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                ended += 1;
            }
        }
    }
    ended
}

/// Kills every process that carries this agent's mark in its environment, but the agent itself; returns how many there were.
pub fn end_marked() -> usize {
    end_with_variables(&[])
}

/// Kills every process of this node that carries all of these variables in its environment; returns how many there were.
pub fn end_with_variables(variables: &[String]) -> usize {
    let Ok(home) = std::env::var(NODE_HOME_VARIABLE) else { return 0 };
    let marks: Vec<String> = variables.iter().cloned().chain([format!("{NODE_HOME_VARIABLE}={home}")]).collect();
    let own = std::process::id() as i32;
    let mut ended = 0;
    // Twice: what was starting another process just then.
    for _ in 0..2 {
        let Ok(entries) = fs::read_dir("/proc") else { return ended };
        for entry in entries.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let is_marked = marks.iter().all(|mark| environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes()));
            if pid != own && is_marked && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                ended += 1;
            }
        }
    }
    ended
}

fn ignore_missing(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Field 6 of `/proc/PID/stat`.
fn session_of(pid: i32) -> Option<i32> {
    field(pid, 3)?.parse().ok()
}

/// Field 22 of `/proc/PID/stat`.
fn start_time(pid: i32) -> Option<u64> {
    field(pid, 19)?.parse().ok()
}

/// A field of `/proc/PID/stat`, counted from the third.
fn field(pid: i32, number: usize) -> Option<String> {
    fields(pid)?.get(number).cloned()
}

/// The fields of `/proc/PID/stat` from the third on. A zombie has ended as far as we are concerned.
fn fields(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    let rest = stat.get(stat.rfind(')')? + 2..)?;
    (!rest.starts_with('Z')).then(|| rest.split(' ').map(str::to_owned).collect())
}

/// Processor time in ticks, children that ended included, and resident bytes, of processes and everything below them.
pub fn usage(roots: impl Iterator<Item = i32>) -> (u64, u64) {
    let mut waiting: Vec<i32> = roots.collect();
    let (mut seen, mut ticks, mut pages) = (BTreeSet::new(), 0u64, 0u64);
    while let Some(pid) = waiting.pop() {
        if !seen.insert(pid) {
            continue;
        }
        let Some(fields) = fields(pid) else { continue };
        let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        // Fields 14 to 17 and 24, counted from the third.
        ticks += (11..=14).map(number).sum::<u64>();
        pages += number(21);
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            waiting.extend(children.split_ascii_whitespace().filter_map(|p| p.parse::<i32>().ok()));
        }
    }
    (ticks, pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_another_with_its_id() {
        let me = Process::of(std::process::id() as i32).expect("this process runs");
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }
}
