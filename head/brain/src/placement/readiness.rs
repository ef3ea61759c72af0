//! Which services are ready wherever they are to run: kept up to date node by node, so that a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::Spec;
use cloudtik_model::{NodeId, ServiceKey};

use crate::Node;

/// How many nodes of those that are to run a service have it ready, and how many do not.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    ready: u32,
    missing: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Readiness {
    counts: BTreeMap<ServiceKey, Count>,
    /// By node, the services that it counts for, and whether they are ready there.
    of_node: BTreeMap<NodeId, Vec<(ServiceKey, bool)>>,
    /// Nodes that changed since.
    stale: BTreeSet<NodeId>,
    ready: BTreeSet<ServiceKey>,
}

impl Readiness {
    /// A node changed.
    pub(crate) fn touch(&mut self, id: &NodeId) {
        if !self.stale.contains(id) {
            self.stale.insert(id.clone());
        }
    }

    /// The description changed, so any node may count for other services.
    pub(crate) fn start_over<'a>(&mut self, nodes: impl Iterator<Item = &'a NodeId>) {
        let ready = std::mem::take(&mut self.ready);
        *self = Self { stale: nodes.cloned().collect(), ready, ..Self::default() };
    }

    pub(crate) fn is_ready(&self, key: &ServiceKey) -> bool {
        self.ready.contains(key)
    }

    /// Looks at the nodes that changed; true if a service became ready or stopped being so.
    pub(crate) fn refresh(&mut self, spec: Option<&Spec>, nodes: &BTreeMap<NodeId, Node>) -> bool {
        if self.stale.is_empty() {
            return false;
        }
        let mut touched: BTreeSet<ServiceKey> = BTreeSet::new();
        for id in std::mem::take(&mut self.stale) {
            let counts_for = nodes.get(&id).map(|node| says(spec, node)).unwrap_or_default();
            let before = if counts_for.is_empty() { self.of_node.remove(&id) } else { self.of_node.insert(id, counts_for.clone()) };
            for (key, is_ready) in before.unwrap_or_default() {
                let count = self.counts.entry(key.clone()).or_default();
                if is_ready {
                    count.ready -= 1
                } else {
                    count.missing -= 1
                }
                touched.insert(key);
            }
            for (key, is_ready) in counts_for {
                let count = self.counts.entry(key.clone()).or_default();
                if is_ready {
                    count.ready += 1
                } else {
                    count.missing += 1
                }
                touched.insert(key);
            }
        }
        // What counts nowhere any more.
        touched.extend(self.ready.iter().filter(|key| !self.counts.contains_key(*key)).cloned());
        let mut changed = false;
        for key in touched {
            let is_ready = self.counts.get(&key).is_some_and(|count| count.missing == 0 && count.ready > 0);
            changed |= if is_ready { self.ready.insert(key) } else { self.ready.remove(&key) };
        }
        changed
    }
}

/// The services that a node counts for. One that is not there cannot hold up the others.
fn says(spec: Option<&Spec>, node: &Node) -> Vec<(ServiceKey, bool)> {
    if !node.record.life.is_counted() {
        return Vec::new();
    }
    let placed = spec.into_iter().flat_map(|spec| spec.services_on(&node.record.node_type));
    let said = placed.filter_map(|placement| match node.services.get(&placement.key).map(|s| s.state) {
        Some(ServiceState::Ready) => Some((placement.key.clone(), true)),
        _ if node.link.is_none() => None,
        _ => Some((placement.key.clone(), false)),
    });
    said.collect()
}
