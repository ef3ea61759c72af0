//! Jobs: what people want of them, what the head's body makes of the brain's orders, and what becomes of them on the head's node.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_brain::{Input, JobsOrder, Reply, Request};
use cloudtik_model::answer::Answer;
use cloudtik_model::goal::Limits;
use cloudtik_model::job::{JobEnd, JobRef, JobReport, JobSpec, Loss, Work};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::{Actor, Epoch, Generation, InstanceId, JobId, MoneyPerHour, NodeId, NodeTypeName, ServiceKey};

use super::{SimEvent, World};
use crate::node_jobs::{Next, NodeJobs};
use crate::promises::Violation;
use crate::provider::{Wanted, instance_id};
use crate::random::Random;

/// What the world knows of jobs beside what is stored.
#[derive(Debug)]
pub(super) struct JobsWorld {
    random: Random,
    pub(super) on_node: NodeJobs,
    /// What became of every attempt, whoever knows it.
    pub(super) fates: BTreeMap<(JobId, u32), Fate>,
    submissions: u64,
    /// Which submission waits for an answer, by question.
    asked: BTreeMap<u64, String>,
    /// Which job a submission was answered with.
    acknowledged: BTreeMap<String, JobId>,
    /// Jobs that somebody wants deleted.
    pub(super) deleted: BTreeSet<JobId>,
    /// Ends that are told of.
    pub(super) told_ends: BTreeMap<JobId, u32>,
    /// When jobs ended that are stored as ended.
    pub(super) ended_at: BTreeMap<JobId, u64>,
}

#[derive(Debug, Default)]
pub(super) struct Fate {
    pub(super) began: u32,
    pub(super) end: Option<JobEnd>,
}

impl JobsWorld {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::stream(seed, &[0x10b5]),
            on_node: NodeJobs::default(),
            fates: BTreeMap::new(),
            submissions: 0,
            asked: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            deleted: BTreeSet::new(),
            told_ends: BTreeMap::new(),
            ended_at: BTreeMap::new(),
        }
    }
}

/// The service that jobs of the runtime need.
fn master() -> ServiceKey {
    "a/master".parse().expect("a valid key")
}

fn head_instance(generation: Generation) -> InstanceId {
    instance_id(&NodeId::head(), generation)
}

impl World {
    /// Every five seconds: what people want of jobs.
    pub(super) fn submit_jobs(&mut self) {
        self.after(5_000, SimEvent::JobsSubmitted);
        let (submits, replaces) = (self.setup.faults.jobs, self.setup.faults.head_replaced);
        if self.jobs.random.permille(replaces) {
            self.replace_head_node();
        }
        if submits == 0 {
            return;
        }
        if self.jobs.random.permille(submits) {
            self.submit();
        }
        let ids: Vec<JobId> = self.stored.jobs.keys().copied().collect();
        let random = &mut self.jobs.random;
        let (cancels, deletes) = (random.permille(submits / 3), random.permille(submits / 5));
        let (delay, of, other) = (random.between(1, 5_000), random.pick(&ids).copied(), random.pick(&ids).copied());
        if let Some(id) = of.filter(|_| cancels) {
            self.next += 1;
            let request = Request::new(self.next, Actor::LOCAL);
            self.hear(delay, self.epoch, Input::CancelJob { request, job: JobRef::Id(id) });
        }
        if let Some(id) = other.filter(|_| deletes) {
            self.next += 1;
            let request = Request::new(self.next, Actor::LOCAL);
            self.jobs.deleted.insert(id);
            self.hear(delay, self.epoch, Input::DeleteJob { request, job: JobRef::Id(id) });
        }
    }

    /// Somebody submits a job, and submits it again if no answer comes; some do so anyway.
    fn submit(&mut self) {
        self.jobs.submissions += 1;
        let (number, random) = (self.jobs.submissions, &mut self.jobs.random);
        let of_runtime = random.permille(500);
        let program = "sleep".to_owned();
        let work = if of_runtime { Work::Runtime { runtime: "a".parse().ok(), options: Vec::new() } } else { Work::Command { program } };
        let cpu_millis = random.permille(250).then(|| random.between(1, 5) * 500);
        let spec = JobSpec {
            limits: Limits { memory: None, cpu_millis },
            retries: random.between(0, 6).saturating_sub(3) as u32,
            ..JobSpec::new(format!("s-{number}"), work)
        };
        let needs = of_runtime.then(master);
        let again = random.permille(300);
        self.after(1, SimEvent::Submit { spec: Box::new(spec.clone()), needs: needs.clone(), until_answered: true });
        if again {
            let delay = self.jobs.random.between(1, 15_000);
            self.after(delay, SimEvent::Submit { spec: Box::new(spec), needs, until_answered: false });
        }
    }

