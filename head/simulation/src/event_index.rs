//! What stored events tell, as far as promises ask for it.

use std::collections::BTreeMap;

use cloudtik_model::event::{Event, EventKind, StateName, What};
use cloudtik_model::reason::Reason;
use cloudtik_model::{Generation, InstanceId, NodeId};

#[derive(Debug, Default)]
pub struct EventIndex {
    nodes: BTreeMap<NodeId, (Generation, OfNode)>,
    /// Of instances that belong to no node, the latest.
    orphans: Vec<InstanceId>,
}

/// What is told of one generation of a node.
#[derive(Debug, Clone, Copy, Default)]
pub struct OfNode {
    pub decision: bool,
    pub draining: bool,
    pub not_needed: bool,
    pub terminating: bool,
}

/// Orphans that are remembered: each is deleted soon after it is told of, or told of again.
const ORPHANS: usize = 1_000;

impl EventIndex {
    pub fn note(&mut self, event: &Event) {
        if let What::DeleteOrphan { instance, .. } = &event.what {
            if self.orphans.len() == ORPHANS {
                self.orphans.remove(0);
            }
            self.orphans.push(instance.clone());
        }
        let (Some(node), Some(generation)) = (&event.node, event.generation) else { return };
        let known = self.nodes.entry(node.clone()).or_default();
        if known.0 != generation {
            *known = (generation, OfNode::default());
        }
        let of = &mut known.1;
        of.decision |= event.kind == EventKind::Decision;
        match &event.what {
            What::StateChanged { to: StateName::Draining, why, .. } => {
                of.draining = true;
                of.not_needed |= *why == Reason::NotNeeded;
            }
            What::StateChanged { to: StateName::Terminating, .. } => of.terminating = true,
            What::ScaleIn(decision) => of.not_needed |= decision.why == Reason::NotNeeded,
            _ => {}
        }
    }

    /// What is told of a generation of a node, if it is the latest that anything is told of.
    pub fn of(&self, node: &NodeId, generation: Generation) -> Option<OfNode> {
        self.nodes.get(node).filter(|(known, _)| *known == generation).map(|(_, of)| *of)
    }

    pub fn is_orphan(&self, instance: &InstanceId) -> bool {
        self.orphans.contains(instance)
    }
}
