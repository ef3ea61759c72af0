//! Which job starts next, and what the others wait for.
//!
//! First come, first served. A job that waits for its service or for the pause before its next attempt keeps no other from starting.
//! One that waits for room keeps those behind it that reserve something from taking that room, however little they need.

use cloudtik_model::JobId;
use cloudtik_model::goal::Limits;
use cloudtik_model::job::{JobState, JobWait};
use cloudtik_model::report::ServiceState;
use cloudtik_model::wait::WaitingService;

use crate::{Brain, JobRecord, Node};

/// What the head's node is told of all jobs that are starting is one message, which must stay below its limit.
const MAX_STARTING_TEXTS: usize = 1 << 20;

/// How far a walk through the queue has come.
pub(super) struct Turns<'a> {
    brain: &'a Brain,
    running: u32,
    limit: u32,
    starting: u32,
    /// Bytes of what is to run of those that are starting.
    texts: usize,
    /// Nothing if it is not known what the node has.
    free: Option<Limits>,
    /// The first that waits for room.
    first_without_room: Option<JobId>,
}

impl Turns<'_> {
    fn is_over(&self) -> bool {
        self.running >= self.limit
    }

    /// What the next in the queue waits for; nothing if it starts now, and then it counts.
    pub(super) fn next(&mut self, job: &JobRecord) -> Option<JobWait> {
        if self.brain.cluster.stopping {
            return Some(JobWait::ClusterTakenDown);
        }
        let Some(node) = self.brain.job_node().filter(|node| node.link.is_some()) else { return Some(JobWait::Node) };
        if let (true, JobState::Queued { not_before: Some(until) }) = (self.brain.jobs.pauses.contains_key(&job.id), &job.state) {
            return Some(JobWait::Pause { until: *until });
        }
        if let Some(service) = job.needs.as_ref() {
            let report = node.services.get(service);
            if report.is_none_or(|of| of.state != ServiceState::Ready) {
                let report = report.map(|of| WaitingService { state: of.state, detail: of.detail.clone(), failure: of.failure.clone() });
                return Some(JobWait::Service { service: service.clone(), report });
            }
        }
        let needs = &job.spec.limits;
        if let (Some(free), true) = (&self.free, needs.any()) {
            if let Some(before) = self.first_without_room {
                return Some(JobWait::Turn { after: before });
            }
            if !fits(needs, free) {
                // A job that can never fit does not block those behind it.
                if head_room(node).is_none_or(|all| fits(needs, &all)) {
                    self.first_without_room = Some(job.id);
                }
                return Some(JobWait::Room { needs: needs.clone(), free: free.clone() });
            }
        }
        let text_size = job.spec.text_size();
        if self.starting > 0 && self.texts + text_size > MAX_STARTING_TEXTS {
            return Some(JobWait::Starts { starting: self.starting });
        }
        if self.is_over() {
            return Some(JobWait::Parallel { running: self.running, limit: self.limit });
        }
        self.running += 1;
        self.starting += 1;
        self.texts += text_size;
        if let Some(free) = &mut self.free {
            reserve(free, needs);
        }
        None
    }
}

impl Brain {
    pub(super) fn turns(&self) -> Turns<'_> {
        let mut free = self.job_node().and_then(head_room);
        let (mut starting, mut texts) = (0, 0);
        for job in self.jobs.active() {
            if let Some(free) = &mut free {
                reserve(free, &job.spec.limits);
            }
            if let JobState::Starting { .. } = job.state {
                starting += 1;
                texts += job.spec.text_size();
            }
        }
        let running = u32::try_from(self.jobs.active.len()).unwrap_or(u32::MAX);
        let limit = self.cluster.spec.as_ref().map_or(0, |spec| spec.jobs.parallel);
        Turns { brain: self, running, limit, starting, texts, free, first_without_room: None }
    }

    /// Lets jobs leave the queue.
    pub(super) fn start_jobs(&mut self) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        self.jobs.pauses.retain(|_, until| *until > now);
        let Some(node) = self.job_node().filter(|node| node.link.is_some()) else { return };
        let generation = node.record.generation;
        let mut turns = self.turns();
        let mut starting = Vec::new();
        for job in self.jobs.queued() {
            if turns.is_over() {
                break;
            }
            if turns.next(job).is_none() {
                starting.push(job.clone());
            }
        }
        for mut job in starting {
            job.attempt = job.attempt.saturating_add(1);
            job.state = JobState::Starting { since: wall, generation };
            self.store_job(job);
        }
    }
}

/// What a node has for jobs, if that is known.
pub(super) fn head_room(node: &Node) -> Option<Limits> {
    let found = node.record.found.as_ref()?;
    Some(Limits { memory: Some(found.memory.0), cpu_millis: Some(u64::from(found.cpus) * 1_000) })
}

/// Whether a reservation is not larger than what there is.
pub(super) fn fits(needs: &Limits, room: &Limits) -> bool {
    let is_enough = |needs: Option<u64>, has: Option<u64>| needs.unwrap_or(0) <= has.unwrap_or(u64::MAX);
    is_enough(needs.memory, room.memory) && is_enough(needs.cpu_millis, room.cpu_millis)
}

fn reserve(free: &mut Limits, needs: &Limits) {
    let less = |free: &mut Option<u64>, needs: Option<u64>| *free = free.map(|free| free.saturating_sub(needs.unwrap_or(0)));
    less(&mut free.memory, needs.memory);
    less(&mut free.cpu_millis, needs.cpu_millis);
}
