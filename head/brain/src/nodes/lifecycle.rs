//! A node's way from requested to gone: launching, deleting, and what each state waits for.

use cloudtik_model::event::What;
use cloudtik_model::node::{Instance, NodeState};
use cloudtik_model::outlook::ShortageCause;
use cloudtik_model::reason::{Reason, RestartCause, Trouble};
use cloudtik_model::refusal::CloseCause;
use cloudtik_model::report::{ServiceReport, ServiceState};
use cloudtik_model::{Generation, InstanceId, NodeId};

use super::membership::RETURN;
use crate::clock::doubling;
use crate::{Action, Brain, Failure, FailureKind, Node};

/// A service that had to be started so often and is not ready is one that fails.
const FAILED_STARTS: u32 = 5;
/// The first pause after a failed provider call, in milliseconds; it doubles with each failure in a row.
const FIRST_PAUSE: u64 = 500;
/// An agent that has not linked after this, in milliseconds, is started again where the provider can.
const JOIN_NUDGE: u64 = 3_000;
/// How much longer, as a factor, several that have not linked are waited for while no other worker is heard either.
const JOIN_DOUBT: u64 = 3;
/// The longest pause, in milliseconds.
const LONGEST_PAUSE: u64 = 60_000;

impl Brain {
    /// What a node's state waits for, and what follows when it has come.
    pub(crate) fn drive(&mut self, id: &NodeId) {
        self.nodes.clear_timer(id);
        // A node may pass through several states at once; each step strictly moves on, so the bound is never met.
        for _ in 0..8 {
            let Some(node) = self.nodes.get(id) else { return };
            let before = node.record.life.clone();
            match &before {
                NodeState::Requested => self.drive_requested(id),
                NodeState::Launched | NodeState::Joined => self.drive_joining(id),
                NodeState::Preparing => self.drive_preparing(id),
                NodeState::Ready => self.drive_present(id),
                NodeState::Suspect { .. } => self.drive_suspect(id),
                NodeState::Down { .. } => self.drive_down(id),
                NodeState::Draining { .. } => self.drive_draining(id),
                NodeState::Failed { reason } => {
                    let reason = reason.clone();
                    let node_type = node.record.node_type.clone();
                    self.note_failed(&node_type, &reason);
                    self.enter(id, NodeState::Terminating { reason }, Reason::RemovingRemains);
                }
                NodeState::Terminating { .. } => self.drive_terminating(id),
                NodeState::Quarantined { .. } => self.update_goal(id),
                NodeState::Gone => {}
            }
            if self.nodes.get(id).is_none_or(|n| n.record.life == before) {
                return;
            }
        }
    }

    /// The node, if the provider may be called for it now: no call is under way, and no pause after the last one is left.
    fn due(&mut self, id: &NodeId, now: u64) -> Option<&Node> {
        let node = self.nodes.get(id).filter(|node| !node.in_flight)?;
        if node.not_before > now {
            let at = node.not_before;
            self.wake_at(id, at);
            return None;
        }
        self.nodes.get(id)
    }

