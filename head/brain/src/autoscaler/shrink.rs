//! Which workers to end: those that are not wanted, by number or for room, the least useful and the most expensive first. Where a
//! person made the cluster smaller they go at once; else each when it has been idle for long enough. Members of a group go
//! one at a time, and never below what the group needs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::event::{Activity, ScaleIn, ScaleInChoice, What};
use cloudtik_model::node::NodeState;
use cloudtik_model::outlook::Outlook;
use cloudtik_model::policy::{Metric, Rule};
use cloudtik_model::reason::{Obstacle, Reason};
use cloudtik_model::report::{ServiceReport, ServiceState};
use cloudtik_model::spec::Spec;
use cloudtik_model::{MoneyPerHour, NodeId, NodeTypeName};

use super::buy::{Candidate, Limits, can_have_all};
use crate::{Brain, Node};

/// A node whose runtimes do not say how much they do is idle below this share of its cores and of its GPUs, in thousandths,
/// or below what policies on its type's load call little.
const IDLE_LOAD: u32 = 100;

/// So many gangs are looked at that wait for what is leaving.
const MAX_GANGS: usize = 8;

/// A worker that is too many; the least of them goes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Surplus {
    is_ready: bool,
    is_busy: bool,
    price: Reverse<MoneyPerHour>,
    ordinal: Reverse<u64>,
    id: NodeId,
}

/// How much more there is than is allowed.
#[derive(Debug, Default)]
struct Excess {
    types: BTreeMap<NodeTypeName, u32>,
    workers: u32,
    /// Millionths of money per hour.
    money: u64,
}

impl Excess {
    /// Why a worker of a type and a price is too many, if it is.
    fn reason(&self, spec: &Spec, name: &NodeTypeName, price: MoneyPerHour) -> Option<Reason> {
        let of_type = self.types.get(name).copied().unwrap_or(0);
        match (of_type > 0, self.workers > 0, self.money > 0 && price.0 > 0) {
            (true, ..) => Some(Reason::AboveTypeMaximum { max: spec.workers.get(name).map_or(0, |k| k.max) }),
            (_, true, _) => Some(Reason::AboveClusterMaximum { max: spec.max_workers }),
            (.., true) => Some(Reason::AboveBudget { budget: spec.budget.unwrap_or_default() }),
            _ => None,
        }
    }

    fn is_nothing(&self) -> bool {
        self.workers == 0 && self.money == 0 && self.types.values().all(|n| *n == 0)
    }

    /// One of them goes.
    fn take(&mut self, name: &NodeTypeName, price: MoneyPerHour) {
        self.types.entry(name.clone()).and_modify(|n| *n = n.saturating_sub(1));
        self.workers = self.workers.saturating_sub(1);
        self.money = self.money.saturating_sub(price.0);
    }
}

impl Node {
    /// It never worked for anybody.
    fn is_on_its_way(&self) -> bool {
        match self.record.life {
            NodeState::Requested | NodeState::Launched | NodeState::Joined => true,
            NodeState::Preparing => !self.record.was_ready,
            _ => false,
        }
    }
}

impl Brain {
    /// Whether a node does something, if anything says so.
    fn activity(&self, node: &Node) -> Option<bool> {
        if self.jobs.runtime_on(node).is_some() {
            return Some(true);
        }
        let mut said = node.services.values().filter(|s| s.state == ServiceState::Ready).filter_map(ServiceReport::work).peekable();
        if said.peek().is_some() {
            return Some(said.any(|work| work.0 > 0));
        }
        // Where a policy spreads load over nodes, a node below what the policy calls little is one that it can do without.
        let policies = || self.cluster.spec.iter().flat_map(|spec| &spec.policies).filter(|p| p.node_type == node.record.node_type);
        let little = |of: Metric| {
            let lows = policies().filter_map(|policy| match policy.rule {
                Rule::Load { metric, low, .. } if metric == of => Some(low),
                _ => None,
            });
            lows.max()
        };
        let load = node.usage.load.latest()?;
        let is_busy = load.cpu >= little(Metric::Cpu).unwrap_or(0).max(IDLE_LOAD)
            || load.gpu.is_some_and(|gpu| gpu >= little(Metric::Gpu).unwrap_or(0).max(IDLE_LOAD))
            // Memory is never free of use: it says something only where somebody said what is little.
            || little(Metric::Memory).is_some_and(|low| load.memory >= low);
        Some(is_busy)
    }

