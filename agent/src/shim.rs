//! The shim: owns one service's process, its log and its exit status, and outlives the agent.
//!
//! It reads `run.json`, starts the process in a group of its own, copies its output to a rotated log, forwards the stop
//! signal, reaps, and leaves `exit.json`. It tells its starter one line on its standard output: `started` or what went
//! wrong. One thread, no runtime: it must be small and simple, for it is what cannot be restarted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cloudtik_protocol::files::write_atomically;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Groups, MemoryLimit};
use crate::process::Process;

pub const RUN_FILE: &str = "run.json";
pub const STATE_FILE: &str = "shim.json";
pub const EXIT_FILE: &str = "exit.json";
pub const LOCK_FILE: &str = "shim.lock";
pub const LOG_FILE: &str = "log";
/// Blocks of output that are still read when the process has ended: more than a pipe holds.
const LAST_WORDS: u32 = 64;
/// How long what forked away may take to end.
const ORPHANS_END: Duration = Duration::from_secs(2);
/// What the shim says when the process runs.
pub const STARTED: &str = "started";
/// What it says when another shim has the service.
pub const OCCUPIED: &str = "occupied";

/// What to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub stop_signal: i32,
    pub stop_grace_ms: u64,
    pub log_max_bytes: u64,
    pub log_keep: u32,
    /// Control groups that the process is to be in; made by the agent, removed with the process.
    #[serde(default)]
    pub groups: Groups,
    /// What it starts is its own affair and outlives it: the head, which starts agents.
    #[serde(default)]
    pub leaves_children: bool,
    /// How often the service was started, this time included.
    #[serde(default)]
    pub starts: u32,
    /// Of what the process was started from; tells whether a goal still means this process.
    pub identity: String,
    /// Digests of the software that it runs from.
    #[serde(default)]
    pub artifacts: Vec<String>,
}

/// What runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub shim: Process,
    pub process: Process,
    pub identity: String,
    /// Milliseconds from the stop signal to SIGKILL.
    #[serde(default)]
    pub stop_grace_ms: u64,
    /// How often the service was started, this time included.
    #[serde(default)]
    pub starts: u32,
    /// Milliseconds since the Unix epoch.
    pub started_at: u64,
    /// Digests of the software that the process runs from, which is not to be removed meanwhile.
    #[serde(default)]
    pub artifacts: Vec<String>,
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel ended it, or a process of its, because this limit of memory was reached.
    #[serde(default)]
    pub memory_limit: Option<MemoryLimit>,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.memory_limit {
            Some(MemoryLimit::Service) => f.write_str("memory limit reached, ")?,
            Some(MemoryLimit::Node) => f.write_str("the node's memory limit reached, ")?,
            None => {}
        }
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit {code}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(name) => write!(f, "killed by {name}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
            (None, None) => f.write_str("its end was not seen"),
        }
    }
}

