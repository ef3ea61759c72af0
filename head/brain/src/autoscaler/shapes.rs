//! What machines of a type have: written in the description, or learned from those that came.

use std::collections::BTreeMap;

use cloudtik_model::demand::Bundle;
use cloudtik_model::spec::WorkerType;
use cloudtik_model::{NodeId, NodeTypeName, Resources};

use crate::packing::{Amounts, DIMENSIONS, devices};
use crate::{Brain, Learned, Node};

/// So many machines of a type in a row have less than was known: then the type does.
const SMALLER: u32 = 3;

impl Brain {
    pub(super) fn learned(&self, name: &NodeTypeName) -> Option<Resources> {
        self.autoscaler.stored.learned.get(name).map(|learned| learned.resources)
    }

    /// A node turned out to have these resources, where the description does not say what its type has. The next of the
    /// type are taken to have what the one had that was asked for last: what a type is made of may have changed since. That
    /// one has less may be an accident: several have to.
    pub(crate) fn learn(&mut self, id: &NodeId, resources: Resources) {
        let Some(node) = self.nodes.get(id) else { return };
        let (name, number) = (node.record.node_type.clone(), node.record.number);
        if self.cluster.spec.as_ref().and_then(|s| s.workers.get(&name)).is_none_or(|w| w.resources.is_some()) {
            return;
        }
        let known = self.autoscaler.stored.learned.get(&name).copied();
        let has_less = |than: &Resources| resources.cpus < than.cpus || resources.memory < than.memory || resources.gpus < than.gpus;
        let newest = match known {
            Some(known) if known.from >= number => known,
            Some(Learned { resources, smaller, .. }) if has_less(&resources) && smaller + 1 < SMALLER => {
                Learned { from: number, resources, smaller: smaller + 1 }
            }
            _ => Learned { from: number, resources, smaller: 0 },
        };
        if known != Some(newest) {
            self.autoscaler.stored.learned.insert(name.clone(), newest);
            self.store_cluster();
        }
        if known.is_none() {
            // Nothing could be said of the others before.
            let of_type = |id: &&NodeId| self.nodes.get(id).is_some_and(|n| n.record.node_type == name);
            let shapeless: Vec<NodeId> = self.autoscaler.shapeless.iter().filter(of_type).cloned().collect();
            for id in shapeless {
                self.autoscaler.shapeless.remove(&id);
                self.recount(&id);
            }
        }
        // What lies on it must fit on what it has.
        let own = self.nodes.get(id).and_then(|node| self.capacity_of_node(node));
        if self.autoscaler.fleet.capacity(id).is_some_and(|planned| Some(planned) != own) {
            self.autoscaler.fleet.remove_node(id);
            self.recount(id);
        }
        self.scaling_changed();
    }

    /// What was found on machines is known of their types too when the description does not say it any more.
    pub(super) fn learn_from_found(&mut self) {
        let Some(spec) = &self.cluster.spec else { return };
        let before = self.autoscaler.stored.learned.clone();
        for node in self.nodes.values().map(|node| &node.record) {
            let is_unsaid = spec.workers.get(&node.node_type).is_some_and(|kind| kind.resources.is_none());
            let is_newer = self.autoscaler.stored.learned.get(&node.node_type).is_none_or(|known| known.from < node.number);
            if let Some(resources) = node.found.filter(|_| is_unsaid && is_newer) {
                self.autoscaler.stored.learned.insert(node.node_type.clone(), Learned { from: node.number, resources, smaller: 0 });
            }
        }
        if self.autoscaler.stored.learned != before {
            self.store_cluster();
        }
    }

    /// What the next worker of a type will offer, if that is known.
    pub(crate) fn capacity_of(&self, name: &NodeTypeName) -> Option<Amounts> {
        let kind = self.cluster.spec.as_ref()?.workers.get(name)?;
        let resources = kind.resources.or_else(|| self.learned(name))?;
        Some(self.offered(resources, &kind.custom))
    }

    /// What a node offers, if that is known: what was written of it when it was made, or else what was found on it.
    pub(super) fn capacity_of_node(&self, node: &Node) -> Option<Amounts> {
        let record = &node.record;
        let kind = self.cluster.spec.as_ref()?.workers.get(&record.node_type)?;
        let shape = record.shape.clone().unwrap_or_else(|| kind.shape());
        let resources = shape.resources.or(record.found).or(kind.resources).or_else(|| self.learned(&record.node_type))?;
        Some(self.offered(resources, &shape.custom))
    }

    fn offered(&self, resources: Resources, of_others: &BTreeMap<String, u32>) -> Amounts {
        let mut amounts = Amounts::of(u64::from(resources.cpus) * 1_000, resources.memory.0, devices::parts_offered(resources.gpus));
        for (i, custom) in self.autoscaler.custom.iter().enumerate() {
            amounts.0[3 + i] = of_others.get(custom).map_or(0, |n| u64::from(*n) * 1_000);
        }
        amounts
    }

    pub(super) fn amounts_of(&self, bundle: &Bundle) -> Amounts {
        let mut amounts = Amounts::of(bundle.cpus.0, bundle.memory.0, devices::parts_needed(bundle.gpus.0));
        for (i, custom) in self.autoscaler.custom.iter().enumerate() {
            amounts.0[3 + i] = bundle.resources.get(custom).map_or(0, |q| q.0);
        }
        // What no type offers any more is nowhere to be had.
        if bundle.resources.iter().any(|(name, q)| q.0 > 0 && !self.autoscaler.custom.contains(name)) {
            amounts.0[DIMENSIONS - 1] = u64::MAX;
        }
        amounts
    }
}

/// A price to compare types by where the description gives none: about what clouds take for a core, a GiB and a GPU an
/// hour. It is never held against a budget.
pub(super) fn usual_price(kind: &WorkerType, resources: Option<Resources>) -> u64 {
    let Resources { cpus, memory, gpus } = kind.resources.or(resources).unwrap_or_default();
    (u64::from(cpus) * 40_000 + (memory.0 >> 20) * 5_000 / 1_024 + u64::from(gpus) * 1_000_000).max(1)
}
