//! On which of the nodes that are there demands are planned: on few and cheap ones, so that the others may go.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::event::{Replan, What};
use cloudtik_model::node::NodeState;
use cloudtik_model::spec::Spec;
use cloudtik_model::{MoneyPerHour, NodeId, NodeTypeName};

use super::Wanted;
use super::buy::{Bought, Candidate, Limits, buy, can_have_all};
use super::gangs::park_halves;
use super::shapes::usual_price;
use crate::Brain;
use crate::packing::{Amounts, Fleet, GroupId, Kind, MAX_CLASSES, purchase};

/// Where more requests wait, it is not looked at whether another plan would serve some of them.
const MAX_WAITING: usize = 32;
/// Between two attempts to plan anew where everything lies, in milliseconds.
const REPACK_PAUSE: u64 = 10_000;
/// Before it is looked again whether it may be cheaper, in milliseconds for each node.
const TIGHTEN_PAUSE_OF_NODE: u64 = 30;
/// From something that was taken back to a look at whether the rest would be cheaper otherwise, in milliseconds.
const TIGHTEN_AFTER: u64 = 1_000;

impl Brain {
    /// Takes in how many workers are wanted by number; what lies on others may fit on those that come with that.
    pub(super) fn note_new_numbers(&mut self, wanted: BTreeMap<NodeTypeName, Wanted>) {
        let count = |of: &BTreeMap<NodeTypeName, Wanted>, name: &NodeTypeName| of.get(name).map_or(0, |w| w.count);
        let is_other =
            wanted.keys().chain(self.autoscaler.wanted.keys()).any(|name| count(&wanted, name) != count(&self.autoscaler.wanted, name));
        self.autoscaler.is_loose |= is_other;
        self.autoscaler.wanted = wanted;
    }

    /// Plans anew where demands lie if something was taken back, or if it may be cheaper otherwise.
    pub(super) fn lay_out(&mut self) {
        self.give_up_tentative();
        // What has room only if machines come is no room for others: until they are there, nothing else moves.
        let is_tentative = self.autoscaler.tentative.is_some() && !self.autoscaler.is_refilled;
        if is_tentative {
            self.autoscaler.is_loose |= std::mem::take(&mut self.autoscaler.rebuild);
        }
        if std::mem::take(&mut self.autoscaler.rebuild) {
            self.autoscaler.changes += 1;
            // What lies otherwise may leave other gangs in halves: they are looked at at once.
            self.autoscaler.tried = None;
            if std::mem::take(&mut self.autoscaler.is_refilled) {
                self.fill_up();
            } else {
                self.take_if_better(self.by_size());
            }
            // Not in one step with what is decided now: that is not to wait for it.
            self.autoscaler.is_loose = true;
            self.autoscaler.tighten_not_before = self.autoscaler.tighten_not_before.max(self.clock.now() + TIGHTEN_AFTER);
        }
        if self.autoscaler.is_loose && !is_tentative && self.is_time(self.autoscaler.tighten_not_before) {
            self.autoscaler.is_loose = false;
            // The more there is to look at, the less often.
            let nodes = self.autoscaler.tally.exist();
            self.autoscaler.tighten_not_before = self.clock.now() + REPACK_PAUSE.max(u64::from(nodes) * TIGHTEN_PAUSE_OF_NODE);
            let tight = self.tight();
            if tight.is_some_and(|tight| self.take_if_better(tight)) {
                self.autoscaler.changes += 1;
                self.autoscaler.tried = None;
            }
        }
    }

    /// Finds places on a fleet that was filled anew for what was planned nowhere, or where it does not fit any more. What had
    /// room before is not to be bought for: all of it is planned anew if that is better.
    fn fill_up(&mut self) {
        let is_unplanned = self.autoscaler.stored_plan.is_empty();
        if !is_unplanned {
            self.autoscaler.fleet.settle();
            if self.autoscaler.fleet.waiting_or_parked().is_empty() {
                return;
            }
        }
        let mut plan = self.tight().unwrap_or_else(|| self.by_size());
        if is_unplanned {
            park_halves(&mut plan);
            self.take_plan(plan);
            self.autoscaler.is_laid_out = true;
        } else {
            self.take_if_better(plan);
        }
    }

