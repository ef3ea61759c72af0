//! From manifests, cluster, view and node to what the node is to run. Pure: the same inputs give the same goal.

mod fill;
mod jobs;
mod submit;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloudtik_config::reader::Scalar;
use cloudtik_config::{Cluster, RuntimeUse};
use cloudtik_model::policy::{Policy, Rule};
use cloudtik_model::report::Java;
use cloudtik_model::spec::{Role, ServicePlacement, Spec, Steps, WorkerType};
use cloudtik_model::status::Endpoint;
use cloudtik_model::{Bytes, NodeId, NodeTypeName, Resources, RuntimeName, ServiceKey, address, goal};
use minijinja::{Value, context};

use crate::catalog::{Catalog, DEFAULT_MEMORY_SHARE, share_of};
use crate::manifest::{Manifest, Probe, Service, Source};
use crate::template::{self, Templates};
use fill::{gauges, limits, render_drain, render_probe};
pub use submit::{JobRefused, JobRequest};

/// What Debian calls this processor; nodes are taken to have the head's.
const DEBIAN_ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// The Java that is fetched where the host has none that fits.
const JAVA_PACKAGES: [(u32, &str); 1] = [(17, "openjdk-17-jre-headless")];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{service}: {what}")]
    Template { service: ServiceKey, what: &'static str, source: template::Error },
    #[error("{service}: {text:?} is no limit")]
    Limit { service: ServiceKey, text: String },
    #[error("the runtime {runtime} needs workers with {least} of memory at least; [workers.{node_type}] has {has}")]
    TooSmall { runtime: RuntimeName, least: Bytes, node_type: NodeTypeName, has: Bytes },
    #[error("no Java {0} is known to fetch")]
    NoJava(u32),
    #[error("this cluster has no runtime {0}")]
    NoRuntime(RuntimeName),
    #[error("the runtime {0} takes no jobs")]
    TakesNoJobs(RuntimeName),
    #[error("no runtime of this cluster takes jobs")]
    NoneTakesJobs,
    #[error("{0} and {1} both take jobs: say which with --runtime")]
    SeveralTakeJobs(RuntimeName, RuntimeName),
    #[error(transparent)]
    Refused(#[from] JobRefused),
}

/// One node, as far as planning goes.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeContext {
    pub id: NodeId,
    pub node_type: NodeTypeName,
    pub address: String,
    pub resources: Resources,
    /// The agent's directory.
    pub home: String,
    /// Where artifacts are unpacked by digest.
    pub artifacts: String,
    pub javas: Vec<Java>,
}

/// Who is in the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    pub head_address: String,
    /// `host:port` of the head's bus, where metrics are discovered.
    pub bus: String,
}

/// Software that a node needs, before it is known by content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// For people.
    pub name: String,
    pub source: Resolved,
    pub trimming: Trimming,
}

/// What is changed about software once it is fetched; see [`crate::manifest::Artifact`].
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trimming {
    /// Links that are made.
    pub links: Vec<crate::manifest::Link>,
    /// What is left out.
    pub exclude: Vec<String>,
    /// Links that may lead to nothing.
    pub dangling: Vec<String>,
}

/// A [`Source`] whose templates are filled in: the same text means the same software.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolved {
    PipSdist { requirement: String, parts: Vec<crate::manifest::Part> },
    Pip { requirements: Vec<String> },
    Apt { packages: Vec<String> },
    Url { url: String, sha256: String },
}

/// What is known of wanted software.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    Here(goal::Artifact),
    /// Not yet; the text says how far it is.
    Coming(String),
}

/// What a node is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub artifacts: Vec<goal::Artifact>,
    pub services: Vec<goal::Service>,
    /// Software that is not here yet.
    pub missing: Vec<Wanted>,
}

/// A job to run on the head's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub runtime: RuntimeName,
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub needs: ServiceKey,
}

/// Plans for one cluster at one revision.
#[derive(Debug, Clone)]
pub struct Planner {
    cluster: Cluster,
    catalog: Catalog,
    secrets: BTreeMap<RuntimeName, String>,
    templates: Templates,
}

/// Stands for a runtime's secret where there is no cluster that has one.
const NO_SECRET: &str = "SECRET";

impl Planner {
    pub fn new(cluster: Cluster, catalog: Catalog) -> Self {
        Self { cluster, catalog, secrets: BTreeMap::new(), templates: Templates::default() }
    }

