//! What holds of jobs: an attempt begins once, what is stored of it is what happened, and its end is told once.

use cloudtik_brain::{JobRecord, JobsOrder};
use cloudtik_model::event::{Event, What};
use cloudtik_model::job::{Attempt, JobEnd, JobRef, JobState, JobWait, Loss};
use cloudtik_model::node::NodeRecord;
use cloudtik_model::report::ServiceState;
use cloudtik_model::{Generation, JobId, NodeId};

use super::World;
use crate::promises::Violation;

/// What has ended is kept for so long at least, whatever the wall clock says, if it is kept that long at all: an hour.
const KEPT: u64 = 3_600_000;

impl World {
    /// An attempt begins on its node.
    pub(super) fn job_began(&mut self, id: JobId, attempt: u32) -> Result<(), Violation> {
        self.note(|| format!("attempt {attempt} of job {id} begins"));
        self.stats.job_attempts += 1;
        let fate = self.jobs.fates.entry((id, attempt)).or_default();
        fate.began += 1;
        if fate.began > 1 {
            return Err(self.broken(12, format!("attempt {attempt} of job {id} begins again")));
        }
        let stored = self.stored.jobs.get(&id);
        if stored.is_none_or(|job| job.state.has_ended() || job.attempt != attempt) {
            return Err(self.broken(12, format!("attempt {attempt} of job {id} begins, and stored is {stored:?}")));
        }
        let most = self.stored.specs.iter().map(|spec| spec.jobs.parallel).max().unwrap_or(0) as usize;
        let running = self.jobs.on_node.running();
        if running > most {
            return Err(self.broken(12, format!("{running} jobs run at once, and {most} may")));
        }
        Ok(())
    }

    /// What is stored of a job.
    pub(super) fn check_job(&mut self, job: &JobRecord) -> Result<(), Violation> {
        let id = job.id;
        let Some(before) = self.stored.jobs.get(&id) else {
            let same = self.stored.jobs.values().find(|other| other.spec.submission == job.spec.submission || other.name == job.name);
            return match same {
                Some(same) => Err(self.broken(12, format!("job {id} is the same as job {}, which is kept", same.id))),
                None if id != self.stored.cluster.last_job => Err(self.broken(12, format!("job {id} is not the last"))),
                None => Ok(()),
            };
        };
        if before.state.has_ended() {
            return Err(self.broken(12, format!("job {id} has ended and changes: {before:?}")));
        }
        if before.cancelled.is_some() && before.cancelled != job.cancelled {
            return Err(self.broken(12, format!("the cancellation of job {id} is forgotten")));
        }
        let (was, generation) = (before.state.clone(), before.state.generation());
        let last = job.history.last().filter(|last| before.history.last() != Some(*last)).cloned();
        if let Some(last) = last {
            self.check_attempt(id, &last, generation)?;
        }
        if let (JobState::Starting { .. }, JobState::Queued { .. }) = (&job.state, &was) {
            self.check_start(job)?;
        }
        if let JobState::Queued { .. } = job.state {
            self.stats.retried_jobs += 1;
            if job.cancelled.is_some() {
                return Err(self.broken(12, format!("job {id} is tried again though it was cancelled")));
            }
        }
        if job.state.has_ended() {
            self.stats.cancelled_jobs += u64::from(job.cancelled.is_some());
            self.jobs.ended_at.insert(id, self.now);
        }
        Ok(())
    }

    /// What is stored of an attempt that is over is what its node saw.
    fn check_attempt(&mut self, id: JobId, attempt: &Attempt, generation: Option<Generation>) -> Result<(), Violation> {
        self.stats.judged_attempts += 1;
        let fate = self.jobs.fates.get(&(id, attempt.number));
        let (began, seen) = fate.map_or((0, None), |fate| (fate.began, fate.end.as_ref()));
        let head = self.stored.nodes.get(&NodeId::head()).map(|head| head.generation);
        let is_true = match &attempt.end {
            JobEnd::Lost { why: Loss::Node } => {
                self.stats.lost_jobs += 1;
                generation < head
            }
            JobEnd::NotStarted { .. } | JobEnd::Lost { why: Loss::Directory } => began == 0,
            JobEnd::Cancelled => began == 0 || seen == Some(&JobEnd::Cancelled),
            end => began == 1 && seen == Some(end),
        };
        if is_true {
            return Ok(());
        }
        Err(self
            .broken(12, format!("stored of attempt {} of job {id} is {:?}; it began {began} times, {seen:?}", attempt.number, attempt.end)))
    }

