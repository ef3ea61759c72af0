//! Whether what is asked for could be had, within every maximum and the budget; if not, what it would take.

use std::borrow::Cow;
use std::collections::BTreeSet;

use cloudtik_model::demand::ResourceRequest;
use cloudtik_model::refusal::{NoRoom, ShortLimit};
use cloudtik_model::spec::{Spec, WorkerType};
use cloudtik_model::{MoneyPerHour, NodeTypeName};

use super::buy::{Candidate, Limits, attempt, can_have_all, least};
use crate::Brain;
use crate::packing::{Fleet, GroupId};

/// Up to so many requests that have no room it is looked at closely what they would take.
const CLOSE_LOOK: usize = 8;

/// What is there by number, before any room is bought.
struct Base {
    workers: u32,
    cost: MoneyPerHour,
}

/// Room that is asked for and does not fit on what is there by number.
struct Missing {
    fleet: Fleet,
    waiting: BTreeSet<GroupId>,
    candidates: Vec<Candidate>,
}

impl Brain {
    /// Whether everything that is asked for could be there at once, within every maximum and the budget: whatever there is
    /// just now.
    pub(crate) fn check_room(&self, spec: &Spec, new: Option<&ResourceRequest>) -> Result<(), NoRoom> {
        let base: Vec<(&NodeTypeName, u32)> = spec.workers.keys().map(|name| (name, self.base(spec, name))).collect();
        let workers: u32 = base.iter().map(|(_, n)| *n).sum();
        let price = |name: &NodeTypeName| spec.workers[name].most_expensive().unwrap_or_default();
        let cost: MoneyPerHour = base.iter().map(|(name, n)| price(name).times(*n)).sum();
        let numbers = || base.iter().filter(|(_, n)| *n > 0).map(|(name, n)| ((*name).clone(), *n)).collect();
        if workers > spec.max_workers {
            return Err(NoRoom::TooManyWorkers { numbers: numbers(), max_workers: spec.max_workers, needed: workers });
        }
        if let Some(budget) = spec.budget.filter(|budget| cost > *budget) {
            return Err(NoRoom::TooExpensive { numbers: numbers(), cost, budget });
        }
        // On a fleet of its own: what there is just now decides nothing.
        let mut fleet = Fleet::default();
        for (name, count) in &base {
            for n in 0..*count {
                if let (Some(capacity), Ok(id)) = (self.capacity_of(name), cloudtik_model::NodeId::new(format!("{name}-{n}"))) {
                    fleet.add_node(id, capacity);
                }
            }
        }
        // Others that no type could ever serve are in nobody's way.
        let is_new = |request: &ResourceRequest| new.is_some_and(|new| new.name == request.name);
        for request in self.autoscaler.requests.room.values().filter(|request| is_new(request) || self.misfit(spec, request).is_none()) {
            fleet.set_group(GroupId(request.number), self.group_of(request));
        }
        let waiting: BTreeSet<GroupId> = fleet.waiting().map(|(id, _)| id).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let candidates: Vec<Candidate> = base
            .iter()
            .filter_map(|(name, n)| {
                let capacity = self.capacity_of(name)?;
                let kind = &spec.workers[*name];
                let price = kind.most_expensive();
                Some(Candidate::new(name, kind, capacity, price, kind.max - n, self.learned(name)))
            })
            .collect();
        let limits = Limits { nodes: spec.max_workers - workers, money: spec.budget.map(|b| MoneyPerHour(b.0.saturating_sub(cost.0))) };
        if can_have_all(&fleet, &waiting, &candidates, &limits) {
            return Ok(());
        }
        // What is there may hold more if what is hardest to place is placed first.
        let mut anew = fleet.clone();
        let capacities: Vec<_> = candidates.iter().filter(|of| of.most > 0).map(|of| of.capacity).collect();
        anew.rebuild(&fleet.nodes().cloned().collect::<Vec<_>>(), &capacities);
        let left: BTreeSet<GroupId> = anew.waiting().map(|(id, _)| id).collect();
        if left.is_empty() || can_have_all(&anew, &left, &candidates, &limits) {
            return Ok(());
        }
        Err(self.what_it_would_take(spec, &Base { workers, cost }, &Missing { fleet, waiting, candidates }))
    }