    fn is_busy(&self, node: &Node) -> bool {
        self.activity(node) == Some(true)
    }

    /// Notes whether a node does something: idleness is counted from when it began.
    pub(crate) fn note_activity(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get(id).filter(|n| n.is_worker()) else { return };
        let Some(busy) = self.activity(node) else { return };
        let Some(usage) = self.nodes.usage_mut(id) else { return };
        if busy != usage.idle_since.is_none() {
            usage.idle_since = (!busy).then_some(now);
            self.reconsider_scale();
        }
    }

    /// Jobs of other runtimes than before keep workers busy.
    pub(crate) fn note_all_activity(&mut self) {
        let workers: Vec<NodeId> = self.workers().map(|node| node.record.id.clone()).collect();
        for id in workers {
            self.note_activity(&id);
        }
    }

    /// Workers, those first that are to stay longest: what is ready before what is not, what is made before what is
    /// only wanted, what works before what is idle, the older before the newer.
    pub(crate) fn by_usefulness(&self, ids: Vec<NodeId>) -> Vec<NodeId> {
        let rank = |id: NodeId| {
            let node = &self.nodes[&id];
            let stage = match node.record.life {
                NodeState::Ready => 0,
                // Nothing of it exists yet.
                NodeState::Requested => 2,
                _ => 1,
            };
            (stage, !self.is_busy(node), ordinal(&id), id)
        };
        let mut nodes: Vec<(u8, bool, u64, NodeId)> = ids.into_iter().map(rank).collect();
        nodes.sort_unstable();
        nodes.into_iter().map(|(.., id)| id).collect()
    }

    /// Workers with their type and their place in it by usefulness, from 0.
    pub(super) fn ranked(&self, ids: impl Iterator<Item = NodeId>) -> Vec<(NodeTypeName, usize, NodeId)> {
        let mut of_types: BTreeMap<NodeTypeName, Vec<NodeId>> = BTreeMap::new();
        for id in ids {
            of_types.entry(self.nodes[&id].record.node_type.clone()).or_default().push(id);
        }
        let ranks = of_types
            .into_iter()
            .flat_map(|(name, ids)| self.by_usefulness(ids).into_iter().enumerate().map(move |(rank, id)| (name.clone(), rank, id)));
        ranks.collect()
    }

    pub(super) fn scale_in_all(&mut self) {
        let all: Vec<NodeId> = self.workers().filter(|n| !n.record.life.is_leaving()).map(|n| n.record.id.clone()).collect();
        for id in all {
            self.scale_in(&id, Reason::ClusterTakenDown, ScaleInChoice::AllRemoved);
        }
    }

    /// Somebody wants so many fewer: they go at once if nobody else wants them.
    pub(super) fn revoke_numbers(&mut self, less: Vec<(NodeTypeName, u32)>) {
        let less: Vec<(NodeTypeName, u32)> = less.into_iter().filter(|(_, n)| *n > 0).collect();
        for (name, n) in &less {
            self.clear_lost_members(name, *n);
            let taken = self.autoscaler.stored.immediate.entry(name.clone()).or_default();
            *taken = taken.saturating_add(*n);
        }
        if !less.is_empty() {
            self.store_cluster();
        }
    }

    /// Workers on which nothing is planned, and those of which it is not known what they could hold.
    pub(super) fn unused(&self) -> impl Iterator<Item = &NodeId> {
        self.autoscaler.fleet.unused().chain(&self.autoscaler.shapeless)
    }

    /// How many workers of a type are there.
    pub(crate) fn counted(&self, name: &NodeTypeName) -> u32 {
        self.autoscaler.tally.counted(name)
    }

