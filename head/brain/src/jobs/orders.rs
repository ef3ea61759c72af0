//! What the head's node is told about jobs.

use cloudtik_model::job::JobState;
use cloudtik_model::{JobId, NodeId};

use crate::{Action, Brain, JobOrder, JobRecord, JobsOrder, Session};

/// What was sent, as far as it can change: what a job runs cannot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sent {
    session: Session,
    jobs: Vec<(JobId, u32, Instruction)>,
    kept: Vec<JobId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instruction {
    Start,
    Continue,
    Cancel,
}

impl Brain {
    /// Tells the head's node what it has to do with jobs, if that is not what it was told over this link.
    pub(super) fn send_jobs(&mut self) {
        let node = NodeId::head();
        let Some(session) = self.job_node().and_then(|node| node.link) else {
            self.jobs.sent = None;
            return;
        };
        let active = || self.jobs.active();
        let jobs: Vec<(JobId, u32, Instruction)> = active().map(|job| (job.id, job.attempt, self.instruction_of(job))).collect();
        let mut kept = self.jobs.ended.clone();
        // The output of earlier attempts, and what is queued again.
        kept.extend(self.jobs.queued().filter(|job| job.attempt > 0).map(|job| job.id));
        kept.sort_unstable();
        let sent = Sent { session, jobs, kept };
        if self.jobs.sent.as_ref() == Some(&sent) {
            return;
        }
        let orders = active().map(|job| {
            let instruction = self.instruction_of(job);
            JobOrder {
                id: job.id,
                name: job.name.clone(),
                attempt: job.attempt,
                start: (instruction == Instruction::Start).then(|| Box::new(job.spec.clone())),
                cancel: instruction == Instruction::Cancel,
            }
        });
        let (jobs, kept) = (orders.collect(), sent.kept.clone());
        self.jobs.next_version += 1;
        // Higher than any version of an earlier head, whose epoch was lower.
        let version = (self.epoch.0 << 32) | self.jobs.next_version;
        self.jobs.sent = Some(sent);
        self.act(Action::SendJobs { node, order: JobsOrder { session, version, jobs, kept } });
    }

    fn instruction_of(&self, job: &JobRecord) -> Instruction {
        if job.cancelled.is_some() {
            return Instruction::Cancel;
        }
        // Where it is not known how to start it, its agent says whether it has begun all the same, under an earlier description.
        let is_unplanned = self.jobs.unplanned.contains_key(&job.id);
        match job.state {
            JobState::Starting { .. } if !is_unplanned => Instruction::Start,
            _ => Instruction::Continue,
        }
    }
}
