//! What a step stores: records, and events that say why.

use cloudtik_model::event::{Event, What};
use cloudtik_model::node::NodeState;
use cloudtik_model::reason::{Reason, Trouble};
use cloudtik_model::{Actor, NodeId};

use crate::scaling::SETTLE;
use crate::{Brain, Record};

/// Complaints that are alike are stored once in so many milliseconds, with their number; the body counts all refusals.
const COMPLAINT_PAUSE: u64 = 600_000;
/// Complaints that differ are stored at most this often in the long run, in milliseconds: who is refused may try again at will.
const REFUSAL_PAUSE: u64 = 30_000;
/// So many that differ are stored all the same.
const BURST: u64 = 20;

#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) at: Option<u64>,
    pub(crate) what: Option<What>,
    /// Complaints that were not stored since.
    pub(crate) since: u64,
    /// Complaints that were stored within a short time.
    pub(crate) burst: u64,
}

impl Brain {
    pub(crate) fn event(&mut self, node: Option<&NodeId>, what: What) {
        self.push_event(None, node, what, 0, Vec::new());
    }

    /// The same with the last lines of a service's log.
    pub(crate) fn event_with_log(&mut self, node: Option<&NodeId>, what: What, log: Vec<String>) {
        self.push_event(None, node, what, 0, log);
    }

    /// The same of what somebody asked for.
    pub(crate) fn requested(&mut self, actor: &Actor, node: Option<&NodeId>, what: What) {
        self.push_event(Some(actor), node, what, 0, Vec::new());
    }

    fn push_event(&mut self, actor: Option<&Actor>, node: Option<&NodeId>, what: What, more: u64, log: Vec<String>) {
        let generation = node.and_then(|id| self.nodes.get(id)).map(|n| n.record.generation);
        let actor = actor.cloned();
        let event = Event { node: node.cloned(), generation, actor, more, log, ..Event::new(self.clock.wall(), what) };
        let now = self.clock.now();
        self.step.records.extend(self.repeats.admit(event, now).into_iter().map(Record::Event));
    }

    /// Stores what was withheld of a node's events, as far as that is allowed by now.
    pub(crate) fn release_events(&mut self, id: &NodeId) {
        let now = self.clock.now();
        self.step.records.extend(self.repeats.release(id, now, false).into_iter().map(Record::Event));
        if let Some(at) = self.repeats.next_release(id) {
            self.wake_at(id, at);
        }
    }

    /// Something stands in the way of a node's being ready.
    pub(crate) fn note_trouble(&mut self, id: &NodeId, what: Trouble) {
        if self.troubled.get(id) != Some(&what) {
            self.troubled.insert(id.clone(), what);
            self.reconsider_scale();
        }
    }

    /// Stores a refusal of what somebody asked for; it is about a node if there is one of that name.
    pub(crate) fn refuse(&mut self, actor: &Actor, id: &NodeId, what: What) {
        let node = self.nodes.contains_key(id).then(|| id.clone());
        self.complain_of(Some(actor), node.as_ref(), what);
    }

    /// Stores what may come again and again, but no flood of it: an event that explains something must not be pushed out
    /// of the log by what only repeats itself.
    pub(crate) fn complain(&mut self, node: Option<&NodeId>, what: What) {
        self.complain_of(None, node, what);
    }

    /// The same of what somebody asked for.
    pub(crate) fn complain_of(&mut self, actor: Option<&Actor>, node: Option<&NodeId>, what: What) {
        let now = self.clock.now();
        let said = self.said.entry(node.cloned()).or_default();
        let passed = said.at.map_or(u64::MAX, |at| now.saturating_sub(at));
        said.burst = said.burst.saturating_sub(passed / REFUSAL_PAUSE);
        let is_known = said.what.as_ref() == Some(&what) && passed < COMPLAINT_PAUSE;
        if is_known || said.burst >= BURST {
            said.since += 1;
            return;
        }
        said.burst += 1;
        let more = std::mem::take(&mut said.since);
        (said.at, said.what) = (Some(now), Some(what.clone()));
        self.push_event(actor, node, what, more, Vec::new());
    }

    pub(crate) fn store_node(&mut self, id: &NodeId) {
        self.note_revision(id);
        if let Some(node) = self.nodes.get(id) {
            self.step.records.push(Record::Node(node.record.clone()));
        }
    }

    pub(crate) fn store_cluster(&mut self) {
        self.step.records.push(Record::Cluster(self.cluster.clone()));
    }

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
        self.scaling.note_hoped(id, &node.record.life);
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
            self.troubled.remove(id);
            self.event(Some(id), What::StateChanged { from, to, why });
        }
        if gone {
            let node_type = self.nodes[id].record.node_type.clone();
            self.scaling.launching.freed(&node_type);
        }
        let ends_unplanned = matches!(self.nodes[id].record.life, NodeState::Terminating { .. } | NodeState::Failed { .. });
        if ends_unplanned && !was_leaving && !id.is_head() {
            let record = &self.nodes[id].record;
            self.scaling.launching.lost(&record.node_type, id, record.generation, now);
        }
        if leaving && !was_leaving {
            let node_type = self.nodes[id].record.node_type.clone();
            self.scaling.left.insert(node_type, now);
        }
        if gone || leaving != was_leaving || from != to {
            self.reconsider_scale();
        }
        self.touch(id);
        self.nodes_changed = true;
        self.recount(id);
        self.wake_at(id, now);
    }
}
