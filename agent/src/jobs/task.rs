//! One job: its present attempt prepared, begun once, watched and ended, as its goal says.
//!
//! ```text
//! Fresh → (files, run.json) → Starting → Running → Exited        (its shim starts, ends)
//!   │                             └─────────┴────→ Over          (its shim was killed)
//!   └──→ Over                                                    (cancelled before, cannot be started, unknown here)
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_model::job::{JobEnd, JobGoal, JobReport, JobReportState, JobStart, Loss};
use cloudtik_model::{JobId, Timestamp};
use cloudtik_protocol::files::remove_tree;
use cloudtik_protocol::logging::{chain, plain};
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::Instant;

use super::JobContext;
use super::attempt::{self, Attempt, Found, Lock, is_absence, over, unstarted};
use super::prepare;
use crate::clock::now;
use crate::shim::{Launched, State, launch};

/// Between two looks at a shim that is starting.
const START_LOOK: Duration = Duration::from_millis(20);
/// Before something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Before a directory that could not be removed is tried again.
const REMOVE_AGAIN: Duration = Duration::from_secs(60);
/// On top of an attempt's own grace, before its shim is given up.
const STOP_SLACK: Duration = Duration::from_secs(5);
/// Bytes of the reason why an attempt cannot begin.
const MAX_REASON: usize = 1_000;

/// What a job is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    pub wanted: Wanted,
    /// Whether an attempt may begin: the document came over the link and is on the disk.
    pub may_begin: bool,
    /// The node ends: what runs is ended.
    pub is_ending: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    Goal(Arc<JobGoal>),
    /// It is over: its logs stay.
    Kept,
    /// Nothing of it stays.
    Gone,
}

impl Desired {
    /// Whether what runs of the job is to end.
    fn ends(&self) -> bool {
        self.is_ending
            || match &self.wanted {
                Wanted::Goal(goal) => goal.cancel,
                Wanted::Kept | Wanted::Gone => true,
            }
    }
}

/// The graces of jobs that run, in milliseconds.
pub type Graces = Arc<Mutex<BTreeMap<JobId, u64>>>;

pub struct JobTask {
    id: JobId,
    desired: watch::Receiver<Desired>,
    context: JobContext,
    graces: Graces,
    /// The attempt that was seen running, and since when it ran.
    begun: Option<(u32, Timestamp)>,
    /// The attempt that is over, and how.
    over: Option<(u32, JobReportState)>,
    /// What was logged last of what is tried again.
    warned: String,
}

/// What comes next.
enum Flow {
    /// Look again at what is desired, and at what is there.
    Again,
    /// The job needs no task any more, unless something else is desired by now.
    Settled,
    /// The agent ends; the job goes on without it.
    Released,
}

impl JobTask {
    pub fn new(id: JobId, desired: watch::Receiver<Desired>, context: JobContext, graces: Graces) -> Self {
        Self { id, desired, context, graces, begun: None, over: None, warned: String::new() }
    }

