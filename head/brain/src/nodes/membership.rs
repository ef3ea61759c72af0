//! Who is there: suspicion from missing heartbeats and ended streams, evidence from dialling back and from the provider,
//! verdicts, the recovery ladder (wait for the link, restart the agent, reboot, replace), and the brake on mass loss.

use cloudtik_model::event::What;
use cloudtik_model::node::{DialOutcome, Evidence, EvidenceKind, NodeState};
use cloudtik_model::outlook::ShortageCause;
use cloudtik_model::reason::{InstanceReport, Reason, RestartCause, Trouble};
use cloudtik_model::spec::Market;
use cloudtik_model::{Generation, NodeId};

use crate::clock::doubling;
use crate::{Action, Brain, Failure, Heartbeat, Session};

/// Between two dial-backs of a node, in milliseconds.
const REDIAL_EVERY: u64 = 1_000;
/// Between a dial-back of a suspect that nothing answered and the next one, in milliseconds.
const REDIAL_SUSPECT: u64 = 100;
/// A dial-back that has not come back after this, in milliseconds, is asked for again.
const DIAL_LOST_AFTER: u64 = 3_000;
/// Evidence kept per suspicion: the first, which tell why, and the last.
const EVIDENCE_KEPT: usize = 12;
/// The pause before the second restart of the same agent, in milliseconds; it doubles with each further one.
const RESTART_PAUSE: u64 = 500;
/// The longest pause between two restarts of the same agent, in milliseconds.
const LONGEST_RESTART_PAUSE: u64 = 30_000;
/// How much longer, as a factor, the only worker may be silent before it is replaced.
const SOLE_WORKER_GRACE: u64 = 5;
/// An agent that lives is back this long after a restart of the head, in milliseconds: its longest pause is shorter.
pub(crate) const RETURN: u64 = 6_000;
/// A machine that was rebooted this recently, in milliseconds, is replaced if it is down again.
const REBOOTED: u64 = 600_000;
/// An agent that has run this long, in milliseconds, is restarted at once again.
const SETTLED: u64 = 60_000;

/// What is known of a node's presence.
#[derive(Debug)]
pub struct Watch {
    /// When the agent was last heard.
    heard: u64,
    dialing_since: Option<u64>,
    last_dial: Option<(u64, DialOutcome)>,
    /// When the agent last answered a dial-back, unless the machine said since that there is none.
    answered: Option<u64>,
    /// When the agent was last restarted, and how often in a row.
    restarted: Option<(u64, u32)>,
    /// When the machine was last rebooted.
    rebooted: Option<u64>,
    /// When the clock of the destructive rung started: at the verdict, and again when the brake is released.
    marked_down: Option<u64>,
    stream_closed: bool,
}

impl Watch {
    pub fn since(now: u64) -> Self {
        Self {
            heard: now,
            dialing_since: None,
            last_dial: None,
            answered: None,
            restarted: None,
            rebooted: None,
            marked_down: None,
            stream_closed: false,
        }
    }

    pub fn heard(&mut self, now: u64) {
        *self = Self { restarted: self.restarted, rebooted: self.rebooted, ..Self::since(now) };
    }

    pub fn last_heard(&self) -> u64 {
        self.heard
    }

    /// Whether a dial-back is under way.
    fn is_dialing(&self, now: u64) -> bool {
        self.dialing_since.is_some_and(|since| now.saturating_sub(since) < DIAL_LOST_AFTER)
    }
}

impl Brain {
    /// All of them count before any node is looked at: one that was received is never taken for missing because others
    /// were handled first.
    pub(crate) fn take_heartbeats(&mut self, received: Vec<Heartbeat>) {
        let now = self.clock.now();
        let mut suspects = Vec::new();
        for Heartbeat { session, node: id, at, load } in received {
            let at = self.clock.at(at);
            let Some(node) = self.nodes.get_mut(&id).filter(|n| n.link == Some(session)) else { continue };
            node.watch.heard(at.max(node.watch.heard));
            if matches!(node.record.life, NodeState::Suspect { .. } | NodeState::Down { .. }) {
                suspects.push(id.clone());
            }
            if let Some(load) = load {
                node.usage.add_load(now, load);
                self.note_activity(&id);
            }
        }
        for id in suspects {
            self.look_at(&id);
        }
    }

