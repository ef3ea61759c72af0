//! A roll-out that fails: when a revision counts as failed on a node, what is held then, and how it goes on.

use cloudtik_model::event::What;
use cloudtik_model::node::NodeState;
use cloudtik_model::reason::{Obstacle, ServiceProblem};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::report::{ServiceReport, ServiceState};
use cloudtik_model::spec::Spec;
use cloudtik_model::status::{Rollout as RolloutStatus, RolloutFailure as FailureStatus, RolloutState};
use cloudtik_model::{NodeId, NodeTypeName};

use super::runs_nothing;
use crate::{Brain, Node, Reply, Request, Rollout, RolloutFailure};

/// A revision has failed on a node when services of it ended so often since the node took it, and do not all run. Twice may be
/// a port that is still taken or a service that it needs and that restarts too.
const FAILED_STARTS: u32 = 3;

impl Brain {
    /// A description is taken: a new roll-out begins, or the one that is under way goes on with it. Another revision is a new
    /// try: it is not held for what the one before did.
    pub(crate) fn begin_rollout(&mut self, known: Option<&Spec>, spec: &Spec) {
        let unfinished = self.cluster.rollout.take();
        if let (Some(known), true) = (known, spec.rolling) {
            let from = match unfinished {
                Some(rollout) => rollout.from,
                None => Some(Box::new(known.clone())),
            };
            self.cluster.rollout = Some(Rollout { from, failed: None });
        }
        self.nodes.values_mut().for_each(|node| node.failed_starts = 0);
    }

    /// Every node has the newest revision: the roll-out ends when all of them run it well.
    pub(super) fn end_rollout(&mut self) {
        let Some(newest) = self.cluster.spec.as_ref().map(|spec| spec.revision) else { return };
        if self.cluster.rollout.is_some() && !self.is_any_unsettled(newest) {
            self.cluster.rollout = None;
            self.store_cluster();
            self.event(None, What::RolloutComplete { revision: newest });
        }
    }

    /// Whether a node took a revision and does not run all of it well. What does not run anything yet is no step of a roll-out.
    pub(super) fn is_any_unsettled(&self, revision: u64) -> bool {
        let is_step = |n: &&Node| n.record.revision == revision && n.record.life.is_counted() && !runs_nothing(n);
        self.nodes.values().filter(is_step).any(|n| !self.is_settled(n))
    }

    fn is_settled(&self, node: &Node) -> bool {
        node.record.life == NodeState::Ready && self.has_what_it_is_to_run(&node.record.id)
    }

    fn rollout_failure(&self) -> Option<&RolloutFailure> {
        self.cluster.rollout.as_ref()?.failed.as_ref()
    }

    pub(crate) fn is_rollout_held(&self) -> bool {
        self.rollout_failure().is_some()
    }

    /// Whether a node has the revision that is being rolled out, and whether that works is not known yet.
    fn is_on_trial(&self, node: &Node) -> bool {
        let newest = self.cluster.spec.as_ref().map(|spec| spec.revision);
        self.cluster.rollout.is_some() && !self.is_rollout_held() && newest == Some(node.record.revision) && !self.is_settled(node)
    }

    /// Holds the roll-out if the revision has failed on a node.
    pub(crate) fn watch_rollout(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Some(node) = self.nodes.get(id).filter(|node| self.is_on_trial(node)) else { return };
        if node.failed_starts >= FAILED_STARTS {
            let what = not_running(node).unwrap_or(ServiceProblem::Ended { times: node.failed_starts });
            return self.hold_rollout(id, what);
        }
        // What is new may have much to fetch, and is in nobody's way.
        if node.record.life != NodeState::Preparing || !node.record.was_ready {
            return;
        }
        let due = node.preparing_since.unwrap_or(node.entered).max(node.taken_at).saturating_add(self.config.prepare_deadline);
        if now < due {
            return self.wake_at(id, due);
        }
        let problem = not_running(node).map(Box::new);
        self.hold_rollout(id, ServiceProblem::NotReadyInTime { within_s: self.config.prepare_deadline / 1_000, problem });
    }