    /// A job starts when it may, and nobody before it could.
    fn check_start(&mut self, job: &JobRecord) -> Result<(), Violation> {
        let id = job.id;
        let rules = self.stored.cluster.spec.as_ref().map(|spec| spec.jobs.clone()).unwrap_or_default();
        let active = || self.stored.jobs.values().filter(|job| job.state.generation().is_some());
        if active().count() >= rules.parallel as usize {
            return Err(self.broken(12, format!("job {id} starts beside {} others, and {} may run", active().count(), rules.parallel)));
        }
        let head = self.brain.as_ref().and_then(|brain| brain.node(&NodeId::head()));
        let Some(head) = head.filter(|head| head.link.is_some()) else {
            return Err(self.broken(12, format!("job {id} starts without a node")));
        };
        let is_ready = |key| head.services.get(key).is_some_and(|service| service.state == ServiceState::Ready);
        if let Some(service) = job.needs.as_ref().filter(|key| !is_ready(*key)) {
            return Err(self.broken(12, format!("job {id} starts without {service}")));
        }
        let cores = |job: &JobRecord| job.spec.limits.cpu_millis.unwrap_or(0);
        let reserved: u64 = active().map(cores).sum::<u64>() + cores(job);
        let has = head.record.found.map_or(0, |found| u64::from(found.cpus) * 1_000);
        if cores(job) > 0 && reserved > has {
            return Err(self.broken(12, format!("job {id} starts, and then {reserved} of {has} are reserved")));
        }
        let could = |other: &&JobRecord| {
            let is_fresh = matches!(other.state, JobState::Queued { not_before: None });
            is_fresh && other.id < id && other.needs.is_none() && other.spec.limits == cloudtik_model::goal::Limits::default()
        };
        if let Some(other) = self.stored.jobs.values().find(could) {
            return Err(self.broken(12, format!("job {id} starts before job {}", other.id)));
        }
        Ok(())
    }

    /// What is forgotten had ended, and was old or one too many, or somebody wanted it gone.
    pub(super) fn check_job_gone(&mut self, id: JobId) -> Result<(), Violation> {
        let Some(job) = self.stored.jobs.get(&id) else { return Ok(()) };
        self.stats.forgotten_jobs += 1;
        let told = self.jobs.told_ends.get(&id).copied().unwrap_or(0);
        if !job.state.has_ended() || told != 1 {
            return Err(self.broken(12, format!("job {id} is forgotten; its end was told {told} times: {:?}", job.state)));
        }
        let rules = self.stored.cluster.spec.as_ref().map(|spec| spec.jobs.clone()).unwrap_or_default();
        let kept = self.stored.jobs.values().filter(|job| job.state.has_ended()).count();
        let age = self.now - self.jobs.ended_at.get(&id).copied().unwrap_or(self.now);
        if !self.jobs.deleted.contains(&id) && kept <= rules.keep as usize && age < rules.keep_for_ms.min(KEPT) {
            return Err(self.broken(12, format!("job {id} is forgotten {age} ms after its end")));
        }
        let is_last = self.jobs.ended_at.iter().all(|(other, at)| *other == id || *at < self.now - age);
        if !self.jobs.deleted.contains(&id) && is_last && age < rules.keep_for_ms.min(KEPT) {
            return Err(self.broken(12, format!("job {id}, which ended last, is forgotten")));
        }
        Ok(())
    }

