//! The promises, checked whenever the world moves.

use std::collections::BTreeMap;
use std::fmt;

use cloudtik_model::NodeId;
use cloudtik_model::spec::Spec;

use crate::provider::Provider;

/// A promise that did not hold.
#[derive(Debug, Clone)]
pub struct Violation {
    pub seed: u64,
    /// Virtual milliseconds.
    pub at: u64,
    /// Its number in docs/ARCHITECTURE.md.
    pub promise: u8,
    pub what: String,
    /// What happened before, the last lines.
    pub trail: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: promise {} broken at {} ms: {}", self.seed, self.promise, self.at, self.what)?;
        for line in &self.trail {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}

/// What must hold of the machines at every moment.
pub fn check_machines(provider: &Provider, spec: &Spec) -> Result<(), (u8, String)> {
    let mut by_node: BTreeMap<&NodeId, usize> = BTreeMap::new();
    let mut by_type = BTreeMap::new();
    let (mut workers, mut cost) = (0, 0);
    for machine in provider.alive().filter(|m| !m.instance.node.is_head()) {
        *by_node.entry(&machine.instance.node).or_default() += 1;
        *by_type.entry(&machine.node_type).or_insert(0u32) += 1;
        workers += 1;
        cost += machine.price.0;
    }
    if let Some((node, count)) = by_node.iter().find(|(_, count)| **count > 1) {
        return Err((1, format!("{count} machines of {node} run at once")));
    }
    if workers > spec.max_workers {
        return Err((2, format!("{workers} workers exist, the cluster's maximum is {}", spec.max_workers)));
    }
    for (name, count) in by_type {
        let most = spec.workers.get(name).map_or(0, |w| w.max);
        if count > most {
            return Err((2, format!("{count} workers of type {name} exist, its maximum is {most}")));
        }
    }
    if let Some(budget) = spec.budget
        && cost > budget.0
    {
        return Err((2, format!("the workers cost {cost}, the budget is {}", budget.0)));
    }
    Ok(())
}
