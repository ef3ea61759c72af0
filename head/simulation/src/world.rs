//! The world itself: what happens when, and what becomes of the brain's actions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use cloudtik_brain::{Action, Brain, ClusterRecord, Config, Input, Record, Reply, Request, Session};
use cloudtik_model::event::Event;
use cloudtik_model::node::{DialOutcome, InstanceState, NodeRecord, NodeState};
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::{Role, ServicePlacement, Spec, WorkerType};
use cloudtik_model::status::Phase;
use cloudtik_model::{Epoch, Generation, InstanceId, Moment, MoneyPerHour, NodeId, NodeTypeName, ServiceKey, Timestamp};

use crate::agent::Agent;
use crate::promises::{Violation, check_machines};
use crate::provider::{Provider, VISIBILITY, failure, instance_id};
use crate::random::Random;

/// How long faults and people trouble the world, in virtual milliseconds.
const TROUBLE: u64 = 600_000;
/// How long it then has to settle.
const PEACE: u64 = 600_000;
const HEARTBEAT: u64 = 1_000;
/// Lines of the trail that are kept.
const TRAIL: usize = 80;
/// A node that was well for this long must not be deleted for silence.
const WELL: u64 = 12_000;
/// The only worker must be silent for this long before it may be given up.
const ALONE: u64 = 50_000;

/// What goes wrong, in times per thousand where it is a chance.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Per step of the head.
    pub crash: u64,
    /// Per provider call.
    pub call_fails: u64,
    pub call_fails_after: u64,
    /// Per 10 s.
    pub agent_dies: u64,
    pub agent_freezes: u64,
    pub agent_cut: u64,
    pub machine_breaks: u64,
    pub head_pauses: u64,
    /// The head's network is gone for a while: every agent is cut.
    pub all_cut: u64,
    /// Per 10 s: somebody scales, kills or drains.
    pub people: u64,
    pub can_restart_agent: bool,
}

impl Faults {
    /// Seeds differ in what they are about.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        let mut some = |most: u64| if random.permille(600) { random.between(0, most) } else { 0 };
        Self {
            crash: some(8),
            call_fails: some(300),
            call_fails_after: some(300),
            agent_dies: some(150),
            agent_freezes: some(100),
            agent_cut: some(100),
            machine_breaks: some(60),
            head_pauses: some(60),
            all_cut: some(40),
            people: some(300),
            can_restart_agent: seed.is_multiple_of(2),
        }
    }
}

/// What a world went through.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub steps: u64,
    pub crashes: u64,
    pub creations: u64,
    pub deletions: u64,
    pub verdicts: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Happening {
    /// Something for the brain, in the life of one head.
    Hear(Epoch, Box<Hear>),
    HeadStarts,
    /// The effect of a call, and what is answered.
    Create {
        epoch: Epoch,
        node: NodeId,
        generation: Generation,
        node_type: NodeTypeName,
    },
    Delete {
        epoch: Epoch,
        node: NodeId,
        generation: Generation,
        instance: InstanceId,
    },
    RestartAgent {
        epoch: Epoch,
        node: NodeId,
        generation: Generation,
        instance: InstanceId,
    },
    List {
        epoch: Epoch,
    },
    Dial {
        epoch: Epoch,
        node: NodeId,
        generation: Generation,
    },
    Goal {
        epoch: Epoch,
        node: NodeId,
        session: Session,
        version: u64,
        revision: u64,
        start: BTreeSet<ServiceKey>,
        drain: bool,
    },
    Boot(InstanceId),
    /// The agent tries to join or to open its link.
    Connect(InstanceId),
    Beat(InstanceId, Session),
    ServiceReady(InstanceId, ServiceKey, u32),
    Trouble,
}

/// An input that waits, comparable for the queue's sake.
#[derive(Debug, Clone)]
struct Hear(Input);

