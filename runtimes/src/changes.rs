//! What taking one description of a cluster instead of another changes.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_config::Workers;
use cloudtik_model::report::Java;
use cloudtik_model::spec::{JobRules, Steps};
use cloudtik_model::status::{Change, Plan};
use cloudtik_model::{Bytes, MoneyPerHour, NodeId, NodeTypeName, Resources, RuntimeName, ServiceKey, goal};

use crate::manifest::Submit;
use crate::planner::{Availability, Error, NodeContext, Planner, View, Wanted};

/// Fills in every template for a node of every type: what cannot be planned shows here, not on a node.
pub fn check(planner: &Planner) -> Result<(), Error> {
    planner.check_memory()?;
    for node in sample_nodes(planner) {
        planner.plan(&sample_view(), &node, &BTreeSet::new(), &everything_here)?;
        if node.id.is_head() {
            planner.check_jobs(&sample_view(), &node, &everything_here)?;
        }
    }
    Ok(())
}

fn sample_view() -> View {
    View { head_address: "127.0.0.1".to_owned(), bus: "127.0.0.1:7070".to_owned() }
}

fn sample_nodes(planner: &Planner) -> Vec<NodeContext> {
    let types = planner.cluster().workers.keys().cloned();
    let node = |id: NodeId, node_type| NodeContext {
        id,
        node_type,
        address: "127.0.0.2".to_owned(),
        resources: Resources { cpus: 2, memory: Bytes(2 << 30), gpus: 0 },
        home: "/node".to_owned(),
        artifacts: "/artifacts".to_owned(),
        javas: vec![Java { home: "/java".to_owned(), major: 99 }],
    };
    std::iter::once(node(NodeId::head(), NodeTypeName::head())).chain(types.map(|t| node(NodeId::worker(&t, 1), t))).collect()
}

fn everything_here(wanted: &Wanted) -> Availability {
    let digest = format!("{:?}", wanted.source);
    Availability::Here(goal::Artifact { name: wanted.name.clone(), digest, size: 0 })
}

type Place = (NodeTypeName, ServiceKey);
type Services = BTreeMap<Place, goal::Service>;

/// Services by node type, as they would be.
fn services(planner: &Planner) -> Services {
    let mut all = BTreeMap::new();
    for node in sample_nodes(planner) {
        let plan = planner.plan(&sample_view(), &node, &BTreeSet::new(), &everything_here);
        for service in plan.into_iter().flat_map(|p| p.services) {
            all.insert((node.node_type.clone(), service.key.clone()), service);
        }
    }
    all
}

/// The services of a runtime that are in `these` and not in `those`; with the node type if others of them are in both.
fn places(name: &RuntimeName, these: &Services, those: &Services) -> String {
    let missing = these.keys().filter(|place| place.1.runtime == *name && !those.contains_key(*place));
    let describe = |(node_type, key): &Place| {
        let is_moved = those.keys().any(|(_, other)| other == key);
        if is_moved { format!("{key} on {node_type}") } else { key.to_string() }
    };
    missing.map(describe).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

/// How a runtime takes jobs.
fn jobs<'a>(planner: Option<&'a Planner>, name: &RuntimeName) -> Option<&'a Submit> {
    planner?.catalog().get(name)?.submit.as_ref()
}

/// A change of services counts as working on a node when it has for this long, at the least.
const SHORTEST_TRIAL: u64 = 5_000;

/// How long it takes until what is wrong with a service, or with its health check, shows: until its check fails so often in
/// a row that it counts as unhealthy.
fn trial(service: &goal::Service) -> u64 {
    let check = service.health.as_ref().map_or(0, |h| h.interval_ms.saturating_mul(u64::from(h.failures)).saturating_add(h.timeout_ms));
    SHORTEST_TRIAL.max(check)
}