    /// The fleet as it would be if gangs that wait held what room there is for them; but of what cannot be had for now
    /// nothing is kept free.
    pub(super) fn tentative_fleet(&self) -> Cow<'_, Fleet> {
        let fleet = &self.autoscaler.fleet;
        let paused = self.paused_gangs();
        if fleet.parked().all(|id| paused.contains(&id)) {
            return Cow::Borrowed(fleet);
        }
        let mut tentative = fleet.clone();
        tentative.unpark();
        self.park_paused_in(&mut tentative);
        Cow::Owned(tentative)
    }

    /// What has no room on a fleet would take of what is to be had for now, roughly: nodes, and what they cost.
    pub(super) fn room_needs(&self, spec: &Spec, fleet: &Fleet) -> (u32, MoneyPerHour) {
        let waiting: BTreeSet<GroupId> = fleet.waiting().map(|(id, _)| id).collect();
        if waiting.is_empty() {
            return (0, MoneyPerHour(0));
        }
        let candidates = self.within_reach(spec, |_| 0);
        let needed = attempt(fleet, &waiting, None, &candidates, false);
        (needed.nodes(), needed.money(&candidates))
    }

    /// What is to be had for now, where so many of each type may be taken for gone.
    pub(super) fn within_reach(&self, spec: &Spec, gone: impl Fn(&NodeTypeName) -> u32) -> Vec<Candidate> {
        let candidate = |(name, kind): (&NodeTypeName, &WorkerType)| {
            let most = kind.max.saturating_sub(self.autoscaler.tally.exist_of(name).saturating_sub(gone(name)));
            Some(Candidate::new(name, kind, self.capacity_of(name)?, kind.most_expensive(), most, self.learned(name)))
        };
        let within_reach = spec.workers.iter().filter(|(name, kind)| !self.is_out_of_reach(name, kind));
        within_reach.filter_map(candidate).collect()
    }

    /// Whether an ask has room on what there is and on what may be bought beside it just now.
    pub(super) fn has_room_now(&mut self, spec: &Spec, request: &ResourceRequest) -> bool {
        let id = self.place_request(request);
        let has_room = !self.autoscaler.fleet.is_waiting(id) || {
            let candidates = self.candidates(spec).0;
            can_have_all(&self.autoscaler.fleet, &BTreeSet::from([id]), &candidates, &self.limits(spec))
        };
        if !has_room {
            self.unplace_request(request);
        }
        has_room
    }

    /// What would be bought without the limits, and which of them forbid it.
    fn what_it_would_take(&self, spec: &Spec, base: &Base, missing: &Missing) -> NoRoom {
        let free: Vec<Candidate> = missing.candidates.iter().map(|c| Candidate { most: u32::MAX / 4, ..c.clone() }).collect();
        // Where many stand already it is looked at less closely.
        let is_close = missing.waiting.len() <= CLOSE_LOOK;
        let most = spec.max_workers.saturating_sub(base.workers);
        let needed = least(&missing.fleet, &missing.waiting, &free, most, is_close);
        // All of it, and not only what is not there yet: that is what the limits are held against.
        let all = |(name, n): (NodeTypeName, u32)| (name.clone(), self.base(spec, &name).saturating_add(n));
        let numbers = needed.numbers(&free);
        let others = spec.workers.keys().filter(|name| !numbers.iter().any(|(of, _)| of == *name));
        let others = others.map(|name| (name.clone(), 0)).filter(|(name, _)| self.base(spec, name) > 0);
        let all_numbers: Vec<(NodeTypeName, u32)> = numbers.iter().cloned().chain(others).map(all).collect();
        let total = base.workers.saturating_add(needed.nodes());
        let money = MoneyPerHour(base.cost.0.saturating_add(needed.money(&free).0));
        let mut limits = Vec::new();
        if total > spec.max_workers {
            limits.push(ShortLimit::MaxWorkers { max: spec.max_workers, needed: total });
        }
        if let Some(budget) = spec.budget.filter(|budget| money > *budget) {
            limits.push(ShortLimit::Budget { budget, needed: money });
        }
        for (name, n) in needed.numbers(&free) {
            let (kind, now) = (&spec.workers[&name], self.base(spec, &name));
            if now.saturating_add(n) > kind.max {
                limits.push(ShortLimit::TypeMaximum { max: kind.max, needed: now.saturating_add(n), node_type: name });
            }
        }
        NoRoom::Takes { numbers: all_numbers, limits }
    }
}
