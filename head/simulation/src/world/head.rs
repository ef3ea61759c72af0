//! The head: the brain's steps, each committed and then executed, with a crash possible at any point.

use cloudtik_brain::{Action, Brain, Input, Memory, Record, Reply};
use cloudtik_model::node::NodeState;
use cloudtik_model::{Actor, Epoch, MoneyPerHour};

use super::sim_event::Order;
use super::{SimEvent, World, shorten};
use crate::promises::Violation;
use crate::provider::price_of;

impl World {
    pub(super) fn start_head(&mut self) -> Result<(), Violation> {
        self.epoch = Epoch(self.epoch.0 + 1);
        let config = self.setup.config.clone();
        let memory = Memory {
            cluster: self.stored.cluster.clone(),
            requests: self.stored.requests.values().cloned().collect(),
            outlook: self.stored.outlook.clone(),
            nodes: self.stored.nodes.values().cloned().collect(),
            plan: self.stored.plan.clone(),
            jobs: self.stored.jobs.values().cloned().collect(),
        };
        self.brain = Some(Brain::restore(config, self.epoch, memory, self.moment()));
        self.paused_until = self.now;
        let epoch = self.epoch.0;
        self.note(|| format!("head starts, epoch {epoch}"));
        self.step(Input::Started)?;
        if self.stored.cluster.spec.is_none() {
            let spec = self.spec.clone();
            self.hear(5, self.epoch, Input::Specified { actor: Actor::LOCAL, spec });
        }
        for id in self.agents.keys().cloned().collect::<Vec<_>>() {
            let delay = self.random.between(10, 3_000);
            self.after(delay, SimEvent::Connect(id));
        }
        Ok(())
    }

    /// One step of the brain, with a crash at any point of it.
    pub(super) fn step(&mut self, input: Input) -> Result<(), Violation> {
        let moment = self.moment();
        let Some(brain) = &mut self.brain else { return Ok(()) };
        self.stats.steps += 1;
        let interesting = !matches!(input, Input::Heartbeats { .. } | Input::Tick | Input::Listed { result: Ok(_), .. });
        // Nobody reads the trail of a scenario, and writing it down takes longer than deciding.
        let text = (interesting && self.setup.scenario.is_none()).then(|| shorten(&format!("{input:?}")));
        let resumes = matches!(input, Input::ResumeRollout { .. });
        let step = brain.handle(moment, input);
        if let Some(text) = text {
            self.note(|| format!("→ {text}"));
        }
        let does_something = !step.records.is_empty() || !step.actions.is_empty();
        if self.crashes(does_something) {
            // Decided, and not stored: it never happened.
            self.note(|| "head crashes before its commit".to_owned());
            return Ok(());
        }
        self.check_evidence(&step.records)?;
        for record in step.records {
            match record {
                Record::Node(node) => {
                    self.check_quorum(&node)?;
                    self.check_idle(&node)?;
                    self.check_rollout(&node)?;
                    let before = self.stored.nodes.insert(node.id.clone(), node.clone());
                    self.node_changed(before.as_ref(), &node);
                    let was_condemned = before.as_ref().is_some_and(|b| {
                        b.generation == node.generation && matches!(b.life, NodeState::Terminating { .. } | NodeState::Failed { .. })
                    });
                    if !was_condemned {
                        self.check_verdict(before.as_ref(), &node)?;
                    }
                }
                Record::Cluster(cluster) => {
                    self.check_hold(&cluster, resumes)?;
                    let known = self.stored.specs.last().map(|spec| spec.revision);
                    self.stored.specs.extend(cluster.spec.clone().filter(|spec| Some(spec.revision) != known));
                    self.stored.cluster = cluster;
                }
                Record::ResourceRequest(ask) => {
                    self.script.look_again = true;
                    self.stored.requests.insert(ask.name.clone(), ask);
                }
                Record::ResourceRequestGone { name } => {
                    self.script.look_again = true;
                    self.stored.requests.remove(&name);
                }
                Record::Plan { node, holds } if holds.is_empty() => drop(self.stored.plan.remove(&node)),
                Record::Plan { node, holds } => drop(self.stored.plan.insert(node, holds)),
                Record::Outlook(outlook) => self.stored.outlook = outlook,
                Record::Job(job) => {
                    self.check_job(&job)?;
                    self.stored.jobs.insert(job.id, *job);
                }
                Record::JobGone { id } => {
                    self.check_job_gone(id)?;
                    self.stored.jobs.remove(&id);
                }
                // Access is decided about beside the brain.
                Record::Grant(_) | Record::GrantGone { .. } => {}
                Record::Event(event) => {
                    self.stats.verdicts += u64::from(event.kind == cloudtik_model::event::EventKind::Verdict);
                    let line = || format!("  {} {:?} {}", event.kind.name(), event.node, event.message());
                    self.note(line);
                    self.stored.told.note(&event);
                    self.note_job_event(&event)?;
                    self.write_down(event);
                }
            }
        }
        if self.crashes(does_something) {
            self.note(|| "head crashes after its commit".to_owned());
            return Ok(());
        }
        for action in step.actions {
            self.check_action(&action)?;
            self.execute(action);
            if self.crashes(true) {
                self.note(|| "head crashes between its actions".to_owned());
                return Ok(());
            }
        }
        if interesting {
            self.check_memory()?;
        }
        self.look_at_arrivals();
        Ok(())
    }