    fn drive_requested(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.due(id, now) else { return };
        let node_type = node.record.node_type.clone();
        if self.is_held() {
            return;
        }
        if !self.renew_offer(id) {
            return;
        }
        self.price_anew(id);
        // Limits that came down since: what is there beyond them goes first.
        if self.is_beyond_limits(&node_type) {
            return self.wake_at(id, now + FIRST_PAUSE);
        }
        if let Err(at) = self.pace().take(now) {
            return self.wake_at(id, at);
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.in_flight = true;
        let (generation, node_type, revision) = (node.record.generation, node.record.node_type.clone(), node.record.revision);
        // Its shape is the newest, whatever it is to run.
        let newest = self.cluster.spec.as_ref().filter(|spec| spec.workers.contains_key(&node_type)).map(|spec| spec.revision);
        let revision = newest.unwrap_or(revision);
        let offer = node.record.offer.clone();
        self.act(Action::Create { node: id.clone(), generation, node_type, revision, offer });
    }

    pub(crate) fn take_created(&mut self, id: NodeId, generation: Generation, result: Result<Instance, Failure>) -> Option<NodeId> {
        let now = self.clock.now();
        let node = self.nodes.get_mut(&id).filter(|n| n.record.generation == generation)?;
        node.in_flight = false;
        match result {
            Ok(instance) => {
                node.failures = 0;
                node.not_before = 0;
                self.pace().worked(now);
                self.adopt(&id, instance, |instance| Reason::Created { instance });
            }
            Err(failure) => self.take_create_failure(&id, &failure, now),
        }
        Some(id)
    }

    fn take_create_failure(&mut self, id: &NodeId, failure: &Failure, now: u64) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        let (node_type, offer) = (node.record.node_type.clone(), node.record.offer.clone());
        let is_requested = node.record.life == NodeState::Requested;
        let (message, reason) = (failure.message.clone(), Reason::CreateFailed { error: failure.message.clone() });
        match failure.kind {
            FailureKind::Throttled => {
                node.not_before = now + failure.wait();
                self.take_throttling(failure);
            }
            FailureKind::StockOut | FailureKind::Quota => {
                let nothing_exists = node.uncertain.is_none();
                self.event(Some(id), What::CreateFailed { error: message });
                let error = failure.message.clone();
                let is_quota = failure.kind == FailureKind::Quota;
                let why = if is_quota { ShortageCause::Quota { error } } else { ShortageCause::NoCapacity { error } };
                self.note_shortage(&node_type, &offer, why);
                self.note_gangs_without(id);
                match is_requested {
                    // The provider's word: nothing was made, now or before.
                    true if nothing_exists => self.forget(id, reason),
                    true => self.enter(id, NodeState::Terminating { reason: reason.clone() }, reason),
                    false => {}
                }
            }
            FailureKind::Transient => {
                node.uncertain = Some(now);
                node.failures += 1;
                node.not_before = now + pause(node.failures, failure);
                if is_requested {
                    self.note_error(id, Trouble::CreateFailed { error: message.clone() });
                }
                self.event(Some(id), What::CreateFailed { error: message });
            }
            FailureKind::Permanent => {
                self.event(Some(id), What::CreateFailed { error: message });
                if is_requested {
                    self.note_gangs_without(id);
                    self.enter(id, NodeState::Failed { reason: reason.clone() }, reason);
                }
            }
        }
    }

