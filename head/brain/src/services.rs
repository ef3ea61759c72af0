//! What agents report of their services, as events that say what happened and why.

use cloudtik_model::NodeId;
use cloudtik_model::event::What;
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
