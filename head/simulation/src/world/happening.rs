//! What can happen, and its effect on the provider's machines and on the head.

use cloudtik_brain::{Failure, FailureKind, GoalOrder, Input, Session};
use cloudtik_model::node::DialOutcome;
use cloudtik_model::{Epoch, Generation, InstanceId, NodeId, NodeTypeName, ServiceKey};

use super::World;
use crate::agent::Agent;
use crate::promises::{Violation, check_machines};
use crate::provider::{failure, instance_id};

#[derive(Debug, Clone)]
pub(super) enum Happening {
    /// Something for the brain, in the life of one head.
    Hear(Epoch, Box<Input>),
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
        number: u64,
    },
    Dial {
        epoch: Epoch,
        node: NodeId,
        generation: Generation,
    },
    Goal {
        epoch: Epoch,
        node: NodeId,
        order: GoalOrder,
    },
    Boot(InstanceId),
    /// The agent tries to join or to open its link.
    Connect(InstanceId),
    Beat(InstanceId, Session),
    ServiceReady(InstanceId, ServiceKey, u32),
    Trouble,
    PeopleLeave(u64),
}

impl World {
    pub(super) fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Hear(epoch, input) => return self.reach_head(epoch, input),
            Happening::HeadStarts => return self.start_head(),
            Happening::Create { epoch, node, generation, node_type } => return self.create(epoch, node, generation, &node_type),
            Happening::Trouble => return self.trouble(),
            Happening::PeopleLeave(times) => self.people_leave(times),
            Happening::Delete { epoch, node, generation, instance } => self.delete(epoch, node, generation, &instance),
            Happening::RestartAgent { epoch, node, generation, instance } => self.restart_agent(epoch, node, generation, instance),
            Happening::List { epoch, number } => self.list(epoch, number),
            Happening::Dial { epoch, node, generation } => self.dial(epoch, node, generation),
            Happening::Goal { epoch, node, order } => return self.take_goal(epoch, &node, order),
            Happening::Boot(id) => self.boot(&id),
            Happening::Connect(id) => self.connect(&id),
            Happening::Beat(id, session) => self.beat(&id, session),
            Happening::ServiceReady(id, service, process) => self.service_ready(&id, &service, process),
        }
        Ok(())
    }

    /// An input arrives at the head, if it is the same head and it listens.
    fn reach_head(&mut self, epoch: Epoch, input: Box<Input>) -> Result<(), Violation> {
        if epoch != self.epoch || self.brain.is_none() {
            return Ok(());
        }
        if self.paused_until > self.now {
            // It waits in a socket until the head is back.
            let wait = self.paused_until - self.now;
            self.after(wait, Happening::Hear(epoch, input));
            return Ok(());
        }
        if let Input::Heartbeat { session, .. } | Input::LinkOpened { session, .. } = *input {
            let now = self.now;
            self.agents.values_mut().filter(|a| a.link == Some(session)).for_each(|a| a.heard = now);
        }
        self.step(*input)
    }

    fn delete(&mut self, epoch: Epoch, node: NodeId, generation: Generation, instance: &InstanceId) {
        if self.ended_with_its_head(epoch) {
            return;
        }
        if self.random.permille(self.faults.throttled) {
            let failure = Failure { kind: FailureKind::Throttled, retry_after: Some(1_500), ..failure("delete: too many calls") };
            return self.hear(1, epoch, Input::Deleted { node, generation, result: Err(failure) });
        }
        if self.call_fails() {
            return self.hear(1, epoch, Input::Deleted { node, generation, result: Err(failure("delete: try later")) });
        }
        self.provider.delete(self.now, instance);
        self.agents.remove(instance);
        if self.crashes(true) {
            self.note(|| "head crashes before its call is answered".to_owned());
        }
        let result = if self.call_fails_after() { Err(failure("delete: the answer was lost")) } else { Ok(()) };
        let delay = self.random.between(1, 2_000);
        self.hear(delay, epoch, Input::Deleted { node, generation, result });
    }

    fn restart_agent(&mut self, epoch: Epoch, node: NodeId, generation: Generation, instance: InstanceId) {
        let now = self.now;
        let mut result = Err(failure("restart: no such machine"));
        if let Some(agent) = self.agents.get_mut(&instance) {
            (agent.dead, agent.frozen_until) = (false, agent.frozen_until.min(now));
            agent.well_since = now.max(agent.cut_until);
            agent.own_fault_until = agent.own_fault_until.min(now.max(agent.cut_until));
            result = Ok(());
            self.close_link(&instance, "restarted");
            self.after(50, Happening::Connect(instance));
        }
        self.hear(20, epoch, Input::AgentRestarted { node, generation, result });
    }

    fn list(&mut self, epoch: Epoch, number: u64) {
        let result = if self.call_fails() { Err(failure("list: try later")) } else { Ok(self.listed()) };
        let delay = self.random.between(1, 1_500);
        self.hear(delay, epoch, Input::Listed { number, result });
    }

    /// The list, of which pages may overlap.
    fn listed(&mut self) -> Vec<cloudtik_model::node::Instance> {
        let mut all = self.provider.list(self.now);
        if self.faults.call_fails > 0 && !all.is_empty() && self.random.permille(300) {
            let at = self.random.between(0, all.len() as u64 - 1) as usize;
            all.push(all[at].clone());
        }
        all
    }

    fn dial(&mut self, epoch: Epoch, node: NodeId, generation: Generation) {
        let agent = self.agents.values().find(|a| a.node == node && a.generation == generation && a.cut_until <= self.now);
        let runs = |a: &&Agent| self.provider.machines.get(&a.instance).is_some_and(|m| m.deleted.is_none() && !m.broken);
        let (outcome, delay) = match agent.filter(runs) {
            Some(agent) if agent.dead => (DialOutcome::Refused, 2),
            Some(agent) if agent.frozen_until <= self.now => (DialOutcome::Answered, 2),
            _ => (DialOutcome::TimedOut, 800),
        };
        self.hear(delay, epoch, Input::DialedBack { node, generation, outcome });
    }

    fn call_fails(&mut self) -> bool {
        let chance = self.faults.call_fails;
        self.random.permille(chance)
    }

    fn call_fails_after(&mut self) -> bool {
        let chance = self.faults.call_fails_after;
        self.random.permille(chance)
    }

    /// A head whose calls end with it has nothing under way any more once it is gone.
    fn ended_with_its_head(&self, epoch: Epoch) -> bool {
        self.faults.visibility == 0 && (epoch != self.epoch || self.brain.is_none())
    }

    fn create(&mut self, epoch: Epoch, node: NodeId, generation: Generation, node_type: &NodeTypeName) -> Result<(), Violation> {
        if self.ended_with_its_head(epoch) {
            return Ok(());
        }
        let chances = [
            (self.faults.throttled, FailureKind::Throttled, "create: too many calls"),
            (self.faults.stock_out, FailureKind::StockOut, "create: no capacity just now"),
            (self.faults.call_fails, FailureKind::Transient, "create: try later"),
        ];
        for (chance, kind, message) in chances {
            // The provider's word that nothing was made is true, also of earlier calls with the same key.
            let is_possible = kind != FailureKind::StockOut || !self.provider.machines.contains_key(&instance_id(&node, generation));
            if self.random.permille(chance) && is_possible {
                let failure = Failure { kind, ..failure(message) };
                self.hear(1, epoch, Input::Created { node, generation, result: Err(failure) });
                return Ok(());
            }
        }
        if self.crashes(true) {
            self.note(|| "head crashes before its call has an effect".to_owned());
        }
        if self.ended_with_its_head(epoch) {
            return Ok(());
        }
        let is_new = !self.provider.machines.contains_key(&instance_id(&node, generation));
        let instance = self.provider.create(self.now, &node, generation, node_type, self.faults.visibility, &mut self.random);
        if is_new {
            let boots = self.random.between(500, 20_000);
            self.after(boots, Happening::Boot(instance.id.clone()));
            let spec = self.spec(1, false);
            check_machines(&self.provider, &spec).map_err(|(promise, what)| self.broken(promise, what))?;
        }
        if self.crashes(true) {
            self.note(|| "head crashes before its call is answered".to_owned());
        }
        let result = if self.call_fails_after() { Err(failure("create: the answer was lost")) } else { Ok(instance) };
        let delay = self.random.between(1, 2_000);
        self.hear(delay, epoch, Input::Created { node, generation, result });
        Ok(())
    }
}