    /// Whether the head crashes here: by chance, or because this is the point that was chosen. `counts` says whether it is
    /// one that may be chosen: where nothing is stored or done, a crash is as one before or after.
    pub(super) fn crashes(&mut self, counts: bool) -> bool {
        if self.brain.is_none() {
            return false;
        }
        self.stats.crash_points += u64::from(counts);
        let is_chosen = counts && self.crash_at == Some(self.stats.crash_points);
        let crash = self.setup.faults.crash;
        if !is_chosen && (crash == 0 || !self.random.permille(crash)) {
            return false;
        }
        self.crash();
        true
    }

    pub(super) fn crash(&mut self) {
        self.stats.crashes += 1;
        self.brain = None;
        self.links.clear();
        for agent in self.agents.values_mut() {
            agent.link = None;
        }
        self.ask_again();
        let delay = self.random.between(20, 3_000);
        self.after(delay, SimEvent::HeadStarts);
    }

    fn execute(&mut self, action: Action) {
        let epoch = self.epoch;
        let delay = self.random.between(1, 400);
        // Some calls take about as long as the head waits for one.
        let is_slow = self.random.permille(self.setup.pace.slow_calls);
        let call = if is_slow { self.random.between(8_000, 45_000) } else { self.random.within(self.setup.pace.call) };
        if self.setup.scenario.is_none()
            && !matches!(action, Action::SendGoal { .. } | Action::DialBack { .. } | Action::ListInstances { .. } | Action::Reply { .. })
        {
            let text = shorten(&format!("{action:?}"));
            self.note(|| format!("← {text}"));
        }
        match action {
            Action::Create { node, generation, node_type, offer, .. } => {
                let now = self.stored.specs.len().saturating_sub(1);
                let price = self.stored.specs.last().map_or(MoneyPerHour(0), |spec| price_of(spec, &node_type, &offer));
                let order = Order { node, generation, node_type, offer, price, under: now };
                self.after(call, SimEvent::Create { epoch, order });
            }
            Action::Delete { node, generation, instance } => self.after(call, SimEvent::Delete { epoch, node, generation, instance }),
            Action::RestartAgent { node, generation, instance, .. } => {
                self.after(delay, SimEvent::RestartAgent { epoch, node, generation, instance });
            }
            Action::Reboot { node, generation, instance } => self.after(call, SimEvent::Reboot { epoch, node, generation, instance }),
            Action::ListInstances { number } => self.after(delay, SimEvent::List { epoch, number }),
            Action::DialBack { node, generation, .. } => self.after(delay, SimEvent::Dial { epoch, node, generation }),
            Action::SendJobs { order, .. } => self.send_jobs(delay, order),
            Action::SendGoal { node, order } => self.after(delay, SimEvent::Goal { epoch, node, order }),
            Action::CloseLink { session, .. } => {
                if let Some(id) = self.links.get(&session).cloned() {
                    self.close_link(&id, "closed by the head", 0);
                    self.after(1_000, SimEvent::Connect(id));
                }
            }
            Action::Reply { request, result } => {
                self.acknowledge(request, result.is_ok());
                self.answer(request, &result);
                self.job_acknowledged(request, &result);
                let Some(id) = self.joining.remove(&request) else { return };
                let admitted = matches!(result, Ok(Reply::Admit { .. }));
                if let Some(agent) = self.agents.get_mut(&id) {
                    agent.joined |= admitted;
                    self.after(if admitted { 20 } else { 5_000 }, SimEvent::Connect(id));
                }
            }
        }
    }
}
