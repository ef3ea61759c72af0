//! One attempt of a job as its files tell it. All of this blocks.
//!
//! ```text
//! shim.lock    held by the shim while it lives, and by the agent while the attempt is prepared
//! files/N      the job's files, while they are fetched
//! work/        where it runs
//! run.json     what its shim is to run: the attempt is prepared
//! begun        it begins; from here on it never does again
//! shim.json    its processes
//! exit.json    how it ended
//! end.json     what the agent knows of its end instead: it never begins, or its shim was killed
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cloudtik_model::job::{JobEnd, JobReportState, Loss, layout};
use cloudtik_model::{JobId, Timestamp};
use cloudtik_protocol::files::{RemoveError, create_private_directory_in_place, remove_tree, write_atomically};
use cloudtik_protocol::logging::plain;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::clock::now;
use crate::home::Home;
use crate::process::{Process, end_session, end_with_variables};
use crate::shim::{BEGUN_FILE, Begun, END_FILE, EXIT_FILE, Exit, LOCK_FILE, RUN_FILE, Run, STATE_FILE, State};

/// The variables by which a job's processes know it.
pub const ID_VARIABLE: &str = "CLOUDTIK_JOB_ID";
pub const ATTEMPT_VARIABLE: &str = "CLOUDTIK_JOB_ATTEMPT";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no directory, so nothing has begun in it, or it was removed.
    #[error("cannot make {}", .0.display())]
    Make(PathBuf, #[source] io::Error),
    /// Nothing is known of it: the directory may be there.
    #[error("cannot open {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    #[error("cannot lock {}", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    #[error("cannot write {}", .0.display())]
    Record(PathBuf, #[source] io::Error),
}

/// The directory of an attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub id: JobId,
    pub number: u32,
    home: Home,
    directory: PathBuf,
}

/// While it is held, the attempt does not begin.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // At once, also where a process that is being started has inherited the descriptor for a moment.
        let _ = self.0.unlock();
    }
}

/// Where an attempt stands.
#[derive(Debug)]
pub enum Found {
    /// It has not begun.
    Fresh(Lock),
    /// A shim has it, and has not said yet what it started.
    Starting,
    Running(State),
    Exited(Exit),
    /// It is over otherwise.
    Over(JobReportState),
}

impl Attempt {
    pub fn new(home: &Home, id: JobId, number: u32) -> Self {
        Self { id, number, home: home.clone(), directory: home.path().join(layout::attempt(id, number)) }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn work(&self) -> PathBuf {
        self.home.path().join(layout::work(self.id, self.number))
    }

    /// Where files are fetched to.
    pub fn files(&self) -> PathBuf {
        self.directory.join("files")
    }

    /// The attempts of a job that have a directory.
    pub fn all(home: &Home, id: JobId) -> Result<Vec<Self>, Error> {
        let path = home.job(id);
        let names = fs::read_dir(&path).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>());
        match names {
            Ok(names) => {
                let numbers = names.iter().filter_map(|name| name.to_str()?.parse().ok());
                Ok(numbers.map(|number| Self::new(home, id, number)).collect())
            }
            Err(error) if is_absence(&error) => Ok(Vec::new()),
            Err(error) => Err(Error::Open(path, error)),
        }
    }

    /// What went wrong at a file: it counts as the lack of the directory only where that is certain.
    fn failed(&self, path: PathBuf, error: io::Error) -> Error {
        match fs::symlink_metadata(&self.directory) {
            Err(looked) if is_absence(&looked) => Error::Make(path, error),
            Ok(_) | Err(_) => Error::Open(path, error),
        }
    }

    /// Looks where it stands; makes its directory if there is none. What is left of one whose shim was killed is ended.
    pub fn look(&self) -> Result<Found, Error> {
        let path = self.directory.join(LOCK_FILE);
        // In the node's directory, which does not come back once it is deleted.
        for directory in [self.home.jobs(), self.home.job(self.id), self.directory.clone()] {
            create_private_directory_in_place(&directory).map_err(|e| self.failed(directory, e))?;
        }
        let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(|e| self.failed(path.clone(), e))?;
        let is_held = match lock.try_lock() {
            Ok(()) => false,
            Err(fs::TryLockError::WouldBlock) => true,
            Err(fs::TryLockError::Error(error)) => return Err(Error::Lock(path, error)),
        };
        let lock = Lock(lock);
        if is_held {
            // Its shim writes the end while it holds the lock.
            return Ok(match self.read::<State>(STATE_FILE)? {
                Some(state) if state.shim.is_alive() => Found::Running(state),
                _ => Found::Starting,
            });
        }
        if let Some(exit) = self.read(EXIT_FILE)? {
            return Ok(Found::Exited(exit));
        }
        if let Some(text) = self.content(END_FILE)? {
            return Ok(Found::Over(
                serde_json::from_slice(&text).unwrap_or_else(|_| unstarted(JobEnd::NotStarted { why: UNKNOWN.to_owned() })),
            ));
        }
        let begun = self.content(BEGUN_FILE)?;
        if begun.is_none() && self.content(EXIT_FILE)?.is_none() {
            return Ok(Found::Fresh(lock));
        }
        self.end_leftovers();
        let now = now();
        let begun = begun.and_then(|text| serde_json::from_slice::<Begun>(&text).ok());
        let started = begun.map_or(now, |begun| Timestamp(begun.started_at));
        let state = JobReportState::Ended { started, at: now, end: JobEnd::Lost { why: Loss::Shim }, lost_output: 0 };
        // If it cannot be written, the next agent finds the same.
        let _ = self.record(&lock, &state);
        Ok(Found::Over(state))
    }

