//! Cluster files.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloudtik_model::spec::{JobRules, Spot};
use cloudtik_model::{Bytes, ClusterName, MoneyPerHour, NodeTypeName, ProviderKind, RuntimeName, WorkspaceName};

use crate::diagnostics::InvalidFile;
use crate::reader::{At, Problems, Scalar, Table, read_file};
use crate::scaling::{self, Scaling};
use crate::workers::MAX_WORKERS;
pub use crate::workers::Workers;

/// The workspace of a cluster that names none.
pub const DEFAULT_WORKSPACE: &str = "default";
/// Workers of a type that says nothing of their number.
pub const DEFAULT_MIN: u32 = 1;
/// Archives of several versions of the shipped runtimes: so many bytes.
pub const DEFAULT_SOFTWARE_LIMIT: Bytes = Bytes(20 << 30);
/// A day: a stolen certificate is soon worth nothing, and a head that is away for a night locks no node out.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Lifetimes that make sense.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(30 * 24 * 3600);

/// A head that its keeper starts again, or whose machine starts again quickly, is back by then.
const MIN_DEAD_MAN: Duration = Duration::from_secs(10);

/// Peers wait from one to ten minutes; starting over is more expensive than a few minutes of a machine.
pub const DEFAULT_IDLE_AFTER: Duration = Duration::from_secs(300);
/// Resources that a cluster may name beyond cores, memory and GPUs.
const MAX_RESOURCES: usize = 5;

/// Each has its processes on the head's node.
const MAX_PARALLEL_JOBS: u64 = 1_000;
/// The head's node keeps a directory for each.
const MAX_KEPT_JOBS: u64 = 10_000;
const MAX_KEEP_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
/// The last lines of a job that fails should be in it.
const MIN_LOG_LIMIT: Bytes = Bytes(64 << 10);

/// Node and instance ids are made of the type's name, an ordinal and a generation.
const MAX_TYPE_LETTERS: usize = 40;

/// A validated description of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub name: ClusterName,
    pub workspace: WorkspaceName,
    pub max_workers: u32,
    pub budget: Option<MoneyPerHour>,
    /// Where machines come from. What else `[provider]` says is read by the provider itself.
    pub provider: ProviderKind,
    pub head: Head,
    pub workers: BTreeMap<NodeTypeName, Workers>,
    pub runtimes: Vec<RuntimeUse>,
    pub scaling: Vec<Scaling>,
    /// How long a worker that is not wanted any more must have been idle before it is scaled in.
    pub idle_after: Duration,
    pub jobs: JobRules,
}

/// The head's own shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub cpus: Option<u32>,
    pub memory: Option<Bytes>,
    /// How long certificates of nodes, and the head's own, are good for; they are renewed when a third of that is left.
    pub certificate_lifetime: Duration,
    /// Whether the brain's inputs are recorded, to be replayed.
    pub record: bool,
    /// How long a worker goes on without hearing the head; then it lets its work go and ends. For ever, if nothing is said.
    pub dead_man_timer: Option<Duration>,
    /// Beyond this, archives of software that no goal needs are removed.
    pub software_limit: Bytes,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            cpus: None,
            memory: None,
            certificate_lifetime: DEFAULT_LIFETIME,
            record: false,
            dead_man_timer: None,
            software_limit: DEFAULT_SOFTWARE_LIMIT,
        }
    }
}

/// A runtime that the cluster is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeUse {
    pub name: RuntimeName,
    /// The place of its table, for problems found later.
    pub span: std::ops::Range<usize>,
    /// A folder of the user's own, relative to the cluster file.
    pub path: Option<String>,
    pub version: Option<String>,
    /// The share of a node's memory that the runtime may plan with; the rest is for the others.
    pub memory_share: Option<f64>,
    pub properties: BTreeMap<String, Property>,
}

/// A value for a runtime, with its place for problems that are found later.
#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    pub value: Scalar,
    pub key_span: std::ops::Range<usize>,
    pub value_span: std::ops::Range<usize>,
}

