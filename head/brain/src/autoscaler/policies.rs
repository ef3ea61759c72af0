//! What load, schedules and signals ask for, and how fast they may change their mind.
//!
//! Load is answered as a horizontal pod autoscaler does, by the ratio of what is seen to what is wanted
//! (<https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details>), with a band between
//! `low` and `high` in which nothing changes. What lowers its number waits; what goes up and down again and again waits
//! longer each time, and says so.

use std::collections::VecDeque;

use cloudtik_model::Timestamp;
use cloudtik_model::alarm::Alarm;
use cloudtik_model::demand::Quantity;
use cloudtik_model::event::{PolicyChange, What};
use cloudtik_model::node::NodeState;
use cloudtik_model::outlook::{BeyondMax, LoadLevel, PolicySays, PolicyView, PolicyWait, SignalProblem};
use cloudtik_model::policy::{Counts, Metric, Policy, Rule, Workers};
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::Spec;

use super::begins_or_ends;
use crate::{Brain, PolicyWant};

/// Turns within [`FLAP_PAUSES`] pauses that make a policy one that flaps.
const FLAP_TURNS: usize = 3;
/// Over so many of its pauses turns are counted.
const FLAP_PAUSES: u64 = 8;
/// Turns are counted over so many milliseconds at least.
const FLAP_SPAN: u64 = 120_000;
/// A policy that flaps waits for this, in milliseconds, or its pause if that is longer, times a factor.
const FLAP_PAUSE: u64 = 10_000;
/// A policy that flaps waits up to so many of its pauses.
const LONGEST_FACTOR: u64 = 16;
/// Nodes that are this busy, in thousandths, have more to do than can be seen.
const SATURATED: u64 = 950;
/// A node is at work so long after it became ready first, in milliseconds.
pub(crate) const SETTLE: u64 = 10_000;
/// Schedules look at the wall clock at least so often, in milliseconds: it may be set.
const CLOCK_CHECK: u64 = 60_000;
/// A signal that is not known for so long, in milliseconds, although what gives it runs, is one that a person should look at.
const DEAF: i64 = 30_000;

/// What a policy asked for, and when it changed its mind.
#[derive(Debug, Default)]
pub(crate) struct PolicyState {
    /// On the brain's clock; before 0 if an earlier head saw it.
    changed: Option<(i64, bool)>,
    turns: VecDeque<u64>,
    last_turn: i64,
    factor: u64,
    /// A schedule was on when it was looked at last.
    is_on: Option<bool>,
    /// Since when its signal is not known although what gives it runs, and why.
    deaf: Option<(u64, PolicySays)>,
}

impl Brain {
    pub(crate) fn follows_signals(&self) -> bool {
        self.cluster.spec.iter().flat_map(|s| &s.policies).any(|p| matches!(p.rule, Rule::Signal { .. }))
    }

    /// What a policy asks for now, and why, in words.
    pub(super) fn consult(&mut self, spec: &Spec, policy: &Policy) -> (Option<u32>, PolicySays) {
        match &policy.rule {
            Rule::Schedule { hours, workers } => {
                let wall = self.clock.wall();
                let Some((is_on, next)) = begins_or_ends(hours, wall) else {
                    let time_zone = hours.time_zone.clone();
                    return (None, PolicyView::UnknownTimeZone { time_zone }.into());
                };
                let until = next.0.saturating_sub(wall.0);
                self.decide_at(self.clock.now() + until.min(CLOCK_CHECK));
                let min = spec.workers.get(&policy.node_type).map_or(0, |w| w.min);
                let count = match workers {
                    Workers::AtLeast(count) => *count,
                    Workers::More(count) => min.saturating_add(*count),
                };
                let state = self.autoscaler.policies.entry(policy.name.clone()).or_default();
                // What a head that just started finds is no news.
                if state.is_on.replace(is_on).is_some_and(|was_on| was_on != is_on) {
                    let (name, node_type, hours) = (policy.name.clone(), policy.node_type.clone(), hours.clone());
                    let what = match is_on {
                        true => What::PolicyBegan { policy: name, node_type, count, hours },
                        false => What::PolicyEnded { policy: name, hours },
                    };
                    self.event(None, what);
                }
                let hours = hours.clone();
                match is_on {
                    true => (Some(count), PolicyView::ScheduleOn { hours }.into()),
                    false => (None, PolicyView::ScheduleOff { hours }.into()),
                }
            }
            Rule::Load { metric, high, low, window_ms } => {
                let raw = self.by_load(policy, *metric, *high, *low, *window_ms);
                self.steady(policy, raw)
            }
            Rule::Signal { signal, per_worker, counts } => {
                let raw = self.by_signal(policy, signal, per_worker.0, *counts);
                self.steady(policy, raw)
            }
        }
    }

