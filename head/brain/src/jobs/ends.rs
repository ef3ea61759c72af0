//! What agents report of jobs, and what becomes of an attempt that is over.

use cloudtik_model::event::What;
use cloudtik_model::job::{Attempt, JobEnd, JobReport, JobReportState, JobSpec, JobState, Loss};
use cloudtik_model::{Generation, JobId, NodeId, Timestamp};

use crate::clock::doubling;
use crate::{Brain, JobRecord, Session};

/// Before the second attempt of a job, in milliseconds; doubled with each further one.
const FIRST_PAUSE: u64 = 1_000;
pub(super) const LONGEST_PAUSE: u64 = 60_000;
/// So many characters of what an agent says are kept.
const MAX_DETAIL: usize = 1_000;

/// How an attempt is over.
struct Over {
    started: Option<Timestamp>,
    at: Timestamp,
    end: JobEnd,
    lost_output: u64,
}

impl Brain {
    /// What the head's node says of its jobs. What is of another attempt than the present one, or was said before, changes nothing.
    pub(crate) fn take_job_reports(&mut self, session: Session, id: &NodeId, reports: Vec<JobReport>) {
        let Some(node) = self.job_node().filter(|n| n.record.id == *id && n.link == Some(session)) else { return };
        let generation = node.record.generation;
        for report in reports {
            let Some(job) = self.jobs.records.get(&report.id) else { continue };
            let is_present = job.attempt == report.attempt && job.state.generation() == Some(generation);
            if is_present {
                let job = job.clone();
                self.take_job_report(job, generation, report.state);
            }
        }
    }

    fn take_job_report(&mut self, mut job: JobRecord, generation: Generation, report: JobReportState) {
        match report {
            JobReportState::Preparing => {}
            JobReportState::Running { pid, started } => {
                let is_known = matches!(job.state, JobState::Running { .. });
                let state = JobState::Running { started, generation, pid };
                if job.state == state {
                    return;
                }
                job.state = state;
                self.jobs.unplanned.remove(&job.id);
                if !is_known {
                    self.job_began(&job);
                }
                self.store_job(job);
            }
            JobReportState::Ended { started, at, end, lost_output } => {
                if !matches!(job.state, JobState::Running { .. }) {
                    self.job_began(&job);
                }
                self.end_attempt(job, Over { started: Some(started), at, end: shortened(end), lost_output });
            }
            JobReportState::Unstarted { end } => {
                let end = match (self.jobs.unplanned.get(&job.id), end) {
                    (_, JobEnd::Cancelled) => JobEnd::Cancelled,
                    (Some(why), _) => JobEnd::NotStarted { why: why.clone() },
                    (None, end) => shortened(end),
                };
                let started = job.state.started();
                self.end_attempt(job, Over { started, at: self.clock.wall(), end, lost_output: 0 });
            }
        }
    }

    fn job_began(&mut self, job: &JobRecord) {
        let what = What::JobStarted { job: job.id, name: job.name.clone(), attempt: job.attempt };
        self.event(Some(&NodeId::head()), what);
    }

    /// It cannot be said what is to run of an attempt. It may have begun all the same, under an earlier description: its agent says so
    /// when it is told that there is nothing to start.
    pub(crate) fn take_job_not_planned(&mut self, id: JobId, attempt: u32, error: String) {
        let is_starting = |job: &&JobRecord| job.attempt == attempt && matches!(job.state, JobState::Starting { .. });
        if self.jobs.records.get(&id).filter(is_starting).is_some() {
            self.jobs.unplanned.insert(id, shorten(error));
            self.jobs.changed = true;
        }
    }

    /// What ran on an earlier generation of the head's node ended with that. It is known to be gone when the next has joined.
    pub(super) fn lose_jobs(&mut self) {
        let Some(node) = self.job_node().filter(|node| node.link.is_some()) else { return };
        let present = node.record.generation;
        let is_lost = |job: &&JobRecord| job.state.generation().is_some_and(|of| of < present);
        let lost: Vec<JobRecord> = self.jobs.active().filter(is_lost).cloned().collect();
        for job in lost {
            let started = job.state.started();
            self.end_attempt(job, Over { started, at: self.clock.wall(), end: JobEnd::Lost { why: Loss::Node }, lost_output: 0 });
        }
    }

    /// An attempt is over: another follows, or the job has ended.
    fn end_attempt(&mut self, mut job: JobRecord, over: Over) {
        let Over { started, at, end, lost_output } = over;
        self.jobs.unplanned.remove(&job.id);
        job.history.push(Attempt { number: job.attempt, started, ended: at, end: end.clone(), lost_output });
        let surplus = job.history.len().saturating_sub(Attempt::KEPT);
        job.history.drain(..surplus);
        let attempts = attempts(&job.spec);
        let (id, name, attempt) = (job.id, job.name.clone(), job.attempt);
        let what = if may_be_repeated(&end) && attempt < attempts && job.cancelled.is_none() {
            let pause = doubling(FIRST_PAUSE, attempt, LONGEST_PAUSE);
            self.jobs.pauses.insert(id, self.clock.now() + pause);
            job.state = JobState::Queued { not_before: Some(Timestamp(self.clock.wall().0 + pause)) };
            What::JobRetried { job: id, name, attempt, attempts, pause_s: pause / 1_000, end }
        } else {
            job.state = JobState::Ended { at, end: end.clone() };
            What::JobEnded { job: id, name, attempt, end }
        };
        self.store_job(job);
        self.event(Some(&NodeId::head()), what);
    }
}

/// So many attempts of a job there may be.
pub(super) fn attempts(spec: &JobSpec) -> u32 {
    spec.retries.min(JobSpec::MAX_RETRIES) + 1
}

/// Whether another attempt may end better.
fn may_be_repeated(end: &JobEnd) -> bool {
    match end {
        JobEnd::Failed { .. } | JobEnd::Killed { .. } | JobEnd::NotStarted { .. } | JobEnd::Lost { .. } => true,
        JobEnd::Succeeded | JobEnd::TimedOut | JobEnd::Cancelled => false,
    }
}

fn shortened(end: JobEnd) -> JobEnd {
    match end {
        JobEnd::NotStarted { why } => JobEnd::NotStarted { why: shorten(why) },
        end => end,
    }
}

fn shorten(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_DETAIL) {
        text.truncate(end);
    }
    text
}
