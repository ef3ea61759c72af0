//! What agents report of their services, as events that say what happened and why.

use std::collections::BTreeSet;

use cloudtik_model::event::What;
use cloudtik_model::report::{MemoryKills, ServiceReport, ServiceState};
use cloudtik_model::{NodeId, ServiceKey};

use crate::{Brain, Session};

/// So many starts of a service that fails the same way are stored with the last lines of its log each: later ones say the
/// same again.
const STARTS_WITH_LOG: u32 = 3;
/// Services of a node that are kept beside those that the description places on it: those of an earlier description end in
/// their time. The rest is ignored, since an agent can name as many as it likes.
const MAX_UNPLACED: usize = 64;

impl Brain {
    pub(crate) fn take_report(&mut self, session: Session, id: NodeId, complete: bool, services: Vec<ServiceReport>) -> Option<NodeId> {
        let now = self.clock.now();
        let node = self.nodes.get_mut(&id).filter(|n| n.link == Some(session))?;
        if complete {
            let kept: BTreeSet<_> = services.iter().map(|s| s.key.clone()).collect();
            node.services.retain(|key, _| kept.contains(key));
            node.ignores_services = false;
        }
        let services = self.without_unplaced(&id, services);
        let node = self.nodes.get_mut(&id)?;
        let (mut changes, mut is_news) = (Vec::new(), false);
        for report in services {
            let before = node.services.insert(report.key.clone(), report.clone());
            node.goal.note_report(&report, has_failed(before.as_ref(), &report), now);
            is_news |= before.as_ref().map(|b| &b.gauges) != Some(&report.gauges);
            if before.as_ref().map(|b| b.goal_version) != Some(report.goal_version) {
                self.placement.note_nodes_changed();
            }
            let changed = before.as_ref().map(|b| (b.state, b.failure.as_ref())) != Some((report.state, report.failure.as_ref()));
            if changed {
                changes.push((before, report));
            }
        }
        self.touch(&id);
        self.note_activity(&id);
        if is_news && self.follows_signals() {
            self.reconsider_scale();
        }
        for (before, report) in changes {
            if before.as_ref().map(|b| b.state) != Some(report.state) {
                self.placement.note_services_changed();
            }
            self.note_service(&id, before.as_ref(), &report);
        }
        Some(id)
    }

    pub(crate) fn take_memory_kills(&mut self, session: Session, id: NodeId, kills: MemoryKills) -> Option<NodeId> {
        self.nodes.get(&id).filter(|n| n.link == Some(session))?;
        self.event(Some(&id), What::MemoryUsedUp { kills });
        Some(id)
    }

    /// Without what the node is not to run, where that is more than is kept.
    fn without_unplaced(&mut self, id: &NodeId, mut services: Vec<ServiceReport>) -> Vec<ServiceReport> {
        let Some(node) = self.nodes.get(id) else { return services };
        if services.iter().all(|report| node.services.contains_key(&report.key)) {
            return services;
        }
        let specs = self.cluster.spec.iter().chain(self.placement.current_rollout().and_then(|rollout| rollout.from.as_deref()));
        let placed: BTreeSet<&ServiceKey> = specs.flat_map(|spec| spec.services_on(&node.record.node_type)).map(|p| &p.key).collect();
        let mut unplaced = node.services.keys().filter(|key| !placed.contains(key)).count();
        let mut ignored = None;
        services.retain(|report| {
            if node.services.contains_key(&report.key) || placed.contains(&report.key) {
                return true;
            }
            unplaced += 1;
            if unplaced > MAX_UNPLACED {
                ignored.get_or_insert_with(|| report.key.clone());
            }
            unplaced <= MAX_UNPLACED
        });
        let (Some(service), Some(node)) = (ignored, self.nodes.get_mut(id)) else { return services };
        if !std::mem::replace(&mut node.ignores_services, true) {
            self.complain(Some(id), What::ServicesIgnored { service, kept: MAX_UNPLACED as u32 });
        }
        services
    }

    /// Stores what changed of a service since the report before.
    pub(crate) fn note_service(&mut self, id: &NodeId, before: Option<&ServiceReport>, report: &ServiceReport) {
        let last = before.and_then(|b| b.failure.as_ref());
        // A failure may have come and gone between two reports. What an earlier head was told is no news, unless it lasts.
        let lasts = matches!(report.state, ServiceState::Backoff | ServiceState::Stopping);
        let is_news = |at| last.map(|l| l.at) != Some(at) && (before.is_some() || lasts);
        if let Some(failure) = report.failure.as_ref().filter(|f| is_news(f.at)) {
            let is_other = last.is_none_or(|l| l.cause != failure.cause);
            let log = if is_other || report.restarts <= STARTS_WITH_LOG { report.log.clone() } else { Vec::new() };
            let (cause, restart_in_ms) = (failure.cause.clone(), failure.restart_in_ms);
            let what = What::ServiceFailed { service: report.key.clone(), failure: cause, restart_in_ms };
            self.event_with_log(Some(id), what, log);
        }
        if before.map(|b| b.state) == Some(report.state) {
            return;
        }
        let what = || What::ServiceChanged { service: report.key.clone(), state: report.state, detail: report.detail.clone() };
        match report.state {
            ServiceState::Ready | ServiceState::Stopped => self.event(Some(id), what()),
            ServiceState::Unhealthy => self.event_with_log(Some(id), what(), report.log.clone()),
            // An agent of an earlier version does not say how it failed.
            ServiceState::Backoff if report.failure.is_none() => self.event(Some(id), what()),
            ServiceState::Backoff | ServiceState::Waiting | ServiceState::Fetching | ServiceState::Starting | ServiceState::Stopping => {}
        }
    }
}

/// Whether a service failed since the report before.
fn has_failed(before: Option<&ServiceReport>, report: &ServiceReport) -> bool {
    match (&report.failure, before) {
        // It may have been started again since.
        (Some(failure), Some(before)) => before.failure.as_ref().is_none_or(|known| known.at != failure.at),
        (None, Some(before)) => report.state == ServiceState::Backoff && (before.state, before.restarts) != (report.state, report.restarts),
        (_, None) => report.state == ServiceState::Backoff,
    }
}
