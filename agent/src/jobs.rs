//! The node's jobs: the latest document of them, kept on the node's disk, and one task for each job in it.
//!
//! Only a document that came over the link and is on the disk makes an attempt begin. With the one on the disk an agent starts: it
//! tells which attempts may be running. These are watched, and ended where it says so, without a head. No attempt that is later than
//! those of the document on the disk can have begun.

mod attempt;
mod prepare;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cloudtik_model::JobId;
use cloudtik_model::job::JobGoals;
use cloudtik_protocol::files::{remove_tree, write_atomically};
use cloudtik_protocol::logging::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::task::{Desired, Graces, JobTask, Wanted};
use crate::fetch::Source;
use crate::home::Home;
use crate::reports::Reports;

/// Before a document that could not be written is written again.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// What jobs share.
#[derive(Debug, Clone)]
pub struct JobContext {
    pub home: Home,
    pub reports: Reports,
    /// Where the jobs' files come from.
    pub source: Source,
    /// One task for each job.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// A cheap handle on the node's jobs.
#[derive(Debug, Clone)]
pub struct Jobs {
    context: JobContext,
    graces: Graces,
    state: Arc<Mutex<State>>,
    /// Held while the document is written.
    writing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// Of the document on the disk.
    written: u64,
    /// Whether a document has come over the link.
    is_current: bool,
    is_ending: bool,
    /// The agent ends, and leaves the processes.
    is_released: bool,
    senders: BTreeMap<JobId, watch::Sender<Desired>>,
}

impl Jobs {
    /// Starts with the document that is on the disk.
    pub fn start(context: JobContext) -> Self {
        let jobs = Self { context, graces: Graces::default(), state: Arc::default(), writing: Arc::default() };
        match fs::read(jobs.context.home.job_goals()).map(|text| serde_json::from_slice::<JobGoals>(&text)) {
            Ok(Ok(stored)) => {
                jobs.lock().written = stored.version;
                jobs.apply(&stored, false);
            }
            Ok(Err(error)) => {
                tracing::error!("the stored document of jobs is malformed; what runs goes on until the head's comes: {error}")
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!("the stored document of jobs cannot be read; what runs goes on until the head's comes: {error}"),
        }
        jobs
    }

    /// Takes a document: on the disk first, then towards it. Older ones than the present are ignored. If it cannot be written, no
    /// attempt begins until it is; it counts all the same, for a job that fills the disk must be ended.
    pub async fn take(&self, goals: JobGoals) {
        if goals.version < self.lock().version {
            return;
        }
        let written = self.write(&goals).await;
        self.apply(&goals, true);
        if let Err(error) = written {
            tracing::warn!("cannot write the document of jobs, so no job begins until it is written: {}", chain(&error));
            let own = self.clone();
            self.context.tasks.spawn(async move { own.write_later(goals).await });
        }
    }

    /// Writes a document, unless a newer one has come.
    async fn write(&self, goals: &JobGoals) -> io::Result<()> {
        // Held until it is written, even if the caller is gone by then.
        let writing = self.writing.clone().lock_owned().await;
        if goals.version < self.lock().version {
            return Ok(());
        }
        let (own, version) = (self.clone(), goals.version);
        let text = serde_json::to_vec(goals).expect("texts and numbers become JSON");
        let written = tokio::task::spawn_blocking(move || {
            let _writing = writing;
            write_atomically(&own.context.home.job_goals(), &text, 0o600).inspect(|()| own.lock().written = version)
        });
        written.await.map_err(io::Error::other).flatten()
    }

    async fn write_later(&self, goals: JobGoals) {
        loop {
            tokio::select! {
                () = self.context.stop.cancelled() => return,
                () = tokio::time::sleep(WRITE_AGAIN) => {}
            }
            if goals.version < self.lock().version {
                return;
            }
            if self.write(&goals).await.is_ok() {
                tracing::info!("the document of jobs is written");
                return self.apply(&goals, true);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding the lock")
    }

    fn apply(&self, goals: &JobGoals, is_current: bool) {
        let mut state = self.lock();
        if goals.version < state.version || state.is_released {
            return;
        }
        state.version = goals.version;
        let may_begin = is_current && state.written >= goals.version;
        let is_first = is_current && !std::mem::replace(&mut state.is_current, is_current);
        let kept: BTreeSet<JobId> = goals.kept.iter().copied().collect();
        let mut wanted: BTreeMap<JobId, Wanted> = goals.jobs.iter().map(|goal| (goal.id, Wanted::Goal(Arc::new(goal.clone())))).collect();
        // What earlier agents left is looked for once, and only when a head that is there has named what is to stay.
        let known = state.senders.keys().copied().chain(if is_first { self.leftovers() } else { Vec::new() });
        for id in known {
            wanted.entry(id).or_insert(if kept.contains(&id) { Wanted::Kept } else { Wanted::Gone });
        }
        for (id, wanted) in wanted {
            let desired = Desired { wanted, may_begin, is_ending: state.is_ending };
            match state.senders.get(&id) {
                // Changed only where something has: other jobs' changes do not disturb this one.
                Some(sender) if !sender.is_closed() => {
                    sender.send_if_modified(|present| std::mem::replace(present, desired.clone()) != desired);
                }
                // It is settled.
                Some(sender) if sender.borrow().wanted == desired.wanted => {
                    if desired.wanted == Wanted::Gone {
                        state.senders.remove(&id);
                    }
                }
                Some(_) | None => {
                    let (sender, receiver) = watch::channel(desired);
                    let task = JobTask::new(id, receiver, self.context.clone(), self.graces.clone());
                    self.context.tasks.spawn(task.run());
                    state.senders.insert(id, sender);
                }
            }
        }
    }

    /// The jobs that have a directory here. What else is in the directory of jobs is removed.
    fn leftovers(&self) -> Vec<JobId> {
        let Ok(entries) = fs::read_dir(self.context.home.jobs()) else { return Vec::new() };
        let (jobs, others): (Vec<_>, Vec<_>) = entries.flatten().map(|entry| entry.path()).partition(|path| job_of(path).is_some());
        if !others.is_empty() {
            self.context.tasks.spawn_blocking(move || {
                for path in others {
                    if let Err(error) = remove_tree(&path) {
                        tracing::warn!("what an earlier agent left stays: {}", chain(&error));
                    }
                }
            });
        }
        jobs.iter().filter_map(|path| job_of(path)).collect()
    }

    /// Ends every job that runs, without forgetting the document; returns how long that may take.
    pub fn stop_all(&self) -> Duration {
        let mut state = self.lock();
        state.is_ending = true;
        for sender in state.senders.values() {
            sender.send_if_modified(|desired| !std::mem::replace(&mut desired.is_ending, true));
        }
        let graces = self.graces.lock().expect("nothing panics while holding the lock");
        Duration::from_millis(graces.values().copied().max().unwrap_or(0))
    }

    /// Ends the tasks and leaves the processes.
    pub fn release(&self) {
        let mut state = self.lock();
        state.is_released = true;
        state.senders.clear();
    }
}

fn job_of(path: &std::path::Path) -> Option<JobId> {
    path.file_name()?.to_str()?.parse().ok().map(JobId)
}

#[cfg(test)]
mod tests;