impl PartialEq for Hear {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Hear {}

/// One seeded world.
#[derive(Debug)]
pub struct World {
    seed: u64,
    faults: Faults,
    random: Random,
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    brain: Option<Brain>,
    paused_until: u64,
    epoch: Epoch,
    stored: Stored,
    provider: Provider,
    agents: BTreeMap<InstanceId, Agent>,
    requests: BTreeMap<Request, InstanceId>,
    next: u64,
    next_process: u32,
    all_cut_until: u64,
    /// What people or scale asked to go, by node and generation.
    asked_to_go: BTreeSet<(NodeId, Generation)>,
    stats: Stats,
    trail: VecDeque<String>,
    peaceful: bool,
}

#[derive(Debug, Default)]
struct Stored {
    cluster: ClusterRecord,
    nodes: BTreeMap<NodeId, NodeRecord>,
    events: Vec<Event>,
}

fn key(text: &str) -> ServiceKey {
    text.parse().expect("a valid key")
}

fn default_type() -> NodeTypeName {
    NodeTypeName::new(NodeTypeName::DEFAULT).expect("a valid name")
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut world = Self {
            seed,
            faults,
            random: Random::new(seed),
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            brain: None,
            paused_until: 0,
            epoch: Epoch(0),
            stored: Stored::default(),
            provider: Provider::default(),
            agents: BTreeMap::new(),
            requests: BTreeMap::new(),
            next: 0,
            next_process: 0,
            all_cut_until: 0,
            asked_to_go: BTreeSet::new(),
            stats: Stats::default(),
            trail: VecDeque::new(),
            peaceful: false,
        };
        let (head, generation, random) = (NodeId::head(), Generation(1), &mut Random::new(seed));
        let instance = world.provider.create(0, &head, generation, &NodeTypeName::head(), random);
        let mut record = NodeRecord::requested(head.clone(), generation, NodeTypeName::head(), Timestamp(0));
        record.life = NodeState::Launched;
        record.instance = Some(instance.id.clone());
        record.address.clone_from(&instance.address);
        world.stored.nodes.insert(head, record);
        world.after(0, Happening::HeadStarts);
        world.after(10, Happening::Boot(instance.id));
        world.after(10_000, Happening::Trouble);
        world
    }

    /// The description that this seed is about.
    fn spec(&self, revision: u64, rolling: bool) -> Spec {
        let mut random = Random::new(self.seed ^ 0x57ec);
        let min = random.between(1, 5) as u32;
        let max = min + random.between(0, 3) as u32;
        let price = random.permille(500).then_some(MoneyPerHour(400_000));
        let budget = price.filter(|_| random.permille(500)).map(|p| MoneyPerHour(p.0 * u64::from(max)));
        let kind = WorkerType { min, max, price, resources: None };
        let place = |name: &str, role, after: Vec<ServiceKey>| ServicePlacement { key: key(name), role, after };
        Spec {
            revision,
            workers: BTreeMap::from([(default_type(), kind)]),
            max_workers: max,
            budget,
            services: vec![place("a/master", Role::Head, vec![]), place("a/worker", Role::Workers, vec![key("a/master")])],
            rolling,
        }
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.happenings.insert(self.sequence, happening);
    }

    fn hear(&mut self, delay: u64, epoch: Epoch, input: Input) {
        self.after(delay, Happening::Hear(epoch, Box::new(Hear(input))));
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trail.len() == TRAIL {
            self.trail.pop_front();
        }
        self.trail.push_back(format!("{:>8} {}", self.now, line()));
    }

    fn broken(&self, promise: u8, what: String) -> Violation {
        Violation { seed: self.seed, at: self.now, promise, what, trail: self.trail.iter().cloned().collect() }
    }

    fn moment(&self) -> Moment {
        Moment { mono: self.now, wall: Timestamp(1_700_000_000_000 + self.now) }
    }

    /// Runs trouble, then peace, and checks that everything is as it was asked for.
    pub fn run(mut self) -> Result<Stats, Violation> {
        while self.now < TROUBLE + PEACE {
            if self.now >= TROUBLE && !self.peaceful {
                self.make_peace();
            }
            let next = self.queue.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            let wake = self.brain.as_ref().map_or(u64::MAX, |b| b.next_wake().max(self.paused_until));
            if wake < next {
                self.now = self.now.max(wake);
                self.step(Input::Tick)?;
                continue;
            }
            let Some(Reverse((at, sequence))) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            if let Some(happening) = self.happenings.remove(&sequence) {
                self.happen(happening)?;
            }
        }
        self.check_end()?;
        self.stats.creations = self.provider.creations;
        Ok(self.stats)
    }

