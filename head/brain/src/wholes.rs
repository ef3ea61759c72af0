//! What the members of a whole need of each other: how many there are, how many are up, and who can be done without.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::node::NodeState;
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::ServicePlacement;
use cloudtik_model::{NodeId, NodeTypeName, ServiceKey};

use crate::{Brain, Node};

/// A whole, as one of its members leaves it.
struct Others {
    /// Members, the one that leaves included, and those that were lost.
    members: u32,
    lost: u32,
    /// Members that are up, without the one that leaves.
    up: u32,
}

impl Others {
    /// So many must be up for the whole's rules: for its quorum, and for its minimum.
    fn needed(&self, placement: &ServicePlacement) -> (u32, u32) {
        let membership = placement.membership.clone().unwrap_or_default();
        (if membership.quorum { self.members / 2 + 1 } else { 0 }, membership.minimum)
    }
}

/// What one node is in a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Part {
    is_member: bool,
    is_up: bool,
    is_leaving: bool,
    /// A member was there and was lost, and nothing is in its place yet.
    is_lost: bool,
}

#[derive(Debug, Default)]
struct Whole {
    members: u32,
    up: u32,
    lost: u32,
    leaving: BTreeSet<NodeId>,
}

/// Who counts for what, kept up to date node by node, so that a change costs what it touches.
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

    fn part(&self, id: &NodeId, key: &ServiceKey) -> Part {
        let parts = self.parts.get(id).into_iter().flatten();
        parts.filter(|(of, _)| of == key).map(|(_, part)| *part).next().unwrap_or_default()
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

    fn others(&self, placement: &ServicePlacement, id: &NodeId) -> Others {
        let part = self.census.part(id, &placement.key);
        let Some(whole) = self.census.wholes.get(&placement.key) else { return Others { members: 0, lost: 0, up: 0 } };
        // Who was lost is a member until another has come in his place: the others still count with him.
        let lost = whole.lost;
        Others { members: whole.members + lost, lost, up: whole.up - u32::from(part.is_up) }
    }

    /// Somebody wants so many fewer of a type: as many of those that were lost are missed no more.
    pub(crate) fn forgive_losses(&mut self, name: &NodeTypeName, n: u32) {
        let lost = self.nodes.values().filter(|node| node.record.was_lost && node.record.node_type == *name);
        let lost: Vec<NodeId> = lost.map(|node| node.record.id.clone()).take(n as usize).collect();
        for id in lost {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.record.was_lost = false;
            }
            self.store_node(&id);
            self.touch(&id);
        }
    }

    /// The services on a node that are members of a whole.
    fn memberships(&self, id: &NodeId) -> impl Iterator<Item = &ServicePlacement> {
        let node_type = self.nodes.get(id).map(|node| &node.record.node_type);
        let services = self.cluster.spec.iter().flat_map(|spec| &spec.services);
        services.filter(move |s| s.membership.is_some() && node_type.is_some_and(|of| s.role.covers(of)))
    }

    /// The wholes of which a node is a member.
    fn wholes_of(&self, id: &NodeId) -> impl Iterator<Item = &ServicePlacement> {
        self.memberships(id).filter(|placement| self.census.part(id, &placement.key).is_member)
    }

    /// Whether the wholes that a node's services are members of can do without it just now.
    pub(crate) fn may_leave(&self, id: &NodeId) -> Result<(), String> {
        for placement in self.wholes_of(id) {
            let others = self.others(placement, id);
            let (Others { members, up, .. }, (quorum, minimum)) = (&others, others.needed(placement));
            let needed = quorum.max(minimum);
            if *up < needed {
                return Err(format!("{} would have {up} of {members} members up without it, and needs {needed}", placement.key));
            }
        }
        Ok(())
    }

    /// Whether a node that is down may be replaced: what it has on its disks may be needed to bring a whole back that lost
    /// its quorum. A minimum holds nobody: more than are up are not there to be kept.
    pub(crate) fn may_be_replaced(&self, id: &NodeId) -> Result<(), String> {
        for placement in self.wholes_of(id) {
            let others = self.others(placement, id);
            let (Others { members, up, .. }, (quorum, _)) = (&others, others.needed(placement));
            if *up < quorum {
                return Err(format!("{} has {up} of {members} members up without it, and needs {quorum} to come back", placement.key));
            }
        }
        Ok(())
    }

    /// Whether a node may be let go because it is not needed: members of a whole go one at a time.
    pub(crate) fn may_be_spared(&self, id: &NodeId) -> Result<(), String> {
        self.may_leave(id)?;
        for placement in self.wholes_of(id) {
            let leaving = self.census.wholes.get(&placement.key).into_iter().flat_map(|whole| &whole.leaving);
            if let Some(other) = leaving.into_iter().find(|other| *other != id) {
                return Err(format!("{} loses {other} just now, and its members go one at a time", placement.key));
            }
        }
        Ok(())
    }

    /// Whether a node's services may start again just now. A whole that is too small to do without any member has to bear it.
    pub(crate) fn may_restart(&self, id: &NodeId) -> Result<(), String> {
        for placement in self.memberships(id) {
            let all = self.others(placement, id);
            let (members, up) = (all.members - all.lost, all.up);
            let (quorum, minimum) = Others { members, lost: 0, up }.needed(placement);
            // Of those that are there, and of those that were.
            for needed in [quorum, minimum, all.needed(placement).0] {
                if up < needed && members.saturating_sub(1) >= needed {
                    return Err(format!("{} has {up} of {members} members up beside it, and needs {needed}", placement.key));
                }
            }
        }
        Ok(())
    }
}

/// Who is on the way out or was never in is no member; who is being let go is one until it is gone.
fn is_member(node: &Node, placement: &ServicePlacement) -> bool {
    match &node.record.life {
        NodeState::Gone | NodeState::Requested | NodeState::Launched | NodeState::Joined | NodeState::Failed { .. } => false,
        _ => node.services.contains_key(&placement.key) || node.record.was_ready,
    }
}
