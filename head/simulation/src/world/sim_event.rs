//! What can happen, and its effect on the provider's machines and on the head.

use cloudtik_brain::{Failure, FailureKind, GoalOrder, Input, JobsOrder, Session};
use cloudtik_model::job::JobSpec;
use cloudtik_model::node::DialOutcome;
use cloudtik_model::report::Load;
use cloudtik_model::spec::Offer;
use cloudtik_model::{Epoch, Generation, InstanceId, JobId, MoneyPerHour, NodeId, NodeTypeName, ServiceKey};

use super::World;
use super::script::Scripted;
use crate::agent::Agent;
use crate::promises::Violation;
use crate::provider::{failure, instance_id};

/// A machine that a head asked for.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub node: NodeId,
    pub generation: Generation,
    pub node_type: NodeTypeName,
    pub offer: Offer,
    /// What it cost when the call was made.
    pub price: MoneyPerHour,
    /// Which description held then, of all that were accepted.
    pub under: usize,
}

#[derive(Debug, Clone)]
pub(super) enum SimEvent {
    /// Something for the brain, in the life of one head.
    Hear(Epoch, Box<Input>),
    HeadStarts,
    /// The effect of a call, and what is answered.
    Create {
        epoch: Epoch,
        order: Order,
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
    Reboot {
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
    JoinLost(InstanceId, u64),
    Beat(InstanceId, Session),
    ServiceReady(InstanceId, ServiceKey, u32),
    /// A service that runs fails by what a revision changed about it.
    ServiceFails(InstanceId, ServiceKey, u32),
    /// A document of jobs arrives at the head's node.
    Jobs {
        epoch: Epoch,
        order: JobsOrder,
    },
    JobBegins {
        instance: InstanceId,
        id: JobId,
        attempt: u32,
        nonce: u64,
    },
    JobEnds {
        instance: InstanceId,
        id: JobId,
        nonce: u64,
    },
    ReportJob(InstanceId, JobId),
    Submit {
        spec: Box<JobSpec>,
        needs: Option<ServiceKey>,
        until_answered: bool,
    },
    JobsSubmitted,
    Trouble,
    PeopleLeave(u64),
    /// Something of the scenario.
    Scripted(Scripted),
}

impl World {
    pub(super) fn happen(&mut self, sim_event: SimEvent) -> Result<(), Violation> {
        match sim_event {
            SimEvent::Hear(epoch, input) => return self.reach_head(epoch, input),
            SimEvent::HeadStarts => return self.start_head(),
            SimEvent::Create { epoch, order } => return self.create(epoch, &order),
            SimEvent::Trouble => return self.trouble(),
            SimEvent::Jobs { epoch, order } => return self.take_jobs(epoch, order),
            SimEvent::JobBegins { instance, id, attempt, nonce } => return self.job_begins(&instance, id, attempt, nonce),
            SimEvent::JobEnds { instance, id, nonce } => self.job_ends(&instance, id, nonce),
            SimEvent::ReportJob(instance, id) => self.report_job(&instance, id),
            SimEvent::Submit { spec, needs, until_answered } => self.send_submission(spec, needs, until_answered),
            SimEvent::JobsSubmitted => self.submit_jobs(),
            SimEvent::PeopleLeave(times) => self.people_leave(times),
            SimEvent::Scripted(scripted) => self.play(scripted),
            SimEvent::Delete { epoch, node, generation, instance } => self.delete(epoch, node, generation, &instance),
            SimEvent::RestartAgent { epoch, node, generation, instance } => self.restart_agent(epoch, node, generation, instance),
            SimEvent::Reboot { epoch, node, generation, instance } => self.reboot(epoch, node, generation, &instance),
            SimEvent::List { epoch, number } => self.list(epoch, number),
            SimEvent::Dial { epoch, node, generation } => self.dial(epoch, node, generation),
            SimEvent::Goal { epoch, node, order } => return self.take_goal(epoch, &node, order),
            SimEvent::Boot(id) => self.boot(&id),
            SimEvent::Connect(id) => self.connect(&id),
            SimEvent::JoinLost(id, request) => self.join_again(&id, request),
            SimEvent::Beat(id, session) => self.beat(&id, session),
            SimEvent::ServiceReady(id, service, process) => self.service_ready(&id, &service, process),
            SimEvent::ServiceFails(id, service, process) => self.service_fails(&id, &service, process),
        }
        Ok(())
    }

    /// An input arrives at the head, if it is the same head and it listens.
    fn reach_head(&mut self, epoch: Epoch, mut input: Box<Input>) -> Result<(), Violation> {
        if epoch != self.epoch || self.brain.is_none() {
            return Ok(());
        }
        if self.paused_until > self.now {
            // It waits in a socket until the head is back.
            let wait = self.paused_until - self.now;
            self.after(wait, SimEvent::Hear(epoch, input));
            return Ok(());
        }
        let now = self.now;
        let mut heard = |session: Session, load: Option<Load>| {
            let Some(agent) = self.links.get(&session).and_then(|id| self.agents.get_mut(id)) else { return };
            agent.heard = now;
            if let Some(load) = load {
                agent.heard_busy = load.cpu >= 100;
            }
        };
        match &mut *input {
            Input::LinkOpened { session, .. } => heard(*session, None),
            Input::Heartbeats { received } => {
                for heartbeat in received {
                    heartbeat.at = now;
                    heard(heartbeat.session, heartbeat.load);
                }
            }
            _ => {}
        }
        self.step(*input)
    }

    fn delete(&mut self, epoch: Epoch, node: NodeId, generation: Generation, instance: &InstanceId) {
        if self.ended_with_its_head(epoch) {
            return;
        }
        if self.is_throttled() {
            let failure = Failure { kind: FailureKind::Throttled, retry_after: Some(1_500), ..failure("delete: too many calls") };
            return self.hear(1, epoch, Input::Deleted { node, generation, instance: instance.clone(), result: Err(failure) });
        }
        if self.call_fails() {
            let result = Err(failure("delete: try later"));
            return self.hear(1, epoch, Input::Deleted { node, generation, instance: instance.clone(), result });
        }
        self.end_machine(instance);
        if self.crashes(true) {
            self.note(|| "head crashes before its call is answered".to_owned());
        }
        let result = if self.call_fails_after() { Err(failure("delete: the answer was lost")) } else { Ok(()) };
        let delay = self.random.within(self.setup.pace.answer);
        self.hear(delay, epoch, Input::Deleted { node, generation, instance: instance.clone(), result });
    }

    fn restart_agent(&mut self, epoch: Epoch, node: NodeId, generation: Generation, instance: InstanceId) {
        let now = self.now;
        let mut result = Err(failure("restart: no such machine"));
        if let Some(agent) = self.agents.get_mut(&instance) {
            (agent.dead, agent.frozen_until) = (false, agent.frozen_until.min(now));
            agent.well_since = now.max(agent.cut_until);
            agent.own_fault_until = agent.own_fault_until.min(now.max(agent.cut_until));
            result = Ok(());
            self.close_link(&instance, "restarted", 0);
            self.after(50, SimEvent::Connect(instance));
        }
        self.hear(20, epoch, Input::AgentRestarted { node, generation, result });
    }

    /// Everything on the machine ends; what it runs is started again once its agent is back.
    fn reboot(&mut self, epoch: Epoch, node: NodeId, generation: Generation, instance: &InstanceId) {
        if self.ended_with_its_head(epoch) {
            return;
        }
        if self.call_fails() || self.provider.get(instance).is_none_or(|machine| machine.broken) {
            return self.hear(20, epoch, Input::Rebooted { node, generation, result: Err(failure("reboot: not possible")) });
        }
        self.stats.reboots += 1;
        self.note(|| format!("the machine {instance} is rebooted"));
        self.close_link(instance, "rebooted", 0);
        // It is down until it boots; when it was heard last remains.
        if let Some(agent) = self.agents.get_mut(instance) {
            agent.dead = true;
        }
        let boots = self.random.within(self.setup.pace.boot);
        self.after(boots, SimEvent::Boot(instance.clone()));
        self.hear(20, epoch, Input::Rebooted { node, generation, result: Ok(()) });
    }

    fn list(&mut self, epoch: Epoch, number: u64) {
        let result = if self.call_fails() { Err(failure("list: try later")) } else { Ok(self.listed()) };
        // Some answers are as old as the provider may be behind.
        let lags = self.setup.faults.call_fails > 0 && self.setup.faults.visibility > 0 && self.random.permille(100);
        let delay = if lags { self.random.between(1, 55_000) } else { self.random.between(1, 1_500) };
        self.hear(delay, epoch, Input::Listed { number, result });
    }

    /// The list, of which pages may overlap.
    fn listed(&mut self) -> Vec<cloudtik_model::node::Instance> {
        let mut all = self.provider.list(self.now);
        if self.setup.faults.call_fails > 0 && !all.is_empty() && self.random.permille(300) {
            let at = self.random.between(0, all.len() as u64 - 1) as usize;
            all.push(all[at].clone());
        }
        all
    }

    fn dial(&mut self, epoch: Epoch, node: NodeId, generation: Generation) {
        let id = instance_id(&node, generation);
        let agent = self.agents.get(&id).filter(|agent| agent.cut_until <= self.now);
        let runs = |agent: &&Agent| self.provider.get(&agent.instance).is_some_and(|machine| !machine.broken);
        let (outcome, delay) = match agent.filter(runs) {
            Some(agent) if agent.dead => (DialOutcome::Refused, 2),
            Some(agent) if agent.frozen_until <= self.now => (DialOutcome::Answered, 2),
            _ => (DialOutcome::TimedOut, 800),
        };
        self.hear(delay, epoch, Input::DialedBack { node, generation, outcome });
    }

    fn call_fails(&mut self) -> bool {
        let chance = self.setup.faults.call_fails;
        let fails = self.random.permille(chance);
        self.accounts.mishaps.calls_failed += u64::from(fails);
        fails
    }

    fn call_fails_after(&mut self) -> bool {
        let chance = self.setup.faults.call_fails_after;
        let fails = self.random.permille(chance);
        self.accounts.mishaps.calls_failed += u64::from(fails);
        fails
    }

    /// Whether the provider refuses a call because there are too many.
    fn is_throttled(&mut self) -> bool {
        let most = self.setup.scenario.as_ref().and_then(|scenario| scenario.provider.calls_per_second);
        let chance = self.setup.faults.throttled;
        let is_throttled = self.random.permille(chance) || !self.provider.may_call(self.now, most);
        self.accounts.mishaps.calls_throttled += u64::from(is_throttled);
        is_throttled
    }

    /// Whether the provider has none of what is asked for.
    fn is_short(&mut self, node_type: &NodeTypeName, offer: &Offer) -> bool {
        let chance = self.setup.faults.stock_out;
        let is_short = self.random.permille(chance) || self.is_short_by_script(node_type, offer);
        self.accounts.mishaps.calls_without_stock += u64::from(is_short);
        is_short
    }

    /// A head whose calls end with it has nothing under way any more once it is gone.
    fn ended_with_its_head(&self, epoch: Epoch) -> bool {
        self.setup.faults.visibility == 0 && (epoch != self.epoch || self.brain.is_none())
    }

    fn create(&mut self, epoch: Epoch, order: &Order) -> Result<(), Violation> {
        let Order { node, generation, node_type, offer, .. } = order.clone();
        if self.ended_with_its_head(epoch) {
            return Ok(());
        }
        let is_new = !self.provider.knows(&instance_id(&node, generation));
        let refusal = if self.is_throttled() {
            Some((FailureKind::Throttled, "create: too many calls"))
        } else if is_new && self.is_short(&node_type, &offer) {
            // The provider's word that nothing was made is true, also of earlier calls with the same key.
            Some((FailureKind::StockOut, "create: no capacity just now"))
        } else if self.call_fails() {
            Some((FailureKind::Transient, "create: try later"))
        } else {
            None
        };
        if let Some((kind, message)) = refusal {
            let failure = Failure { kind, ..failure(message) };
            self.hear(1, epoch, Input::Created { node, generation, result: Err(failure) });
            return Ok(());
        }
        if self.crashes(true) {
            self.note(|| "head crashes before its call has an effect".to_owned());
        }
        if self.ended_with_its_head(epoch) {
            return Ok(());
        }
        let instance = self.make_machine(order)?;
        if self.crashes(true) {
            self.note(|| "head crashes before its call is answered".to_owned());
        }
        let result = if self.call_fails_after() { Err(failure("create: the answer was lost")) } else { Ok(instance) };
        let delay = self.random.within(self.setup.pace.answer);
        self.hear(delay, epoch, Input::Created { node, generation, result });
        Ok(())
    }
}
