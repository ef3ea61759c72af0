//! Seeded trouble: what goes wrong, and what people want meanwhile.

use cloudtik_brain::{Input, NewRequest, Request};
use cloudtik_model::demand::{Bundle, Counted, Quantity, RequestedCapacity};
use cloudtik_model::node::{InstanceState, NodeState};
use cloudtik_model::spec::WorkerType;
use cloudtik_model::{Actor, Generation, InstanceId, MoneyPerHour, NodeId, NodeTypeName, Timestamp};

use super::{SimEvent, World};
use crate::promises::Violation;
use crate::setup::default_type;

impl World {
    /// Every ten seconds: what goes wrong, and what people want.
    pub(super) fn trouble(&mut self) -> Result<(), Violation> {
        self.after(10_000, SimEvent::Trouble);
        let now = self.now;
        let faults = self.setup.faults.clone();
        for id in self.agents.keys().cloned().collect::<Vec<_>>() {
            let (dies, freezes, cut, breaks) = (
                self.random.permille(faults.agent_dies),
                self.random.permille(faults.agent_freezes),
                self.random.permille(faults.agent_cut),
                self.random.permille(faults.machine_breaks),
            );
            let (frozen, dark) = (self.random.between(500, 30_000), self.random.between(500, 30_000));
            let begins_or_ends_work = self.random.permille(100);
            let is_head = self.agents[&id].node.is_head();
            let agent = self.agents.get_mut(&id).expect("listed above");
            agent.busy ^= begins_or_ends_work;
            let node = agent.node.clone();
            if dies && faults.can_restart_agent {
                agent.dead = true;
                agent.well_since = u64::MAX;
                agent.own_fault_until = u64::MAX;
                self.note(|| format!("the agent of {node} dies"));
                self.close_link(&id, "the agent died", 0);
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
                    self.close_link(&id, "keep-alive timed out", 0);
                    self.after(dark, SimEvent::Connect(id.clone()));
                }
            } else if breaks && !is_head {
                self.break_machine(&id);
            }
        }
        if self.random.permille(faults.clock_jumps) {
            let hour = 3_600_000;
            let most = if self.random.permille(200) { 48 * hour } else { hour };
            let (by, back) = (self.random.between(1_000, most), self.random.permille(500));
            // However wrong it is, it is after 1970.
            self.clock_off = if back { -(by as i64) } else { by as i64 };
            self.note(|| format!("the head's clock is off by {by} ms{}", if back { ", behind" } else { "" }));
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

    /// Nobody holds anything or sets anything aside any more; said again, since the head may be away.
    pub(super) fn people_leave(&mut self, times: u64) {
        if times > 0 {
            self.after(20_000, SimEvent::PeopleLeave(times - 1));
        }
        self.next += 1;
        let mut inputs = vec![Input::Resume { request: Request::new(self.next, Actor::LOCAL) }];
        for record in self.stored.nodes.values().filter(|r| matches!(r.life, NodeState::Quarantined { .. })) {
            self.next += 1;
            inputs.push(Input::Release { request: Request::new(self.next, Actor::LOCAL), node: record.id.clone() });
        }
        // Members of a group that stand still all together are kept for their disks: a person gives them up.
        let stopped: Vec<InstanceId> =
            self.provider.alive().filter(|m| m.instance.state == InstanceState::Stopped).map(|m| m.instance.id.clone()).collect();
        for record in self.stored.nodes.values() {
            // One whose type is gone never takes the corrected revision: where too few members are left, a person decides.
            let fails_for_ever = self.is_bad(record.revision) && !self.spec.workers.contains_key(&record.node_type) && !record.id.is_head();
            let is_stopped = record.instance.as_ref().is_some_and(|of| stopped.contains(of));
            if (is_stopped || fails_for_ever) && !record.life.is_leaving() {
                self.asked_to_go.insert((record.id.clone(), record.generation));
                self.next += 1;
                inputs.push(Input::Kill { request: Request::new(self.next, Actor::LOCAL), node: record.id.clone() });
            }
        }
        // Policies go on turning: there is no rest as long as they stand.
        if !self.spec.policies.is_empty() {
            self.spec.policies.clear();
            self.spec.revision += 1;
            if self.stored.cluster.spec.as_ref().is_some_and(|known| known.revision >= self.tried) {
                self.spec.trials.clear();
            }
            self.spec.rolling = self.stored.cluster.spec.as_ref().is_none_or(|known| known.revision < self.rolled());
        }
        if self.is_bad(self.spec.revision) {
            self.correct();
        }
        // A head that was away did not hear the last one.
        inputs.push(Input::Specified { actor: Actor::LOCAL, spec: self.spec.clone() });
        for input in inputs {
            self.hear(1, self.epoch, input);
        }
    }

    /// Somebody changes a limit, a price or the types, in a file that would be accepted.
    fn change_description(&mut self, name: &NodeTypeName) {
        let rolled = self.rolled();
        let spec = &mut self.spec;
        spec.revision += 1;
        if self.stored.cluster.spec.as_ref().is_some_and(|known| known.revision >= self.tried) {
            spec.trials.clear();
        }
        // What restarts processes, and was not heard of yet, is part of this change.
        spec.rolling = self.stored.cluster.spec.as_ref().is_none_or(|known| known.revision < rolled);
        let is_priced = spec.workers.values().any(|kind| kind.price.is_some());
        let Some(kind) = spec.workers.get_mut(name) else { return };
        match self.random.between(0, 5) {
            0 => {
                kind.max = self.random.between(0, 8) as u32;
                kind.min = kind.min.min(kind.max);
            }
            1 => {
                kind.min = self.random.between(0, 5) as u32;
                kind.max = kind.max.max(kind.min);
            }
            2 => spec.max_workers = self.random.between(0, 10) as u32,
            3 if is_priced => spec.budget = Some(MoneyPerHour(self.random.between(0, 5_000_000))),
            4 if is_priced => {
                let price = self.random.between(100_000, 1_500_000);
                kind.price = Some(MoneyPerHour(price));
                if let Some(spot) = &mut kind.spot {
                    spot.price = Some(MoneyPerHour(price / 3));
                }
            }
            5 => {
                let large = NodeTypeName::new("large").expect("a valid name");
                if spec.workers.remove(&large).is_none() {
                    let most = self.random.between(1, 3) as u32;
                    let kind = WorkerType { min: 0, max: most, ..spec.workers[&default_type()].clone() };
                    spec.workers.insert(large, kind);
                }
            }
            _ => kind.min = 0,
        }
        let least: u32 = spec.workers.values().map(|kind| kind.min).sum();
        spec.max_workers = spec.max_workers.max(least);
        let least = spec.workers.values().filter_map(|kind| Some(kind.most_expensive()?.times(kind.min))).sum();
        spec.budget = spec.budget.map(|budget| budget.max(least));
    }

    /// The next revision is without the fault of the last.
    fn correct(&mut self) {
        self.spec.revision += 1;
        self.restart_all();
        if let Some((_, until)) = self.bad.last_mut() {
            *until = self.spec.revision;
        }
    }

    /// The newest revision restarts every process, node by node.
    fn restart_all(&mut self) {
        self.spec.rolling = true;
        self.rolls.insert(self.spec.revision);
    }

    /// Whether processes start again on a node that takes the later of two revisions.
    pub(super) fn restarts_between(&self, before: u64, revision: u64) -> bool {
        before < revision && self.rolls.range(before + 1..=revision).next().is_some()
    }

    /// The last revision that restarts processes.
    fn rolled(&self) -> u64 {
        self.rolls.last().copied().unwrap_or(0)
    }

    /// Whether services of workers fail under a revision.
    pub(super) fn is_bad(&self, revision: u64) -> bool {
        self.bad.iter().any(|(from, until)| (*from..*until).contains(&revision))
    }

    fn people_want(&mut self) {
        self.next += 1;
        let request = Request::new(self.next, Actor::LOCAL);
        let spec = self.spec.clone();
        let names: Vec<NodeTypeName> = spec.workers.keys().cloned().collect();
        let name = self.random.pick(&names).cloned().unwrap_or_else(default_type);
        let kind = &spec.workers[&name];
        let workers: Vec<(NodeId, Generation)> = self
            .stored
            .nodes
            .values()
            .filter(|r| !r.id.is_head() && r.life != NodeState::Gone)
            .map(|r| (r.id.clone(), r.generation))
            .collect();
        let input = match self.random.between(0, 18) {
            4 | 5 => {
                let room = (0..self.random.between(1, 2)).map(|_| Counted {
                    bundle: Bundle {
                        cpus: Quantity(self.random.between(1, 8) * 500),
                        gpus: Quantity(if self.random.permille(250) { 1_000 } else { 0 }),
                        ..Bundle::default()
                    },
                    count: self.random.between(1, 4) as u32,
                });
                let bundles = room.collect();
                let (gang, spread, additive) = (self.random.permille(300), self.random.permille(200), self.random.permille(500));
                let until = self.random.permille(400).then(|| Timestamp(self.moment().wall.0 + self.random.between(1_000, 300_000)));
                let asked = NewRequest {
                    name: None,
                    wants: RequestedCapacity::Bundles { bundles, gang, spread },
                    additive,
                    until,
                    reason: String::new(),
                };
                Some(Input::Scale { request, asked })
            }
            6 => {
                let names: Vec<String> = self.stored.requests.keys().cloned().collect();
                let now = self.random.permille(500);
                self.random.pick(&names).cloned().map(|name| Input::Revoke { request, name, now })
            }
            7 => Some(Input::Hold { request, reason: String::new() }),
            8 => Some(Input::Resume { request }),
            9 => {
                let quarantined = |n: &&(NodeId, Generation)| matches!(self.stored.nodes[&n.0].life, NodeState::Quarantined { .. });
                match workers.iter().find(quarantined) {
                    Some((node, _)) => Some(Input::Release { request, node: node.clone() }),
                    None => self.random.pick(&workers).cloned().map(|(node, _)| Input::Quarantine { request, node, reason: String::new() }),
                }
            }
            11..=14 => {
                self.change_description(&name);
                Some(Input::Specified { actor: Actor::LOCAL, spec: self.spec.clone() })
            }
            10 => {
                // Something that every process is made from: they all start again, node by node.
                self.spec.revision += 1;
                self.restart_all();
                Some(Input::Specified { actor: Actor::LOCAL, spec: self.spec.clone() })
            }
            // The same, with a fault, or without it again.
            15 | 16 => {
                if self.is_bad(self.spec.revision) {
                    self.correct();
                } else {
                    self.spec.revision += 1;
                    self.restart_all();
                    self.bad.push((self.spec.revision, u64::MAX));
                }
                Some(Input::Specified { actor: Actor::LOCAL, spec: self.spec.clone() })
            }
            // A check changes, or a service comes: nothing restarts. With a fault, or without it again.
            18 => {
                if self.is_bad(self.spec.revision) {
                    self.correct();
                } else {
                    self.spec.revision += 1;
                    let trial = self.random.between(1_000, 30_000);
                    self.spec.trials = self.spec.workers.keys().map(|name| (name.clone(), trial)).collect();
                    self.spec.rolling = self.stored.cluster.spec.as_ref().is_none_or(|known| known.revision < self.rolled());
                    self.tried = self.spec.revision;
                    if self.random.permille(500) {
                        self.bad.push((self.spec.revision, u64::MAX));
                    }
                }
                Some(Input::Specified { actor: Actor::LOCAL, spec: self.spec.clone() })
            }
            17 => Some(Input::ResumeRollout { request }),
            0 | 1 => {
                let workers = self.random.between(u64::from(kind.min), u64::from(kind.max)) as u32;
                let wants = RequestedCapacity::Workers { node_type: name, count: workers };
                Some(Input::Scale { request, asked: NewRequest { name: None, wants, additive: false, until: None, reason: String::new() } })
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
            if let Input::Scale { request, asked } = &input {
                self.asked_for.insert(request.number, asked.wants.clone());
            }
            self.hear(1, self.epoch, input);
        }
    }

    /// What was acknowledged to somebody is stored.
    pub(super) fn acknowledge(&mut self, request: u64, is_granted: bool) {
        let Some(wants) = self.asked_for.remove(&request).filter(|_| is_granted) else { return };
        if !self.stored.requests.values().any(|ask| ask.wants == wants) {
            self.unkept = Some(format!("{wants} was acknowledged and is not stored"));
        }
    }
}