    /// A command submits, and asks again until it has an answer.
    pub(super) fn send_submission(&mut self, spec: Box<JobSpec>, needs: Option<ServiceKey>, until_answered: bool) {
        if until_answered && self.jobs.acknowledged.contains_key(&spec.submission) {
            return;
        }
        self.next += 1;
        let request = Request::new(self.next, Actor::LOCAL);
        self.jobs.asked.insert(request.number, spec.submission.clone());
        self.hear(1, self.epoch, Input::SubmitJob { request, spec: spec.clone(), needs: needs.clone() });
        if until_answered && !self.peaceful {
            self.after(4_000, SimEvent::Submit { spec, needs, until_answered });
        }
    }

    /// What was acknowledged is stored, and the same submission is the same job as long as that is kept.
    pub(super) fn job_acknowledged(&mut self, request: u64, result: &Result<Reply, Refusal>) {
        let Some(submission) = self.jobs.asked.remove(&request) else { return };
        let Ok(Reply::Done { answer: Answer::JobSubmitted { job, again, .. } }) = result else { return };
        self.stats.repeated_submissions += u64::from(*again);
        let stored = self.stored.jobs.get(job).map(|job| &job.spec.submission);
        if stored != Some(&submission) {
            self.unkept = Some(format!("job {job} was acknowledged for {submission}; stored is {stored:?}"));
        }
        let before = self.jobs.acknowledged.insert(submission, *job);
        if let Some(before) = before.filter(|before| before != job && self.stored.jobs.contains_key(before)) {
            self.unkept = Some(format!("job {job} was made for what job {before} is kept for"));
        }
    }

    /// The body plans what is to start, which may be impossible as things are, and sends the document.
    pub(super) fn send_jobs(&mut self, delay: u64, mut order: JobsOrder) {
        let mut not_planned = Vec::new();
        for job in order.jobs.iter_mut().filter(|job| job.start.is_some()) {
            if !self.peaceful && self.jobs.random.permille(60) {
                job.start = None;
                let error = "no such option".to_owned();
                not_planned.push(Input::JobNotPlanned { id: job.id, attempt: job.attempt, error });
            }
        }
        for input in not_planned {
            self.hear(1, self.epoch, input);
        }
        self.after(2 + delay, SimEvent::Jobs { epoch: self.epoch, order });
    }

    pub(super) fn take_jobs(&mut self, epoch: Epoch, order: JobsOrder) -> Result<(), Violation> {
        // What was sent over a link that is gone is gone with it.
        let Some(id) = self.links.get(&order.session).cloned() else { return Ok(()) };
        let Some(agent) = self.agents.get(&id).filter(|agent| agent.node.is_head()) else { return Ok(()) };
        if !agent.is_well(self.now) {
            self.after(500, SimEvent::Jobs { epoch, order });
            return Ok(());
        }
        let next = self.jobs.on_node.take(epoch, order).map_err(|what| self.broken(12, what))?;
        for next in next {
            match next {
                Next::Prepare { id: job, attempt, nonce } => {
                    let delay = self.jobs.random.between(5, 3_000);
                    self.after(delay, SimEvent::JobBegins { instance: id.clone(), id: job, attempt, nonce });
                }
                Next::Stop { id: job, attempt } => self.stop_job(&id, job, attempt),
                Next::Say { id: job } => self.report_job(&id, job),
            }
        }
        Ok(())
    }

    /// Its signal, and after its grace SIGKILL for one that ignores it.
    fn stop_job(&mut self, instance: &InstanceId, id: JobId, attempt: u32) {
        let Some(nonce) = self.jobs.on_node.stop(id) else { return };
        let mut of = Random::stream(self.setup.seed, &[id.0, attempt.into(), 2]);
        let delay = if of.permille(250) { 10_000 } else { of.between(1, 2_000) };
        self.after(delay, SimEvent::JobEnds { instance: instance.clone(), id, nonce });
    }