    pub(super) fn note_job_event(&mut self, event: &Event) -> Result<(), Violation> {
        let What::JobEnded { job, .. } = &event.what else { return Ok(()) };
        let told = self.jobs.told_ends.entry(*job).or_default();
        *told += 1;
        if *told > 1 {
            return Err(self.broken(12, format!("the end of job {job} is told again")));
        }
        Ok(())
    }

    /// What the node is told is what is stored.
    pub(super) fn check_jobs_order(&mut self, order: &JobsOrder) -> Result<(), Violation> {
        let active = self.stored.jobs.values().filter(|job| job.state.generation().is_some());
        if !active
            .map(|job| (job.id, job.attempt, job.cancelled.is_some()))
            .eq(order.jobs.iter().map(|job| (job.id, job.attempt, job.cancel)))
        {
            return Err(self.broken(12, format!("the head's node is told other jobs than are stored: {order:?}")));
        }
        for job in order.jobs.iter().filter(|job| job.start.is_some()) {
            let stored = &self.stored.jobs[&job.id];
            if !matches!(stored.state, JobState::Starting { .. }) || stored.cancelled.is_some() {
                return Err(self.broken(12, format!("job {} is to be started, and is {:?}", job.id, stored.state)));
            }
        }
        if let Some(job) = self.stored.jobs.values().find(|job| job.state.has_ended() && !order.kept.contains(&job.id)) {
            return Err(self.broken(12, format!("the output of job {} is not kept", job.id)));
        }
        Ok(())
    }

    /// Workers of a runtime are not let go for idleness while a job of it waits or runs.
    pub(super) fn serves_a_job(&self, record: &NodeRecord) -> bool {
        let runtimes = || self.stored.jobs.values().filter(|job| !job.state.has_ended()).filter_map(|job| job.spec.work.runtime());
        let node = self.brain.as_ref().and_then(|brain| brain.node(&record.id));
        node.is_some_and(|node| {
            let mut running = node.services.values().filter(|service| service.state != ServiceState::Stopped);
            running.any(|service| runtimes().any(|runtime| *runtime == service.key.runtime))
        })
    }

    pub(super) fn check_jobs_memory(&self) -> Result<(), Violation> {
        let Some(brain) = &self.brain else { return Ok(()) };
        let known = |job: &JobRecord| brain.job_record(&JobRef::Id(job.id));
        if let Some(job) = self.stored.jobs.values().find(|job| known(job).as_ref() != Some(*job)) {
            return Err(self.broken(8, format!("known of job {} is {:?}, and stored is {job:?}", job.id, known(job))));
        }
        if brain.jobs().len() != self.stored.jobs.len() {
            return Err(self.broken(8, format!("{} jobs are known, and {} stored", brain.jobs().len(), self.stored.jobs.len())));
        }
        Ok(())
    }

    fn wait_of(&self, id: JobId) -> Option<JobWait> {
        self.brain.as_ref()?.job(&JobRef::Id(id))?.waits_for
    }

    /// In the end every job has ended, and each end was told once.
    pub(super) fn check_jobs_end(&self) -> Result<(), Violation> {
        // One that came before it was known what the node has may be too large for it for ever; it says so.
        let may_wait =
            |job: &JobRecord| matches!(self.wait_of(job.id), Some(JobWait::Room { needs, .. }) if needs.cpu_millis > Some(2_000));
        if let Some(job) = self.stored.jobs.values().find(|job| !job.state.has_ended() && !may_wait(job)) {
            return Err(self.broken(12, format!("job {} does not end: {:?}, {job:?}", job.id, self.wait_of(job.id))));
        }
        let told = |id: &JobId| self.jobs.told_ends.get(id).copied().unwrap_or(0);
        let ended = || self.stored.jobs.values().filter(|job| job.state.has_ended()).map(|job| job.id);
        match ended().find(|id| told(id) != 1) {
            Some(id) => Err(self.broken(12, format!("the end of job {id} is told {} times", told(&id)))),
            None => Ok(()),
        }
    }
}
