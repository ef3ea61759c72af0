//! The files of a shim's directory: what it is to run, what runs, how that ended.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cloudtik_model::report::MemoryLimit;
use cloudtik_protocol::files::write_atomically;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::cgroup::Groups;
use crate::process::Process;

pub const RUN_FILE: &str = "run.json";
pub const STATE_FILE: &str = "shim.json";
pub const EXIT_FILE: &str = "exit.json";
pub const LOCK_FILE: &str = "shim.lock";
pub const LOG_FILE: &str = "log";
/// Of a run that happens once: there since just before its process was started.
pub const BEGUN_FILE: &str = "begun";
/// Of a run that happens once, written by the agent: it is over, or never begins.
pub const END_FILE: &str = "end.json";
/// Bytes that are reserved for a file that must be written whatever the disk does.
const RESERVED: usize = 4096;
/// Bytes of a reason in such a file.
const MAX_REASON: usize = 1_000;

/// What to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub stop_signal: i32,
    pub stop_grace_ms: u64,
    /// Of each log, or of each part of it that is kept.
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
    /// It is run at most once, whatever is killed when: an attempt of a job.
    #[serde(default)]
    pub once: Option<Once>,
}

/// What a run that happens once has besides.
#[derive(Debug, Serialize, Deserialize)]
pub struct Once {
    /// The process's working directory.
    pub work: PathBuf,
    /// The logs of its outputs. They may hold what earlier attempts printed.
    pub stdout: PathBuf,
    pub stderr: PathBuf,
    /// From 1.
    pub attempt: u32,
    /// Milliseconds from its start until it is ended.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
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

/// That a run has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Milliseconds since the Unix epoch.
    pub started_at: u64,
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel ended it, or a process of its, because this limit of memory was reached.
    #[serde(default)]
    pub memory_limit: Option<MemoryLimit>,
    /// It was told to end before it did.
    #[serde(default)]
    pub stopped: bool,
    /// It was ended because its time was over.
    #[serde(default)]
    pub timed_out: bool,
    /// Why there was no process.
    #[serde(default)]
    pub not_started: Option<String>,
    /// Bytes of its output that are in no log: beyond the logs' limit, or there was no room on the disk.
    #[serde(default)]
    pub lost_output: u64,
    /// Milliseconds since the Unix epoch; 0 of what an earlier version left.
    #[serde(default)]
    pub started_at: u64,
    #[serde(default)]
    pub ended_at: u64,
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

impl Exit {
    /// Short enough for the room that is reserved for it.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut bounded = self.clone();
        if let Some(why) = &mut bounded.not_started {
            why.truncate(why.floor_char_boundary(MAX_REASON));
        }
        serde_json::to_vec(&bounded).expect("numbers and a text become JSON")
    }
}

/// Whether a run that happens once has begun, or is never to begin.
pub(super) fn has_begun(directory: &Path) -> bool {
    // What cannot be told is yes: a second beginning is what must not be.
    [BEGUN_FILE, EXIT_FILE, END_FILE].iter().any(|name| fs::exists(directory.join(name)).unwrap_or(true))
}

/// Notes durably that the run begins.
pub(super) fn begin(directory: &Path, started_at: u64) -> io::Result<()> {
    write_atomically(&directory.join(BEGUN_FILE), &serde_json::to_vec(&Begun { started_at })?, 0o600)
}

/// Room on the disk for a small JSON file that is written later, when the disk may be full.
pub(super) struct Reserved {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Reserved {
    pub(super) fn new(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(format!(".{name}.reserved"));
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path)?;
        // Space may follow a JSON document, so that the file has its size from the beginning.
        let written = file.write_all_at(&[b' '; RESERVED], 0).and_then(|()| file.sync_all());
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Self { file, path, target: directory.join(name) })
    }

    /// Writes the document in place, and gives the file its name.
    pub(super) fn commit(self, document: &[u8]) -> io::Result<()> {
        if document.len() > RESERVED {
            return write_atomically(&self.target, document, 0o600);
        }
        self.file.write_all_at(document, 0)?;
        self.file.sync_all()?;
        fs::rename(&self.path, &self.target)?;
        self.target.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}