    fn make_peace(&mut self) {
        self.peaceful = true;
        let nothing = Faults {
            crash: 0,
            call_fails: 0,
            call_fails_after: 0,
            agent_dies: 0,
            agent_freezes: 0,
            agent_cut: 0,
            machine_breaks: 0,
            head_pauses: 0,
            all_cut: 0,
            people: 0,
            can_restart_agent: self.faults.can_restart_agent,
        };
        self.faults = nothing;
        self.note(|| "peace".to_owned());
    }

    /// One step of the brain, with a crash at any point of it.
    fn step(&mut self, input: Input) -> Result<(), Violation> {
        let moment = self.moment();
        let Some(brain) = &mut self.brain else { return Ok(()) };
        self.stats.steps += 1;
        let interesting = !matches!(input, Input::Heartbeat { .. } | Input::Tick | Input::Listed { result: Ok(_) });
        let text = interesting.then(|| shorten(&format!("{input:?}")));
        let step = brain.handle(moment, input);
        if let Some(text) = text {
            self.note(|| format!("→ {text}"));
        }
        if self.crashes() {
            // Decided, and not stored: it never happened.
            self.note(|| "head crashes before its commit".to_owned());
            return Ok(());
        }
        for record in step.records {
            match record {
                Record::Node(node) => {
                    let before = self.stored.nodes.insert(node.id.clone(), node.clone());
                    let was_condemned = before.is_some_and(|b| {
                        b.generation == node.generation && matches!(b.life, NodeState::Terminating { .. } | NodeState::Failed { .. })
                    });
                    if !was_condemned {
                        self.check_verdict(&node)?;
                    }
                }
                Record::Cluster(cluster) => self.stored.cluster = cluster,
                Record::Event(event) => {
                    self.stats.verdicts += u64::from(event.kind == cloudtik_model::event::EventKind::Verdict);
                    let line = format!("  {} {:?} {}", event.kind.name(), event.node, event.message);
                    self.note(|| line);
                    self.stored.events.push(event);
                }
            }
        }
        if self.crashes() {
            self.note(|| "head crashes after its commit".to_owned());
            return Ok(());
        }
        for action in step.actions {
            self.check_action(&action)?;
            self.execute(action);
            if self.crashes() {
                self.note(|| "head crashes between its actions".to_owned());
                return Ok(());
            }
        }
        Ok(())
    }

    fn crashes(&mut self) -> bool {
        let crash = self.faults.crash;
        if crash == 0 || !self.random.permille(crash) {
            return false;
        }
        self.stats.crashes += 1;
        self.brain = None;
        self.requests.clear();
        for agent in self.agents.values_mut() {
            agent.link = None;
        }
        let delay = self.random.between(20, 3_000);
        self.after(delay, Happening::HeadStarts);
        true
    }

    fn execute(&mut self, action: Action) {
        let epoch = self.epoch;
        let delay = self.random.between(1, 400);
        let slow = self.random.between(50, 8_000);
        if !matches!(action, Action::SendGoal { .. } | Action::DialBack { .. } | Action::ListInstances | Action::Reply { .. }) {
            let text = shorten(&format!("{action:?}"));
            self.note(|| format!("← {text}"));
        }
        match action {
            Action::Create { node, generation, node_type } => self.after(slow, Happening::Create { epoch, node, generation, node_type }),
            Action::Delete { node, generation, instance } => self.after(slow, Happening::Delete { epoch, node, generation, instance }),
            Action::RestartAgent { node, generation, instance } => {
                self.after(delay, Happening::RestartAgent { epoch, node, generation, instance });
            }
            Action::ListInstances => self.after(delay, Happening::List { epoch }),
            Action::DialBack { node, generation, .. } => self.after(delay, Happening::Dial { epoch, node, generation }),
            Action::SendGoal { node, session, version, revision, start, drain } => {
                self.after(delay, Happening::Goal { epoch, node, session, version, revision, start, drain });
            }
            Action::CloseLink { session, .. } => {
                let closed: Vec<InstanceId> =
                    self.agents.iter().filter(|(_, a)| a.link == Some(session)).map(|(id, _)| id.clone()).collect();
                for id in closed {
                    self.close_link(&id, "closed by the head");
                    self.after(1_000, Happening::Connect(id));
                }
            }
            Action::Reply { request, result } => {
                let Some(id) = self.requests.remove(&request) else { return };
                let admitted = matches!(result, Ok(Reply::Admit { .. }));
                if let Some(agent) = self.agents.get_mut(&id) {
                    agent.joined |= admitted;
                    self.after(if admitted { 20 } else { 5_000 }, Happening::Connect(id));
                }
            }
        }
    }