    /// Gives every runtime the secret that its processes know each other by: `{{ secret }}` in its templates.
    pub fn with_secrets(mut self, secret: impl Fn(&RuntimeName) -> String) -> Self {
        self.secrets = self.cluster.runtimes.iter().map(|r| (r.name.clone(), secret(&r.name))).collect();
        self
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The templates of its runtimes, as far as they are compiled.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What the brain needs to know.
    pub fn spec(&self, revision: u64, steps: Steps) -> Spec {
        let workers = self.cluster.workers.iter().map(|(name, w)| {
            let resources = w.cpus.zip(w.memory).map(|(cpus, memory)| Resources { cpus, memory, gpus: w.gpus.unwrap_or(0) });
            let kind = WorkerType {
                min: w.min,
                max: w.max,
                price: w.price,
                resources,
                custom: w.resources.clone(),
                priority: w.priority,
                zones: w.zones.clone(),
                spot: w.spot.clone(),
            };
            (name.clone(), kind)
        });
        Spec {
            revision,
            workers: workers.collect(),
            max_workers: self.cluster.max_workers,
            budget: self.cluster.budget,
            services: self.used().flat_map(|(_, m)| m.services.iter().map(|s| placement(m, s))).collect(),
            jobs: self.cluster.jobs.clone(),
            policies: self.cluster.scaling.iter().map(|s| self.policy(&s.policy)).collect(),
            idle_after_ms: self.cluster.idle_after.as_millis() as u64,
            rolling: steps.rolling,
            trials: steps.trials,
        }
    }

    /// A policy as the brain takes it: what a signal counts is said by its runtime.
    fn policy(&self, policy: &Policy) -> Policy {
        let mut policy = policy.clone();
        if let Rule::Signal { signal, counts, .. } = &mut policy.rule
            && let Some(found) = self.catalog.signal(signal)
        {
            *counts = found.counts;
        }
        policy
    }

    /// Whether every type of worker has what the runtimes on it need.
    pub(crate) fn check_memory(&self) -> Result<(), Error> {
        for (_, manifest) in self.used() {
            let Some(least) = manifest.memory else { continue };
            let runs_on = |name: &NodeTypeName| manifest.services.iter().any(|s| s.role.covers(name));
            let small = self.cluster.workers.iter().find(|(name, w)| runs_on(name) && w.memory.is_some_and(|m| m < least));
            if let Some((name, workers)) = small {
                return Err(Error::TooSmall {
                    runtime: manifest.name.clone(),
                    least,
                    node_type: name.clone(),
                    has: workers.memory.unwrap_or_default(),
                });
            }
        }
        Ok(())
    }

    fn used(&self) -> impl Iterator<Item = (&RuntimeUse, &Manifest)> {
        self.cluster.runtimes.iter().filter_map(|r| Some((r, self.catalog.get(&r.name)?)))
    }

    /// The runtimes of the cluster with the versions that it runs.
    pub fn versions(&self) -> impl Iterator<Item = (&RuntimeName, &str)> {
        self.used().map(|(r, m)| (&r.name, version(r, m)))
    }

    /// What `node` is to run. Services outside `start` are held; `available` says what there is of wanted software.
    pub fn plan(
        &self,
        view: &View,
        node: &NodeContext,
        start: &BTreeSet<ServiceKey>,
        available: &dyn Fn(&Wanted) -> Availability,
    ) -> Result<Plan, Error> {
        let mut plan = Plan { artifacts: Vec::new(), services: Vec::new(), missing: Vec::new() };
        for (used, manifest) in self.used() {
            let placed: Vec<&Service> = manifest.services.iter().filter(|s| s.role.covers(&node.node_type)).collect();
            if placed.is_empty() {
                continue;
            }
            let software = self.software(used, manifest, node, available)?;
            for service in placed {
                let mut planned = self.service(used, manifest, service, view, node, &software)?;
                let key = &planned.key;
                let unmet: Vec<String> = service.after.iter().map(ToString::to_string).collect();
                if let Some(waits_for) = &software.waits_for {
                    planned.hold = true;
                    planned.waits_for = waits_for.clone();
                } else if !start.contains(key) {
                    planned.hold = true;
                    planned.waits_for = unmet.join(", ");
                }
                plan.services.push(planned);
            }
            plan.artifacts.extend(software.artifacts);
            plan.missing.extend(software.missing);
        }
        plan.artifacts.sort_by(|a, b| a.digest.cmp(&b.digest));
        plan.artifacts.dedup();
        Ok(plan)
    }

    fn software(
        &self,
        used: &RuntimeUse,
        manifest: &Manifest,
        node: &NodeContext,
        available: &dyn Fn(&Wanted) -> Availability,
    ) -> Result<Software, Error> {
        let mut software = Software::default();
        let values = context! { version => version(used, manifest) };
        for (name, artifact) in &manifest.artifacts {
            let source = self.resolve(&artifact.source, &values).map_err(|source| Error::Template {
                service: ServiceKey::new(manifest.name.clone(), manifest.services[0].name.clone()),
                what: "an artifact's source",
                source,
            })?;
            let name_and_version = format!("{name}-{}", version(used, manifest));
            let (links, exclude, dangling) = (artifact.links.clone(), artifact.exclude.clone(), artifact.dangling.clone());
            let wanted = Wanted { name: name_and_version, source, trimming: Trimming { links, exclude, dangling } };
            software.add(name, wanted, node, available);
        }
        if let Some(least) = manifest.java {
            if let Some(java) = node.javas.iter().filter(|j| j.major >= least).min_by_key(|j| j.major) {
                software.java = java.home.clone();
            } else {
                let (major, package) = JAVA_PACKAGES.iter().find(|(major, _)| *major >= least).ok_or(Error::NoJava(least))?;
                let source = Resolved::Apt { packages: vec![(*package).to_owned()] };
                let wanted = Wanted { name: (*package).to_owned(), source, trimming: Trimming::default() };
                let root = software.add("java", wanted, node, available);
                software.java = format!("{root}/usr/lib/jvm/java-{major}-openjdk-{DEBIAN_ARCHITECTURE}");
            }
        }
        Ok(software)
    }

    fn resolve(&self, source: &Source, values: &Value) -> Result<Resolved, template::Error> {
        let fill = |text: &String| self.templates.render("artifacts", text, values);
        let fill_all = |texts: &[String]| texts.iter().map(fill).collect::<Result<Vec<_>, _>>();
        Ok(match source {
            Source::PipSdist { requirement, parts } => Resolved::PipSdist { requirement: fill(requirement)?, parts: parts.clone() },
            Source::Pip { requirements } => Resolved::Pip { requirements: fill_all(requirements)? },
            Source::Apt { packages } => Resolved::Apt { packages: fill_all(packages)? },
            Source::Url { url, sha256 } => Resolved::Url { url: fill(url)?, sha256: fill(sha256)?.to_ascii_lowercase() },
        })
    }

    fn values(
        &self,
        used: &RuntimeUse,
        manifest: &Manifest,
        service: &Service,
        view: &View,
        node: &NodeContext,
        software: &Software,
    ) -> Value {
        let properties: BTreeMap<&str, Value> = manifest.values(used).iter().map(|(name, value)| (*name, scalar(value))).collect();
        let extra = manifest.extra(used);
        let ports: BTreeMap<&str, &BTreeMap<String, u16>> = manifest.services.iter().map(|s| (s.name.as_str(), &s.ports)).collect();
        let share = used.memory_share.unwrap_or(DEFAULT_MEMORY_SHARE);
        let memory = share_of(node.resources.memory, share);
        let directory = service_directory(node, &manifest.key(service));
        context! {
            cluster => context! { name => self.cluster.name.as_str() },
            head => context! { address => view.head_address, host => address::host(&view.head_address), bus => view.bus },
            node => context! {
                id => node.id.as_str(),
                address => node.address,
                host => address::host(&node.address),
                type => node.node_type.as_str(),
                cpus => node.resources.cpus,
                memory_mb => node.resources.memory.mebibytes(),
                certificate => format!("{}/identity/node.crt", node.home),
                key => format!("{}/identity/node.key", node.home),
                ca => format!("{}/identity/ca.crt", node.home),
            },
            service => context! { directory => directory, data => format!("{}/data/{}", node.home, manifest.name) },
            version => version(used, manifest),
            secret => self.secrets.get(&used.name).map_or(NO_SECRET, String::as_str),
            memory_mb => memory.mebibytes(),
            java => software.java,
            artifacts => software.roots,
            ports => ports,
            properties => properties,
            extra => extra,
        }
    }

    fn service(
        &self,
        used: &RuntimeUse,
        manifest: &Manifest,
        service: &Service,
        view: &View,
        node: &NodeContext,
        software: &Software,
    ) -> Result<goal::Service, Error> {
        let key = manifest.key(service);
        let values = self.values(used, manifest, service, view, node, software);
        let fill = |what: &'static str, text: &str| {
            self.templates.render(what, text, &values).map_err(|source| Error::Template { service: key.clone(), what, source })
        };
        let fill_all = |what, texts: &[String]| texts.iter().map(|t| fill(what, t)).collect::<Result<Vec<_>, _>>();
        let mut environment = BTreeMap::new();
        for (name, text) in &service.environment {
            environment.insert(name.clone(), fill("environment", text)?);
        }
        let mut files = Vec::new();
        for (path, template) in &service.files {
            let text = manifest.templates.get(template).map_or("", String::as_str);
            let content = self.templates.render(template, text, &values).map_err(|source| Error::Template {
                service: key.clone(),
                what: "a file",
                source,
            })?;
            files.push(goal::File { path: path.clone(), content, mode: 0o600, owner: None });
        }
        let probe = |probe: &Option<Probe>| probe.as_ref().map(|p| render_probe(p, &fill)).transpose();
        Ok(goal::Service {
            command: fill_all("command", &service.command)?,
            environment,
            files,
            directories: fill_all("directories", &service.directories)?,
            artifacts: software.artifacts.iter().map(|a| a.digest.clone()).collect(),
            hold: false,
            waits_for: String::new(),
            readiness: probe(&service.readiness)?,
            health: probe(&service.health)?,
            stop: goal::Stop { signal: service.stop_signal, grace_ms: service.stop_grace.as_millis() as u64 },
            restart: goal::Restart::default(),
            log: goal::Log::default(),
            limits: limits(&service.limits, &key, &fill)?,
            gauges: gauges(manifest, service, &fill)?,
            drain: service.drain.as_ref().map(|d| render_drain(&d.by, d.timeout, &fill)).transpose()?,
            key,
        })
    }

