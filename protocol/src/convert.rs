//! Wire messages to and from the plain types, each exhaustively.

use std::collections::BTreeMap;

use cloudtik_model::Timestamp;
use cloudtik_model::demand::Quantity;
use cloudtik_model::report::{Facts, FailureCause, Load, MemoryKills, MemoryLimit, ServiceFailure, ServiceReport, ServiceState};

use crate::pki::EpochProof;
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

pub fn proof_to_wire(proof: &EpochProof) -> wire::EpochProof {
    wire::EpochProof { signature: proof.signature.clone().into(), certificate: proof.certificate.clone().into() }
}

pub fn proof_from_wire(proof: wire::EpochProof) -> EpochProof {
    EpochProof { signature: proof.signature.into(), certificate: proof.certificate.into() }
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
        failure: report.failure.as_ref().map(failure_to_wire),
        log: report.log.clone(),
    }
}

/// Services of one report, at most.
pub const MAX_SERVICES: usize = 1_024;
/// Bytes of a text in a report, such as what a probe saw.
const MAX_TEXT: usize = 1_000;
/// Numbers of one service, and bytes of the name of one.
const MAX_GAUGES: usize = 64;
const MAX_GAUGE_NAME: usize = 128;

/// Reads a report. What it says at length is cut. A state that a newer agent knows and we do not is skipped, not refused.
pub fn report_from_wire(report: &wire::ServiceReport) -> Result<Option<ServiceReport>, Malformed> {
    let key = report.key.parse().map_err(|e| Malformed::new("report", e))?;
    let Some(state) = wire::ServiceState::try_from(report.state).ok().and_then(state_from_wire) else {
        return Ok(None);
    };
    Ok(Some(ServiceReport {
        key,
        state,
        detail: bounded(&report.detail, MAX_TEXT),
        pid: (report.pid != 0).then_some(report.pid),
        restarts: report.restarts,
        since: Timestamp(report.since),
        goal_version: report.goal_version,
        gauges: gauges_from_wire(&report.gauges),
        failure: report.failure.as_ref().and_then(failure_from_wire),
        // What a node sends is shown on terminals and kept in memory: its bounds are not the node's to choose.
        log: bounded_log(report.log.iter().map(String::as_str)),
    }))
}

pub fn memory_kills_to_wire(kills: &MemoryKills) -> wire::MemoryKills {
    let service = kills.service.as_ref().map(ToString::to_string).unwrap_or_default();
    wire::MemoryKills { service, count: kills.count, of_node: kills.limit == MemoryLimit::Node }
}

pub fn memory_kills_from_wire(kills: &wire::MemoryKills) -> Result<MemoryKills, Malformed> {
    let service = (!kills.service.is_empty()).then(|| kills.service.parse()).transpose();
    let limit = if kills.of_node { MemoryLimit::Node } else { MemoryLimit::Service };
    Ok(MemoryKills { service: service.map_err(|e| Malformed::new("memory kills", e))?, count: kills.count, limit })
}

/// The first by name, so that they are the same in each report.
fn gauges_from_wire<'a>(gauges: impl IntoIterator<Item = (&'a String, &'a u64)>) -> BTreeMap<String, Quantity> {
    let named = gauges.into_iter().filter(|(name, _)| name.len() <= MAX_GAUGE_NAME);
    let sorted: BTreeMap<_, _> = named.collect();
    sorted.into_iter().take(MAX_GAUGES).map(|(name, value)| (name.clone(), Quantity(*value).min(Quantity::MAX))).collect()
}

/// Java installations of one machine, at most.
const MAX_JAVAS: usize = 64;
/// Bytes of a path.
const MAX_PATH: usize = 4_096;
/// Bytes of a name, a version or an address.
const MAX_WORD: usize = 255;