    /// A layout by first fit, what is hardest to place first.
    fn by_size(&self) -> Fleet {
        let mut anew = self.autoscaler.fleet.clone();
        anew.rebuild(&self.fleet_order().into_iter().map(|(_, id)| id).collect::<Vec<_>>(), &self.capacities_to_be_had());
        self.park_paused_in(&mut anew);
        anew
    }

    /// What machines of those types have of which one more may exist.
    fn capacities_to_be_had(&self) -> Vec<Amounts> {
        let types = self.cluster.spec.iter().flat_map(|spec| &spec.workers);
        let has_room = types.filter(|(name, kind)| self.autoscaler.tally.exist_of(name) < kind.max);
        has_room.filter_map(|(name, _)| self.capacity_of(name)).collect()
    }

    /// Whether a moment has come; if not, decides again when it has.
    fn is_time(&mut self, at: u64) -> bool {
        let has_come = self.clock.now() >= at;
        if !has_come {
            self.decide_at(at);
        }
        has_come
    }

    /// The fleet's nodes, those first that are to be used first, and whether they stay anyway.
    fn fleet_order(&self) -> Vec<(bool, NodeId)> {
        let mut order: Vec<(bool, MoneyPerHour, bool, usize, NodeId)> = Vec::new();
        for (name, rank, id) in self.ranked(self.autoscaler.fleet.nodes().cloned()) {
            let node = &self.nodes[&id];
            let is_kept = rank < self.wanted_of(&name) as usize;
            order.push((!is_kept, node.record.price.unwrap_or_default(), node.record.life != NodeState::Ready, rank, id));
        }
        order.sort();
        order.into_iter().map(|(is_free, .., id)| (!is_free, id)).collect()
    }

    /// A layout in which what does not fit on the nodes that stay anyway is on the cheapest of the others, chosen as new
    /// ones are. None where demands are of too many shapes for that to be any better.
    fn tight(&self) -> Option<Fleet> {
        let order = self.fleet_order();
        let (kept, others): (Vec<_>, Vec<_>) = order.into_iter().partition(|(is_kept, _)| *is_kept);
        let fleet = &self.autoscaler.fleet;
        if !others.iter().any(|(_, id)| fleet.is_used(id)) && fleet.waiting_or_parked().is_empty() {
            return None;
        }
        // What lies on the others may be of fewer shapes, but hardly of so many fewer.
        if fleet.is_of_more_shapes_than(2 * MAX_CLASSES) {
            return None;
        }
        let mut tight = self.autoscaler.fleet.clone();
        tight.rebuild(&kept.iter().map(|(_, id)| id.clone()).collect::<Vec<_>>(), &self.capacities_to_be_had());
        self.park_paused_in(&mut tight);
        let (mut kinds, mut alike): (Vec<Kind>, BTreeMap<(Amounts, u64), usize>) = (Vec::new(), BTreeMap::new());
        let mut by_kind: Vec<Vec<NodeId>> = Vec::new();
        for (_, id) in others.iter().rev() {
            let (Some(capacity), price) = (self.autoscaler.fleet.capacity(id), self.price_to_compare(id)) else { continue };
            let at = *alike.entry((capacity, price)).or_insert_with(|| {
                kinds.push(Kind { capacity, price, most: 0 });
                by_kind.push(Vec::new());
                kinds.len() - 1
            });
            kinds[at].most += 1;
            by_kind[at].push(id.clone());
        }
        let waiting: BTreeSet<GroupId> = tight.waiting().map(|(id, _)| id).collect();
        let (classes, mut members) = tight.classes(&waiting, None);
        if classes.len() > MAX_CLASSES {
            return None;
        }
        for bin in purchase(&kinds, &classes).bins {
            if let Some(id) = by_kind[bin.kind].pop() {
                tight.add_bought(id, kinds[bin.kind].capacity, &bin, &mut members);
            }
        }
        for (_, id) in &others {
            if let Some(capacity) = self.autoscaler.fleet.capacity(id).filter(|_| !tight.has(id)) {
                tight.add_node(id.clone(), capacity);
            }
        }
        Some(tight)
    }

