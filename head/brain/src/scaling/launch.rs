//! Which machines to ask for: by number, and for what has no room; from which offer.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::event::EventKind;
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::Outlook;
use cloudtik_model::spec::{Offer, Spec, WorkerType};
use cloudtik_model::{Generation, MoneyPerHour, NodeId, NodeTypeName, Timestamp};

use super::buy::{Candidate, Limits, buy};
use super::note_blocked;
use super::pace::Pace;
use crate::clock::doubling;
use crate::packing::{Amounts, Bin, GroupId, Members};
use crate::{Brain, Failure, FailureKind, Node, Pause};

/// The first time that an offer which had nothing is left alone, in milliseconds; it doubles each time.
const SHORTAGE: u64 = 60_000;
/// The longest such time.
const LONGEST_SHORTAGE: u64 = 300_000;
/// So many workers of a type that fail in a row, before any is ready, pause it.
const FAILURES: u32 = 3;
/// The first pause of a type, in milliseconds; it doubles each time.
const PAUSE: u64 = 300_000;
/// The longest pause of a type.
const LONGEST_PAUSE: u64 = 3_600_000;
/// Before a purchase that left something over is tried again because nodes changed their states, in milliseconds; it doubles
/// each time that nothing is bought.
const RETRY_PAUSE: u64 = 1_000;
/// The longest such pause.
const LONGEST_RETRY_PAUSE: u64 = 60_000;

/// What is remembered of offers, types and the provider's patience.
#[derive(Debug, Default)]
pub(crate) struct Launching {
    shortages: BTreeMap<(NodeTypeName, Offer), Shortage>,
    /// Workers of a type that failed in a row.
    failures: BTreeMap<NodeTypeName, u32>,
    /// When pauses of types end, on the monotonic clock.
    pause_ends: BTreeMap<NodeTypeName, u64>,
    /// No lower ordinal of a type is free.
    lowest_free: BTreeMap<NodeTypeName, u32>,
    pace: Pace,
}

#[derive(Debug)]
struct Shortage {
    /// The last machine that was asked for before there was none.
    launched: u64,
    until: u64,
    /// Nothing is taken from others for it before this.
    doubtful_until: u64,
    times: u32,
    reason: String,
}

impl Launching {
    /// Of types that are paused it is known how often that was so.
    pub(crate) fn remember(&mut self, paused: &BTreeMap<NodeTypeName, Pause>) {
        let failures = |pause: &Pause| FAILURES.saturating_sub(1).saturating_add(pause.times);
        self.failures.extend(paused.iter().map(|(name, pause)| (name.clone(), failures(pause))));
    }

    pub(crate) fn forget_shortages(&mut self) {
        self.shortages.clear();
    }

    /// Somebody says that it is worth trying again.
    pub(crate) fn forget_failures(&mut self) {
        self.failures.clear();
    }

    /// A node is gone: its ordinal may be the lowest that is free.
    pub(crate) fn freed(&mut self, name: &NodeTypeName) {
        self.lowest_free.remove(name);
    }
}

/// What a purchase depends on: nodes and requests, by the number of their changes, what is left of the limits, and what may
/// be bought.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tried {
    asks: u64,
    changes: u64,
    limits: Limits,
    offers: Vec<(NodeTypeName, u32, Option<MoneyPerHour>)>,
}

/// One machine to ask for.
struct Order<'o> {
    name: &'o NodeTypeName,
    offer: Offer,
    price: Option<MoneyPerHour>,
    why: String,
    details: BTreeMap<String, String>,
}

impl Brain {
    /// Asks for the workers that are wanted by number and are not there, up to a number for each type.
    pub(super) fn launch_wanted(&mut self, spec: &Spec, outlook: &mut Outlook, up_to: impl Fn(&Self, &WorkerType, &NodeTypeName) -> u32) {
        for (name, kind) in &spec.workers {
            let wanted = self.scaling.wanted.get(name).cloned().unwrap_or_default();
            let number = up_to(self, kind, name).min(wanted.count);
            let missing = number.saturating_sub(self.scaling.tally.counted(name));
            for _ in 0..missing {
                let (offer, price) = match self.may_launch(spec, name, kind) {
                    Ok(found) => found,
                    Err(why) => {
                        note_blocked(outlook, name, why);
                        break;
                    }
                };
                let by = wanted.sources.first().cloned().unwrap_or_default();
                let why = format!("{missing} more of type {name} wanted");
                let details = BTreeMap::from([("wanted by".to_owned(), by), ("offer".to_owned(), offer.to_string())]);
                if self.request(spec, Order { name, offer, price, why, details }, None).is_none() {
                    break;
                }
            }
        }
    }

