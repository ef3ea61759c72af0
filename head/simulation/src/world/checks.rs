//! The promises that hold of single steps, and of the end.

use std::collections::BTreeSet;

use cloudtik_brain::{Action, ClusterRecord, NodeView, Record};
use cloudtik_model::demand::ResourceRequest;
use cloudtik_model::event::What;
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::{Blocked, UnmetCause};
use cloudtik_model::reason::{Obstacle, Reason};
use cloudtik_model::report::ServiceState;
use cloudtik_model::spec::Spec;
use cloudtik_model::status::Phase;
use cloudtik_model::wait::{Wait, WorkersMissing};
use cloudtik_model::{InstanceId, NodeId};

use super::World;
use crate::promises::Violation;
use crate::provider::instance_id;

/// A node that was well for this long must not be deleted for silence.
const WELL: u64 = 12_000;
/// The only worker must be silent for this long before it may be given up.
const ALONE: u64 = 50_000;

impl World {
    /// What the brain may do at all.
    pub(super) fn check_action(&mut self, action: &Action) -> Result<(), Violation> {
        match action {
            Action::Create { node, generation, .. } => {
                let stored = self.stored.nodes.get(node);
                if stored.is_none_or(|r| r.generation != *generation || r.life == NodeState::Gone) {
                    return Err(self.broken(1, format!("{node} is created without being stored as requested: {stored:?}")));
                }
                if !self.stored.told.of(node, *generation).is_some_and(|of| of.decision) {
                    return Err(self.broken(10, format!("nothing stored explains why {node} is created")));
                }
            }
            Action::Delete { node, generation, instance } => {
                self.stats.deletions += 1;
                if *instance != instance_id(node, *generation) {
                    return Err(self.broken(3, format!("{instance} is deleted as {node}, generation {generation}")));
                }
                if node.is_head() {
                    return Err(self.broken(3, "the head's own node is deleted".to_owned()));
                }
                let told = self.stored.told.of(node, *generation).unwrap_or_default();
                if told.not_needed && !told.draining {
                    return Err(self.broken(3, format!("{node} is scaled in without being drained")));
                }
                if !told.terminating && !self.stored.told.is_orphan(instance) {
                    return Err(self.broken(10, format!("nothing stored explains why {instance} is deleted")));
                }
            }
            Action::SendJobs { order, .. } => self.check_jobs_order(order)?,
            Action::Reboot { node, instance, .. } => {
                let is_well =
                    |agent: &crate::agent::Agent| agent.is_well(self.now) && self.now - agent.well_since > WELL && agent.link.is_some();
                if node.is_head() || self.agents.get(instance).is_some_and(is_well) {
                    return Err(self.broken(5, format!("{node} is rebooted though it is well")));
                }
            }
            Action::SendGoal { node, order } if order.drain => {
                let life = self.stored.nodes.get(node).map(|r| r.life.clone());
                if !matches!(life, Some(NodeState::Draining { .. })) {
                    return Err(self.broken(5, format!("{node} is told to stop everything while it is {life:?}")));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A verdict is stored with its evidence, in the step that reaches it.
    pub(super) fn check_evidence(&self, step: &[Record]) -> Result<(), Violation> {
        for record in step {
            let Record::Node(node) = record else { continue };
            let was_down = self.stored.nodes.get(&node.id).is_some_and(|b| matches!(b.life, NodeState::Down { .. }));
            if !matches!(node.life, NodeState::Down { .. }) || was_down {
                continue;
            }
            let is_verdict = |r: &Record| matches!(r, Record::Event(e) if e.node.as_ref() == Some(&node.id) && matches!(&e.what, What::NodeDown { evidence } if !evidence.is_empty()));
            if !step.iter().any(is_verdict) {
                return Err(self.broken(10, format!("{} is called down without a stored verdict and its evidence", node.id)));
            }
        }
        Ok(())
    }

    /// Never by guess: a node that was well all the while is given up only because somebody wanted it gone.
    pub(super) fn check_verdict(&mut self, before: Option<&NodeRecord>, record: &NodeRecord) -> Result<(), Violation> {
        let was_down = before.is_some_and(|b| b.generation == record.generation && matches!(b.life, NodeState::Down { .. }));
        if !was_down
            && let NodeState::Down { .. } = record.life
            && let Some(agent) = record.instance.as_ref().and_then(|instance| self.agents.get(instance))
            && agent.is_well(self.now)
            && self.now.saturating_sub(agent.well_since) > WELL
            && agent.link.is_some()
        {
            return Err(self.broken(5, format!("{} is called down though it was well and linked", record.id)));
        }
        let NodeState::Terminating { reason } = &record.life else { return Ok(()) };
        let (node, generation) = (&record.id, record.generation);
        let Some(instance) = &record.instance else { return Ok(()) };
        let wanted = self.asked_to_go.contains(&(node.clone(), generation))
            || matches!(
                reason,
                Reason::NotNeeded
                    | Reason::ClusterTakenDown
                    | Reason::AboveTypeMaximum { .. }
                    | Reason::AboveClusterMaximum { .. }
                    | Reason::AboveBudget { .. }
            );
        if wanted || self.provider.get(instance).is_none_or(|machine| machine.broken) {
            return Ok(());
        }
        self.stats.judged_deletions += u64::from(self.agents.contains_key(instance));
        let Some(agent) = self.agents.get(instance) else { return Ok(()) };
        let head_was_deaf = self.now < self.all_cut_until + WELL;
        let node_had_no_fault = agent.own_fault_until.saturating_add(WELL) < self.now;
        // The only worker that the head counts on is given up after a while: there is no other by which it could tell.
        let counts = |r: &&NodeRecord| {
            let is_present = matches!(r.life, NodeState::Preparing | NodeState::Ready | NodeState::Suspect { .. } | NodeState::Down { .. });
            r.id != *node && !r.id.is_head() && is_present
        };
        let is_alone = self.stored.nodes.values().filter(counts).count() == 0;
        let was_waited_for = is_alone && self.now.saturating_sub(agent.heard) >= ALONE;
        if head_was_deaf && node_had_no_fault && !was_waited_for {
            return Err(self.broken(3, format!("{node} is deleted ({reason}) because the head was cut off")));
        }
        if agent.is_well(self.now) && self.now - agent.well_since > WELL && agent.link.is_some() {
            return Err(self.broken(3, format!("{node} is deleted ({reason}) though it was well")));
        }
        Ok(())
    }

    /// No member group loses its quorum because the brain lets a member go, or restarts it for a new description: as it was stored,
    /// more than half were ready without it.
    pub(super) fn check_quorum(&mut self, record: &NodeRecord) -> Result<(), Violation> {
        let has_quorum = self.spec.services.iter().any(|s| s.membership.as_ref().is_some_and(|m| m.quorum));
        let before = self.stored.nodes.get(&record.id).filter(|b| b.generation == record.generation);
        // What never was in the group is no member of it.
        let Some(before) = before.filter(|b| has_quorum && !record.id.is_head() && b.was_ready) else { return Ok(()) };
        let (what, may_be_only_one) = match &record.life {
            NodeState::Draining { reason: Reason::ClusterTakenDown } => return Ok(()),
            NodeState::Draining { reason } if !before.life.is_leaving() => (reason.to_string(), false),
            // What a person kills is that person's choice, and what the provider lost is gone already.
            NodeState::Terminating { reason: reason @ Reason::NotRecovered } if !before.life.is_leaving() => (reason.to_string(), false),
            // Two members cannot do without either: a new description must be taken all the same.
            _ if self.restarts_between(before.revision, record.revision) && before.life == NodeState::Ready => {
                ("a new revision".to_owned(), true)
            }
            _ => return Ok(()),
        };
        // As the head heard it. A member whose service fails serves nobody, and its restart takes nothing from the group.
        let is_up = |node: &NodeId| self.brain.as_ref().and_then(|brain| brain.node(node)).is_some_and(|node| serves(&self.spec, &node));
        if may_be_only_one && !is_up(&record.id) {
            return Ok(());
        }
        let workers = || self.stored.nodes.values().filter(|r| !r.id.is_head() && r.life != NodeState::Gone);
        let members = workers().filter(|r| r.was_ready).count();
        let up = workers().filter(|r| r.id != record.id && r.life == NodeState::Ready && is_up(&r.id)).count();
        self.stats.judged_members += 1;
        let is_possible = members.saturating_sub(1) > members / 2;
        if up < members / 2 + 1 && (is_possible || !may_be_only_one) {
            return Err(self.broken(4, format!("{} goes ({what}) with {up} of {members} members up beside it", record.id)));
        }
        Ok(())
    }

    /// What works is not let go, unless somebody said so.
    pub(super) fn check_idle(&mut self, record: &NodeRecord) -> Result<(), Violation> {
        // Where load policies are part of a scenario, it is for them to say what little is.
        if self.setup.scenario.is_some() {
            return Ok(());
        }
        let NodeState::Draining { reason } = &record.life else { return Ok(()) };
        let before = self.stored.nodes.get(&record.id).filter(|b| b.generation == record.generation && !b.life.is_leaving());
        let is_new = before.is_some_and(|before| before.was_ready) && *reason == Reason::NotNeeded;
        self.stats.judged_idle += u64::from(is_new);
        let is_of = |spec: &cloudtik_model::spec::Spec| spec.workers.contains_key(&record.node_type);
        let is_gone = !self.stored.cluster.spec.as_ref().is_some_and(is_of);
        let somebody_said_so = is_gone || self.stored.cluster.immediate.contains_key(&record.node_type);
        let works = record.instance.as_ref().and_then(|instance| self.agents.get(instance)).is_some_and(|agent| agent.heard_busy);
        if is_new && works && !somebody_said_so {
            return Err(self.broken(3, format!("{} is scaled in while it works", record.id)));
        }
        if is_new && !somebody_said_so && self.serves_a_job(record) {
            return Err(self.broken(3, format!("{} is scaled in while a job needs it", record.id)));
        }
        Ok(())
    }

    /// A revision that fails does not spread: a node that works takes it only if no other has it, and none once it is held;
    /// nothing that works is scaled in meanwhile.
    pub(super) fn check_rollout(&mut self, record: &NodeRecord) -> Result<(), Violation> {
        let Some(before) = self.stored.nodes.get(&record.id).filter(|b| b.generation == record.generation) else { return Ok(()) };
        let is_held = self.stored.cluster.rollout.as_ref().is_some_and(|rollout| rollout.failed.is_some());
        let newest = self.stored.cluster.spec.as_ref().map_or(0, |spec| spec.revision);
        let is_taken = before.revision < record.revision;
        if let (NodeState::Draining { reason }, false) = (&record.life, before.life.is_leaving())
            && *reason == Reason::NotNeeded
            && before.was_ready
            && !self.stored.cluster.immediate.contains_key(&record.node_type)
            && self.stored.cluster.spec.as_ref().is_some_and(|spec| spec.workers.contains_key(&record.node_type))
        {
            let failed = self.stored.cluster.rollout.as_ref().and_then(|rollout| rollout.failed.as_ref()).map_or(newest, |f| f.revision);
            let is_healthy = before.revision < failed || before.life == NodeState::Ready;
            let is_on_trial = before.revision == newest && self.is_bad(newest) && before.life == NodeState::Preparing;
            if is_held && is_healthy {
                return Err(self.broken(11, format!("{} works and is scaled in while a roll-out is held", record.id)));
            }
            if !is_held && is_on_trial && self.stored.cluster.rollout.is_some() {
                return Err(self.broken(11, format!("{} is scaled in before it is known that revision {newest} fails", record.id)));
            }
        }
        // A corrected revision is another one.
        if !is_taken || record.revision != newest || before.life != NodeState::Ready || record.id.is_head() {
            return Ok(());
        }
        if is_held {
            return Err(self.broken(11, format!("{} takes revision {newest}, which is held", record.id)));
        }
        if self.is_bad(newest) {
            self.stats.judged_rollouts += 1;
            let runs_it = |r: &&NodeRecord| {
                let is_there =
                    matches!(r.life, NodeState::Preparing | NodeState::Ready | NodeState::Suspect { .. } | NodeState::Down { .. });
                r.id != record.id && !r.id.is_head() && r.revision == newest && is_there
            };
            if let Some(other) = self.stored.nodes.values().find(runs_it) {
                return Err(self.broken(11, format!("{} takes revision {newest} while it fails on {}", record.id, other.id)));
            }
        }
        Ok(())
    }

    /// What is held stays held until another revision comes or somebody says that it goes on.
    pub(super) fn check_hold(&mut self, cluster: &ClusterRecord, resumes: bool) -> Result<(), Violation> {
        let revision = |cluster: &ClusterRecord| cluster.spec.as_ref().map(|spec| spec.revision);
        let is_held = |cluster: &ClusterRecord| cluster.rollout.as_ref().is_some_and(|rollout| rollout.failed.is_some());
        let (was, is) = (is_held(&self.stored.cluster), is_held(cluster));
        self.stats.held_rollouts += u64::from(is && !was);
        if was && !is && !resumes && revision(cluster) == revision(&self.stored.cluster) {
            return Err(self.broken(11, format!("the roll-out of revision {:?} is held no more, and nobody said so", revision(cluster))));
        }
        Ok(())
    }

    /// What the brain goes by is what is stored: another head would go by the same.
    pub(super) fn check_memory(&self) -> Result<(), Violation> {
        let Some(brain) = self.brain.as_ref().filter(|_| self.setup.scenario.is_none()) else { return Ok(()) };
        let is_stored = |ask: &ResourceRequest| self.stored.requests.get(&ask.name) == Some(ask);
        if brain.requests().count() != self.stored.requests.len() || !brain.requests().all(is_stored) {
            let known: Vec<&ResourceRequest> = brain.requests().collect();
            return Err(self.broken(8, format!("the requests are {known:?}, and stored are {:?}", self.stored.requests)));
        }
        if brain.plan() != self.stored.plan {
            return Err(self.broken(8, format!("planned is {:?}, and stored is {:?}", brain.plan(), self.stored.plan)));
        }
        if brain.cluster() != self.stored.cluster {
            return Err(self.broken(8, format!("what is known of the cluster is not what is stored: {:?}", self.stored.cluster)));
        }
        self.check_jobs_memory()
    }

    /// In the end everything is as it was asked for, and nothing else exists.
    pub(super) fn check_end(&mut self) -> Result<(), Violation> {
        let Some(brain) = &self.brain else { return Err(self.broken(1, "the head is not back".to_owned())) };
        let snapshot = brain.snapshot();
        let recorded: BTreeSet<InstanceId> = snapshot.nodes.iter().filter_map(|n| n.record.instance.clone()).collect();
        let orphan = self.provider.alive().find(|m| !recorded.contains(&m.instance.id)).map(|m| m.instance.id.clone());
        if let Some(id) = orphan {
            return Err(self.broken(1, format!("{id} is an orphan")));
        }
        // Room that was promised may have become impossible, by what nodes there were to be had meanwhile; then it is said so.
        // Requests may also hold what a minimum needs, when what was set aside came back.
        let were_limits_changed = self.stored.specs.len() > 1;
        let is_limited = !self.stored.requests.is_empty() || were_limits_changed;
        let is_told = |wait: &Wait| match wait {
            Wait::Room { unmet } => is_limited && unmet.why.iter().any(is_limit),
            Wait::Workers { why: Some(WorkersMissing::Blocked { by }), .. } => is_limited && leaves_too_little(by),
            // A quorum outlives its type.
            Wait::Removal { why, .. } => matches!(why, Some(Obstacle::QuorumNeedsIt { .. })),
            _ => false,
        };
        let waits_for_room = !snapshot.waiting_for.is_empty() && snapshot.waiting_for.iter().all(is_told);
        if snapshot.phase != Phase::Ready && !waits_for_room {
            return Err(self.broken(1, format!("the cluster does not come to rest; it waits for {:?}", snapshot.waiting_for)));
        }
        for node in snapshot.nodes.iter().filter(|n| n.record.life != NodeState::Gone) {
            if self.stored.told.of(&node.record.id, node.record.generation).is_none() {
                return Err(self.broken(10, format!("nothing stored tells of {}", node.record.id)));
            }
        }
        self.check_jobs_end()
    }
}

/// Whether a node's services that belong to a quorum are ready.
fn serves(spec: &Spec, node: &NodeView) -> bool {
    let of_quorum = spec.services.iter().filter(|s| s.membership.as_ref().is_some_and(|m| m.quorum));
    let mut of_node = of_quorum.filter(|s| s.role.covers(&node.record.node_type));
    of_node.all(|s| node.services.get(&s.key).is_some_and(|report| report.state == ServiceState::Ready))
}

/// Whether one of the cluster's limits leaves too little.
fn leaves_too_little(by: &Blocked) -> bool {
    matches!(by, Blocked::TypeMaximum { .. } | Blocked::ClusterMaximum { .. } | Blocked::Budget { .. })
}

/// Whether something has no room because of a limit, or because no machine is large enough.
fn is_limit(cause: &UnmetCause) -> bool {
    match cause {
        UnmetCause::ClusterMaximum { .. }
        | UnmetCause::BudgetLeaves { .. }
        | UnmetCause::NeedsWorkers { .. }
        | UnmetCause::NeedsMoney { .. }
        | UnmetCause::NoTypeHoldsIt => true,
        UnmetCause::Blocked { by, .. } => leaves_too_little(by),
        UnmetCause::Quarantined { .. }
        | UnmetCause::MachinesInUse
        | UnmetCause::CannotHoldAll { .. }
        | UnmetCause::NotOffered { .. }
        | UnmetCause::TriedLater { .. } => false,
    }
}
