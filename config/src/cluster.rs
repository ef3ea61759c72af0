//! Cluster files.

use std::collections::BTreeMap;
use std::time::Duration;

use cloudtik_model::{Bytes, ClusterName, MoneyPerHour, NodeTypeName, RuntimeName};

use crate::diagnostics::InvalidFile;
use crate::reader::{At, Problems, Scalar, Table, nearest, read_file};

/// The workspace of a cluster that names none.
pub const DEFAULT_WORKSPACE: &str = "default";
/// Workers of a type that says nothing of their number.
pub const DEFAULT_MIN: u32 = 1;
/// More nodes than any provider gives; a larger number is a slip.
pub const MOST_WORKERS: u64 = 100_000;

/// A day: a stolen certificate is soon worth nothing, and a head that is away for a night bricks nobody.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Lifetimes that make sense.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(30 * 24 * 3600);

/// Node and instance ids are made of the type's name, an ordinal and a generation.
const MOST_TYPE_LETTERS: usize = 40;

/// The providers by kind, and whether this build can use them.
const PROVIDERS: [(&str, bool); 7] =
    [("local", true), ("virtual", false), ("on-premise", false), ("aws", false), ("azure", false), ("gcp", false), ("kubernetes", false)];

/// A validated description of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub name: ClusterName,
    pub workspace: ClusterName,
    pub max_workers: u32,
    pub budget: Option<MoneyPerHour>,
    pub provider: Provider,
    pub head: Head,
    pub workers: BTreeMap<NodeTypeName, Workers>,
    pub runtimes: Vec<RuntimeUse>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    Local,
}

impl Provider {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local => "local",
        }
    }
}

/// The head's own shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub cpus: Option<u32>,
    pub memory: Option<Bytes>,
    /// How long certificates of nodes, and the head's own, are good for; they are renewed when a third of that is left.
    pub certificate_lifetime: Duration,
}

impl Default for Head {
    fn default() -> Self {
        Self { cpus: None, memory: None, certificate_lifetime: DEFAULT_LIFETIME }
    }
}

/// One type of worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    pub min: u32,
    pub max: u32,
    pub cpus: Option<u32>,
    pub memory: Option<Bytes>,
    pub price: Option<MoneyPerHour>,
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
    pub properties: BTreeMap<String, Scalar>,
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
            let help = Some("from \"10s\" to \"30d\"; shorter ones mean more renewals, longer ones are worth more to a thief".to_owned());
            problems.note(lifetime.span.clone(), "`head.certificate_lifetime` is out of range", help);
        }
        let head = Head {
            cpus: integer32(&mut table, "cpus", 1, 4096),
            memory: table.parse("memory").map(|m| m.value),
            certificate_lifetime: lifetime.map_or(DEFAULT_LIFETIME, |l| l.value),
        };
        table.finish();
        head
    });
    let provider = read_provider(root, problems);
    let workers = read_workers(root, problems);
    let runtimes = read_runtimes(root);
    for policy in root.tables("scaling") {
        policy.problem(
            "scaling policies are not part of this version",
            Some("scale by hand: `cloudtik scale CLUSTER --workers N`".to_owned()),
        );
        // Its keys are of no interest then.
    }
    let sum: u32 = workers.values().map(|w| w.max).sum();
    let mut table = root.require_table("cluster")?;
    let name = table.require::<ClusterName>("name", "\"demo\"");
    let workspace = table.parse("workspace").map(|w| w.value);
    let max_workers = table.integer("max_workers", 0, MOST_WORKERS);
    let budget: Option<At<MoneyPerHour>> = table.parse("budget");
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
        for (name, _) in workers.iter().filter(|(_, w)| w.price.is_none()) {
            let help = Some(format!("add price = \"0.40/h\" to [workers.{name}]"));
            let message = format!("`cluster.budget` cannot be kept while the node type {name} has no price");
            problems.note(budget.span.clone(), message, help);
        }
    }
    Some(Cluster {
        name: name?.value,
        workspace: workspace.unwrap_or_else(|| ClusterName::new(DEFAULT_WORKSPACE).expect("a valid name")),
        max_workers: max_workers.map_or(sum, |m| m.value as u32),
        budget: budget.map(|b| b.value),
        provider: provider?,
        head: head.unwrap_or_default(),
        workers,
        runtimes,
    })
}

