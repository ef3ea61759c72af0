//! What each node is to run: services start when what they come after is ready, and a change that restarts processes
//! goes from node to node.

mod failure;

use std::collections::BTreeSet;

use cloudtik_model::event::What;
use cloudtik_model::node::NodeState;
use cloudtik_model::reason::Reason;
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::{ServicePlacement, Spec};
use cloudtik_model::{NodeId, ServiceKey};

use crate::{Action, Brain, GoalOrder, Node, Session};

/// Before a goal that was refused is sent again, in milliseconds.
const GOAL_PAUSE: u64 = 5_000;

impl Brain {
    /// Sends the node its goal if it differs from what was sent over this link.
    pub(crate) fn update_goal(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let Some(session) = node.link else { return };
        if node.goal.not_before > self.clock.now() {
            let at = node.goal.not_before;
            return self.wake_at(id, at);
        }
        self.refresh_readiness();
        let Some(node) = self.nodes.get(id) else { return };
        // Those have to hear when what they wait for is ready.
        let is_unconverged = self.placements(node).any(|p| !runs(node, &p.key));
        if is_unconverged {
            self.placement.unconverged.insert(id.clone());
        } else {
            self.placement.unconverged.remove(id);
        }
        let drain = matches!(node.record.life, NodeState::Draining { .. });
        let start = if drain { BTreeSet::new() } else { self.may_start(node) };
        let revision = node.record.revision;
        if node.goal.sent.as_ref().is_some_and(|s| s.session == session && s.revision == revision && s.start == start && s.drain == drain) {
            return;
        }
        self.placement.next_version += 1;
        // Higher than any version of an earlier head, whose epoch was lower.
        let version = (self.epoch.0 << 32) | self.placement.next_version;
        let order = GoalOrder { session, version, revision, start, drain };
        if let Some(goal) = self.nodes.goal_mut(id) {
            goal.sent = Some(order.clone());
        }
        self.act(Action::SendGoal { node: id.clone(), order });
    }

    /// What a node is to run: what the description says of which its goal is made. Before it takes the newest, that is the one
    /// from which the roll-out began.
    fn placements<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a ServicePlacement> {
        let from = self.placement.rollout.as_ref().and_then(|rollout| rollout.from.as_deref());
        let spec: Option<&Spec> = from.filter(|from| node.record.revision <= from.revision).or(self.cluster.spec.as_ref());
        spec.into_iter().flat_map(|spec| spec.services_on(&node.record.node_type))
    }

    /// The services of a node that may start: those whose predecessors are ready, and those that run already.
    fn may_start(&self, node: &Node) -> BTreeSet<ServiceKey> {
        self.placements(node)
            .filter(|placement| runs(node, &placement.key) || placement.after.iter().all(|key| self.placement.readiness.is_ready(key)))
            .map(|placement| placement.key.clone())
            .collect()
    }

    /// Finds out which services run, and are ready on every node that is there and is to run them; true if that changed.
    fn refresh_readiness(&mut self) -> bool {
        let changed = self.placement.readiness.refresh(self.cluster.spec.as_ref(), &self.nodes);
        self.placement.readiness_changed |= changed;
        changed
    }

    pub(crate) fn is_converged(&self, id: &NodeId) -> bool {
        let Some(node) = self.nodes.get(id).filter(|_| self.cluster.spec.is_some()) else { return false };
        self.runs_all_but(node, &BTreeSet::new())
    }

    /// Whether a node runs well what it is to run, but for some services, and nothing else.
    fn runs_all_but(&self, node: &Node, left_out: &BTreeSet<ServiceKey>) -> bool {
        let Some(sent) = node.goal.sent.as_ref().filter(|s| node.goal.acknowledged >= s.version) else { return false };
        let placed: Vec<&ServiceKey> = self.placements(node).map(|p| &p.key).collect();
        let runs_what_it_is_to = placed
            .iter()
            .filter(|key| !left_out.contains(**key))
            .all(|key| node.services.get(*key).is_some_and(|s| s.state == ServiceState::Ready && s.goal_version >= sent.version));
        let runs_nothing_else =
            node.services.values().all(|s| s.state == ServiceState::Stopped || s.key.runtime.is_own() || placed.contains(&&s.key));
        runs_what_it_is_to && runs_nothing_else
    }

    pub(crate) fn take_goal_ack(&mut self, session: Session, id: NodeId, version: u64, refusal: Option<String>) -> Option<NodeId> {
        self.nodes.get(&id).filter(|n| n.link == Some(session))?;
        let goal = self.nodes.goal_mut(&id)?;
        match refusal {
            None => {
                goal.acknowledged = goal.acknowledged.max(version);
                self.placement.note_nodes_changed();
            }
            Some(refusal) => {
                goal.sent = None;
                goal.not_before = self.clock.now() + GOAL_PAUSE;
                self.complain(Some(&id), What::GoalRefused { error: refusal });
            }
        }
        Some(id)
    }

    /// The description changed: goals may change anywhere.
    pub(crate) fn reconsider_all_goals(&mut self) {
        self.count_anew();
        self.find_outdated();
        self.advance_revisions();
        self.refresh_readiness();
        self.placement.readiness_changed = false;
        self.drive_linked(self.nodes.ids());
    }

