//! Which machines to ask for: by number, and for what has no room; from which offer.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::event::{Launch, Purpose, TypeChoice, What};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::{Blocked, Outlook, UnavailableOffer};
use cloudtik_model::spec::{Offer, Spec, WorkerType};
use cloudtik_model::{Generation, MoneyPerHour, NodeId, NodeTypeName};

use super::buy::{Candidate, Limits, buy};
use super::note_blocked;
use crate::Brain;
use crate::clock::doubling;
use crate::packing::{Amounts, Bin, GroupId, Members};

/// Before a purchase that left something over is tried again because nodes changed their states, in milliseconds; it doubles
/// each time that nothing is bought.
const RETRY_PAUSE: u64 = 1_000;
/// The longest such pause.
const LONGEST_RETRY_PAUSE: u64 = 60_000;

/// What a purchase depends on: nodes and requests, by the number of their changes, what is left of the limits, and what may
/// be bought.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tried {
    requests: u64,
    changes: u64,
    limits: Limits,
    offers: Vec<(NodeTypeName, u32, Option<MoneyPerHour>)>,
}

/// One machine to ask for.
struct Order<'o> {
    name: &'o NodeTypeName,
    offer: Offer,
    price: Option<MoneyPerHour>,
    purpose: Purpose,
}

impl Brain {
    /// Asks for the workers that are wanted by number and are not there, up to a number for each type.
    pub(super) fn launch_wanted(&mut self, spec: &Spec, outlook: &mut Outlook, up_to: impl Fn(&Self, &WorkerType, &NodeTypeName) -> u32) {
        for (name, kind) in &spec.workers {
            let wanted = self.autoscaler.wanted.get(name).cloned().unwrap_or_default();
            let number = up_to(self, kind, name).min(wanted.count);
            let missing = number.saturating_sub(self.autoscaler.tally.counted(name));
            for _ in 0..missing {
                let (offer, price) = match self.may_launch(spec, name, kind) {
                    Ok(found) => found,
                    Err(why) => {
                        note_blocked(outlook, name, why);
                        break;
                    }
                };
                let purpose = Purpose::Count { missing, node_type: name.clone(), source: wanted.sources.first().cloned() };
                if self.request(spec, Order { name, offer, price, purpose }, None).is_none() {
                    break;
                }
            }
        }
    }

    /// Asks for the nodes on which what has no room will have it.
    pub(super) fn launch_for_requests(&mut self, spec: &Spec, outlook: &mut Outlook) {
        if self.autoscaler.fleet.waiting_or_parked().is_empty() {
            self.autoscaler.tried = None;
            return;
        }
        let (candidates, blocked) = self.candidates(spec);
        let to_try = self.to_try(spec, &candidates);
        if self.is_worth_trying(&to_try) {
            let launched = self.autoscaler.launched;
            self.autoscaler.fleet.unpark();
            self.park_paused_gangs();
            self.buy_for_requests(spec, &candidates, &blocked);
            if self.repack(spec) {
                let (candidates, blocked) = self.candidates(spec);
                self.buy_for_requests(spec, &candidates, &blocked);
            }
            self.count_on_launched();
            // What was fruitless is tried less and less often while nothing but nodes' states changes.
            let is_fruitful = self.autoscaler.launched != launched;
            self.autoscaler.is_loose |= is_fruitful;
            self.autoscaler.fruitless = if is_fruitful { 0 } else { self.autoscaler.fruitless.saturating_add(1) };
            let pause = if is_fruitful { 0 } else { doubling(RETRY_PAUSE, self.autoscaler.fruitless, LONGEST_RETRY_PAUSE) };
            self.autoscaler.retry_at = self.clock.now() + pause;
        }
        let (candidates, blocked) = self.candidates(spec);
        for (name, why) in blocked.iter().filter(|_| !self.autoscaler.fleet.waiting_or_parked().is_empty()) {
            note_blocked(outlook, name, why.clone());
        }
        self.autoscaler.tried = Some(self.to_try(spec, &candidates));
        if let Some(at) = self.next_gang() {
            self.decide_at(at);
        }
        self.note_unmet(spec, outlook, &candidates, &blocked);
    }

