//! What to buy for what has no room, within limits: of types of the highest priority first, for those who asked first.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::spec::WorkerType;
use cloudtik_model::{MoneyPerHour, NodeTypeName, Resources};

use super::shapes::usual_price;
use crate::packing::{Amounts, Bin, Class, Fleet, GPUS, GroupId, Kind, Members, Purchase, at_least, first_fit_decreasing, purchase};

/// So many that cannot be served are passed over for those that asked later.
const MAX_SKIPS: usize = 32;

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
    way: Way,
}

impl Bought {
    /// Whether every gang that has something of it has all of it.
    fn serves_gangs(&self, fleet: &Fleet) -> bool {
        let left = self.members.iter().zip(&self.left).filter(|(_, left)| **left > 0);
        left.flat_map(|(members, _)| members).all(|(id, ..)| !fleet.is_gang(*id))
    }

    /// It is what a maximum or the budget leaves, and not what is usually preferred.
    pub(super) fn is_second_choice(&self) -> bool {
        self.way != Way::USUAL
    }

    pub(super) fn nodes(&self) -> u32 {
        self.bins.len() as u32
    }

    /// Of what a group waited for, how much is bought nothing for.
    pub(super) fn left_of(&self, fleet: &Fleet, id: GroupId) -> u32 {
        let of_group = |members: &[(GroupId, usize, u32)]| members.iter().filter(|(of, ..)| *of == id).map(|(.., n)| *n).sum::<u32>();
        let served = self.members.iter().zip(&self.left).filter(|(_, left)| **left == 0).map(|(members, _)| of_group(members)).sum();
        fleet.waiting_of(id).saturating_sub(served)
    }

    /// By what purchases are compared.
    pub(super) fn weight(&self, candidates: &[Candidate]) -> u64 {
        self.bins.iter().fold(0, |sum, (c, _)| sum.saturating_add(candidates[*c].weight))
    }

    /// How many demands have room on it.
    pub(super) fn demands(&self) -> u64 {
        self.bins.iter().flat_map(|(_, bin)| &bin.content).map(|(_, n)| u64::from(*n)).sum()
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

/// By what purchases are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    /// Types of the highest priority first, whatever they cost.
    by_priority: bool,
    /// What every node costs beside its price: the more, the fewer nodes there are.
    per_node: u64,
}

impl Way {
    const USUAL: Self = Self { by_priority: true, per_node: 0 };

