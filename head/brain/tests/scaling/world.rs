//! A brain, a provider that answers as it is told, and agents that say what they are told.

use cloudtik_brain::{
    Action, Brain, ClusterRecord, Config, Failure, FailureKind, Input, JobRecord, Memory, NewRequest, Planned, Record, Reply, Request,
    Session,
};
use cloudtik_model::demand::{Bundle, Counted, Quantity, RequestedCapacity, ResourceRequest};
use cloudtik_model::event::{Event, What};
use cloudtik_model::node::{DialOutcome, Instance, InstanceState, NodeRecord};
use cloudtik_model::outlook::Outlook;
use cloudtik_model::reason::Reason;
use cloudtik_model::report::{Facts, FailureCause, Load, ServiceFailure, ServiceReport, ServiceState};
use cloudtik_model::spec::{Offer, Role, ServicePlacement, Spec, WorkerType};
use cloudtik_model::{
    Actor, Bytes, Epoch, InstanceId, JobId, Moment, MoneyPerHour, NodeId, NodeTypeName, Resources, ServiceKey, Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

use super::throttled;

/// A Monday morning.
pub const MONDAY: u64 = 1_795_392_000_000;

pub struct World {
    pub brain: Brain,
    pub now: u64,
    /// When the head started: its monotonic clock begins then.
    pub booted: u64,
    /// By how much the wall clock was set back.
    pub set_back: u64,
    /// Every call is held against the limits.
    pub checks: bool,
    pub wakes: (u64, u32),
    /// The provider calls every deletion one too many.
    pub refuses_deletions: bool,
    pub deletions: u32,
    pub cluster: ClusterRecord,
    pub requests: BTreeMap<String, ResourceRequest>,
    pub outlook: Outlook,
    pub plan: BTreeMap<NodeId, Vec<Planned>>,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub jobs: BTreeMap<JobId, JobRecord>,
    pub events: Vec<Event>,
    pub replies: BTreeMap<u64, Result<String, String>>,
    pub next: u64,
    /// What the provider has.
    pub machines: BTreeMap<InstanceId, Instance>,
    /// How creating fails, by type and offer.
    pub failing: BTreeMap<(String, Offer), FailureKind>,
    /// The types and offers of every call to create.
    pub calls: Vec<(u64, String, Offer)>,
    pub links: BTreeMap<NodeId, Session>,
    pub versions: BTreeMap<NodeId, u64>,
    pub load: BTreeMap<NodeId, u32>,
    pub gpu_load: BTreeMap<NodeId, u32>,
    /// Services go on while they are drained.
    pub drains_slowly: bool,
    /// Types on whose nodes the service fails again and again.
    pub never_starts: BTreeSet<NodeTypeName>,
    /// Revisions under which the service turns unhealthy a while after a node took it.
    pub sickening: BTreeMap<u64, u64>,
    /// When it does on each node, and how often it was started again for it.
    pub sick_at: BTreeMap<NodeId, (u64, u32)>,
    /// Nodes whose software is being fetched.
    pub fetching: BTreeSet<NodeId>,
    /// Revisions under which the service ends again and again on workers, and how often it did on each.
    pub bad: BTreeSet<u64>,
    pub failing_on: BTreeMap<NodeId, u32>,
    pub gauges: BTreeMap<NodeId, BTreeMap<String, Quantity>>,
    pub services: BTreeSet<NodeId>,
    pub silent: BTreeSet<NodeId>,
}

pub fn name(text: &str) -> NodeTypeName {
    NodeTypeName::new(text).expect("a valid name")
}

pub fn id(text: &str) -> NodeId {
    NodeId::new(text).expect("a valid id")
}

pub fn key() -> ServiceKey {
    "run/worker".parse().expect("a valid key")
}

pub fn kind(min: u32, max: u32, cpus: u32, price: u64) -> WorkerType {
    WorkerType {
        min,
        max,
        price: Some(MoneyPerHour(price * 1_000)),
        resources: Some(Resources { cpus, memory: Bytes(u64::from(cpus) << 32), gpus: 0 }),
        ..WorkerType::default()
    }
}

/// A worker type that does not say what it has.
pub fn detected(min: u32, max: u32, price: u64) -> WorkerType {
    WorkerType { resources: None, ..kind(min, max, 4, price) }
}

pub fn spec(types: &[(&str, WorkerType)]) -> Spec {
    Spec {
        revision: 1,
        workers: types.iter().map(|(n, k)| (name(n), k.clone())).collect(),
        max_workers: 100,
        services: vec![ServicePlacement { key: key(), role: Role::Workers, after: Vec::new(), membership: None, drain_ms: 0 }],
        ..Spec::default()
    }
}

pub fn bundles(of: &[(u32, u64, u64)]) -> RequestedCapacity {
    let counted = |(count, cpus, gpus): &(u32, u64, u64)| Counted {
        bundle: Bundle { cpus: Quantity(cpus * 1_000), gpus: Quantity(gpus * 1_000), ..Bundle::default() },
        count: *count,
    };
    RequestedCapacity::Bundles { bundles: of.iter().map(counted).collect(), gang: false, spread: false }
}

impl World {
    pub fn new(spec: Spec) -> Self {
        let cluster = ClusterRecord::default();
        let moment = Moment { mono: 0, wall: Timestamp(MONDAY) };
        let brain = Brain::restore(Config::default(), Epoch(1), Memory::default(), moment);
        let mut world = Self {
            brain,
            now: 0,
            booted: 0,
            set_back: 0,
            checks: false,
            wakes: (0, 0),
            refuses_deletions: false,
            deletions: 0,
            cluster,
            requests: BTreeMap::new(),
            outlook: Outlook::default(),
            plan: BTreeMap::new(),
            nodes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            events: Vec::new(),
            replies: BTreeMap::new(),
            next: 0,
            machines: BTreeMap::new(),
            failing: BTreeMap::new(),
            calls: Vec::new(),
            links: BTreeMap::new(),
            versions: BTreeMap::new(),
            load: BTreeMap::new(),
            gpu_load: BTreeMap::new(),
            drains_slowly: false,
            never_starts: BTreeSet::new(),
            sickening: BTreeMap::new(),
            sick_at: BTreeMap::new(),
            fetching: BTreeSet::new(),
            bad: BTreeSet::new(),
            failing_on: BTreeMap::new(),
            gauges: BTreeMap::new(),
            services: BTreeSet::new(),
            silent: BTreeSet::new(),
        };
        world.tell(Input::Started);
        world.tell(Input::Specified { actor: Actor::LOCAL, spec });
        world
    }

    pub fn moment(&self) -> Moment {
        Moment { mono: self.now - self.booted, wall: Timestamp(MONDAY + self.now - self.set_back) }
    }

    /// A new head from what was stored; agents link again.
    pub fn restart(&mut self) {
        let nodes = self.nodes.values().cloned().collect();
        let requests = self.requests.values().cloned().collect();
        let (cluster, outlook, plan) = (self.cluster.clone(), self.outlook.clone(), self.plan.clone());
        let jobs = self.jobs.values().cloned().collect();
        let memory = Memory { cluster, requests, outlook, nodes, plan, jobs };
        self.booted = self.now;
        self.brain = Brain::restore(Config::default(), Epoch(2), memory, self.moment());
        let linked: Vec<NodeId> = std::mem::take(&mut self.links).into_keys().collect();
        self.tell(Input::Started);
        for node in linked {
            self.link(&node);
        }
    }

    pub fn tell(&mut self, input: Input) {
        let step = self.brain.handle(self.moment(), input);
        for record in step.records {
            match record {
                Record::Node(node) => drop(self.nodes.insert(node.id.clone(), node)),
                Record::Cluster(cluster) => self.cluster = cluster,
                Record::ResourceRequest(ask) => drop(self.requests.insert(ask.name.clone(), ask)),
                Record::ResourceRequestGone { name } => drop(self.requests.remove(&name)),
                Record::Plan { node, holds } if holds.is_empty() => drop(self.plan.remove(&node)),
                Record::Plan { node, holds } => drop(self.plan.insert(node, holds)),
                Record::Outlook(outlook) => self.outlook = outlook,
                Record::Event(event) => self.events.push(event),
                Record::Job(job) => drop(self.jobs.insert(job.id, *job)),
                Record::JobGone { id } => drop(self.jobs.remove(&id)),
                Record::Grant(_) | Record::GrantGone { .. } => {}
            }
        }
        for action in step.actions {
            self.execute(action);
        }
    }

    pub fn execute(&mut self, action: Action) {
        match action {
            Action::Create { node, generation, node_type, offer, .. } => {
                self.calls.push((self.now, node_type.to_string(), offer.clone()));
                self.check_limits(&node_type);
                if let Some(kind) = self.failing.get(&(node_type.to_string(), offer)) {
                    let failure = Failure { message: format!("{kind:?}"), retry_after: None, kind: *kind };
                    return self.tell(Input::Created { node, generation, result: Err(failure) });
                }
                let instance = InstanceId::new(format!("i-{node}.{generation}")).expect("short");
                let machine = Instance {
                    id: instance.clone(),
                    node: node.clone(),
                    generation,
                    address: Some("10.0.0.1".to_owned()),
                    state: InstanceState::Running,
                };
                self.machines.insert(instance, machine.clone());
                self.tell(Input::Created { node: node.clone(), generation, result: Ok(machine) });
                self.link(&node);
            }
            Action::Delete { node, generation, instance } if self.refuses_deletions => {
                self.deletions += 1;
                self.tell(Input::Deleted { node, generation, instance, result: Err(throttled()) });
            }
            Action::Delete { node, generation, instance } => {
                self.machines.remove(&instance);
                self.links.remove(&node);
                self.services.remove(&node);
                self.failing_on.remove(&node);
                self.load.remove(&node);
                self.tell(Input::Deleted { node, generation, instance, result: Ok(()) });
            }
            Action::ListInstances { number } => {
                let all = self.machines.values().cloned().collect();
                self.tell(Input::Listed { number, result: Ok(all) });
            }
            Action::DialBack { node, generation, .. } => {
                let outcome = if self.silent.contains(&node) { DialOutcome::TimedOut } else { DialOutcome::Answered };
                self.tell(Input::DialedBack { node, generation, outcome });
            }
            Action::SendGoal { node, order } => {
                self.versions.insert(node.clone(), order.version);
                self.tell(Input::GoalAcknowledged { session: order.session, node: node.clone(), version: order.version, refusal: None });
                let never_starts = self.nodes.get(&node).is_some_and(|n| self.never_starts.contains(&n.node_type));
                if self.bad.contains(&order.revision) && !node.is_head() && !order.drain {
                    self.failing_on.entry(node.clone()).or_default();
                } else {
                    self.failing_on.remove(&node);
                }
                match self.sickening.get(&order.revision).filter(|_| !node.is_head() && !order.drain) {
                    Some(after) => _ = self.sick_at.entry(node.clone()).or_insert((self.now + after, 0)),
                    None => drop(self.sick_at.remove(&node)),
                }
                let fails = self.failing_on.contains_key(&node);
                if (order.drain && !self.drains_slowly) || never_starts || fails {
                    self.services.remove(&node);
                } else {
                    self.services.insert(node.clone());
                }
                self.report(&node);
            }
            Action::Reply { request, result } => {
                let said = result.map(|reply| match reply {
                    Reply::Done { answer } => answer.to_string(),
                    Reply::Admit { .. } => String::new(),
                });
                self.replies.insert(request, said.map_err(|refusal| refusal.to_string()));
            }
            _ => {}
        }
    }

    fn check_limits(&self, of: &NodeTypeName) {
        let Some(spec) = self.cluster.spec.as_ref().filter(|_| self.checks) else { return };
        let there = self.machines.values().filter(|m| self.nodes[&m.node].node_type == *of).count() as u32;
        assert!(there < spec.workers[of].max, "{there} of {of} and one more at {}", self.now);
        assert!((self.machines.len() as u32) < spec.max_workers, "{} and one more at {}", self.machines.len(), self.now);
        let cost: u64 = self.nodes.values().filter(|n| n.life.may_exist()).filter_map(|n| n.price).map(|p| p.0).sum();
        assert!(spec.budget.is_none_or(|b| cost <= b.0), "{cost} at {}", self.now);
    }

    pub fn link(&mut self, node: &NodeId) {
        self.link_with(node, 2);
    }

    /// Links a node whose machine has so many cores.
    pub fn link_with(&mut self, node: &NodeId, cpus: u32) {
        let Some(record) = self.nodes.get(node).filter(|r| !self.silent.contains(&r.id)) else { return };
        let generation = record.generation;
        self.next += 1;
        let session = Session(self.next);
        self.links.insert(node.clone(), session);
        let facts = Facts { health_port: 7071, cpus, memory: Bytes(1 << 34), ..Facts::default() };
        self.tell(Input::LinkOpened { session, node: node.clone(), generation, facts });
        self.report(node);
    }

    pub fn report(&mut self, node: &NodeId) {
        let Some(session) = self.links.get(node).copied() else { return };
        let state = match self.services.contains(node) {
            _ if self.fetching.contains(node) => ServiceState::Fetching,
            true if self.sick_at.get(node).is_some_and(|(at, _)| self.now >= *at) => ServiceState::Unhealthy,
            true => ServiceState::Ready,
            false if self.failing_on.contains_key(node) => ServiceState::Backoff,
            false => ServiceState::Stopped,
        };
        let failed = self.failing_on.get(node).copied().unwrap_or(0);
        let report = ServiceReport {
            key: key(),
            state,
            detail: if failed > 0 { "exit status 1".to_owned() } else { String::new() },
            pid: None,
            restarts: if self.nodes.get(node).is_some_and(|n| self.never_starts.contains(&n.node_type)) { 7 } else { failed },
            since: Timestamp(0),
            goal_version: self.versions.get(node).copied().unwrap_or(0),
            gauges: self.gauges.get(node).cloned().unwrap_or_default(),
            failure: self.sick_at.get(node).filter(|(_, times)| *times > 0).map(|(_, times)| ServiceFailure {
                cause: FailureCause::Unhealthy { seen: "no answer".to_owned() },
                at: Timestamp((*times).into()),
                restart_in_ms: 0,
            }),
            log: Vec::new(),
        };
        self.tell(Input::Reported { session, node: node.clone(), complete: true, services: vec![report], jobs: Vec::new() });
    }

    /// Time passes; every linked agent is heard, and says how busy it is.
    pub fn pass(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds;
        while self.now < end {
            let beat = (self.now / 1_000 + 1) * 1_000;
            self.now = (self.brain.next_wake() + self.booted).max(self.now + 1).min(beat).min(end);
            if self.now == beat {
                for (node, session) in self.links.clone() {
                    let load =
                        Some(Load { cpu: self.load.get(&node).copied().unwrap_or(0), memory: 0, gpu: self.gpu_load.get(&node).copied() });
                    self.tell(Input::heartbeat(session, node, self.moment().mono, load));
                }
                for node in self.sick_at.keys().filter(|node| self.links.contains_key(*node)).cloned().collect::<Vec<_>>() {
                    // Its agent starts it again, and it turns unhealthy again.
                    let (fell_ill, times) = self.sick_at[&node];
                    if self.now >= fell_ill + 4_000 {
                        self.sick_at.insert(node.clone(), (self.now + 2_000, times + 1));
                    }
                    self.report(&node);
                }
                for node in self.failing_on.keys().cloned().collect::<Vec<_>>() {
                    *self.failing_on.entry(node.clone()).or_default() += 1;
                    self.report(&node);
                }
            }
            if self.wakes.0 != self.now / 1_000 {
                self.wakes = (self.now / 1_000, 0);
            }
            self.wakes.1 += 1;
            assert!(!self.checks || self.wakes.1 < 100, "a busy loop at {}", self.now);
            self.tell(Input::Tick);
        }
    }

    pub fn ask(&mut self, input: impl FnOnce(Request) -> Input) -> Result<String, String> {
        self.next += 1;
        let number = self.next;
        self.tell(input(Request::new(number, Actor::LOCAL)));
        self.replies.remove(&number).expect("every question is answered")
    }

    pub fn scale(&mut self, wants: RequestedCapacity) -> Result<String, String> {
        self.ask(|request| Input::Scale {
            request,
            asked: NewRequest { name: None, wants, additive: false, until: None, reason: String::new() },
        })
    }

    pub fn workers(&mut self, count: u32) -> Result<String, String> {
        self.scale(RequestedCapacity::Workers { node_type: name("default"), count })
    }

    /// How many machines there are, by type.
    pub fn machines(&self, of: &str) -> usize {
        self.machines.values().filter(|m| self.nodes[&m.node].node_type.as_str() == of).count()
    }

    pub fn busy(&mut self, node: &str, cpu: u32) {
        self.load.insert(id(node), cpu);
    }

    /// How many events are such.
    pub fn told(&self, is: impl Fn(&What) -> bool) -> usize {
        self.events.iter().filter(|e| is(&e.what)).count()
    }

    /// How often a node was scaled in.
    pub fn scaled_in(&self, node: &str) -> usize {
        self.told(|what| matches!(what, What::ScaleIn(of) if of.node.as_str() == node))
    }

    /// Whether a node was given up because its instance was gone.
    pub fn lost_an_instance(&self) -> bool {
        let is_lost = |what: &What| matches!(what, What::InstanceLost { .. } | What::StateChanged { why: Reason::InstanceLost, .. });
        self.told(is_lost) > 0
    }
}
