//! The plan of what lies where: kept with the records, taken as a whole or back, and what it counts on.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::NodeId;
use cloudtik_model::event::{Replan, What};
use cloudtik_model::node::NodeState;

use super::Autoscaler;
use crate::packing::{Before, Fleet, GroupId};
use crate::{Brain, Planned, Record};

/// A plan that counts on machines that were asked for and are not ready yet.
#[derive(Debug, Default)]
pub(super) struct TentativePlan {
    /// What was planned before, on the nodes on which that changed.
    plan: BTreeMap<NodeId, Vec<Planned>>,
    machines: BTreeSet<NodeId>,
    /// It counts on those too that are asked for after the one with this number, in the same step.
    since: Option<u64>,
    /// One of them is not to be had.
    is_lost: bool,
}

/// Plans what waits where it was planned before, as far as it fits there.
pub(super) fn put_back(fleet: &mut Fleet, plan: &BTreeMap<NodeId, Vec<Planned>>) {
    for (node, holds) in plan {
        for Planned { request, bundle, count } in holds {
            fleet.put_back(node, GroupId(*request), *bundle, *count);
        }
    }
}

/// What lies on a node, as it is stored.
fn planned(holds: &[(GroupId, usize, u32)]) -> Vec<Planned> {
    let of = |(id, bundle, count): &(GroupId, usize, u32)| Planned { request: id.0, bundle: *bundle, count: *count };
    let mut planned: Vec<Planned> = holds.iter().map(of).collect();
    planned.sort_unstable();
    planned
}

impl Autoscaler {
    /// A node is on its way, is there, or will not be.
    pub(crate) fn note_tentative(&mut self, id: &NodeId, life: &NodeState) {
        let Some(tentative) = &mut self.tentative else { return };
        let is_on_its_way = life.is_counted() && *life != NodeState::Ready;
        if is_on_its_way || !tentative.machines.remove(id) {
            return;
        }
        // One that the plan of now can do without is no loss.
        tentative.is_lost |= *life != NodeState::Ready && self.fleet.is_used(id);
        if tentative.machines.is_empty() && !tentative.is_lost {
            self.tentative = None;
        }
    }
}

impl TentativePlan {
    /// Whether something lay on a node before, which is to lie there again if the plan is taken back.
    pub(super) fn may_need(&self, node: &NodeId) -> bool {
        self.plan.get(node).is_some_and(|holds| !holds.is_empty())
    }
}

impl Brain {
    /// Stores where on the fleet everything is planned, as far as that changed.
    pub(crate) fn store_plan(&mut self) {
        let now = self.clock.now();
        let Self { autoscaler: Autoscaler { fleet, stored_plan, is_plan_new, .. }, effects, nodes, .. } = self;
        let mut is_free = |node: &NodeId| nodes.usage_mut(node).map(|usage| usage.free_since = now);
        if std::mem::take(is_plan_new) {
            // Nodes that hold nothing may have held something.
            let empty = stored_plan.keys().filter(|node| fleet.holds(node).is_empty()).cloned();
            for node in empty.collect::<Vec<_>>() {
                stored_plan.remove(&node);
                is_free(&node);
                effects.record(Record::Plan { node, holds: Vec::new() });
            }
        }
        fleet.changes(|node, holds| {
            let holds = planned(holds);
            if stored_plan.get(node).map_or(&[][..], Vec::as_slice) == holds {
                return;
            }
            if holds.is_empty() {
                stored_plan.remove(node);
                is_free(node);
            } else {
                stored_plan.insert(node.clone(), holds.clone());
            }
            effects.record(Record::Plan { node: node.clone(), holds });
        });
    }

    /// What is planned on each node, all of which is stored.
    pub fn plan(&self) -> BTreeMap<NodeId, Vec<Planned>> {
        let all = self.autoscaler.fleet.nodes().map(|node| (node.clone(), planned(self.autoscaler.fleet.holds(node))));
        all.filter(|(_, holds)| !holds.is_empty()).collect()
    }

    pub(super) fn take_plan(&mut self, plan: Fleet) {
        self.autoscaler.fleet = plan;
        self.autoscaler.is_plan_new = true;
    }

    /// What is planned from now on counts on machines that are to be asked for; what held before holds without them.
    pub(super) fn begin_tentative(&mut self) {
        self.begin_tentative_with(self.plan());
    }

    /// The same where little was planned otherwise: that lay so before.
    pub(super) fn begin_tentative_from(&mut self, before: Before) {
        self.begin_tentative_with(before.nodes.into_iter().map(|(node, holds)| (node, planned(&holds))).collect());
    }

    fn begin_tentative_with(&mut self, before: BTreeMap<NodeId, Vec<Planned>>) {
        let since = self.autoscaler.launched;
        let tentative = self.autoscaler.tentative.get_or_insert_default();
        tentative.since.get_or_insert(since);
        // What was planned before an earlier tentative plan comes first.
        for (node, holds) in before {
            tentative.plan.entry(node).or_insert(holds);
        }
    }

    /// Notes the machines that a new tentative plan counts on: those that were asked for since.
    pub(super) fn count_on_launched(&mut self) {
        let Some(since) = self.autoscaler.tentative.as_mut().and_then(|tentative| tentative.since.take()) else { return };
        let is_new = |node: &&crate::Node| node.record.number > since && node.record.life == NodeState::Requested;
        let machines: BTreeSet<NodeId> = self.nodes.values().filter(is_new).map(|node| node.record.id.clone()).collect();
        if let Some(tentative) = &mut self.autoscaler.tentative {
            tentative.is_lost |= machines.is_empty();
            tentative.machines.extend(machines);
        }
        self.give_up_tentative();
    }

    /// If a machine on which a plan counted is not to be had, what had room has it again where it was.
    pub(super) fn give_up_tentative(&mut self) {
        let Some(tentative) = self.autoscaler.tentative.take_if(|tentative| tentative.is_lost) else { return };
        self.event(None, What::PlacementsReplanned { why: Replan::MachinesUnavailable });
        let fleet = &mut self.autoscaler.fleet;
        let mut groups: BTreeSet<GroupId> = tentative.plan.values().flatten().map(|planned| GroupId(planned.request)).collect();
        groups.extend(tentative.plan.keys().flat_map(|node| fleet.groups_on(node)));
        let now = fleet.before(&groups);
        fleet.lift(&groups);
        put_back(fleet, &tentative.plan);
        // What came since stays where it is, as far as that leaves room.
        put_back(fleet, &now.nodes.into_iter().map(|(node, holds)| (node, planned(&holds))).collect());
        for id in self.paused_gangs() {
            self.autoscaler.fleet.park(id);
        }
        self.autoscaler.fleet.settle();
    }
}
