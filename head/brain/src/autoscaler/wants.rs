//! How many workers of each type are wanted by number, and by whom: the description's minimum, what was asked for by hand,
//! and policies. The largest number counts, within the type's bounds.

use std::collections::BTreeMap;

use cloudtik_model::NodeTypeName;
use cloudtik_model::demand::{RequestedCapacity, ResourceRequest};
use cloudtik_model::outlook::{NamedRequest, Outlook, Source};
use cloudtik_model::spec::Spec;

use crate::Brain;

/// What is wanted of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) count: u32,
    /// Who wants how many, the deciding one first.
    pub(crate) sources: Vec<Source>,
}

impl Brain {
    /// How many workers of a type there are without policies and bundles: its minimum, or what was asked for by hand.
    pub(crate) fn base(&self, spec: &Spec, name: &NodeTypeName) -> u32 {
        let bounds = spec.workers.get(name).map_or((0, 0), |kind| (kind.min, kind.max));
        self.raw_base(spec, name).clamp(bounds.0, bounds.1)
    }

    /// The same before it is held to the type's bounds, counting only what was asked for up to one request.
    pub(super) fn raw_base_by(&self, spec: &Spec, name: &NodeTypeName, last: &ResourceRequest) -> u32 {
        let min = spec.workers.get(name).map_or(0, |kind| kind.min);
        Self::sum_of(spec, name, self.autoscaler.requests.numbers().filter(|request| request.number <= last.number)).max(min)
    }

    /// The same before it is held to the type's bounds.
    pub(crate) fn raw_base(&self, spec: &Spec, name: &NodeTypeName) -> u32 {
        Self::sum_of(spec, name, self.autoscaler.requests.numbers())
    }