pub fn main(directory: &Path) -> ExitCode {
    match start(directory) {
        Ok(Some(shim)) => {
            say(STARTED);
            shim.attend()
        }
        Ok(None) => {
            say(OCCUPIED);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn say(word: &str) {
    let mut out = io::stdout();
    // The starter may be gone: that changes nothing here.
    let _ = writeln!(out, "{word}");
    let _ = out.flush();
}

struct Shim {
    directory: PathBuf,
    run: Run,
    process: Process,
    output: Option<PipeReader>,
    signals: SignalFd,
    log: Log,
    /// Held for the shim's life.
    _lock: File,
}

fn start(directory: &Path) -> io::Result<Option<Shim>> {
    let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(directory.join(LOCK_FILE))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    // Says whose it is, should shim.json be lost.
    lock.set_len(0)?;
    writeln!(&lock, "{}", std::process::id())?;
    let run: Run = serde_json::from_slice(&fs::read(directory.join(RUN_FILE))?)?;
    let _ = nix::sys::prctl::set_name(c"cloudtik-shim");
    // A session of our own: no terminal's hang-up, no group signal meant for the agent reaches us.
    setsid()?;
    // Orphans of the process come to us to be reaped.
    nix::sys::prctl::set_child_subreaper(true)?;
    match fs::remove_file(directory.join(EXIT_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let log = Log::open(directory.join(LOG_FILE), run.log_max_bytes, run.log_keep)?;
    let (output, input) = io::pipe()?;
    let (program, arguments) = run.command.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    // Born in its groups, so that nothing that it starts can escape them; the shim itself does not count.
    run.groups.enter()?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(run.environment.iter().map(|(k, v)| (k, v)))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .process_group(0)
        .spawn();
    run.groups.leave();
    let child = child.map_err(|e| io::Error::new(e.kind(), format!("cannot start {program}: {e}")))?;
    // Only now: a process inherits what is blocked, and must find every signal as usual.
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGPIPE] {
        blocked.add(signal);
    }
    blocked.thread_block()?;
    let signals = SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let unknown = || io::Error::other("the process vanished at once");
    let process = Process { pid: child.id() as i32, started: Process::of(child.id() as i32).map_or(0, |p| p.started) };
    let shim = Process::of(std::process::id() as i32).ok_or_else(unknown)?;
    let started_at = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
    let (identity, artifacts) = (run.identity.clone(), run.artifacts.clone());
    let state = State { shim, process, identity, stop_grace_ms: run.stop_grace_ms, starts: run.starts, started_at, artifacts };
    if let Err(error) = write_atomically(&directory.join(STATE_FILE), &serde_json::to_vec(&state)?, 0o600) {
        // Nobody would know of it.
        let _ = process.kill_group();
        return Err(error);
    }
    Ok(Some(Shim { directory: directory.to_owned(), run, process, output: Some(output), signals, log, _lock: lock }))
}

impl Shim {
    fn attend(mut self) -> ExitCode {
        let mut kill_at: Option<Instant> = None;
        // It may have ended before its end could be heard of.
        if let Some(exit) = self.reap() {
            return self.finish(exit);
        }
        loop {
            let timeout = kill_at.map_or(PollTimeout::NONE, |at| {
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if let Some(output) = &self.output {
                descriptors.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut descriptors, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
            let has_output = descriptors.get(1).and_then(PollFd::any).unwrap_or(false);
            if has_output {
                self.copy_output();
            }
            while let Ok(Some(signal)) = self.signals.read_signal() {
                if signal.ssi_signo == Signal::SIGTERM as u32 && kill_at.is_none() {
                    let stop = Signal::try_from(self.run.stop_signal).unwrap_or(Signal::SIGTERM);
                    let _ = killpg(Pid::from_raw(self.process.pid), stop);
                    kill_at = Some(Instant::now() + Duration::from_millis(self.run.stop_grace_ms));
                }
            }
            if kill_at.is_some_and(|at| at <= Instant::now()) {
                let _ = self.process.kill_group();
                kill_at = Some(Instant::now() + Duration::from_secs(1));
            }
            if let Some(exit) = self.reap() {
                return self.finish(exit);
            }
        }
    }

    /// Reaps whatever ended; returns how our process did.
    fn reap(&self) -> Option<Exit> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == self.process.pid => {
                    return Some(Exit { code: Some(code), ..Exit::default() });
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == self.process.pid => {
                    return Some(Exit { signal: Some(signal as i32), ..Exit::default() });
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn finish(mut self, mut exit: Exit) -> ExitCode {
        // What the process left behind is not a service any more: its group, and whatever forked away from that, which
        // came to us when its parent ended.
        let _ = self.process.kill_group();
        if !self.run.leaves_children {
            self.end_orphans();
        }
        for _ in 0..LAST_WORDS {
            let Some(output) = &self.output else { break };
            // What it said last, but no waiting for strangers that hold the pipe.
            let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
            if !poll(&mut ready, PollTimeout::ZERO).is_ok_and(|n| n > 0) {
                break;
            }
            self.copy_output();
        }
        exit.memory_limit = self.run.groups.ran_out_of_memory();
        self.run.groups.remove();
        let text = serde_json::to_vec(&exit).unwrap_or_default();
        let _ = write_atomically(&self.directory.join(EXIT_FILE), &text, 0o600);
        ExitCode::SUCCESS
    }

    /// Kills what is left of the service, and what comes to us when that ends, until there is no child any more.
    fn end_orphans(&self) {
        let deadline = Instant::now() + ORPHANS_END;
        while Instant::now() < deadline {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
                    for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn copy_output(&mut self) {
        let mut buffer = [0; 16 << 10];
        let Some(output) = &mut self.output else { return };
        match output.read(&mut buffer) {
            Ok(0) => self.output = None,
            // A full disk costs log lines, never the service.
            Ok(n) => self.log.write(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.output = None,
        }
    }
}

struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    max: u64,
    keep: u32,
}

impl Log {
    fn open(path: PathBuf, max: u64, keep: u32) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, max: max.max(4096), keep })
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.size + bytes.len() as u64 > self.max {
            self.rotate();
        }
        if self.file.write_all(bytes).is_ok() {
            self.size += bytes.len() as u64;
        }
    }

    /// `log` becomes `log.1`, which becomes `log.2`, up to the number that is kept.
    fn rotate(&mut self) {
        let numbered = |n: u32| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..self.keep).rev() {
            let _ = fs::rename(numbered(n), numbered(n + 1));
        }
        let moved = if self.keep == 0 { fs::remove_file(&self.path) } else { fs::rename(&self.path, numbered(1)) };
        if moved.is_err() {
            return;
        }
        if let Ok(file) = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path) {
            self.file = file;
            self.size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_rotate_and_old_ones_go() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut log = Log::open(directory.path().join("log"), 4096, 2).expect("opens");
        for i in 0..10u8 {
            log.write(&[b'a' + i; 3000]);
        }
        let mut names: Vec<_> = fs::read_dir(directory.path()).expect("lists").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        assert_eq!(fs::read(directory.path().join("log")).expect("there"), vec![b'j'; 3000]);
        assert_eq!(fs::read(directory.path().join("log.1")).expect("there"), vec![b'i'; 3000]);
    }
}