    fn by_load(&mut self, policy: &Policy, metric: Metric, high: u32, low: u32, window: u64) -> (Option<u32>, PolicySays) {
        let now = self.clock.now();
        let (mut ready, mut known, mut sum) = (0u64, 0u64, 0u64);
        for node in self.workers().filter(|n| n.record.node_type == policy.node_type && n.record.life == NodeState::Ready) {
            ready += 1;
            if let Some(average) = node.usage.load.average(metric, now.saturating_sub(window), now) {
                known += 1;
                sum += average;
            }
        }
        let seconds = window / 1_000;
        if known == 0 {
            if ready > 0 {
                self.decide_at(now + window.min(5_000));
            }
            return (None, PolicyView::LoadUnknown { metric, window_s: seconds }.into());
        }
        // Loads change without anybody saying so: the window moves on.
        self.decide_at(now + (window / 8).clamp(1_000, 15_000));
        let average = sum / known;
        let says =
            |level: LoadLevel| PolicySays::from(PolicyView::Load { metric, percent: average / 10, nodes: known, window_s: seconds, level });
        let for_share = |share: u64| u32::try_from(sum.div_ceil(share.max(1))).unwrap_or(u32::MAX);
        // Nodes whose load is not known yet may take some of what the others have, and are not too many.
        let for_more = for_share(u64::from(high)).max(u32::try_from(ready).unwrap_or(u32::MAX));
        if average >= SATURATED {
            // How much more is needed cannot be seen: twice as many, as Ray's autoscaler does (`upscaling_speed`).
            let twice = u32::try_from(known.saturating_mul(2)).unwrap_or(u32::MAX);
            (Some(for_more.max(twice)), says(LoadLevel::Saturated))
        } else if average > u64::from(high) {
            (Some(for_more), says(LoadLevel::Above { percent: high / 10 }))
        } else if average < u64::from(low) && self.autoscaler.left.get(&policy.node_type).is_some_and(|at| now < at + window) {
            // What those did that left has not come to the others yet, as far as averages show it.
            (None, says(LoadLevel::BelowSinceSomeLeft { percent: low / 10 }))
        } else if average < u64::from(low) && known == ready {
            (Some(for_share(u64::from(high + low) / 2)), says(LoadLevel::Below { percent: low / 10 }))
        } else {
            (None, says(LoadLevel::Between { low: low / 10, high: high / 10 }))
        }
    }

