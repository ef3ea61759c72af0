//! An instance: a directory, and while it runs a first process that holds the directory's lock.
//!
//! ```text
//! instance.json    what it is; the directory is an instance while it has this file
//! machine.lock     held by the first process; its process id, its start and whether it is set up
//! machine.log      what the first process says
//! home/            the agent's directory, in the node at the same path
//! disk/            upper/ and work/ of the layer over the host's root, mounts/N/ those over other file systems, tmp/
//! root/            where the first process puts the node's root, in its own mount namespace
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloudtik_model::{ClusterName, Generation, InstanceId, NodeId, Resources};
pub use cloudtik_providers::{instance_id, parse_instance};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::names;
use crate::processes::{self, FirstProcess, READY, start_time};
use crate::range::Range;

pub const INSTANCE_FILE: &str = "instance.json";
const LOCK_FILE: &str = "machine.lock";
/// What a lock says whose instance was never started: no process has this number.
const NEVER_STARTED: &str = "0 0";
/// Between two looks at a lock.
const LOOK: Duration = Duration::from_millis(1);
/// Between two looks for the holder of a lock that names nobody.
const SEARCH: Duration = Duration::from_millis(50);

/// What an instance is: all that its first process needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    pub cluster: ClusterName,
    pub node: NodeId,
    pub generation: Generation,
    pub address: Ipv4Addr,
    pub range: Range,
    /// The directory of its workspace.
    pub workspace: PathBuf,
    /// The directory of its cluster's instances.
    pub nodes: PathBuf,
    pub agent: PathBuf,
    /// What it may use of this machine.
    pub resources: Option<Resources>,
    /// Directories and files of this machine that it sees and writes.
    pub shared: Vec<PathBuf>,
    /// Directories of this machine that it finds empty.
    pub hidden: Vec<PathBuf>,
    /// Whether it reaches what is outside of its workspace.
    pub nat: bool,
}

impl Machine {
    pub fn id(&self) -> InstanceId {
        instance_id(&self.node, self.generation)
    }

    pub fn group(&self) -> PathBuf {
        names::group(&self.workspace, &self.cluster, &self.id())
    }

    /// A hardware address that belongs to its address, so that neighbours need not learn a new one.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.address.octets();
        [0x02, 0x43, a, b, c, d]
    }
}

/// The directory of an instance.
#[derive(Debug, Clone)]
pub struct Place(PathBuf);

impl Place {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    pub fn file(&self) -> PathBuf {
        self.0.join(INSTANCE_FILE)
    }
    pub fn lock_file(&self) -> PathBuf {
        self.0.join(LOCK_FILE)
    }
    pub fn log(&self) -> PathBuf {
        self.0.join("machine.log")
    }
    pub fn home(&self) -> PathBuf {
        self.0.join("home")
    }
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }
    /// The host's end of its link.
    pub fn link(&self) -> String {
        names::link(&self.0)
    }

    pub fn read(&self) -> io::Result<Machine> {
        Ok(serde_json::from_slice(&fs::read(self.file())?)?)
    }

    /// Whether its first process runs and is set up.
    pub fn is_running(&self) -> io::Result<bool> {
        let lock = match File::open(self.lock_file()) {
            Ok(lock) => lock,
            // Somebody removed it, which ends no node.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(!processes::first_of(self.path())?.is_empty()),
            Err(error) => return Err(error),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(self.first_process()?.is_some_and(|first| first.is_ready && first.is_alive())),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes the lock of an instance that is being made, so that one without a lock is known to have lost it.
    pub fn make_lock(&self) -> io::Result<()> {
        let mut lock = OpenOptions::new().create_new(true).write(true).mode(0o600).open(self.lock_file())?;
        lock.write_all(NEVER_STARTED.as_bytes())
    }

    /// Takes the lock, which nobody can have while the instance is not running. One that was lost is made anew.
    pub fn try_lock(&self) -> Result<File, Held> {
        let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(self.lock_file());
        let file = file.map_err(Held::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Held::ByOther),
            Err(TryLockError::Error(error)) => return Err(Held::Io(error)),
        }
        // The one that is there by that name now, not one that was removed meanwhile.
        let is_current = fs::metadata(self.lock_file()).is_ok_and(|now| file.metadata().is_ok_and(|held| held.ino() == now.ino()));
        if is_current { Ok(file) } else { Err(Held::Io(io::Error::from(io::ErrorKind::NotFound))) }
    }

    /// Ends a first process that runs without the lock, which the caller has: its file was removed, emptied or replaced.
    pub fn end_unlocked(&self, within: Duration) -> io::Result<()> {
        if self.first_process()?.is_some_and(|noted| !noted.is_alive()) {
            return Ok(());
        }
        processes::end(|| processes::first_of(self.path()), within)
    }

    /// What the lock says of its holder.
    pub fn first_process(&self) -> io::Result<Option<FirstProcess>> {
        Ok(FirstProcess::parse(&fs::read_to_string(self.lock_file())?))
    }

    /// Ends the first process, and with it everything on the node. Returns the lock, so that nothing starts it again
    /// meanwhile; none where the instance has no directory.
    pub fn end(&self, within: Duration) -> io::Result<Option<File>> {
        let until = Instant::now() + within;
        let mut next_search = Instant::now() + SEARCH;
        loop {
            match self.try_lock() {
                Ok(lock) => return self.end_unlocked(within).map(|()| Some(lock)),
                Err(Held::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                    if !self.0.is_dir() {
                        return processes::end(|| processes::first_of(self.path()), within).map(|()| None);
                    }
                }
                Err(Held::Io(error)) => return Err(error),
                Err(Held::ByOther) => match self.first_process() {
                    Ok(Some(first)) if first.is_alive() => first.signal(Signal::KILL)?,
                    _ if Instant::now() > next_search => {
                        processes::first_of(self.path())?.iter().try_for_each(|first| first.signal(Signal::KILL))?;
                        next_search = Instant::now() + SEARCH;
                    }
                    _ => {}
                },
            }
            if Instant::now() > until {
                let message = format!("the first process of {} does not end", self.0.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum Held {
    ByOther,
    Io(io::Error),
}

/// Notes in the lock which process is the first one.
pub fn record(lock: &mut File, pid: i32) -> io::Result<()> {
    let started = start_time(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    lock.set_len(0)?;
    lock.seek(SeekFrom::Start(0))?;
    write!(lock, "{pid} {started}")
}

/// Notes in the lock that the node is set up.
pub fn record_ready(lock: &mut File) -> io::Result<()> {
    lock.seek(SeekFrom::End(0))?;
    writeln!(lock, " {READY}")
}

/// Forgets what an earlier holder noted.
pub fn clear(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_says_who_holds_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let place = Place::new(directory.path());
        assert!(!place.is_running().expect("looks"), "without a lock nothing runs");
        let mut lock = place.try_lock().expect("takes it");
        record(&mut lock, std::process::id() as i32).expect("writes");
        assert!(!place.is_running().expect("looks"), "it is not set up yet");
        record_ready(&mut lock).expect("writes");
        assert!(place.is_running().expect("looks"));
        let first = place.first_process().expect("reads").expect("is noted");
        assert_eq!((first.pid, first.is_ready), (std::process::id() as i32, true));
        let other = FirstProcess { started: first.started + 1, ..first };
        other.signal(Signal::KILL).expect("a process of another time is left alone");
        assert!(matches!(place.try_lock(), Err(Held::ByOther)), "it has one holder");
    }
}