impl Cluster {
    /// Reads a cluster file. `name` is what problems call it.
    pub fn read(name: &str, text: &str) -> Result<Self, InvalidFile> {
        read_file(name, text, read_cluster)
    }
}

impl Cluster {
    /// The runtimes that a text asks for, as far as it can be read, so that they can be looked at beside what is wrong.
    pub fn runtimes_in(text: &str) -> Vec<RuntimeUse> {
        let mut found = Vec::new();
        // Its problems are told by `read`.
        let _ = read_file("", text, |root, _| {
            found = read_runtimes(root);
            None::<()>
        });
        found
    }
}

fn read_cluster(root: &mut Table<'_>, problems: &Problems) -> Option<Cluster> {
    let head = root.table("head").map(|mut table| {
        let lifetime = table.duration("certificate_lifetime");
        if let Some(lifetime) = lifetime.as_ref().filter(|l| !LIFETIMES.contains(&l.value)) {
            let help = Some(
                "from \"10s\" to \"30d\"; shorter ones mean more renewals; a stolen certificate is of use for as long as it lives"
                    .to_owned(),
            );
            problems.note(lifetime.span.clone(), "`head.certificate_lifetime` is out of range", help);
        }
        let dead_man = table.duration("dead_man_timer");
        if let Some(timer) = dead_man.as_ref().filter(|timer| timer.value < MIN_DEAD_MAN) {
            let help = Some("at least 10s, so that a restart of the head does not end its workers".to_owned());
            problems.note(timer.span.clone(), "`head.dead_man_timer` is too short", help);
        }
        let head = Head {
            cpus: integer32(&mut table, "cpus", 1, 4096),
            memory: table.parse("memory").map(|m| m.value),
            certificate_lifetime: lifetime.map_or(DEFAULT_LIFETIME, |l| l.value),
            record: table.boolean("record").unwrap_or(false),
            dead_man_timer: dead_man.map(|d| d.value),
            software_limit: table.parse("software_limit").map_or(DEFAULT_SOFTWARE_LIMIT, |limit| limit.value),
        };
        table.finish();
        head
    });
    let provider = read_provider(root);
    let jobs = read_jobs(root, problems);
    let workers = read_workers(root, problems);
    let runtimes = read_runtimes(root);
    let mut table = root.require_table("cluster");
    let budget: Option<At<MoneyPerHour>> = table.as_mut().and_then(|table| table.parse("budget"));
    let max_workers = table.as_mut().and_then(|table| table.integer("max_workers", 0, MAX_WORKERS));
    let runtime_names = runtimes.iter().map(|r| &r.name).collect();
    let most = max_workers.as_ref().map(|m| m.value as u32);
    let bounds = scaling::Bounds { types: &workers, runtimes: runtime_names, max_workers: most, budget: budget.as_ref().map(|b| b.value) };
    let scaling = scaling::read(root, &bounds, problems);
    let sum: u32 = workers.values().map(|w| w.max).sum();
    let mut table = table?;
    let name = table.require::<ClusterName>("name", "\"demo\"");
    let workspace = table.parse("workspace").map(|w| w.value);
    let idle_after = table.duration("idle_after").map_or(DEFAULT_IDLE_AFTER, |i| i.value);
    table.finish();

    let minimum: u32 = workers.values().map(|w| w.min).sum();
    if let Some(max) = max_workers.as_ref().filter(|max| max.value < u64::from(minimum)) {
        problems.note(max.span.clone(), format!("`cluster.max_workers` is {}, but the types' minima add up to {minimum}", max.value), None);
    }
    if let Some(budget) = &budget {
        let least: MoneyPerHour = workers.values().filter_map(|w| Some(w.price?.times(w.min))).sum();
        if least > budget.value {
            problems.note(budget.span.clone(), format!("`cluster.budget` is {}, but the types' minima cost {least}", budget.value), None);
        }
        for (name, _) in workers.iter().filter(|(_, w)| w.price.is_none() && w.shape.is_none()) {
            let help = Some(format!("add price = \"0.40/h\" to [workers.{name}]"));
            let message = format!("`cluster.budget` cannot be kept while the node type {name} has no price");
            problems.note(budget.span.clone(), message, help);
        }
    }
    Some(Cluster {
        name: name?.value,
        workspace: workspace.unwrap_or_else(|| WorkspaceName::new(DEFAULT_WORKSPACE).expect("a valid name")),
        max_workers: max_workers.map_or(sum, |m| m.value as u32),
        budget: budget.map(|b| b.value),
        provider: provider?,
        head: head.unwrap_or_default(),
        workers,
        runtimes,
        scaling,
        idle_after,
        jobs,
    })
}

