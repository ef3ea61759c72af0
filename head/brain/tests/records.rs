//! Stored records: every version that was ever stored is read, and what is stored carries no words that are decided by.
//!
//! A record whose form changes gets another golden file beside those that are there: `UPDATE_GOLDEN=1` writes the newest ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cloudtik_brain::access::{Acceptance, GrantRecord, Revocation};
use cloudtik_brain::{ClusterRecord, Hold, JobRecord, Learned, Pause, Planned, PolicyWant, Rollout, RolloutFailure};
use cloudtik_model::access;
use cloudtik_model::demand::{Bundle, Counted, Quantity, RequestedCapacity, ResourceRequest};
use cloudtik_model::event::{Event, Launch, Purpose, StateName, TypeChoice, What};
use cloudtik_model::goal::Limits;
use cloudtik_model::job::{Attempt, Cancellation, JobEnd, JobFile, JobOption, JobOptionValue, JobSpec, JobState, Loss, Work};
use cloudtik_model::node::{DialOutcome, Evidence, EvidenceKind, NodeRecord, NodeState};
use cloudtik_model::outlook::{
    BeyondMax, Blocked, LoadLevel, NamedRequest, Outlook, PolicySays, PolicyView, PolicyWait, ShortageCause, SignalProblem, Source,
    TypeOutlook, UnavailableOffer, Unmet, UnmetCause,
};
use cloudtik_model::policy::{Counts, Hours, Metric, Policy, Rule, Workers};
use cloudtik_model::reason::{InstanceReport, Obstacle, Reason, ServiceProblem, Trouble};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::report::FailureCause;
use cloudtik_model::spec::{Market, Membership, Offer, Role, ServicePlacement, Spec, Spot, WorkerType};
use cloudtik_model::{Actor, Bytes, Generation, JobId, MoneyPerHour, NodeId, NodeTypeName, Resources, ServiceKey, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The version of the records that is stored now.
const VERSION: u32 = 1;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn w1() -> NodeId {
    NodeId::new("w1").expect("valid")
}

fn default_type() -> NodeTypeName {
    NodeTypeName::new("default").expect("valid")
}

fn web() -> ServiceKey {
    "web/web".parse().expect("a key")
}

fn crashed() -> FailureCause {
    FailureCause::Crashed { exit_code: Some(1), how: "exit 1".to_owned() }
}

fn events() -> Vec<Event> {
    let evidence = vec![
        Evidence { at: Timestamp(1), kind: EvidenceKind::HeartbeatsMissed { for_ms: 4_000 } },
        Evidence { at: Timestamp(2), kind: EvidenceKind::DialBack { outcome: DialOutcome::Refused } },
        Evidence { at: Timestamp(3), kind: EvidenceKind::Provider { says: InstanceReport::Stopped } },
    ];
    let choice = TypeChoice::AsFor { node: w1() };
    let launch = Launch {
        node: w1(),
        generation: Generation(2),
        offer: Offer::default(),
        purpose: Purpose::Room { needs: Vec::new(), requests: vec!["job".to_owned()], choice },
        replaces: Some((w1(), Generation(1))),
    };
    let quorum = Obstacle::QuorumNeedsIt { service: web(), up: 1, members: 3, needed: 2 };
    let all = vec![
        What::HeadStarted { epoch: 1 },
        What::StateChanged { from: StateName::Ready, to: StateName::Draining, why: Reason::NotNeeded },
        What::NodeDown { evidence },
        What::Launch(Box::new(launch)),
        What::Hold { reason: "the network moves".to_owned() },
        What::Refused { refusal: Refusal::CannotDrain { node: w1(), why: quorum } },
        What::ServiceFailed { service: web(), failure: crashed(), restart_in_ms: 200 },
    ];
    let event =
        |what| Event { node: Some(w1()), generation: Some(Generation(1)), actor: Some(Actor::LOCAL), ..Event::new(Timestamp(7), what) };
    all.into_iter().map(event).collect()
}

fn nodes() -> Vec<NodeRecord> {
    let states = [
        NodeState::Requested,
        NodeState::Ready,
        NodeState::Suspect { evidence: vec![Evidence { at: Timestamp(1), kind: EvidenceKind::HeadLag { by_ms: 9 } }] },
        NodeState::Draining { reason: Reason::DrainedOnRequest },
        NodeState::Terminating { reason: Reason::ProviderReports { instance: InstanceReport::NotListed } },
        NodeState::Failed { reason: Reason::ServiceFailed { service: web(), tries: 5, cause: Some(crashed()), detail: String::new() } },
        NodeState::Quarantined { reason: Reason::Quarantined { reason: "its disk is slow".to_owned() } },
    ];
    let node = |life| NodeRecord { life, ..NodeRecord::requested(w1(), Generation(1), default_type(), Timestamp(7)) };
    states.map(node).into()
}

fn clusters() -> Vec<ClusterRecord> {
    let pause = Pause { until: Timestamp(9), reason: Reason::CreateFailed { error: "no permission".to_owned() }, times: 2 };
    let problem = ServiceProblem::NotReadyInTime {
        within_s: 600,
        problem: Some(Box::new(ServiceProblem::Failed { service: web(), cause: crashed() })),
    };
    let failed = RolloutFailure { revision: 3, node: w1(), generation: Generation(1), since: Timestamp(8), problem };
    let former = spec();
    let filled = ClusterRecord {
        spec: Some(Spec { revision: 4, ..spec() }),
        stopping: true,
        held: Some(Hold { since: Timestamp(7), reason: String::new() }),
        paused: BTreeMap::new(),
        immediate: BTreeMap::from([(default_type(), 2)]),
        when_idle: BTreeSet::from([default_type()]),
        former_drains: BTreeMap::from([(default_type(), 30_000)]),
        policy_wants: BTreeMap::from([(
            "busy".to_owned(),
            PolicyWant { node_type: default_type(), count: 3, changed: Some((Timestamp(6), true)), factor: 2 },
        )]),
        learned: BTreeMap::from([(default_type(), Learned { from: 5, resources: resources(), smaller: 1 })]),
        rollout: Some(Rollout { from: Some(Box::new(former)), failed: None }),
        last_job: JobId(9),
    };
    let paused = ClusterRecord {
        held: Some(Hold { since: Timestamp(7), reason: "the network moves".to_owned() }),
        paused: BTreeMap::from([(default_type(), pause)]),
        rollout: Some(Rollout { from: None, failed: Some(failed) }),
        ..ClusterRecord::default()
    };
    vec![paused, filled]
}

fn resources() -> Resources {
    Resources { cpus: 4, memory: Bytes(16 << 30), gpus: 1 }
}

/// A description that says everything.
fn spec() -> Spec {
    let workers = WorkerType {
        min: 1,
        max: 8,
        price: Some(MoneyPerHour(400_000)),
        resources: Some(resources()),
        custom: BTreeMap::from([("licence".to_owned(), 2)]),
        priority: -1,
        zones: vec!["a".to_owned()],
        spot: Some(Spot { price: Some(MoneyPerHour(100_000)), or_on_demand: true }),
    };
    let placement = |role| ServicePlacement {
        key: web(),
        role,
        after: vec![web()],
        membership: Some(Membership { quorum: true, minimum: 3 }),
        drain_ms: 30_000,
    };
    let hours = Hours { days: vec![0, 4], from: 480, until: 60, time_zone: "Europe/Berlin".to_owned() };
    let rules = [
        Rule::Load { metric: Metric::Cpu, high: 800, low: 200, window_ms: 60_000 },
        Rule::Schedule { hours, workers: Workers::AtLeast(3) },
        Rule::Signal { signal: "batch.waiting".to_owned(), per_worker: Quantity(1_500), counts: Counts::Waiting },
    ];
    let policy = |rule| Policy { name: "busy".to_owned(), node_type: default_type(), least: 1, most: 8, pause_ms: 60_000, rule };
    Spec {
        revision: 3,
        workers: BTreeMap::from([(default_type(), workers)]),
        max_workers: 8,
        budget: Some(MoneyPerHour(3_000_000)),
        services: [Role::Head, Role::Workers, Role::All, Role::NodeType(default_type())].map(placement).into(),
        policies: rules.map(policy).into(),
        rolling: true,
        trials: BTreeMap::from([(default_type(), 60_000)]),
        ..Spec::default()
    }
}

fn requests() -> Vec<ResourceRequest> {
    let bundles = RequestedCapacity::Bundles { bundles: vec![counted()], gang: true, spread: true };
    let workers = RequestedCapacity::Workers { node_type: default_type(), count: 3 };
    let more = RequestedCapacity::More { node_type: default_type(), count: 1 };
    let request = |number, wants| ResourceRequest {
        name: format!("request-{number}"),
        number,
        at: Timestamp(7),
        until: Some(Timestamp(9)),
        wants,
        reason: "the nightly run".to_owned(),
    };
    vec![request(1, bundles), request(2, workers), ResourceRequest { until: None, ..request(3, more) }]
}

fn counted() -> Counted {
    let resources = BTreeMap::from([("licence".to_owned(), Quantity::ONE)]);
    Counted { bundle: Bundle { cpus: Quantity(500), memory: Bytes(1 << 30), gpus: Quantity::ONE, resources }, count: 4 }
}

fn plans() -> Vec<Vec<Planned>> {
    vec![vec![Planned { request: 1, bundle: 0, count: 2 }, Planned { request: 2, bundle: 1, count: 1 }]]
}

fn outlooks() -> Vec<Outlook> {
    let hours = Hours { days: vec![5], from: 0, until: 1_440, time_zone: "UTC".to_owned() };
    let views = [
        PolicyView::UnknownTimeZone { time_zone: "Mars/Olympus".to_owned() },
        PolicyView::ScheduleOn { hours: hours.clone() },
        PolicyView::ScheduleOff { hours },
        PolicyView::LoadUnknown { metric: Metric::Cpu, window_s: 60 },
        PolicyView::Load { metric: Metric::Memory, percent: 90, nodes: 2, window_s: 60, level: LoadLevel::Above { percent: 80 } },
        PolicyView::Load { metric: Metric::Gpu, percent: 40, nodes: 2, window_s: 60, level: LoadLevel::Between { low: 20, high: 80 } },
        PolicyView::SignalUnknown { signal: "waiting".to_owned(), cause: SignalProblem::Unreadable { node: w1() } },
        PolicyView::Signal { signal: "waiting".to_owned(), value: Quantity(2_500), at_work: Some(1) },
    ];
    let says = |sees| PolicySays {
        sees,
        beyond_max: Some(BeyondMax { asked: 9, max: 8 }),
        waits: Some(PolicyWait { count: 2, until: Timestamp(9), flaps: true }),
    };
    let policies = views.into_iter().map(says).enumerate().map(|(n, says)| (format!("policy-{n}"), says)).collect::<BTreeMap<_, _>>();
    let requests =
        vec![NamedRequest { name: "request-2".to_owned(), wants: RequestedCapacity::Workers { node_type: default_type(), count: 3 } }];
    let policy = Source::Policy { policy: "policy-4".to_owned(), count: 3, says: policies["policy-4"].clone() };
    let offer = Offer { market: Market::Spot, ..Offer::default() };
    let quota = ShortageCause::Quota { error: "too many".to_owned() };
    let workers = TypeOutlook {
        present: 2,
        wanted: 3,
        for_room: 1,
        sources: vec![policy, Source::Requests { count: 3, requests }, Source::Minimum { count: 1 }, Source::Limits { count: 2 }],
        blocked: vec![Blocked::Unavailable { offers: vec![UnavailableOffer { offer, why: quota }] }, Blocked::NotOffered],
        surplus: BTreeMap::from([(w1(), Obstacle::QuorumNeedsIt { service: web(), up: 1, members: 3, needed: 2 })]),
        troubles: BTreeMap::from([(w1(), Trouble::CreateFailed { error: "no permission".to_owned() })]),
    };
    let why = vec![
        UnmetCause::ClusterMaximum { max: 8 },
        UnmetCause::BudgetLeaves { budget: MoneyPerHour(3_000_000), left: MoneyPerHour(1) },
        UnmetCause::Blocked { types: vec![default_type()], by: Blocked::ResourcesUnknown },
        UnmetCause::Quarantined { nodes: vec![w1()] },
        UnmetCause::MachinesInUse,
        UnmetCause::TriedLater { times: 2 },
    ];
    vec![Outlook {
        at: Timestamp(7),
        types: BTreeMap::from([(default_type(), workers)]),
        unmet: vec![Unmet { source: "request-1".to_owned(), what: vec![counted()], why }],
        policies,
        held: Some(Blocked::OnHold { reason: "the network moves".to_owned() }),
        cost: MoneyPerHour(800_000),
    }]
}

fn grants() -> Vec<GrantRecord> {
    let offered = GrantRecord {
        number: 1,
        name: "ada".parse().expect("valid"),
        role: access::Role::Operator,
        granted_at: Timestamp(7),
        granted_by: Actor::LOCAL,
        expires: Timestamp(900),
        token: "ab".repeat(32),
        accept_by: Timestamp(90),
        accepted: None,
        revoked: None,
    };
    let accepted = Acceptance { at: Timestamp(8), key: "cd".repeat(32), from: "10.0.0.7".to_owned() };
    let by = Actor::Administrator { name: "eve".parse().expect("valid"), role: access::Role::Admin };
    let revoked = Revocation { at: Timestamp(9), by };
    vec![
        GrantRecord { number: 2, role: access::Role::Viewer, accepted: Some(accepted), revoked: Some(revoked), ..offered.clone() },
        offered,
    ]
}

fn jobs() -> Vec<JobRecord> {
    let spark = Work::Runtime {
        runtime: "spark".parse().ok(),
        options: vec![
            JobOption { name: "conf".to_owned(), value: JobOptionValue::Text("a=b".to_owned()) },
            JobOption { name: "py-files".to_owned(), value: JobOptionValue::File("lib.zip".to_owned()) },
        ],
    };
    let file = |name: &str| JobFile { name: name.to_owned(), size: 9, digest: "0a".to_owned() };
    let spec = |work| JobSpec {
        name: "nightly".parse().ok(),
        submission: "s-1".to_owned(),
        work,
        arguments: vec!["10".to_owned()],
        environment: BTreeMap::from([("K".to_owned(), "V".to_owned())]),
        files: vec![file("pi.py"), file("lib.zip")],
        limits: Limits { memory: Some(1 << 30), cpu_millis: Some(500) },
        timeout_ms: Some(60_000),
        retries: 2,
    };
    let ends = [
        JobEnd::Succeeded,
        JobEnd::Failed { exit_code: 3 },
        JobEnd::Killed { signal: 9, out_of_memory: true },
        JobEnd::TimedOut,
        JobEnd::Cancelled,
        JobEnd::NotStarted { why: "no such file".to_owned() },
        JobEnd::Lost { why: Loss::Node },
    ];
    let attempt = |end: &JobEnd| Attempt { number: 1, started: Some(Timestamp(8)), ended: Timestamp(9), end: end.clone(), lost_output: 5 };
    let job = |work, state, history: Vec<Attempt>| JobRecord {
        id: JobId(1),
        name: "nightly".parse().expect("valid"),
        spec: spec(work),
        needs: Some("spark/master".parse().expect("a key")),
        by: Actor::LOCAL,
        submitted: Timestamp(7),
        state,
        attempt: 1,
        history,
        cancelled: Some(Cancellation { at: Timestamp(8), by: Actor::LOCAL }),
    };
    let states = [
        JobState::Queued { not_before: None },
        JobState::Queued { not_before: Some(Timestamp(9)) },
        JobState::Starting { since: Timestamp(8), generation: Generation(1) },
        JobState::Running { started: Timestamp(8), generation: Generation(1), pid: 77 },
    ];
    let command = || Work::Command { program: "sleep".to_owned() };
    let open = states.map(|state| job(spark.clone(), state, Vec::new()));
    let ended = ends.map(|end| job(command(), JobState::Ended { at: Timestamp(9), end: end.clone() }, vec![attempt(&end)]));
    open.into_iter().chain(ended).collect()
}

fn blocks() -> Vec<Blocked> {
    vec![Blocked::OnHold { reason: String::new() }, Blocked::Paused { why: Reason::OfferGone }, Blocked::TypeMaximum { max: 3, leaving: 1 }]
}

/// Reads every version of a record, and compares the newest with how it is stored now.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, now: &[T]) {
    let newest = golden().join(format!("{name}-{VERSION}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&newest, serde_json::to_string_pretty(now).expect("JSON") + "\n").expect("writable");
    }
    for version in 1..=VERSION {
        let text = fs::read_to_string(golden().join(format!("{name}-{version}.json"))).expect("a golden file of each version");
        let read: Vec<T> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name} of version {version}: {error}"));
        assert!(!read.is_empty());
        if version == VERSION {
            assert_eq!(read, now, "{name}");
            let stored: Value = serde_json::to_value(now).expect("JSON");
            assert_eq!(stored, serde_json::from_str::<Value>(&text).expect("JSON"), "{name} is stored otherwise: it needs another version");
        }
    }
}

#[test]
fn records_of_every_version_are_read_and_the_newest_is_how_they_are_stored() {
    check("event", &events());
    check("node", &nodes());
    check("cluster", &clusters());
    check("blocked", &blocks());
    check("job", &jobs());
    check("request", &requests());
    check("planned", &plans());
    check("outlook", &outlooks());
    check("grant", &grants());
}

/// Texts are for people: the brain decides, and the simulation checks, by types.
#[test]
fn nothing_that_decides_or_checks_searches_texts() {
    let mut found = Vec::new();
    let mut folders =
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../simulation/src")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                files += 1;
                let text = fs::read_to_string(&entry).expect("a text");
                let decides = text.split("#[cfg(test)]").next().unwrap_or_default();
                let searches =
                    |line: &&str| [".contains(\"", ".starts_with(\"", ".ends_with(\"", ".find(\""].iter().any(|of| line.contains(of));
                found.extend(decides.lines().filter(searches).map(|line| format!("{}: {}", entry.display(), line.trim())));
            }
        }
    }
    assert!(files > 60, "it looks at {files} files");
    assert!(found.is_empty(), "{found:#?}");
}
