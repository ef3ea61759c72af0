//! Which machines to ask for: by number, and for what has no room; from which offer, and at which pace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cloudtik_model::event::EventKind;
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::Outlook;
use cloudtik_model::spec::{Offer, Spec, WorkerType};
use cloudtik_model::{Generation, MoneyPerHour, NodeId, NodeTypeName, Resources, Timestamp};

use super::{note_blocked, note_unmet, usual_price};
use crate::packing::{Amounts, Bin, Class, Fleet, GPUS, GroupId, Kind, Members, Purchase, first_fit_decreasing, purchase};
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
/// Calls a minute below which throttling does not slow the head down.
const SLOWEST: u64 = 6;
/// Calls a minute from which on nothing is held back any more.
const UNHINDERED: u64 = 6_000;
/// What one call costs of what a rate of one a minute brings in a millisecond.
const CALL: u64 = 60_000;
/// The least time without calls after the provider said that there were too many, in milliseconds.
const RESPITE: u64 = 1_000;

/// What is remembered of offers, types and the provider's patience.
#[derive(Debug, Default)]
pub(crate) struct Launching {
    shortages: BTreeMap<(NodeTypeName, Offer), Shortage>,
    /// Workers of a type that failed in a row.
    failures: BTreeMap<NodeTypeName, u32>,
    /// No lower ordinal of a type is free.
    lowest_free: BTreeMap<NodeTypeName, u32>,
    pace: Pace,
}

#[derive(Debug)]
struct Shortage {
    until: u64,
    times: u32,
    reason: String,
}

impl Launching {
    pub(crate) fn forget_shortages(&mut self) {
        self.shortages.clear();
    }

    /// A node is gone: its ordinal may be the lowest that is free.
    pub(crate) fn freed(&mut self, name: &NodeTypeName) {
        self.lowest_free.remove(name);
    }
}

/// A token bucket whose rate follows the provider's answers: halved when it says that there were too many calls, raised
/// with each that it takes (additive increase, multiplicative decrease: Chiu and Jain 1989).
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Calls a minute, and what is saved up; nothing while the provider never complained.
    limit: Option<(u64, u64)>,
    refilled: u64,
    blocked_until: u64,
    /// When the last calls were made.
    recent: VecDeque<u64>,
}

impl Pace {
    /// Takes leave for a call, or says when to ask again.
    pub(crate) fn take(&mut self, now: u64) -> Result<(), u64> {
        if now < self.blocked_until {
            return Err(self.blocked_until);
        }
        if let Some((rate, saved)) = &mut self.limit {
            let gained = now.saturating_sub(self.refilled).saturating_mul(*rate);
            // No more than a second's worth, at least one call.
            *saved = saved.saturating_add(gained).min((*rate * 1_000).max(CALL));
            self.refilled = now;
            if *saved < CALL {
                return Err(now + (CALL - *saved).div_ceil(*rate));
            }
            *saved -= CALL;
        }
        while self.recent.front().is_some_and(|at| now.saturating_sub(*at) > 10_000) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        Ok(())
    }

    pub(crate) fn throttled(&mut self, now: u64, retry_after: Option<u64>) {
        // Several answers to one burst are one complaint.
        let is_new = now >= self.blocked_until;
        self.blocked_until = self.blocked_until.max(now + retry_after.unwrap_or(0).max(RESPITE));
        if is_new || self.limit.is_none() {
            let recent = self.recent.len() as u64 * 6;
            let rate = self.limit.map_or(recent, |(rate, _)| rate.min(recent.max(SLOWEST)));
            self.limit = Some(((rate / 2).max(SLOWEST), 0));
            self.refilled = self.blocked_until;
        }
    }

    pub(crate) fn worked(&mut self) {
        if let Some((rate, _)) = &mut self.limit {
            *rate += 1 + *rate / 20;
            if *rate > UNHINDERED {
                self.limit = None;
            }
        }
    }
}

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
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) nodes: u32,
    pub(super) money: Option<MoneyPerHour>,
}

/// What was found to buy.
#[derive(Debug)]
pub(super) struct Bought {
    /// Place in the list of candidates, and what is to go on it.
    bins: Vec<(usize, Bin)>,
    classes: Vec<Class>,
    members: Members,
    /// By class, what found no place.
    left: Vec<u32>,
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

/// One machine to ask for.
struct Order<'o> {
    name: &'o NodeTypeName,
    offer: Offer,
    price: Option<MoneyPerHour>,
    why: String,
    details: BTreeMap<String, String>,
}

