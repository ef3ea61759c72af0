//! Jobs: which may run, what their node has to do with them, and how each ended.
//!
//! Owns every job's record. A job is queued, starting, running and ended; it never goes back, but for a further attempt, which is
//! queued again. What the agent has to do is a document that follows from the records alone ([`crate::JobsOrder`]): it is sent
//! whenever it differs from what was sent over the present link. What the agent reports moves a record only if it is of the present
//! attempt and of the node's present generation, so that a report that comes again changes nothing.
//!
//! | from | to | when |
//! |---|---|---|
//! | - | queued | somebody submits it |
//! | queued | starting | its turn has come: see `queue` |
//! | starting | running | the agent says so |
//! | starting, running | ended | the agent says so, or the node of that generation is gone |
//! | starting, running | queued | the same, the attempt failed, and another is left |
//! | queued | ended | somebody cancels it |
//!
//! | module | decides |
//! |---|---|
//! | `submission` | which jobs are taken, and what they are called |
//! | `queue` | which job starts next, and what the others wait for |
//! | `orders` | what the head's node is told |
//! | `ends` | what becomes of an attempt that is over |
//! | `requests` | who is cancelled and deleted |
//! | `employment` | which workers jobs keep from being idle |
//! | `retention` | how long jobs that have ended are kept |
//! | `view` | nothing: jobs for people |

mod employment;
mod ends;
mod orders;
mod queue;
mod requests;
mod retention;
mod submission;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::job::{JobRef, JobState};
use cloudtik_model::{JobId, JobName, NodeId, Timestamp};

use self::employment::Employment;
use self::ends::LONGEST_PAUSE;
use self::orders::Sent;
use crate::{Brain, JobRecord, Node, Record};

#[derive(Debug, Default)]
pub(crate) struct Jobs {
    records: BTreeMap<JobId, JobRecord>,
    by_name: BTreeMap<JobName, JobId>,
    by_submission: BTreeMap<String, JobId>,
    /// Those that wait, in the order of their turns.
    queued: BTreeSet<JobId>,
    /// Those that are starting or running.
    active: BTreeSet<JobId>,
    /// Those that have ended, in the order in which this head saw that; those that an earlier one saw are in the order of their times.
    /// Clocks may be set, and the newest end must not be taken for the oldest.
    ended: Vec<JobId>,
    employment: Employment,
    /// The last number that was given.
    last: JobId,
    /// When the pause before a job's next attempt ends, on the brain's clock.
    pauses: BTreeMap<JobId, u64>,
    /// When a job that has ended may be forgotten for its age, on the caller's monotonic clock.
    expiries: BTreeMap<JobId, u64>,
    /// Attempts of which it is not known how to start them, and why.
    unplanned: BTreeMap<JobId, String>,
    /// What was last sent to the head's node.
    sent: Option<Sent>,
    next_version: u64,
    /// Something changed that may let a job start or that its node has to know.
    changed: bool,
    /// When the first pause ends, on the brain's clock.
    next_pause_end: Option<u64>,
    /// When the first job may be too old, on the caller's monotonic clock.
    next_expiry: Option<u64>,
}

impl Jobs {
    /// From what is stored; `now` is of the brain's clock.
    pub(crate) fn restore(mut records: Vec<JobRecord>, last: JobId, now: u64, wall: Timestamp) -> Self {
        let mut jobs = Self { last, changed: true, ..Self::default() };
        let end = |record: &JobRecord| match record.state {
            JobState::Ended { at, .. } => (at, record.id),
            _ => (Timestamp::default(), record.id),
        };
        records.sort_by_key(end);
        for record in records {
            jobs.last = jobs.last.max(record.id);
            if let JobState::Queued { not_before: Some(at) } = record.state {
                // No pause becomes longer because a clock was set.
                jobs.pauses.insert(record.id, now + at.0.saturating_sub(wall.0).min(LONGEST_PAUSE));
            }
            jobs.put(record);
        }
        jobs
    }

    pub(crate) fn last(&self) -> JobId {
        self.last
    }

    /// A job may start now that could not before, or its node is to be told something.
    pub(crate) fn note_changed(&mut self) {
        self.changed = true;
    }

    fn put(&mut self, record: JobRecord) {
        self.remove(record.id);
        let id = record.id;
        self.by_name.insert(record.name.clone(), id);
        self.by_submission.insert(record.spec.submission.clone(), id);
        match record.state {
            JobState::Queued { .. } => _ = self.queued.insert(id),
            JobState::Starting { .. } | JobState::Running { .. } => _ = self.active.insert(id),
            JobState::Ended { .. } => self.ended.push(id),
        }
        self.employment.add(&record);
        self.records.insert(id, record);
        self.changed = true;
    }

    fn remove(&mut self, id: JobId) -> Option<JobRecord> {
        let record = self.records.remove(&id)?;
        self.employment.remove(&record);
        self.by_name.remove(&record.name);
        self.by_submission.remove(&record.spec.submission);
        self.queued.remove(&id);
        self.active.remove(&id);
        if record.state.has_ended() {
            self.ended.retain(|ended| *ended != id);
        }
        self.changed = true;
        Some(record)
    }

    fn find(&self, job: &JobRef) -> Option<&JobRecord> {
        let id = match job {
            JobRef::Id(id) => id,
            JobRef::Name(name) => self.by_name.get(name)?,
        };
        self.records.get(id)
    }

    fn active(&self) -> impl Iterator<Item = &JobRecord> {
        self.of(&self.active)
    }

    fn queued(&self) -> impl Iterator<Item = &JobRecord> {
        self.of(&self.queued)
    }

    fn of<'a>(&'a self, ids: &'a BTreeSet<JobId>) -> impl Iterator<Item = &'a JobRecord> {
        ids.iter().filter_map(|id| self.records.get(id))
    }

    /// So many have not ended.
    fn unfinished(&self) -> usize {
        self.queued.len() + self.active.len()
    }
}

impl Brain {
    /// Starts what may start, forgets what is not kept any longer, and tells the head's node what changed.
    pub(crate) fn advance_jobs(&mut self) {
        let is_due = self.jobs_due().is_some_and(|at| at <= self.clock.now());
        if !std::mem::take(&mut self.jobs.changed) && !is_due {
            return;
        }
        self.lose_jobs();
        self.start_jobs();
        self.forget_jobs();
        self.send_jobs();
        if self.jobs.employment.take_changed() {
            self.note_all_activity();
        }
        self.jobs.changed = false;
        self.jobs.next_pause_end = self.jobs.pauses.values().min().copied();
        self.jobs.next_expiry = self.jobs.expiries.values().min().copied();
    }

    /// When to look at jobs again, on the brain's clock.
    pub(crate) fn jobs_due(&self) -> Option<u64> {
        // The caller's clock counts what the head slept through.
        let expiry = self.jobs.next_expiry.map(|at| self.clock.now().saturating_add(at.saturating_sub(self.clock.monotonic())));
        [self.jobs.next_pause_end, expiry].into_iter().flatten().min()
    }

    /// The node that jobs run on.
    fn job_node(&self) -> Option<&Node> {
        self.nodes.get(&NodeId::head())
    }

    fn store_job(&mut self, record: JobRecord) {
        self.effects.record(Record::Job(Box::new(record.clone())));
        self.jobs.put(record);
    }
}