    fn by_signal(&mut self, policy: &Policy, signal: &str, per_worker: u64, counts: Counts) -> (Option<u32>, PolicySays) {
        let (runtime, name) = signal.split_once('.').unwrap_or((signal, ""));
        let of_node = |node: &crate::Node| -> Option<u64> {
            let of_runtime = node.services.values().filter(|s| s.key.runtime.as_str() == runtime && s.state == ServiceState::Ready);
            of_runtime.filter_map(|s| s.gauges.get(name)).map(|q| q.0).reduce(u64::saturating_add)
        };
        let found = self.nodes.values().filter(|n| n.link.is_some()).filter_map(of_node).reduce(u64::saturating_add);
        let Some(sum) = found else {
            let runs = |n: &&crate::Node| n.services.values().any(|s| s.key.runtime.as_str() == runtime && s.state == ServiceState::Ready);
            let (cause, is_deaf) = match self.nodes.values().find(runs) {
                Some(node) => (SignalProblem::Unreadable { node: node.record.id.clone() }, true),
                None => (SignalProblem::NoServiceReady { runtime: runtime.to_owned() }, false),
            };
            let says = PolicySays::from(PolicyView::SignalUnknown { signal: signal.to_owned(), cause });
            let now = self.clock.now();
            let state = self.autoscaler.policies.entry(policy.name.clone()).or_default();
            let since = state.deaf.as_ref().map_or(now, |(since, _)| *since);
            state.deaf = is_deaf.then(|| (since, says.clone()));
            return (None, says);
        };
        if let Some(state) = self.autoscaler.policies.get_mut(&policy.name) {
            state.deaf = None;
        }
        let needed = u32::try_from(sum.div_ceil(per_worker.max(1))).unwrap_or(u32::MAX);
        let says = |at_work| PolicySays::from(PolicyView::Signal { signal: signal.to_owned(), value: Quantity(sum), at_work });
        match counts {
            Counts::All => (Some(needed), says(None)),
            Counts::Waiting if needed == 0 => (Some(0), says(None)),
            Counts::Waiting => {
                // What is only missed has its work still.
                let of_type = self.workers().filter(|n| n.record.node_type == policy.node_type && n.record.life.is_counted());
                // Work finds a new node only after a while: until then what waits is counted without it.
                let now = self.clock.now();
                let (mut settled, mut next) = (0u32, None);
                for at_work in of_type.filter_map(|node| node.at_work) {
                    settled += u32::from(at_work <= now);
                    next = next.into_iter().chain((at_work > now).then_some(at_work)).min();
                }
                if let Some(next) = next {
                    self.decide_at(next);
                }
                (Some(needed.saturating_add(settled)), says(Some(settled)))
            }
        }
    }