    /// Buys for what waits, as far as the limits allow.
    fn buy_for_requests(&mut self, spec: &Spec, candidates: &[Candidate], blocked: &BTreeMap<NodeTypeName, Blocked>) {
        loop {
            let waiting: BTreeSet<GroupId> = self.autoscaler.fleet.waiting().map(|(id, _)| id).collect();
            if waiting.is_empty() {
                return;
            }
            let limits = self.limits(spec);
            let bought = buy(&self.autoscaler.fleet, &waiting, candidates, &limits);
            // A gang that cannot be served whole is not served at all.
            let gangs = waiting.iter().copied().filter(|id| self.autoscaler.fleet.is_gang(*id));
            let (mut unserved, mut halves) = (gangs.collect::<BTreeSet<GroupId>>(), BTreeSet::new());
            for (members, left) in bought.members.iter().zip(&bought.left) {
                for (id, ..) in members.iter().filter(|(id, ..)| self.autoscaler.fleet.is_gang(*id)) {
                    unserved.remove(id);
                    if *left > 0 {
                        halves.insert(*id);
                    }
                }
            }
            // What it gives back may be enough for others, and what was to be bought for half of it is not needed.
            let mut is_stale = !halves.is_empty();
            for id in unserved.into_iter().chain(halves) {
                self.note_unserved(id);
                is_stale |= self.autoscaler.fleet.park(id);
            }
            if is_stale {
                continue;
            }
            let bought = self.exchange(candidates, &limits, bought);
            let mut members = bought.members.clone();
            let mut explained: BTreeMap<usize, NodeId> = BTreeMap::new();
            for (candidate, bin) in &bought.bins {
                let of = &candidates[*candidate];
                let Ok((offer, price)) = self.may_launch(spec, &of.name, &spec.workers[&of.name]) else { continue };
                // Once for each type: the reasons are much the same for all that are bought together.
                let choice = match explained.get(candidate) {
                    Some(first) => TypeChoice::AsFor { node: first.clone() },
                    None => TypeChoice::Not { types: self.compare_types(spec, &bought, candidates, *candidate, bin, blocked) },
                };
                let (needs, requests) = self.explain(&bought, bin);
                let order = Order { name: &of.name, offer, price, purpose: Purpose::Room { needs, requests, choice } };
                if let Some(id) = self.request(spec, order, Some((of.capacity, bin, &mut members))) {
                    explained.entry(*candidate).or_insert(id);
                }
            }
            return;
        }
    }

    /// Whether a purchase may find more than the last one did, which left something over.
    fn is_worth_trying(&mut self, to_try: &Tried) -> bool {
        let now = self.clock.now();
        let Some(tried) = &self.autoscaler.tried else { return true };
        if self.next_gang().is_some_and(|at| at <= now) {
            return true;
        }
        let repack_at = self.autoscaler.repack_postponed.then_some(self.autoscaler.repack_not_before);
        if repack_at.is_some_and(|at| at <= now) {
            return true;
        }
        let more = |was: Option<MoneyPerHour>, is: Option<MoneyPerHour>| match (was, is) {
            (Some(was), Some(is)) => is > was,
            (was, is) => was.is_some() && is.is_none(),
        };
        let is_new = |offer: &(NodeTypeName, u32, Option<MoneyPerHour>)| {
            let known = tried.offers.iter().find(|(name, ..)| *name == offer.0);
            known.is_none_or(|(_, most, price)| *most < offer.1 || *price != offer.2)
        };
        let has_more_room = to_try.limits.nodes > tried.limits.nodes || more(tried.limits.money, to_try.limits.money);
        // The same would lead to the same.
        let is_same = tried == to_try;
        let is_more = tried.requests != to_try.requests || has_more_room || to_try.offers.iter().any(is_new);
        if !is_same && (is_more || now >= self.autoscaler.retry_at) {
            return true;
        }
        for at in repack_at.into_iter().chain((!is_same).then_some(self.autoscaler.retry_at)) {
            self.decide_at(at);
        }
        false
    }

    fn to_try(&self, spec: &Spec, candidates: &[Candidate]) -> Tried {
        let offers = candidates.iter().map(|of| (of.name.clone(), of.most, of.price)).collect();
        Tried { requests: self.autoscaler.request_changes, changes: self.autoscaler.changes, limits: self.limits(spec), offers }
    }

    /// The types of which something may be bought just now, and why nothing of the others.
    pub(super) fn candidates(&mut self, spec: &Spec) -> (Vec<Candidate>, BTreeMap<NodeTypeName, Blocked>) {
        let (mut candidates, mut blocked) = (Vec::new(), BTreeMap::new());
        for (name, kind) in &spec.workers {
            let Some(capacity) = self.capacity_of(name) else {
                blocked.insert(name.clone(), Blocked::ResourcesUnknown);
                continue;
            };
            match self.may_launch(spec, name, kind) {
                Ok((_, price)) => {
                    let most = kind.max.saturating_sub(self.autoscaler.tally.exist_of(name));
                    candidates.push(Candidate::new(name, kind, capacity, price, most, self.learned(name)));
                }
                Err(why) => {
                    blocked.insert(name.clone(), why);
                }
            }
        }
        (candidates, blocked)
    }

