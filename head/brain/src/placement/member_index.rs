//! Who counts for what: the members of each group, and the workers that should be heard. Kept up to date node by node, so that
//! a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::node::NodeState;
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::ServicePlacement;
use cloudtik_model::{NodeId, ServiceKey};

use crate::{Brain, Node};

/// What one node is in a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) is_member: bool,
    pub(crate) is_up: bool,
    is_leaving: bool,
    /// A member was there and was lost, and nothing is in its place yet.
    is_lost: bool,
}

/// All members of one service.
#[derive(Debug, Default)]
pub(crate) struct MemberGroup {
    pub(crate) members: u32,
    pub(crate) up: u32,
    /// Members that were lost, and in whose place nobody is ready yet.
    pub(crate) lost: u32,
    pub(crate) leaving: BTreeSet<NodeId>,
}

#[derive(Debug, Default)]
pub(crate) struct MemberIndex {
    groups: BTreeMap<ServiceKey, MemberGroup>,
    members: BTreeMap<NodeId, Vec<(ServiceKey, Member)>>,
    /// Workers that should be heard, and whether they are silent.
    expected: BTreeMap<NodeId, bool>,
    silent: u32,
}

impl MemberIndex {
    fn set(&mut self, id: &NodeId, members: Vec<(ServiceKey, Member)>, silent: Option<bool>) {
        let before = if members.is_empty() { self.members.remove(id) } else { self.members.insert(id.clone(), members.clone()) };
        for (key, member) in before.unwrap_or_default() {
            let group = self.groups.entry(key).or_default();
            group.members -= u32::from(member.is_member);
            group.up -= u32::from(member.is_up);
            group.lost -= u32::from(member.is_lost);
            group.leaving.remove(id);
        }
        for (key, member) in members {
            let group = self.groups.entry(key).or_default();
            group.members += u32::from(member.is_member);
            group.up += u32::from(member.is_up);
            group.lost += u32::from(member.is_lost);
            if member.is_leaving {
                group.leaving.insert(id.clone());
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

    pub(crate) fn group(&self, key: &ServiceKey) -> Option<&MemberGroup> {
        self.groups.get(key)
    }

    pub(crate) fn member(&self, id: &NodeId, key: &ServiceKey) -> Member {
        let mut members = self.members.get(id).into_iter().flatten();
        members.find(|(of, _)| of == key).map(|(_, member)| *member).unwrap_or_default()
    }
}

impl Brain {
    /// A node changed: what it counts for is looked at anew.
    pub(crate) fn touch(&mut self, id: &NodeId) {
        self.placement.readiness.touch(id);
        self.count(id);
    }

    /// The description changed, so any node may count for something else.
    pub(crate) fn count_anew(&mut self) {
        self.placement.readiness.start_over(self.nodes.keys());
        self.placement.members = MemberIndex::default();
        for id in self.nodes.ids() {
            self.count(&id);
        }
    }

    fn count(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let member = |placement: &ServicePlacement| {
            let is_member = is_member(node, placement);
            let is_up = node.record.life == NodeState::Ready
                && node.link.is_some()
                && node.services.get(&placement.key).is_some_and(|s| s.state == ServiceState::Ready);
            let is_lost = node.record.was_lost && !is_member;
            Member { is_member, is_up, is_leaving: is_member && node.record.life.is_leaving(), is_lost }
        };
        let members = self.memberships(id).map(|placement| (placement.key.clone(), member(placement)));
        let members = members.filter(|(_, member)| *member != Member::default()).collect();
        let silent = match &node.record.life {
            _ if !node.is_worker() => None,
            NodeState::Preparing | NodeState::Ready => Some(node.link.is_none()),
            NodeState::Suspect { .. } | NodeState::Down { .. } => Some(true),
            _ => None,
        };
        self.placement.members.set(id, members, silent);
    }
}

/// Who is on the way out or was never in is no member; who is being scaled in is one until it is gone.
fn is_member(node: &Node, placement: &ServicePlacement) -> bool {
    match &node.record.life {
        NodeState::Gone | NodeState::Requested | NodeState::Launched | NodeState::Joined | NodeState::Failed { .. } => false,
        _ => node.services.contains_key(&placement.key) || node.record.was_ready,
    }
}
