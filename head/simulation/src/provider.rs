//! A provider that keeps its contract in the end: instances exist once per key, but calls are slow, fail before or after
//! their effect, and the list hides new instances for a while and shows deleted ones.

use std::collections::BTreeMap;

use cloudtik_brain::{Failure, FailureKind};
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::{Generation, InstanceId, NodeId, NodeTypeName};

use crate::random::Random;

#[derive(Debug, Clone)]
pub struct Machine {
    pub instance: Instance,
    pub node_type: NodeTypeName,
    /// When the list begins to show it.
    pub visible: u64,
    /// When it was deleted; the list shows it for a while.
    pub deleted: Option<u64>,
    /// Its hardware died: the provider says so.
    pub broken: bool,
}

#[derive(Debug, Default)]
pub struct Provider {
    pub machines: BTreeMap<InstanceId, Machine>,
    /// Effects of create that made a machine.
    pub creations: u64,
}

/// The longest time that the list hides a machine, in milliseconds.
pub const VISIBILITY: u64 = 20_000;

pub fn instance_id(node: &NodeId, generation: Generation) -> InstanceId {
    InstanceId::new(format!("i-{node}.{generation}")).expect("short names")
}

impl Provider {
    /// Machines that run, or could.
    pub fn alive(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values().filter(|m| m.deleted.is_none())
    }

    /// The effect of a create: once per key, whatever happens to the answers.
    pub fn create(
        &mut self,
        now: u64,
        node: &NodeId,
        generation: Generation,
        node_type: &NodeTypeName,
        visibility: u64,
        random: &mut Random,
    ) -> Instance {
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
        self.creations += 1;
        let hidden = if visibility > 0 && random.permille(300) { random.between(0, visibility - 1_000) } else { 0 };
        let machine =
            Machine { instance: instance.clone(), node_type: node_type.clone(), visible: now + hidden, deleted: None, broken: false };
        self.machines.insert(id, machine);
        instance
    }

    /// The effect of a delete.
    pub fn delete(&mut self, now: u64, id: &InstanceId) {
        if let Some(machine) = self.machines.get_mut(id) {
            machine.deleted.get_or_insert(now);
        }
    }

    pub fn list(&self, now: u64) -> Vec<Instance> {
        let shown = self.machines.values().filter(|m| m.visible <= now && m.deleted.is_none_or(|at| now - at < 5_000));
        shown
            .map(|m| Instance {
                state: match (m.deleted, m.broken) {
                    (Some(_), _) => InstanceState::Terminated,
                    (None, true) => InstanceState::Stopped,
                    (None, false) => InstanceState::Running,
                },
                ..m.instance.clone()
            })
            .collect()
    }
}

pub fn failure(message: &str) -> Failure {
    Failure { message: message.to_owned(), retry_after: None, kind: FailureKind::Transient }
}
