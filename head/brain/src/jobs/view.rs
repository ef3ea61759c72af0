//! Jobs for people and for the planner.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::job::{Job, JobRef, JobState, JobWait, JobsSummary, RunningJob, Work};
use cloudtik_model::{JobId, JobName};

use super::ends::attempts;
use crate::{Brain, JobRecord};

impl Brain {
    /// All jobs that are kept, in the order of their numbers.
    pub fn jobs(&self) -> Vec<Job> {
        let mut waits = self.job_waits();
        self.jobs.records.values().map(|record| view(record, waits.remove(&record.id))).collect()
    }

    pub fn job(&self, job: &JobRef) -> Option<Job> {
        let record = self.jobs.find(job)?;
        let wait = if let JobState::Queued { .. } = record.state { self.job_waits().remove(&record.id) } else { None };
        Some(view(record, wait))
    }

    /// The job that a submission became, if it was taken.
    pub fn submitted(&self, submission: &str) -> Option<(JobId, JobName)> {
        let record = self.jobs.by_submission.get(submission).and_then(|id| self.jobs.records.get(id))?;
        Some((record.id, record.name.clone()))
    }

    pub fn job_record(&self, job: &JobRef) -> Option<JobRecord> {
        self.jobs.find(job).cloned()
    }

    /// The digests of the files of jobs that have not ended.
    pub fn job_files(&self) -> BTreeSet<String> {
        let files = self.jobs.queued().chain(self.jobs.active()).flat_map(|job| &job.spec.files);
        files.map(|file| file.digest.clone()).filter(|digest| !digest.is_empty()).collect()
    }

    pub fn jobs_summary(&self) -> JobsSummary {
        let running: Vec<RunningJob> = self.jobs.active().take(JobsSummary::NAMED).map(running).collect();
        JobsSummary {
            queued: u32::try_from(self.jobs.queued.len()).unwrap_or(u32::MAX),
            running_left_out: u32::try_from(self.jobs.active.len() - running.len()).unwrap_or(u32::MAX),
            running,
        }
    }

    /// What each job that is queued waits for.
    fn job_waits(&self) -> BTreeMap<JobId, JobWait> {
        let mut turns = self.turns();
        self.jobs.queued().filter_map(|job| Some((job.id, turns.next(job)?))).collect()
    }
}

fn running(job: &JobRecord) -> RunningJob {
    let (runtime, started) = (job.spec.work.runtime().cloned(), job.state.started());
    RunningJob { id: job.id, name: job.name.clone(), runtime, started }
}

fn view(record: &JobRecord, waits_for: Option<JobWait>) -> Job {
    let JobRecord { id, name, spec, by, submitted, state, attempt, history, cancelled, .. } = record;
    let runs = match &spec.work {
        Work::Command { program } => Some(program.clone()),
        Work::Runtime { .. } => spec.files.first().map(|file| file.name.clone()),
    };
    let last_start = history.last().and_then(|attempt| attempt.started);
    let (started, pid, ended) = match state {
        JobState::Queued { .. } => (last_start, None, None),
        JobState::Starting { .. } => (None, None, None),
        JobState::Running { started, pid, .. } => (Some(*started), Some(*pid), None),
        JobState::Ended { at, end } => (last_start, None, Some((*at, end.clone()))),
    };
    Job {
        id: *id,
        name: name.clone(),
        state: state.name(),
        runtime: spec.work.runtime().cloned(),
        command: runs.into_iter().chain(spec.arguments.iter().cloned()).collect(),
        submitted: *submitted,
        by: by.clone(),
        attempt: *attempt,
        attempts: attempts(spec),
        started,
        ended: ended.as_ref().map(|(at, _)| *at),
        end: ended.map(|(_, end)| end),
        pid,
        waits_for,
        cancelled: cancelled.clone(),
        history: history.clone(),
        timeout_ms: spec.timeout_ms,
        limits: spec.limits.clone(),
    }
}