    /// A description that was lowered holds for what is there too: above a maximum or the budget workers go, whoever needs
    /// them: first those that are not wanted, then those for room, those for numbers, those for minima; the most expensive first.
    fn beyond_limits(&self, spec: &Spec) -> (Excess, Vec<(MoneyPerHour, NodeId)>) {
        let tally = &self.autoscaler.tally;
        let over_types: Vec<NodeTypeName> =
            spec.workers.iter().filter(|(name, kind)| tally.exist_of(name) > kind.max).map(|(name, _)| name.clone()).collect();
        let is_over = tally.exist() > spec.max_workers || spec.budget.is_some_and(|budget| tally.spent(spec) > budget);
        if over_types.is_empty() && !is_over {
            return (Excess::default(), Vec::new());
        }
        let excess = self.excess_over(spec, over_types);
        // What is leaving already may be all of it.
        if excess.is_nothing() {
            return (excess, Vec::new());
        }
        let mut order: Vec<(u8, Reverse<MoneyPerHour>, Reverse<usize>, NodeId)> = Vec::new();
        let present = self.workers().filter(|n| n.record.life.is_counted()).map(|n| n.record.id.clone());
        for (name, rank, id) in self.ranked(present) {
            let (min, wanted) = (spec.workers.get(&name).map_or(0, |k| k.min) as usize, self.wanted_of(&name) as usize);
            let keeps = match rank {
                rank if rank < min => 3,
                rank if rank < wanted => 2,
                _ => u8::from(self.autoscaler.fleet.is_used(&id)),
            };
            let price = price_of(&self.nodes[&id], spec);
            order.push((keeps, Reverse(price), Reverse(rank), id));
        }
        order.sort();
        let order = order.into_iter().map(|(_, Reverse(price), _, id)| (price, id)).collect();
        (excess, order)
    }

    /// How much more there is than is allowed, without what is leaving already: that is on its way.
    fn excess_over(&self, spec: &Spec, over_types: Vec<NodeTypeName>) -> Excess {
        let leaving = self.leaving();
        let leaving_of = |name: &NodeTypeName| leaving.iter().filter(|n| n.record.node_type == *name).count() as u32;
        let types: BTreeMap<NodeTypeName, u32> = over_types
            .into_iter()
            .map(|name| {
                let over = self.autoscaler.tally.exist_of(&name).saturating_sub(leaving_of(&name));
                let over = over.saturating_sub(spec.workers[&name].max);
                (name, over)
            })
            .collect();
        let workers = self.autoscaler.tally.exist().saturating_sub(leaving.len() as u32).saturating_sub(spec.max_workers);
        let departing: MoneyPerHour = leaving.iter().map(|n| price_of(n, spec)).sum();
        let spent = self.autoscaler.tally.spent(spec).0.saturating_sub(departing.0);
        let money = spec.budget.map_or(0, |budget| spent.saturating_sub(budget.0));
        Excess { types, workers, money }
    }

    /// Whether more may exist of a type, or of all, than is allowed.
    pub(crate) fn is_beyond_limits(&self, name: &NodeTypeName) -> bool {
        let Some(spec) = &self.cluster.spec else { return true };
        let tally = &self.autoscaler.tally;
        tally.exist_of(name) > spec.workers.get(name).map_or(0, |kind| kind.max)
            || tally.exist() > spec.max_workers
            || spec.budget.is_some_and(|budget| tally.spent(spec) > budget)
    }

    fn keep_limits(&mut self, spec: &Spec) {
        let (mut excess, order) = self.beyond_limits(spec);
        for (price, id) in order {
            let name = self.nodes[&id].record.node_type.clone();
            let Some(reason) = excess.reason(spec, &name, price) else { continue };
            match self.may_scale_in(&id) {
                Ok(()) => {
                    excess.take(&name, price);
                    self.scale_in(&id, reason, ScaleInChoice::AboveLimits);
                }
                // Others may go in its place.
                Err(why) => self.complain(Some(&id), What::KeptAboveLimit { limit: reason, why }),
            }
        }
    }