fn read_jobs(root: &mut Table<'_>, problems: &Problems) -> JobRules {
    let Some(mut table) = root.table("jobs") else { return JobRules::default() };
    let keep_for = table.duration("keep_for");
    if let Some(keep_for) = keep_for.as_ref().filter(|keep_for| keep_for.value > MAX_KEEP_FOR) {
        problems.note(keep_for.span.clone(), "`jobs.keep_for` is out of range", Some("at most \"365d\"".to_owned()));
    }
    let log_limit: Option<At<Bytes>> = table.parse("log_limit");
    if let Some(limit) = log_limit.as_ref().filter(|limit| limit.value < MIN_LOG_LIMIT) {
        problems.note(limit.span.clone(), "`jobs.log_limit` is too small", Some(format!("at least {MIN_LOG_LIMIT}")));
    }
    let rules = JobRules {
        parallel: integer32(&mut table, "parallel", 1, MAX_PARALLEL_JOBS).unwrap_or(JobRules::DEFAULT_PARALLEL),
        keep: integer32(&mut table, "keep", 0, MAX_KEPT_JOBS).unwrap_or(JobRules::DEFAULT_KEEP),
        keep_for_ms: keep_for.map_or(JobRules::DEFAULT_KEEP_FOR_MS, |keep_for| keep_for.value.as_millis() as u64),
        log_limit: log_limit.map_or(JobRules::DEFAULT_LOG_LIMIT, |limit| limit.value),
    };
    table.finish();
    rules
}

/// The kind only: the provider reads its own keys.
fn read_provider(root: &mut Table<'_>) -> Option<ProviderKind> {
    root.require_table("provider")?.require("kind", "\"local\"").map(|kind| kind.value)
}

fn read_workers(root: &mut Table<'_>, problems: &Problems) -> BTreeMap<NodeTypeName, Workers> {
    let mut types = BTreeMap::new();
    let Some(mut all) = root.table("workers") else { return types };
    for name in all.names::<NodeTypeName>() {
        let Some(mut table) = all.table(name.value.as_str()) else { continue };
        if name.value.as_str().len() > MAX_TYPE_LETTERS {
            let help = Some("nodes are named after their type, and node names are host names".to_owned());
            problems.note(name.span.clone(), format!("a node type has at most {MAX_TYPE_LETTERS} characters"), help);
        }
        if name.value.as_str() == NodeTypeName::HEAD {
            problems.note(name.span, "`head` is not a type of worker", Some("the head's shape is in the table [head]".to_owned()));
            continue;
        }
        let min = table.integer("min", 0, MAX_WORKERS);
        let max = table.integer("max", 0, MAX_WORKERS);
        let least = min.as_ref().map_or(DEFAULT_MIN, |m| m.value as u32);
        if let Some(max) = max.as_ref().filter(|max| max.value < u64::from(least)) {
            let help = Some(format!("raise `max` to at least {least}, or lower `min`"));
            problems.note(max.span.clone(), format!("`workers.{}.max` is {}, less than `min`, {least}", name.value, max.value), help);
        }
        let workers = Workers {
            min: least,
            max: max.map_or(least, |m| m.value as u32),
            shape: table.parse("shape").map(|shape| shape.value),
            cpus: integer32(&mut table, "cpus", 1, 4096),
            memory: table.parse("memory").map(|m| m.value),
            gpus: integer32(&mut table, "gpus", 0, 4096),
            resources: read_resources(&mut table),
            price: table.parse("price").map(|p| p.value),
            priority: table.integer("priority", 0, 1_000).map_or(0, |p| p.value as i32),
            zones: table.texts("zones").into_iter().map(|zone| zone.value).collect(),
            spot: read_spot(&mut table),
        };
        table.finish();
        types.insert(name.value, workers);
    }
    let names: BTreeSet<&String> = types.values().flat_map(|w| w.resources.keys()).collect();
    if names.len() > MAX_RESOURCES {
        let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
        all.problem(format!("a cluster names at most {MAX_RESOURCES} custom resources, not {}", names.join(", ")), None);
    }
    types
}

