//! How a machine is reached.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use async_trait::async_trait;
use cloudtik_model::program::Digest;

/// How long a command on a machine may take, unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of a command's output that are kept of each stream.
const OUTPUT: usize = 64 << 10;

/// A way to one machine. Paths are the machine's, files of [`Content::File`] are ours. Nothing is retried inside.
#[async_trait]
pub trait Transport: Send + Sync {
    /// What the machine is, whether `root` is there, and what lies in the directory of programs, which may be missing.
    async fn inspect(&self, root: &Path, programs: &Path) -> Result<Machine, TransportError>;

    /// Puts something in the place of whatever has that path: it is there whole, with these permission bits, or as before.
    /// The directory is made for its owner only, if that alone is missing.
    async fn put(&self, path: &Path, content: Content<'_>, mode: u32) -> Result<(), TransportError>;

    /// Renames a file, over another one if there is one. What was put is on the disk before its new name is.
    async fn rename(&self, from: &Path, to: &Path) -> Result<(), TransportError>;

    /// Removes a file; one that is gone is fine.
    async fn remove(&self, path: &Path) -> Result<(), TransportError>;

    /// The SHA-256 of a file as it is there now; none if it is missing.
    async fn digest(&self, path: &Path) -> Result<Option<Digest>, TransportError>;

    /// Whether a process runs the program at a path.
    async fn is_running(&self, path: &Path) -> Result<bool, TransportError>;

    /// A file of at most so many bytes; none if it is missing.
    async fn read(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, TransportError>;

    /// Runs a command until it ends. One that does not by its deadline is ended and has failed.
    async fn run(&self, command: &Command) -> Result<Output, TransportError>;

    /// Runs a command that leaves a process behind and returns; any end but success is a failure.
    async fn start(&self, command: &Command) -> Result<(), TransportError>;

    /// Whether files may be shared with the machine rather than copied, so that they take no room of their own.
    fn shares_files(&self) -> bool {
        false
    }
}

/// What there is of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The operating system, as the standard library calls it.
    pub system: String,
    /// As `uname -m` says it.
    pub arch: String,
    /// Bytes that the root may still take.
    pub free: u64,
    pub has_systemd: bool,
    pub has_root: bool,
    /// What the directory of programs has.
    pub entries: Vec<Entry>,
}

impl Machine {
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// For a symbolic link.
    pub leads_to: Option<String>,
}

/// What is put somewhere.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// A file of ours.
    File(&'a Path),
    Bytes(&'a [u8]),
    /// A symbolic link to this.
    Link(&'a str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub deadline: Duration,
    /// Bytes that are kept of each stream of its output.
    pub output: usize,
}

impl Command {
    pub fn new<'a>(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        Self { program: program.into(), arguments, deadline: DEADLINE, output: OUTPUT }
    }
}

/// How a command ended and the beginning of what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub fn succeeded(&self, program: &str) -> Result<(), TransportError> {
        if self.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&self.stderr).trim().to_owned();
        Err(TransportError::Ended { program: PathBuf::from(program), status: self.status, said })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot reach {machine}")]
    Unreachable { machine: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start {}", program.display())]
    Command { program: PathBuf, source: io::Error },
    #[error("{} ended with {status}{}{said}", program.display(), if said.is_empty() { "" } else { ": " })]
    Ended { program: PathBuf, status: ExitStatus, said: String },
    #[error("{} has not ended in {} s", program.display(), after.as_secs())]
    Timeout { program: PathBuf, after: Duration },
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: usize },
}