/// What taking `new` instead of `old` changes, and how the nodes take it.
pub fn compare(old: Option<&Planner>, new: &Planner) -> (Plan, Steps) {
    let mut changes = Vec::new();
    let mut note = |action: &str, what: String, detail: String| {
        changes.push(Change { disturbs: matches!(action, "destroy" | "restart"), action: action.to_owned(), what, detail });
    };
    let none = BTreeMap::new();
    let (before, after) = (old.map_or(&none, |p| &p.cluster().workers), &new.cluster().workers);
    for (name, workers) in after {
        match before.get(name) {
            None if workers.min == 0 => note("create", format!("node type {name}"), describe(workers)),
            None => note("create", format!("{} of type {name}", count(workers.min)), shape(workers)),
            Some(known) if known != workers => {
                // A machine keeps the shape that it was made with, and what it costs.
                let has = |of: &Workers| (of.cpus, of.memory, of.gpus, of.resources.clone());
                let costs = |of: &Workers| (of.price, of.spot.as_ref().map(|spot| spot.price));
                let reach = match (has(known) == has(workers), costs(known) == costs(workers)) {
                    (true, true) => "",
                    (true, false) => "; the new price is for new nodes, those that are there keep theirs",
                    (false, true) => "; the new shape is for new nodes",
                    (false, false) => "; the new shape and price are for new nodes",
                };
                note("change", format!("node type {name}"), format!("{} → {}{reach}", describe(known), describe(workers)));
            }
            Some(_) => {}
        }
    }
    for (name, workers) in before.iter().filter(|(name, _)| !after.contains_key(*name)) {
        note("destroy", format!("node type {name}"), describe(workers));
    }
    let versions = |planner: &Planner| -> BTreeMap<RuntimeName, String> {
        planner.versions().map(|(name, version)| (name.clone(), version.to_owned())).collect()
    };
    let (had, has) = (old.map(versions).unwrap_or_default(), versions(new));
    let (ran, runs) = (old.map(services).unwrap_or_default(), services(new));
    let keys = |all: &Services, pick: &dyn Fn(&Place, &goal::Service) -> bool| -> BTreeSet<ServiceKey> {
        all.iter().filter(|(place, service)| pick(place, service)).map(|((_, key), _)| key.clone()).collect()
    };
    let restarted = keys(&runs, &|place, s| ran.get(place).is_some_and(|known| known.process_identity() != s.process_identity()));
    let adjusted = keys(&runs, &|place, s| ran.get(place).is_some_and(|known| known != s));
    let ended = keys(&ran, &|place, _| !runs.contains_key(place) && (place.0 == NodeTypeName::head() || after.contains_key(&place.0)));
    let begun = keys(&runs, &|place, _| !ran.contains_key(place) && (place.0 == NodeTypeName::head() || before.contains_key(&place.0)));
    for (name, version) in &has {
        let of = |all: &BTreeSet<ServiceKey>| {
            let names: Vec<String> = all.iter().filter(|key| key.runtime == *name).map(ToString::to_string).collect();
            (!names.is_empty()).then(|| names.join(", "))
        };
        let Some(known) = had.get(name) else {
            note("create", format!("runtime {name}"), format!("version {version}"));
            continue;
        };
        if of(&ended).is_some() {
            note("destroy", format!("services of {name}"), places(name, &ran, &runs));
        }
        if of(&begun).is_some() {
            note("create", format!("services of {name}"), places(name, &runs, &ran));
        }
        if let Some(services) = of(&restarted) {
            note("restart", format!("runtime {name}"), format!("restarts {services}, node by node"));
        } else if known != version {
            note("change", format!("runtime {name}"), format!("{known} → {version}"));
        } else if let Some(services) = of(&adjusted) {
            note("change", format!("runtime {name}"), format!("{services}; nothing restarts"));
        }
        if of(&ended).is_none()
            && of(&begun).is_none()
            && of(&adjusted).is_none()
            && known == version
            && jobs(old, name) != jobs(Some(new), name)
        {
            note("change", format!("runtime {name}"), "how jobs are run".to_owned());
        }
    }
    for name in had.keys().filter(|name| !has.contains_key(*name)) {
        note("destroy", format!("runtime {name}"), String::new());
    }
    if let Some(old) = old {
        let (a, b) = (old.cluster(), new.cluster());
        if a.max_workers != b.max_workers {
            note("change", "max_workers".to_owned(), format!("{} → {}", a.max_workers, b.max_workers));
        }
        if a.jobs != b.jobs {
            note("change", "jobs".to_owned(), job_rules(&a.jobs, &b.jobs));
        }
        if a.idle_after != b.idle_after {
            let seconds = |span: std::time::Duration| format!("{} s", span.as_secs());
            note("change", "idle_after".to_owned(), format!("{} → {}", seconds(a.idle_after), seconds(b.idle_after)));
        }
        for scaling in &b.scaling {
            let name = &scaling.policy.name;
            match a.scaling.iter().find(|known| known.policy.name == *name) {
                None => note("create", format!("scaling policy {name}"), scaling.policy.to_string()),
                Some(known) if known.policy != scaling.policy => {
                    note("change", format!("scaling policy {name}"), format!("{} → {}", known.policy, scaling.policy));
                }
                Some(_) => {}
            }
        }
        for gone in a.scaling.iter().filter(|known| !b.scaling.iter().any(|s| s.policy.name == known.policy.name)) {
            note("change", format!("scaling policy {}", gone.policy.name), "ends".to_owned());
        }
        if a.head.dead_man_timer != b.head.dead_man_timer {
            note("change", "head.dead_man_timer".to_owned(), "for workers that are made from now on".to_owned());
        }
        if a.head.record != b.head.record {
            note("change", "head.record".to_owned(), "from the next start of the head on".to_owned());
        }
        if a.head.certificate_lifetime != b.head.certificate_lifetime {
            let hours = |lifetime: std::time::Duration| format!("{:.1} h", lifetime.as_secs_f64() / 3600.0);
            let change = format!("{} → {}", hours(a.head.certificate_lifetime), hours(b.head.certificate_lifetime));
            note("change", "the lifetime of certificates".to_owned(), change);
        }
        if a.budget != b.budget {
            let say = |m: Option<MoneyPerHour>| m.map_or_else(|| "none".to_owned(), |m| m.to_string());
            note("change", "budget".to_owned(), format!("{} → {}", say(a.budget), say(b.budget)));
        }
    }
    let prices: Vec<MoneyPerHour> = after.values().filter_map(|w| Some(w.price?.times(w.min))).collect();
    let price = (!prices.is_empty()).then(|| prices.into_iter().sum());
    // Nodes that are there run what they ran; without an older description nothing runs that could suffer.
    let mut trials = BTreeMap::new();
    if old.is_some() {
        let is_there = |name: &NodeTypeName| *name == NodeTypeName::head() || (before.contains_key(name) && after.contains_key(name));
        let changed = runs.iter().filter(|(place, service)| ran.get(place) != Some(service)).map(|(place, s)| (place, trial(s)));
        let gone = ran.keys().filter(|place| !runs.contains_key(*place)).map(|place| (place, SHORTEST_TRIAL));
        for ((name, _), span) in changed.chain(gone).filter(|((name, _), _)| is_there(name)) {
            let longest: &mut u64 = trials.entry(name.clone()).or_default();
            *longest = (*longest).max(span);
        }
    }
    (Plan { changes, price, conflicts: Vec::new() }, Steps { rolling: !restarted.is_empty(), trials })
}

