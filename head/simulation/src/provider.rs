//! A provider that keeps its contract in the end: instances exist once per key, but calls are slow, fail before or after
//! their effect, and the list hides new instances for a while and shows deleted ones.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_brain::{Failure, FailureKind};
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::spec::{Offer, Spec};
use cloudtik_model::{Generation, InstanceId, MoneyPerHour, NodeId, NodeTypeName};

use crate::random::Random;

/// The longest time that the list hides a machine, in milliseconds.
pub const VISIBILITY: u64 = 60_000;
/// How long the list shows a machine that was deleted, in milliseconds.
const SHOWN: u64 = 5_000;

#[derive(Debug, Clone)]
pub struct Machine {
    pub instance: Instance,
    pub node_type: NodeTypeName,
    pub price: MoneyPerHour,
    pub created: u64,
    /// When the list begins to show it.
    pub visible: u64,
    /// Its hardware died: the provider says so.
    pub broken: bool,
}

#[derive(Debug, Default)]
pub struct Provider {
    machines: BTreeMap<InstanceId, Machine>,
    /// Machines that were deleted a moment ago, and when.
    leaving: Vec<(u64, Instance)>,
    /// Keys that no machine will be made of again.
    past: BTreeSet<InstanceId>,
    /// Effects of create that made a machine.
    pub creations: u64,
    /// Calls within a second: which, and how many.
    calls: (u64, u32),
}

pub fn instance_id(node: &NodeId, generation: Generation) -> InstanceId {
    InstanceId::new(format!("i-{node}.{generation}")).expect("short names")
}

/// What is to be made.
pub struct Wanted<'w> {
    pub node: &'w NodeId,
    pub generation: Generation,
    pub node_type: &'w NodeTypeName,
    pub price: MoneyPerHour,
}

/// What one of a type costs when it is bought so.
pub fn price_of(spec: &Spec, node_type: &NodeTypeName, offer: &Offer) -> MoneyPerHour {
    let offers = spec.workers.get(node_type).map(|kind| kind.offers()).unwrap_or_default();
    offers.into_iter().find(|(known, _)| known == offer).and_then(|(_, price)| price).unwrap_or_default()
}

impl Provider {
    /// Machines that run, or could.
    pub fn alive(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    pub fn get(&self, id: &InstanceId) -> Option<&Machine> {
        self.machines.get(id)
    }

    /// Whether a call with this key had its effect, now or earlier.
    pub fn knows(&self, id: &InstanceId) -> bool {
        self.machines.contains_key(id) || self.past.contains(id)
    }

    /// Counts a call; false if there were too many within this second.
    pub fn may_call(&mut self, now: u64, most: Option<u32>) -> bool {
        let second = now / 1_000;
        if self.calls.0 != second {
            self.calls = (second, 0);
        }
        self.calls.1 += 1;
        most.is_none_or(|most| self.calls.1 <= most)
    }

    /// The effect of a create: once per key, whatever happens to the answers.
    pub fn create(&mut self, now: u64, wanted: Wanted<'_>, visibility: u64, random: &mut Random) -> Instance {
        let Wanted { node, generation, node_type, price } = wanted;
        let id = instance_id(node, generation);
        if let Some(machine) = self.machines.get(&id) {
            return machine.instance.clone();
        }
        let instance = Instance {
            id: id.clone(),
            node: node.clone(),
            generation,
            address: Some(format!("10.0.0.{}", self.creations % 250)),
            state: InstanceState::Running,
        };
        if self.past.contains(&id) {
            return instance;
        }
        self.creations += 1;
        let hidden = if visibility > 0 && random.permille(300) { random.between(0, visibility - 1_000) } else { 0 };
        let node_type = node_type.clone();
        let machine = Machine { instance: instance.clone(), node_type, price, created: now, visible: now + hidden, broken: false };
        self.machines.insert(id, machine);
        instance
    }

    /// The effect of a delete; what was deleted, if it was there.
    pub fn delete(&mut self, now: u64, id: &InstanceId) -> Option<Machine> {
        let machine = self.machines.remove(id)?;
        self.past.insert(id.clone());
        self.leaving.retain(|(at, _)| now - at < SHOWN);
        if machine.visible <= now {
            self.leaving.push((now, Instance { state: InstanceState::Terminated, ..machine.instance.clone() }));
        }
        Some(machine)
    }

    /// The hardware of a machine dies.
    pub fn break_down(&mut self, id: &InstanceId) -> bool {
        let Some(machine) = self.machines.get_mut(id).filter(|machine| !machine.broken) else { return false };
        machine.broken = true;
        machine.instance.state = InstanceState::Stopped;
        true
    }

    pub fn list(&self, now: u64) -> Vec<Instance> {
        let shown = self.machines.values().filter(|machine| machine.visible <= now).map(|machine| machine.instance.clone());
        shown.chain(self.leaving.iter().filter(|(at, _)| now - at < SHOWN).map(|(_, instance)| instance.clone())).collect()
    }
}

pub fn failure(message: &str) -> Failure {
    Failure { message: message.to_owned(), retry_after: None, kind: FailureKind::Transient }
}
