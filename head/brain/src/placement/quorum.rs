//! What the members of a group need of each other: how many there are, how many are up, and who can be done without.

use cloudtik_model::reason::Obstacle;
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::ServicePlacement;
use cloudtik_model::{NodeId, NodeTypeName, ServiceKey};

use crate::Brain;

/// A member group, as one of its members leaves it.
struct Others {
    /// Members, the one that leaves included, and those that were lost.
    members: u32,
    lost: u32,
    /// Members that are up, without the one that leaves.
    up: u32,
}

impl Others {
    /// So many must be up for the group's rules: for its quorum, and for its minimum.
    fn needed(&self, placement: &ServicePlacement) -> (u32, u32) {
        let membership = placement.membership.clone().unwrap_or_default();
        (if membership.quorum { self.members / 2 + 1 } else { 0 }, membership.minimum)
    }
}

impl Brain {
    fn others(&self, placement: &ServicePlacement, id: &NodeId) -> Others {
        let member = self.placement.members.member(id, &placement.key);
        // A lost member counts as one until another is ready in its place.
        self.placement.members.group(&placement.key).map_or(Others { members: 0, lost: 0, up: 0 }, |group| Others {
            members: group.members + group.lost,
            lost: group.lost,
            up: group.up - u32::from(member.is_up),
        })
    }

    /// So many fewer of a type are wanted: as many lost members stop counting.
    pub(crate) fn clear_lost_members(&mut self, name: &NodeTypeName, n: u32) {
        let lost = self.nodes.values().filter(|node| node.record.was_lost && node.record.node_type == *name);
        let lost: Vec<NodeId> = lost.map(|node| node.record.id.clone()).take(n as usize).collect();
        for id in lost {
            self.nodes.clear_lost(&id);
            self.store_node(&id);
            self.touch(&id);
        }
    }

    /// The services on a node that are members of a group.
    pub(crate) fn memberships(&self, id: &NodeId) -> impl Iterator<Item = &ServicePlacement> {
        let node_type = self.nodes.get(id).map(|node| &node.record.node_type);
        let services = self.cluster.spec.iter().flat_map(|spec| &spec.services);
        services.filter(move |s| s.membership.is_some() && node_type.is_some_and(|of| s.role.covers(of)))
    }

    /// The groups of which a node is a member.
    fn groups_of(&self, id: &NodeId) -> impl Iterator<Item = &ServicePlacement> {
        self.memberships(id).filter(|placement| self.placement.members.member(id, &placement.key).is_member)
    }

    /// Whether the groups that a node's services are members of can do without it just now.
    pub(crate) fn may_leave(&self, id: &NodeId) -> Result<(), Obstacle> {
        for placement in self.groups_of(id) {
            let others = self.others(placement, id);
            let (Others { members, up, .. }, (quorum, minimum)) = (&others, others.needed(placement));
            let needed = quorum.max(minimum);
            if *up < needed {
                return Err(Obstacle::QuorumNeedsIt { service: placement.key.clone(), up: *up, members: *members, needed });
            }
        }
        Ok(())
    }

    /// Whether a node that is down may be replaced: what it has on its disks may be needed to bring a group back that lost
    /// its quorum. A minimum holds nobody: more than are up are not there to be kept.
    pub(crate) fn may_be_replaced(&self, id: &NodeId) -> Result<(), Obstacle> {
        for placement in self.groups_of(id) {
            let others = self.others(placement, id);
            let (Others { members, up, .. }, (quorum, _)) = (&others, others.needed(placement));
            if *up < quorum {
                return Err(Obstacle::QuorumNeedsItBack { service: placement.key.clone(), up: *up, members: *members, needed: quorum });
            }
        }
        Ok(())
    }

    /// Whether a node may be scaled in because it is not needed: members of a group go one at a time.
    pub(crate) fn may_scale_in(&self, id: &NodeId) -> Result<(), Obstacle> {
        self.may_leave(id)?;
        for placement in self.groups_of(id) {
            let leaving = self.placement.members.group(&placement.key).into_iter().flat_map(|group| &group.leaving);
            if let Some(other) = leaving.into_iter().find(|other| *other != id) {
                return Err(Obstacle::OtherMemberLeaves { service: placement.key.clone(), node: other.clone() });
            }
        }
        Ok(())
    }

    /// Whether a node's services may start again just now. A group that is too small to do without any member has to bear it, and
    /// one loses nothing by the restart of a service that fails.
    pub(crate) fn may_restart(&self, id: &NodeId) -> Result<(), Obstacle> {
        let state = |key: &ServiceKey| self.nodes.get(id).and_then(|node| node.services.get(key)).map(|report| report.state);
        let fails = |key: &ServiceKey| matches!(state(key), Some(ServiceState::Backoff | ServiceState::Unhealthy));
        for placement in self.memberships(id).filter(|placement| !fails(&placement.key)) {
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
