//! Why a node was bought and no other, and why something has no room.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::demand::{Bundle, Counted, Quantity};
use cloudtik_model::event::NotChosen;
use cloudtik_model::node::NodeState;
use cloudtik_model::outlook::{Blocked, Outlook, Unmet, UnmetCause};
use cloudtik_model::refusal::Lack;
use cloudtik_model::spec::Spec;
use cloudtik_model::{Bytes, MoneyPerHour, NodeId, NodeTypeName};

use super::buy::{Bought, Candidate, Limits, attempt};
use crate::Brain;
use crate::packing::{Amounts, Bin, DIMENSIONS, GPUS, GroupId, devices};

/// Of so many workers of a type it is told what is wrong with them.
const MAX_TROUBLES: usize = 5;
/// Of so many demands that wait it is said what each of them takes.
const MAX_EXPLAINED: usize = 20;

impl Brain {
    /// What a node is bought for, and for which requests; a few of them.
    pub(super) fn explain(&self, bought: &Bought, bin: &Bin) -> (Vec<Counted>, Vec<String>) {
        let mut needs = Vec::new();
        let mut requests = BTreeSet::new();
        for (class, n) in &bin.content {
            needs.push(Counted { bundle: self.bundle_of(&bought.classes[*class].need), count: *n });
            // Those that have many alike are not all told.
            requests.extend(bought.members[*class].iter().take(3).filter_map(|(id, ..)| self.autoscaler.groups.get(id)));
        }
        (needs, requests.into_iter().take(5).cloned().collect())
    }

    /// Why this type and not another.
    pub(super) fn compare_types(
        &self,
        spec: &Spec,
        bought: &Bought,
        candidates: &[Candidate],
        chosen: usize,
        bin: &Bin,
        blocked: &BTreeMap<NodeTypeName, Blocked>,
    ) -> BTreeMap<NodeTypeName, NotChosen> {
        let (mut largest, mut sum) = (Amounts::default(), Amounts::default());
        for (class, n) in &bin.content {
            let need = &bought.classes[*class].need;
            largest = Amounts(std::array::from_fn(|i| largest.0[i].max(need.0[i])));
            sum = sum.plus(&need.times(*n));
        }
        let of = &candidates[chosen];
        let mut types = BTreeMap::new();
        for name in spec.workers.keys().filter(|name| **name != of.name) {
            let why = match (candidates.iter().find(|c| c.name == *name), blocked.get(name)) {
                // What it has not at all is more to the point than what is in its way now.
                (_, Some(by)) => match self.lacks(spec, name, &largest) {
                    Some(what) => NotChosen::Lacks { what },
                    None => NotChosen::Blocked { by: by.clone() },
                },
                (None, None) => continue,
                (Some(other), None) => {
                    if let Some(what) = self.lacks(spec, name, &largest) {
                        NotChosen::Lacks { what }
                    } else if bought.is_second_choice() && (other.priority, other.weight) != (of.priority, of.weight) {
                        NotChosen::PreferredDoesNotFit { max_workers: spec.max_workers, budget: spec.budget }
                    } else if other.priority < of.priority {
                        NotChosen::LowerPriority { its: other.priority, chosen: of.priority }
                    } else if other.capacity.0[GPUS] > 0 && !sum.wants_gpus() {
                        NotChosen::GpusNotNeeded
                    } else if bought.bins.iter().filter(|(of, _)| candidates[*of].name == *name).count() as u32 >= other.most {
                        NotChosen::MaximumReached { max: spec.workers[name].max }
                    } else {
                        let nodes = 1.0f64.max(sum.dominant_share(&other.capacity)).ceil() as u64;
                        let (theirs, ours) = (other.weight.saturating_mul(nodes), of.weight);
                        if theirs == ours {
                            NotChosen::SameCost
                        } else if theirs > ours {
                            NotChosen::MoreExpensive { nodes, price: MoneyPerHour(other.weight), chosen: MoneyPerHour(of.weight) }
                        } else {
                            NotChosen::CheaperTogether
                        }
                    }
                }
            };
            types.insert(name.clone(), why);
        }
        types
    }