    pub(crate) fn take_link_closed(&mut self, session: Session, id: NodeId, cause: String) -> Option<NodeId> {
        let node = self.nodes.get_mut(&id).filter(|n| n.link == Some(session))?;
        node.link = None;
        node.goal.clear_sent();
        node.watch.stream_closed = true;
        let is_expected = matches!(node.record.life, NodeState::Preparing | NodeState::Ready);
        self.touch(&id);
        if is_expected {
            self.suspect(&id, EvidenceKind::StreamClosed { cause });
        } else {
            self.add_evidence(&id, EvidenceKind::StreamClosed { cause });
        }
        Some(id)
    }

    /// For a node that should be heard: sees to it that silence is noticed.
    pub(crate) fn watch_presence(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get(id) else { return };
        let silent = now.saturating_sub(node.watch.heard);
        // Without a link (after a restart of the head) the agent may still be on its way back.
        let patience = if node.link.is_some() { self.config.suspect_after } else { self.config.suspect_after + self.config.replace_after };
        let lost = node.link.is_none() && node.facts.is_none() && self.config.can_restart_agent;
        let at = node.watch.heard + if lost { RETURN.min(patience) } else { patience };
        if silent >= patience {
            return self.suspect(id, EvidenceKind::HeartbeatsMissed { for_ms: silent });
        }
        if lost && silent >= RETURN {
            self.restart_agent(id, RestartCause::NotReconnected, false);
        }
        self.wake_at(id, if lost { at.max(now + REDIAL_EVERY / 2) } else { at });
    }

    fn suspect(&mut self, id: &NodeId, kind: EvidenceKind) {
        let why = Reason::Suspected { evidence: kind.clone() };
        let evidence = vec![Evidence { at: self.clock.wall(), kind }];
        self.enter(id, NodeState::Suspect { evidence }, why);
        self.update_brake();
    }

    pub(crate) fn add_evidence(&mut self, id: &NodeId, kind: EvidenceKind) {
        let at = self.clock.wall();
        let Some(node) = self.nodes.get_mut(id) else { return };
        if let NodeState::Suspect { evidence } | NodeState::Down { evidence } = &mut node.record.life {
            if evidence.len() >= EVIDENCE_KEPT {
                evidence.remove(EVIDENCE_KEPT / 2);
            }
            evidence.push(Evidence { at, kind });
        }
    }

    pub(crate) fn notice_lag(&mut self, by_ms: u64) {
        self.nodes.listening_since = self.clock.now() + 2 * self.config.heartbeat;
        // Requests end and schedules begin by clocks that went on.
        self.reconsider_scale();
        let suspects: Vec<NodeId> =
            self.nodes.values().filter(|n| matches!(n.record.life, NodeState::Suspect { .. })).map(|n| n.record.id.clone()).collect();
        for id in &suspects {
            self.add_evidence(id, EvidenceKind::HeadLag { by_ms });
        }
        // Seconds, so that lags that are much alike are one complaint.
        let seconds = by_ms.div_ceil(1_000);
        self.complain(None, What::HeadDelayed { seconds });
    }