    /// What the brain may do at all.
    fn check_action(&mut self, action: &Action) -> Result<(), Violation> {
        match action {
            Action::Create { node, generation, .. } => {
                let stored = self.stored.nodes.get(node);
                if stored.is_none_or(|r| r.generation != *generation || r.life == NodeState::Gone) {
                    return Err(self.broken(1, format!("{node} is created without being stored as requested: {stored:?}")));
                }
            }
            Action::Delete { node, generation, instance } => {
                self.stats.deletions += 1;
                if *instance != instance_id(node, *generation) {
                    return Err(self.broken(3, format!("{instance} is deleted as {node}, generation {generation}")));
                }
                if node.is_head() {
                    return Err(self.broken(3, "the head's own node is deleted".to_owned()));
                }
                let explained = self.stored.events.iter().any(|e| {
                    (e.node.as_ref() == Some(node) && e.generation == Some(*generation) && e.message.contains("→ terminating"))
                        || (e.message.contains("orphan") && e.message.contains(instance.as_str()))
                });
                if !explained {
                    return Err(self.broken(10, format!("nothing stored explains why {instance} is deleted")));
                }
            }
            Action::SendGoal { node, drain: true, .. } => {
                let life = self.stored.nodes.get(node).map(|r| r.life.clone());
                if !matches!(life, Some(NodeState::Draining { .. })) {
                    return Err(self.broken(5, format!("{node} is told to stop everything while it is {life:?}")));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Never by guess: a node that was well all the while is given up only because somebody wanted it gone.
    fn check_verdict(&self, record: &NodeRecord) -> Result<(), Violation> {
        let NodeState::Terminating { reason } = &record.life else { return Ok(()) };
        let (node, generation) = (&record.id, record.generation);
        let Some(instance) = &record.instance else { return Ok(()) };
        let wanted =
            self.asked_to_go.contains(&(node.clone(), generation)) || reason.contains("not needed") || reason.contains("goes down");
        let machine = self.provider.machines.get(instance);
        if wanted || machine.is_none_or(|m| m.broken || m.deleted.is_some()) {
            return Ok(());
        }
        let Some(agent) = self.agents.get(instance) else { return Ok(()) };
        let head_was_deaf = self.now < self.all_cut_until + WELL;
        let node_had_no_fault = agent.own_fault_until.saturating_add(WELL) < self.now;
        // The only worker that was ever heard is given up after a while: there is no other by which the head could tell.
        let is_alone = self.agents.values().filter(|a| a.joined && !a.node.is_head()).count() == 1;
        let was_waited_for = is_alone && self.now.saturating_sub(agent.unwell_from) >= ALONE;
        if head_was_deaf && node_had_no_fault && !was_waited_for {
            return Err(self.broken(3, format!("{node} is deleted ({reason}) because the head was cut off")));
        }
        if agent.is_well(self.now) && self.now - agent.well_since > WELL && agent.link.is_some() {
            return Err(self.broken(3, format!("{node} is deleted ({reason}) though it was well")));
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Hear(epoch, input) => {
                if epoch != self.epoch || self.brain.is_none() {
                    return Ok(());
                }
                if self.paused_until > self.now {
                    // It waits in a socket until the head is back.
                    let wait = self.paused_until - self.now;
                    self.after(wait, Happening::Hear(epoch, input));
                    return Ok(());
                }
                self.step(input.0)
            }
            Happening::HeadStarts => self.start_head(),
            Happening::Create { epoch, node, generation, node_type } => self.create(epoch, node, generation, &node_type),
            Happening::Delete { epoch, node, generation, instance } => {
                if self.call_fails() {
                    self.hear(1, epoch, Input::Deleted { node, generation, result: Err(failure("delete: try later")) });
                    return Ok(());
                }
                self.provider.delete(self.now, &instance);
                self.agents.remove(&instance);
                let result = if self.call_fails_after() { Err(failure("delete: the answer was lost")) } else { Ok(()) };
                let delay = self.random.between(1, 2_000);
                self.hear(delay, epoch, Input::Deleted { node, generation, result });
                Ok(())
            }
            Happening::RestartAgent { epoch, node, generation, instance } => {
                let now = self.now;
                let worked = self.agents.get_mut(&instance).is_some_and(|agent| {
                    (agent.dead, agent.frozen_until) = (false, agent.frozen_until.min(now));
                    agent.well_since = now.max(agent.cut_until);
                    agent.own_fault_until = agent.own_fault_until.min(now.max(agent.cut_until));
                    true
                });
                let result = if worked { Ok(()) } else { Err(failure("restart: no such machine")) };
                if worked {
                    self.close_link(&instance, "restarted");
                    self.after(50, Happening::Connect(instance));
                }
                self.hear(20, epoch, Input::AgentRestarted { node, generation, result });
                Ok(())
            }
            Happening::List { epoch } => {
                let result = if self.call_fails() { Err(failure("list: try later")) } else { Ok(self.provider.list(self.now)) };
                let delay = self.random.between(1, 1_500);
                self.hear(delay, epoch, Input::Listed { result });
                Ok(())
            }
            Happening::Dial { epoch, node, generation } => {
                let agent = self.agents.values().find(|a| a.node == node && a.generation == generation);
                let machine = agent.and_then(|a| self.provider.machines.get(&a.instance));
                let (outcome, delay) = match (agent, machine) {
                    (Some(agent), Some(machine)) if machine.deleted.is_none() && !machine.broken && agent.cut_until <= self.now => {
                        if agent.dead {
                            (DialOutcome::Refused, 2)
                        } else if agent.frozen_until > self.now {
                            (DialOutcome::TimedOut, 800)
                        } else {
                            (DialOutcome::Answered, 2)
                        }
                    }
                    _ => (DialOutcome::TimedOut, 800),
                };
                self.hear(delay, epoch, Input::DialedBack { node, generation, outcome });
                Ok(())
            }
            Happening::Goal { epoch, node, session, version, revision, start, drain } => {
                self.take_goal(epoch, &node, session, version, revision, &start, drain);
                Ok(())
            }
            Happening::Boot(id) => {
                self.boot(&id);
                Ok(())
            }
            Happening::Connect(id) => {
                self.connect(&id);
                Ok(())
            }
            Happening::Beat(id, session) => {
                self.beat(&id, session);
                Ok(())
            }
            Happening::ServiceReady(id, service, process) => {
                self.service_ready(&id, &service, process);
                Ok(())
            }
            Happening::Trouble => self.trouble(),
        }
    }

    fn start_head(&mut self) -> Result<(), Violation> {
        self.epoch = Epoch(self.epoch.0 + 1);
        let config = Config { visibility: VISIBILITY, can_restart_agent: self.faults.can_restart_agent, ..Config::default() };
        let nodes = self.stored.nodes.values().cloned().collect();
        self.brain = Some(Brain::restore(config, self.epoch, self.stored.cluster.clone(), nodes, self.moment()));
        self.paused_until = self.now;
        let epoch = self.epoch.0;
        self.note(|| format!("head starts, epoch {epoch}"));
        self.step(Input::Started)?;
        if self.stored.cluster.spec.is_none() {
            let spec = self.spec(1, false);
            self.hear(5, self.epoch, Input::Specified { spec });
        }
        for id in self.agents.keys().cloned().collect::<Vec<_>>() {
            let delay = self.random.between(10, 3_000);
            self.after(delay, Happening::Connect(id));
        }
        Ok(())
    }

    fn call_fails(&mut self) -> bool {
        let chance = self.faults.call_fails;
        self.random.permille(chance)
    }

    fn call_fails_after(&mut self) -> bool {
        let chance = self.faults.call_fails_after;
        self.random.permille(chance)
    }

    fn create(&mut self, epoch: Epoch, node: NodeId, generation: Generation, node_type: &NodeTypeName) -> Result<(), Violation> {
        if self.call_fails() {
            self.hear(1, epoch, Input::Created { node, generation, result: Err(failure("create: no capacity just now")) });
            return Ok(());
        }
        let is_new = !self.provider.machines.contains_key(&instance_id(&node, generation));
        let instance = self.provider.create(self.now, &node, generation, node_type, &mut self.random);
        if is_new {
            let boots = self.random.between(500, 20_000);
            self.after(boots, Happening::Boot(instance.id.clone()));
            let spec = self.spec(1, false);
            check_machines(&self.provider, &spec).map_err(|(promise, what)| self.broken(promise, what))?;
        }
        let result = if self.call_fails_after() { Err(failure("create: the answer was lost")) } else { Ok(instance) };
        let delay = self.random.between(1, 2_000);
        self.hear(delay, epoch, Input::Created { node, generation, result });
        Ok(())
    }

    fn boot(&mut self, id: &InstanceId) {
        let Some(machine) = self.provider.machines.get(id).filter(|m| m.deleted.is_none() && !m.broken) else { return };
        let (node, generation) = (machine.instance.node.clone(), machine.instance.generation);
        let agent = Agent {
            key: format!("key of {id}"),
            node,
            generation,
            node_type: machine.node_type.clone(),
            instance: id.clone(),
            joined: false,
            link: None,
            dead: false,
            frozen_until: 0,
            // Whoever boots while the head's network is gone cannot reach it either.
            cut_until: self.all_cut_until,
            well_since: self.now.max(self.all_cut_until),
            own_fault_until: 0,
            unwell_from: self.now,
            epoch: Epoch(0),
            version: 0,
            services: BTreeMap::new(),
        };
        self.agents.insert(id.clone(), agent);
        self.after(10, Happening::Connect(id.clone()));
    }

    /// The agent's way to a link: join if it has no certificate, then connect. It keeps trying.
    fn connect(&mut self, id: &InstanceId) {
        let now = self.now;
        let Some(agent) = self.agents.get(id) else { return };
        if agent.link.is_some() || agent.dead {
            return;
        }
        if self.brain.is_none() || self.paused_until > now || !agent.is_well(now) {
            let delay = self.random.between(500, 3_000);
            return self.after(delay, Happening::Connect(id.clone()));
        }
        self.next += 1;
        let number = self.next;
        let (node, generation) = (agent.node.clone(), agent.generation);
        if !agent.joined {
            let request = Request(number);
            let key = agent.key.clone();
            self.requests.insert(request, id.clone());
            let address = "10.0.0.1".to_owned();
            self.hear(5, self.epoch, Input::JoinAsked { request, node, generation, key, token: true, address });
            // If the answer is lost with the head, it asks again.
            return self.after(10_000, Happening::Connect(id.clone()));
        }
        let session = Session(number);
        let (facts, services) = (agent.facts(), agent.reports(now));
        let epoch = self.epoch;
        if let Some(agent) = self.agents.get_mut(id) {
            agent.link = Some(session);
        }
        self.hear(3, epoch, Input::LinkOpened { session, node: node.clone(), generation, facts });
        self.hear(4, epoch, Input::Reported { session, node, complete: true, services });
        self.after(HEARTBEAT, Happening::Beat(id.clone(), session));
    }

    fn close_link(&mut self, id: &InstanceId, cause: &str) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        let Some(session) = agent.link.take() else { return };
        let (node, epoch) = (agent.node.clone(), self.epoch);
        self.hear(2, epoch, Input::LinkClosed { session, node, cause: cause.to_owned() });
    }

    fn beat(&mut self, id: &InstanceId, session: Session) {
        let now = self.now;
        let Some(agent) = self.agents.get(id).filter(|a| a.link == Some(session)) else { return };
        let (node, epoch) = (agent.node.clone(), self.epoch);
        if agent.is_well(now) {
            let delay = self.random.between(1, 60);
            self.hear(delay, epoch, Input::Heartbeat { session, node });
        }
        self.after(HEARTBEAT, Happening::Beat(id.clone(), session));
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    fn take_goal(
        &mut self,
        epoch: Epoch,
        node: &NodeId,
        session: Session,
        version: u64,
        revision: u64,
        start: &BTreeSet<ServiceKey>,
        drain: bool,
    ) {
        let now = self.now;
        let spec = self.spec(revision, false);
        let Some(agent) = self.agents.values_mut().find(|a| a.node == *node && a.link == Some(session)) else { return };
        if !agent.is_well(now) {
            // It waits in the stream until the agent reads again, or the stream ends.
            let (node, start) = (node.clone(), start.clone());
            return self.after(500, Happening::Goal { epoch, node, session, version, revision, start, drain });
        }
        let placed: BTreeSet<ServiceKey> =
            if drain { BTreeSet::new() } else { spec.services_on(&agent.node_type).map(|p| p.key.clone()).collect() };
        let Some(starting) = agent.take_goal(epoch, version, &placed, start, &mut self.next_process) else { return };
        let (id, services) = (agent.instance.clone(), agent.reports(now));
        let processes: Vec<(ServiceKey, u32)> = starting.into_iter().map(|k| (k.clone(), agent.services[&k].process)).collect();
        self.hear(2, epoch, Input::GoalAcknowledged { session, node: node.clone(), version, refusal: None });
        self.hear(3, epoch, Input::Reported { session, node: node.clone(), complete: false, services });
        for (service, process) in processes {
            let delay = self.random.between(100, 9_000);
            self.after(delay, Happening::ServiceReady(id.clone(), service, process));
        }
    }

    fn service_ready(&mut self, id: &InstanceId, key: &ServiceKey, process: u32) {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(id) else { return };
        let Some(service) = agent.services.get_mut(key).filter(|s| s.process == process && s.state == ServiceState::Starting) else {
            return;
        };
        service.state = ServiceState::Ready;
        let (node, link, epoch) = (agent.node.clone(), agent.link, self.epoch);
        // Without a link the next complete report tells it.
        if let Some(session) = link.filter(|_| agent.is_well(now)) {
            let services = self.agents[id].reports(now);
            self.hear(3, epoch, Input::Reported { session, node, complete: false, services });
        } else if link.is_some() {
            // The report waits in the agent until it is well, then goes out.
            let (key, process) = (key.clone(), process);
            if let Some(service) = self.agents.get_mut(id).and_then(|a| a.services.get_mut(&key)) {
                service.state = ServiceState::Starting;
            }
            self.after(1_000, Happening::ServiceReady(id.clone(), key, process));
        }
    }

    /// Every ten seconds: what goes wrong, and what people want.
    fn trouble(&mut self) -> Result<(), Violation> {
        self.after(10_000, Happening::Trouble);
        let now = self.now;
        let faults = self.faults.clone();
        for id in self.agents.keys().cloned().collect::<Vec<_>>() {
            let (dies, freezes, cut, breaks) = (
                self.random.permille(faults.agent_dies),
                self.random.permille(faults.agent_freezes),
                self.random.permille(faults.agent_cut),
                self.random.permille(faults.machine_breaks),
            );
            let (frozen, dark) = (self.random.between(500, 30_000), self.random.between(500, 30_000));
            let is_head = self.agents[&id].node.is_head();
            let agent = self.agents.get_mut(&id).expect("listed above");
            let node = agent.node.clone();
            if agent.is_well(now) {
                agent.unwell_from = now;
            }
            if dies && faults.can_restart_agent {
                agent.dead = true;
                agent.well_since = u64::MAX;
                agent.own_fault_until = u64::MAX;
                self.note(|| format!("the agent of {node} dies"));
                self.close_link(&id, "the agent died");
            } else if freezes {
                agent.frozen_until = agent.frozen_until.max(now + frozen);
                agent.own_fault_until = agent.own_fault_until.max(now + frozen);
                agent.well_since = agent.well_since.max(now + frozen);
                self.note(|| format!("the agent of {node} freezes for {frozen} ms"));
            } else if cut && !is_head {
                agent.cut_until = agent.cut_until.max(now + dark);
                agent.well_since = agent.well_since.max(now + dark);
                agent.own_fault_until = agent.own_fault_until.max(now + dark);
                self.note(|| format!("{node} is cut off for {dark} ms"));
                if dark > 10_000 {
                    self.close_link(&id, "keep-alive timed out");
                    self.after(dark, Happening::Connect(id.clone()));
                }
            } else if breaks && !is_head {
                self.note(|| format!("the machine of {node} breaks"));
                self.close_link(&id, "the machine broke");
                self.agents.remove(&id);
                if let Some(machine) = self.provider.machines.get_mut(&id) {
                    machine.broken = true;
                    machine.instance.state = InstanceState::Stopped;
                }
            }
        }
        if self.random.permille(faults.head_pauses) && self.brain.is_some() {
            let pause = self.random.between(1_000, 60_000);
            self.paused_until = now + pause;
            self.note(|| format!("the head is paused for {pause} ms"));
        }
        if self.random.permille(faults.all_cut) {
            let dark = self.random.between(3_000, 150_000);
            self.all_cut_until = self.all_cut_until.max(now + dark);
            for agent in self.agents.values_mut().filter(|a| !a.node.is_head()) {
                agent.cut_until = agent.cut_until.max(now + dark);
                agent.well_since = agent.well_since.max(now + dark);
            }
            self.note(|| format!("the head's network is gone for {dark} ms"));
        }
        if self.random.permille(faults.people) {
            self.people_want();
        }
        Ok(())
    }

    fn people_want(&mut self) {
        self.next += 1;
        let request = Request(self.next);
        let spec = self.spec(1, false);
        let kind = &spec.workers[&default_type()];
        let workers: Vec<(NodeId, Generation)> = self
            .stored
            .nodes
            .values()
            .filter(|r| !r.id.is_head() && r.life != NodeState::Gone)
            .map(|r| (r.id.clone(), r.generation))
            .collect();
        let input = match self.random.between(0, 3) {
            0 | 1 => {
                let workers = self.random.between(u64::from(kind.min), u64::from(kind.max)) as u32;
                Some(Input::Scale { request, node_type: default_type(), workers })
            }
            2 => self.random.pick(&workers).cloned().map(|(node, generation)| {
                self.asked_to_go.insert((node.clone(), generation));
                Input::Kill { request, node }
            }),
            _ => self.random.pick(&workers).cloned().map(|(node, generation)| {
                self.asked_to_go.insert((node.clone(), generation));
                Input::Drain { request, node }
            }),
        };
        if let Some(input) = input {
            self.hear(1, self.epoch, input);
        }
    }

    /// In the end everything is as it was asked for, and nothing else exists.
    fn check_end(&mut self) -> Result<(), Violation> {
        let spec = self.spec(1, false);
        check_machines(&self.provider, &spec).map_err(|(promise, what)| self.broken(promise, what))?;
        let Some(brain) = &self.brain else { return Err(self.broken(1, "the head is not back".to_owned())) };
        let snapshot = brain.snapshot();
        let recorded: BTreeSet<InstanceId> = snapshot.nodes.iter().filter_map(|n| n.record.instance.clone()).collect();
        let orphan = self.provider.alive().find(|m| !recorded.contains(&m.instance.id)).map(|m| m.instance.id.clone());
        if let Some(id) = orphan {
            return Err(self.broken(1, format!("{id} is an orphan")));
        }
        if snapshot.phase != Phase::Ready {
            return Err(self.broken(1, format!("the cluster does not come to rest; it waits for {:?}", snapshot.waiting_for)));
        }
        for node in snapshot.nodes.iter().filter(|n| n.record.life != NodeState::Gone) {
            let told = self.stored.events.iter().any(|e| e.node.as_ref() == Some(&node.record.id));
            if !told {
                return Err(self.broken(10, format!("nothing stored tells of {}", node.record.id)));
            }
        }
        Ok(())
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(220).collect()
}
