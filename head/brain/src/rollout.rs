//! What each node is to run: services start when what they come after is ready, and a change that restarts processes
//! goes from node to node.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::event::EventKind;
use cloudtik_model::node::NodeState;
use cloudtik_model::report::ServiceState;
use cloudtik_model::{NodeId, ServiceKey};

use crate::{Action, Brain, GoalOrder, Node, Session};

/// Before a goal that was refused is sent again, in milliseconds.
const GOAL_PAUSE: u64 = 5_000;

impl Brain {
    /// Sends the node its goal if it differs from what was sent over this link.
    pub(crate) fn update_goal(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let Some(session) = node.link else { return };
        if node.goal_not_before > self.clock.now() {
            let at = node.goal_not_before;
            return self.wake_at(id, at);
        }
        self.refresh_readiness();
        let Some(node) = self.nodes.get(id) else { return };
        let drain = matches!(node.record.life, NodeState::Draining { .. });
        let start = if drain { BTreeSet::new() } else { self.may_start(node) };
        let revision = node.record.revision;
        if node.sent.as_ref().is_some_and(|s| s.session == session && s.revision == revision && s.start == start && s.drain == drain) {
            return;
        }
        self.next_version += 1;
        // Higher than any version of an earlier head, whose epoch was lower.
        let version = (self.epoch.0 << 32) | self.next_version;
        let order = GoalOrder { session, version, revision, start, drain };
        self.nodes.get_mut(id).expect("looked up above").sent = Some(order.clone());
        self.act(Action::SendGoal { node: id.clone(), order });
    }

    /// The services of a node that may start: those whose predecessors are ready, and those that run already.
    fn may_start(&self, node: &Node) -> BTreeSet<ServiceKey> {
        let Some(spec) = &self.cluster.spec else { return BTreeSet::new() };
        spec.services_on(&node.record.node_type)
            .filter(|placement| {
                let runs = node.services.get(&placement.key).is_some_and(|s| {
                    matches!(s.state, ServiceState::Starting | ServiceState::Ready | ServiceState::Unhealthy | ServiceState::Backoff)
                });
                runs || placement.after.iter().all(|key| self.readiness.get(key).copied().unwrap_or(false))
            })
            .map(|placement| placement.key.clone())
            .collect()
    }

    /// Finds out which services run, and are ready on every node that is there and is to run them; true if that changed.
    fn refresh_readiness(&mut self) -> bool {
        if !std::mem::take(&mut self.readiness_stale) {
            return false;
        }
        let mut readiness = BTreeMap::new();
        for placement in self.cluster.spec.iter().flat_map(|s| &s.services) {
            let (mut ready, mut all) = (0, true);
            for node in self.nodes.values().filter(|n| placement.role.covers(&n.record.node_type) && n.record.life.is_counted()) {
                match node.services.get(&placement.key).map(|s| s.state) {
                    Some(ServiceState::Ready) => ready += 1,
                    // A node that is not there cannot hold up the others.
                    _ if node.link.is_none() => {}
                    _ => all = false,
                }
            }
            readiness.insert(placement.key.clone(), all && ready > 0);
        }
        let changed = readiness != self.readiness;
        self.readiness = readiness;
        changed
    }

    pub(crate) fn has_what_it_is_to_run(&self, id: &NodeId) -> bool {
        let Some(node) = self.nodes.get(id) else { return false };
        let Some(spec) = &self.cluster.spec else { return false };
        let Some(sent) = node.sent.as_ref().filter(|s| node.acknowledged >= s.version) else { return false };
        let placed: Vec<&ServiceKey> = spec.services_on(&node.record.node_type).map(|p| &p.key).collect();
        let runs_what_it_is_to = placed
            .iter()
            .all(|key| node.services.get(*key).is_some_and(|s| s.state == ServiceState::Ready && s.goal_version >= sent.version));
        let runs_nothing_else =
            node.services.values().all(|s| s.state == ServiceState::Stopped || s.key.runtime.is_own() || placed.contains(&&s.key));
        runs_what_it_is_to && runs_nothing_else
    }