    pub(crate) fn drive_suspect(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get(id) else { return };
        if node.link.is_some() && now.saturating_sub(node.watch.heard) < self.config.suspect_after {
            return self.mark_recovered(id);
        }
        let silent = now.saturating_sub(node.watch.heard);
        let agent_is_dead = node.watch.stream_closed && matches!(node.watch.last_dial, Some((_, DialOutcome::Refused)));
        let was_seen = node.facts.is_some();
        if agent_is_dead && self.config.can_restart_agent && node.record.instance.is_some() {
            // The rung that suits: the machine answers, the agent alone is gone. Its services go on.
            self.restart_agent(id, RestartCause::AgentDead, false);
        }
        let Some(node) = self.nodes.get(id) else { return };
        let due = if let Some(answered) = node.watch.answered {
            // It lived then, whatever became of its heartbeats; but it is of no use without them.
            (answered + self.config.down_after).min(node.watch.heard + self.config.deaf_after)
        } else if !was_seen {
            // Not seen since the head started: it may still be on its way back.
            node.watch.heard + self.config.suspect_after + self.config.replace_after
        } else {
            node.watch.heard + self.config.down_after
        };
        // A head that was away hears what was said meanwhile only after it is back.
        let listening = self.nodes.listening_since;
        if now < due || now < listening || node.watch.last_dial.is_none() {
            self.dial(id);
        }
        if now < listening {
            return self.wake_at(id, listening);
        }
        let watch = &self.nodes[id].watch;
        // An answer may be on its way.
        let is_dialing = watch.is_dialing(now);
        if now >= due && watch.last_dial.is_some() && !is_dialing {
            return self.mark_down(id, EvidenceKind::HeartbeatsMissed { for_ms: silent });
        }
        // What the dial-back brings is looked at when it comes.
        let again = match watch.last_dial {
            Some((at, DialOutcome::TimedOut)) if !is_dialing => at + REDIAL_SUSPECT,
            _ => now + REDIAL_EVERY,
        };
        self.wake_at(id, if now < due { due.min(again.max(now + 1)) } else { now + REDIAL_EVERY });
    }

    fn mark_down(&mut self, id: &NodeId, kind: EvidenceKind) {
        self.add_evidence(id, kind);
        let now = self.clock.now();
        let Some(node) = self.nodes.get_mut(id) else { return };
        let NodeState::Suspect { evidence } = node.record.life.clone() else { return };
        node.watch.marked_down = Some(now);
        self.event(Some(id), What::NodeDown { evidence: evidence.clone() });
        self.enter(id, NodeState::Down { evidence }, Reason::NoHeartbeats);
        self.update_brake();
        self.reconcile.request_list();
    }

    pub(crate) fn drive_down(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get(id) else { return };
        if node.link.is_some() && now.saturating_sub(node.watch.heard) < self.config.suspect_after {
            return self.mark_recovered(id);
        }
        self.dial(id);
        self.wake_at(id, now + REDIAL_EVERY);
        // Nothing destructive is left for the head's own node; keep trying.
        let due = if self.nodes[id].is_worker() { self.gentle_until(id) } else { u64::MAX };
        if now < due {
            self.wake_at(id, due);
            if self.config.can_restart_agent && self.nodes[id].record.instance.is_some() {
                self.restart_agent(id, RestartCause::NodeDown, true);
            }
            return;
        }
        if self.may_be_helped_by_reboot(id) {
            return;
        }
        let kept = if self.config.machines_are_owned { Some(None) } else { self.may_be_replaced(id).err().map(Some) };
        if let Some(why) = kept {
            if let Some(why) = why {
                self.complain(Some(id), What::NotReplaced { why });
            }
            if self.config.can_restart_agent {
                self.restart_agent(id, RestartCause::NodeDown, true);
            }
            return;
        }
        self.event(Some(id), What::Replace);
        self.enter(id, NodeState::Terminating { reason: Reason::NotRecovered }, Reason::ToBeReplaced);
    }

    /// Until when a worker that is down is helped by nothing that interrupts what may run on it.
    fn gentle_until(&mut self, id: &NodeId) -> u64 {
        let now = self.clock.now();
        self.update_brake();
        if self.nodes.brake || self.is_held() {
            return u64::MAX;
        }
        // A head that hears of no worker at all, be it only one, doubts itself first.
        let (all, silent) = self.placement.silence();
        let company = (all > silent).then(|| *self.nodes.company_since.get_or_insert(now));
        self.nodes.company_since = company;
        let node = self.nodes.get_mut(id).expect("looked up above");
        let marked_down = *node.watch.marked_down.get_or_insert(now);
        let due = match company {
            // Whoever comes back first after an outage must not cost the others their time to come back.
            Some(since) => marked_down.max(since) + self.config.replace_after,
            None => marked_down + SOLE_WORKER_GRACE * self.config.replace_after,
        };
        due.max(self.nodes.listening_since)
    }

    fn mark_recovered(&mut self, id: &NodeId) {
        let life = if self.is_converged(id) { NodeState::Ready } else { NodeState::Preparing };
        self.enter(id, life, Reason::HeartbeatsResumed);
        self.placement.note_services_changed();
        self.update_brake();
    }

