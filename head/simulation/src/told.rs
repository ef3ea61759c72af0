//! What stored events tell, as far as promises ask for it.

use std::collections::BTreeMap;

use cloudtik_model::event::{Event, EventKind};
use cloudtik_model::{Generation, InstanceId, NodeId};

#[derive(Debug, Default)]
pub struct Told {
    nodes: BTreeMap<NodeId, (Generation, OfNode)>,
    /// Of instances that belong to no node, the latest.
    orphans: Vec<String>,
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

impl Told {
    pub fn note(&mut self, event: &Event) {
        if event.message.contains("orphan") {
            if self.orphans.len() == ORPHANS {
                self.orphans.remove(0);
            }
            self.orphans.push(event.message.clone());
        }
        let (Some(node), Some(generation)) = (&event.node, event.generation) else { return };
        let known = self.nodes.entry(node.clone()).or_default();
        if known.0 != generation {
            *known = (generation, OfNode::default());
        }
        let of = &mut known.1;
        of.decision |= event.kind == EventKind::Decision;
        of.draining |= event.message.contains("→ draining");
        of.not_needed |= event.message.contains("no longer needed");
        of.terminating |= event.message.contains("→ terminating");
    }

    /// What is told of a generation of a node, if it is the latest that anything is told of.
    pub fn of(&self, node: &NodeId, generation: Generation) -> Option<OfNode> {
        self.nodes.get(node).filter(|(known, _)| *known == generation).map(|(_, of)| *of)
    }

    pub fn is_orphan(&self, instance: &InstanceId) -> bool {
        self.orphans.iter().any(|message| message.contains(instance.as_str()))
    }
}