    pub(super) fn shrink(&mut self, spec: &Spec, outlook: &mut Outlook) {
        let now = self.clock.now();
        self.keep_limits(spec);
        let mut surplus: Vec<Surplus> = Vec::new();
        let wanted: BTreeMap<NodeTypeName, u32> = self.autoscaler.wanted.iter().map(|(name, w)| (name.clone(), w.count)).collect();
        let mut unused: BTreeMap<&NodeTypeName, Vec<&NodeId>> = BTreeMap::new();
        let over_of = |name: &NodeTypeName, count: u32| self.autoscaler.tally.counted(name).saturating_sub(count) as usize;
        if wanted.iter().any(|(name, count)| over_of(name, *count) > 0) {
            for id in self.unused() {
                unused.entry(&self.nodes[id].record.node_type).or_default().push(id);
            }
        }
        for (name, count) in &wanted {
            let over = over_of(name, *count);
            if over == 0 {
                continue;
            }
            let is_gone = !spec.workers.contains_key(name);
            let of_type: Vec<NodeId> = if is_gone {
                self.workers().filter(|n| n.record.node_type == *name && n.record.life.is_counted()).map(|n| n.record.id.clone()).collect()
            } else {
                unused.remove(name).unwrap_or_default().into_iter().cloned().collect()
            };
            let needed = self.autoscaler.tally.counted(name) as usize - of_type.len();
            if needed > *count as usize {
                outlook.types.entry(name.clone()).or_default().for_room = (needed - *count as usize) as u32;
            }
            for id in self.by_usefulness(of_type).into_iter().rev().take(over) {
                let node = &self.nodes[&id];
                let price = node.record.price.unwrap_or_default();
                let (is_ready, is_busy) = (node.record.life == NodeState::Ready, self.is_busy(node));
                surplus.push(Surplus { is_ready, is_busy, price: Reverse(price), ordinal: Reverse(ordinal(&id)), id });
            }
        }
        surplus.sort();
        // Something waits for what others do not need: they go as soon as they are idle.
        let pressed = if surplus.is_empty() { BTreeSet::new() } else { self.pressed(spec, surplus.iter().map(|of| &of.id)) };
        let awaited = if surplus.is_empty() { BTreeSet::new() } else { self.awaited(spec, surplus.iter().map(|of| &of.id)) };
        let (mut unfinished, mut is_told) = (BTreeSet::new(), true);
        for Surplus { id, .. } in surplus {
            let node = &self.nodes[&id];
            let name = node.record.node_type.clone();
            let is_immediate = self.autoscaler.stored.immediate.get(&name).is_some_and(|n| *n > 0);
            let at_once = is_immediate || !spec.workers.contains_key(&name) || node.is_on_its_way();
            let is_missed = matches!(node.record.life, NodeState::Suspect { .. } | NodeState::Down { .. });
            let why_not = if let Err(why) = self.may_scale_in(&id) {
                Some(why)
            } else if is_missed && !at_once {
                Some(Obstacle::MissesHeartbeats)
            } else if let Some(why) = self.kept_for_rollout(&id).filter(|_| !at_once) {
                Some(why)
            } else if !at_once && self.autoscaler.tentative.as_ref().is_some_and(|tentative| tentative.may_need(&id)) {
                Some(Obstacle::PlacementsMove)
            } else if awaited.contains(&id) && !at_once {
                Some(Obstacle::Awaited)
            } else if at_once
                || (node.usage.idle_since.is_some() && (pressed.contains(&id) || self.autoscaler.stored.when_idle.contains(&name)))
            {
                None
            } else if let Some(since) = node.usage.idle_since {
                let due = since.max(self.free_since(&id)).saturating_add(spec.idle_after_ms);
                (now < due).then(|| {
                    self.decide_at(due);
                    Obstacle::Idle { after_s: spec.idle_after_ms / 1_000 }
                })
            } else {
                Some(match self.jobs.runtime_on(node) {
                    Some(runtime) => Obstacle::ServesJobs { runtime: runtime.clone() },
                    None if self.is_busy(node) => Obstacle::Busy,
                    None => Obstacle::LoadUnknown,
                })
            };
            match why_not {
                Some(why) => {
                    unfinished.insert(name.clone());
                    outlook.types.entry(name).or_default().surplus.insert(id, why);
                }
                None => {
                    if let Some(n) = self.autoscaler.stored.immediate.get_mut(&name) {
                        *n = n.saturating_sub(1);
                        is_told = false;
                    }
                    let has_type = spec.workers.contains_key(&name);
                    let choice = if has_type { ScaleInChoice::NotNeeded } else { ScaleInChoice::TypeRemoved };
                    self.scale_in(&id, Reason::NotNeeded, choice);
                }
            }
        }
        // What a person wanted smaller is small enough: from now on idleness counts again.
        let is_over = |name: &NodeTypeName, n: u32| n == 0 || !unfinished.contains(name);
        is_told &= !self.autoscaler.stored.immediate.iter().any(|(name, n)| is_over(name, *n))
            && self.autoscaler.stored.when_idle.is_subset(&unfinished);
        if !is_told {
            self.autoscaler.stored.immediate.retain(|name, n| !is_over(name, *n));
            self.autoscaler.stored.when_idle.retain(|name| unfinished.contains(name));
            self.store_cluster();
        }
    }

