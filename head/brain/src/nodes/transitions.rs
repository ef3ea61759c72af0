//! What else changes when a node's state does: what is stored, said, and told to the other components.

use cloudtik_model::NodeId;
use cloudtik_model::event::What;
use cloudtik_model::node::NodeState;
use cloudtik_model::reason::{Reason, Trouble};

use crate::autoscaler::SETTLE;
use crate::{Brain, Record};

impl Brain {
    /// Moves a node into another state, stores that and says so.
    pub(crate) fn enter(&mut self, id: &NodeId, life: NodeState, why: Reason) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let Some(node) = self.nodes.get_mut(id) else { return };
        let (from, to) = (node.record.life.name(), life.name());
        let was_leaving = node.record.life.is_leaving();
        if life.is_leaving() && !was_leaving {
            self.note_departure(id);
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        // Suspicion is soft: after a restart the evidence is collected afresh.
        let is_soft = matches!(life, NodeState::Suspect { .. });
        let is_lost = node.record.was_ready && matches!(life, NodeState::Terminating { .. }) && !was_leaving;
        node.record.was_ready |= life == NodeState::Ready;
        if life == NodeState::Ready {
            node.at_work.get_or_insert(now + SETTLE);
        }
        node.record.was_lost = (node.record.was_lost || is_lost) && life != NodeState::Ready;
        node.record.life = life;
        node.record.since = wall;
        node.entered = now;
        match node.record.life {
            NodeState::Preparing => _ = node.preparing_since.get_or_insert(now),
            NodeState::Ready => node.preparing_since = None,
            _ => {}
        }
        let leaving = node.record.life.is_leaving();
        let gone = node.record.life == NodeState::Gone;
        if !is_soft {
            self.store_node(id);
        }
        if from != to {
            self.nodes.last_errors.remove(id);
            self.event(Some(id), What::StateChanged { from, to, why });
        }
        self.autoscaler.on_state_entered(&self.nodes[id].record, was_leaving, now);
        if gone || leaving != was_leaving || from != to {
            self.reconsider_scale();
        }
        self.touch(id);
        self.placement.note_nodes_changed();
        self.recount(id);
        self.wake_at(id, now);
    }

    pub(crate) fn store_node(&mut self, id: &NodeId) {
        self.note_revision(id);
        if let Some(node) = self.nodes.get(id) {
            self.effects.record(Record::Node(node.record.clone()));
        }
    }

    /// Something stands in the way of a node's being ready.
    pub(crate) fn note_error(&mut self, id: &NodeId, what: Trouble) {
        if self.nodes.last_errors.get(id) != Some(&what) {
            self.nodes.last_errors.insert(id.clone(), what);
            self.reconsider_scale();
        }
    }

    /// A node that is drained already goes on to be, for another reason.
    pub(crate) fn redirect_drain(&mut self, id: &NodeId, reason: Reason) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.record.life = NodeState::Draining { reason };
        }
        self.store_node(id);
    }
}