fn read_provider(root: &mut Table<'_>, problems: &Problems) -> Option<Provider> {
    let mut table = root.require_table("provider")?;
    let kind = table.require_text("kind", "\"local\"")?;
    match kind.value.as_str() {
        "local" => {
            table.finish();
            Some(Provider::Local)
        }
        other if PROVIDERS.iter().any(|(known, _)| *known == other) => {
            problems.note(
                kind.span,
                format!("the provider `{other}` is not part of this version"),
                Some("this build has: local".to_owned()),
            );
            None
        }
        other => {
            let names = PROVIDERS.iter().map(|(name, _)| *name);
            let help = nearest(other, names.clone()).map(|near| format!("did you mean `{near}`?"));
            let help = help.unwrap_or_else(|| format!("providers: {}", names.collect::<Vec<_>>().join(", ")));
            problems.note(kind.span, format!("there is no provider `{other}`"), Some(help));
            None
        }
    }
}

fn read_workers(root: &mut Table<'_>, problems: &Problems) -> BTreeMap<NodeTypeName, Workers> {
    let mut types = BTreeMap::new();
    let Some(mut all) = root.table("workers") else { return types };
    for name in all.names::<NodeTypeName>() {
        let Some(mut table) = all.table(name.value.as_str()) else { continue };
        if name.value.as_str().len() > MOST_TYPE_LETTERS {
            let help = Some("nodes are named after their type, and node names are host names".to_owned());
            problems.note(name.span.clone(), format!("a node type has at most {MOST_TYPE_LETTERS} characters"), help);
        }
        if name.value.as_str() == NodeTypeName::HEAD {
            problems.note(name.span, "`head` is not a type of worker", Some("the head's shape is in the table [head]".to_owned()));
            continue;
        }
        let min = table.integer("min", 0, MOST_WORKERS);
        let max = table.integer("max", 0, MOST_WORKERS);
        let least = min.as_ref().map_or(DEFAULT_MIN, |m| m.value as u32);
        if let Some(max) = max.as_ref().filter(|max| max.value < u64::from(least)) {
            let help = Some(format!("raise `max` to at least {least}, or lower `min`"));
            problems.note(max.span.clone(), format!("`workers.{}.max` is {}, less than `min`, {least}", name.value, max.value), help);
        }
        let workers = Workers {
            min: least,
            max: max.map_or(least, |m| m.value as u32),
            cpus: integer32(&mut table, "cpus", 1, 4096),
            memory: table.parse("memory").map(|m| m.value),
            price: table.parse("price").map(|p| p.value),
        };
        table.finish();
        types.insert(name.value, workers);
    }
    types
}

fn read_runtimes(root: &mut Table<'_>) -> Vec<RuntimeUse> {
    let mut runtimes = Vec::new();
    let Some(mut all) = root.table("runtimes") else { return runtimes };
    for name in all.names::<RuntimeName>() {
        let Some(mut table) = all.table(name.value.as_str()) else { continue };
        if name.value.is_own() {
            table.problem(format!("no runtime may be called `{}`: that is the cluster itself", name.value), None);
        }
        let mut properties = BTreeMap::new();
        if let Some(mut inner) = table.table("properties") {
            for key in inner.names::<String>() {
                if let Some(value) = inner.scalar(&key.value) {
                    properties.insert(key.value, value.value);
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
        let text = "[cluster]\nnmae = \"demo\"\n[provider]\nkind = \"lokal\"\n[workers.default]\nmin = \"2\"\nmin_worker = 3\nmemory = \"2 apples\"\n";
        let problems = Cluster::read("c.toml", text).expect_err("broken").problems;
        let messages: Vec<&str> = problems.iter().map(|p| p.message.as_str()).collect();
        assert_eq!(problems.len(), 6, "{messages:#?}");
    }
}
