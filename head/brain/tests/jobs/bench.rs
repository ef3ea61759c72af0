//! A brain with a head's node, whose agent says what it is told to say.

use std::collections::BTreeMap;

use cloudtik_brain::{Action, Brain, ClusterRecord, Config, Input, JobRecord, JobsOrder, Memory, Record, Reply, Request, Session};
use cloudtik_model::answer::Answer;
use cloudtik_model::event::{Event, What};
use cloudtik_model::goal::Limits;
use cloudtik_model::job::{Job, JobEnd, JobRef, JobReport, JobReportState, JobSpec, JobState, JobWait, Work};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::report::{Facts, ServiceReport, ServiceState};
use cloudtik_model::spec::JobRules;
use cloudtik_model::spec::Spec;
use cloudtik_model::{Actor, Bytes, Epoch, Generation, InstanceId, JobId, Moment, NodeId, NodeTypeName, ServiceKey, Timestamp};

/// What the wall clock said when the first head started.
const START: u64 = 1_795_392_000_000;

pub struct Bench {
    pub brain: Brain,
    /// Milliseconds since the beginning.
    pub now: u64,
    /// When the present head started.
    booted: u64,
    /// By how much the wall clock was set.
    pub wall_off: i64,
    epoch: u64,
    pub cluster: ClusterRecord,
    pub head: NodeRecord,
    pub jobs: BTreeMap<JobId, JobRecord>,
    pub events: Vec<Event>,
    /// Everything that the head's node was told about jobs.
    pub orders: Vec<JobsOrder>,
    replies: BTreeMap<u64, Result<Reply, Refusal>>,
    next: u64,
    pub session: Session,
}

pub fn rules(parallel: u32) -> JobRules {
    JobRules { parallel, ..JobRules::default() }
}

pub fn command(submission: &str) -> JobSpec {
    let work = Work::Command { program: "/usr/bin/sleep".to_owned() };
    JobSpec { arguments: vec!["60".to_owned()], ..JobSpec::new(submission, work) }
}

pub fn limits(cpus: u64) -> Limits {
    Limits { memory: None, cpu_millis: Some(cpus * 1_000) }
}

fn spec(jobs: JobRules) -> Spec {
    Spec { revision: 1, jobs, ..Spec::default() }
}

impl Bench {
    /// A head whose node is linked: 4 cores, 8 GiB.
    pub fn new(rules: JobRules) -> Self {
        let mut bench = Self::unlinked(rules);
        bench.link();
        bench
    }

    pub fn unlinked(rules: JobRules) -> Self {
        let mut head = NodeRecord::requested(NodeId::head(), Generation(1), NodeTypeName::head(), Timestamp(START));
        head.life = NodeState::Launched;
        head.instance = InstanceId::new("i-head").ok();
        let cluster = ClusterRecord { spec: Some(spec(rules)), ..ClusterRecord::default() };
        let moment = Moment { mono: 1_000, wall: Timestamp(START) };
        let memory = Memory { cluster: cluster.clone(), nodes: vec![head.clone()], ..Memory::default() };
        let mut bench = Self {
            brain: Brain::restore(Config::default(), Epoch(1), memory, moment),
            now: 0,
            booted: 0,
            wall_off: 0,
            epoch: 1,
            cluster,
            head,
            jobs: BTreeMap::new(),
            events: Vec::new(),
            orders: Vec::new(),
            replies: BTreeMap::new(),
            next: 0,
            session: Session(0),
        };
        bench.tell(Input::Started);
        bench
    }

    pub fn moment(&self) -> Moment {
        Moment { mono: 1_000 + self.now - self.booted, wall: self.wall() }
    }

    pub fn wall(&self) -> Timestamp {
        Timestamp((START + self.now).saturating_add_signed(self.wall_off))
    }

    pub fn tell(&mut self, input: Input) {
        let step = self.brain.handle(self.moment(), input);
        for record in step.records {
            match record {
                Record::Node(node) => self.head = node,
                Record::Cluster(cluster) => self.cluster = cluster,
                Record::Job(job) => drop(self.jobs.insert(job.id, *job)),
                Record::JobGone { id } => drop(self.jobs.remove(&id)),
                Record::Event(event) => self.events.push(event),
                _ => {}
            }
        }
        for action in step.actions {
            match action {
                Action::SendJobs { node, order } => {
                    assert!(node.is_head());
                    self.orders.push(order);
                }
                Action::Reply { request, result } => drop(self.replies.insert(request, result)),
                _ => {}
            }
        }
    }

    /// A new head from what is stored.
    pub fn restart(&mut self) {
        self.booted = self.now;
        self.epoch += 1;
        let memory = Memory {
            cluster: self.cluster.clone(),
            nodes: vec![self.head.clone()],
            jobs: self.jobs.values().cloned().collect(),
            ..Memory::default()
        };
        self.brain = Brain::restore(Config::default(), Epoch(self.epoch), memory, self.moment());
        self.tell(Input::Started);
    }

    /// The head's node is another one from now on; it is not linked yet.
    pub fn replace_node(&mut self) {
        self.head.generation = Generation(self.head.generation.0 + 1);
        self.head.key = None;
        self.restart();
    }

