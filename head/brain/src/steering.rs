//! What people may do with the brain's decisions: hold them, set a node aside, kill or drain one.

use cloudtik_model::NodeId;
use cloudtik_model::answer::{AfterDrain, Answer};
use cloudtik_model::event::What;
use cloudtik_model::node::NodeState;
use cloudtik_model::reason::{Reason, Trouble};
use cloudtik_model::refusal::Refusal;

use crate::{Brain, Hold, Request};

impl Brain {
    pub(crate) fn take_hold(&mut self, request: Request, reason: String) {
        let reason = on_one_line(&reason);
        if let (true, Some(hold)) = (reason.is_empty(), &self.cluster.held) {
            let answer = Answer::AlreadyOnHold { reason: hold.reason.clone() };
            return self.done(request, answer);
        }
        self.requested(&request.actor, None, What::Hold { reason: reason.clone() });
        self.cluster.hold(Hold { since: self.clock.wall(), reason });
        self.store_cluster();
        self.done(request, Answer::OnHold);
        self.reconsider_scale();
    }

    pub(crate) fn take_resume(&mut self, request: Request) {
        let was_held = self.cluster.resume();
        let retried = self.autoscaler.resume();
        if !was_held && retried.is_empty() {
            return self.done(request, Answer::NotOnHold);
        }
        self.store_cluster();
        self.requested(&request.actor, None, What::Resume);
        self.reconcile.request_list();
        self.done(request, Answer::Resumed { retried });
        for id in self.nodes.ids() {
            self.wake_at(&id, self.clock.now());
        }
        self.scaling_changed();
    }

    pub(crate) fn is_held(&self) -> bool {
        self.cluster.held.is_some() && !self.cluster.stopping
    }

    /// Refuses a request about a node.
    fn decline(&mut self, request: Request, id: &NodeId, refusal: Refusal) -> Option<NodeId> {
        self.refuse(&request.actor, id, What::Refused { refusal: refusal.clone() });
        self.reply(request, Err(refusal));
        None
    }

    pub(crate) fn take_quarantine(&mut self, request: Request, id: NodeId, reason: String) -> Option<NodeId> {
        if let Err(refusal) = self.may_remove(&id) {
            return self.decline(request, &id, refusal);
        }
        let is_made = self.nodes.get(&id).is_some_and(|n| n.record.instance.is_some());
        if !is_made || self.nodes[&id].record.life.is_leaving() {
            let refusal = Refusal::CannotQuarantine { node: id.clone(), state: self.nodes[&id].record.life.name() };
            return self.decline(request, &id, refusal);
        }
        let reason = on_one_line(&reason);
        if let (true, NodeState::Quarantined { reason: known }) = (reason.is_empty(), &self.nodes[&id].record.life) {
            let answer = Answer::AlreadyQuarantined { node: id, why: known.clone() };
            self.done(request, answer);
            return None;
        }
        self.requested(&request.actor, Some(&id), What::Quarantine { reason: reason.clone() });
        let why = Reason::Quarantined { reason: reason.clone() };
        self.enter(&id, NodeState::Quarantined { reason: why.clone() }, why);
        self.note_error(&id, Trouble::Quarantined { reason });
        self.done(request, Answer::Quarantined { node: id.clone() });
        Some(id)
    }

    pub(crate) fn take_release(&mut self, request: Request, id: NodeId) -> Option<NodeId> {
        let Some(node) = self.nodes.get(&id).filter(|n| matches!(n.record.life, NodeState::Quarantined { .. })) else {
            let is_aside = |n: &&crate::Node| matches!(n.record.life, NodeState::Quarantined { .. });
            let quarantined: Vec<NodeId> = self.nodes.values().filter(is_aside).map(|n| n.record.id.clone()).collect();
            let refusal = Refusal::NotQuarantined { node: id.clone(), quarantined };
            return self.decline(request, &id, refusal);
        };
        // What was heard of it while it was aside counts: to say that it is heard now would speak for others too.
        let session = node.link;
        self.requested(&request.actor, Some(&id), What::Release);
        let life = if session.is_some() || self.nodes[&id].record.was_ready { NodeState::Preparing } else { NodeState::Launched };
        self.enter(&id, life, Reason::Released);
        // What it is to run may have changed while it was aside.
        self.placement.note_services_changed();
        self.done(request, Answer::Released { node: id.clone() });
        Some(id)
    }

    pub(crate) fn take_kill(&mut self, request: Request, id: NodeId) -> Option<NodeId> {
        if let Err(refusal) = self.may_remove(&id) {
            return self.decline(request, &id, refusal);
        }
        self.requested(&request.actor, Some(&id), What::Kill);
        self.enter(&id, NodeState::Terminating { reason: Reason::KilledOnRequest }, Reason::KilledOnRequest);
        let on_hold = self.is_held();
        self.done(request, Answer::Killed { node: id.clone(), on_hold });
        Some(id)
    }

    pub(crate) fn take_drain(&mut self, request: Request, id: NodeId) -> Option<NodeId> {
        if let Err(refusal) = self.may_remove(&id) {
            return self.decline(request, &id, refusal);
        }
        if let (true, NodeState::Draining { reason }) = (self.is_held(), &self.nodes[&id].record.life)
            && *reason != Reason::DrainedOnRequest
        {
            self.requested(&request.actor, Some(&id), What::Drain);
            self.redirect_drain(&id, Reason::DrainedOnRequest);
            self.done(request, Answer::RemovedOnHold { node: id.clone() });
            return Some(id);
        }
        if self.nodes[&id].record.life.is_leaving() {
            let state = self.nodes[&id].record.life.name();
            self.done(request, Answer::AlreadyLeaving { node: id, state });
            return None;
        }
        if let Err(why) = self.may_leave(&id) {
            let refusal = Refusal::CannotDrain { node: id.clone(), why };
            return self.decline(request, &id, refusal);
        }
        self.requested(&request.actor, Some(&id), What::Drain);
        let node_type = self.nodes[&id].record.node_type.clone();
        // One that is set aside or one too many counts for no number.
        let (counted, wanted) = (self.counted(&node_type), self.wanted_of(&node_type));
        let is_counted = self.nodes[&id].record.life.is_counted();
        let is_surplus = !is_counted || counted > wanted;
        let lowered = if is_surplus { Vec::new() } else { self.lower_target(&node_type) };
        self.enter(&id, NodeState::Draining { reason: Reason::DrainedOnRequest }, Reason::DrainedOnRequest);
        let then = match (is_surplus, lowered.is_empty()) {
            (true, _) => AfterDrain::NotReplaced,
            (false, false) => AfterDrain::CountLowered { requests: lowered },
            (false, true) => AfterDrain::Replaced { on_hold: self.is_held() },
        };
        self.done(request, Answer::Draining { node: id.clone(), then });
        Some(id)
    }

    fn may_remove(&self, id: &NodeId) -> Result<(), Refusal> {
        match self.nodes.get(id) {
            None => Err(Refusal::UnknownNode { node: id.clone() }),
            Some(_) if id.is_head() => Err(Refusal::HeadNode),
            Some(n) if matches!(n.record.life, NodeState::Terminating { .. } | NodeState::Gone) => {
                Err(Refusal::AlreadyInState { node: id.clone(), state: n.record.life.name() })
            }
            Some(_) => Ok(()),
        }
    }
}

/// What somebody wrote, as it may be shown on a terminal: on one line, and not too long a one.
pub(crate) fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
