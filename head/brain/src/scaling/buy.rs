//! What to buy for what has no room, within limits: of types of the highest priority first, for those who asked first.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::spec::WorkerType;
use cloudtik_model::{MoneyPerHour, NodeTypeName, Resources};

use super::usual_price;
use crate::packing::{Amounts, Bin, Class, Fleet, GroupId, Kind, Members, Purchase, first_fit_decreasing, purchase};

/// A type of which something may be bought.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) name: NodeTypeName,
    pub(super) capacity: Amounts,
    /// What it is compared by.
    pub(super) weight: u64,
    /// What it costs, if that is known.
    pub(super) price: Option<MoneyPerHour>,
    pub(super) most: u32,
    pub(super) priority: i32,
}

impl Candidate {
    pub(super) fn new(
        name: &NodeTypeName,
        kind: &WorkerType,
        capacity: Amounts,
        price: Option<MoneyPerHour>,
        most: u32,
        learned: Option<Resources>,
    ) -> Self {
        let weight = price.map_or_else(|| usual_price(kind, learned), |p| p.0.max(1));
        Self { name: name.clone(), capacity, weight, price, most, priority: kind.priority }
    }
}

/// What may be bought at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) nodes: u32,
    pub(super) money: Option<MoneyPerHour>,
}

/// What was found to buy.
#[derive(Debug)]
pub(super) struct Bought {
    /// Place in the list of candidates, and what is to go on it.
    pub(super) bins: Vec<(usize, Bin)>,
    pub(super) classes: Vec<Class>,
    pub(super) members: Members,
    /// By class, what found no place.
    pub(super) left: Vec<u32>,
    /// Something was left out to keep within the limits.
    is_cut: bool,
}

impl Bought {
    pub(super) fn is_whole(&self) -> bool {
        !self.is_cut && self.left.iter().all(|n| *n == 0)
    }

    pub(super) fn nodes(&self) -> u32 {
        self.bins.len() as u32
    }

    pub(super) fn money(&self, candidates: &[Candidate]) -> MoneyPerHour {
        self.bins.iter().map(|(c, _)| candidates[*c].price.unwrap_or_default()).sum()
    }

    pub(super) fn numbers(&self, candidates: &[Candidate]) -> Vec<(NodeTypeName, u32)> {
        let mut numbers: BTreeMap<&NodeTypeName, u32> = BTreeMap::new();
        for (candidate, _) in &self.bins {
            *numbers.entry(&candidates[*candidate].name).or_default() += 1;
        }
        numbers.into_iter().map(|(name, n)| (name.clone(), n)).collect()
    }

    fn is_within(&self, candidates: &[Candidate], limits: &Limits) -> bool {
        self.nodes() <= limits.nodes && limits.money.is_none_or(|money| self.money(candidates) <= money)
    }
}

/// Finds what to buy for the groups that wait: for all of them if the limits allow, else for as many as possible, in order.
pub(super) fn buy(fleet: &Fleet, groups: &BTreeSet<GroupId>, candidates: &[Candidate], limits: &Limits) -> Bought {
    let whole = attempt(fleet, groups, None, candidates, true);
    if whole.is_within(candidates, limits) {
        return whole;
    }
    let order: Vec<GroupId> = groups.iter().copied().collect();
    let first = |n: usize| -> BTreeSet<GroupId> { order[..n].iter().copied().collect() };
    let fits =
        |of: &BTreeSet<GroupId>, cut: Option<(GroupId, u32)>| attempt(fleet, of, cut, candidates, false).is_within(candidates, limits);
    let served = largest(order.len() as u32, |n| fits(&first(n as usize), None)) as usize;
    let mut chosen = first(served);
    // Of the next group as much as fits, if half of it is of use.
    let next = order.get(served).copied().filter(|id| !fleet.is_gang(*id));
    let cut = next.map(|id| {
        chosen.insert(id);
        (id, largest(fleet.waiting_of(id), |n| fits(&chosen, Some((id, n)))))
    });
    let best = attempt(fleet, &chosen, cut, candidates, true);
    let mut best = if best.is_within(candidates, limits) { best } else { attempt(fleet, &chosen, cut, candidates, false) };
    best.is_cut = true;
    best
}

/// The largest number up to `most` for which it holds, if it holds for all smaller ones.
fn largest(most: u32, holds: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if holds(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// What to buy for some groups, types of the highest priority first.
fn attempt(fleet: &Fleet, groups: &BTreeSet<GroupId>, cut: Option<(GroupId, u32)>, candidates: &[Candidate], thorough: bool) -> Bought {
    let (classes, members) = fleet.classes(groups, cut);
    let mut left: Vec<u32> = classes.iter().map(|c| c.count).collect();
    let mut bins = Vec::new();
    let priorities: BTreeSet<i32> = candidates.iter().map(|c| c.priority).collect();
    for priority in priorities.into_iter().rev() {
        let of_tier: Vec<usize> = (0..candidates.len()).filter(|c| candidates[*c].priority == priority).collect();
        let kinds: Vec<Kind> = of_tier
            .iter()
            .map(|c| Kind { capacity: candidates[*c].capacity, price: candidates[*c].weight, most: candidates[*c].most })
            .collect();
        let waiting: Vec<Class> = classes.iter().zip(&left).map(|(class, n)| Class { count: *n, ..class.clone() }).collect();
        let found: Purchase = if thorough { purchase(&kinds, &waiting) } else { first_fit_decreasing(&kinds, &waiting) };
        bins.extend(found.bins.into_iter().map(|bin| (of_tier[bin.kind], bin)));
        left = found.left;
    }
    Bought { bins, classes, members, left, is_cut: false }
}
