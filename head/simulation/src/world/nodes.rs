//! The nodes: how machines are made, boot and end, agents come to a link, beat, take goals and start services.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_brain::{GoalOrder, Input, Request, Session};
use cloudtik_model::node::Instance;
use cloudtik_model::report::ServiceState;
use cloudtik_model::{Actor, Bytes, Epoch, InstanceId, NodeId, NodeTypeName, Resources, ServiceKey};

use super::sim_event::Order;
use super::{SimEvent, World};
use crate::agent::Agent;
use crate::promises::Violation;
use crate::provider::{Wanted, instance_id};

impl World {
    pub(super) fn boot(&mut self, id: &InstanceId) {
        let Some(machine) = self.provider.get(id).filter(|machine| !machine.broken) else { return };
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
            heard: self.agents.get(id).map_or(self.now, |rebooted| rebooted.heard),
            epoch: Epoch(0),
            version: 0,
            revision: 0,
            load: None,
            busy: self.setup.scenario.is_none() && !self.peaceful && self.random.permille(300),
            heard_busy: false,
            signals: BTreeMap::new(),
            services: BTreeMap::new(),
        };
        self.agents.insert(id.clone(), agent);
        self.after(10, SimEvent::Connect(id.clone()));
    }

    /// The agent's way to a link: join if it has no certificate, then connect. It keeps trying.
    pub(super) fn connect(&mut self, id: &InstanceId) {
        let now = self.now;
        let Some(agent) = self.agents.get(id) else { return };
        if agent.link.is_some() || agent.dead {
            return;
        }
        if self.brain.is_none() || self.paused_until > now || !agent.is_well(now) {
            let delay = self.random.between(500, 3_000);
            return self.after(delay, SimEvent::Connect(id.clone()));
        }
        self.next += 1;
        let number = self.next;
        let (node, generation) = (agent.node.clone(), agent.generation);
        if !agent.joined {
            let request = Request::new(number, Actor::Agent { node: node.clone() });
            let key = agent.key.clone();
            self.joining.insert(number, id.clone());
            let address = "10.0.0.1".to_owned();
            self.hear(5, self.epoch, Input::JoinAsked { request, node, generation, key, token: true, address });
            // If the answer is lost with the head, it asks again.
            return self.after(10_000, SimEvent::JoinLost(id.clone(), number));
        }
        let session = Session(number);
        let (facts, services) = (agent.facts(self.resources_of(&agent.node_type)), agent.reports(now));
        let epoch = self.epoch;
        if let Some(agent) = self.agents.get_mut(id) {
            agent.link = Some(session);
            agent.load = None;
        }
        self.links.insert(session, id.clone());
        self.hear(3, epoch, Input::LinkOpened { session, node: node.clone(), generation, facts });
        let jobs = if node.is_head() { self.jobs.on_node.reports() } else { Vec::new() };
        self.hear(4, epoch, Input::Reported { session, node, complete: true, services, jobs });
        self.after(self.setup.config.heartbeat, SimEvent::Beat(id.clone(), session));
    }

    /// Nothing was heard of a question to join: it is asked again.
    pub(super) fn join_again(&mut self, id: &InstanceId, request: u64) {
        if self.joining.remove(&request).is_some() {
            self.connect(id);
        }
    }

    /// The link of an agent ends; the head learns of it after a while.
    pub(super) fn close_link(&mut self, id: &InstanceId, cause: &str, delay: u64) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        let Some(session) = agent.link.take() else { return };
        let (node, epoch) = (agent.node.clone(), self.epoch);
        self.links.remove(&session);
        self.hear(2 + delay, epoch, Input::LinkClosed { session, node, cause: cause.to_owned() });
    }

    pub(super) fn beat(&mut self, id: &InstanceId, session: Session) {
        let now = self.now;
        if self.agents.get(id).is_none_or(|agent| agent.link != Some(session)) {
            return;
        }
        let load = self.load_of(id);
        let Some(agent) = self.agents.get_mut(id) else { return };
        let (node, epoch) = (agent.node.clone(), self.epoch);
        if agent.is_well(now) {
            // Only what changed is said.
            let load = load.filter(|load| agent.load != Some(*load));
            agent.load = load.or(agent.load);
            let delay = self.random.between(1, 60);
            self.hear(delay, epoch, Input::heartbeat(session, node, 0, load));
        }
        self.after(self.setup.config.heartbeat, SimEvent::Beat(id.clone(), session));
    }

    /// Makes a machine, if there is none yet.
    pub(super) fn make_machine(&mut self, order: &Order) -> Result<Instance, Violation> {
        let Order { node, generation, node_type, offer, price, under } = order;
        let is_new = !self.provider.knows(&instance_id(node, *generation));
        let wanted = Wanted { node, generation: *generation, node_type, price: *price };
        let instance = self.provider.create(self.now, wanted, self.setup.faults.visibility, &mut self.random);
        if is_new {
            let boots = self.random.within(self.setup.pace.boot);
            self.after(boots, SimEvent::Boot(instance.id.clone()));
            self.accounts.made(node_type);
            self.let_it_fail(&instance.id, offer.market);
            // What was allowed at any time since the call is allowed.
            let since = self.stored.specs.get(*under..).unwrap_or_default();
            self.provider.check(node, node_type, since).map_err(|(promise, what)| self.broken(promise, what))?;
        }
        Ok(instance)
    }

    /// A machine is deleted, or taken away.
    pub(super) fn end_machine(&mut self, id: &InstanceId) {
        if let Some(machine) = self.provider.delete(self.now, id) {
            self.accounts.ended(&machine, self.now);
        }
        if let Some(session) = self.agents.remove(id).and_then(|agent| agent.link) {
            self.links.remove(&session);
        }
    }

    pub(super) fn break_machine(&mut self, id: &InstanceId) {
        if !self.provider.break_down(id) {
            return;
        }
        self.note(|| format!("the machine {id} breaks"));
        self.close_link(id, "the machine broke", self.setup.pace.silence);
        self.agents.remove(id);
    }

    /// What a node of a type has.
    fn resources_of(&self, node_type: &NodeTypeName) -> Resources {
        let usual = Resources { cpus: 2, memory: Bytes(2 << 30), gpus: 0 };
        self.spec.workers.get(node_type).and_then(|kind| kind.resources).unwrap_or(usual)
    }

    pub(super) fn take_goal(&mut self, epoch: Epoch, node: &NodeId, order: GoalOrder) -> Result<(), Violation> {
        let now = self.now;
        let id = self.links.get(&order.session);
        let restarts = id.and_then(|id| self.agents.get(id)).is_some_and(|agent| self.restarts_between(agent.revision, order.revision));
        let Some(agent) = id.and_then(|id| self.agents.get_mut(id)).filter(|agent| agent.node == *node) else {
            return self.take_stale_goal(epoch, node, order.version, &order.start);
        };
        if !agent.is_well(now) {
            // It waits in the stream until the agent reads again, or the stream ends.
            self.after(500, SimEvent::Goal { epoch, node: node.clone(), order });
            return Ok(());
        }
        if epoch < agent.epoch {
            let (seen, node) = (agent.epoch.0, agent.node.clone());
            return Err(self.broken(7, format!("the head of epoch {} speaks to {node}, which has seen epoch {seen}", epoch.0)));
        }
        let GoalOrder { session, version, ref start, drain, revision } = order;
        let placed: BTreeSet<ServiceKey> =
            if drain { BTreeSet::new() } else { self.spec.services_on(&agent.node_type).map(|p| p.key.clone()).collect() };
        // Processes start again if a description since the one before says so.
        if version >= agent.version {
            agent.revision = revision;
            if restarts {
                agent.services.values_mut().for_each(|service| service.state = ServiceState::Stopped);
            }
        }
        let Some(starting) = agent.take_goal(epoch, version, &placed, start, &mut self.next_process) else { return Ok(()) };
        let (id, services) = (agent.instance.clone(), agent.reports(now));
        let processes: Vec<(ServiceKey, u32)> = starting.into_iter().map(|k| (k.clone(), agent.services[&k].process)).collect();
        self.hear(2, epoch, Input::GoalAcknowledged { session, node: node.clone(), version, refusal: None });
        self.hear(3, epoch, Input::Reported { session, node: node.clone(), complete: false, services, jobs: Vec::new() });
        for (service, process) in processes {
            let delay = self.random.within(self.setup.pace.service);
            self.after(delay, SimEvent::ServiceReady(id.clone(), service, process));
        }
        // Its trial is as long as it takes until that shows.
        let trial = self.stored.cluster.spec.as_ref().and_then(|spec| spec.trials.values().min().copied()).unwrap_or(0);
        if self.is_bad(revision) && !node.is_head() && trial > 0 {
            let runs: Vec<(ServiceKey, u32)> = self.agents[&id]
                .services
                .iter()
                .filter(|(_, service)| service.state == ServiceState::Ready)
                .map(|(key, service)| (key.clone(), service.process))
                .collect();
            for (key, process) in runs {
                let delay = self.random.between(1, trial * 3 / 4);
                self.after(delay, SimEvent::ServiceFails(id.clone(), key, process));
            }
        }
        Ok(())
    }

    pub(super) fn service_fails(&mut self, id: &InstanceId, key: &ServiceKey, process: u32) {
        let is_bad = self.agents.get(id).is_some_and(|agent| self.is_bad(agent.revision));
        let Some(agent) = self.agents.get_mut(id).filter(|_| is_bad) else { return };
        let Some(service) = agent.services.get_mut(key).filter(|s| s.process == process && s.state == ServiceState::Ready) else { return };
        service.state = ServiceState::Starting;
        self.service_ready(id, key, process);
    }

    /// What an earlier leadership had sent reaches the node late, over whatever way: it must change nothing.
    fn take_stale_goal(&mut self, epoch: Epoch, node: &NodeId, version: u64, start: &BTreeSet<ServiceKey>) -> Result<(), Violation> {
        let Some(agent) = self.agents.values_mut().find(|a| a.node == *node && epoch < a.epoch) else { return Ok(()) };
        if agent.take_goal(epoch, version, &BTreeSet::new(), start, &mut self.next_process).is_some() {
            return Err(self.broken(7, format!("{node} took a goal of epoch {} after a later one", epoch.0)));
        }
        Ok(())
    }

    pub(super) fn service_ready(&mut self, id: &InstanceId, key: &ServiceKey, process: u32) {
        let now = self.now;
        let Some(agent) = self.agents.get(id) else { return };
        let is_bad = !agent.node.is_head() && self.is_bad(agent.revision);
        let Some(agent) = self.agents.get_mut(id) else { return };
        let is_starting = |state: ServiceState| matches!(state, ServiceState::Starting | ServiceState::Backoff);
        let Some(service) = agent.services.get_mut(key).filter(|s| s.process == process && is_starting(s.state)) else {
            return;
        };
        service.state = if is_bad { ServiceState::Backoff } else { ServiceState::Ready };
        if is_bad {
            // It is started again, with no better luck.
            service.restarts += 1;
            let delay = self.random.within(self.setup.pace.service);
            self.after(delay, SimEvent::ServiceReady(id.clone(), key.clone(), process));
        }
        self.tell_signals();
        let Some(agent) = self.agents.get(id) else { return };
        let (node, link, epoch) = (agent.node.clone(), agent.link, self.epoch);
        // Without a link the next complete report tells it.
        if let Some(session) = link.filter(|_| agent.is_well(now)) {
            let services = self.agents[id].reports(now);
            self.hear(3, epoch, Input::Reported { session, node, complete: false, services, jobs: Vec::new() });
        } else if link.is_some() && !is_bad {
            // The report waits in the agent until it is well, then goes out.
            let (key, process) = (key.clone(), process);
            if let Some(service) = self.agents.get_mut(id).and_then(|a| a.services.get_mut(&key)) {
                service.state = ServiceState::Starting;
            }
            self.after(1_000, SimEvent::ServiceReady(id.clone(), key, process));
        }
    }
}