    /// Ends the processes of a shim that was killed: its session, what has its marks, and what is in its control groups.
    fn end_leftovers(&self) {
        let shim = self.read::<State>(STATE_FILE).ok().flatten().map(|state| state.shim.pid);
        let noted = || fs::read_to_string(self.directory.join(LOCK_FILE)).ok()?.trim().parse().ok();
        let by_session = shim.or_else(noted).filter(|shim| Process::of(*shim).is_none()).map_or(0, end_session);
        let ended = by_session + end_with_variables(&[format!("{ID_VARIABLE}={}", self.id), format!("{ATTEMPT_VARIABLE}={}", self.number)]);
        if let Ok(Some(run)) = self.read::<Run>(RUN_FILE) {
            run.groups.remove();
        }
        if ended > 0 {
            tracing::warn!(job = %self.id, "processes of a job without their shim are ended");
        }
    }

    /// The content of a file, if it is there.
    fn content(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.directory.join(name);
        match fs::read(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// What a file holds, if it is there and whole.
    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        Ok(self.content(name)?.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Notes that it is over. When this returns, it never begins, whatever happens.
    pub fn record(&self, _lock: &Lock, state: &JobReportState) -> Result<(), Error> {
        let path = self.directory.join(END_FILE);
        let text = serde_json::to_vec(state).expect("numbers and texts become JSON");
        // On a full disk there may still be room for a file without content.
        write_atomically(&path, &text, 0o600)
            .or_else(|_| {
                OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?.sync_all()?;
                File::open(&self.directory)?.sync_all()
            })
            .map_err(|e| Error::Record(path, e))
    }

    /// Removes what it ran in, once it is over.
    pub fn clear(&self) -> Result<(), RemoveError> {
        remove_tree(&self.work())?;
        remove_tree(&self.files())
    }
}

/// Of an end whose reason could not be written down.
const UNKNOWN: &str = "it could not be prepared, and the disk had no room to note why";

/// What became of a process that was to run once.
pub fn over(exit: Exit, is_cancelled: bool) -> JobReportState {
    /// What shells say of a program that was ended by SIGKILL.
    const KILLED: i32 = 128 + 9;
    let end = match exit {
        Exit { not_started: Some(why), .. } => return unstarted(JobEnd::NotStarted { why: plain(&why) }),
        Exit { timed_out: true, .. } => JobEnd::TimedOut,
        Exit { stopped: true, .. } if is_cancelled => JobEnd::Cancelled,
        // Whatever the process made of the signal: somebody ended it, and not on the job's behalf.
        Exit { stopped: true, signal, .. } => {
            JobEnd::Killed { signal: signal.unwrap_or(Signal::SIGTERM as i32), out_of_memory: exit.memory_limit.is_some() }
        }
        Exit { code: Some(0), .. } => JobEnd::Succeeded,
        Exit { code: Some(KILLED), memory_limit: Some(_), .. } => JobEnd::Killed { signal: KILLED - 128, out_of_memory: true },
        Exit { code: Some(exit_code), .. } => JobEnd::Failed { exit_code },
        Exit { signal: Some(signal), memory_limit, .. } => JobEnd::Killed { signal, out_of_memory: memory_limit.is_some() },
        Exit { .. } => JobEnd::Lost { why: Loss::Shim },
    };
    JobReportState::Ended { started: Timestamp(exit.started_at), at: Timestamp(exit.ended_at), end, lost_output: exit.lost_output }
}

pub fn unstarted(end: JobEnd) -> JobReportState {
    JobReportState::Unstarted { end }
}

/// Whether an error says that there is no such file or directory, and not only that it cannot be reached.
pub fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