    /// Whether its agent answered a dial-back a moment ago.
    pub(crate) fn answers(&self, id: &NodeId) -> bool {
        let now = self.clock.now();
        let answered = self.nodes.get(id).and_then(|n| n.watch.answered);
        answered.is_some_and(|at| now.saturating_sub(at) < 2 * REDIAL_EVERY)
    }

    pub(crate) fn dial(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get_mut(id) else { return };
        let (Some(address), Some(port)) = (node.record.address.clone(), node.record.health_port) else {
            // It never linked, so nobody knows where it would answer.
            node.watch.last_dial.get_or_insert((now, DialOutcome::TimedOut));
            return;
        };
        if node.watch.is_dialing(now) {
            return;
        }
        let pause = match (&node.record.life, node.watch.last_dial) {
            // One that was not answered took its time, and each may bring the answer that saves the node.
            (NodeState::Suspect { .. }, Some((_, DialOutcome::TimedOut))) => REDIAL_SUSPECT,
            // A machine whose agent is gone answers at once: look again soon, since it may be back.
            _ => REDIAL_EVERY / 2,
        };
        if node.watch.last_dial.is_some_and(|(at, _)| now.saturating_sub(at) < pause) {
            return;
        }
        node.watch.dialing_since = Some(now);
        let generation = node.record.generation;
        self.act(Action::DialBack { node: id.clone(), generation, address, port });
    }

    pub(crate) fn take_dial(&mut self, id: NodeId, generation: Generation, outcome: DialOutcome) -> Option<NodeId> {
        let now = self.clock.now();
        let node = self.nodes.get_mut(&id).filter(|n| n.record.generation == generation)?;
        node.watch.dialing_since = None;
        node.watch.last_dial = Some((now, outcome));
        match outcome {
            DialOutcome::Answered => node.watch.answered = Some(now),
            DialOutcome::Refused => node.watch.answered = None,
            DialOutcome::TimedOut => {}
        }
        self.add_evidence(&id, EvidenceKind::DialBack { outcome });
        Some(id)
    }