    pub fn link(&mut self) {
        self.next += 1;
        self.session = Session(self.next);
        let facts = Facts { cpus: 4, memory: Bytes(8 << 30), health_port: 7071, ..Facts::default() };
        let (session, generation) = (self.session, self.head.generation);
        self.tell(Input::LinkOpened { session, node: NodeId::head(), generation, facts });
    }

    pub fn unlink(&mut self) {
        self.tell(Input::LinkClosed { session: self.session, node: NodeId::head(), cause: "cut".to_owned() });
    }

    /// Time passes; the head's node is heard.
    pub fn pass(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds;
        while self.now < end {
            let wake = (self.brain.next_wake() + self.booted).saturating_sub(1_000);
            self.now = wake.clamp(self.now + 1, self.now + 500).min(end);
            let at = self.moment().mono;
            self.tell(Input::heartbeat(self.session, NodeId::head(), at, None));
            self.tell(Input::Tick);
        }
    }

    /// Long times, of which only the ends count.
    pub fn skip(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        self.tell(Input::Tick);
    }

    fn ask(&mut self, input: impl FnOnce(Request) -> Input) -> Result<Answer, Refusal> {
        self.next += 1;
        let number = self.next;
        self.tell(input(Request::new(number, Actor::LOCAL)));
        match self.replies.remove(&number).expect("every question is answered in its step") {
            Ok(Reply::Done { answer }) => Ok(answer),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal),
        }
    }

    pub fn try_submit(&mut self, spec: JobSpec, needs: Option<ServiceKey>) -> Result<Answer, Refusal> {
        self.ask(|request| Input::SubmitJob { request, spec: Box::new(spec), needs })
    }

    /// Submits what is taken, and says its number.
    pub fn submit(&mut self, spec: JobSpec) -> JobId {
        match self.try_submit(spec, None) {
            Ok(Answer::JobSubmitted { job, .. }) => job,
            other => panic!("{other:?}"),
        }
    }

    pub fn cancel(&mut self, job: JobId) -> Result<Answer, Refusal> {
        self.ask(|request| Input::CancelJob { request, job: JobRef::Id(job) })
    }

    pub fn delete(&mut self, job: JobRef) -> Result<Answer, Refusal> {
        self.ask(|request| Input::DeleteJob { request, job })
    }

    pub fn shut_down(&mut self) {
        self.ask(|request| Input::Shutdown { request }).expect("granted");
    }

    pub fn specify(&mut self, jobs: JobRules) {
        let revision = self.cluster.spec.as_ref().map_or(1, |spec| spec.revision + 1);
        self.tell(Input::Specified { actor: Actor::LOCAL, spec: Spec { revision, ..spec(jobs) } });
    }

    pub fn report(&mut self, id: JobId, attempt: u32, state: JobReportState) {
        let jobs = vec![JobReport { id, attempt, state }];
        let (session, node) = (self.session, NodeId::head());
        self.tell(Input::Reported { session, node, complete: false, services: Vec::new(), jobs });
    }

    /// The present attempt of a job runs.
    pub fn runs(&mut self, id: JobId) {
        let started = self.wall();
        self.report(id, self.jobs[&id].attempt, JobReportState::Running { pid: 77, started });
    }

    /// The present attempt of a job ends.
    pub fn ends(&mut self, id: JobId, end: JobEnd) {
        let at = self.wall();
        self.report(id, self.jobs[&id].attempt, JobReportState::Ended { started: at, at, end, lost_output: 0 });
    }

    pub fn service(&mut self, key: &str, state: ServiceState) {
        let report = ServiceReport {
            key: key.parse().expect("a key"),
            state,
            detail: String::new(),
            pid: None,
            restarts: 0,
            since: Timestamp(0),
            goal_version: 0,
            gauges: BTreeMap::new(),
            failure: None,
            log: Vec::new(),
        };
        let (session, node) = (self.session, NodeId::head());
        self.tell(Input::Reported { session, node, complete: false, services: vec![report], jobs: Vec::new() });
    }

    pub fn view(&self, id: JobId) -> Job {
        self.brain.job(&JobRef::Id(id)).expect("it is kept")
    }

    /// The state of a job, as it is stored and as the brain knows it.
    pub fn state(&self, id: JobId) -> &'static str {
        let stored = &self.jobs[&id];
        assert_eq!(self.brain.job_record(&JobRef::Id(id)).as_ref(), Some(stored), "what is known is what is stored");
        stored.state.name().name()
    }

    pub fn states(&self) -> Vec<&'static str> {
        self.jobs.keys().map(|id| self.state(*id)).collect()
    }

    pub fn end(&self, id: JobId) -> Option<&JobEnd> {
        match &self.jobs[&id].state {
            JobState::Ended { end, .. } => Some(end),
            _ => None,
        }
    }

    pub fn wait(&self, id: JobId) -> Option<JobWait> {
        self.view(id).waits_for
    }

    /// How many events are such.
    pub fn told(&self, is: impl Fn(&What) -> bool) -> usize {
        self.events.iter().filter(|event| is(&event.what)).count()
    }

    pub fn last_order(&self) -> &JobsOrder {
        self.orders.last().expect("something was sent")
    }
}