    /// Since when nobody has asked for a worker: its idleness counts from then on.
    fn free_since(&self, id: &NodeId) -> u64 {
        let node = &self.nodes[id];
        // What was planned on it until a moment ago.
        if self.autoscaler.stored_plan.contains_key(id) && !self.autoscaler.fleet.is_used(id) {
            return self.clock.now();
        }
        node.usage.free_since.max(self.autoscaler.released.get(&node.record.node_type).copied().unwrap_or(0))
    }

    /// Those of the workers that are too many that are in the way of what is missing and to be had: it has no place beside
    /// what is there within the cluster's maximum and its budget.
    fn pressed<'n>(&self, spec: &Spec, surplus: impl Iterator<Item = &'n NodeId>) -> BTreeSet<NodeId> {
        let fleet = self.tentative_fleet();
        let (mut nodes, mut cost) = self.room_needs(spec, &fleet);
        for (name, kind) in spec.workers.iter().filter(|(name, kind)| !self.is_out_of_reach(name, kind)) {
            let missing = self.wanted_of(name).saturating_sub(self.autoscaler.tally.counted(name));
            nodes = nodes.saturating_add(missing);
            cost.0 = cost.0.saturating_add(kind.most_expensive().unwrap_or_default().times(missing).0);
        }
        let exist = self.autoscaler.tally.exist().saturating_add(nodes);
        let spent = self.autoscaler.tally.spent(spec).0.saturating_add(cost.0);
        let is_too_much = nodes > 0 && (exist > spec.max_workers || spec.budget.is_some_and(|budget| spent > budget.0));
        // What waits may have a use for some of them.
        surplus.filter(|id| is_too_much && !fleet.is_used(id)).cloned().collect()
    }

    /// Those of the workers that are too many that a gang will use as soon as others have left, if it has room then.
    fn awaited<'n>(&self, spec: &Spec, surplus: impl Iterator<Item = &'n NodeId>) -> BTreeSet<NodeId> {
        let leaving = self.leaving();
        if self.autoscaler.fleet.parked().next().is_none() || leaving.is_empty() {
            return BTreeSet::new();
        }
        let fleet = self.tentative_fleet();
        let (candidates, limits) = self.to_be_had_without(spec, &leaving);
        let gangs = self.autoscaler.fleet.parked().filter(|id| fleet.is_waiting(*id)).take(MAX_GANGS);
        let served = gangs.filter(|id| can_have_all(&fleet, &BTreeSet::from([*id]), &candidates, &limits));
        let nodes: BTreeSet<&NodeId> = served.flat_map(|id| fleet.nodes_of(id)).collect();
        surplus.filter(|id| nodes.contains(id)).cloned().collect()
    }

    /// What may be bought once some of the workers are gone.
    fn to_be_had_without(&self, spec: &Spec, leaving: &[&Node]) -> (Vec<Candidate>, Limits) {
        let of_type = |name: &NodeTypeName| leaving.iter().filter(|n| n.record.node_type == *name).count() as u32;
        let exist = self.autoscaler.tally.exist().saturating_sub(leaving.len() as u32);
        let cost: MoneyPerHour = leaving.iter().map(|n| price_of(n, spec)).sum();
        let spent = self.autoscaler.tally.spent(spec).0.saturating_sub(cost.0);
        let limits = Limits {
            nodes: spec.max_workers.saturating_sub(exist),
            money: spec.budget.map(|budget| MoneyPerHour(budget.0.saturating_sub(spent))),
        };
        (self.within_reach(spec, of_type), limits)
    }

    /// Workers that are on the way out and may still be there.
    fn leaving(&self) -> Vec<&Node> {
        self.workers().filter(|n| n.record.life.is_leaving() && n.record.life.may_exist()).collect()
    }

    fn scale_in(&mut self, id: &NodeId, why: Reason, choice: ScaleInChoice) {
        let Some(node) = self.nodes.get(id) else { return };
        let name = &node.record.node_type;
        let activity = match node.usage.idle_since {
            _ if node.is_on_its_way() => Activity::NotReadyYet,
            Some(since) => Activity::Idle { for_s: self.clock.now().saturating_sub(since) / 1_000 },
            None => match self.jobs.runtime_on(node) {
                Some(runtime) => Activity::ServesJobs { runtime: runtime.clone() },
                None => Activity::BusyOrUnknown,
            },
        };
        let decision = ScaleIn {
            node: id.clone(),
            why: why.clone(),
            sources: self.autoscaler.wanted.get(name).map(|wanted| wanted.sources.clone()).unwrap_or_default(),
            present: self.counted(name),
            wanted: self.wanted_of(name),
            activity,
            choice,
        };
        self.event(Some(id), What::ScaleIn(Box::new(decision)));
        self.enter(id, NodeState::Draining { reason: why.clone() }, why);
        self.drive(id);
    }

    /// The types of which a specification would let workers go: how many are there, and how many it wants.
    pub fn excess(&self, spec: &Spec) -> Vec<(NodeTypeName, usize, usize)> {
        let Some(known) = &self.cluster.spec else { return Vec::new() };
        let mut excess = Vec::new();
        let (mut over, order) = self.beyond_limits(spec);
        let mut beyond = Vec::new();
        for (price, id) in order {
            let name = &self.nodes[&id].record.node_type;
            if over.reason(spec, name, price).is_some() {
                over.take(name, price);
                beyond.push(name);
            }
        }
        for name in self.autoscaler.tally.types() {
            let too_many = beyond.iter().filter(|of| **of == name).count() as u32;
            let present = self.autoscaler.tally.counted(name);
            let (before, after) = (self.base(known, name), self.base(spec, name));
            let by_policies = self.autoscaler.wanted.get(name).map_or(0, |w| if w.count > before { w.count } else { 0 });
            let most = spec.workers.get(name).map_or(0, |w| w.max);
            let unused = self.unused().filter(|id| self.nodes[*id].record.node_type == *name).count() as u32;
            let for_room = if spec.workers.contains_key(name) { present.saturating_sub(unused) } else { 0 };
            let wanted = after.max(by_policies).max(for_room).min(most);
            let wanted = wanted.min(present.saturating_sub(too_many));
            if present > wanted && (after < before || most < present || too_many > 0) {
                excess.push((name.clone(), present as usize, wanted as usize));
            }
        }
        excess
    }
}

/// What a node costs, as [`super::tally::Tally::spent`] counts it.
fn price_of(node: &Node, spec: &Spec) -> MoneyPerHour {
    let of_type = || spec.workers.get(&node.record.node_type).and_then(|kind| kind.price);
    node.record.price.or_else(of_type).unwrap_or_default()
}

fn ordinal(id: &NodeId) -> u64 {
    let digits = id.as_str().rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().unwrap_or(0)
}
