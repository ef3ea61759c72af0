//! What the members of a whole need of each other: how many there are, how many are up, and who can be done without.

use cloudtik_model::NodeId;
use cloudtik_model::node::NodeState;
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::ServicePlacement;

use crate::{Brain, Node};

/// A whole, as one of its members leaves it.
struct Others {
    /// Members, the one that leaves included.
    members: u32,
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

impl Brain {
    fn others(&self, placement: &ServicePlacement, id: &NodeId) -> Others {
        let mut others = Others { members: 0, up: 0 };
        for other in self.nodes.values().filter(|n| placement.role.covers(&n.record.node_type)) {
            others.members += u32::from(is_member(other, placement));
            let is_up = other.record.life == NodeState::Ready
                && other.link.is_some()
                && other.services.get(&placement.key).is_some_and(|s| s.state == ServiceState::Ready);
            others.up += u32::from(is_up && other.record.id != *id);
        }
        others
    }

    /// The services on a node that are members of a whole.
    fn memberships(&self, id: &NodeId) -> impl Iterator<Item = &ServicePlacement> {
        let node_type = self.nodes.get(id).map(|node| &node.record.node_type);
        let services = self.cluster.spec.iter().flat_map(|spec| &spec.services);
        services.filter(move |s| s.membership.is_some() && node_type.is_some_and(|of| s.role.covers(of)))
    }

    /// Whether the wholes that a node's services are members of can do without it just now.
    pub(crate) fn may_leave(&self, id: &NodeId) -> Result<(), String> {
        for placement in self.memberships(id).filter(|placement| self.nodes.get(id).is_some_and(|node| is_member(node, placement))) {
            let others = self.others(placement, id);
            let (Others { members, up }, (quorum, minimum)) = (&others, others.needed(placement));
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
        for placement in self.memberships(id).filter(|placement| self.nodes.get(id).is_some_and(|node| is_member(node, placement))) {
            let others = self.others(placement, id);
            let (Others { members, up }, (quorum, _)) = (&others, others.needed(placement));
            if *up < quorum {
                return Err(format!("{} has {up} of {members} members up without it, and needs {quorum} to come back", placement.key));
            }
        }
        Ok(())
    }

    /// Whether a node may be let go because it is not needed: members of a whole go one at a time.
    pub(crate) fn may_be_spared(&self, id: &NodeId) -> Result<(), String> {
        self.may_leave(id)?;
        for placement in self.memberships(id).filter(|placement| self.nodes.get(id).is_some_and(|node| is_member(node, placement))) {
            let mut members = self.nodes.values().filter(|n| placement.role.covers(&n.record.node_type) && is_member(n, placement));
            if let Some(other) = members.find(|n| n.record.life.is_leaving() && n.record.id != *id) {
                return Err(format!("{} loses {} just now, and its members go one at a time", placement.key, other.record.id));
            }
        }
        Ok(())
    }

    /// Whether a node's services may start again just now. A whole that is too small to do without any member has to bear it.
    pub(crate) fn may_restart(&self, id: &NodeId) -> Result<(), String> {
        for placement in self.memberships(id) {
            let others = self.others(placement, id);
            let (Others { members, up }, (quorum, minimum)) = (&others, others.needed(placement));
            for needed in [quorum, minimum] {
                if *up < needed && members.saturating_sub(1) >= needed {
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
