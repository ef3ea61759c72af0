//! `runtime.toml`: what a runtime needs, fetches, runs, probes and offers.

pub mod properties;
mod read;

use std::collections::BTreeMap;
use std::time::Duration;

use cloudtik_config::RuntimeUse;
use cloudtik_config::diagnostics::InvalidFile;
use cloudtik_config::reader::{Scalar, read_file};
pub use cloudtik_model::goal::{DrainBy, Read};
use cloudtik_model::policy::Counts;
use cloudtik_model::spec::{Membership, Role};
use cloudtik_model::{Bytes, NodeTypeName, RuntimeName, ServiceKey, ServiceName};

use properties::{HandThrough, Property};

/// The files of a runtime by their path in the folder.
pub type Folder = BTreeMap<String, String>;

/// An element of `submit.command` that stands for the arguments that the options become.
pub(crate) const OPTIONS: &str = "{{ job.options }}";
/// An element of `submit.command` that stands for what runs a file of its kind.
pub(crate) const RUN: &str = "{{ job.run }}";

/// A validated runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub name: RuntimeName,
    /// The version that is run unless the cluster file names another.
    pub version: String,
    pub summary: String,
    /// The oldest Java (major version) that its services can run on.
    pub java: Option<u32>,
    /// The least memory of a worker that runs it.
    pub memory: Option<Bytes>,
    pub artifacts: BTreeMap<String, Artifact>,
    pub services: Vec<Service>,
    pub signals: BTreeMap<String, Signal>,
    pub submit: Option<Submit>,
    /// Which properties that are not declared are handed through to the runtime's own configuration; others are refused.
    pub hand_through: HandThrough,
    /// What a cluster file may set and templates use.
    pub properties: BTreeMap<String, Property>,
    /// The folder's other files, for templates.
    pub templates: BTreeMap<String, String>,
}

/// Software that the runtime needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    pub source: Source,
    /// Symbolic links that are made, in place of what is there: both paths in the artifact.
    pub links: Vec<Link>,
    /// Files and directories that are not needed and left out: paths in the artifact.
    pub exclude: Vec<String>,
    /// Symbolic links that lead to nothing and are not needed: paths in the artifact, or their beginnings followed by `*`.
    pub dangling: Vec<String>,
}

/// Where software comes from. Texts may be templates of `version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A source distribution from the Python package index, unpacked in parts.
    PipSdist { requirement: String, parts: Vec<Part> },
    /// Packages from the Python package index with what they depend on, as an import directory.
    Pip { requirements: Vec<String> },
    /// Debian packages, unpacked without installing them.
    Apt { packages: Vec<String> },
    /// An archive (`.tar`, `.tar.gz`, `.tar.xz`, `.tgz`) or a single file, with its SHA-256.
    Url { url: String, sha256: String },
}

/// A symbolic link of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    pub at: String,
    pub to: String,
}

/// Part of an archive: the directory `from` becomes `to`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub from: String,
    pub to: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub name: ServiceName,
    pub role: Role,
    /// Services that must be ready before this one starts.
    pub after: Vec<ServiceKey>,
    pub ports: BTreeMap<String, u16>,
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// Path in the service's directory → the template's name.
    pub files: BTreeMap<String, String>,
    pub directories: Vec<String>,
    pub readiness: Option<Probe>,
    pub health: Option<Probe>,
    pub stop_signal: i32,
    pub stop_grace: Duration,
    pub limits: Limits,
    pub metrics: Vec<Metrics>,
    pub console: Option<Console>,
    /// How much it does: 0 is idle.
    pub work: Option<Gauge>,
    pub drain: Option<Drain>,
    pub membership: Option<Membership>,
}

/// A number that is read from a service's own answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gauge {
    pub url: String,
    pub read: Read,
    pub interval: Duration,
    pub timeout: Duration,
}

/// A number that scaling policies may follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    pub summary: String,
    /// The service that gives it.
    pub service: ServiceName,
    pub counts: Counts,
    pub gauge: Gauge,
}

/// How a service lets its work go before it is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    pub by: DrainBy,
    pub timeout: Duration,
}

/// What a service may use at most; enforced where the agent may. Texts may be templates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Such as `512MiB`.
    pub memory: Option<String>,
    /// Cores, such as `1.5`.
    pub cpus: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    pub check: Check,
    pub interval: Duration,
    pub timeout: Duration,
    pub failures: u32,
    /// What a service that answers and is not ready yet waits for, in the runtime's words.
    pub waiting: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    Tcp { address: String },
    Http { url: String, status: u16, pointer: Option<String>, equals: Option<Scalar> },
    Command { command: Vec<String> },
}

