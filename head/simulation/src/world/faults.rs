//! What goes wrong, and what people want meanwhile.

use cloudtik_brain::{Input, Request, Wish};
use cloudtik_model::demand::{Bundle, Counted, Quantity, Wants};
use cloudtik_model::node::{InstanceState, NodeState};
use cloudtik_model::{Generation, NodeId, NodeTypeName, Timestamp};

use super::{Happening, World, default_type};
use crate::promises::Violation;
use crate::provider::VISIBILITY;
use crate::random::Random;

/// What goes wrong, in times per thousand where it is a chance.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Per step of the head.
    pub crash: u64,
    /// Per provider call.
    pub call_fails: u64,
    pub call_fails_after: u64,
    /// Per create: there is none of what was asked for.
    pub stock_out: u64,
    /// Per call: there were too many.
    pub throttled: u64,
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
    /// How long the provider's list may hide a machine, in milliseconds. 0: it never does, and a call ends with the head
    /// that made it.
    pub visibility: u64,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self {
            crash: 0,
            call_fails: 0,
            call_fails_after: 0,
            stock_out: 0,
            throttled: 0,
            agent_dies: 0,
            agent_freezes: 0,
            agent_cut: 0,
            machine_breaks: 0,
            head_pauses: 0,
            all_cut: 0,
            people: 0,
            can_restart_agent: false,
            visibility: 0,
        }
    }

    /// Seeds differ in what they are about.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        let mut some = |most: u64| if random.permille(600) { random.between(0, most) } else { 0 };
        Self {
            crash: some(8),
            call_fails: some(300),
            call_fails_after: some(300),
            stock_out: some(400),
            throttled: some(300),
            agent_dies: some(150),
            agent_freezes: some(100),
            agent_cut: some(100),
            machine_breaks: some(60),
            head_pauses: some(60),
            all_cut: some(40),
            people: some(300),
            can_restart_agent: seed.is_multiple_of(2),
            visibility: if seed % 4 == 1 { 0 } else { VISIBILITY },
        }
    }
}

impl World {
    /// Every ten seconds: what goes wrong, and what people want.
    pub(super) fn trouble(&mut self) -> Result<(), Violation> {
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

    /// Nobody holds anything or sets anything aside any more; said again, since the head may be away.
    pub(super) fn people_leave(&mut self, times: u64) {
        if times > 0 {
            self.after(20_000, Happening::PeopleLeave(times - 1));
        }
        self.next += 1;
        let mut inputs = vec![Input::Resume { request: Request(self.next) }];
        for record in self.stored.nodes.values().filter(|r| matches!(r.life, NodeState::Quarantined { .. })) {
            self.next += 1;
            inputs.push(Input::Release { request: Request(self.next), node: record.id.clone() });
        }
        for input in inputs {
            self.hear(1, self.epoch, input);
        }
    }

    fn people_want(&mut self) {
        self.next += 1;
        let request = Request(self.next);
        let spec = self.spec(1, false);
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
        let input = match self.random.between(0, 9) {
            4 | 5 => {
                let room = (0..self.random.between(1, 2)).map(|_| Counted {
                    bundle: Bundle { cpus: Quantity(self.random.between(1, 8) * 500), ..Bundle::default() },
                    count: self.random.between(1, 4) as u32,
                });
                let bundles = room.collect();
                let (gang, spread, additive) = (self.random.permille(300), self.random.permille(200), self.random.permille(500));
                let until = self.random.permille(400).then(|| Timestamp(self.moment().wall.0 + self.random.between(1_000, 300_000)));
                let wish = Wish { name: None, wants: Wants::Bundles { bundles, gang, spread }, additive, until, reason: String::new() };
                Some(Input::Scale { request, wish })
            }
            6 => {
                let names: Vec<String> = self.stored.asks.keys().cloned().collect();
                self.random.pick(&names).cloned().map(|name| Input::Revoke { request, name })
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
            0 | 1 => {
                let workers = self.random.between(u64::from(kind.min), u64::from(kind.max)) as u32;
                let wants = Wants::Workers { node_type: name, count: workers };
                Some(Input::Scale { request, wish: Wish { name: None, wants, additive: false, until: None, reason: String::new() } })
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
            if let Input::Scale { request, wish } = &input {
                self.wishes.insert(*request, wish.wants.clone());
            }
            self.hear(1, self.epoch, input);
        }
    }

    /// What was acknowledged to somebody is stored.
    pub(super) fn acknowledge(&mut self, request: Request, is_granted: bool) {
        let Some(wants) = self.wishes.remove(&request).filter(|_| is_granted) else { return };
        if !self.stored.asks.values().any(|ask| ask.wants == wants) {
            self.unkept = Some(format!("{wants} was acknowledged and is not stored"));
        }
    }
}
