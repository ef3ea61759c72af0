//! Before a machine with something rare, such as GPUs, is bought: work that needs nothing of the kind and lies on those that are
//! there is planned on cheaper ones, if that costs less.

use std::collections::BTreeSet;

use cloudtik_model::event::What;

use super::buy::{Bought, Candidate, Limits, buy};
use crate::Brain;
use crate::packing::{Amounts, Before, Bin, Class, Exchange, Fleet, GroupId, Kind, first_fit_decreasing, take_members};

/// Of the demands that one machine would be bought for, so many are looked at one by one.
const MAX_SINGLES: usize = 16;

impl Brain {
    /// What to buy in the place of `bought`, if less is enough once work that needs nothing rare lies elsewhere. It is
    /// planned so then, which counts on the machines that are bought.
    pub(super) fn exchange(&mut self, candidates: &[Candidate], limits: &Limits, bought: Bought) -> Bought {
        let left = |bought: &Bought, fleet: &Fleet| {
            let waiting: u64 = fleet.waiting().map(|(id, _)| u64::from(fleet.waiting_of(id))).sum();
            waiting - bought.demands().min(waiting)
        };
        let is_rare = |class: &Class| !class.need.rare().is_nothing();
        let fleet = &mut self.autoscaler.fleet;
        // What was laid out just now has room for what is rare already.
        if self.autoscaler.is_laid_out || !bought.classes.iter().any(is_rare) {
            return bought;
        }
        let left_before = left(&bought, fleet);
        let Some((exchanges, before)) = make_exchanges(fleet, candidates, &bought) else { return bought };
        let waiting: BTreeSet<GroupId> = fleet.waiting().map(|(id, _)| id).collect();
        let other = buy(fleet, &waiting, candidates, limits);
        let moved = exchanges.iter().flat_map(|exchange| &exchange.work);
        let serves_moved = moved.map(|(id, ..)| *id).collect::<BTreeSet<_>>().into_iter().all(|id| other.left_of(fleet, id) == 0);
        if !serves_moved || left(&other, fleet) > left_before || other.weight(candidates) >= bought.weight(candidates) {
            fleet.put_as_before(&before);
            return bought;
        }
        if !other.bins.is_empty() {
            self.begin_tentative_from(before);
        }
        for Exchange { node, work } in exchanges {
            let whose: BTreeSet<&String> = work.iter().filter_map(|(id, ..)| self.autoscaler.groups.get(id)).collect();
            let requests = whose.into_iter().take(5).cloned().collect();
            self.event(Some(&node), What::PlacementsMoved { requests });
        }
        other
    }
}

/// The same for each of the demands that a machine would be bought for by itself: all of them, or none.
fn exchange_singly(
    fleet: &mut Fleet,
    before: &mut Before,
    classes: &[Class],
    rare: &[(usize, u32)],
    others: Vec<(GroupId, usize, u32)>,
    judge: &impl Fn(&[(Amounts, u32)]) -> Option<u64>,
) -> Vec<Exchange> {
    let needs = rare.iter().flat_map(|(class, n)| std::iter::repeat_n(classes[*class].need, *n as usize));
    let singles = others.iter().flat_map(|(id, shape, n)| std::iter::repeat_n((*id, *shape, 1), *n as usize));
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut own = fleet.before(&others.iter().map(|(id, ..)| *id).collect());
    for (need, single) in needs.zip(singles).take(MAX_SINGLES) {
        let Some(exchange) = fleet.find_exchange(&need, &[single.0], judge) else {
            fleet.put_as_before(&own);
            return Vec::new();
        };
        for known in [&mut *before, &mut own] {
            fleet.note_before(known, exchange.work.iter().map(|(id, ..)| *id));
        }
        fleet.exchange(&exchange, &[single]);
        exchanges.push(exchange);
    }
    exchanges
}

/// Plans work elsewhere so that less is to be bought, perhaps: what was moved, and what lay where before.
fn make_exchanges(fleet: &mut Fleet, candidates: &[Candidate], bought: &Bought) -> Option<(Vec<Exchange>, Before)> {
    let mut exchanges = Vec::new();
    let mut before: Option<Before> = None;
    let mut members = bought.members.clone();
    let kinds: Vec<Kind> = candidates.iter().map(|of| Kind { capacity: of.capacity, price: of.weight, most: of.most }).collect();
    for (candidate, Bin { content, .. }) in &bought.bins {
        let is_rare = |(class, _): &&(usize, u32)| !bought.classes[*class].need.rare().is_nothing();
        let rare: Vec<(usize, u32)> = content.iter().filter(is_rare).copied().collect();
        if rare.is_empty() {
            continue;
        }
        let need = rare.iter().fold(Amounts::default(), |sum, (class, n)| sum.plus(&bought.classes[*class].need.times(*n)));
        let others: Vec<(GroupId, usize, u32)> = rare.iter().flat_map(|(class, n)| take_members(&mut members[*class], *n)).collect();
        let groups: Vec<GroupId> = others.iter().map(|(id, ..)| *id).collect();
        let plain = content.iter().filter(|part| !is_rare(part));
        let beside: Vec<Class> = plain.map(|(class, n)| Class { count: *n, ..bought.classes[*class].clone() }).collect();
        let judge = |work: &[(Amounts, u32)]| {
            let work = work.iter().map(|(need, count)| Class { need: *need, count: *count, apart: None });
            let found = first_fit_decreasing(&kinds, &work.chain(beside.iter().cloned()).collect::<Vec<_>>());
            let cost = found.cost(&kinds);
            (found.left.iter().all(|n| *n == 0) && cost < candidates[*candidate].weight).then_some(cost)
        };
        let before = before.get_or_insert_with(|| fleet.before(&fleet.waiting().map(|(id, _)| id).collect()));
        if let Some(exchange) = fleet.find_exchange(&need, &groups, &judge) {
            fleet.note_before(before, exchange.work.iter().map(|(id, ..)| *id));
            fleet.exchange(&exchange, &others);
            exchanges.push(exchange);
        } else if others.iter().map(|(.., n)| n).sum::<u32>() > 1 {
            exchanges.extend(exchange_singly(fleet, before, &bought.classes, &rare, others, &judge));
        }
    }
    if exchanges.is_empty() {
        return None;
    }
    fleet.settle();
    Some((exchanges, before?))
}