    /// Takes an instance as the node's own.
    pub(crate) fn adopt(&mut self, id: &NodeId, instance: Instance, how: impl FnOnce(InstanceId) -> Reason) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.adopted = now;
        node.record.instance = Some(instance.id.clone());
        if instance.address.is_some() {
            node.record.address = instance.address;
        }
        node.unlisted_since = None;
        if node.record.life == NodeState::Requested {
            self.enter(id, NodeState::Launched, how(instance.id));
        } else {
            self.store_node(id);
        }
    }

    fn drive_joining(&mut self, id: &NodeId) {
        let deadline = self.config.join_deadline;
        let now = self.clock.now();
        let Some(node) = self.nodes.get(id) else { return };
        if node.link.is_some() {
            return self.enter(id, NodeState::Preparing, Reason::AgentConnected);
        }
        let due = node.entered + deadline;
        let nudge = node.entered + JOIN_NUDGE;
        if self.config.can_restart_agent && node.record.instance.is_some() {
            if now < nudge {
                return self.wake_at(id, nudge.min(due));
            }
            self.restart_agent(id, RestartCause::NotConnected, false);
        }
        let Some(node) = self.nodes.get(id) else { return };
        if now < due {
            return self.wake_at(id, due.min(now + JOIN_NUDGE));
        }
        // Several that do not come while nobody else is heard point at the head's network; for a while, since each costs money.
        let doubts_itself = self.is_braking() || (self.hears_no_worker() && self.joining() > 1);
        let may_yet_come = doubts_itself && now < node.entered + JOIN_DOUBT * deadline;
        let Some(node) = self.nodes.get(id) else { return };
        if node.is_worker() && (self.is_held() || may_yet_come) {
            return self.wake_at(id, now + JOIN_NUDGE);
        }
        if node.is_worker() {
            let reason = Reason::NotConnected { within_s: deadline / 1_000 };
            self.note_gangs_without(id);
            self.enter(id, NodeState::Failed { reason: reason.clone() }, reason);
        }
    }

    /// Workers that were launched and have no link yet.
    fn joining(&self) -> usize {
        self.nodes.values().filter(|n| n.is_worker() && matches!(n.record.life, NodeState::Launched | NodeState::Joined)).count()
    }

    fn drive_preparing(&mut self, id: &NodeId) {
        self.update_goal(id);
        if self.is_converged(id) {
            self.note_success(id);
            self.enter(id, NodeState::Ready, Reason::ServicesReady);
            self.placement.note_services_changed();
        } else {
            self.watch_presence(id);
            self.watch_rollout(id);
            self.watch_preparation(id);
        }
    }

    /// A worker on which a service fails again and again before it ever was of use costs money for nothing.
    fn watch_preparation(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get(id).filter(|n| n.is_worker() && !n.record.was_ready && n.record.life == NodeState::Preparing)
        else {
            return;
        };
        let unready = node.services.values().filter(|s| s.state != ServiceState::Ready && s.restarts > 0);
        let Some(failing) = unready.max_by_key(|s| s.restarts) else {
            if self.nodes.last_errors.remove(id).is_some() {
                self.reconsider_scale();
            }
            return;
        };
        let (what, log) = (trouble_of(failing), failing.log.clone());
        let due = (failing.restarts >= FAILED_STARTS).then(|| {
            let reason = Reason::ServiceFailed {
                service: failing.key.clone(),
                tries: failing.restarts,
                cause: failing.failure.as_ref().map(|failure| failure.cause.clone()),
                detail: failing.detail.clone(),
            };
            // A new description may mend it.
            let since = node.preparing_since.unwrap_or(node.entered).max(self.placement.specified_at());
            (since + self.config.prepare_deadline, reason)
        });
        self.note_error(id, what);
        let Some((due, reason)) = due else { return };
        if now < due {
            return self.wake_at(id, due);
        }
        if self.is_held() {
            return self.wake_at(id, now + LONGEST_PAUSE);
        }
        if !log.is_empty() {
            // The node and its log are gone soon.
            self.event_with_log(Some(id), What::NodeFailed { why: reason.clone() }, log);
        }
        self.enter(id, NodeState::Failed { reason: reason.clone() }, reason);
    }

    fn drive_present(&mut self, id: &NodeId) {
        self.update_goal(id);
        self.watch_rollout(id);
        self.watch_presence(id);
    }

    fn drive_draining(&mut self, id: &NodeId) {
        let now = self.clock.now();
        self.update_goal(id);
        let Some(node) = self.nodes.get(id) else { return };
        let name = &node.record.node_type;
        let now_said = || self.cluster.spec.iter().flat_map(|s| s.services_on(name)).map(|p| p.drain_ms).max();
        let gentle = self.autoscaler.former_drain(name).or_else(now_said).unwrap_or(0);
        let due = node.entered + self.config.drain_deadline + gentle;
        let drained = node.goal.has_acknowledged_drain() && node.services.values().all(|s| s.state == ServiceState::Stopped);
        // After a restart of the head, or in a blink of the agent, the link is on its way back.
        let silent = now.saturating_sub(node.watch.last_heard());
        let is_cut_off = node.link.is_none() && silent >= RETURN.max(self.config.suspect_after) && now >= self.nodes.listening_since;
        let never_ran = node.record.found.is_none();
        let left = node.services.values().find(|s| s.state == ServiceState::Stopped && !s.detail.is_empty());
        let left = left.map(|service| Reason::DrainedWith { service: service.key.clone(), detail: service.detail.clone() });
        let is_alone = is_cut_off && !self.may_be_deaf(id);
        let why = if drained {
            left.unwrap_or(Reason::Drained)
        } else if never_ran {
            Reason::NeverRan
        } else if now >= due {
            Reason::DrainTimedOut
        } else if is_alone {
            Reason::Disconnected
        } else {
            return self.wake_at(id, due.min(now + self.config.suspect_after));
        };
        let Some(NodeState::Draining { reason }) = self.nodes.get(id).map(|n| n.record.life.clone()) else { return };
        // Whoever holds the head back may want to keep it; what a person drains goes.
        if self.is_held() && reason != Reason::DrainedOnRequest {
            return self.wake_at(id, now + self.config.suspect_after);
        }
        self.enter(id, NodeState::Terminating { reason }, why);
    }

    /// Whether it may be the head that hears nothing, and not the node that says nothing.
    fn may_be_deaf(&mut self, id: &NodeId) -> bool {
        if self.cluster.stopping {
            return false;
        }
        self.update_brake();
        self.dial(id);
        self.is_braking() || (self.expects_workers() && self.hears_no_worker()) || self.answers(id)
    }

    fn drive_terminating(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.due(id, now) else { return };
        let Some(instance) = node.record.instance.clone() else {
            // A launch whose outcome is unknown: only lists can say whether an instance exists.
            return self.drive_unknown_launch(id);
        };
        if let Err(at) = self.pace().take(now) {
            return self.wake_at(id, at);
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.in_flight = true;
        let generation = node.record.generation;
        self.act(Action::Delete { node: id.clone(), generation, instance });
    }

    pub(crate) fn take_deleted(
        &mut self,
        id: NodeId,
        generation: Generation,
        instance: &InstanceId,
        result: Result<(), Failure>,
    ) -> Option<NodeId> {
        let now = self.clock.now();
        let is_own = |n: &&mut crate::Node| n.record.generation == generation && n.record.instance.as_ref() == Some(instance);
        let Some(node) = self.nodes.get_mut(&id).filter(is_own) else {
            self.take_swept(instance, result);
            return None;
        };
        node.in_flight = false;
        if !matches!(node.record.life, NodeState::Terminating { .. }) {
            return None;
        }
        match result {
            Ok(()) => {
                self.pace().worked(now);
                self.forget(&id, Reason::Deleted);
            }
            Err(failure) if failure.kind == FailureKind::Throttled => {
                node.not_before = now + failure.wait();
                self.take_throttling(&failure);
            }
            Err(failure) => {
                node.failures += 1;
                node.not_before = now + pause(node.failures, &failure);
                node.undeletable = Some(failure.message.clone());
                self.complain(Some(&id), What::DeleteFailed { error: failure.message });
            }
        }
        Some(id)
    }

    /// The provider was called too often: calls go on at another pace.
    pub(crate) fn take_throttling(&mut self, failure: &Failure) {
        let now = self.clock.now();
        self.pace().throttled(now, failure.wait());
        self.complain(None, What::Throttled { error: failure.message.clone() });
    }

    /// No instance of the node exists any more.
    pub(crate) fn forget(&mut self, id: &NodeId, why: Reason) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.record.instance = None;
        node.record.address = None;
        node.record.key = None;
        node.undeletable = None;
        node.services.clear();
        node.usage.clear_load();
        node.facts = None;
        node.goal.clear_sent();
        let link = node.link.take();
        if let Some(session) = link {
            self.act(Action::CloseLink { session, cause: CloseCause::NodeGone });
        }
        self.placement.note_services_changed();
        self.enter(id, NodeState::Gone, why);
    }
}

/// A service that fails, as what keeps its node from being ready.
fn trouble_of(report: &ServiceReport) -> Trouble {
    let ServiceReport { key, state, detail, failure, .. } = report;
    Trouble::Service { service: key.clone(), state: *state, detail: detail.clone(), failure: failure.clone() }
}

/// The pause before a call is repeated, in milliseconds.
pub(crate) fn pause(failures: u32, failure: &Failure) -> u64 {
    let own = doubling(FIRST_PAUSE, failures, LONGEST_PAUSE);
    failure.retry_after.map_or(own, |_| failure.wait().max(FIRST_PAUSE))
}
