//! What to buy for what has no room, within limits: of types of the highest priority first, for those who asked first.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::spec::WorkerType;
use cloudtik_model::{MoneyPerHour, NodeTypeName, Resources};

use super::usual_price;
use crate::packing::{Amounts, Bin, Class, Fleet, GroupId, Kind, Members, Purchase, at_least, first_fit_decreasing, purchase};

/// So many that cannot be served are passed over for those that asked later.
const MOST_SKIPS: usize = 32;

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
}

impl Bought {
    /// Whether every gang that has something of it has all of it.
    fn serves_gangs(&self, fleet: &Fleet) -> bool {
        let left = self.members.iter().zip(&self.left).filter(|(_, left)| **left > 0);
        left.flat_map(|(members, _)| members).all(|(id, ..)| !fleet.is_gang(*id))
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

    /// Whether anything more may be bought.
    fn leaves_any(&self, candidates: &[Candidate], limits: &Limits) -> bool {
        let left = limits.money.map(|money| money.0.saturating_sub(self.money(candidates).0));
        let is_affordable = |of: &Candidate| left.is_none_or(|left| of.price.unwrap_or_default().0 <= left);
        self.nodes() < limits.nodes && candidates.iter().any(is_affordable)
    }

    /// Whether it serves everybody, within the limits.
    fn is_enough(&self, candidates: &[Candidate], limits: &Limits) -> bool {
        self.left.iter().all(|n| *n == 0) && self.is_within(candidates, limits)
    }

    fn is_within(&self, candidates: &[Candidate], limits: &Limits) -> bool {
        self.nodes() <= limits.nodes && limits.money.is_none_or(|money| self.money(candidates) <= money)
    }
}

/// Finds what to buy for the groups that wait: for all of them if the limits allow, else for as many as possible, in order.
pub(super) fn buy(fleet: &Fleet, groups: &BTreeSet<GroupId>, candidates: &[Candidate], limits: &Limits) -> Bought {
    if could_hold(fleet, groups, candidates, limits) {
        let whole = attempt(fleet, groups, None, candidates, true);
        if whole.is_within(candidates, limits) && whole.serves_gangs(fleet) {
            return whole;
        }
        // What is dearer may be fewer nodes.
        let plain = attempt(fleet, groups, None, candidates, false);
        if plain.is_enough(candidates, limits) {
            return plain;
        }
    }
    let fits = |of: &BTreeSet<GroupId>, cut: Option<(GroupId, u32)>| {
        let found = attempt(fleet, of, cut, candidates, false);
        found.is_within(candidates, limits) && found.serves_gangs(fleet)
    };
    // Who cannot be served even alone is in nobody's way.
    let could_be_served = |id: &GroupId| !fleet.is_gang(*id) || could_hold(fleet, &BTreeSet::from([*id]), candidates, limits);
    let mut rest: Vec<GroupId> = groups.iter().copied().filter(could_be_served).collect();
    let (mut chosen, mut cut): (BTreeSet<GroupId>, Option<(GroupId, u32)>) = (BTreeSet::new(), None);
    for _ in 0..MOST_SKIPS {
        let with = |n: u32| -> BTreeSet<GroupId> { chosen.iter().chain(&rest[..n as usize]).copied().collect() };
        let served = largest(rest.len() as u32, |n| fits(&with(n), cut));
        chosen = with(served);
        rest.drain(..served as usize);
        if rest.is_empty() {
            break;
        }
        // Who cannot be served whole is in nobody's way; of one of them goes as much as fits, if half of it is of use.
        let next = rest.remove(0);
        if cut.is_none() && !fleet.is_gang(next) {
            let mut with_it = chosen.clone();
            with_it.insert(next);
            let n = largest(fleet.waiting_of(next), |n| fits(&with_it, Some((next, n))));
            if n > 0 {
                (chosen, cut) = (with_it, Some((next, n)));
            }
        }
        if !attempt(fleet, &chosen, cut, candidates, false).leaves_any(candidates, limits) {
            break;
        }
    }
    let best = attempt(fleet, &chosen, cut, candidates, true);
    if best.is_within(candidates, limits) { best } else { attempt(fleet, &chosen, cut, candidates, false) }
}

/// Whether [`buy`] finds room for all of the groups that wait: what is quickly answered is not looked at for long.
pub(super) fn can_have_all(fleet: &Fleet, groups: &BTreeSet<GroupId>, candidates: &[Candidate], limits: &Limits) -> bool {
    let is_enough = |thorough: bool| attempt(fleet, groups, None, candidates, thorough).is_enough(candidates, limits);
    could_hold(fleet, groups, candidates, limits) && (is_enough(false) || is_enough(true))
}

/// Whether what waits may be to be had at all: false where it is quickly seen that it is too much, resource by resource,
/// for everything that may be bought.
fn could_hold(fleet: &Fleet, groups: &BTreeSet<GroupId>, candidates: &[Candidate], limits: &Limits) -> bool {
    let (classes, _) = fleet.classes(groups, None);
    let needed = classes.iter().fold(Amounts::default(), |sum, class| sum.plus(&class.need.times(class.count)));
    let all = candidates.iter().fold(Amounts::default(), |sum, of| sum.plus(&of.capacity.times(of.most.min(limits.nodes))));
    if !needed.fits(&all) {
        return false;
    }
    let kind = |of: &Candidate| Kind { capacity: of.capacity, price: of.price.unwrap_or_default().0, most: of.most };
    let kinds: Vec<Kind> = candidates.iter().map(kind).collect();
    let (money, nodes) = at_least(&kinds, &classes);
    nodes <= limits.nodes as usize && limits.money.is_none_or(|most| money <= most.0)
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
pub(super) fn attempt(
    fleet: &Fleet,
    groups: &BTreeSet<GroupId>,
    cut: Option<(GroupId, u32)>,
    candidates: &[Candidate],
    thorough: bool,
) -> Bought {
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
    Bought { bins, classes, members, left }
}