/// Where a service's metrics are scraped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    pub port: String,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    pub title: String,
    pub url: String,
}

/// How a job is run, on the head's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submit {
    /// The uploaded file is `{{ job.file }}`; its arguments are appended. `{{ job.options }}` and `{{ job.run }}`, each an
    /// element of its own, stand for what the options become and for what runs a file of its kind.
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// The service whose directory and files the job sees.
    pub service: ServiceName,
    /// What of a job must fit on one worker.
    pub part: Option<JobPart>,
    /// The ending of a file's name → what runs such a file. Empty if every file is run alike.
    pub files: BTreeMap<String, Vec<String>>,
    /// The options of `cloudtik submit` that it takes.
    pub options: BTreeMap<String, SubmitOption>,
}

/// An option of `cloudtik submit`, and what it becomes. Texts are templates of `value` and `values`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubmitOption {
    pub arguments: Vec<String>,
    /// The arguments stand once for all its values, not once for each.
    pub together: bool,
    /// Each value is `NAME=VALUE` and becomes a variable of the job's environment as well.
    pub environment: bool,
    /// The endings of the files that it is for; empty is all.
    pub files: Vec<String>,
}

/// The part of a job that runs on one worker. Texts may be templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPart {
    /// What the runtime calls it, such as `executor`.
    pub name: String,
    /// Cores, such as `1.5`.
    pub cpus: Option<String>,
    /// Such as `512MiB` or `512m`.
    pub memory: Option<String>,
    /// What to do when it fits on no worker.
    pub advice: String,
}

impl Manifest {
    /// Reads the manifest of a folder. `origin` is what problems call the folder.
    pub fn read(origin: &str, folder: &Folder) -> Result<Self, InvalidFile> {
        let text = folder.get("runtime.toml").map(String::as_str);
        let file = format!("{origin}/runtime.toml");
        let Some(text) = text else {
            let problem = cloudtik_config::Problem {
                span: 0..0,
                message: format!("{file} does not exist"),
                help: Some("`cloudtik runtime new NAME` makes a folder to start from".to_owned()),
            };
            return Err(InvalidFile::new(file, "", vec![problem]));
        };
        let templates: BTreeMap<String, String> =
            folder.iter().filter(|(path, _)| *path != "runtime.toml").map(|(p, t)| (p.clone(), t.clone())).collect();
        read_file(&file, text, |root, problems| read::read_manifest(root, problems, templates))
    }

    /// The property of this name or alias.
    pub fn property(&self, name: &str) -> Option<&Property> {
        let aliased = || self.properties.values().find(|p| p.alias.as_deref() == Some(name));
        self.properties.get(name).or_else(aliased)
    }

    /// What a cluster file sets a property to, and by which name: the runtime's own name counts before the property's.
    pub fn set_by<'a>(&'a self, name: &'a str, used: &'a RuntimeUse) -> Option<(&'a str, &'a cloudtik_config::cluster::Property)> {
        let alias = self.properties.get(name).and_then(|p| p.alias.as_deref());
        alias.into_iter().chain([name]).find_map(|key| Some((key, used.properties.get(key)?)))
    }

    /// The values of all properties.
    pub fn values(&self, used: &RuntimeUse) -> BTreeMap<&str, Scalar> {
        let value = |name: &str, property: &Property| {
            let set = self.set_by(name, used).and_then(|(_, set)| property.check(&set.value).ok());
            set.unwrap_or_else(|| property.default.clone())
        };
        self.properties.iter().map(|(name, property)| (name.as_str(), value(name, property))).collect()
    }

    /// What the cluster file sets and the manifest does not declare: for the runtime's own configuration.
    pub fn extra<'a>(&self, used: &'a RuntimeUse) -> BTreeMap<&'a str, String> {
        let extra = used.properties.iter().filter(|(key, _)| self.property(key).is_none());
        extra.map(|(key, set)| (key.as_str(), set.value.to_string())).collect()
    }

    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|s| s.name == *name)
    }

    /// Whether one of its services runs on workers of a type.
    pub fn runs_on_workers(&self, node_type: &NodeTypeName) -> bool {
        self.services.iter().any(|s| s.role != Role::Head && s.role.covers(node_type))
    }

    pub fn key(&self, service: &Service) -> ServiceKey {
        ServiceKey::new(self.name.clone(), service.name.clone())
    }
}

/// Cores as people write them, in thousandths.
pub fn parse_cpus(text: &str) -> Option<u64> {
    let cpus: f64 = text.trim().parse().ok()?;
    (0.01..=10_000.0).contains(&cpus).then_some((cpus * 1_000.0) as u64)
}
