//! How many workers of each type are wanted by number, and by whom: the description's minimum, what was asked for by hand,
//! and policies. The largest number counts, within the type's bounds.

use std::collections::BTreeMap;

use cloudtik_model::NodeTypeName;
use cloudtik_model::demand::{Ask, Wants};
use cloudtik_model::outlook::Outlook;
use cloudtik_model::spec::Spec;

use crate::Brain;

/// What is wanted of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) count: u32,
    /// Who wants how many, the deciding one first.
    pub(crate) sources: Vec<String>,
}

impl Brain {
    /// How many workers of a type there are without policies and bundles: its minimum, or what was asked for by hand.
    pub(crate) fn base(&self, spec: &Spec, name: &NodeTypeName) -> u32 {
        let bounds = spec.workers.get(name).map_or((0, 0), |kind| (kind.min, kind.max));
        self.raw_base(spec, name).clamp(bounds.0, bounds.1)
    }

    /// The same, counting only what was asked for up to one request.
    pub(super) fn base_by(&self, spec: &Spec, name: &NodeTypeName, last: &Ask) -> u32 {
        let bounds = spec.workers.get(name).map_or((0, 0), |kind| (kind.min, kind.max));
        let asks = self.asks.numbers().filter(|ask| (ask.at, &ask.name) <= (last.at, &last.name));
        Self::sum_of(spec, name, asks).clamp(bounds.0, bounds.1)
    }

    /// The same before it is held to the type's bounds.
    pub(super) fn raw_base(&self, spec: &Spec, name: &NodeTypeName) -> u32 {
        Self::sum_of(spec, name, self.asks.numbers())
    }

    fn sum_of<'a>(spec: &Spec, name: &NodeTypeName, asks: impl Iterator<Item = &'a Ask>) -> u32 {
        let Some(kind) = spec.workers.get(name) else { return 0 };
        let (mut base, mut more) = (kind.min, 0u32);
        for ask in asks {
            match &ask.wants {
                Wants::Workers { node_type, count } if node_type == name => base = *count,
                Wants::More { node_type, count } if node_type == name => more = more.saturating_add(*count),
                _ => {}
            }
        }
        base.saturating_add(more)
    }

    pub(super) fn wants(&mut self, spec: &Spec, outlook: &mut Outlook) -> BTreeMap<NodeTypeName, Wanted> {
        let mut all = BTreeMap::new();
        // Types that the specification no longer has are wanted not at all.
        for name in self.scaling.tally.types() {
            all.insert(name.clone(), Wanted::default());
        }
        if self.cluster.stopping {
            return all;
        }
        let mut policies: BTreeMap<NodeTypeName, Vec<(u32, String)>> = BTreeMap::new();
        for policy in &spec.policies {
            let (count, says) = self.consult(spec, policy);
            if let Some(count) = count {
                policies.entry(policy.node_type.clone()).or_default().push((count, format!("policy {}: {count} ({says})", policy.name)));
            }
            outlook.policies.insert(policy.name.clone(), says);
        }
        for (name, kind) in &spec.workers {
            let base = self.base(spec, name);
            let of_type = self.asks.numbers().filter(|ask| ask.wants.node_type() == Some(name));
            let by_hand: Vec<String> = of_type.map(|ask| format!("{} ({})", ask.name, ask.wants)).collect();
            let of_base =
                if by_hand.is_empty() { format!("minimum {base}") } else { format!("asked for: {base} by {}", by_hand.join(", ")) };
            let mut sources = vec![(base, of_base)];
            sources.extend(policies.remove(name).unwrap_or_default());
            // The first of the largest decides; the sort is stable.
            sources.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
            let count = sources[0].0.clamp(kind.min, kind.max);
            all.insert(name.clone(), Wanted { count, sources: sources.into_iter().map(|(_, text)| text).collect() });
        }
        all
    }
}
