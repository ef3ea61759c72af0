//! What the cluster is, as the brain sees it: for `status`, for the planner and for what `ready` waits for.

use std::collections::BTreeMap;
use std::ops::Bound;

use cloudtik_model::alarm::Alarm;
use cloudtik_model::job::JobsSummary;
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::Outlook;
use cloudtik_model::report::{Facts, ServiceReport, ServiceState};
use cloudtik_model::spec::Spec;
use cloudtik_model::status::Phase;
use cloudtik_model::wait::{RevisionWaits, Wait, WaitingService, WorkersMissing};
use cloudtik_model::{Epoch, Generation, NodeId, ServiceKey};

use crate::{Brain, ClusterRecord, Node, Session};

/// Everything that is known, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub epoch: Epoch,
    pub phase: Phase,
    pub cluster: ClusterRecord,
    pub outlook: Outlook,
    pub nodes: Vec<NodeView>,
    /// What `ready` waits for, by name.
    pub waiting_for: Vec<Wait>,
    /// It waits for what is wanted beyond the description's minima and is not to be had just now, and for nothing else.
    pub lacks_only_room: bool,
    pub alarms: Vec<Alarm>,
    pub jobs: JobsSummary,
}

/// Everything but the nodes, which come in pages: [`Brain::page`].
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    pub epoch: Epoch,
    pub cluster: ClusterRecord,
    pub outlook: Outlook,
    pub alarms: Vec<Alarm>,
    /// What is waited for beside single nodes.
    pub waiting_for: Vec<Wait>,
    /// Of these, those beyond the description's minima that are not to be had just now.
    pub beyond: usize,
    /// Some worker may exist.
    pub has_workers: bool,
    pub jobs: JobsSummary,
}

/// A node, and what is waited for on it.
#[derive(Debug, Clone, PartialEq)]
pub struct PagedNode {
    pub view: NodeView,
    pub waiting_for: Vec<Wait>,
}

impl Snapshot {
    /// From an overview and the pages of all nodes in their order.
    pub fn assemble(overview: Overview, pages: Vec<PagedNode>) -> Self {
        let phase_with = |is_waiting| phase(overview.cluster.spec.as_ref(), overview.cluster.stopping, overview.has_workers, is_waiting);
        let (mut waiting_for, mut nodes) = (overview.waiting_for, Vec::with_capacity(pages.len()));
        for page in pages {
            waiting_for.extend(page.waiting_for);
            nodes.push(page.view);
        }
        Self {
            epoch: overview.epoch,
            phase: phase_with(!waiting_for.is_empty()),
            lacks_only_room: !waiting_for.is_empty() && waiting_for.len() == overview.beyond,
            cluster: overview.cluster,
            outlook: overview.outlook,
            nodes,
            waiting_for,
            alarms: overview.alarms,
            jobs: overview.jobs,
        }
    }
}