    /// The consoles of the runtimes, as far as `nodes` are known.
    pub fn endpoints(&self, name: &RuntimeName, view: &View, nodes: &[NodeContext]) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        let Some((used, manifest)) = self.used().find(|(r, _)| r.name == *name) else { return endpoints };
        for service in &manifest.services {
            let Some(console) = &service.console else { continue };
            for node in nodes.iter().filter(|n| service.role.covers(&n.node_type)) {
                let values = self.values(used, manifest, service, view, node, &Software::default());
                if let Ok(url) = self.templates.render("console", &console.url, &values) {
                    let title =
                        if service.role == Role::Head { console.title.clone() } else { format!("{} on {}", console.title, node.id) };
                    endpoints.push(Endpoint { name: title, url });
                }
            }
        }
        endpoints
    }

    /// Where the metrics of a node's services are: service, port and path.
    pub fn metrics(&self, node_type: &NodeTypeName) -> Vec<(ServiceKey, u16, String)> {
        let services = self.used().flat_map(|(_, m)| m.services.iter().map(move |s| (m, s)));
        let placed = services.filter(|(_, s)| s.role.covers(node_type));
        placed
            .flat_map(|(m, s)| s.metrics.iter().filter_map(|metrics| Some((m.key(s), *s.ports.get(&metrics.port)?, metrics.path.clone()))))
            .collect()
    }
}