    /// Asks for the nodes on which what has no room will have it.
    pub(super) fn launch_for_asks(&mut self, spec: &Spec, outlook: &mut Outlook) {
        if self.scaling.fleet.waiting_or_parked().is_empty() {
            self.scaling.tried = None;
            return;
        }
        let (candidates, blocked) = self.candidates(spec);
        let to_try = self.to_try(spec, &candidates);
        if self.is_worth_trying(&to_try) {
            let launched = self.scaling.launched;
            self.scaling.fleet.unpark();
            self.park_paused_gangs();
            self.buy_for_asks(spec, &candidates, &blocked);
            if self.repack(spec) {
                let before = self.scaling.launched;
                let (candidates, blocked) = self.candidates(spec);
                self.buy_for_asks(spec, &candidates, &blocked);
                self.count_on(before);
            }
            // What was fruitless is tried less and less often while nothing but nodes' states changes.
            let is_fruitful = self.scaling.launched != launched;
            self.scaling.is_loose |= is_fruitful;
            self.scaling.fruitless = if is_fruitful { 0 } else { self.scaling.fruitless.saturating_add(1) };
            let pause = if is_fruitful { 0 } else { doubling(RETRY_PAUSE, self.scaling.fruitless, LONGEST_RETRY_PAUSE) };
            self.scaling.retry_at = self.clock.now() + pause;
        }
        let (candidates, blocked) = self.candidates(spec);
        for (name, why) in blocked.iter().filter(|_| !self.scaling.fleet.waiting_or_parked().is_empty()) {
            note_blocked(outlook, name, why.clone());
        }
        self.scaling.tried = Some(self.to_try(spec, &candidates));
        if let Some(at) = self.next_gang() {
            self.decide_at(at);
        }
        self.tell_unmet(spec, outlook, &candidates, &blocked);
    }

    /// Gangs of which too little was to be had again and again are not tried each time: each try costs machines.
    pub(super) fn park_paused_gangs(&mut self) {
        let now = self.clock.now();
        // What was calm for long enough is no concern any more.
        self.scaling.gangs.retain(|_, pause| pause.has_failed || now < pause.until + LONGEST_PAUSE);
        for (id, pause) in &mut self.scaling.gangs {
            pause.is_parked = now < pause.until && self.scaling.fleet.is_waiting(*id);
        }
        for id in self.paused_gangs() {
            self.scaling.fleet.park(id);
        }
    }

    /// When the next gang that was passed over is tried again.
    fn next_gang(&self) -> Option<u64> {
        self.scaling.gangs.values().filter(|pause| pause.is_parked).map(|pause| pause.until).min()
    }

    pub(super) fn paused_gangs(&self) -> Vec<GroupId> {
        self.scaling.gangs.iter().filter(|(_, pause)| pause.is_parked).map(|(id, _)| *id).collect()
    }

    /// A machine that a gang was to have is not to be had: if it is not from another offer either, what was bought for the
    /// others of it was for nothing.
    pub(crate) fn note_gangs_without(&mut self, id: &NodeId) {
        for group in self.scaling.fleet.groups_on(id).into_iter().filter(|group| self.scaling.fleet.is_gang(*group)) {
            self.scaling.gangs.entry(group).or_default().has_failed = true;
        }
    }

    /// A gang cannot be served. If some of it was asked for and not to be had, it waits longer each time.
    fn note_unserved(&mut self, id: GroupId) {
        let now = self.clock.now();
        let Some(pause) = self.scaling.gangs.get_mut(&id) else { return };
        if std::mem::take(&mut pause.has_failed) {
            pause.times += 1;
            pause.until = now + doubling(SHORTAGE, pause.times, LONGEST_PAUSE);
            pause.is_parked = true;
        }
    }

