//! What people want of jobs that there are: to cancel and to delete them.

use cloudtik_model::answer::Answer;
use cloudtik_model::event::What;
use cloudtik_model::job::{Cancellation, JobEnd, JobRef, JobState};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::{JobId, NodeId};

use crate::{Brain, JobRecord, Record, Request};

/// So many jobs are named to somebody who names one that there is not.
const MAX_KNOWN: usize = 20;

impl Brain {
    pub(crate) fn take_job_cancellation(&mut self, request: Request, job: &JobRef) {
        let Some(mut job) = self.jobs.find(job).cloned() else { return self.refuse_unknown_job(request, job.clone()) };
        let (id, name) = (job.id, job.name.clone());
        let cancellation = Cancellation { at: self.clock.wall(), by: request.actor.clone() };
        match job.state {
            JobState::Ended { .. } => {
                let state = job.state.name();
                self.refuse_job(request, Refusal::JobAlreadyEnded { job: id, name, state });
            }
            JobState::Queued { .. } => {
                self.requested(&request.actor, None, What::JobCancelRequested { job: id, name: name.clone() });
                let (attempt, end) = (job.attempt, JobEnd::Cancelled);
                job.cancelled = Some(cancellation);
                job.state = JobState::Ended { at: self.clock.wall(), end: end.clone() };
                self.jobs.pauses.remove(&id);
                self.store_job(job);
                self.event(Some(&NodeId::head()), What::JobEnded { job: id, name: name.clone(), attempt, end });
                self.done(request, Answer::JobCancelled { job: id, name });
            }
            JobState::Starting { .. } | JobState::Running { .. } => {
                if job.cancelled.is_none() {
                    self.requested(&request.actor, None, What::JobCancelRequested { job: id, name: name.clone() });
                    job.cancelled = Some(cancellation);
                    self.store_job(job);
                }
                self.done(request, Answer::JobCancelling { job: id, name });
            }
        }
    }

    pub(crate) fn take_job_deletion(&mut self, request: Request, job: &JobRef) {
        let Some(JobRecord { id, name, state, .. }) = self.jobs.find(job) else { return self.refuse_unknown_job(request, job.clone()) };
        let (id, name, state) = (*id, name.clone(), state.clone());
        if !state.has_ended() {
            return self.refuse_job(request, Refusal::JobNotEnded { job: id, name, state: state.name() });
        }
        self.forget_job(id);
        self.requested(&request.actor, None, What::JobDeleted { job: id, name: name.clone() });
        self.done(request, Answer::JobDeleted { job: id, name });
    }

    fn refuse_unknown_job(&mut self, request: Request, job: JobRef) {
        let known = self.jobs.records.values().rev().take(MAX_KNOWN).map(|job| job.name.clone()).collect();
        self.refuse_job(request, Refusal::UnknownJob { job, known });
    }

    /// The job is not kept any longer.
    pub(super) fn forget_job(&mut self, id: JobId) {
        self.jobs.remove(id);
        self.jobs.expiries.remove(&id);
        self.effects.record(Record::JobGone { id });
    }
}