/// The directory of a service on a node; the agent uses the same.
pub fn service_directory(node: &NodeContext, key: &ServiceKey) -> String {
    format!("{}/services/{}/{}", node.home, key.runtime, key.service)
}

#[derive(Debug, Default)]
struct Software {
    artifacts: Vec<goal::Artifact>,
    missing: Vec<Wanted>,
    /// Artifact name → where it is unpacked on the node.
    roots: BTreeMap<String, String>,
    java: String,
    waits_for: Option<String>,
}

impl Software {
    fn add(&mut self, name: &str, wanted: Wanted, node: &NodeContext, available: &dyn Fn(&Wanted) -> Availability) -> String {
        let root = match available(&wanted) {
            Availability::Here(artifact) => {
                let root = format!("{}/{}", node.artifacts, artifact.digest);
                self.artifacts.push(artifact);
                root
            }
            Availability::Coming(progress) => {
                self.waits_for.get_or_insert_with(|| format!("{} ({progress})", wanted.name));
                let root = format!("{}/{}", node.artifacts, wanted.name);
                self.missing.push(wanted);
                root
            }
        };
        self.roots.insert(name.to_owned(), root.clone());
        root
    }
}

fn version<'a>(used: &'a RuntimeUse, manifest: &'a Manifest) -> &'a str {
    used.version.as_deref().unwrap_or(&manifest.version)
}

fn placement(manifest: &Manifest, service: &Service) -> ServicePlacement {
    ServicePlacement {
        key: manifest.key(service),
        role: service.role.clone(),
        after: service.after.clone(),
        membership: service.membership.clone(),
        // To let its work go, and then to stop.
        drain_ms: (service.drain.as_ref().map_or(Duration::ZERO, |d| d.timeout) + service.stop_grace).as_millis() as u64,
    }
}

fn scalar(value: &Scalar) -> Value {
    match value {
        Scalar::Text(text) => Value::from(text.as_str()),
        Scalar::Integer(number) => Value::from(*number),
        Scalar::Float(number) => Value::from(*number),
        Scalar::Boolean(truth) => Value::from(*truth),
    }
}
