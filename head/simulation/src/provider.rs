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
    /// Workers of each type, of each node, and what all of them cost in millionths.
    by_type: BTreeMap<NodeTypeName, u32>,
    by_node: BTreeMap<NodeId, u32>,
    cost: u64,
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
        if !node.is_head() {
            *self.by_type.entry(machine.node_type.clone()).or_default() += 1;
            *self.by_node.entry(node.clone()).or_default() += 1;
            self.cost += price.0;
        }
        self.machines.insert(id, machine);
        instance
    }

    /// The effect of a delete; what was deleted, if it was there.
    pub fn delete(&mut self, now: u64, id: &InstanceId) -> Option<Machine> {
        let machine = self.machines.remove(id)?;
        self.past.insert(id.clone());
        let node = &machine.instance.node;
        if let (Some(of_type), Some(of_node)) = (self.by_type.get_mut(&machine.node_type), self.by_node.get_mut(node)) {
            (*of_type, *of_node) = (*of_type - 1, *of_node - 1);
            self.cost -= machine.price.0;
            if *of_node == 0 {
                self.by_node.remove(node);
            }
        }
        self.leaving.retain(|(at, _)| now - at < SHOWN);
        if machine.visible <= now {
            self.leaving.push((now, Instance { state: InstanceState::Terminated, ..machine.instance.clone() }));
        }
        Some(machine)
    }

    /// What must hold whenever a machine was made, by the loosest of some descriptions: the promise that does not, by number,
    /// and what is so. What was there before the limits came down breaks none by itself.
    pub fn check(&self, node: &NodeId, node_type: &NodeTypeName, specs: &[Spec]) -> Result<(), (u8, String)> {
        if let Some(count) = self.by_node.get(node).filter(|count| **count > 1) {
            return Err((1, format!("{count} machines of {node} run at once")));
        }
        let workers: u32 = self.by_type.values().sum();
        let most = specs.iter().map(|spec| spec.max_workers).max().unwrap_or(0);
        if workers > most {
            return Err((2, format!("{workers} workers exist, the cluster's maximum is {most}")));
        }
        let most = specs.iter().filter_map(|spec| spec.workers.get(node_type)).map(|kind| kind.max).max().unwrap_or(0);
        let of_type = self.by_type.get(node_type).copied().unwrap_or(0);
        if of_type > most {
            return Err((2, format!("{of_type} workers of type {node_type} exist, its maximum is {most}")));
        }
        let budget = specs.iter().map(|spec| spec.budget.unwrap_or(MoneyPerHour(u64::MAX))).max().unwrap_or_default();
        if self.cost > budget.0 {
            return Err((2, format!("the workers cost {}, the budget is {budget}", MoneyPerHour(self.cost))));
        }
        Ok(())
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
