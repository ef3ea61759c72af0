//! Wire messages to and from the plain types, each exhaustively.

use cloudtik_model::Timestamp;
use cloudtik_model::demand::Quantity;
use cloudtik_model::report::{Load, ServiceReport, ServiceState};

use crate::wire;

/// A message whose content is not what its type promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {problem}")]
pub struct Malformed {
    pub what: &'static str,
    pub problem: String,
}

impl Malformed {
    pub fn new(what: &'static str, problem: impl ToString) -> Self {
        Self { what, problem: problem.to_string() }
    }
}

pub fn report_to_wire(report: &ServiceReport) -> wire::ServiceReport {
    wire::ServiceReport {
        key: report.key.to_string(),
        state: state_to_wire(report.state).into(),
        detail: report.detail.clone(),
        pid: report.pid.unwrap_or(0),
        restarts: report.restarts,
        since: report.since.0,
        goal_version: report.goal_version,
        gauges: report.gauges.iter().map(|(name, value)| (name.clone(), value.0)).collect(),
    }
}

/// Reads a report. A state that a newer agent knows and we do not is skipped, not refused.
pub fn report_from_wire(report: &wire::ServiceReport) -> Result<Option<ServiceReport>, Malformed> {
    let key = report.key.parse().map_err(|e| Malformed::new("report", e))?;
    let Some(state) = wire::ServiceState::try_from(report.state).ok().and_then(state_from_wire) else {
        return Ok(None);
    };
    Ok(Some(ServiceReport {
        key,
        state,
        detail: report.detail.clone(),
        pid: (report.pid != 0).then_some(report.pid),
        restarts: report.restarts,
        since: Timestamp(report.since),
        goal_version: report.goal_version,
        gauges: report.gauges.iter().map(|(name, value)| (name.clone(), Quantity(*value).min(Quantity::MOST))).collect(),
    }))
}

/// A node's load as shares of what it has.
pub fn load_from_wire(load: &wire::Load) -> Load {
    let share = |part: u64, whole: u64| part.saturating_mul(1_000).checked_div(whole).map_or(0, |n| n.min(1_000) as u32);
    Load {
        cpu: load.cpu_permille.min(1_000),
        memory: share(load.memory_used, load.memory_total),
        gpu: load.gpu_permille.map(|n| n.min(1_000)),
    }
}

fn state_to_wire(state: ServiceState) -> wire::ServiceState {
    match state {
        ServiceState::Waiting => wire::ServiceState::Waiting,
        ServiceState::Fetching => wire::ServiceState::Fetching,
        ServiceState::Starting => wire::ServiceState::Starting,
        ServiceState::Ready => wire::ServiceState::Ready,
        ServiceState::Unhealthy => wire::ServiceState::Unhealthy,
        ServiceState::Backoff => wire::ServiceState::Backoff,
        ServiceState::Stopping => wire::ServiceState::Stopping,
        ServiceState::Stopped => wire::ServiceState::Stopped,
    }
}

fn state_from_wire(state: wire::ServiceState) -> Option<ServiceState> {
    Some(match state {
        wire::ServiceState::Unspecified => return None,
        wire::ServiceState::Waiting => ServiceState::Waiting,
        wire::ServiceState::Fetching => ServiceState::Fetching,
        wire::ServiceState::Starting => ServiceState::Starting,
        wire::ServiceState::Ready => ServiceState::Ready,
        wire::ServiceState::Unhealthy => ServiceState::Unhealthy,
        wire::ServiceState::Backoff => ServiceState::Backoff,
        wire::ServiceState::Stopping => ServiceState::Stopping,
        wire::ServiceState::Stopped => ServiceState::Stopped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn reports_survive_the_wire() {
        for state in 1..=8 {
            let wire = wire::ServiceReport {
                key: "spark/worker".to_owned(),
                state,
                detail: "x".to_owned(),
                pid: 7,
                restarts: 2,
                since: 9,
                goal_version: 3,
                gauges: [("work".to_owned(), 1_500)].into(),
            };
            let plain = report_from_wire(&wire).expect("well formed").expect("known state");
            assert_eq!(report_to_wire(&plain), wire);
        }
    }

    #[test]
    fn what_a_newer_peer_adds_is_ignored() {
        let newer = wire::ServiceReport { key: "a/b".to_owned(), state: 99, ..Default::default() };
        assert_eq!(report_from_wire(&newer), Ok(None));
        // A topic with a number that we do not know: field 15, length-delimited, two bytes.
        let frame = wire::AgentFrame::decode(&[0x7a, 2, 1, 2][..]).expect("decodes");
        assert_eq!(frame.topic, None);
        assert!(report_from_wire(&wire::ServiceReport { key: "../x".to_owned(), state: 1, ..Default::default() }).is_err());
    }

    #[test]
    fn a_heartbeat_is_tens_of_bytes() {
        let frame =
            wire::AgentFrame { topic: Some(wire::agent_frame::Topic::Heartbeat(wire::Heartbeat { sequence: u64::MAX, load: None })) };
        assert!(frame.encoded_len() <= 16, "{}", frame.encoded_len());
    }
}
