//! Services that fail, with the last lines of their logs: for `status`, `why`, and for whoever waits for a cluster.

use std::collections::BTreeMap;

use cloudtik_model::NodeId;
use cloudtik_model::report::FailureCause;
use cloudtik_model::status::{Service, Status};
use serde::Serialize;

/// A service that fails, or that has been starting for so long that its log is shown.
#[derive(Serialize)]
pub struct Failing<'a> {
    pub node: &'a NodeId,
    #[serde(flatten)]
    pub service: &'a Service,
}

/// Every failing service of a cluster.
pub fn failing(status: &Status) -> Vec<Failing<'_>> {
    let all = status.nodes.iter().flat_map(|node| node.services.iter().map(|service| Failing { node: &node.id, service }));
    all.filter(|f| is_failing(f.service)).collect()
}

pub fn is_failing(service: &Service) -> bool {
    service.failure.is_some() || !service.log.is_empty() || service.state == "unhealthy"
}

impl Failing<'_> {
    /// What is wrong, and below it the last lines of the log.
    pub fn lines(&self) -> Vec<String> {
        let restarts = self.restarts().map(|n| format!("; {n}")).unwrap_or_default();
        let mut lines = vec![format!("{} on {}: {}{restarts}", self.service.name, self.node, self.service.description)];
        lines.extend(log_lines("  last lines of its log:", &self.service.log));
        lines
    }

    /// What is left to say where the states of services that are not ready have been said already.
    pub fn lines_beside_states(&self) -> Vec<String> {
        if self.service.state == "ready" {
            return self.lines();
        }
        let restarts = self.restarts().map(|n| format!(" ({n})")).unwrap_or_default();
        log_lines(&format!("last lines of the log of {} on {}{restarts}:", self.service.name, self.node), &self.service.log)
    }

    fn restarts(&self) -> Option<String> {
        match self.service.restarts {
            0 => None,
            1 => Some("1 restart so far".to_owned()),
            n => Some(format!("{n} restarts so far")),
        }
    }
}

/// The last lines of a log under a heading of their own.
pub fn log_lines(heading: &str, log: &[String]) -> Vec<String> {
    if log.is_empty() {
        return Vec::new();
    }
    std::iter::once(heading.to_owned()).chain(log.iter().map(|line| format!("  | {line}"))).collect()
}

/// Remembers what was shown to somebody who waits: a failure is shown once, and again when it is another.
#[derive(Default)]
pub struct Shown(BTreeMap<(NodeId, String), (Option<FailureCause>, Vec<String>)>);

impl Shown {
    /// The lines about failures that were not shown yet.
    pub fn news(&mut self, status: &Status) -> Vec<String> {
        let mut lines = Vec::new();
        for failing in failing(status) {
            let key = (failing.node.clone(), failing.service.name.clone());
            let cause = failing.service.failure.as_ref().map(|f| f.cause.clone());
            let is_known = self.0.get(&key).is_some_and(|(known, log)| *known == cause && (cause.is_some() || !log.is_empty()));
            if is_known {
                continue;
            }
            lines.extend(failing.lines());
            self.0.insert(key, (cause, failing.service.log.clone()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudtik_model::Timestamp;
    use cloudtik_model::report::{ServiceFailure, ServiceReport, ServiceState};

    fn status(service: Service) -> Status {
        let node = serde_json::json!({
            "id": "w1", "kind": "worker", "type": "default", "generation": 1, "state": "preparing", "address": null, "instance": null,
            "since": 0, "heartbeat_age_ms": null, "agent": null, "cpus": null, "memory": null, "runtimes": {}, "services": [service],
        });
        let head = serde_json::json!({ "address": "h", "epoch": 1, "version": "1", "pid": 1, "started": 0 });
        let document = serde_json::json!({
            "cluster": "c", "phase": "converging", "ready": false, "revision": 1, "waiting_for": [], "alarms": [],
            "head": head, "nodes": [node], "runtimes": [],
        });
        serde_json::from_value(document).expect("a status")
    }

    fn service(failure: Option<(FailureCause, u64)>, log: &[&str]) -> Service {
        Service::of(&ServiceReport {
            key: "queue/q".parse().expect("a key"),
            state: if failure.is_some() { ServiceState::Backoff } else { ServiceState::Ready },
            detail: String::new(),
            pid: None,
            restarts: 3,
            since: Timestamp(0),
            goal_version: 1,
            gauges: BTreeMap::new(),
            failure: failure.map(|(cause, restart_in_ms)| ServiceFailure { cause, at: Timestamp(0), restart_in_ms }),
            log: log.iter().map(ToString::to_string).collect(),
        })
    }

    #[test]
    fn a_failure_is_shown_with_its_log_once_and_again_when_it_is_another() {
        let crash = |code: i32| FailureCause::Crashed { exit_code: Some(code), how: format!("exit {code}") };
        let mut shown = Shown::default();
        assert!(shown.news(&status(service(None, &[]))).is_empty());
        let lines = shown.news(&status(service(Some((crash(1), 200)), &["cannot bind", "giving up"])));
        assert_eq!(
            lines,
            [
                "queue/q on w1: crashed (exit 1); restarts in 200 ms; 3 restarts so far",
                "  last lines of its log:",
                "  | cannot bind",
                "  | giving up",
            ]
        );
        assert!(shown.news(&status(service(Some((crash(1), 400)), &["cannot bind", "giving up again"]))).is_empty(), "the same");
        assert!(!shown.news(&status(service(Some((crash(2), 400)), &[]))).is_empty(), "another");
        let crashed = status(service(Some((crash(1), 200)), &["cannot bind"]));
        let beside: Vec<String> = failing(&crashed).iter().flat_map(Failing::lines_beside_states).collect();
        assert_eq!(beside, ["last lines of the log of queue/q on w1 (3 restarts so far):", "  | cannot bind"]);
        let document = serde_json::to_value(failing(&status(service(Some((crash(1), 200)), &["x"])))).expect("JSON");
        assert_eq!(document[0]["node"], "w1");
        assert_eq!(document[0]["failure"]["cause"], "crashed");
        assert_eq!(document[0]["failure"]["exit_code"], 1);
        assert_eq!(document[0]["log"][0], "x");
    }
}
