//! The status document, from what the brain sees and what the planner and the artifact store know.

use std::collections::BTreeMap;

use cloudtik_brain::{NodeView, Snapshot};
use cloudtik_model::alarm::Alarm;
use cloudtik_model::node::NodeState;
use cloudtik_model::report::ServiceState;
use cloudtik_model::software::Fetch;
use cloudtik_model::spec::Spec;
use cloudtik_model::status::{Agent, Head, Node, Phase, Runtime, Service, Status};
use cloudtik_model::{NodeTypeName, Resources, RuntimeName, Timestamp};
use cloudtik_protocol::VERSION;
use cloudtik_runtimes::{NodeContext, Planner, View};

use crate::settings::Settings;

/// Of what is waited for, and of alarms, so many are named.
const MAX_LINES: usize = 1_000;

/// What a status is made from.
pub struct Sources<'a> {
    pub settings: &'a Settings,
    pub started: Timestamp,
    pub snapshot: &'a Snapshot,
    pub planner: Option<&'a Planner>,
    pub view: &'a View,
    /// What is being fetched.
    pub fetching: Vec<Fetch>,
}

pub fn compose(sources: &Sources<'_>) -> Status {
    let snapshot = sources.snapshot;
    let mut waiting_for: Vec<String> = sources.fetching.iter().map(Fetch::to_string).collect();
    waiting_for.extend(snapshot.waiting_for.iter().map(ToString::to_string));
    bound(&mut waiting_for, |more| format!("{more} more"));
    let mut alarms: Vec<Alarm> = snapshot.alarms.iter().cloned().chain(job_alarms(sources)).collect();
    bound(&mut alarms, |count| Alarm::More { count });
    let spec = snapshot.cluster.spec.as_ref();
    Status {
        cluster: sources.settings.cluster.clone(),
        phase: snapshot.phase,
        ready: snapshot.phase == Phase::Ready,
        revision: spec.map_or(0, |s| s.revision),
        lacks_only_room: snapshot.lacks_only_room && sources.fetching.is_empty(),
        waiting_for,
        fetching: sources.fetching.clone(),
        alarms,
        head: Head {
            address: sources.view.bus.clone(),
            epoch: snapshot.epoch,
            version: VERSION.to_owned(),
            pid: std::process::id(),
            started: sources.started,
            software_limit: sources.planner.map(|planner| planner.cluster().head.software_limit),
        },
        jobs: snapshot.jobs.clone(),
        nodes: snapshot.nodes.iter().filter(|n| n.record.life != NodeState::Gone).map(|n| node(n, spec)).collect(),
        runtimes: runtimes(sources, spec),
    }
}

/// Leaves out what nobody would read, and says how much it is.
fn bound<T>(lines: &mut Vec<T>, rest: impl FnOnce(usize) -> T) {
    let more = lines.len().saturating_sub(MAX_LINES);
    if more > 0 {
        lines.truncate(MAX_LINES);
        lines.push(rest(more));
    }
}

fn node(view: &NodeView, spec: Option<&Spec>) -> Node {
    let record = &view.record;
    let placed: Vec<_> = spec.iter().flat_map(|s| s.services_on(&record.node_type)).map(|p| p.key.clone()).collect();
    let services: Vec<_> = view.services.values().filter(|s| placed.contains(&s.key) || s.state != ServiceState::Stopped).collect();
    let mut runtimes: BTreeMap<RuntimeName, ServiceState> = BTreeMap::new();
    for service in services.iter().filter(|s| placed.contains(&s.key)) {
        let worst = runtimes.entry(service.key.runtime.clone()).or_insert(service.state);
        if *worst == ServiceState::Ready {
            *worst = service.state;
        }
    }
    Node {
        id: record.id.clone(),
        kind: if record.id.is_head() { "head" } else { "worker" }.to_owned(),
        node_type: record.node_type.clone(),
        generation: record.generation,
        state: record.life.name().to_string(),
        reason: undeletable(view).or_else(|| reason(&record.life)).or_else(|| not_heard(view)),
        address: record.address.clone(),
        instance: record.instance.clone(),
        since: record.since,
        heartbeat_age_ms: view.silent_for,
        agent: view.facts.as_ref().map(|f| Agent {
            version: f.agent_version.clone(),
            pid: f.agent_pid,
            home: f.home.clone(),
            health_port: f.health_port,
        }),
        cpus: view.facts.as_ref().map(|f| f.cpus),
        memory: view.facts.as_ref().map(|f| f.memory.0),
        runtimes: runtimes.into_iter().map(|(name, state)| (name, state.name().to_owned())).collect(),
        services: services.into_iter().map(Service::of).collect(),
    }
}

