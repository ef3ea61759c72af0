//! A roll-out that fails: when a revision counts as failed on a node, what is held then, and how it goes on.

use std::collections::BTreeSet;

use cloudtik_model::alarm::Alarm;
use cloudtik_model::answer::Answer;
use cloudtik_model::event::What;
use cloudtik_model::node::NodeState;
use cloudtik_model::reason::{Obstacle, ServiceProblem};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::report::{ServiceReport, ServiceState};
use cloudtik_model::spec::{ServicePlacement, Spec};
use cloudtik_model::status::{Rollout as RolloutStatus, RolloutFailure as FailureStatus, RolloutState};
use cloudtik_model::{NodeId, NodeTypeName, ServiceKey};

use super::{runs, runs_nothing};
use crate::{Brain, Node, Request, Rollout, RolloutFailure};

/// A revision has failed on a node when services of it ended so often since the node took it, and do not all run. Twice may be
/// a port that is still taken or a service that it needs and that restarts too.
const FAILED_STARTS: u32 = 3;

/// A revision has failed when software that it needs could not be fetched so often in a row: once may be the network.
const FAILED_FETCHES: u32 = 3;

/// Types of node, and nodes with the moment at which they will have run a revision for long enough.
type Unproven<'a> = (BTreeSet<&'a NodeTypeName>, Vec<(NodeId, u64)>);

impl Brain {
    /// A description is taken: a new roll-out begins, or the one that is under way goes on with it. A revision that changes
    /// what nodes run is a new try: it is not held for what the one before did. One that leaves that alone changes nothing in
    /// a roll-out, held or not.
    pub(crate) fn begin_rollout(&mut self, known: Option<&Spec>, spec: &Spec, is_new_try: bool) {
        if !is_new_try && self.placement.rollout.is_some() {
            return;
        }
        let unfinished = self.placement.rollout.take();
        if let (Some(known), true) = (known, spec.is_stepwise()) {
            let from = match unfinished {
                Some(rollout) => rollout.from,
                None => Some(Box::new(known.clone())),
            };
            self.placement.rollout = Some(Rollout { from, failed: None });
        }
        self.nodes.goals_mut().for_each(|goal| goal.failed_starts = 0);
    }

    /// Every node has the newest revision: the roll-out ends when all of them run it well, for as long as a trial takes.
    pub(super) fn end_rollout(&mut self) {
        let Some(spec) = self.cluster.spec.as_ref().filter(|_| self.placement.rollout.is_some()) else { return };
        let newest = spec.revision;
        let (_, looks) = self.unproven(spec);
        if !looks.is_empty() {
            return looks.into_iter().for_each(|(id, at)| self.wake_at(&id, at));
        }
        let is_step = |n: &&Node| n.record.revision == newest && n.record.life.is_counted() && !runs_nothing(n);
        let is_converged = |n: &Node| n.record.life == NodeState::Ready && self.is_converged(&n.record.id);
        if self.placement.rollout.is_some() && self.nodes.values().filter(is_step).all(is_converged) {
            self.placement.rollout = None;
            self.store_cluster();
            self.event(None, What::RolloutComplete { revision: newest });
        }
    }

    /// Whether a node took a revision and does not run all of it well. What does not run anything yet is no step of a roll-out.
    pub(super) fn is_any_unsettled(&self, revision: u64) -> bool {
        let is_step = |n: &&Node| n.record.revision == revision && n.record.life.is_counted() && !runs_nothing(n);
        self.nodes.values().filter(is_step).any(|n| !self.is_settled(n))
    }

    /// Whether a node runs well what it can run of its revision: what comes after something that only this roll-out brings,
    /// and that is not ready yet, may have to wait until other nodes have taken the revision.
    pub(super) fn is_settled(&self, node: &Node) -> bool {
        if self.is_converged(&node.record.id) {
            return node.record.life == NodeState::Ready;
        }
        let Some(from) = self.placement.rollout.as_ref().and_then(|rollout| rollout.from.as_ref()) else { return false };
        let is_new = |key: &ServiceKey| !from.services.iter().any(|known| known.key == *key);
        let waits = |placed: &ServicePlacement| {
            !runs(node, &placed.key) && placed.after.iter().any(|key| is_new(key) && !self.placement.readiness.is_ready(key))
        };
        let waiting: BTreeSet<ServiceKey> = self.placements(node).filter(|placed| waits(placed)).map(|placed| placed.key.clone()).collect();
        node.record.life == NodeState::Preparing && !waiting.is_empty() && self.runs_all_but(node, &waiting)
    }

    /// Whether the revision has worked on a node of a type for as long as it takes until what is wrong would show.
    pub(super) fn is_proven(&self, spec: &Spec, name: &NodeTypeName) -> bool {
        let Some(span) = spec.trials.get(name) else { return true };
        self.tried(spec, name).any(|(_, since)| self.clock.now() >= since.saturating_add(*span))
    }

