//! Who counts for what: the members of each whole, and the workers that should be heard. Kept up to date node by node, so that
//! a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::node::NodeState;
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::ServicePlacement;
use cloudtik_model::{NodeId, ServiceKey};

use crate::{Brain, Node};

/// What one node is in a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) is_member: bool,
    pub(crate) is_up: bool,
    is_leaving: bool,
    /// A member was there and was lost, and nothing is in its place yet.
    is_lost: bool,
}

/// All members of one service.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) members: u32,
    pub(crate) up: u32,
    /// Members that were lost, and in whose place nobody is ready yet.
    pub(crate) lost: u32,
    pub(crate) leaving: BTreeSet<NodeId>,
}

#[derive(Debug, Default)]
pub(crate) struct Census {
    wholes: BTreeMap<ServiceKey, Whole>,
    parts: BTreeMap<NodeId, Vec<(ServiceKey, Part)>>,
    /// Workers that should be heard, and whether they are silent.
    expected: BTreeMap<NodeId, bool>,
    silent: u32,
}

impl Census {
    fn set(&mut self, id: &NodeId, parts: Vec<(ServiceKey, Part)>, silent: Option<bool>) {
        let before = if parts.is_empty() { self.parts.remove(id) } else { self.parts.insert(id.clone(), parts.clone()) };
        for (key, part) in before.unwrap_or_default() {
            let whole = self.wholes.entry(key).or_default();
            whole.members -= u32::from(part.is_member);
            whole.up -= u32::from(part.is_up);
            whole.lost -= u32::from(part.is_lost);
            whole.leaving.remove(id);
        }
        for (key, part) in parts {
            let whole = self.wholes.entry(key).or_default();
            whole.members += u32::from(part.is_member);
            whole.up += u32::from(part.is_up);
            whole.lost += u32::from(part.is_lost);
            if part.is_leaving {
                whole.leaving.insert(id.clone());
            }
        }
        let before = match silent {
            Some(silent) => self.expected.insert(id.clone(), silent),
            None => self.expected.remove(id),
        };
        self.silent -= u32::from(before == Some(true));
        self.silent += u32::from(silent == Some(true));
    }

    /// How many workers there should be heard of, and how many of them are not.
    pub(crate) fn silence(&self) -> (usize, usize) {
        (self.expected.len(), self.silent as usize)
    }

    pub(crate) fn whole(&self, key: &ServiceKey) -> Option<&Whole> {
        self.wholes.get(key)
    }

    pub(crate) fn part(&self, id: &NodeId, key: &ServiceKey) -> Part {
        let mut parts = self.parts.get(id).into_iter().flatten();
        parts.find(|(of, _)| of == key).map(|(_, part)| *part).unwrap_or_default()
    }
}

impl Brain {
    /// A node changed: what it counts for is looked at anew.
    pub(crate) fn touch(&mut self, id: &NodeId) {
        self.readiness.touch(id);
        self.count(id);
    }

    /// The description changed, so any node may count for something else.
    pub(crate) fn count_anew(&mut self) {
        self.readiness.start_over(self.nodes.keys());
        self.census = Census::default();
        for id in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.count(&id);
        }
    }

    fn count(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let part = |placement: &ServicePlacement| {
            let is_member = is_member(node, placement);
            let is_up = node.record.life == NodeState::Ready
                && node.link.is_some()
                && node.services.get(&placement.key).is_some_and(|s| s.state == ServiceState::Ready);
            let is_lost = node.record.was_lost && !is_member;
            Part { is_member, is_up, is_leaving: is_member && node.record.life.is_leaving(), is_lost }
        };
        let parts = self.memberships(id).map(|placement| (placement.key.clone(), part(placement)));
        let parts = parts.filter(|(_, part)| *part != Part::default()).collect();
        let silent = match &node.record.life {
            _ if !node.is_worker() => None,
            NodeState::Preparing | NodeState::Ready => Some(node.link.is_none()),
            NodeState::Suspect { .. } | NodeState::Down { .. } => Some(true),
            _ => None,
        };
        self.census.set(id, parts, silent);
    }
}

/// Who is on the way out or was never in is no member; who is being let go is one until it is gone.
fn is_member(node: &Node, placement: &ServicePlacement) -> bool {
    match &node.record.life {
        NodeState::Gone | NodeState::Requested | NodeState::Launched | NodeState::Joined | NodeState::Failed { .. } => false,
        _ => node.services.contains_key(&placement.key) || node.record.was_ready,
    }
}