    /// The others that may keep within limits where the usual one does not: what is cheaper, or fewer nodes.
    fn others(found: &Bought, candidates: &[Candidate], limits: &Limits) -> Vec<Self> {
        let most_expensive = candidates.iter().map(|of| of.weight).max().unwrap_or(1);
        let are_too_many = found.nodes() > limits.nodes;
        let per_node: &[u64] =
            if are_too_many { &[most_expensive / 4, most_expensive, most_expensive.saturating_mul(1_000)] } else { &[0] };
        let of = |by_priority: bool| per_node.iter().map(move |per_node| Self { by_priority, per_node: *per_node });
        let differ = candidates.iter().any(|of| of.priority != candidates[0].priority);
        let all = of(true).chain(of(false).filter(|_| differ));
        if candidates.len() < 2 { Vec::new() } else { all.filter(|way| *way != Self::USUAL).collect() }
    }
}

/// Finds what to buy for the groups that wait: for all of them if the limits allow, else for as many as possible, in order.
pub(super) fn buy(fleet: &Fleet, groups: &BTreeSet<GroupId>, candidates: &[Candidate], limits: &Limits) -> Bought {
    let could_hold_all = could_hold(fleet, groups, candidates, limits);
    if could_hold_all {
        let whole = attempt(fleet, groups, None, candidates, true);
        if whole.is_within(candidates, limits) && whole.serves_gangs(fleet) {
            return whole;
        }
    }
    let plain = attempt(fleet, groups, None, candidates, false);
    let others = Way::others(&plain, candidates, limits);
    if could_hold_all {
        // What is dearer may be fewer nodes.
        if plain.is_enough(candidates, limits) {
            return plain;
        }
        let found = others.iter().map(|way| attempt_by(*way, fleet, groups, None, candidates, true));
        let enough = found.filter(|found| found.is_enough(candidates, limits));
        if let Some(cheapest) = enough.min_by_key(|found| (found.money(candidates), found.nodes())) {
            return cheapest;
        }
    }
    let serves = |found: &Bought| found.is_within(candidates, limits) && found.serves_gangs(fleet);
    // Those that buy the fewest nodes leave room for the most.
    let ways: Vec<Way> = [Way::USUAL].into_iter().chain(others.last().copied()).collect();
    let fits = |of: &BTreeSet<GroupId>, cut: Option<(GroupId, u32)>| {
        ways.iter().any(|way| serves(&attempt_by(*way, fleet, of, cut, candidates, false)))
    };
    // Who cannot be served even alone is in nobody's way.
    let could_be_served = |id: &GroupId| !fleet.is_gang(*id) || could_hold(fleet, &BTreeSet::from([*id]), candidates, limits);
    let mut rest: Vec<GroupId> = groups.iter().copied().filter(could_be_served).collect();
    let (mut chosen, mut cut): (BTreeSet<GroupId>, Option<(GroupId, u32)>) = (BTreeSet::new(), None);
    for _ in 0..MAX_SKIPS {
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
    // Of those that were not looked at, at least what needs not all of its room.
    let plain: Vec<GroupId> = rest.into_iter().filter(|id| !fleet.is_gang(*id)).collect();
    let with = |n: u32| -> BTreeSet<GroupId> { chosen.iter().chain(&plain[..n as usize]).copied().collect() };
    let served = largest(plain.len() as u32, |n| fits(&with(n), cut));
    chosen = with(served);
    let tries = ways.iter().flat_map(|way| [true, false].map(|thorough| (*way, thorough)));
    let mut found = tries.map(|(way, thorough)| attempt_by(way, fleet, &chosen, cut, candidates, thorough));
    found.find(serves).unwrap_or_else(|| attempt(fleet, &BTreeSet::new(), None, candidates, false))
}

/// Whether [`buy`] finds room for all of the groups that wait: what is quickly answered is not looked at for long.
pub(super) fn can_have_all(fleet: &Fleet, groups: &BTreeSet<GroupId>, candidates: &[Candidate], limits: &Limits) -> bool {
    if !could_hold(fleet, groups, candidates, limits) {
        return false;
    }
    let is_enough = |found: &Bought| found.is_enough(candidates, limits);
    let plain = attempt(fleet, groups, None, candidates, false);
    if is_enough(&plain) {
        return true;
    }
    let others = Way::others(&plain, candidates, limits);
    let by = |way: &Way, thorough: bool| is_enough(&attempt_by(*way, fleet, groups, None, candidates, thorough));
    others.iter().any(|way| by(way, false)) || by(&Way::USUAL, true) || others.iter().any(|way| by(way, true))
}

/// What would be bought if nothing but the number of nodes were limited: fewer nodes where the usual choice has too many.
pub(super) fn least(fleet: &Fleet, groups: &BTreeSet<GroupId>, candidates: &[Candidate], most: u32, thorough: bool) -> Bought {
    let usual = attempt(fleet, groups, None, candidates, thorough);
    let limits = Limits { nodes: most, money: None };
    let others = Way::others(&usual, candidates, &limits).into_iter().filter(|_| usual.nodes() > most);
    let fewest = others.map(|way| attempt_by(way, fleet, groups, None, candidates, thorough)).min_by_key(Bought::nodes);
    fewest.filter(|fewest| fewest.nodes() < usual.nodes()).unwrap_or(usual)
}

/// Whether what waits may be to be had at all: false where it is quickly seen that it is too much, resource by resource,
/// for everything that may be bought.
fn could_hold(fleet: &Fleet, groups: &BTreeSet<GroupId>, candidates: &[Candidate], limits: &Limits) -> bool {
    let (classes, _) = fleet.classes(groups, None);
    let needed = classes.iter().fold(Amounts::default(), |sum, class| sum.plus(&class.need.times(class.count)));
    let all = candidates.iter().fold(Amounts::default(), |sum, of| sum.plus(&of.capacity.times(of.most.min(limits.nodes))));
    let fits_somewhere = |class: &Class| candidates.iter().any(|of| of.most > 0 && class.need.fits(&of.capacity));
    if !needed.fits(&all) || !classes.iter().all(fits_somewhere) {
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
    attempt_by(Way::USUAL, fleet, groups, cut, candidates, thorough)
}

fn attempt_by(
    way: Way,
    fleet: &Fleet,
    groups: &BTreeSet<GroupId>,
    cut: Option<(GroupId, u32)>,
    candidates: &[Candidate],
    thorough: bool,
) -> Bought {
    let (classes, members) = fleet.classes(groups, cut);
    let mut left: Vec<u32> = classes.iter().map(|c| c.count).collect();
    let mut bins: Vec<(usize, Bin)> = Vec::new();
    let mut most: Vec<u32> = candidates.iter().map(|of| of.most).collect();
    let tier = |of: &Candidate| if way.by_priority { of.priority } else { 0 };
    let tiers: BTreeSet<i32> = candidates.iter().map(tier).collect();
    // Nodes with GPUs are bought for work that needs none where all others are bought up.
    let needs_gpus_after_all = |left: &[u32], most: &[u32]| {
        let plain = || classes.iter().zip(left).filter(|(class, n)| **n > 0 && !class.need.wants_gpus());
        let with_gpus = || candidates.iter().zip(most).filter(|(of, most)| **most > 0 && of.capacity.0[GPUS] > 0);
        with_gpus().any(|(of, _)| plain().any(|(class, _)| class.need.fits(&of.capacity)))
    };
    loop {
        let bought = bins.len();
        for of in tiers.iter().rev() {
            let of_tier: Vec<usize> = (0..candidates.len()).filter(|c| tier(&candidates[*c]) == *of).collect();
            let kind = |c: &usize| {
                let of = &candidates[*c];
                Kind { capacity: of.capacity, price: of.weight.saturating_add(way.per_node), most: most[*c] }
            };
            let kinds: Vec<Kind> = of_tier.iter().map(kind).collect();
            let waiting: Vec<Class> = classes.iter().zip(&left).map(|(class, n)| Class { count: *n, ..class.clone() }).collect();
            let found: Purchase = if thorough { purchase(&kinds, &waiting) } else { first_fit_decreasing(&kinds, &waiting) };
            for bin in found.bins {
                most[of_tier[bin.kind]] -= 1;
                bins.push((of_tier[bin.kind], bin));
            }
            left = found.left;
        }
        if bins.len() == bought || !needs_gpus_after_all(&left, &most) {
            return Bought { bins, classes, members, left, way };
        }
    }
}