    /// What may be bought at most for room, beside what there is and what minima and requests by number still lack.
    pub(super) fn limits(&self, spec: &Spec) -> Limits {
        let (mut missing, mut dear) = (0u32, MoneyPerHour(0));
        for (name, kind) in &spec.workers {
            let of_type = self.base(spec, name).saturating_sub(self.autoscaler.tally.counted(name));
            missing = missing.saturating_add(of_type);
            dear = [dear, kind.most_expensive().unwrap_or_default().times(of_type)].into_iter().sum();
        }
        let spent = self.autoscaler.tally.spent(spec).0.saturating_add(dear.0);
        Limits {
            nodes: spec.max_workers.saturating_sub(self.autoscaler.tally.exist().saturating_add(missing)),
            money: spec.budget.map(|b| MoneyPerHour(b.0.saturating_sub(spent))),
        }
    }

    /// The offer from which one more of a type may be asked for, or why not.
    fn may_launch(&mut self, spec: &Spec, name: &NodeTypeName, kind: &WorkerType) -> Result<(Offer, Option<MoneyPerHour>), Blocked> {
        let tally = &self.autoscaler.tally;
        if let Some(pause) = self.autoscaler.stored.paused.get(name) {
            return Err(Blocked::Paused { why: pause.reason.clone() });
        }
        if tally.exist_of(name) >= kind.max {
            let counted = tally.counted(name);
            let leaving = tally.exist_of(name).saturating_sub(counted);
            return Err(Blocked::TypeMaximum { max: kind.max, leaving });
        }
        if tally.exist() >= spec.max_workers {
            return Err(Blocked::ClusterMaximum { max: spec.max_workers });
        }
        let spent = tally.spent(spec);
        let (mut short, mut dear, mut retry) = (Vec::new(), None, u64::MAX);
        for (offer, price) in kind.offers() {
            if let (Some(budget), Some(price)) = (spec.budget, price)
                && spent.0.saturating_add(price.0) > budget.0
            {
                let left = MoneyPerHour(budget.0.saturating_sub(spent.0));
                dear = Some(Blocked::Budget { budget, left, price });
                continue;
            }
            match self.autoscaler.launching.shortages.get(&(name.clone(), offer.clone())) {
                Some(shortage) if shortage.until > self.clock.now() => {
                    short.push(UnavailableOffer { offer, why: shortage.why.clone() });
                    retry = retry.min(shortage.until);
                }
                _ => return Ok((offer, price)),
            }
        }
        if retry < u64::MAX {
            self.decide_at(retry);
            return Err(Blocked::Unavailable { offers: short });
        }
        Err(dear.unwrap_or(Blocked::NotOffered))
    }

    /// Stores that a machine is wanted, and asks for it.
    fn request(&mut self, spec: &Spec, order: Order<'_>, content: Option<(Amounts, &Bin, &mut Members)>) -> Option<NodeId> {
        let now = self.clock.now();
        let id = self.free_id(order.name, spec.workers.get(order.name)?.max)?;
        let generation = self.nodes.get(&id).map_or(Generation(1), |n| n.record.generation.next());
        let mut record = NodeRecord::requested(id.clone(), generation, order.name.clone(), self.clock.wall());
        self.autoscaler.launched += 1;
        record.number = self.autoscaler.launched;
        let offer = order.offer;
        (record.revision, record.price, record.offer) = (self.revision_for_new(spec, order.name), order.price, offer.clone());
        record.shape = spec.workers.get(order.name).map(WorkerType::shape);
        record.was_lost = self.nodes.get(&id).is_some_and(|n| n.record.was_lost);
        self.nodes.create(record, now);
        if let Some((capacity, bin, members)) = content {
            self.autoscaler.fleet.add_bought(id.clone(), capacity, bin, members);
        }
        self.recount(&id);
        self.store_node(&id);
        let replaces = self.autoscaler.launching.take_lost(order.name, now);
        if let Some((lost, _)) = replaces.as_ref().filter(|(lost, _)| *lost != id) {
            self.event(Some(lost), What::ReplacedBy { node: id.clone(), generation });
        }
        let launch = Launch { node: id.clone(), generation, offer, purpose: order.purpose, replaces };
        self.event(Some(&id), What::Launch(Box::new(launch)));
        self.drive(&id);
        Some(id)
    }

    /// The lowest ordinal whose node does not exist.
    fn free_id(&mut self, name: &NodeTypeName, max: u32) -> Option<NodeId> {
        let from = self.autoscaler.launching.lowest_free.get(name).copied().unwrap_or(1);
        let (ordinal, id) = (from..=max.saturating_mul(2).max(max))
            .map(|ordinal| (ordinal, NodeId::worker(name, ordinal)))
            .find(|(_, id)| self.nodes.get(id).is_none_or(|n| n.record.life == NodeState::Gone))?;
        self.autoscaler.launching.lowest_free.insert(name.clone(), ordinal + 1);
        Some(id)
    }
}
