//! What agents report of their services, as events that say what happened and why.

use std::collections::BTreeMap;

use cloudtik_model::NodeId;
use cloudtik_model::event::{Event, EventKind, LOG_DETAIL};
use cloudtik_model::report::{ServiceReport, ServiceState};

use crate::Brain;

/// So many starts of a service that fails the same way are stored with the last lines of its log each: later ones say the
/// same again.
const STARTS_WITH_LOG: u32 = 3;

impl Brain {
    /// Stores what changed of a service since the report before.
    pub(crate) fn note_service(&mut self, id: &NodeId, before: Option<&ServiceReport>, report: &ServiceReport) {
        let last = before.and_then(|b| b.failure.as_ref());
        // A failure may have come and gone between two reports. What an earlier head was told is no news, unless it lasts.
        let lasts = matches!(report.state, ServiceState::Backoff | ServiceState::Stopping);
        let is_news = |at| last.map(|l| l.at) != Some(at) && (before.is_some() || lasts);
        if let Some(failure) = report.failure.as_ref().filter(|f| is_news(f.at)) {
            let is_other = last.is_none_or(|l| l.cause != failure.cause);
            let details = if is_other || report.restarts <= STARTS_WITH_LOG { log_of(report) } else { BTreeMap::new() };
            let topic = format!("{} {}", report.key, failure.cause);
            self.service_event(id, format!("{} {}", report.key, failure.describe()), topic, details);
        }
        if before.map(|b| b.state) == Some(report.state) {
            return;
        }
        let topic = format!("{} is {}", report.key, report.state.name());
        match report.state {
            ServiceState::Ready | ServiceState::Stopped => self.service_event(id, plain_state(report), topic, BTreeMap::new()),
            ServiceState::Unhealthy => self.service_event(id, plain_state(report), topic, log_of(report)),
            // An agent of an earlier version does not say how it failed.
            ServiceState::Backoff if report.failure.is_none() => self.service_event(id, report.sentence(), topic, BTreeMap::new()),
            ServiceState::Backoff | ServiceState::Waiting | ServiceState::Fetching | ServiceState::Starting | ServiceState::Stopping => {}
        }
    }

    fn service_event(&mut self, id: &NodeId, message: String, topic: String, details: BTreeMap<String, String>) {
        let generation = self.nodes.get(id).map(|n| n.record.generation);
        let at = self.clock.wall();
        let kind = EventKind::Service;
        let event = Event { position: 0, at, node: Some(id.clone()), generation, kind, actor: None, message, details, topic: Some(topic) };
        self.step.records.push(crate::Record::Event(event));
    }
}

/// The state by itself: that it failed before has an event of its own.
fn plain_state(report: &ServiceReport) -> String {
    let detail = if report.detail.is_empty() { String::new() } else { format!(": {}", report.detail) };
    format!("{} is {}{detail}", report.key, report.state.name())
}

/// The last lines of its log as details of an event.
pub(crate) fn log_of(report: &ServiceReport) -> BTreeMap<String, String> {
    if report.log.is_empty() {
        return BTreeMap::new();
    }
    BTreeMap::from([(LOG_DETAIL.to_owned(), report.log.join("\n"))])
}