    /// Has the provider start the agent; `force` ends one that runs and hangs.
    pub(crate) fn restart_agent(&mut self, id: &NodeId, cause: RestartCause, force: bool) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get_mut(id) else { return };
        let restarts = node.watch.restarted.filter(|(at, _)| now.saturating_sub(*at) < SETTLED);
        let due = restarts.map_or(now, |(at, count)| at + doubling(RESTART_PAUSE, count, LONGEST_RESTART_PAUSE));
        if now < due {
            return self.wake_at(id, due);
        }
        let Some(instance) = node.record.instance.clone().filter(|_| !node.in_flight) else { return };
        // A machine that starts anew starts its agent too.
        if node.watch.rebooted.is_some_and(|at| now < at.saturating_add(self.config.reboot_time.unwrap_or(0))) {
            return;
        }
        node.watch.restarted = Some((now, restarts.map_or(0, |(_, count)| count) + 1));
        node.in_flight = true;
        let generation = node.record.generation;
        self.event(Some(id), What::RestartAgent { cause });
        self.act(Action::RestartAgent { node: id.clone(), generation, instance, force });
    }

    pub(crate) fn take_restarted(&mut self, id: NodeId, generation: Generation, result: Result<(), Failure>) -> Option<NodeId> {
        let node = self.nodes.get_mut(&id).filter(|n| n.record.generation == generation)?;
        node.in_flight = false;
        if let Err(failure) = result {
            let message = failure.message;
            self.note_error(&id, Trouble::AgentRestartFailed { error: message.clone() });
            self.event(Some(&id), What::AgentRestartFailed { error: message });
            self.reconcile.request_list();
        }
        Some(id)
    }

    /// The rung before the last: everything on the machine starts anew, and its disks stay. Asks for it if that was not done
    /// lately; true as long as it may yet help.
    fn may_be_helped_by_reboot(&mut self, id: &NodeId) -> bool {
        let now = self.clock.now();
        let Some(time) = self.config.reboot_time else { return false };
        let Some(node) = self.nodes.get_mut(id) else { return false };
        let Some(instance) = node.record.instance.clone() else { return false };
        if node.in_flight {
            return true;
        }
        if let Some(at) = node.watch.rebooted.filter(|at| now < at + REBOOTED.max(time)) {
            return now < at + time;
        }
        node.watch.rebooted = Some(now);
        node.in_flight = true;
        let generation = node.record.generation;
        self.event(Some(id), What::Reboot);
        self.act(Action::Reboot { node: id.clone(), generation, instance });
        true
    }

    pub(crate) fn take_rebooted(&mut self, id: NodeId, generation: Generation, result: Result<(), Failure>) -> Option<NodeId> {
        let (now, time) = (self.clock.now(), self.config.reboot_time.unwrap_or(0));
        let node = self.nodes.get_mut(&id).filter(|n| n.record.generation == generation)?;
        node.in_flight = false;
        if let Err(failure) = result {
            // Nothing to wait for.
            node.watch.rebooted = Some(now.saturating_sub(time));
            self.event(Some(&id), What::RebootFailed { error: failure.message });
            self.reconcile.request_list();
        }
        Some(id)
    }

    /// Whether an agent is heard, whatever others say of its machine.
    pub(crate) fn is_heard(&self, id: &NodeId) -> bool {
        let now = self.clock.now();
        self.nodes.get(id).is_some_and(|n| n.link.is_some() && now.saturating_sub(n.watch.heard) < self.config.suspect_after)
    }

    /// Its machine was asked to start anew a moment ago, and may look stopped meanwhile.
    pub(crate) fn is_rebooting(&self, id: &NodeId) -> bool {
        let (now, time) = (self.clock.now(), self.config.reboot_time.unwrap_or(0));
        self.nodes.get(id).and_then(|n| n.watch.rebooted).is_some_and(|at| now < at + time)
    }

    /// The provider itself says that the instance does not run: no guess, so no brake.
    pub(crate) fn provider_says_lost(&mut self, id: &NodeId, instance: InstanceReport) {
        if self.is_held() {
            return self.complain(Some(id), What::KeptOnHold { instance });
        }
        let evidence = vec![Evidence { at: self.clock.wall(), kind: EvidenceKind::Provider { says: instance } }];
        self.event(Some(id), What::InstanceLost { evidence });
        if self.nodes.get(id).is_some_and(|n| !n.record.was_ready) {
            self.note_gangs_without(id);
        }
        if let Some(node) = self.nodes.get(id).filter(|n| !n.record.was_ready) {
            let (node_type, offer) = (node.record.node_type.clone(), node.record.offer.clone());
            if offer.market == Market::Spot {
                // It was taken away: a word about the offer, and none about the type.
                self.note_shortage(&node_type, &offer, ShortageCause::Reclaimed { instance });
            } else {
                self.note_failed(&node_type, &Reason::ProviderReports { instance });
            }
        }
        self.enter(id, NodeState::Terminating { reason: Reason::ProviderReports { instance } }, Reason::InstanceLost);
        self.update_brake();
    }

    /// Whether any worker should be heard.
    pub(crate) fn expects_workers(&self) -> bool {
        self.placement.silence().0 > 0
    }

    /// Whether no worker is heard at all.
    pub(crate) fn hears_no_worker(&self) -> bool {
        let (all, silent) = self.placement.silence();
        all == silent
    }

    /// Many nodes silent together point at the head or its network, not at the nodes: nothing is terminated meanwhile.
    ///
    /// Silent nodes that somebody takes away say nothing about the others: while nobody at all is heard, it stays.
    pub(crate) fn update_brake(&mut self) {
        let (all, silent) = self.placement.silence();
        let all_silent = all > 0 && silent == all;
        let brake = (silent >= 2 && 2 * silent >= all) || (silent >= 3 && 3 * silent >= all) || (self.nodes.brake && all_silent);
        if brake == self.nodes.brake {
            return;
        }
        self.nodes.brake = brake;
        if brake {
            let (silent, workers) = (silent as u32, all as u32);
            self.event(None, What::Brake { silent, workers });
        } else {
            self.event(None, What::BrakeReleased);
            // Verdicts made under the brake get their full time again.
            for node in self.nodes.values_mut() {
                node.watch.marked_down = None;
            }
        }
    }

    pub(crate) fn is_braking(&self) -> bool {
        self.nodes.brake
    }
}