    /// Runs until nothing is left to do for the job, or until its sender is gone (the agent ends), which leaves the process as it is.
    pub async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let flow = match &desired.wanted {
                Wanted::Goal(goal) => self.follow(goal, &desired).await,
                Wanted::Kept => self.settle(false).await,
                Wanted::Gone => self.settle(true).await,
            };
            match flow {
                Flow::Again => {}
                Flow::Settled if matches!(self.desired.has_changed(), Ok(true)) => {}
                Flow::Settled | Flow::Released => return,
            }
        }
    }

    /// Waits until something else is desired, or for so long.
    async fn changed_within(&mut self, pause: Duration) -> Flow {
        match tokio::time::timeout(pause, self.desired.changed()).await {
            Ok(Ok(())) | Err(_) => Flow::Again,
            Ok(Err(_)) => Flow::Released,
        }
    }

    /// Logs an error, the same again and again only once; returns its text.
    fn warn(&mut self, error: &attempt::Error) -> String {
        let why = chain(error);
        if why != self.warned {
            tracing::warn!(job = %self.id, "{why}");
            self.warned.clone_from(&why);
        }
        why
    }

    async fn changed(&mut self) -> Flow {
        self.desired.changed().await.map_or(Flow::Released, |()| Flow::Again)
    }

    async fn follow(&mut self, goal: &JobGoal, desired: &Desired) -> Flow {
        if let Some((number, state)) = &self.over
            && *number == goal.attempt
        {
            self.report(goal.attempt, state.clone());
            return self.changed().await;
        }
        if let Some(flow) = self.end_attempts(Some(goal.attempt)).await {
            return flow;
        }
        let attempt = Attempt::new(&self.context.home, self.id, goal.attempt);
        let began = self.begun.filter(|(number, _)| *number == goal.attempt).map(|(_, started)| started);
        let found = match self.look(&attempt).await {
            Ok(found) => found,
            Err(error) => {
                let why = self.warn(&error);
                let state = match (&error, &goal.start, goal.cancel) {
                    (attempt::Error::Make(..), _, true) if began.is_none() => unstarted(JobEnd::Cancelled),
                    (attempt::Error::Make(..), None, false) if began.is_none() => unstarted(JobEnd::Lost { why: Loss::Directory }),
                    // The node's own directory is gone, which does not come back.
                    (attempt::Error::Make(_, error), Some(_), false) if began.is_none() && desired.may_begin && is_absence(error) => {
                        not_started(&why)
                    }
                    _ => return self.changed_within(AGAIN).await,
                };
                return self.is_over(&attempt, state).await;
            }
        };
        self.warned.clear();
        match found {
            Found::Fresh(lock) => match (began, &goal.start) {
                // It was seen: its files were removed under it.
                (Some(started), _) => {
                    let (at, end) = (now(), JobEnd::Lost { why: Loss::Directory });
                    self.record(&attempt, lock, JobReportState::Ended { started, at, end, lost_output: 0 }).await
                }
                (None, _) if goal.cancel => self.record(&attempt, lock, unstarted(JobEnd::Cancelled)).await,
                (None, None) => self.record(&attempt, lock, unstarted(JobEnd::Lost { why: Loss::Directory })).await,
                (None, Some(_)) if !desired.may_begin || desired.is_ending => {
                    drop(lock);
                    self.report(goal.attempt, JobReportState::Preparing);
                    self.changed().await
                }
                (None, Some(start)) => {
                    self.report(goal.attempt, JobReportState::Preparing);
                    self.prepare(&attempt, start, lock).await
                }
            },
            Found::Starting => {
                self.report(goal.attempt, JobReportState::Preparing);
                self.changed_within(START_LOOK).await
            }
            Found::Running(state) => self.attend(&attempt, &state).await,
            Found::Exited(exit) => {
                let state = over(exit, goal.cancel);
                self.is_over(&attempt, state).await
            }
            Found::Over(state) => self.is_over(&attempt, state).await,
        }
    }

    /// Prepares an attempt and starts its shim, unless something else is desired meanwhile.
    async fn prepare(&mut self, attempt: &Attempt, start: &JobStart, lock: Lock) -> Flow {
        let (home, source) = (self.context.home.clone(), self.context.source.clone());
        let prepared: Result<Option<Flow>, prepare::Error> = async {
            prepare::begin(attempt, start).await?;
            tokio::select! {
                fetched = prepare::fetch_files(&source, attempt, start) => fetched?,
                changed = self.desired.changed() => return Ok(Some(changed.map_or(Flow::Released, |()| Flow::Again))),
            }
            prepare::finish(&home, attempt, start).await.map(|()| None)
        }
        .await;
        match prepared {
            Ok(None) => self.start(attempt, lock).await,
            Ok(Some(flow)) => flow,
            Err(error) => self.record(attempt, lock, not_started(&chain(&error))).await,
        }
    }

    async fn look(&self, attempt: &Attempt) -> Result<Found, attempt::Error> {
        let own = attempt.clone();
        tokio::task::spawn_blocking(move || own.look()).await.expect("looking at files does not panic")
    }

    /// Starts the shim of an attempt that is prepared.
    async fn start(&mut self, attempt: &Attempt, lock: Lock) -> Flow {
        // The shim takes it. Whoever else does first (the shim of an agent that was killed) runs the same.
        drop(lock);
        let problem = match launch(attempt.directory()).await {
            Ok(Launched::Started | Launched::Occupied | Launched::Begun) => return Flow::Again,
            Ok(Launched::Failed(why)) => why,
            Err(error) => format!("{error:#}"),
        };
        // What it said counts only where it has not begun: otherwise its files say what became of it.
        match self.look(attempt).await {
            Ok(Found::Fresh(lock)) => self.record(attempt, lock, not_started(&plain(&problem))).await,
            Ok(_) => Flow::Again,
            Err(_) => self.changed_within(AGAIN).await,
        }
    }

    /// Notes for good that an attempt is over.
    async fn record(&mut self, attempt: &Attempt, lock: Lock, state: JobReportState) -> Flow {
        let (own, noted) = (attempt.clone(), state.clone());
        let recording = tokio::task::spawn_blocking(move || own.record(&lock, &noted));
        match recording.await.expect("writing a file does not panic") {
            Ok(()) => self.is_over(attempt, state).await,
            Err(error) => {
                tracing::warn!(job = %self.id, "{}", chain(&error));
                self.changed_within(AGAIN).await
            }
        }
    }

    async fn is_over(&mut self, attempt: &Attempt, state: JobReportState) -> Flow {
        match &state {
            JobReportState::Ended { end, .. } => {
                tracing::info!(job = %self.id, attempt = attempt.number, end = %end.name(), "a job has ended")
            }
            JobReportState::Unstarted { end } => {
                tracing::info!(job = %self.id, attempt = attempt.number, end = %end.name(), "a job never began")
            }
            JobReportState::Preparing | JobReportState::Running { .. } => {}
        }
        self.over = Some((attempt.number, state.clone()));
        self.report(attempt.number, state);
        let own = attempt.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || own.clear()).await {
            tracing::warn!(job = %self.id, "a job's directory stays: {}", chain(&error));
        }
        Flow::Again
    }

    /// Waits for the end of an attempt that runs, and brings it about if that is desired.
    async fn attend(&mut self, attempt: &Attempt, state: &State) -> Flow {
        let started = Timestamp(state.started_at);
        self.begun = Some((attempt.number, started));
        self.graces.lock().expect("nothing panics while holding the lock").insert(self.id, state.stop_grace_ms);
        self.report(attempt.number, JobReportState::Running { pid: state.process.pid as u32, started });
        let ended = state.shim.ended();
        tokio::pin!(ended);
        let mut give_up: Option<Instant> = None;
        let flow = loop {
            if give_up.is_none() && self.desired.borrow_and_update().ends() {
                tracing::info!(job = %self.id, attempt = attempt.number, pid = state.process.pid, "ending a job");
                let _ = state.shim.signal(Signal::SIGTERM);
                give_up = Some(Instant::now() + Duration::from_millis(state.stop_grace_ms) + STOP_SLACK);
            }
            tokio::select! {
                result = &mut ended => match result {
                    Ok(()) => break Flow::Again,
                    Err(error) => {
                        tracing::warn!(job = %self.id, "cannot wait for its shim: {error}");
                        break self.changed_within(AGAIN).await;
                    }
                },
                changed = self.desired.changed() => if changed.is_err() {
                    break Flow::Released;
                },
                () = tokio::time::sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => {
                    tracing::error!(job = %self.id, "its shim does not end; it is killed");
                    let _ = state.shim.signal(Signal::SIGKILL);
                    let _ = state.process.kill_group();
                    give_up = Some(Instant::now() + STOP_SLACK);
                }
            }
        };
        self.graces.lock().expect("nothing panics while holding the lock").remove(&self.id);
        flow
    }

    /// Ends what runs of the attempts before one, or of all, and removes their directories. Returns what comes next if that is not
    /// done yet.
    async fn end_attempts(&mut self, present: Option<u32>) -> Option<Flow> {
        let (home, id) = (self.context.home.clone(), self.id);
        let listing = tokio::task::spawn_blocking(move || Attempt::all(&home, id));
        let all = match listing.await.expect("listing a directory does not panic") {
            Ok(all) => all,
            Err(error) => {
                self.warn(&error);
                return Some(self.changed_within(AGAIN).await);
            }
        };
        for earlier in all.into_iter().filter(|attempt| present.is_none_or(|present| attempt.number < present)) {
            match self.look(&earlier).await {
                Ok(Found::Running(state)) => return Some(self.attend(&earlier, &state).await),
                Ok(Found::Starting) => return Some(self.changed_within(START_LOOK).await),
                Ok(Found::Fresh(_) | Found::Exited(_) | Found::Over(_)) => {}
                Err(error) => {
                    self.warn(&error);
                    return Some(self.changed_within(AGAIN).await);
                }
            }
            let directory = earlier.directory().to_owned();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || remove_tree(&directory)).await {
                tracing::warn!(job = %self.id, "a job's directory stays: {}", chain(&error));
                // Only the present attempt need not wait for that.
                if present.is_none() {
                    return Some(self.changed_within(REMOVE_AGAIN).await);
                }
            }
        }
        None
    }

    /// The job is over for the head: nothing of it runs or is reported, and only its logs stay, or nothing.
    async fn settle(&mut self, is_gone: bool) -> Flow {
        (self.over, self.begun) = (None, None);
        self.context.reports.remove_job(self.id);
        if let Some(flow) = self.end_attempts(None).await {
            return flow;
        }
        let directory = self.context.home.job(self.id);
        if is_gone && let Ok(Err(error)) = tokio::task::spawn_blocking(move || remove_tree(&directory)).await {
            tracing::warn!(job = %self.id, "a job's directory stays: {}", chain(&error));
            return self.changed_within(REMOVE_AGAIN).await;
        }
        Flow::Settled
    }

    /// Only of what is in the head's list.
    fn report(&self, attempt: u32, state: JobReportState) {
        if matches!(self.desired.borrow().wanted, Wanted::Goal(_)) {
            self.context.reports.put_job(JobReport { id: self.id, attempt, state });
        }
    }
}

fn not_started(why: &str) -> JobReportState {
    let why = why[..why.floor_char_boundary(MAX_REASON)].to_owned();
    unstarted(JobEnd::NotStarted { why })
}
