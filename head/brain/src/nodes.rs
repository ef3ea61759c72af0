//! The node table: which nodes there are, how each lives, and whether it is heard.
//!
//! Owns the entries of all nodes, their timers, the brake on mass loss and what went wrong last. Only this room changes what is
//! recorded of a node; other components read it, and change their own part of an entry: placement its [`GoalState`], the
//! autoscaler its [`Usage`].
//!
//! | module | decides |
//! |---|---|
//! | `joining` | who may join and connect as a node |
//! | `lifecycle` | a node's way from requested to gone |
//! | `membership` | suspicion, verdicts, the recovery ladder and the brake on mass loss |
//! | `transitions` | nothing: what else changes when a node's state does |
//! | `reports` | nothing: what agents report of their services, as events |
//! | `node` | nothing: what is known of a node |

mod joining;
mod lifecycle;
mod membership;
mod node;
mod reports;
mod transitions;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::reason::{Reason, Trouble};
use cloudtik_model::spec::Offer;
use cloudtik_model::{MoneyPerHour, NodeId};

use crate::Brain;
use crate::autoscaler::Usage;
use crate::placement::GoalState;
pub(crate) use lifecycle::pause;
pub(crate) use node::Node;

#[derive(Debug)]
pub(crate) struct Nodes {
    table: BTreeMap<NodeId, Node>,
    /// When to look at a node again.
    timers: BTreeSet<(u64, NodeId)>,
    brake: bool,
    /// Since when some worker is heard, as far as that was looked at.
    company_since: Option<u64>,
    /// The head was away until a moment before this: what was said meanwhile has been heard by then.
    listening_since: u64,
    /// What went wrong last with nodes that are not ready.
    last_errors: BTreeMap<NodeId, Trouble>,
}

/// Everybody may read the table.
impl Deref for Nodes {
    type Target = BTreeMap<NodeId, Node>;
    fn deref(&self) -> &Self::Target {
        &self.table
    }
}

impl Nodes {
    /// From what is stored. How far the launches of an earlier head came is not known, nor whether its nodes work.
    pub(crate) fn restore(records: Vec<NodeRecord>, now: u64) -> Self {
        let restored = |record: NodeRecord| {
            let mut node = Node::new(record, now);
            node.uncertain = Some(now);
            node.usage = Usage::unknown();
            (node.record.id.clone(), node)
        };
        let table: BTreeMap<NodeId, Node> = records.into_iter().map(restored).collect();
        let quarantined = |node: &Node| match &node.record.life {
            NodeState::Quarantined { reason: Reason::Quarantined { reason } } => {
                Some((node.record.id.clone(), Trouble::Quarantined { reason: reason.clone() }))
            }
            _ => None,
        };
        let last_errors = table.values().filter_map(quarantined).collect();
        Self { table, timers: BTreeSet::new(), brake: false, company_since: None, listening_since: 0, last_errors }
    }

    fn get_mut(&mut self, id: &NodeId) -> Option<&mut Node> {
        self.table.get_mut(id)
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.table.values_mut()
    }