fn count(n: u32) -> String {
    if n == 1 { "1 worker".to_owned() } else { format!("{n} workers") }
}

fn shape(workers: &Workers) -> String {
    let mut parts = Vec::new();
    parts.extend(workers.cpus.map(|c| if c == 1 { "1 cpu".to_owned() } else { format!("{c} cpus") }));
    parts.extend(workers.memory.map(|m| m.to_string()));
    parts.extend(workers.gpus.filter(|n| *n > 0).map(|n| if n == 1 { "1 gpu".to_owned() } else { format!("{n} gpus") }));
    parts.extend(workers.resources.iter().map(|(name, n)| format!("{n} {name}")));
    parts.extend(workers.price.map(|p| p.to_string()));
    if let Some(spot) = &workers.spot {
        let price = spot.price.map(|price| format!(" at {price}")).unwrap_or_default();
        parts.push(format!("spot{price}{}", if spot.or_on_demand { " or on-demand" } else { "" }));
    }
    if !workers.zones.is_empty() {
        parts.push(format!("in {}", workers.zones.join(", ")));
    }
    if workers.priority != 0 {
        parts.push(format!("priority {}", workers.priority));
    }
    parts.join(", ")
}

fn describe(workers: &Workers) -> String {
    let range = if workers.min == workers.max { workers.min.to_string() } else { format!("{} to {}", workers.min, workers.max) };
    let shape = shape(workers);
    if shape.is_empty() { range } else { format!("{range} ({shape})") }
}

/// What changes of how jobs are treated.
fn job_rules(before: &JobRules, after: &JobRules) -> String {
    let seconds = |rules: &JobRules| format!("{} s", rules.keep_for_ms / 1_000);
    let of = |name: &str, differs: bool, from: String, to: String| differs.then(|| format!("{name} {from} → {to}"));
    let changes = [
        of("parallel", before.parallel != after.parallel, before.parallel.to_string(), after.parallel.to_string()),
        of("keep", before.keep != after.keep, before.keep.to_string(), after.keep.to_string()),
        of("keep_for", before.keep_for_ms != after.keep_for_ms, seconds(before), seconds(after)),
        of("log_limit", before.log_limit != after.log_limit, before.log_limit.to_string(), after.log_limit.to_string()),
    ];
    changes.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