    /// The types of node on which the newest revision is not known to work, and when to look at the nodes that try it.
    pub(super) fn unproven<'a>(&'a self, spec: &'a Spec) -> Unproven<'a> {
        let names: BTreeSet<&NodeTypeName> = spec.trials.keys().filter(|name| !self.is_proven(spec, name)).collect();
        let looks = names.iter().flat_map(|name| {
            let span = spec.trials.get(*name).copied().unwrap_or(0);
            self.tried(spec, name).map(move |(node, since)| (node.record.id.clone(), since.saturating_add(span)))
        });
        let looks = looks.collect();
        (names, looks)
    }

    /// The nodes of a type that run the newest revision well, and since when.
    pub(super) fn tried<'a>(&'a self, spec: &'a Spec, name: &'a NodeTypeName) -> impl Iterator<Item = (&'a Node, u64)> {
        let has_it = move |n: &&Node| n.record.node_type == *name && n.record.revision == spec.revision && n.record.life.is_counted();
        self.nodes
            .values()
            .filter(has_it)
            .filter(|n| !runs_nothing(n) && self.is_settled(n))
            .map(|n| (n, n.entered.max(n.goal.taken_at).max(n.goal.unready_at)))
    }

    fn rollout_failure(&self) -> Option<&RolloutFailure> {
        self.placement.rollout.as_ref()?.failed.as_ref()
    }

    pub(crate) fn is_rollout_held(&self) -> bool {
        self.rollout_failure().is_some()
    }

    /// Whether a node has the revision that is being rolled out, and whether that works is not known yet.
    fn is_on_trial(&self, node: &Node) -> bool {
        let newest = self.cluster.spec.as_ref().map(|spec| spec.revision);
        self.placement.rollout.is_some() && !self.is_rollout_held() && newest == Some(node.record.revision) && !self.is_settled(node)
    }

    /// Holds the roll-out if the revision has failed on a node.
    pub(crate) fn watch_rollout(&mut self, id: &NodeId) {
        let now = self.clock.now();
        if self.placement.rollout.is_some() || !self.placement.outdated.is_empty() {
            // It may have worked for long enough by now for others to follow, also for one that came back after the roll-out had ended.
            self.placement.note_nodes_changed();
        }
        let Some(node) = self.nodes.get(id).filter(|node| self.is_on_trial(node)) else { return };
        if node.goal.failed_starts >= FAILED_STARTS {
            let what = not_running(node).unwrap_or(ServiceProblem::Ended { times: node.goal.failed_starts });
            return self.hold_rollout(id, what);
        }
        // What is new may have much to do before it is ready, and nothing depends on it yet.
        if node.record.life != NodeState::Preparing || !node.record.was_ready {
            return;
        }
        let since = node.preparing_since.unwrap_or(node.entered).max(node.goal.taken_at);
        if is_fetching(node) {
            // Software that takes long to fetch says nothing about the revision; a fetch that fails is shown as that.
            if let Some(goal) = self.nodes.goal_mut(id) {
                goal.fetching_until = now;
            }
            return self.wake_at(id, now.saturating_add(self.config.prepare_deadline));
        }
        let due = since.max(node.goal.fetching_until).saturating_add(self.config.prepare_deadline);
        if now < due {
            return self.wake_at(id, due);
        }
        let problem = not_running(node).map(Box::new);
        self.hold_rollout(id, ServiceProblem::NotReadyInTime { within_s: self.config.prepare_deadline / 1_000, problem });
    }

    /// Holds the roll-out if a node that tries the revision cannot be given its software.
    pub(crate) fn take_software_failure(
        &mut self,
        id: NodeId,
        version: u64,
        software: String,
        error: String,
        tries: u32,
    ) -> Option<NodeId> {
        let node = self.nodes.get(&id)?;
        let is_current = node.goal.sent.as_ref().is_some_and(|sent| sent.version == version && sent.revision == node.record.revision);
        if is_current && tries >= FAILED_FETCHES && self.is_on_trial(node) {
            self.hold_rollout(&id, ServiceProblem::NoSoftware { software, error });
        }
        Some(id)
    }

    /// A node is about to leave. If the revision that it took did not work there, that is known from now on.
    pub(crate) fn note_departure(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id).filter(|node| self.is_on_trial(node) && !runs_nothing(node)) else { return };
        let fails = |state: ServiceState| matches!(state, ServiceState::Backoff | ServiceState::Unhealthy);
        // What is known of an older goal says nothing of this one.
        let sent = node.goal.sent.as_ref().filter(|sent| sent.revision == node.record.revision && !sent.drain).map(|sent| sent.version);
        let is_current = |version: u64| sent.is_some_and(|sent| version >= sent);
        let mut failing = node.services.values().filter(|s| !s.key.runtime.is_own() && fails(s.state) && is_current(s.goal_version));
        let is_failing = node.goal.failed_starts > 0 || failing.next().is_some();
        if let Some(what) = not_running(node).filter(|_| is_failing && !self.cluster.stopping) {
            self.hold_rollout(id, what);
        }
    }

    fn hold_rollout(&mut self, id: &NodeId, problem: ServiceProblem) {
        let (Some(node), Some(spec)) = (self.nodes.get(id), &self.cluster.spec) else { return };
        let (generation, newest) = (node.record.generation, spec.revision);
        let log = failing(node).map(|report| report.log.clone()).unwrap_or_default();
        let since = self.clock.wall();
        let failed = RolloutFailure { revision: newest, node: id.clone(), generation, since, problem: problem.clone() };
        let rollout = self.placement.rollout.get_or_insert_default();
        rollout.failed = Some(failed);
        // Nodes that run nothing yet come up with what works.
        let from = rollout.from.as_ref().map(|from| (from.revision, from.workers.clone()));
        if let Some((revision, workers)) = from {
            let new = |n: &&Node| n.record.revision == newest && runs_nothing(n) && workers.contains_key(&n.record.node_type);
            for id in self.nodes.values().filter(new).map(|n| n.record.id.clone()).collect::<Vec<_>>() {
                self.nodes.set_revision(&id, revision);
                self.store_node(&id);
            }
        }
        self.store_cluster();
        self.event_with_log(Some(id), What::RolloutHeld { revision: newest, on: id.clone(), problem }, log);
        self.reconsider_scale();
    }

    /// The revision that a new node of a type comes up with: while a roll-out is held, the one before.
    pub(crate) fn revision_for_new(&self, spec: &Spec, name: &NodeTypeName) -> u64 {
        let held = self.placement.rollout.as_ref().filter(|rollout| rollout.failed.is_some());
        let from = held.and_then(|rollout| rollout.from.as_ref()).filter(|from| from.workers.contains_key(name));
        from.map_or(spec.revision, |from| from.revision)
    }

    /// Why an idle worker stays because of a roll-out, if it does.
    pub(crate) fn kept_for_rollout(&self, id: &NodeId) -> Option<Obstacle> {
        let (node, spec) = (self.nodes.get(id)?, self.cluster.spec.as_ref()?);
        let newest = spec.revision;
        if let Some(failed) = self.rollout_failure() {
            let is_healthy = node.record.revision < failed.revision || node.record.life == NodeState::Ready;
            return is_healthy.then_some(Obstacle::RolloutHeld { revision: failed.revision });
        }
        let is_trial = self.is_on_trial(node) && node.record.was_ready;
        is_trial.then_some(Obstacle::OnTrial { revision: newest })
    }

    pub(crate) fn take_rollout_resume(&mut self, request: Request) {
        let Some(revision) = self.cluster.spec.as_ref().map(|spec| spec.revision).filter(|_| self.is_rollout_held()) else {
            return self.reply(request, Err(Refusal::NoRolloutHeld));
        };
        if let Some(rollout) = &mut self.placement.rollout {
            rollout.failed = None;
        }
        self.store_cluster();
        self.requested(&request.actor, None, What::ResumeRollout { revision });
        let now = self.clock.now();
        self.nodes.goals_mut().for_each(|goal| goal.begin_trial(now));
        self.done(request, Answer::RolloutResumed { revision });
        self.placement.note_nodes_changed();
        for id in self.nodes.ids() {
            self.wake_at(&id, now);
        }
        self.reconsider_scale();
    }

    /// Why the newest revision goes to no further node, for people.
    pub(crate) fn rollout_alarm(&self) -> Option<Alarm> {
        let failed = self.rollout_failure()?;
        Some(Alarm::RolloutHeld { revision: failed.revision, node: failed.node.clone(), problem: failed.problem.clone() })
    }

    /// How far the newest revision has come.
    pub fn rollout(&self) -> RolloutStatus {
        let revision = self.cluster.spec.as_ref().map_or(0, |spec| spec.revision);
        let state = match &self.placement.rollout {
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
            from: self.placement.rollout.as_ref().and_then(|rollout| rollout.from.as_ref()).map(|from| from.revision),
            nodes: counted.len() as u32,
            updated: updated().count() as u32,
            ready: updated().filter(|n| self.is_settled(n)).count() as u32,
            outdated,
            failure: self.rollout_failure().map(|failed| FailureStatus {
                node: failed.node.clone(),
                generation: failed.generation,
                since: failed.since,
                problem: failed.problem.clone(),
            }),
        }
    }
}

/// Whether something of a node waits for software: it is being fetched there, or by the head (then the agent was told to start
/// the service, and waits, or goes on with what ran before).
fn is_fetching(node: &Node) -> bool {
    let may_start = |key: &ServiceKey| node.goal.sent.as_ref().is_some_and(|sent| sent.start.contains(key));
    node.services.values().any(|service| match service.state {
        ServiceState::Fetching => true,
        ServiceState::Waiting => may_start(&service.key),
        _ => {
            may_start(&service.key)
                && node.goal.sent.as_ref().is_some_and(|sent| service.goal_version < sent.version && node.goal.acknowledged >= sent.version)
        }
    })
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