    /// A node's identifiers, for walks during which entries change.
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.table.keys().cloned().collect()
    }

    /// A new generation of a node, in the place of the one before. Failed calls in a row go on to count.
    pub(crate) fn create(&mut self, record: NodeRecord, now: u64) {
        let id = record.id.clone();
        let mut node = Node::new(record, now);
        if let Some(before) = self.table.get(&id) {
            (node.failures, node.not_before) = (before.failures, before.not_before);
        }
        self.clear_timer(&id);
        self.table.insert(id, node);
    }

    /// What placement keeps of a node.
    pub(crate) fn goal_mut(&mut self, id: &NodeId) -> Option<&mut GoalState> {
        self.table.get_mut(id).map(|node| &mut node.goal)
    }

    pub(crate) fn goals_mut(&mut self) -> impl Iterator<Item = &mut GoalState> {
        self.table.values_mut().map(|node| &mut node.goal)
    }

    /// What the autoscaler keeps of a node.
    pub(crate) fn usage_mut(&mut self, id: &NodeId) -> Option<&mut Usage> {
        self.table.get_mut(id).map(|node| &mut node.usage)
    }

    pub(crate) fn set_revision(&mut self, id: &NodeId, revision: u64) {
        if let Some(node) = self.table.get_mut(id) {
            node.record.revision = revision;
        }
    }

    /// From which offer a node is asked for, and what it then costs.
    pub(crate) fn set_offer(&mut self, id: &NodeId, offer: Offer, price: Option<MoneyPerHour>) {
        if let Some(node) = self.table.get_mut(id) {
            (node.record.offer, node.record.price) = (offer, price);
        }
    }

    /// A node that was lost is not waited for any more.
    pub(crate) fn clear_lost(&mut self, id: &NodeId) {
        if let Some(node) = self.table.get_mut(id) {
            node.record.was_lost = false;
        }
    }

    /// The provider lists a node's instance, perhaps with an address that was not known; true if that is news.
    pub(crate) fn note_listed(&mut self, id: &NodeId, address: Option<String>) -> bool {
        let Some(node) = self.table.get_mut(id) else { return false };
        node.unlisted_since = None;
        let is_news = node.record.instance.is_some() && node.record.address.is_none() && address.is_some();
        if is_news {
            node.record.address = address;
        }
        is_news
    }

    /// A list that was asked for at `asked` does not show a node's instance; since when none does in the state that it is in.
    pub(crate) fn note_unlisted(&mut self, id: &NodeId, asked: u64) -> u64 {
        let Some(node) = self.table.get_mut(id) else { return asked };
        let since = node.unlisted_since.filter(|since| *since > node.entered).unwrap_or(asked);
        node.unlisted_since = Some(since);
        since
    }

    /// What went wrong last with nodes that are not ready.
    pub(crate) fn last_errors(&self) -> &BTreeMap<NodeId, Trouble> {
        &self.last_errors
    }

    pub(crate) fn next_timer(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The nodes whose timers are due, each once: looking at one sets its next, which may be due only after the clock moved.
    pub(crate) fn take_due(&mut self, now: u64) -> BTreeSet<NodeId> {
        let mut due = BTreeSet::new();
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            due.extend(self.timers.pop_first().map(|(_, node)| node));
        }
        due
    }

    /// Sets a node's timer unless an earlier one is set. A look says anew when the next is due, so there is one for each.
    fn set_timer(&mut self, id: &NodeId, at: u64) {
        let Some(node) = self.table.get_mut(id).filter(|node| node.timer.is_none_or(|due| at < due)) else { return };
        if let Some(due) = node.timer.replace(at) {
            self.timers.remove(&(due, id.clone()));
        }
        self.timers.insert((at, id.clone()));
    }

    /// Nothing is waited for any more of what was waited for.
    pub(crate) fn clear_timer(&mut self, id: &NodeId) {
        if let Some(due) = self.table.get_mut(id).and_then(|node| node.timer.take()) {
            self.timers.remove(&(due, id.clone()));
        }
    }
}

impl Brain {
    /// Moves a node as far as what is known allows.
    pub(crate) fn look_at(&mut self, id: &NodeId) {
        self.drive(id);
        self.release_events(id);
        if self.placement.take_services_changed() {
            self.reconsider_goals();
        }
    }

    pub(crate) fn run_timers(&mut self) {
        for node in self.nodes.take_due(self.clock.now()) {
            self.nodes.clear_timer(&node);
            self.look_at(&node);
        }
    }

    /// Looks at a node again at the latest then.
    pub(crate) fn wake_at(&mut self, id: &NodeId, at: u64) {
        self.nodes.set_timer(id, at.max(self.clock.now() + 1));
    }
}