    /// Holds a policy to its bounds, and to its number where it would change its mind too soon.
    fn steady(&mut self, policy: &Policy, (raw, mut says): (Option<u32>, PolicySays)) -> (Option<u32>, PolicySays) {
        let now = self.clock.now();
        // Below the type's minimum it changes nothing.
        let min = self.cluster.spec.as_ref().and_then(|s| s.workers.get(&policy.node_type)).map_or(0, |kind| kind.min);
        let least = policy.least.max(min);
        let most = policy.most.max(least);
        let known = self.autoscaler.stored.policy_wants.get(&policy.name).filter(|want| want.node_type == policy.node_type);
        let before = known.map_or(least, |want| want.count.clamp(least, most));
        // Without an opinion of its own, it wants what it wanted: also after a restart of the head.
        let asked = raw;
        let raw = raw.map_or(before, |raw| raw.clamp(least, most));
        says.beyond_max = asked.filter(|asked| *asked > most).map(|asked| BeyondMax { asked, max: most });
        if raw == before {
            if known.is_none_or(|want| want.count != raw) {
                self.note_want(policy, raw, None);
            }
            return (Some(raw), says);
        }
        // What an earlier head saw of it damps it too.
        let wall = self.clock.wall();
        let earlier = known.and_then(|want| Some((want.changed?, want.factor)));
        let since_start = now as i64;
        let earlier = earlier.map(|((at, was_up), factor)| (since_start - wall.0.saturating_sub(at.0) as i64, was_up, factor));
        let state = self.autoscaler.policies.entry(policy.name.clone()).or_default();
        if let (None, Some((at, was_up, factor))) = (state.changed, earlier) {
            (state.changed, state.last_turn, state.factor) = (Some((at, was_up)), at, factor);
        }
        let up = raw > before;
        // Turns make and end machines: that is no calm, however short the pause.
        let span = policy.pause_ms.saturating_mul(FLAP_PAUSES).max(FLAP_SPAN);
        let damped = policy.pause_ms.max(FLAP_PAUSE);
        if state.factor > 1 && since_start - state.last_turn > span.saturating_mul(state.factor) as i64 {
            // It has been calm for long enough.
            state.factor = 1;
        }
        let factor = state.factor.max(1);
        let is_turn = state.changed.is_some_and(|(_, was_up)| was_up != up);
        // More is given at once, but to a policy that flaps; less waits.
        let wait = match factor {
            1 if up => 0,
            1 => policy.pause_ms,
            factor => damped.saturating_mul(factor),
        };
        let due = state.changed.filter(|_| is_turn).map_or(now, |(at, _)| at.saturating_add(wait as i64).max(0) as u64);
        if now < due {
            self.decide_at(due);
            // The seconds that pass are not said: that would be news each time.
            says.waits = Some(PolicyWait { count: raw, until: Timestamp(wall.0 + (due - now)), flaps: factor > 1 });
            return (Some(before), says);
        }
        state.changed = Some((since_start, up));
        let mut flaps = None;
        if is_turn {
            state.turns.push_back(now);
            state.last_turn = since_start;
            while state.turns.front().is_some_and(|at| now.saturating_sub(*at) > span.saturating_mul(factor)) {
                state.turns.pop_front();
            }
            if state.turns.len() >= FLAP_TURNS {
                state.turns.clear();
                state.factor = (factor * 2).min(LONGEST_FACTOR);
                flaps = Some(state.factor);
            }
        }
        self.note_want(policy, raw, Some(up));
        let change = PolicyChange { policy: policy.clone(), before, now: raw, says: says.clone(), asked, least, most };
        self.event(None, What::PolicyChanged(Box::new(change)));
        if let Some(factor) = flaps {
            let wait_s = damped.saturating_mul(factor) / 1_000;
            self.event(None, What::PolicyFlaps { policy: policy.name.clone(), wait_s });
        }
        (Some(raw), says)
    }

    /// Policies that go up and down again and again, and those that have nothing to follow.
    pub(crate) fn policy_alarms(&self) -> Vec<Alarm> {
        let now = self.clock.now() as i64;
        let mut alarms = Vec::new();
        for policy in self.cluster.spec.iter().flat_map(|spec| &spec.policies) {
            let Some(state) = self.autoscaler.policies.get(&policy.name) else { continue };
            let span = policy.pause_ms.saturating_mul(FLAP_PAUSES).max(FLAP_SPAN);
            let calm_at = state.last_turn.saturating_add(span.saturating_mul(state.factor) as i64);
            if state.factor > 1 && now <= calm_at {
                let wait_s = policy.pause_ms.max(FLAP_PAUSE).saturating_mul(state.factor) / 1_000;
                alarms.push(Alarm::PolicyFlaps { policy: policy.name.clone(), wait_s });
            }
            let deaf = state.deaf.as_ref().filter(|(since, _)| now.saturating_sub(*since as i64) >= DEAF);
            let unreadable = |says: &PolicySays| Alarm::PolicyWithoutSignal { policy: policy.name.clone(), says: says.clone() };
            alarms.extend(deaf.map(|(_, says)| unreadable(says)));
        }
        alarms
    }

    /// What a policy wants is remembered beyond this head.
    fn note_want(&mut self, policy: &Policy, count: u32, turned: Option<bool>) {
        let known = self.autoscaler.stored.policy_wants.get(&policy.name);
        let changed = turned.map(|up| (self.clock.wall(), up)).or(known.and_then(|want| want.changed));
        let factor = self.autoscaler.policies.get(&policy.name).map(|state| state.factor).or(known.map(|want| want.factor)).unwrap_or(0);
        let want = PolicyWant { node_type: policy.node_type.clone(), count, changed, factor };
        self.autoscaler.stored.policy_wants.insert(policy.name.clone(), want);
        self.store_cluster();
    }
}