    /// What a node of a type lacks for a need.
    pub(super) fn lacks(&self, spec: &Spec, name: &NodeTypeName, need: &Amounts) -> Option<Lack> {
        if spec.workers.get(name).is_none_or(|kind| kind.max == 0) {
            return Some(Lack::MaximumIsZero);
        }
        let Some(capacity) = self.capacity_of(name) else { return Some(Lack::Undeclared) };
        let short = (0..need.0.len()).find(|i| need.0[*i] > capacity.0[*i])?;
        let mut only = Amounts::default();
        only.0[short] = capacity.0[short];
        let what = match short {
            0 => "cpus",
            1 => "memory",
            2 => "gpus",
            _ if is_of_nothing(need) => "such resource",
            other => self.autoscaler.custom.get(other - 3).map_or("", String::as_str),
        };
        Some(match capacity.0[short] {
            0 => Lack::HasNone { resource: what.to_owned() },
            _ => Lack::HasOnly { bundle: self.bundle_of(&only) },
        })
    }

    /// Amounts as a request names them.
    pub(super) fn bundle_of(&self, amounts: &Amounts) -> Bundle {
        let custom = self.autoscaler.custom.iter().enumerate().map(|(i, name)| (name.clone(), Quantity(amounts.0[3 + i])));
        Bundle {
            cpus: Quantity(amounts.0[0]),
            memory: Bytes(amounts.0[1]),
            gpus: Quantity(devices::thousandths(amounts.0[GPUS])),
            resources: custom.collect(),
        }
    }

    /// Tells what has no room, and what is in its way.
    pub(super) fn note_unmet(
        &self,
        spec: &Spec,
        outlook: &mut Outlook,
        candidates: &[Candidate],
        blocked: &BTreeMap<NodeTypeName, Blocked>,
    ) {
        let spent = self.autoscaler.tally.spent(spec);
        let mut limits = Vec::new();
        if self.autoscaler.tally.exist() >= spec.max_workers {
            limits.push(UnmetCause::ClusterMaximum { max: spec.max_workers });
        }
        let cheapest = candidates.iter().filter_map(|c| c.price).min();
        if let Some(budget) = spec.budget.filter(|b| cheapest.is_some_and(|c| spent.0.saturating_add(c.0) > b.0)) {
            limits.push(UnmetCause::BudgetLeaves { budget, left: MoneyPerHour(budget.0.saturating_sub(spent.0)) });
        }
        // Types in whose way the same is are told of together, and what is in everybody's way is told once.
        let mut of_types: Vec<(&Blocked, Vec<NodeTypeName>)> = Vec::new();
        for (name, by) in blocked.iter().filter(|(_, by)| !matches!(by, Blocked::ClusterMaximum { .. })) {
            match of_types.iter_mut().find(|(known, _)| *known == by) {
                Some((_, types)) => types.push(name.clone()),
                None => of_types.push((by, vec![name.clone()])),
            }
        }
        limits.extend(of_types.into_iter().map(|(by, types)| UnmetCause::Blocked { types, by: by.clone() }));
        let is_aside = |n: &&crate::Node| matches!(n.record.life, NodeState::Quarantined { .. });
        let nodes: Vec<NodeId> = self.workers().filter(is_aside).map(|n| n.record.id.clone()).collect();
        if !nodes.is_empty() {
            limits.push(UnmetCause::Quarantined { nodes });
        } else if self.is_in_its_own_way(spec, &limits) {
            limits.push(UnmetCause::MachinesInUse);
        }
        let rest = match (limits.is_empty(), candidates.is_empty()) {
            (true, _) => Some(UnmetCause::NoTypeHoldsIt),
            (false, false) => Some(UnmetCause::CannotHoldAll { types: candidates.iter().map(|of| of.name.clone()).collect() }),
            (false, true) => None,
        };
        let waiting = self.autoscaler.fleet.waiting_or_parked();
        let left = self.limits(spec);
        for (number, (id, shapes)) in waiting.into_iter().enumerate() {
            let source = self.autoscaler.groups.get(&id).cloned().unwrap_or_default();
            let unknown = if shapes.iter().any(|(need, _)| is_of_nothing(need)) { self.unknown_resources(&source) } else { Vec::new() };
            if !unknown.is_empty() {
                // No machine would help, whatever else is in the way.
                let what = self.autoscaler.requests.room.get(&source).map(|request| request.wants.bundles().to_vec()).unwrap_or_default();
                let resources = unknown.into_iter().map(str::to_owned).collect();
                outlook.unmet.push(Unmet { source, what, why: vec![UnmetCause::NotOffered { resources }] });
                continue;
            }
            let what = shapes.iter().map(|(need, n)| Counted { bundle: self.bundle_of(need), count: *n }).collect();
            // Where many wait, the first say what it is about.
            let own = (number < MAX_EXPLAINED).then(|| self.short_of(spec, id, candidates, &left)).flatten();
            let pause = self.autoscaler.gangs.get(&id).filter(|pause| pause.is_parked);
            let own = pause.map(|pause| UnmetCause::TriedLater { times: pause.times }).or(own);
            let why = own.or_else(|| rest.clone()).into_iter().chain(limits.iter().cloned()).collect();
            outlook.unmet.push(Unmet { source, what, why });
        }
    }