    /// Takes another plan in the place of the one that holds, if it is cheaper and nobody who has room loses it.
    fn take_if_better(&mut self, mut plan: Fleet) -> bool {
        park_halves(&mut plan);
        let fleet = &self.autoscaler.fleet;
        let is_better = plan.waiting_or_parked().iter().all(|(id, _)| plan.waiting_of(*id) <= fleet.waiting_of(*id)) && {
            let order = self.fleet_order();
            self.rank(&plan, &order) < self.rank(fleet, &order)
        };
        if is_better {
            self.event(None, What::PlacementsReplanned { why: Replan::Better });
            self.take_plan(plan);
            self.autoscaler.is_laid_out = true;
        }
        is_better
    }

    /// What is better is less: what waits, what the nodes cost that are used and need not stay, and how many they are.
    fn rank(&self, fleet: &Fleet, order: &[(bool, NodeId)]) -> (u64, u64, usize) {
        let waiting = fleet.waiting_or_parked().iter().flat_map(|(_, shapes)| shapes).map(|(_, n)| u64::from(*n)).sum();
        let used = order.iter().filter(|(is_kept, id)| !is_kept && fleet.is_used(id));
        let prices: Vec<u64> = used.map(|(_, id)| self.price_to_compare(id)).collect();
        (waiting, prices.iter().sum(), prices.len())
    }

    /// What is to be bought for another plan by which some of those that wait have room, and nobody has less than now.
    fn serves_more(&self, anew: &Fleet, candidates: &[Candidate], limits: &Limits) -> Option<Bought> {
        let fleet = &self.autoscaler.fleet;
        let waiting: BTreeSet<GroupId> = anew.waiting().map(|(id, _)| id).collect();
        if fleet.waiting_or_parked().len() > MAX_WAITING || waiting.len() > MAX_WAITING {
            return None;
        }
        let bought = buy(anew, &waiting, candidates, limits);
        let left = |id: GroupId| if waiting.contains(&id) { bought.left_of(anew, id) } else { 0 };
        let loses = waiting.iter().any(|id| left(*id) > fleet.waiting_of(*id));
        let gains = fleet.waiting_or_parked().iter().any(|(id, _)| !anew.parked().any(|of| of == *id) && left(*id) < fleet.waiting_of(*id));
        (!loses && gains).then_some(bought)
    }

    fn price_to_compare(&self, id: &NodeId) -> u64 {
        let Some(node) = self.nodes.get(id) else { return 0 };
        let name = &node.record.node_type;
        let usual = || self.cluster.spec.as_ref()?.workers.get(name).map(|kind| usual_price(kind, self.learned(name)));
        node.record.price.map_or_else(|| usual().unwrap_or(1), |price| price.0.max(1))
    }

    /// If something has no room, but all of it would if it were planned anew, it is. False if that would not help.
    pub(super) fn repack(&mut self, spec: &Spec) -> bool {
        if self.autoscaler.fleet.waiting_or_parked().is_empty() {
            return false;
        }
        self.autoscaler.repack_postponed = !self.is_time(self.autoscaler.repack_not_before);
        if self.autoscaler.repack_postponed {
            return false;
        }
        self.autoscaler.repack_not_before = self.clock.now() + REPACK_PAUSE;
        let anew = self.by_size();
        let waiting: BTreeSet<GroupId> = anew.waiting().map(|(id, _)| id).collect();
        let (mut helps, mut needs_machines) = (waiting.is_empty(), false);
        if !helps {
            let candidates = self.candidates(spec).0;
            let limits = self.limits(spec);
            (helps, needs_machines) = (true, true);
            if !can_have_all(&anew, &waiting, &candidates, &limits) {
                let more = self.serves_more(&anew, &candidates, &limits);
                (helps, needs_machines) = (more.is_some(), more.is_some_and(|bought| bought.nodes() > 0));
            }
        }
        if helps {
            self.event(None, What::PlacementsReplanned { why: Replan::ToFit });
            if needs_machines {
                // It needs machines that are not there yet: without them all stays as it was.
                self.begin_tentative();
            }
            self.take_plan(anew);
            self.autoscaler.is_laid_out = true;
            self.autoscaler.changes += 1;
        } else {
            // Fewer of the nodes that are there may do: what goes then makes room within the limits.
            self.autoscaler.is_loose = true;
        }
        helps
    }
}