/// A node that this head has not heard yet is what the last one knew of it.
fn not_heard(view: &NodeView) -> Option<String> {
    let is_expected = matches!(view.record.life, NodeState::Preparing | NodeState::Ready);
    (is_expected && view.link.is_none()).then(|| "no heartbeat since the head started".to_owned())
}

/// A node that is to go and whose machine stays.
fn undeletable(view: &NodeView) -> Option<String> {
    let why = view.undeletable.as_ref()?;
    let reason = reason(&view.record.life).map(|reason| format!("{reason}; ")).unwrap_or_default();
    Some(format!("{reason}not deletable: {why}"))
}

fn reason(life: &NodeState) -> Option<String> {
    match life {
        NodeState::Suspect { evidence } | NodeState::Down { evidence } => evidence.last().map(|e| e.kind.to_string()),
        NodeState::Draining { reason }
        | NodeState::Terminating { reason }
        | NodeState::Failed { reason }
        | NodeState::Quarantined { reason } => Some(reason.to_string()),
        NodeState::Requested | NodeState::Launched | NodeState::Joined | NodeState::Preparing | NodeState::Ready | NodeState::Gone => None,
    }
}

fn runtimes(sources: &Sources<'_>, spec: Option<&Spec>) -> Vec<Runtime> {
    let (Some(planner), Some(spec)) = (sources.planner, spec) else { return Vec::new() };
    let nodes: Vec<NodeContext> = sources.snapshot.nodes.iter().filter(|n| !n.record.life.is_leaving()).filter_map(context).collect();
    planner
        .versions()
        .map(|(name, version)| {
            let (mut placed, mut ready) = (0, 0);
            for node in sources.snapshot.nodes.iter().filter(|n| !n.record.life.is_leaving()) {
                for placement in spec.services_on(&node.record.node_type).filter(|p| p.key.runtime == *name) {
                    placed += 1;
                    ready += usize::from(node.services.get(&placement.key).is_some_and(|s| s.state == ServiceState::Ready));
                }
            }
            let state = if ready == placed { "ready".to_owned() } else { format!("{ready} of {placed} ready") };
            let endpoints = planner.endpoints(name, sources.view, &nodes);
            Runtime { name: name.clone(), version: version.to_owned(), state, endpoints, endpoints_left_out: 0 }
        })
        .collect()
}

/// What the workers that are there have, by type.
fn workers(snapshot: &Snapshot) -> Vec<(NodeTypeName, Resources)> {
    snapshot.nodes.iter().filter_map(worker).collect()
}

/// What a worker has, if it is there.
pub fn worker(node: &NodeView) -> Option<(NodeTypeName, Resources)> {
    let is_there = !node.record.id.is_head() && !node.record.life.is_leaving();
    context(node).filter(|_| is_there).map(|node| (node.node_type, node.resources))
}

/// Runtimes whose jobs would wait for ever.
fn job_alarms(sources: &Sources<'_>) -> Vec<Alarm> {
    let head = sources.snapshot.nodes.iter().find(|n| n.record.id.is_head()).and_then(context);
    let (Some(planner), Some(head)) = (sources.planner, head) else { return Vec::new() };
    planner.misfits(sources.view, &head, &workers(sources.snapshot)).into_iter().map(Alarm::JobsCannotRun).collect()
}

/// A linked node as the planner sees it.
pub fn context(node: &NodeView) -> Option<NodeContext> {
    let facts = node.facts.as_ref()?;
    Some(NodeContext {
        id: node.record.id.clone(),
        node_type: node.record.node_type.clone(),
        address: facts.address.clone(),
        resources: Resources { cpus: facts.cpus, memory: facts.memory, gpus: facts.gpus },
        home: facts.home.clone(),
        artifacts: facts.artifacts.clone(),
        javas: facts.javas.clone(),
    })
}
