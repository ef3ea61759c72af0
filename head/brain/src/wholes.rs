//! What the members of a whole need of each other: how many there are, how many are up, and who can be done without.

use cloudtik_model::reason::Obstacle;
use cloudtik_model::spec::ServicePlacement;
use cloudtik_model::{NodeId, NodeTypeName};

use crate::Brain;

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

impl Brain {
    fn others(&self, placement: &ServicePlacement, id: &NodeId) -> Others {
        let part = self.census.part(id, &placement.key);
        // Who was lost is a member until another has come in his place: the others still count with him.
        self.census.whole(&placement.key).map_or(Others { members: 0, lost: 0, up: 0 }, |whole| Others {
            members: whole.members + whole.lost,
            lost: whole.lost,
            up: whole.up - u32::from(part.is_up),
        })
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
    pub(crate) fn memberships(&self, id: &NodeId) -> impl Iterator<Item = &ServicePlacement> {
        let node_type = self.nodes.get(id).map(|node| &node.record.node_type);
        let services = self.cluster.spec.iter().flat_map(|spec| &spec.services);
        services.filter(move |s| s.membership.is_some() && node_type.is_some_and(|of| s.role.covers(of)))
    }

    /// The wholes of which a node is a member.
    fn wholes_of(&self, id: &NodeId) -> impl Iterator<Item = &ServicePlacement> {
        self.memberships(id).filter(|placement| self.census.part(id, &placement.key).is_member)
    }

    /// Whether the wholes that a node's services are members of can do without it just now.
    pub(crate) fn may_leave(&self, id: &NodeId) -> Result<(), Obstacle> {
        for placement in self.wholes_of(id) {
            let others = self.others(placement, id);
            let (Others { members, up, .. }, (quorum, minimum)) = (&others, others.needed(placement));
            let needed = quorum.max(minimum);
            if *up < needed {
                return Err(Obstacle::QuorumNeedsIt { service: placement.key.clone(), up: *up, members: *members, needed });
            }
        }
        Ok(())
    }

    /// Whether a node that is down may be replaced: what it has on its disks may be needed to bring a whole back that lost
    /// its quorum. A minimum holds nobody: more than are up are not there to be kept.
    pub(crate) fn may_be_replaced(&self, id: &NodeId) -> Result<(), Obstacle> {
        for placement in self.wholes_of(id) {
            let others = self.others(placement, id);
            let (Others { members, up, .. }, (quorum, _)) = (&others, others.needed(placement));
            if *up < quorum {
                return Err(Obstacle::QuorumNeedsItBack { service: placement.key.clone(), up: *up, members: *members, needed: quorum });
            }
        }
        Ok(())
    }

    /// Whether a node may be let go because it is not needed: members of a whole go one at a time.
    pub(crate) fn may_be_spared(&self, id: &NodeId) -> Result<(), Obstacle> {
        self.may_leave(id)?;
        for placement in self.wholes_of(id) {
            let leaving = self.census.whole(&placement.key).into_iter().flat_map(|whole| &whole.leaving);
            if let Some(other) = leaving.into_iter().find(|other| *other != id) {
                return Err(Obstacle::OtherMemberLeaves { service: placement.key.clone(), node: other.clone() });
            }
        }
        Ok(())
    }

    /// Whether a node's services may start again just now. A whole that is too small to do without any member has to bear it.
    pub(crate) fn may_restart(&self, id: &NodeId) -> Result<(), Obstacle> {
        for placement in self.memberships(id) {
            let all = self.others(placement, id);
            let (members, up) = (all.members - all.lost, all.up);
            let (quorum, minimum) = Others { members, lost: 0, up }.needed(placement);
            // Of those that are there, and of those that were.
            for needed in [quorum, minimum, all.needed(placement).0] {
                if up < needed && members.saturating_sub(1) >= needed {
                    return Err(Obstacle::QuorumNeedsOthers { service: placement.key.clone(), up, members, needed });
                }
            }
        }
        Ok(())
    }
}
