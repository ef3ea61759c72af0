//! What is to be had of what a type is offered as: shortages, types that are paused because they keep failing, and which offer
//! a machine that was decided on is asked for from.

use std::collections::{BTreeMap, VecDeque};

use cloudtik_model::event::What;
use cloudtik_model::outlook::ShortageCause;
use cloudtik_model::reason::Reason;
use cloudtik_model::spec::{Offer, WorkerType};
use cloudtik_model::{Generation, MoneyPerHour, NodeId, NodeTypeName, Timestamp};

use super::Autoscaler;
use super::pace::Pace;
use crate::clock::doubling;
use crate::{Brain, Pause};

/// The first time that an offer which had nothing is left alone, in milliseconds; it doubles each time.
pub(super) const SHORTAGE: u64 = 60_000;
/// The longest such time.
const LONGEST_SHORTAGE: u64 = 300_000;
const FAILURES: u32 = 3;
const PAUSE: u64 = 300_000;
pub(super) const LONGEST_PAUSE: u64 = 3_600_000;

/// What is remembered of offers, types and the provider's patience.
#[derive(Debug, Default)]
pub(crate) struct Launching {
    pub(super) shortages: BTreeMap<(NodeTypeName, Offer), Shortage>,
    /// Workers of a type that failed in a row.
    failures: BTreeMap<NodeTypeName, u32>,
    /// When pauses of types end, on the monotonic clock.
    pause_ends: BTreeMap<NodeTypeName, u64>,
    /// No lower ordinal of a type is free.
    pub(super) lowest_free: BTreeMap<NodeTypeName, u32>,
    pace: Pace,
    /// Workers of a type that ended without a decision about the size, when, and that nothing was requested for yet.
    lost: BTreeMap<NodeTypeName, VecDeque<(NodeId, Generation, u64)>>,
}

/// A machine that is requested later than this after a worker was lost, in milliseconds, is not its replacement.
const REPLACED_WITHIN: u64 = 600_000;

#[derive(Debug)]
pub(super) struct Shortage {
    /// The last machine that was asked for before there was none.
    launched: u64,
    pub(super) until: u64,
    /// Nothing is taken from others for it before this.
    doubtful_until: u64,
    times: u32,
    pub(super) why: ShortageCause,
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

    /// A worker failed or was lost: the next of its type replaces it.
    pub(crate) fn lost(&mut self, name: &NodeTypeName, id: &NodeId, generation: Generation, now: u64) {
        let lost = self.lost.entry(name.clone()).or_default();
        lost.retain(|(_, _, at)| now.saturating_sub(*at) <= REPLACED_WITHIN);
        lost.push_back((id.clone(), generation, now));
    }

    /// The worker that a machine which is requested now replaces, if there is one.
    pub(super) fn take_lost(&mut self, name: &NodeTypeName, now: u64) -> Option<(NodeId, Generation)> {
        let lost = self.lost.get_mut(name)?;
        lost.retain(|(_, _, at)| now.saturating_sub(*at) <= REPLACED_WITHIN);
        lost.pop_front().map(|(id, generation, _)| (id, generation))
    }
}

impl Brain {
    /// There is none of what an offer offers: it is left alone for a while, and others are tried.
    pub(crate) fn note_shortage(&mut self, name: &NodeTypeName, offer: &Offer, why: ShortageCause) {
        let now = self.clock.now();
        let key = (name.clone(), offer.clone());
        let times = self.autoscaler.launching.shortages.get(&key).map_or(0, |s| s.times) + 1;
        let pause = doubling(SHORTAGE, times, LONGEST_SHORTAGE);
        let launched = self.autoscaler.launched;
        if let Some(shortage) = self.autoscaler.launching.shortages.get_mut(&key).filter(|s| s.until > now) {
            shortage.launched = launched;
        } else {
            let doubtful_until = now + doubling(SHORTAGE, times, LONGEST_PAUSE);
            let shortage = Shortage { launched, until: now + pause, doubtful_until, times, why: why.clone() };
            self.autoscaler.launching.shortages.insert(key, shortage);
            let (node_type, offer) = (name.clone(), offer.clone());
            self.event(None, What::OfferUnavailable { node_type, offer, why, pause_s: pause / 1_000 });
        }
        self.scaling_changed();
    }