    pub(crate) fn take_goal_ack(&mut self, session: Session, id: NodeId, version: u64, refusal: Option<String>) -> Option<NodeId> {
        let node = self.nodes.get_mut(&id).filter(|n| n.link == Some(session))?;
        match refusal {
            None => {
                node.acknowledged = node.acknowledged.max(version);
                self.nodes_changed = true;
            }
            Some(refusal) => {
                node.sent = None;
                node.goal_not_before = self.clock.now() + GOAL_PAUSE;
                self.complain(Some(&id), EventKind::Alarm, format!("its goal was refused, and will be sent again: {refusal}"));
            }
        }
        Some(id)
    }

    /// A service changed somewhere, or the specification did: goals may change anywhere.
    pub(crate) fn reconsider_goals(&mut self) {
        let advanced = self.advance_revisions();
        self.readiness_stale = true;
        if self.refresh_readiness() || advanced {
            self.drive_linked();
        }
    }

    fn drive_linked(&mut self) {
        let linked: Vec<NodeId> = self.nodes.values().filter(|n| n.link.is_some()).map(|n| n.record.id.clone()).collect();
        for id in linked {
            match self.nodes[&id].record.life {
                NodeState::Preparing | NodeState::Ready | NodeState::Draining { .. } => self.drive(&id),
                _ => {}
            }
        }
    }

    /// Where nodes take a revision one after the other, the next may be due when any of them changed.
    pub(crate) fn go_on_rolling(&mut self) {
        let is_due = std::mem::take(&mut self.nodes_changed) && self.cluster.spec.as_ref().is_some_and(|spec| spec.rolling);
        if is_due && self.advance_revisions() {
            self.drive_linked();
        }
    }

    /// Lets nodes take the newest revision: all at once where no process restarts, else one when the last has settled.
    fn advance_revisions(&mut self) -> bool {
        let Some(spec) = &self.cluster.spec else { return false };
        let (newest, rolling) = (spec.revision, spec.rolling);
        let mut behind: Vec<NodeId> =
            self.nodes.values().filter(|n| n.record.revision < newest && n.record.life.is_counted()).map(|n| n.record.id.clone()).collect();
        if behind.is_empty() {
            return false;
        }
        if rolling {
            // What does not run anything yet is no step of the roll-out.
            let unsettled = self.nodes.values().any(|n| {
                n.record.revision == newest
                    && n.record.life.is_counted()
                    && !matches!(n.record.life, NodeState::Requested | NodeState::Launched | NodeState::Joined)
                    && !(n.record.life == NodeState::Ready && self.has_what_it_is_to_run(&n.record.id))
            });
            // Nodes that never had a link run nothing that would have to be kept up: they need not wait. One that was not
            // heard since the head started may run anything.
            let runs_nothing =
                |id: &NodeId| matches!(self.nodes[id].record.life, NodeState::Requested | NodeState::Launched | NodeState::Joined);
            // One that is not there would be waited for, and may never come back; it takes the revision when it does.
            let is_there = |id: &NodeId| {
                let node = &self.nodes[id];
                node.link.is_some() && matches!(node.record.life, NodeState::Preparing | NodeState::Ready)
            };
            behind.retain(|id| runs_nothing(id) || (!unsettled && is_there(id)));
            let mut took_one = false;
            behind.sort_by_key(|id| !id.is_head());
            behind.retain(|id| {
                let may = runs_nothing(id) || (!took_one && self.may_restart(id).is_ok());
                took_one |= may && !runs_nothing(id);
                may
            });
        }
        let advanced = !behind.is_empty();
        for id in behind {
            self.nodes.get_mut(&id).expect("listed above").record.revision = newest;
            self.store_node(&id);
            let life = self.nodes[&id].record.life.clone();
            if life == NodeState::Ready {
                self.enter(&id, NodeState::Preparing, &format!("taking revision {newest}"));
            }
        }
        advanced
    }
}
