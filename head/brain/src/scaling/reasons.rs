//! Why a node was bought and no other, and why something has no room, in words.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::demand::{Bundle, Quantity};
use cloudtik_model::node::NodeState;
use cloudtik_model::outlook::{Outlook, Unmet};
use cloudtik_model::spec::{Offer, Spec};
use cloudtik_model::{Bytes, MoneyPerHour, NodeTypeName};

use super::buy::{Bought, Candidate, Limits, attempt};
use crate::Brain;
use crate::packing::{Amounts, Bin, DIMENSIONS, GPUS, GroupId, devices};

/// Of so many workers of a type it is told what is wrong with them.
const MOST_TROUBLES: usize = 5;
/// Of so many demands that wait it is said what each of them takes.
const MOST_EXPLAINED: usize = 20;

impl Brain {
    /// What a node is bought for, and for whom.
    pub(super) fn explain(&self, bought: &Bought, bin: &Bin, offer: &Offer) -> (String, BTreeMap<String, String>) {
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
    pub(super) fn compare_types(
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
                // What it has not at all is more to the point than what is in its way now.
                (_, Some(why)) => self.lacks(spec, name, &largest).unwrap_or_else(|| why.clone()),
                (None, None) => continue,
                (Some(other), None) => {
                    if let Some(lack) = self.lacks(spec, name, &largest) {
                        lack
                    } else if bought.is_second_choice() && (other.priority, other.weight) != (of.priority, of.weight) {
                        let limits = match spec.budget {
                            Some(budget) => format!("max_workers {} and the budget {budget}", spec.max_workers),
                            None => format!("max_workers {}", spec.max_workers),
                        };
                        format!("the preferred choice does not fit within {limits}")
                    } else if other.priority < of.priority {
                        format!("its priority is lower ({} against {})", other.priority, of.priority)
                    } else if other.capacity.0[GPUS] > 0 && !sum.wants_gpus() {
                        "it has GPUs, which this work does not need".to_owned()
                    } else if bought.bins.iter().filter(|(of, _)| candidates[*of].name == *name).count() as u32 >= other.most {
                        format!("its maximum of {} is reached", spec.workers[name].max)
                    } else {
                        let nodes = 1.0f64.max(sum.dominant_share(&other.capacity)).ceil() as u64;
                        let (theirs, ours) = (other.weight.saturating_mul(nodes), of.weight);
                        if theirs == ours {
                            "it costs the same".to_owned()
                        } else if theirs > ours {
                            format!(
                                "more expensive for this: {nodes} at {} against {}",
                                MoneyPerHour(other.weight),
                                MoneyPerHour(of.weight)
                            )
                        } else {
                            "this is cheaper for all demands together".to_owned()
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
            _ if is_of_nothing(need) => "such resource",
            other => self.scaling.custom.get(other - 3).map_or("", String::as_str),
        };
        Some(if capacity.0[short] == 0 { format!("has no {what}") } else { format!("has only {}", self.words(&only)) })
    }

    /// Amounts as people read them.
    pub(super) fn words(&self, amounts: &Amounts) -> String {
        let custom = self.scaling.custom.iter().enumerate().map(|(i, name)| (name.clone(), Quantity(amounts.0[3 + i])));
        let bundle = Bundle {
            cpus: Quantity(amounts.0[0]),
            memory: Bytes(amounts.0[1]),
            gpus: Quantity(devices::thousandths(amounts.0[GPUS])),
            resources: custom.collect(),
        };
        bundle.to_string()
    }

    /// Tells what has no room, and what is in its way.
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
            limits.push(format!("the budget of {budget} leaves {}", MoneyPerHour(budget.0.saturating_sub(spent.0))));
        }
        // Types in whose way the same is are told of together, and what is in everybody's way is told once.
        let mut of_types: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, why) in blocked.iter().filter(|(_, why)| !limits.contains(why)) {
            of_types.entry(why).or_default().push(name.as_str());
        }
        limits.extend(of_types.into_iter().map(|(why, names)| format!("{}: {why}", names.join(", "))));
        let is_aside = |n: &&crate::Node| matches!(n.record.life, NodeState::Quarantined { .. });
        let aside: Vec<&str> = self.workers().filter(is_aside).map(|n| n.record.id.as_str()).collect();
        if !aside.is_empty() {
            limits.push(format!("quarantined nodes take no work ({}; `cloudtik release` ends that)", aside.join(", ")));
        } else if self.is_in_its_own_way(spec, &limits) {
            let would = "machines of other types would hold all of it, but machines in use are not exchanged";
            limits.push(format!("{would}: `cloudtik drain` those that can go, or revoke it and ask again"));
        }
        let names: Vec<&str> = candidates.iter().map(|of| of.name.as_str()).collect();
        let rest = match (limits.is_empty(), candidates.is_empty()) {
            (true, _) => Some("no node type that is available can hold it".to_owned()),
            (false, false) => Some(format!("{} cannot hold all of it", names.join(", "))),
            (false, true) => None,
        };
        let waiting = self.scaling.fleet.waiting_or_parked();
        let left = self.limits(spec);
        for (number, (id, shapes)) in waiting.into_iter().enumerate() {
            let source = self.scaling.groups.get(&id).cloned().unwrap_or_default();
            let unknown = if shapes.iter().any(|(need, _)| is_of_nothing(need)) { self.unknown_resources(&source) } else { Vec::new() };
            if !unknown.is_empty() {
                // No machine would help, whatever else is in the way.
                let what = self.asks.room.get(&source).map(|ask| ask.wants.to_string()).unwrap_or_default();
                outlook.unmet.push(Unmet { source, what, why: format!("no node type offers {}", unknown.join(" or ")) });
                continue;
            }
            let what: Vec<String> = shapes.iter().map(|(need, n)| format!("{n} × {}", self.words(need))).collect();
            // Where many wait, the first say what it is about.
            let own = (number < MOST_EXPLAINED).then(|| self.short_of(spec, id, candidates, &left)).flatten();
            let pause = self.scaling.gangs.get(&id).filter(|pause| pause.is_parked);
            let own =
                pause.map(|pause| format!("{} times too few of its machines were available: it is retried later", pause.times)).or(own);
            let why: Vec<String> = own.or_else(|| rest.clone()).into_iter().chain(limits.iter().cloned()).collect();
            outlook.unmet.push(Unmet { source, what: what.join(", "), why: why.join("; ") });
        }
    }