/// What an agent says of its machine, within bounds; also says how many of its Java installations are left out. What is only shown is
/// cut; a path or an address that is too long, or has control characters, cannot be a right one.
pub fn bounded_facts(facts: Facts) -> Result<(Facts, usize), Malformed> {
    let is_path = |path: &str| path.len() <= MAX_PATH && !path.chars().any(char::is_control);
    for (name, path) in [("home", &facts.home), ("artifacts", &facts.artifacts)] {
        if !is_path(path) {
            return Err(Malformed::new("facts", format!("{name} is no path of at most {MAX_PATH} bytes")));
        }
    }
    if facts.address.len() > MAX_WORD || facts.address.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Malformed::new("facts", "address is no address"));
    }
    let all = facts.javas.len();
    let javas: Vec<_> = facts.javas.into_iter().filter(|java| is_path(&java.home)).take(MAX_JAVAS).collect();
    let left_out = all - javas.len();
    let [agent_version, hostname, kernel] = [&facts.agent_version, &facts.hostname, &facts.kernel].map(|text| bounded(text, MAX_WORD));
    Ok((Facts { agent_version, hostname, kernel, javas, ..facts }, left_out))
}

/// A text without control characters, cut after so many bytes.
pub fn bounded(text: &str, max: usize) -> String {
    let mut text = printable(text);
    if text.len() > max {
        let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The last lines of a log, within the bounds of a report and without control characters.
pub fn bounded_log<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) -> Vec<String> {
    let (mut kept, mut left) = (Vec::new(), ServiceReport::MAX_LOG_BYTES);
    for line in lines.rev().take(ServiceReport::MAX_LOG_LINES) {
        let line = bounded(line, LONGEST_LINE);
        let Some(rest) = left.checked_sub(line.len()) else { break };
        left = rest;
        kept.push(line);
    }
    kept.reverse();
    kept
}

/// The most of one line, in bytes.
const LONGEST_LINE: usize = 400;

/// A line without escape sequences and other control characters, which could move a terminal's cursor or set its title.
fn printable(line: &str) -> String {
    let (mut text, mut letters) = (String::with_capacity(line.len()), line.chars().peekable());
    while let Some(letter) = letters.next() {
        match letter {
            // A control sequence ends with a letter or `~`; an operating system command with BEL or ESC \\.
            '\x1b' => match letters.next() {
                Some('[') => while letters.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                Some(']') => while letters.next().is_some_and(|c| c != '\x07' && c != '\x1b') {},
                _ => {}
            },
            '\t' => text.push(' '),
            letter if letter.is_control() => {}
            letter => text.push(letter),
        }
    }
    text
}

fn failure_to_wire(failure: &ServiceFailure) -> wire::ServiceFailure {
    use wire::service_failure::Cause;
    let cause = match &failure.cause {
        FailureCause::Crashed { exit_code, how } => Cause::Crashed(wire::Crash { exit_code: *exit_code, how: how.clone() }),
        FailureCause::Unhealthy { seen } => Cause::Unhealthy(seen.clone()),
        FailureCause::NotStarted { why } => Cause::NotStarted(why.clone()),
    };
    wire::ServiceFailure { cause: Some(cause), at: failure.at.0, restart_in_ms: failure.restart_in_ms }
}

/// A cause that a newer agent knows and this head does not is skipped.
fn failure_from_wire(failure: &wire::ServiceFailure) -> Option<ServiceFailure> {
    use wire::service_failure::Cause;
    let cause = match failure.cause.as_ref()? {
        Cause::Crashed(crash) => FailureCause::Crashed { exit_code: crash.exit_code, how: bounded(&crash.how, MAX_TEXT) },
        Cause::Unhealthy(seen) => FailureCause::Unhealthy { seen: bounded(seen, MAX_TEXT) },
        Cause::NotStarted(why) => FailureCause::NotStarted { why: bounded(why, MAX_TEXT) },
    };
    Some(ServiceFailure { cause, at: Timestamp(failure.at), restart_in_ms: failure.restart_in_ms })
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
        use wire::service_failure::Cause;
        let crash = |exit_code| Some(Cause::Crashed(wire::Crash { exit_code, how: "it ended".to_owned() }));
        let causes =
            [crash(Some(1)), crash(None), Some(Cause::Unhealthy("no answer".to_owned())), Some(Cause::NotStarted("why".to_owned()))];
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
                failure: Some(wire::ServiceFailure { cause: causes[state as usize % causes.len()].clone(), at: 4, restart_in_ms: 500 }),
                log: vec!["cannot bind".to_owned(), "giving up".to_owned()],
            };
            let plain = report_from_wire(&wire).expect("well formed").expect("known state");
            assert_eq!(report_to_wire(&plain), wire);
        }
    }

    #[test]
    fn what_the_kernel_killed_is_the_same_on_both_sides() {
        for (service, limit) in [(Some("a/b"), MemoryLimit::Service), (Some("a/b"), MemoryLimit::Node), (None, MemoryLimit::Node)] {
            let kills = MemoryKills { service: service.map(|s| s.parse().expect("a key")), count: 3, limit };
            assert_eq!(memory_kills_from_wire(&memory_kills_to_wire(&kills)).expect("well formed"), kills);
        }
        assert!(memory_kills_from_wire(&wire::MemoryKills { service: "../x".to_owned(), count: 1, of_node: false }).is_err());
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
    fn a_log_from_the_wire_is_bounded_and_printable() {
        let hostile: Vec<String> = (0..100).map(|n| format!("\x1b]0;title\x07\x1b[2J{n}\r{}", "ä".repeat(5_000))).collect();
        let report = wire::ServiceReport { key: "a/b".to_owned(), state: 6, log: hostile, ..Default::default() };
        let log = report_from_wire(&report).expect("well formed").expect("known state").log;
        assert!(!log.is_empty() && log.len() <= ServiceReport::MAX_LOG_LINES);
        assert!(log.iter().map(String::len).sum::<usize>() <= ServiceReport::MAX_LOG_BYTES);
        assert!(log.last().is_some_and(|line| line.starts_with("99ä")), "the last line is kept: {log:?}");
        assert!(log.iter().all(|line| !line.chars().any(char::is_control)), "{log:?}");
        let plain = ["one", "\x1b[31mtwo\x1b[0m\tred"];
        assert_eq!(bounded_log(plain.into_iter()), ["one", "two red"]);
    }

    #[test]
    fn what_an_agent_says_at_length_is_cut_and_what_cannot_be_true_is_refused() {
        let long = "ä\x1b[2J".repeat(100_000);
        let gauges = (0..10_000).map(|n| (format!("gauge{n}"), 1)).chain([("x".repeat(1_000), 1)]).collect();
        let cause = Some(wire::service_failure::Cause::Unhealthy(long.clone()));
        let failure = Some(wire::ServiceFailure { cause, at: 1, restart_in_ms: 1 });
        let report = wire::ServiceReport { key: "a/b".to_owned(), state: 6, detail: long.clone(), gauges, failure, ..Default::default() };
        let read = report_from_wire(&report).expect("well formed").expect("known state");
        assert!(read.detail.len() <= MAX_TEXT + 3 && !read.detail.contains('\x1b'), "{} bytes", read.detail.len());
        assert_eq!(read.gauges.len(), MAX_GAUGES);
        assert!(matches!(&read.failure.expect("a failure").cause, FailureCause::Unhealthy { seen } if seen.len() <= MAX_TEXT + 3));

        let java = cloudtik_model::report::Java { home: "/usr/lib/jvm/java-17".to_owned(), major: 17 };
        let facts = Facts {
            hostname: long.clone(),
            kernel: long.clone(),
            agent_version: long.clone(),
            javas: vec![java; 5_000],
            ..Facts::default()
        };
        let (kept, left_out) = bounded_facts(facts).expect("well formed");
        assert_eq!((kept.javas.len(), left_out), (MAX_JAVAS, 5_000 - MAX_JAVAS));
        assert!([&kept.hostname, &kept.kernel, &kept.agent_version].iter().all(|text| text.len() <= MAX_WORD + 3));
        for wrong in [
            Facts { home: "/x".repeat(10_000), ..Facts::default() },
            Facts { artifacts: "/a\n/b".to_owned(), ..Facts::default() },
            Facts { address: "10.0.0.1 10.0.0.2".to_owned(), ..Facts::default() },
        ] {
            assert_eq!(bounded_facts(wrong).map_err(|e| e.what), Err("facts"));
        }
    }

    #[test]
    fn a_heartbeat_is_tens_of_bytes() {
        let frame =
            wire::AgentFrame { topic: Some(wire::agent_frame::Topic::Heartbeat(wire::Heartbeat { sequence: u64::MAX, load: None })) };
        assert!(frame.encoded_len() <= 16, "{}", frame.encoded_len());
    }
}