    /// Whether only what is there already, and works, stands between what waits and its room: what is used is not exchanged.
    fn is_in_its_own_way(&self, spec: &Spec, limits: &[UnmetCause]) -> bool {
        let has_choice = spec.workers.len() > 1;
        let few = self.autoscaler.fleet.waiting_or_parked().len() <= MAX_EXPLAINED;
        let is_to_be_had = || spec.workers.iter().all(|(name, kind)| !self.is_out_of_reach(name, kind));
        let is_settled = || self.workers().all(|node| !node.record.life.is_leaving() || !node.record.life.may_exist());
        let may_be = has_choice && !limits.is_empty() && few && !self.is_held() && is_to_be_had() && is_settled();
        // All of it is packed to see that: the answer holds until something else is asked for.
        may_be && *self.autoscaler.would_fit.get_or_init(|| self.check_room(spec, None).is_ok())
    }

    /// The resources that a request needs and of which no type has any.
    fn unknown_resources(&self, request: &str) -> Vec<&str> {
        let bundles = self.autoscaler.requests.room.get(request).into_iter().flat_map(|request| request.wants.bundles());
        let all: BTreeSet<&String> = bundles.flat_map(|of| of.bundle.resources.keys()).collect();
        all.into_iter().filter(|name| !self.autoscaler.custom.contains(name)).map(String::as_str).collect()
    }

    /// Tells what stands in the way of what was asked for already.
    pub(super) fn note_last_errors(&self, outlook: &mut Outlook) {
        for (id, what) in self.nodes.last_errors() {
            let Some(node) = self.nodes.get(id).filter(|n| n.is_worker() && n.record.life.may_exist()) else { continue };
            let of_type = outlook.types.entry(node.record.node_type.clone()).or_default();
            if of_type.troubles.len() < MAX_TROUBLES {
                of_type.troubles.insert(id.clone(), what.clone());
            }
        }
    }

    /// Which limit leaves too little for a group that would fit on what may be bought.
    fn short_of(&self, spec: &Spec, id: GroupId, candidates: &[Candidate], left: &Limits) -> Option<UnmetCause> {
        let needed = attempt(&self.autoscaler.fleet, &BTreeSet::from([id]), None, candidates, false);
        let (nodes, money) = (needed.nodes(), needed.money(candidates));
        if nodes > left.nodes {
            return Some(UnmetCause::NeedsWorkers { more: nodes, max: spec.max_workers, left: left.nodes });
        }
        let left = left.money.filter(|left| money > *left)?;
        Some(UnmetCause::NeedsMoney { more: money, budget: spec.budget.unwrap_or_default(), left })
    }
}

/// Whether a need is of a resource that no type offers: see [`Brain::amounts_of`].
fn is_of_nothing(need: &Amounts) -> bool {
    need.0[DIMENSIONS - 1] == u64::MAX
}