    pub(super) fn job_begins(&mut self, instance: &InstanceId, id: JobId, attempt: u32, nonce: u64) -> Result<(), Violation> {
        let Some(agent) = self.agents.get(instance) else { return Ok(()) };
        if agent.dead {
            self.jobs.on_node.forget_preparation(id, nonce);
            return Ok(());
        }
        if agent.frozen_until > self.now {
            self.after(500, SimEvent::JobBegins { instance: instance.clone(), id, attempt, nonce });
            return Ok(());
        }
        let mut of = Random::stream(self.setup.seed, &[id.0, attempt.into()]);
        let (span, end) = (if of.permille(100) { of.between(10_000, 60_000) } else { of.between(10, 12_000) }, end_of(&mut of));
        let is_started = !matches!(end, JobEnd::NotStarted { .. });
        let started = self.moment().wall;
        if !self.jobs.on_node.begin(id, nonce, started, end) {
            return Ok(());
        }
        if is_started {
            self.job_began(id, attempt)?;
            self.after(span, SimEvent::JobEnds { instance: instance.clone(), id, nonce });
        }
        self.report_job(instance, id);
        Ok(())
    }

    pub(super) fn job_ends(&mut self, instance: &InstanceId, id: JobId, nonce: u64) {
        // The machine is gone, and what ran on it.
        if self.provider.get(instance).is_none() {
            return;
        }
        let at = self.moment().wall;
        let Some((attempt, end)) = self.jobs.on_node.end(id, nonce, at) else { return };
        self.note(|| format!("attempt {attempt} of job {id} ends: {end}"));
        self.jobs.fates.entry((id, attempt)).or_default().end = Some(end);
        self.report_job(instance, id);
    }

    /// The agent tells of a job, if there is a link. Some reports are lost with the link, and some come twice.
    pub(super) fn report_job(&mut self, instance: &InstanceId, id: JobId) {
        let (Some(agent), Some(report)) = (self.agents.get(instance), self.jobs.on_node.report(id)) else { return };
        let Some(session) = agent.link else { return };
        let node = agent.node.clone();
        if !agent.is_well(self.now) {
            return self.after(500, SimEvent::ReportJob(instance.clone(), id));
        }
        let random = &mut self.jobs.random;
        let (lost, twice) = (!self.peaceful && random.permille(40), random.permille(100));
        let (delay, later) = (random.between(2, 200), random.between(200, 20_000));
        if lost {
            self.close_link(instance, "lost", 0);
            return self.after(100, SimEvent::Connect(instance.clone()));
        }
        let reported = |jobs: Vec<JobReport>| Input::Reported { session, node: node.clone(), complete: false, services: Vec::new(), jobs };
        self.hear(delay, self.epoch, reported(vec![report.clone()]));
        if twice {
            self.hear(later, self.epoch, reported(vec![report]));
        }
    }

    /// The head's machine is lost, and the launcher makes another one with what was stored.
    fn replace_head_node(&mut self) {
        let Some(head) = self.stored.nodes.get(&NodeId::head()) else { return };
        let (old, generation) = (head.generation, Generation(head.generation.0 + 1));
        self.note(|| "the head's machine is replaced".to_owned());
        if self.brain.is_some() {
            self.crash();
        }
        self.stats.replaced_heads += 1;
        self.end_machine(&head_instance(old));
        self.jobs.on_node = NodeJobs::default();
        let node_type = NodeTypeName::head();
        let wanted = Wanted { node: &NodeId::head(), generation, node_type: &node_type, price: MoneyPerHour(0) };
        let instance = self.provider.create(self.now, wanted, 0, &mut self.random);
        let mut record = NodeRecord::requested(NodeId::head(), generation, node_type, self.moment().wall);
        record.life = NodeState::Launched;
        record.instance = Some(instance.id.clone());
        record.address.clone_from(&instance.address);
        self.stored.nodes.insert(NodeId::head(), record);
        self.after(10, SimEvent::Boot(instance.id));
    }
}

/// How an attempt ends if nobody ends it.
fn end_of(random: &mut Random) -> JobEnd {
    match random.between(0, 19) {
        0..=10 => JobEnd::Succeeded,
        11..=15 => JobEnd::Failed { exit_code: random.between(1, 255) as i32 },
        16 => JobEnd::Killed { signal: 9, out_of_memory: random.permille(500) },
        17 => JobEnd::NotStarted { why: "no such file".to_owned() },
        18 => JobEnd::TimedOut,
        _ => JobEnd::Lost { why: Loss::Shim },
    }
}
