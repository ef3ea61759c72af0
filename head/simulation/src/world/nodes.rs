//! The nodes: how machines boot, agents come to a link, beat, take goals and start services.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_brain::{GoalOrder, Input, Request, Session};
use cloudtik_model::report::ServiceState;
use cloudtik_model::{Epoch, InstanceId, NodeId, ServiceKey};

use super::{Happening, World};
use crate::agent::Agent;
use crate::promises::Violation;

const HEARTBEAT: u64 = 1_000;

impl World {
    pub(super) fn boot(&mut self, id: &InstanceId) {
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
            heard: self.now,
            epoch: Epoch(0),
            version: 0,
            services: BTreeMap::new(),
        };
        self.agents.insert(id.clone(), agent);
        self.after(10, Happening::Connect(id.clone()));
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

    pub(super) fn close_link(&mut self, id: &InstanceId, cause: &str) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        let Some(session) = agent.link.take() else { return };
        let (node, epoch) = (agent.node.clone(), self.epoch);
        self.hear(2, epoch, Input::LinkClosed { session, node, cause: cause.to_owned() });
    }

    pub(super) fn beat(&mut self, id: &InstanceId, session: Session) {
        let now = self.now;
        let Some(agent) = self.agents.get(id).filter(|a| a.link == Some(session)) else { return };
        let (node, epoch) = (agent.node.clone(), self.epoch);
        if agent.is_well(now) {
            let delay = self.random.between(1, 60);
            self.hear(delay, epoch, Input::Heartbeat { session, node, load: None });
        }
        self.after(HEARTBEAT, Happening::Beat(id.clone(), session));
    }

    pub(super) fn take_goal(&mut self, epoch: Epoch, node: &NodeId, order: GoalOrder) -> Result<(), Violation> {
        let now = self.now;
        let spec = self.spec(order.revision, false);
        let Some(agent) = self.agents.values_mut().find(|a| a.node == *node && a.link == Some(order.session)) else {
            return self.take_stale_goal(epoch, node, order.version, &order.start);
        };
        if !agent.is_well(now) {
            // It waits in the stream until the agent reads again, or the stream ends.
            self.after(500, Happening::Goal { epoch, node: node.clone(), order });
            return Ok(());
        }
        if epoch < agent.epoch {
            let (seen, node) = (agent.epoch.0, agent.node.clone());
            return Err(self.broken(7, format!("the head of epoch {} speaks to {node}, which has seen epoch {seen}", epoch.0)));
        }
        let GoalOrder { session, version, ref start, drain, .. } = order;
        let placed: BTreeSet<ServiceKey> =
            if drain { BTreeSet::new() } else { spec.services_on(&agent.node_type).map(|p| p.key.clone()).collect() };
        let Some(starting) = agent.take_goal(epoch, version, &placed, start, &mut self.next_process) else { return Ok(()) };
        let (id, services) = (agent.instance.clone(), agent.reports(now));
        let processes: Vec<(ServiceKey, u32)> = starting.into_iter().map(|k| (k.clone(), agent.services[&k].process)).collect();
        self.hear(2, epoch, Input::GoalAcknowledged { session, node: node.clone(), version, refusal: None });
        self.hear(3, epoch, Input::Reported { session, node: node.clone(), complete: false, services });
        for (service, process) in processes {
            let delay = self.random.between(100, 9_000);
            self.after(delay, Happening::ServiceReady(id.clone(), service, process));
        }
        Ok(())
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
}