impl Brain {
    /// Asks for the workers that are wanted by number and are not there.
    pub(super) fn launch_wanted(&mut self, spec: &Spec, outlook: &mut Outlook) {
        for (name, kind) in &spec.workers {
            let wanted = self.scaling.wanted.get(name).cloned().unwrap_or_default();
            let missing = wanted.count.saturating_sub(self.scaling.tally.counted(name));
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
        if self.scaling.tried != Some(self.scaling.changes) {
            self.scaling.fleet.unpark();
        }
        let (mut blocked, mut candidates): (BTreeMap<NodeTypeName, String>, Vec<Candidate>) = Default::default();
        loop {
            let waiting: BTreeSet<GroupId> = self.scaling.fleet.waiting().map(|(id, _)| id).collect();
            if waiting.is_empty() && self.scaling.fleet.waiting_or_parked().is_empty() {
                break;
            }
            (candidates, blocked) = self.candidates(spec);
            for (name, why) in &blocked {
                note_blocked(outlook, name, why.clone());
            }
            // The same as last time would lead to the same.
            if waiting.is_empty() || self.scaling.tried == Some(self.scaling.changes) {
                break;
            }
            let limits = self.limits(spec);
            let bought = buy(&self.scaling.fleet, &waiting, &candidates, &limits);
            // A gang that cannot be served whole is not served at all.
            let broken: BTreeSet<GroupId> = waiting
                .iter()
                .copied()
                .filter(|id| self.scaling.fleet.is_gang(*id))
                .filter(|id| {
                    let mut of_gang = bought.members.iter().zip(&bought.left).filter(|(m, _)| m.iter().any(|(g, ..)| g == id));
                    let is_known = of_gang.clone().next().is_some();
                    !is_known || of_gang.any(|(_, left)| *left > 0)
                })
                .collect();
            if !broken.is_empty() {
                for id in broken {
                    self.scaling.fleet.park(id);
                }
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
                    None => details.extend(self.compare_types(spec, &bought, &candidates, *candidate, bin, &blocked)),
                }
                let order = Order { name: &of.name, offer, price, why, details };
                if let Some(id) = self.request(spec, order, Some((of.capacity, bin, &mut members))) {
                    explained.entry(*candidate).or_insert(id);
                }
            }
            break;
        }
        self.scaling.tried = Some(self.scaling.changes);
        self.tell_unmet(spec, outlook, &candidates, &blocked);
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
                    candidates.push(Candidate::new(name, kind, capacity, price, most, self.scaling.learned.get(name).copied()));
                }
                Err(why) => {
                    blocked.insert(name.clone(), why);
                }
            }
        }
        (candidates, blocked)
    }

    /// What may be bought at most for room, beside what there is and what is wanted by number and cannot be had just now:
    /// minima come first.
    pub(super) fn limits(&self, spec: &Spec) -> Limits {
        let (mut missing, mut dear) = (0u32, MoneyPerHour(0));
        for (name, kind) in &spec.workers {
            let of_type = self.wanted_of(name).saturating_sub(self.scaling.tally.counted(name));
            missing = missing.saturating_add(of_type);
            dear = [dear, kind.dearest().unwrap_or_default().times(of_type)].into_iter().sum();
        }
        let spent = self.scaling.tally.spent(spec).0.saturating_add(dear.0);
        Limits {
            nodes: spec.max_workers.saturating_sub(self.scaling.tally.exist().saturating_add(missing)),
            money: spec.budget.map(|b| MoneyPerHour(b.0.saturating_sub(spent))),
        }
    }

    /// What a node is bought for, and for whom.
    fn explain(&self, bought: &Bought, bin: &Bin, offer: &Offer) -> (String, BTreeMap<String, String>) {
        let mut needs: Vec<String> = Vec::new();
        let mut sources = BTreeSet::new();
        for (class, n) in &bin.content {
            needs.push(format!("{n} × {}", self.words(&bought.classes[*class].need)));
            // Those that have many alike are not all told.
            sources.extend(bought.members[*class].iter().take(3).filter_map(|(id, ..)| self.scaling.groups.get(id)));
        }
        let sources: Vec<&str> = sources.into_iter().map(String::as_str).take(5).collect();
        let details = BTreeMap::from([
            ("for".to_owned(), needs.join(", ")),
            ("asked by".to_owned(), sources.join(", ")),
            ("offer".to_owned(), offer.to_string()),
        ]);
        (format!("room for {}", needs.join(", ")), details)
    }

    /// Why this type and not another.
    fn compare_types(
        &self,
        spec: &Spec,
        bought: &Bought,
        candidates: &[Candidate],
        chosen: usize,
        bin: &Bin,
        blocked: &BTreeMap<NodeTypeName, String>,
    ) -> BTreeMap<String, String> {
        let (mut largest, mut sum) = (Amounts::default(), Amounts::default());
        for (class, n) in &bin.content {
            let need = &bought.classes[*class].need;
            largest = Amounts(std::array::from_fn(|i| largest.0[i].max(need.0[i])));
            sum = sum.plus(&need.times(*n));
        }
        let of = &candidates[chosen];
        let mut details = BTreeMap::new();
        for name in spec.workers.keys().filter(|name| **name != of.name) {
            let why = match (candidates.iter().find(|c| c.name == *name), blocked.get(name)) {
                (_, Some(why)) => why.clone(),
                (None, None) => continue,
                (Some(other), None) => {
                    if let Some(lack) = self.lacks(spec, name, &largest) {
                        lack
                    } else if other.priority < of.priority {
                        format!("its priority is lower ({} against {})", other.priority, of.priority)
                    } else if other.capacity.0[GPUS] > 0 && !sum.wants_gpus() {
                        "it has GPUs, which this work does not need".to_owned()
                    } else {
                        let nodes = 1.0f64.max(sum.dominant_share(&other.capacity)).ceil() as u64;
                        let (theirs, ours) = (other.weight.saturating_mul(nodes), of.weight);
                        if theirs >= ours {
                            format!("dearer for this: {nodes} at {} against {}", MoneyPerHour(other.weight), MoneyPerHour(of.weight))
                        } else {
                            "all of the demand together is cheaper so".to_owned()
                        }
                    }
                }
            };
            details.insert(format!("not {name}"), why);
        }
        details
    }

    /// What a node of a type lacks for a need.
    pub(super) fn lacks(&self, spec: &Spec, name: &NodeTypeName, need: &Amounts) -> Option<String> {
        if spec.workers.get(name).is_none_or(|kind| kind.max == 0) {
            return Some("has a maximum of 0".to_owned());
        }
        let Some(capacity) = self.capacity_of(name) else { return Some("does not say what it offers".to_owned()) };
        let short = (0..need.0.len()).find(|i| need.0[*i] > capacity.0[*i])?;
        let mut only = Amounts::default();
        only.0[short] = capacity.0[short];
        let what = match short {
            0 => "cpus",
            1 => "memory",
            2 => "gpus",
            other if need.0[other] == u64::MAX => "such resource",
            other => self.scaling.custom.get(other - 3).map_or("", String::as_str),
        };
        Some(if capacity.0[short] == 0 { format!("has no {what}") } else { format!("has only {}", self.words(&only)) })
    }

    /// Amounts as people read them.
    pub(super) fn words(&self, amounts: &Amounts) -> String {
        use cloudtik_model::demand::{Bundle, Quantity};
        let custom = self.scaling.custom.iter().enumerate().map(|(i, name)| (name.clone(), Quantity(amounts.0[3 + i])));
        let bundle = Bundle {
            cpus: Quantity(amounts.0[0]),
            memory: cloudtik_model::Bytes(amounts.0[1]),
            gpus: Quantity(amounts.0[2]),
            resources: custom.collect(),
        };
        bundle.to_string()
    }

    pub(super) fn tell_unmet(
        &self,
        spec: &Spec,
        outlook: &mut Outlook,
        candidates: &[Candidate],
        blocked: &BTreeMap<NodeTypeName, String>,
    ) {
        let spent = self.scaling.tally.spent(spec);
        let mut limits = Vec::new();
        if self.scaling.tally.exist() >= spec.max_workers {
            limits.push(format!("the cluster's maximum of {} workers is reached", spec.max_workers));
        }
        let cheapest = candidates.iter().filter_map(|c| c.price).min();
        if let Some(budget) = spec.budget.filter(|b| cheapest.is_some_and(|c| spent.0.saturating_add(c.0) > b.0)) {
            limits.push(format!("the budget of {budget} is spent ({spent})"));
        }
        limits.extend(blocked.iter().map(|(name, why)| format!("{name}: {why}")));
        if limits.is_empty() {
            limits.push("the types that have room left cannot hold it".to_owned());
        }
        let waiting = self.scaling.fleet.waiting_or_parked();
        for (id, shapes) in waiting {
            let what: Vec<String> = shapes.iter().map(|(need, n)| format!("{n} × {}", self.words(need))).collect();
            let source = self.scaling.groups.get(&id).cloned().unwrap_or_default();
            note_unmet(outlook, &source, what.join(", "), limits.join("; "));
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
        (record.revision, record.price, record.offer) = (spec.revision, order.price, order.offer);
        let (failures, not_before) = self.nodes.get(&id).map_or((0, 0), |n| (n.failures, n.not_before));
        let mut node = Node::new(record, now);
        (node.failures, node.not_before) = (failures, not_before);
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
        let pause = SHORTAGE.saturating_mul(1 << (times - 1).min(16)).min(LONGEST_SHORTAGE);
        let what = if failure.kind == FailureKind::Quota { "quota" } else { "no capacity" };
        let message = format!("{name}, {offer}: {what} ({}); left alone for {} s", failure.message, pause / 1_000);
        let is_known = self.scaling.launching.shortages.get(&key).is_some_and(|s| s.until > now);
        if !is_known {
            self.scaling.launching.shortages.insert(key, Shortage { until: now + pause, times, reason: failure.message.clone() });
            self.event(None, EventKind::Decision, message);
        }
        self.scaling.changes += 1;
        self.reconsider_scale();
    }

    /// A worker of a type came up: what was remembered against it is over.
    pub(crate) fn note_success(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let (name, offer) = (node.record.node_type.clone(), node.record.offer.clone());
        self.scaling.launching.failures.remove(&name);
        self.scaling.launching.shortages.remove(&(name, offer));
    }

    /// A worker failed before it was ever ready.
    pub(crate) fn note_failed(&mut self, name: &NodeTypeName, reason: &str) {
        let launching = &mut self.scaling.launching;
        let failures = launching.failures.entry(name.clone()).or_default();
        *failures += 1;
        // After a pause, one more failure is enough.
        let times = *failures / FAILURES + u32::from(*failures > FAILURES) * (*failures % FAILURES);
        if *failures < FAILURES || self.cluster.paused.contains_key(name) {
            return;
        }
        let pause = PAUSE.saturating_mul(1 << times.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        let until = Timestamp(self.clock.wall().0.saturating_add(pause));
        let in_a_row = *failures;
        self.cluster.paused.insert(name.clone(), Pause { until, reason: reason.to_owned(), times });
        self.store_cluster();
        let message = format!("nothing of type {name} is made for {} s: {in_a_row} in a row failed, the last: {reason}", pause / 1_000);
        self.event(None, EventKind::Alarm, message);
        self.scaling.changes += 1;
        self.reconsider_scale();
    }

    /// Ends pauses whose time is over; a wall clock that was set makes none longer than the longest.
    pub(super) fn end_pauses(&mut self) {
        let wall = self.clock.wall();
        let is_over = |p: &Pause| p.until <= wall || p.until.0 > wall.0.saturating_add(LONGEST_PAUSE);
        let over: Vec<NodeTypeName> = self.cluster.paused.iter().filter(|(_, p)| is_over(p)).map(|(n, _)| n.clone()).collect();
        for name in &over {
            self.cluster.paused.remove(name);
            self.event(None, EventKind::Decision, format!("type {name} is tried again"));
            self.scaling.changes += 1;
        }
        if !over.is_empty() {
            self.store_cluster();
        }
        if let Some(next) = self.cluster.paused.values().map(|p| p.until.0).min() {
            self.decide_at(self.clock.now() + next.saturating_sub(wall.0).min(60_000));
        }
    }

    pub(crate) fn pace(&mut self) -> &mut Pace {
        &mut self.scaling.launching.pace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_complains_nobody_waits() {
        let mut pace = Pace::default();
        assert!((0..10_000).all(|_| pace.take(5).is_ok()));
    }

    #[test]
    fn it_finds_the_rate_that_a_provider_allows() {
        // The provider takes two calls a second, with a burst of ten.
        let (mut pace, mut tokens, mut last) = (Pace::default(), 10_000u64, 0);
        let (mut taken, mut refused) = (0, 0);
        for now in (0..600_000).step_by(20) {
            tokens = (tokens + (now - last) * 2).min(10_000);
            last = now;
            while pace.take(now).is_ok() {
                if tokens >= 1_000 {
                    tokens -= 1_000;
                    taken += 1;
                    pace.worked();
                } else {
                    refused += 1;
                    pace.throttled(now, None);
                }
            }
        }
        assert!(taken > 600, "half of what is allowed is used at least: {taken}");
        assert!(refused < taken / 8, "and few calls are refused: {refused} of {taken}");
    }

    #[test]
    fn the_provider_s_own_pause_is_kept() {
        let mut pace = Pace::default();
        pace.take(1_000).expect("free");
        pace.throttled(1_000, Some(7_000));
        assert_eq!(pace.take(7_999), Err(8_000));
        assert!(pace.take(20_000).is_ok());
    }
}
