//! Jobs on the head's node, as its agent and their shims have them: what is begun goes on whatever becomes of agent and head.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_brain::{JobOrder, JobsOrder};
use cloudtik_model::job::{JobEnd, JobReport, JobReportState, Loss};
use cloudtik_model::{Epoch, JobId, Timestamp};

/// What is on the node's disk, and what runs there.
#[derive(Debug, Default)]
pub struct NodeJobs {
    epoch: Epoch,
    version: u64,
    goals: BTreeMap<JobId, JobOrder>,
    kept: BTreeSet<JobId>,
    attempts: BTreeMap<JobId, Local>,
    nonce: u64,
}

/// The last attempt of a job.
#[derive(Debug)]
struct Local {
    attempt: u32,
    state: LocalState,
}

#[derive(Debug, Clone)]
enum LocalState {
    /// Its files are fetched; it begins if nothing changes until then.
    Preparing {
        nonce: u64,
    },
    Running {
        started: Timestamp,
        pid: u32,
        nonce: u64,
        end: JobEnd,
    },
    Over(JobReportState),
}

/// What follows from a document.
#[derive(Debug, Clone, Copy)]
pub enum Next {
    /// The attempt begins after a while.
    Prepare { id: JobId, attempt: u32, nonce: u64 },
    /// It is asked to end.
    Stop { id: JobId, attempt: u32 },
    /// The head is to hear of it.
    Say { id: JobId },
}

impl NodeJobs {
    /// Takes a document, unless there is a later one; what must never be wanted is the error.
    pub fn take(&mut self, epoch: Epoch, order: JobsOrder) -> Result<Vec<Next>, String> {
        if epoch < self.epoch || order.version < self.version {
            return Ok(Vec::new());
        }
        (self.epoch, self.version) = (epoch, order.version);
        self.goals = order.jobs.into_iter().map(|job| (job.id, job)).collect();
        self.kept = order.kept.into_iter().collect();
        let mut next = Vec::new();
        for goal in self.goals.values() {
            let (id, attempt, may_start) = (goal.id, goal.attempt, goal.start.is_some());
            let never = |end| LocalState::Over(JobReportState::Unstarted { end });
            let state = match self.attempts.get(&id) {
                Some(local) if local.attempt > attempt => {
                    return Err(format!("attempt {attempt} of job {id} is wanted after attempt {}", local.attempt));
                }
                Some(Local { state: LocalState::Running { .. }, attempt: before }) if *before < attempt => {
                    return Err(format!("attempt {attempt} of job {id} is wanted while attempt {before} runs"));
                }
                Some(Local { state: LocalState::Running { .. }, .. }) => {
                    if goal.cancel {
                        next.push(Next::Stop { id, attempt });
                    }
                    continue;
                }
                Some(Local { state: LocalState::Over(_), attempt: known }) if *known == attempt => {
                    next.push(Next::Say { id });
                    continue;
                }
                Some(Local { state: LocalState::Preparing { .. }, attempt: known }) if *known == attempt && may_start && !goal.cancel => {
                    continue;
                }
                _ if goal.cancel => never(JobEnd::Cancelled),
                _ if !may_start => never(JobEnd::Lost { why: Loss::Directory }),
                _ => {
                    self.nonce += 1;
                    next.push(Next::Prepare { id, attempt, nonce: self.nonce });
                    LocalState::Preparing { nonce: self.nonce }
                }
            };
            self.attempts.insert(id, Local { attempt, state });
            next.push(Next::Say { id });
        }
        for (id, local) in &self.attempts {
            if !self.goals.contains_key(id) && matches!(local.state, LocalState::Running { .. }) {
                return Err(format!("attempt {} of job {id} runs, and its head takes it for over", local.attempt));
            }
        }
        self.attempts.retain(|id, _| self.goals.contains_key(id) || self.kept.contains(id));
        Ok(next)
    }

    /// Its agent is another process: what had not begun is forgotten.
    pub fn forget_preparation(&mut self, id: JobId, nonce: u64) {
        let is_meant = |local: &Local| matches!(local.state, LocalState::Preparing { nonce: known } if known == nonce);
        if self.attempts.get(&id).is_some_and(is_meant) {
            self.attempts.remove(&id);
        }
    }

    /// The attempt begins, if it still is to; it will end so.
    pub fn begin(&mut self, id: JobId, nonce: u64, started: Timestamp, end: JobEnd) -> bool {
        let Some(local) = self.attempts.get_mut(&id) else { return false };
        if !matches!(local.state, LocalState::Preparing { nonce: known } if known == nonce) {
            return false;
        }
        local.state = match end {
            JobEnd::NotStarted { .. } => LocalState::Over(JobReportState::Unstarted { end }),
            end => LocalState::Running { started, pid: nonce as u32, nonce, end },
        };
        true
    }

    /// What runs will end otherwise; says under which number. Nothing if it was said before.
    pub fn stop(&mut self, id: JobId) -> Option<u64> {
        let local = self.attempts.get_mut(&id)?;
        let LocalState::Running { nonce, end, .. } = &mut local.state else { return None };
        if *end == JobEnd::Cancelled {
            return None;
        }
        self.nonce += 1;
        (*nonce, *end) = (self.nonce, JobEnd::Cancelled);
        Some(self.nonce)
    }

    /// What runs under that number ends; says how.
    pub fn end(&mut self, id: JobId, nonce: u64, at: Timestamp) -> Option<(u32, JobEnd)> {
        let local = self.attempts.get_mut(&id)?;
        let LocalState::Running { started, nonce: known, end, .. } = local.state.clone() else { return None };
        if known != nonce {
            return None;
        }
        local.state = LocalState::Over(JobReportState::Ended { started, at, end: end.clone(), lost_output: 0 });
        Some((local.attempt, end))
    }

    pub fn report(&self, id: JobId) -> Option<JobReport> {
        let local = self.attempts.get(&id)?;
        let state = match &local.state {
            LocalState::Preparing { .. } => JobReportState::Preparing,
            LocalState::Running { started, pid, .. } => JobReportState::Running { pid: *pid, started: *started },
            LocalState::Over(state) => state.clone(),
        };
        Some(JobReport { id, attempt: local.attempt, state })
    }

    pub fn reports(&self) -> Vec<JobReport> {
        self.attempts.keys().filter_map(|id| self.report(*id)).collect()
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.attempts.values().filter(|local| matches!(local.state, LocalState::Running { .. })).count()
    }
}