    /// Whether only what is there already, and works, stands between what waits and its room: what is used is not exchanged.
    fn is_in_its_own_way(&self, spec: &Spec, limits: &[String]) -> bool {
        let has_choice = spec.workers.len() > 1;
        let few = self.scaling.fleet.waiting_or_parked().len() <= MOST_EXPLAINED;
        let is_to_be_had = || spec.workers.iter().all(|(name, kind)| !self.is_out_of_reach(name, kind));
        let is_settled = || self.workers().all(|node| !node.record.life.is_leaving() || !node.record.life.may_exist());
        let may_be = has_choice && !limits.is_empty() && few && !self.is_held() && is_to_be_had() && is_settled();
        // All of it is packed to see that: the answer holds until something else is asked for.
        may_be && *self.scaling.would_fit.get_or_init(|| self.check_room(spec, None).is_ok())
    }

    /// The resources that a request needs and of which no type has any.
    fn unknown_resources(&self, request: &str) -> Vec<&str> {
        let bundles = self.asks.room.get(request).into_iter().flat_map(|ask| ask.wants.bundles());
        let all: BTreeSet<&String> = bundles.flat_map(|of| of.bundle.resources.keys()).collect();
        all.into_iter().filter(|name| !self.scaling.custom.contains(name)).map(String::as_str).collect()
    }

    /// Tells what stands in the way of what was asked for already.
    pub(super) fn tell_troubles(&self, outlook: &mut Outlook) {
        for (id, what) in &self.troubled {
            let Some(node) = self.nodes.get(id).filter(|n| n.is_worker() && n.record.life.may_exist()) else { continue };
            let of_type = outlook.types.entry(node.record.node_type.clone()).or_default();
            if of_type.troubles.len() < MOST_TROUBLES {
                of_type.troubles.insert(id.clone(), what.clone());
            }
        }
    }

    /// Which limit leaves too little for a group that would fit on what may be bought.
    fn short_of(&self, spec: &Spec, id: GroupId, candidates: &[Candidate], left: &Limits) -> Option<String> {
        let needed = attempt(&self.scaling.fleet, &BTreeSet::from([id]), None, candidates, false);
        let (nodes, money) = (needed.nodes(), needed.money(candidates));
        if nodes > left.nodes {
            let most = spec.max_workers;
            return Some(format!("it takes {nodes} more workers, and the cluster's maximum of {most} leaves {}", left.nodes));
        }
        let budget = left.money.filter(|left| money > *left)?;
        Some(format!("it takes {money} more, and the budget of {} leaves {budget}", spec.budget.unwrap_or_default()))
    }
}

/// Whether a need is of a resource that no type offers: see [`Brain::amounts_of`].
fn is_of_nothing(need: &Amounts) -> bool {
    need.0[DIMENSIONS - 1] == u64::MAX
}
