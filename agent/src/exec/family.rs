//! What a program leaves behind when it ends.
//!
//! One rule: a process that left the program's session and holds none of its output goes on; the rest ends.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::GRACE;

/// What a program started may take so long to leave its session, after the program's end.
const SETTLE: Duration = Duration::from_secs(1);
/// From SIGKILL to the end of those whom it was sent.
const KILLED: Duration = Duration::from_secs(1);
/// How often they are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// The processes of a program's session, and those that hold its output.
#[derive(Debug, Clone)]
pub struct Family {
    session: i32,
    /// The output's pipes, or its terminal.
    outputs: Vec<Output>,
}

/// A pipe or a terminal. Its name is what is compared first, since that touches no file; but each container has a
/// `/dev/pts/0` of its own, so that only device and inode tell which one it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    name: PathBuf,
    device: u64,
    inode: u64,
}

impl Output {
    /// What a descriptor of this process is of.
    pub fn of(descriptor: &impl AsFd) -> Option<Self> {
        let link = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()));
        let (name, file) = (fs::read_link(&link).ok()?, fs::metadata(&link).ok()?);
        Some(Self { name, device: file.dev(), inode: file.ino() })
    }

    /// Whether a descriptor, as `/proc` has it, is of this.
    fn is_at(&self, link: &Path) -> bool {
        fs::read_link(link).is_ok_and(|name| name == self.name)
            && fs::metadata(link).is_ok_and(|file| (file.dev(), file.ino()) == (self.device, self.inode))
    }
}

impl Family {
    pub fn new(session: i32, outputs: impl IntoIterator<Item = Option<Output>>) -> Self {
        Self { session, outputs: outputs.into_iter().flatten().collect() }
    }

    /// Those that have not ended; holders of the output only on request, since that takes a look at every process.
    pub fn members(&self, with_holders: bool) -> Vec<Pid> {
        let own = std::process::id();
        let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_member = |pid: &u32| {
            let path = PathBuf::from(format!("/proc/{pid}"));
            let Some(session) = session_of(&path) else { return false };
            session == self.session || with_holders && self.is_held_by(&path)
        };
        pids.filter(|pid| *pid != own).filter(is_member).map(|pid| Pid::from_raw(pid as i32)).collect()
    }

    /// Signals all of them; returns how many could be.
    pub fn signal(&self, with_holders: bool, signal: Signal) -> usize {
        self.members(with_holders).into_iter().filter(|pid| kill(*pid, signal).is_ok()).count()
    }

    /// Ends what is left, once the program has ended. `copies` are of its output, and end with those that hold it.
    pub async fn end(&self, copies: &mut JoinSet<()>) {
        // What is being started may be about to leave.
        if self.ends_within(SETTLE, copies).await {
            return;
        }
        for (signal, patience) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, KILLED)] {
            // What may not be signalled is not waited for.
            if self.look(copies, Some(signal)).await == 0 || self.ends_within(patience, copies).await {
                return;
            }
        }
    }

    async fn ends_within(&self, patience: Duration, copies: &mut JoinSet<()>) -> bool {
        let deadline = Instant::now() + patience;
        while self.look(copies, None).await > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// How many are left, or could be signalled.
    async fn look(&self, copies: &mut JoinSet<()>, signal: Option<Signal>) -> usize {
        while copies.try_join_next().is_some() {}
        let (family, with_holders) = (self.clone(), !copies.is_empty());
        let looking = move || match signal {
            Some(signal) => family.signal(with_holders, signal),
            None => family.members(with_holders).len(),
        };
        tokio::task::spawn_blocking(looking).await.unwrap_or(0)
    }

    fn is_held_by(&self, process: &Path) -> bool {
        let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
        descriptors.flatten().any(|entry| self.outputs.iter().any(|output| output.is_at(&entry.path())))
    }
}

/// The session of a process that has not ended.
fn session_of(process: &Path) -> Option<i32> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The name stands in parentheses and may hold any character; then state, parent, group, session.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}