    /// A node is about to leave. If the revision that it took did not work there, that is known from now on.
    pub(crate) fn note_departure(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id).filter(|node| self.is_on_trial(node) && !runs_nothing(node)) else { return };
        let fails = |state: ServiceState| matches!(state, ServiceState::Backoff | ServiceState::Unhealthy);
        // What is known of an older goal says nothing of this one.
        let sent = node.sent.as_ref().filter(|sent| sent.revision == node.record.revision && !sent.drain).map(|sent| sent.version);
        let is_current = |version: u64| sent.is_some_and(|sent| version >= sent);
        let mut failing = node.services.values().filter(|s| !s.key.runtime.is_own() && fails(s.state) && is_current(s.goal_version));
        let is_failing = node.failed_starts > 0 || failing.next().is_some();
        if let Some(what) = not_running(node).filter(|_| is_failing && !self.cluster.stopping) {
            self.hold_rollout(id, what);
        }
    }

    fn hold_rollout(&mut self, id: &NodeId, problem: ServiceProblem) {
        let (Some(node), Some(spec)) = (self.nodes.get(id), &self.cluster.spec) else { return };
        let (generation, newest) = (node.record.generation, spec.revision);
        let log = failing(node).map(|report| report.log.clone()).unwrap_or_default();
        let failed = RolloutFailure { node: id.clone(), generation, since: self.clock.wall(), problem: problem.clone() };
        let rollout = self.cluster.rollout.get_or_insert_default();
        rollout.failed = Some(failed);
        // Nodes that run nothing yet come up with what works.
        let from = rollout.from.as_ref().map(|from| (from.revision, from.workers.clone()));
        if let Some((revision, workers)) = from {
            let new = |n: &&Node| n.record.revision == newest && runs_nothing(n) && workers.contains_key(&n.record.node_type);
            for id in self.nodes.values().filter(new).map(|n| n.record.id.clone()).collect::<Vec<_>>() {
                self.nodes.get_mut(&id).expect("listed above").record.revision = revision;
                self.store_node(&id);
            }
        }
        self.store_cluster();
        self.event_with_log(Some(id), What::RolloutHeld { revision: newest, on: id.clone(), problem }, log);
        self.reconsider_scale();
    }

    /// The revision that a new node of a type comes up with: while a roll-out is held, the one before.
    pub(crate) fn revision_for_new(&self, spec: &Spec, name: &NodeTypeName) -> u64 {
        let held = self.cluster.rollout.as_ref().filter(|rollout| rollout.failed.is_some());
        let from = held.and_then(|rollout| rollout.from.as_ref()).filter(|from| from.workers.contains_key(name));
        from.map_or(spec.revision, |from| from.revision)
    }

    /// Why an idle worker stays because of a roll-out, if it does.
    pub(crate) fn kept_for_rollout(&self, id: &NodeId) -> Option<Obstacle> {
        let (node, spec) = (self.nodes.get(id)?, self.cluster.spec.as_ref()?);
        let newest = spec.revision;
        if self.is_rollout_held() {
            let is_healthy = node.record.revision < newest || node.record.life == NodeState::Ready;
            return is_healthy.then_some(Obstacle::RolloutHeld { revision: newest });
        }
        let is_trial = self.is_on_trial(node) && node.record.was_ready;
        is_trial.then_some(Obstacle::OnTrial { revision: newest })
    }

    pub(crate) fn take_rollout_resume(&mut self, request: Request) {
        let Some(revision) = self.cluster.spec.as_ref().map(|spec| spec.revision).filter(|_| self.is_rollout_held()) else {
            return self.reply(request, Err(Refusal::NoRolloutHeld));
        };
        if let Some(rollout) = &mut self.cluster.rollout {
            rollout.failed = None;
        }
        self.store_cluster();
        self.requested(&request.actor, None, What::ResumeRollout { revision });
        let now = self.clock.now();
        for node in self.nodes.values_mut() {
            (node.failed_starts, node.taken_at) = (0, now);
        }
        self.reply(request, Ok(Reply::RolloutResumed { revision }));
        self.nodes_changed = true;
        for id in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.wake_at(&id, now);
        }
        self.reconsider_scale();
    }

    /// Why the newest revision goes to no further node, for people.
    pub(crate) fn rollout_alarm(&self) -> Option<String> {
        let (failed, spec) = (self.rollout_failure()?, self.cluster.spec.as_ref()?);
        Some(format!(
            "the roll-out of revision {} is held: it failed on {}: {} (`cloudtik rollout status`)",
            spec.revision, failed.node, failed.problem
        ))
    }

    /// How far the newest revision has come.
    pub fn rollout(&self) -> RolloutStatus {
        let revision = self.cluster.spec.as_ref().map_or(0, |spec| spec.revision);
        let state = match &self.cluster.rollout {
            None => RolloutState::Complete,
            Some(Rollout { failed: Some(_), .. }) => RolloutState::Held,
            Some(Rollout { failed: None, .. }) => RolloutState::Progressing,
        };
        let counted: Vec<&Node> = self.nodes.values().filter(|n| n.record.life.is_counted()).collect();
        let updated = || counted.iter().filter(|n| n.record.revision == revision);
        let outdated = counted.iter().filter(|n| n.record.revision < revision).map(|n| n.record.id.clone()).collect();
        RolloutStatus {
            revision,
            state,
            from: self.cluster.rollout.as_ref().and_then(|rollout| rollout.from.as_ref()).map(|from| from.revision),
            nodes: counted.len() as u32,
            updated: updated().count() as u32,
            ready: updated().filter(|n| self.is_settled(n)).count() as u32,
            outdated,
            failure: self.rollout_failure().map(|failed| FailureStatus {
                node: failed.node.clone(),
                generation: failed.generation,
                since: failed.since,
                what: failed.problem.to_string(),
            }),
        }
    }
}

/// The service of a node that does not run; of several, one that failed, and was started most often.
fn failing(node: &Node) -> Option<&ServiceReport> {
    let unready = node.services.values().filter(|s| !s.key.runtime.is_own());
    let unready = unready.filter(|s| !matches!(s.state, ServiceState::Ready | ServiceState::Stopped));
    unready.max_by_key(|s| (s.failure.is_some() || s.state == ServiceState::Backoff, s.restarts))
}

/// The same as what is wrong.
fn not_running(node: &Node) -> Option<ServiceProblem> {
    let ServiceReport { key, state, detail, failure, .. } = failing(node)?;
    Some(match failure {
        Some(failure) => ServiceProblem::Failed { service: key.clone(), cause: failure.cause.clone() },
        None => ServiceProblem::NotReady { service: key.clone(), state: *state, detail: detail.clone() },
    })
}
