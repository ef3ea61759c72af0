//! What there is and what it costs, kept up to date with every change of a node.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::node::NodeRecord;
use cloudtik_model::spec::Spec;
use cloudtik_model::{MoneyPerHour, NodeId, NodeTypeName};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// May exist at the provider.
    exist: u32,
    /// Of those, on their way or there, and not on their way out.
    counted: u32,
    /// Of those that exist, the ones that were made without a price.
    unpriced: u32,
    /// Millionths of money per hour of the others.
    spent: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    types: BTreeMap<NodeTypeName, Counts>,
    /// What each node is counted as.
    nodes: BTreeMap<NodeId, (NodeTypeName, Counts)>,
    exist: u32,
    /// Millionths of money per hour of those with a price.
    spent: u64,
    /// Types of which some that exist have none.
    unpriced: BTreeSet<NodeTypeName>,
}

impl Tally {
    pub(crate) fn set(&mut self, record: &NodeRecord) {
        let exists = record.life.may_exist();
        let counts = Counts {
            exist: u32::from(exists),
            counted: u32::from(record.life.is_counted()),
            unpriced: u32::from(exists && record.price.is_none()),
            spent: record.price.filter(|_| exists).map_or(0, |p| p.0),
        };
        let before = match self.nodes.get_mut(&record.id) {
            Some((name, known)) if *name == record.node_type && *known == counts => return,
            Some(known) => Some(std::mem::replace(known, (record.node_type.clone(), counts))),
            None => self.nodes.insert(record.id.clone(), (record.node_type.clone(), counts)),
        };
        if let Some((name, old)) = before
            && let Some(all) = self.types.get_mut(&name)
        {
            all.exist -= old.exist;
            all.counted -= old.counted;
            all.unpriced -= old.unpriced;
            self.exist -= old.exist;
            self.spent -= old.spent;
            if old.unpriced > 0 && all.unpriced == 0 {
                self.unpriced.remove(&name);
            }
        }
        let all = self.types.entry(record.node_type.clone()).or_default();
        all.exist += counts.exist;
        all.counted += counts.counted;
        all.unpriced += counts.unpriced;
        self.exist += counts.exist;
        self.spent = self.spent.saturating_add(counts.spent);
        if counts.unpriced > 0 {
            self.unpriced.insert(record.node_type.clone());
        }
    }

    pub(crate) fn types(&self) -> impl Iterator<Item = &NodeTypeName> {
        self.types.iter().filter(|(_, c)| c.exist > 0).map(|(name, _)| name)
    }

    /// Workers that may exist.
    pub(crate) fn exist(&self) -> u32 {
        self.exist
    }

    pub(crate) fn exist_of(&self, name: &NodeTypeName) -> u32 {
        self.types.get(name).map_or(0, |c| c.exist)
    }

    pub(crate) fn counted(&self, name: &NodeTypeName) -> u32 {
        self.types.get(name).map_or(0, |c| c.counted)
    }

    /// What everything that may exist costs. A node costs what its type cost when it was made, also after the type is gone
    /// from the description; one that was made without a price costs what its type costs now.
    pub(crate) fn spent(&self, spec: &Spec) -> MoneyPerHour {
        let of_type = |name: &NodeTypeName| {
            let price = spec.workers.get(name).and_then(|w| w.price).unwrap_or_default();
            price.times(self.types.get(name).map_or(0, |counts| counts.unpriced))
        };
        [MoneyPerHour(self.spent)].into_iter().chain(self.unpriced.iter().map(of_type)).sum()
    }
}