    /// Buys for what waits, as far as the limits allow.
    fn buy_for_asks(&mut self, spec: &Spec, candidates: &[Candidate], blocked: &BTreeMap<NodeTypeName, String>) {
        loop {
            let waiting: BTreeSet<GroupId> = self.scaling.fleet.waiting().map(|(id, _)| id).collect();
            if waiting.is_empty() {
                return;
            }
            let limits = self.limits(spec);
            let bought = buy(&self.scaling.fleet, &waiting, candidates, &limits);
            // A gang that cannot be served whole is not served at all.
            let gangs = waiting.iter().copied().filter(|id| self.scaling.fleet.is_gang(*id));
            let (mut unserved, mut halves) = (gangs.collect::<BTreeSet<GroupId>>(), BTreeSet::new());
            for (members, left) in bought.members.iter().zip(&bought.left) {
                for (id, ..) in members.iter().filter(|(id, ..)| self.scaling.fleet.is_gang(*id)) {
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
                is_stale |= self.scaling.fleet.park(id);
            }
            if is_stale {
                continue;
            }
            let mut members = bought.members.clone();
            let mut explained: BTreeMap<usize, NodeId> = BTreeMap::new();
            for (candidate, bin) in &bought.bins {
                let of = &candidates[*candidate];
                let Ok((offer, price)) = self.may_launch(spec, &of.name, &spec.workers[&of.name]) else { continue };
                let (why, mut details) = self.explain(&bought, bin, &offer);
                // Once for each type: the reasons are much the same for all that are bought together.
                match explained.get(candidate) {
                    Some(first) => drop(details.insert("reasons".to_owned(), format!("as for {first}"))),
                    None => details.extend(self.compare_types(spec, &bought, candidates, *candidate, bin, blocked)),
                }
                let order = Order { name: &of.name, offer, price, why, details };
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
        let Some(tried) = &self.scaling.tried else { return true };
        if self.next_gang().is_some_and(|at| at <= now) {
            return true;
        }
        let repack_at = self.scaling.repack_postponed.then_some(self.scaling.repack_not_before);
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
        let is_more = tried.asks != to_try.asks || has_more_room || to_try.offers.iter().any(is_new);
        if !is_same && (is_more || now >= self.scaling.retry_at) {
            return true;
        }
        for at in repack_at.into_iter().chain((!is_same).then_some(self.scaling.retry_at)) {
            self.decide_at(at);
        }
        false
    }

    fn to_try(&self, spec: &Spec, candidates: &[Candidate]) -> Tried {
        let offers = candidates.iter().map(|of| (of.name.clone(), of.most, of.price)).collect();
        Tried { asks: self.scaling.ask_changes, changes: self.scaling.changes, limits: self.limits(spec), offers }
    }

    /// The types of which something may be bought just now, and why nothing of the others.
    pub(super) fn candidates(&mut self, spec: &Spec) -> (Vec<Candidate>, BTreeMap<NodeTypeName, String>) {
        let (mut candidates, mut blocked) = (Vec::new(), BTreeMap::new());
        for (name, kind) in &spec.workers {
            let Some(capacity) = self.capacity_of(name) else {
                blocked.insert(name.clone(), "what it offers is not known before one is there".to_owned());
                continue;
            };
            match self.may_launch(spec, name, kind) {
                Ok((_, price)) => {
                    let most = kind.max.saturating_sub(self.scaling.tally.exist_of(name));
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
            let of_type = self.base(spec, name).saturating_sub(self.scaling.tally.counted(name));
            missing = missing.saturating_add(of_type);
            dear = [dear, kind.dearest().unwrap_or_default().times(of_type)].into_iter().sum();
        }
        let spent = self.scaling.tally.spent(spec).0.saturating_add(dear.0);
        Limits {
            nodes: spec.max_workers.saturating_sub(self.scaling.tally.exist().saturating_add(missing)),
            money: spec.budget.map(|b| MoneyPerHour(b.0.saturating_sub(spent))),
        }
    }

    /// The offer from which one more of a type may be asked for, or why not.
    fn may_launch(&mut self, spec: &Spec, name: &NodeTypeName, kind: &WorkerType) -> Result<(Offer, Option<MoneyPerHour>), String> {
        let tally = &self.scaling.tally;
        if let Some(pause) = self.cluster.paused.get(name) {
            return Err(format!("paused: {}", pause.reason));
        }
        if tally.exist_of(name) >= kind.max {
            let counted = tally.counted(name);
            let leaving = tally.exist_of(name).saturating_sub(counted);
            let leaving = if leaving > 0 { format!(", {leaving} of them still leaving or set aside") } else { String::new() };
            return Err(format!("its maximum of {} is reached{leaving}", kind.max));
        }
        if tally.exist() >= spec.max_workers {
            return Err(format!("the cluster's maximum of {} workers is reached", spec.max_workers));
        }
        let spent = tally.spent(spec);
        let (mut short, mut dear, mut retry) = (Vec::new(), None, u64::MAX);
        for (offer, price) in kind.offers() {
            if let (Some(budget), Some(price)) = (spec.budget, price)
                && spent.0.saturating_add(price.0) > budget.0
            {
                dear = Some(format!("the budget of {budget} is spent ({spent}); one costs {price}"));
                continue;
            }
            match self.scaling.launching.shortages.get(&(name.clone(), offer.clone())) {
                Some(shortage) if shortage.until > self.clock.now() => {
                    short.push(format!("{offer}: {}", shortage.reason));
                    retry = retry.min(shortage.until);
                }
                _ => return Ok((offer, price)),
            }
        }
        if retry < u64::MAX {
            self.decide_at(retry);
            return Err(format!("none to be had ({})", short.join("; ")));
        }
        Err(dear.unwrap_or_else(|| "it is offered nowhere".to_owned()))
    }

    /// Stores that a machine is wanted, and asks for it.
    fn request(&mut self, spec: &Spec, order: Order<'_>, content: Option<(Amounts, &Bin, &mut Members)>) -> Option<NodeId> {
        let now = self.clock.now();
        let id = self.free_id(order.name, spec.workers.get(order.name)?.max)?;
        let generation = self.nodes.get(&id).map_or(Generation(1), |n| n.record.generation.next());
        let mut record = NodeRecord::requested(id.clone(), generation, order.name.clone(), self.clock.wall());
        self.scaling.launched += 1;
        record.number = self.scaling.launched;
        (record.revision, record.price, record.offer) = (spec.revision, order.price, order.offer);
        record.shape = spec.workers.get(order.name).map(WorkerType::shape);
        record.was_lost = self.nodes.get(&id).is_some_and(|n| n.record.was_lost);
        let (failures, not_before) = self.nodes.get(&id).map_or((0, 0), |n| (n.failures, n.not_before));
        let mut node = Node::new(record, now);
        (node.failures, node.not_before) = (failures, not_before);
        self.clear_timer(&id);
        self.nodes.insert(id.clone(), node);
        if let Some((capacity, bin, members)) = content {
            self.scaling.fleet.add_bought(id.clone(), capacity, bin, members);
        }
        self.recount(&id);
        self.store_node(&id);
        let message = format!("request {id} (generation {generation}): {}", order.why);
        self.event_with(Some(&id), EventKind::Decision, message, order.details);
        self.drive(&id);
        Some(id)
    }

    /// The lowest ordinal whose node does not exist.
    fn free_id(&mut self, name: &NodeTypeName, max: u32) -> Option<NodeId> {
        let from = self.scaling.launching.lowest_free.get(name).copied().unwrap_or(1);
        let (ordinal, id) = (from..=max.saturating_mul(2).max(max))
            .map(|ordinal| (ordinal, NodeId::worker(name, ordinal)))
            .find(|(_, id)| self.nodes.get(id).is_none_or(|n| n.record.life == NodeState::Gone))?;
        self.scaling.launching.lowest_free.insert(name.clone(), ordinal + 1);
        Some(id)
    }

    /// There is none of what an offer offers: it is left alone for a while, and others are tried.
    pub(crate) fn note_shortage(&mut self, name: &NodeTypeName, offer: &Offer, failure: &Failure) {
        let now = self.clock.now();
        let key = (name.clone(), offer.clone());
        let times = self.scaling.launching.shortages.get(&key).map_or(0, |s| s.times) + 1;
        let pause = doubling(SHORTAGE, times, LONGEST_SHORTAGE);
        let what = if failure.kind == FailureKind::Quota { "quota" } else { "no capacity" };
        let message = format!("{name}, {offer}: {what} ({}); left alone for {} s", failure.message, pause / 1_000);
        let launched = self.scaling.launched;
        if let Some(shortage) = self.scaling.launching.shortages.get_mut(&key).filter(|s| s.until > now) {
            shortage.launched = launched;
        } else {
            let doubtful_until = now + doubling(SHORTAGE, times, LONGEST_PAUSE);
            let shortage = Shortage { launched, until: now + pause, doubtful_until, times, reason: failure.message.clone() };
            self.scaling.launching.shortages.insert(key, shortage);
            self.event(None, EventKind::Decision, message);
        }
        self.scaling_changed();
    }

    /// A worker of a type came up: what was remembered against it is over.
    pub(crate) fn note_success(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let (name, offer) = (node.record.node_type.clone(), node.record.offer.clone());
        let number = node.record.number;
        let launching = &mut self.scaling.launching;
        launching.failures.remove(&name);
        // What was asked for before there was none says nothing of what there is now.
        let key = (name, offer);
        if launching.shortages.get(&key).is_some_and(|shortage| number > shortage.launched) {
            launching.shortages.remove(&key);
        }
    }

    /// A worker failed before it was ever ready.
    pub(crate) fn note_failed(&mut self, name: &NodeTypeName, reason: &str) {
        // What was under way when the type was paused says nothing new of it.
        if self.cluster.paused.contains_key(name) {
            return;
        }
        let launching = &mut self.scaling.launching;
        let failures = launching.failures.entry(name.clone()).or_default();
        *failures += 1;
        let in_a_row = *failures;
        if in_a_row < FAILURES {
            return;
        }
        // After a pause, one more failure is enough for the next, longer one.
        let times = in_a_row - FAILURES + 1;
        let pause = doubling(PAUSE, times, LONGEST_PAUSE);
        let until = Timestamp(self.clock.wall().0.saturating_add(pause));
        self.cluster.paused.insert(name.clone(), Pause { until, reason: reason.to_owned(), times });
        self.store_cluster();
        let message = format!("nothing of type {name} is made for {} s: {in_a_row} in a row failed, the last: {reason}", pause / 1_000);
        self.event(None, EventKind::Alarm, message);
        self.scaling_changed();
    }

    /// Ends pauses whose time is over. How long one lasts is measured once in a head's life: a wall clock that is set makes
    /// none longer or shorter.
    pub(super) fn end_pauses(&mut self) {
        let (now, wall) = (self.clock.monotonic(), self.clock.wall());
        let Self { cluster, scaling, .. } = self;
        let ends = &mut scaling.launching.pause_ends;
        ends.retain(|name, _| cluster.paused.contains_key(name));
        for (name, pause) in &cluster.paused {
            ends.entry(name.clone()).or_insert_with(|| now + pause.until.0.saturating_sub(wall.0).min(LONGEST_PAUSE));
        }
        let over: Vec<NodeTypeName> = ends.iter().filter(|(_, ends)| **ends <= now).map(|(name, _)| name.clone()).collect();
        for name in &over {
            self.cluster.paused.remove(name);
            self.scaling.launching.pause_ends.remove(name);
            self.event(None, EventKind::Decision, format!("type {name} is tried again"));
            self.scaling.changes += 1;
        }
        if !over.is_empty() {
            self.store_cluster();
        }
        if let Some(next) = self.scaling.launching.pause_ends.values().min() {
            self.decide_at(self.clock.now().saturating_add(next - now));
        }
    }

    /// Whether nothing of a type is to be had for now, whatever room the limits leave. Room is made less and less often for a
    /// type of which there was none again and again.
    pub(super) fn is_out_of_reach(&self, name: &NodeTypeName, kind: &WorkerType) -> bool {
        let now = self.clock.now();
        let shortages = &self.scaling.launching.shortages;
        let is_short = |(offer, _): (Offer, Option<MoneyPerHour>)| {
            shortages.get(&(name.clone(), offer)).is_some_and(|shortage| now < shortage.doubtful_until)
        };
        self.cluster.paused.contains_key(name) || kind.offers().into_iter().all(is_short)
    }

    /// A machine that was decided on and not asked for yet is asked for from an offer that is to be had now: the description
    /// may have changed, or there is none of it any more. False if there is none at all, and the machine is given up.
    pub(crate) fn renew_offer(&mut self, id: &NodeId) -> bool {
        let now = self.clock.now();
        let (Some(spec), Some(node)) = (&self.cluster.spec, self.nodes.get(id)) else { return true };
        let record = &node.record;
        let Some(kind) = spec.workers.get(&record.node_type) else { return true };
        // A call that had no answer may have made it: it is asked for again as it was.
        if node.uncertain.is_some() {
            return true;
        }
        let shortages = &self.scaling.launching.shortages;
        let is_short = |offer: &Offer| shortages.get(&(record.node_type.clone(), offer.clone())).is_some_and(|s| now < s.until);
        let offers = kind.offers();
        if offers.iter().any(|(offer, _)| *offer == record.offer) && !is_short(&record.offer) {
            return true;
        }
        let others = self.scaling.tally.spent(spec).0.saturating_sub(record.price.or(kind.price).unwrap_or_default().0);
        let is_affordable =
            |price: Option<MoneyPerHour>| spec.budget.is_none_or(|budget| others.saturating_add(price.unwrap_or_default().0) <= budget.0);
        let found = offers.into_iter().find(|(offer, price)| !is_short(offer) && is_affordable(*price));
        let Some((offer, price)) = found else {
            self.forget(id, "what it was to be is not to be had any more");
            return false;
        };
        if let Some(node) = self.nodes.get_mut(id) {
            (node.record.offer, node.record.price) = (offer, price);
        }
        self.store_node(id);
        self.recount(id);
        self.reconsider_scale();
        true
    }

    pub(crate) fn pace(&mut self) -> &mut Pace {
        &mut self.scaling.launching.pace
    }
}