    fn sum_of<'a>(spec: &Spec, name: &NodeTypeName, requests: impl Iterator<Item = &'a ResourceRequest>) -> u32 {
        let Some(kind) = spec.workers.get(name) else { return 0 };
        let (mut base, mut more) = (kind.min, 0u32);
        for request in requests {
            match &request.wants {
                RequestedCapacity::Workers { node_type, count } if node_type == name => base = *count,
                RequestedCapacity::More { node_type, count } if node_type == name => more = more.saturating_add(*count),
                _ => {}
            }
        }
        base.saturating_add(more)
    }

    pub(super) fn wants(&mut self, spec: &Spec, outlook: &mut Outlook) -> BTreeMap<NodeTypeName, Wanted> {
        let mut all = BTreeMap::new();
        // Types that the specification no longer has are wanted not at all.
        for name in self.autoscaler.tally.types() {
            all.insert(name.clone(), Wanted::default());
        }
        if self.cluster.stopping {
            return all;
        }
        let mut policies: BTreeMap<NodeTypeName, Vec<(u32, Source)>> = BTreeMap::new();
        for policy in &spec.policies {
            let (count, says) = self.consult(spec, policy);
            if let Some(count) = count {
                policies
                    .entry(policy.node_type.clone())
                    .or_default()
                    .push((count, Source::Policy { policy: policy.name.clone(), count, says: says.clone() }));
            }
            outlook.policies.insert(policy.name.clone(), says);
        }
        for (name, kind) in &spec.workers {
            let base = self.base(spec, name);
            let of_type = self.autoscaler.requests.numbers().filter(|request| request.wants.node_type() == Some(name));
            let requests: Vec<NamedRequest> =
                of_type.map(|request| NamedRequest { name: request.name.clone(), wants: request.wants.clone() }).collect();
            let of_base = match requests.is_empty() {
                true => Source::Minimum { count: base },
                false => Source::Requests { count: base, requests },
            };
            let mut sources = vec![(base, of_base)];
            sources.extend(policies.remove(name).unwrap_or_default());
            // The first of the largest decides; the sort is stable.
            sources.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
            let count = sources[0].0.clamp(kind.min, kind.max);
            all.insert(name.clone(), Wanted { count, sources: sources.into_iter().map(|(_, source)| source).collect() });
        }
        self.hold_policies_to_limits(spec, &mut all);
        all
    }

    /// Where limits leave too little for all that is wanted, policies get what minima and requests leave, for room too: those
    /// on types of the highest priority first.
    fn hold_policies_to_limits(&self, spec: &Spec, all: &mut BTreeMap<NodeTypeName, Wanted>) {
        // The least that one may cost: what it does cost is held against the budget when it is asked for.
        let price = |name: &NodeTypeName| spec.workers[name].offers().iter().filter_map(|(_, p)| *p).min().unwrap_or_default().0;
        let dear = |name: &NodeTypeName, n: u32| price(name).saturating_mul(u64::from(n));
        let base: BTreeMap<&NodeTypeName, u32> = spec.workers.keys().map(|name| (name, self.base(spec, name))).collect();
        if base.iter().all(|(name, base)| all.get(*name).is_none_or(|wanted| wanted.count <= *base)) {
            return;
        }
        let missing = |name: &NodeTypeName| all.get(name).map_or(0, |w| w.count).saturating_sub(self.autoscaler.tally.counted(name));
        let nodes = base.keys().fold(self.autoscaler.tally.exist(), |sum, name| sum.saturating_add(missing(name)));
        let cost = base.keys().fold(self.autoscaler.tally.spent(spec).0, |sum, name| sum.saturating_add(dear(name, missing(name))));
        let fits = nodes <= spec.max_workers && spec.budget.is_none_or(|budget| cost <= budget.0);
        if fits && self.autoscaler.fleet.waiting_or_parked().is_empty() {
            return;
        }
        // What room has beyond numbers, and what it waits for.
        let room = self.nodes_for_room(&base);
        let (waiting, waiting_cost) = self.room_needs(spec, &self.tentative_fleet());
        let mut workers = base.values().fold(spec.max_workers.saturating_sub(waiting), |left, n| left.saturating_sub(*n));
        let mut money = spec
            .budget
            .map(|budget| base.iter().fold(budget.0.saturating_sub(waiting_cost.0), |left, (name, n)| left.saturating_sub(dear(name, *n))));
        let mut order: Vec<&NodeTypeName> = spec.workers.keys().collect();
        order.sort_by_key(|name| std::cmp::Reverse(spec.workers[*name].priority));
        for name in order {
            let Some(wanted) = all.get_mut(name) else { continue };
            let beyond = wanted.count.saturating_sub(base[name]);
            // Room on nodes of its own type lies where the policy's workers are.
            let others: Vec<(&NodeTypeName, u32)> = room.iter().filter(|(of, _)| **of != name).map(|(of, n)| (*of, *n)).collect();
            let left = others.iter().fold(workers, |left, (_, n)| left.saturating_sub(*n));
            let left_money = money.map(|money| others.iter().fold(money, |left, (of, n)| left.saturating_sub(dear(of, *n))));
            let affordable = left_money.and_then(|left| left.checked_div(price(name)));
            let affordable = affordable.map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX));
            let held = beyond.min(left).min(affordable);
            if held < beyond {
                wanted.count = base[name] + held;
                wanted.sources.push(Source::Limits { count: wanted.count });
            }
            workers = workers.saturating_sub(held);
            money = money.map(|left| left.saturating_sub(dear(name, held)));
        }
    }

    /// How many workers of each type there are beyond those by number, because room lies on them.
    fn nodes_for_room<'n>(&self, base: &BTreeMap<&'n NodeTypeName, u32>) -> BTreeMap<&'n NodeTypeName, u32> {
        let mut unused: BTreeMap<&NodeTypeName, u32> = BTreeMap::new();
        for id in self.unused() {
            *unused.entry(&self.nodes[id].record.node_type).or_default() += 1;
        }
        let used = |name: &NodeTypeName| self.autoscaler.tally.counted(name).saturating_sub(unused.get(name).copied().unwrap_or(0));
        base.iter().map(|(name, base)| (*name, used(name).saturating_sub(*base))).collect()
    }
}