fn phase(spec: Option<&Spec>, is_stopping: bool, has_workers: bool, is_waiting: bool) -> Phase {
    match (spec, is_stopping) {
        (None, _) => Phase::Empty,
        (Some(_), true) if has_workers => Phase::Stopping,
        (Some(_), true) => Phase::Stopped,
        (Some(_), false) if is_waiting => Phase::Converging,
        (Some(_), false) => Phase::Ready,
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    pub record: NodeRecord,
    pub link: Option<Session>,
    pub facts: Option<Facts>,
    pub services: BTreeMap<ServiceKey, ServiceReport>,
    /// Milliseconds since the agent was last heard; absent if it never was in this head's life.
    pub silent_for: Option<u64>,
    /// Why it could not be deleted when that was tried last; it is tried again.
    pub undeletable: Option<String>,
}

impl Brain {
    /// Everything at once. Its cost grows with the cluster: who must not hold the brain up for long takes [`Brain::overview`] and
    /// pages.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::assemble(self.overview(), self.page(None, usize::MAX))
    }

    pub fn overview(&self) -> Overview {
        let (waiting_for, beyond) = self.cluster_waits();
        Overview {
            epoch: self.epoch,
            cluster: self.cluster(),
            outlook: self.outlook().clone(),
            jobs: self.jobs_summary(),
            alarms: self.alarms(),
            waiting_for,
            beyond,
            has_workers: self.has_workers(),
        }
    }

    /// Nodes in their order, from the one after `after`, at most `limit`.
    pub fn page(&self, after: Option<&NodeId>, limit: usize) -> Vec<PagedNode> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let paged = |node: &Node| PagedNode { view: self.view(node), waiting_for: self.node_waits(node) };
        self.nodes.range::<NodeId, _>((from, Bound::Unbounded)).take(limit).map(|(_, node)| paged(node)).collect()
    }

    /// How far the cluster is, without what it waits for.
    pub fn current_phase(&self) -> Phase {
        let is_waiting = || !self.cluster_waits().0.is_empty() || self.nodes.values().any(|node| !self.node_waits(node).is_empty());
        phase(self.spec(), self.is_stopping(), self.has_workers(), is_waiting())
    }

    /// The oldest revision that a node may still run.
    pub fn oldest_revision(&self) -> Option<u64> {
        self.nodes.values().filter(|n| n.record.life.may_exist()).map(|n| n.record.revision).min()
    }

    fn has_workers(&self) -> bool {
        self.nodes.values().any(|n| n.is_worker() && n.record.life.may_exist())
    }

    fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        if self.is_braking() {
            alarms.push(Alarm::Brake);
        }
        alarms.extend(self.cluster.held.as_ref().map(|hold| Alarm::OnHold { reason: hold.reason.clone() }));
        let paused = self.autoscaler.paused().iter();
        alarms.extend(paused.map(|(name, pause)| Alarm::TypePaused { node_type: name.clone(), why: pause.reason.clone() }));
        alarms.extend(self.rollout_alarm());
        alarms.extend(self.policy_alarms());
        let undeletable = self.nodes.values().filter(|node| node.undeletable.is_some());
        alarms.extend(undeletable.map(|node| Alarm::Undeletable { node: node.record.id.clone() }));
        alarms
    }

    fn view(&self, node: &Node) -> NodeView {
        NodeView {
            record: node.record.clone(),
            link: node.link,
            facts: node.facts.clone(),
            services: node.services.clone(),
            undeletable: node.undeletable.clone(),
            silent_for: node.facts.as_ref().map(|_| self.clock.now().saturating_sub(node.watch.last_heard())),
        }
    }

    pub fn node(&self, id: &NodeId) -> Option<NodeView> {
        self.nodes.get(id).map(|n| self.view(n))
    }

    /// Whether this generation of a node is the present one and exists.
    pub fn is_member(&self, id: &NodeId, generation: Generation) -> bool {
        self.nodes.get(id).is_some_and(|n| n.record.generation == generation && n.record.life.may_exist())
    }

    /// Whether this generation of a node was asked for and no agent has joined as it yet.
    pub fn expects(&self, id: &NodeId, generation: Generation) -> bool {
        let is_expected = |n: &NodeRecord| n.generation == generation && n.key.is_none() && !n.life.is_leaving();
        self.nodes.get(id).is_some_and(|n| is_expected(&n.record))
    }

    /// What is waited for beside single nodes, and how much of it is room, and workers beyond minima, that are not to be had.
    fn cluster_waits(&self) -> (Vec<Wait>, usize) {
        let Some(spec) = &self.cluster.spec else { return (vec![Wait::Specification], 0) };
        let (mut waits, mut beyond) = (Vec::new(), 0);
        for (name, kind) in &spec.workers {
            let target = if self.cluster.stopping { 0 } else { self.wanted_of(name) as usize };
            let of_type = || self.nodes.values().filter(|n| n.record.node_type == *name && n.is_worker());
            let wanted = of_type().filter(|n| n.record.life.is_counted()).count();
            if wanted < target {
                let leaving = of_type().filter(|n| n.record.life.is_leaving() && n.record.life.may_exist()).count();
                let blocked = self.outlook().types.get(name).and_then(|t| t.blocked.first());
                let why = match blocked {
                    _ if self.is_held() => Some(WorkersMissing::OnHold),
                    _ if leaving > 0 => Some(WorkersMissing::Leaving { count: leaving }),
                    Some(by) => Some(WorkersMissing::Blocked { by: by.clone() }),
                    None => None,
                };
                waits.push(Wait::Workers { missing: target - wanted, node_type: name.clone(), why });
                beyond += usize::from(wanted >= kind.min as usize && leaving == 0);
            }
        }
        if !self.cluster.stopping {
            beyond += self.outlook().unmet.len();
            waits.extend(self.outlook().unmet.iter().cloned().map(|unmet| Wait::Room { unmet }));
        }
        (waits, beyond)
    }

    /// What is waited for on a node.
    fn node_waits(&self, node: &Node) -> Vec<Wait> {
        let (mut waits, Some(spec)) = (Vec::new(), &self.cluster.spec) else { return Vec::new() };
        if node.is_worker() && node.record.life.is_counted() && !spec.workers.contains_key(&node.record.node_type) {
            let why = self.may_scale_in(&node.record.id).err();
            waits.push(Wait::Removal { node: node.record.id.clone(), why });
        }
        let id = &node.record.id;
        let before = waits.len();
        match &node.record.life {
            NodeState::Gone => return waits,
            // The store says so; it has not been seen since the head started.
            NodeState::Ready | NodeState::Preparing if node.link.is_none() => waits.push(Wait::Heartbeat { node: id.clone() }),
            // What it prepares is said below.
            NodeState::Ready | NodeState::Preparing => {}
            life if life.is_leaving() => {
                waits.push(Wait::Gone { node: id.clone(), state: life.name(), undeletable: node.undeletable.is_some() });
                return waits;
            }
            // It counts for nothing.
            NodeState::Quarantined { .. } => return waits,
            life => waits.push(Wait::State { node: id.clone(), state: life.name() }),
        }
        for placement in spec.services_on(&node.record.node_type) {
            let report = node.services.get(&placement.key);
            if node.link.is_some() && report.is_none_or(|r| r.state != ServiceState::Ready) {
                let report = report.map(|of| WaitingService { state: of.state, detail: of.detail.clone(), failure: of.failure.clone() });
                waits.push(Wait::Service { service: placement.key.clone(), node: id.clone(), report });
            }
        }
        let placed = |key: &ServiceKey| spec.services_on(&node.record.node_type).any(|p| p.key == *key);
        for left in node.services.values().filter(|s| s.state != ServiceState::Stopped && !s.key.runtime.is_own()) {
            if !placed(&left.key) {
                waits.push(Wait::Stop { service: left.key.clone(), node: id.clone(), state: left.state });
            }
        }
        if node.record.revision < spec.revision && (!node.is_worker() || spec.workers.contains_key(&node.record.node_type)) {
            let held = self.is_rollout_held().then_some(RevisionWaits::RolloutHeld);
            let obstacle = || self.may_restart(id).err().filter(|_| spec.rolling).map(|why| RevisionWaits::Obstacle { why });
            waits.push(Wait::Revision { node: id.clone(), revision: spec.revision, why: held.or_else(obstacle) });
        }
        if node.record.life == NodeState::Preparing && waits.len() == before {
            waits.push(Wait::Goal { node: id.clone() });
        }
        waits
    }
}