    /// A worker of a type came up: what was remembered against it is over.
    pub(crate) fn note_success(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let (name, offer) = (node.record.node_type.clone(), node.record.offer.clone());
        let number = node.record.number;
        let launching = &mut self.autoscaler.launching;
        launching.failures.remove(&name);
        // What was asked for before there was none says nothing of what there is now.
        let key = (name, offer);
        if launching.shortages.get(&key).is_some_and(|shortage| number > shortage.launched) {
            launching.shortages.remove(&key);
        }
    }

    /// A worker failed before it was ever ready.
    pub(crate) fn note_failed(&mut self, name: &NodeTypeName, why: &Reason) {
        // What was under way when the type was paused says nothing new of it.
        if self.autoscaler.stored.paused.contains_key(name) {
            return;
        }
        let launching = &mut self.autoscaler.launching;
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
        self.autoscaler.stored.paused.insert(name.clone(), Pause { until, reason: why.clone(), times });
        self.store_cluster();
        let (node_type, pause_s) = (name.clone(), pause / 1_000);
        self.event(None, What::TypePaused { node_type, pause_s, attempts: in_a_row, why: why.clone() });
        self.scaling_changed();
    }

    /// Ends pauses whose time is over. How long one lasts is measured once in a head's life: a wall clock that is set makes
    /// none longer or shorter.
    pub(super) fn end_pauses(&mut self) {
        let (now, wall) = (self.clock.monotonic(), self.clock.wall());
        let Autoscaler { stored, launching, .. } = &mut self.autoscaler;
        let ends = &mut launching.pause_ends;
        ends.retain(|name, _| stored.paused.contains_key(name));
        for (name, pause) in &stored.paused {
            ends.entry(name.clone()).or_insert_with(|| now + pause.until.0.saturating_sub(wall.0).min(LONGEST_PAUSE));
        }
        let over: Vec<NodeTypeName> = ends.iter().filter(|(_, ends)| **ends <= now).map(|(name, _)| name.clone()).collect();
        for name in &over {
            self.autoscaler.stored.paused.remove(name);
            self.autoscaler.launching.pause_ends.remove(name);
            self.event(None, What::TypeResumed { node_type: name.clone() });
            self.autoscaler.changes += 1;
        }
        if !over.is_empty() {
            self.store_cluster();
        }
        if let Some(next) = self.autoscaler.launching.pause_ends.values().min() {
            self.decide_at(self.clock.now().saturating_add(next - now));
        }
    }

    /// Whether nothing of a type is to be had for now, whatever room the limits leave. Room is made less and less often for a
    /// type of which there was none again and again.
    pub(super) fn is_out_of_reach(&self, name: &NodeTypeName, kind: &WorkerType) -> bool {
        let now = self.clock.now();
        let shortages = &self.autoscaler.launching.shortages;
        let is_short = |(offer, _): (Offer, Option<MoneyPerHour>)| {
            shortages.get(&(name.clone(), offer)).is_some_and(|shortage| now < shortage.doubtful_until)
        };
        self.autoscaler.stored.paused.contains_key(name) || kind.offers().into_iter().all(is_short)
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
        let shortages = &self.autoscaler.launching.shortages;
        let is_short = |offer: &Offer| shortages.get(&(record.node_type.clone(), offer.clone())).is_some_and(|s| now < s.until);
        let offers = kind.offers();
        if offers.iter().any(|(offer, _)| *offer == record.offer) && !is_short(&record.offer) {
            return true;
        }
        let others = self.autoscaler.tally.spent(spec).0.saturating_sub(record.price.or(kind.price).unwrap_or_default().0);
        let is_affordable =
            |price: Option<MoneyPerHour>| spec.budget.is_none_or(|budget| others.saturating_add(price.unwrap_or_default().0) <= budget.0);
        let found = offers.into_iter().find(|(offer, price)| !is_short(offer) && is_affordable(*price));
        let Some((offer, price)) = found else {
            self.forget(id, Reason::OfferGone);
            return false;
        };
        self.nodes.set_offer(id, offer, price);
        self.store_node(id);
        self.recount(id);
        self.reconsider_scale();
        true
    }

    pub(crate) fn pace(&mut self) -> &mut Pace {
        &mut self.autoscaler.launching.pace
    }
}