    /// A service changed somewhere: goals may change where something waits for it.
    pub(crate) fn reconsider_goals(&mut self) {
        let advanced = self.advance_revisions();
        self.refresh_readiness();
        if std::mem::take(&mut self.placement.readiness_changed) {
            self.drive_linked(self.placement.unconverged.iter().cloned().collect());
        }
        self.drive_linked(advanced);
    }

    fn drive_linked(&mut self, ids: Vec<NodeId>) {
        for id in ids {
            let Some(node) = self.nodes.get(&id).filter(|node| node.link.is_some()) else { continue };
            match node.record.life {
                NodeState::Preparing | NodeState::Ready | NodeState::Draining { .. } => self.drive(&id),
                _ => {}
            }
        }
    }

    /// Where nodes take a revision one after the other, the next may be due when any of them changed.
    pub(crate) fn go_on_rolling(&mut self) {
        let is_due = std::mem::take(&mut self.placement.nodes_changed) && self.cluster.spec.as_ref().is_some_and(Spec::is_stepwise);
        if is_due {
            let advanced = self.advance_revisions();
            self.drive_linked(advanced);
        }
    }

    /// Notes whether a node has an older revision than the newest and is to take that.
    pub(crate) fn note_revision(&mut self, id: &NodeId) {
        let (Some(spec), Some(node)) = (&self.cluster.spec, self.nodes.get(id)) else { return };
        // Workers of a type that is gone end as they are: the newest revision has no place for what runs on them.
        let is_placed = !node.is_worker() || spec.workers.contains_key(&node.record.node_type);
        if node.record.revision < spec.revision && node.record.life.is_counted() && is_placed {
            self.placement.outdated.insert(id.clone());
        } else {
            self.placement.outdated.remove(id);
        }
    }

    pub(crate) fn find_outdated(&mut self) {
        self.placement.outdated.clear();
        for id in self.nodes.ids() {
            self.note_revision(&id);
        }
    }

    /// Lets nodes take the newest revision: all at once where it does not reach what they run. Else one of each type of node
    /// tries it first; then the others follow, together where nothing restarts, or else each when the last has settled. Says
    /// which took it.
    fn advance_revisions(&mut self) -> Vec<NodeId> {
        let Some(spec) = &self.cluster.spec else { return Vec::new() };
        let (newest, now) = (spec.revision, self.clock.now());
        if self.is_rollout_held() {
            return Vec::new();
        }
        if self.placement.outdated.is_empty() {
            self.end_rollout();
            return Vec::new();
        }
        let mut outdated: Vec<NodeId> = self.placement.outdated.iter().cloned().collect();
        let mut looks = Vec::new();
        if spec.is_stepwise() {
            // What does not run anything yet is no step of the roll-out.
            let unsettled = self.is_any_unsettled(newest);
            // Nodes that never had a link run nothing that would have to be kept up: they need not wait. One that was not
            // heard since the head started may run anything.
            let runs_nothing = |id: &NodeId| runs_nothing(&self.nodes[id]);
            // One that is not there would be waited for, and may never come back; it takes the revision when it does.
            let is_there = |id: &NodeId| {
                let node = &self.nodes[id];
                node.link.is_some() && matches!(node.record.life, NodeState::Preparing | NodeState::Ready)
            };
            outdated.retain(|id| runs_nothing(id) || (!unsettled && is_there(id)));
            // Where the first of a type runs it, and not for long enough yet, all others wait.
            let unproven;
            (unproven, looks) = self.unproven(spec);
            outdated.retain(|id| runs_nothing(id) || looks.is_empty());
            let is_proven = |id: &NodeId| !unproven.contains(&self.nodes[id].record.node_type);
            // Those that may all follow go before the next trial.
            let follow_at_once = !spec.rolling && outdated.iter().any(|id| !runs_nothing(id) && is_proven(id));
            let mut took_one = false;
            // What does not run well has nothing to lose: if the new revision is no better, nothing else learns of it.
            outdated.sort_by_key(|id| (self.nodes[id].record.life == NodeState::Ready, !id.is_head()));
            outdated.retain(|id| {
                if runs_nothing(id) || follow_at_once {
                    return runs_nothing(id) || is_proven(id);
                }
                let may = !took_one && (!spec.rolling || self.may_restart(id).is_ok());
                took_one |= may;
                may
            });
        }
        for (id, at) in looks {
            self.wake_at(&id, at);
        }
        for id in &outdated {
            self.nodes.set_revision(id, newest);
            if let Some(goal) = self.nodes.goal_mut(id) {
                goal.begin_trial(now);
            }
            self.store_node(id);
            let life = self.nodes[id].record.life.clone();
            if life == NodeState::Ready {
                self.enter(id, NodeState::Preparing, Reason::ApplyingRevision { revision: newest });
            }
        }
        outdated
    }
}

/// Whether a node runs nothing yet that would have to be kept up.
fn runs_nothing(node: &Node) -> bool {
    matches!(node.record.life, NodeState::Requested | NodeState::Launched | NodeState::Joined)
}

/// Whether a service runs on a node, be it well or not.
fn runs(node: &Node, key: &ServiceKey) -> bool {
    let state = node.services.get(key).map(|s| s.state);
    matches!(state, Some(ServiceState::Starting | ServiceState::Ready | ServiceState::Unhealthy | ServiceState::Backoff))
}