fn read_resources(table: &mut Table<'_>) -> BTreeMap<String, u32> {
    let mut resources = BTreeMap::new();
    let Some(mut inner) = table.table("resources") else { return resources };
    // Parsed as names of runtimes are: what is written on command lines.
    for name in inner.names::<RuntimeName>() {
        if ["cpus", "memory", "gpus"].contains(&name.value.as_str()) {
            let help = Some(format!("write {} beside `min` and `max`", name.value));
            inner.problem(format!("`{}` is not a custom resource", name.value), help);
        }
        if let Some(amount) = inner.integer(name.value.as_str(), 1, 1_000_000) {
            resources.insert(name.value.to_string(), amount.value as u32);
        }
    }
    resources
}

fn read_spot(table: &mut Table<'_>) -> Option<Spot> {
    let keys = ["spot", "spot_price", "or_on_demand"].into_iter().filter(|key| table.has(key)).count();
    let (spot, price, or_on_demand) = (table.boolean("spot"), table.parse("spot_price"), table.boolean("or_on_demand"));
    if spot != Some(true) {
        if keys > usize::from(spot.is_some()) {
            table.problem("`spot_price` and `or_on_demand` have no effect without `spot = true`", None);
        }
        return None;
    }
    Some(Spot { price: price.map(|p| p.value), or_on_demand: or_on_demand.unwrap_or(true) })
}

fn read_runtimes(root: &mut Table<'_>) -> Vec<RuntimeUse> {
    let mut runtimes = Vec::new();
    let Some(mut all) = root.table("runtimes") else { return runtimes };
    for name in all.names::<RuntimeName>() {
        let Some(mut table) = all.table(name.value.as_str()) else { continue };
        if name.value.is_own() {
            table.problem(format!("no runtime may be called `{}`: the name is reserved", name.value), None);
        }
        let mut properties = BTreeMap::new();
        if let Some(mut inner) = table.table("properties") {
            for key in inner.names::<String>() {
                if let Some(value) = inner.scalar(&key.value) {
                    properties.insert(key.value, Property { value: value.value, key_span: key.span, value_span: value.span });
                }
            }
        }
        runtimes.push(RuntimeUse {
            name: name.value,
            span: name.span,
            path: table.text("path").map(|p| p.value),
            version: table.text("version").map(|v| v.value),
            memory_share: table.float("memory_share", 0.01, 1.0).map(|s| s.value),
            properties,
        });
        table.finish();
    }
    runtimes
}

fn integer32(table: &mut Table<'_>, key: &str, least: u64, most: u64) -> Option<u32> {
    table.integer(key, least, most).and_then(|n| u32::try_from(n.value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_file_is_a_name_a_provider_and_what_to_run() {
        let cluster =
            Cluster::read("c.toml", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\n").expect("valid");
        assert_eq!((cluster.name.as_str(), cluster.workspace.as_str(), cluster.max_workers), ("demo", "default", 1));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text =
            "[cluster]\nnmae = \"demo\"\n[provider]\nkind = 1\n[workers.default]\nmin = \"2\"\nmin_worker = 3\nmemory = \"2 apples\"\n";
        let problems = Cluster::read("c.toml", text).expect_err("broken").problems;
        let messages: Vec<&str> = problems.iter().map(|p| p.message.as_str()).collect();
        assert_eq!(problems.len(), 6, "{messages:#?}");
    }
}
