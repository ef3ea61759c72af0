//! `runtime.toml`: what a runtime needs, fetches, runs, probes and offers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use cloudtik_config::diagnostics::InvalidFile;
use cloudtik_config::reader::{At, Problems, Scalar, Table, nearest, read_file};
use cloudtik_model::spec::Role;
use cloudtik_model::{Bytes, NodeTypeName, RuntimeName, ServiceKey, ServiceName};

use crate::catalog::Folder;
use crate::template;

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
    pub artifacts: BTreeMap<String, Source>,
    pub services: Vec<Service>,
    pub submit: Option<Submit>,
    /// Properties that have no default here are handed through to the runtime's own configuration; else they are slips.
    pub hands_through: bool,
    /// Defaults of the properties that templates use.
    pub properties: BTreeMap<String, Scalar>,
    /// The folder's other files, for templates.
    pub templates: BTreeMap<String, String>,
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
    /// The uploaded file is `{{ job.file }}`; its arguments are appended.
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// The service whose directory and files the job sees.
    pub service: ServiceName,
}

const SIGNALS: [(&str, i32); 5] = [("TERM", 15), ("INT", 2), ("QUIT", 3), ("HUP", 1), ("KILL", 9)];
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

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
        read_file(&file, text, |root, problems| read_manifest(root, problems, templates))
    }

    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|s| s.name == *name)
    }

    pub fn key(&self, service: &Service) -> ServiceKey {
        ServiceKey::new(self.name.clone(), service.name.clone())
    }
}

fn read_manifest(root: &mut Table<'_>, problems: &Problems, templates: BTreeMap<String, String>) -> Option<Manifest> {
    for (name, text) in &templates {
        if let Err(error) = template::check(text) {
            root.problem(format!("the template {name} is broken: {error}"), None);
        }
    }
    let checked = Checked { problems, templates: &templates };
    let (java, memory) = root.table("needs").map_or((None, None), |mut needs| {
        let java = needs.integer("java", 8, 99).map(|j| j.value as u32);
        let memory = needs.parse("memory").map(|m| m.value);
        needs.finish();
        (java, memory)
    });
    let properties = read_properties(root);
    let artifacts = read_artifacts(root, &checked);
    let mut spans = BTreeMap::new();
    let mut table = root.require_table("runtime")?;
    let name = table.require::<RuntimeName>("name", "\"my-runtime\"").map(|n| n.value);
    let version = table.require_text("version", "\"1.0\"").map(|v| v.value);
    let hands_through = table.boolean("hand_through_properties").unwrap_or(false);
    let summary = table.text("summary").map(|s| s.value).unwrap_or_default();
    table.finish();
    let services = read_services(root, name.as_ref(), &checked, &mut spans);
    check_order(problems, name.as_ref(), &services, &spans);
    let submit = root.table("submit").and_then(|table| read_submit(table, &checked, &services));
    Some(Manifest {
        name: name?,
        version: version?,
        summary,
        java,
        memory,
        artifacts,
        services,
        submit,
        hands_through,
        properties,
        templates,
    })
}

struct Checked<'a> {
    problems: &'a Problems,
    templates: &'a BTreeMap<String, String>,
}

impl Checked<'_> {
    /// Notes a text that is no template.
    fn text(&self, text: At<String>) -> String {
        if let Err(error) = template::check(&text.value) {
            self.problems.note(text.span, format!("broken template: {error}"), None);
        }
        text.value
    }

    fn texts(&self, texts: Vec<At<String>>) -> Vec<String> {
        texts.into_iter().map(|t| self.text(t)).collect()
    }

    fn map(&self, table: Option<Table<'_>>) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let Some(mut table) = table else { return map };
        for key in table.names::<String>() {
            if let Some(text) = table.text(&key.value) {
                map.insert(key.value, self.text(text));
            }
        }
        table.finish();
        map
    }
}

fn read_properties(root: &mut Table<'_>) -> BTreeMap<String, Scalar> {
    let mut properties = BTreeMap::new();
    let Some(mut table) = root.table("properties") else { return properties };
    for key in table.names::<String>() {
        if let Some(value) = table.scalar(&key.value) {
            properties.insert(key.value, value.value);
        }
    }
    properties
}

fn read_artifacts(root: &mut Table<'_>, checked: &Checked<'_>) -> BTreeMap<String, Source> {
    let mut artifacts = BTreeMap::new();
    let Some(mut all) = root.table("artifacts") else { return artifacts };
    for name in all.names::<RuntimeName>() {
        let Some(mut table) = all.table(name.value.as_str()) else { continue };
        let kinds: Vec<&str> = ["pip", "pip-sdist", "apt", "url"].into_iter().filter(|k| table.has(k)).collect();
        let source = match kinds.as_slice() {
            ["pip-sdist"] => table.text("pip-sdist").map(|requirement| {
                let parts = table.tables("unpack").into_iter().filter_map(|mut part| {
                    let found = part.require_text("from", "\"deps/jars\"").zip(part.require_text("to", "\"jars\""));
                    part.finish();
                    let (from, to) = found?;
                    for path in [&from, &to] {
                        if !is_inside(&path.value) {
                            checked.problems.note(path.span.clone(), format!("{:?} is not a path inside the archive", path.value), None);
                        }
                    }
                    Some(Part { from: from.value, to: to.value })
                });
                Source::PipSdist { parts: parts.collect(), requirement: checked.text(requirement) }
            }),
            ["pip"] => Some(Source::Pip { requirements: checked.texts(table.texts("pip")) }),
            ["apt"] => Some(Source::Apt { packages: checked.texts(table.texts("apt")) }),
            ["url"] => {
                let url = table.text("url");
                let sha256 = table.require_text("sha256", "\"<64 hexadecimal digits>\"");
                if let Some(sum) = &sha256
                    && !(sum.value.contains("{{") || sum.value.len() == 64 && sum.value.bytes().all(|b| b.is_ascii_hexdigit()))
                {
                    checked.problems.note(sum.span.clone(), "`sha256` must be 64 hexadecimal digits", None);
                }
                url.zip(sha256).map(|(url, sum)| Source::Url { url: checked.text(url), sha256: checked.text(sum) })
            }
            [] => {
                table.problem("an artifact needs a source", Some("one of `pip`, `pip-sdist`, `apt`, `url` with `sha256`".to_owned()));
                None
            }
            _ => {
                table.problem(format!("an artifact has one source, not {}", kinds.join(" and ")), None);
                None
            }
        };
        if !kinds.is_empty() && kinds.len() == 1 {
            table.finish();
        }
        if let Some(source) = source {
            artifacts.insert(name.value.to_string(), source);
        }
    }
    artifacts
}

/// Whether a path stays inside what it is relative to.
fn is_inside(path: &str) -> bool {
    use std::path::{Component, Path};
    !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

fn read_services(
    root: &mut Table<'_>,
    runtime: Option<&RuntimeName>,
    checked: &Checked<'_>,
    spans: &mut BTreeMap<ServiceKey, Range<usize>>,
) -> Vec<Service> {
    let mut services = Vec::new();
    let Some(mut all) = root.table("services") else {
        root.problem("a runtime needs at least one service", Some("add [services.NAME] with `role` and `command`".to_owned()));
        return services;
    };
    for name in all.names::<ServiceName>() {
        let Some(mut table) = all.table(name.value.as_str()) else { continue };
        let role = read_role(&mut table, checked.problems);
        let after = table.texts("after").into_iter().filter_map(|text| {
            let full = match runtime {
                Some(runtime) if !text.value.contains('/') => format!("{runtime}/{}", text.value),
                _ => text.value.clone(),
            };
            match full.parse::<ServiceKey>() {
                Ok(key) => {
                    spans.insert(key.clone(), text.span);
                    Some(key)
                }
                Err(error) => {
                    checked.problems.note(text.span, error.to_string(), None);
                    None
                }
            }
        });
        let after = after.collect();
        let mut ports = BTreeMap::new();
        if let Some(mut inner) = table.table("ports") {
            for key in inner.names::<String>() {
                if let Some(port) = inner.integer(&key.value, 1, 65_535) {
                    ports.insert(key.value, port.value as u16);
                }
            }
        }
        if !table.has("command") {
            table.problem(
                format!("`services.{}.command` is missing", name.value),
                Some("add command = [\"/path/to/program\", \"argument\"]".to_owned()),
            );
        }
        let command = checked.texts(table.texts("command"));
        let environment = checked.map(table.table("environment"));
        let files = read_files(&mut table, checked);
        let directories = checked.texts(table.texts("directories"));
        let readiness = table.table("readiness").and_then(|t| read_probe(t, checked));
        let health = table.table("health").and_then(|t| read_probe(t, checked));
        let (stop_signal, stop_grace) = read_stop(&mut table, checked.problems);
        let limits = table.table("limits").map(|t| read_limits(t, checked)).unwrap_or_default();
        let metrics = table.tables("metrics").into_iter().filter_map(|mut t| {
            let found = t.require_text("port", "\"web\"").zip(Some(t.text("path").map_or_else(|| "/metrics".to_owned(), |p| p.value)));
            t.finish();
            let (port, path) = found?;
            if !ports.contains_key(&port.value) {
                checked.problems.note(port.span, format!("the service has no port named {:?}", port.value), None);
            }
            Some(Metrics { port: port.value, path })
        });
        let metrics = metrics.collect();
        let console = table.table("console").and_then(|mut t| {
            let found = t.require_text("title", "\"Web console\"").zip(t.require_text("url", "\"http://{{ node.address }}:8080\""));
            t.finish();
            found.map(|(title, url)| Console { title: title.value, url: checked.text(url) })
        });
        table.finish();
        if let Some(role) = role {
            services.push(Service {
                name: name.value,
                role,
                after,
                ports,
                command,
                environment,
                files,
                directories,
                readiness,
                health,
                stop_signal,
                stop_grace,
                limits,
                metrics,
                console,
            });
        }
    }
    services
}

fn read_role(table: &mut Table<'_>, problems: &Problems) -> Option<Role> {
    let role = table.require_text("role", "\"workers\"")?;
    match role.value.as_str() {
        "head" => Some(Role::Head),
        "workers" => Some(Role::Workers),
        "all" => Some(Role::All),
        other => match other.strip_prefix("type:").map(NodeTypeName::new) {
            Some(Ok(name)) => Some(Role::NodeType(name)),
            _ => {
                let help = nearest(other, ["head", "workers", "all"].into_iter()).map(|near| format!("did you mean `{near}`?"));
                let help = help.or_else(|| Some("roles: head, workers, all, type:NODE-TYPE".to_owned()));
                problems.note(role.span, format!("there is no role `{other}`"), help);
                None
            }
        },
    }
}

fn read_files(table: &mut Table<'_>, checked: &Checked<'_>) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let Some(mut inner) = table.table("files") else { return files };
    for key in inner.names::<String>() {
        let Some(template) = inner.text(&key.value) else { continue };
        if !is_inside(&key.value) {
            checked.problems.note(key.span, format!("{:?} is not a path inside the service's directory", key.value), None);
        }
        if !checked.templates.contains_key(&template.value) {
            let known = checked.templates.keys().map(String::as_str);
            let help = nearest(&template.value, known).map(|near| format!("did you mean `{near}`?"));
            checked.problems.note(template.span, format!("the folder has no file {:?}", template.value), help);
        }
        files.insert(key.value, template.value);
    }
    files
}

fn read_probe(mut table: Table<'_>, checked: &Checked<'_>) -> Option<Probe> {
    let kinds: Vec<&str> = ["tcp", "http", "command"].into_iter().filter(|k| table.has(k)).collect();
    let check = match kinds.as_slice() {
        ["tcp"] => table.text("tcp").map(|t| Check::Tcp { address: checked.text(t) }),
        ["command"] => Some(Check::Command { command: checked.texts(table.texts("command")) }),
        ["http"] => table.text("http").map(|url| Check::Http {
            url: checked.text(url),
            status: table.integer("status", 100, 599).map_or(200, |s| s.value as u16),
            pointer: table.text("pointer").map(|p| p.value),
            equals: if table.has("equals") { table.scalar("equals").map(|e| e.value) } else { None },
        }),
        _ => {
            table.problem("a probe has one of `tcp`, `http`, `command`", None);
            None
        }
    };
    let interval = table.duration("interval").map_or(Duration::from_secs(1), |d| d.value);
    let timeout = table.duration("timeout").map_or(Duration::from_secs(2), |d| d.value);
    let failures = table.integer("failures", 1, 1000).map_or(3, |f| f.value as u32);
    if kinds.len() == 1 {
        table.finish();
    }
    Some(Probe { check: check?, interval, timeout, failures })
}

fn read_limits(mut table: Table<'_>, checked: &Checked<'_>) -> Limits {
    let mut read = |key: &str, is_valid: fn(&str) -> bool, example: &str| {
        let value =
            if key == "cpus" { table.scalar(key).map(|c| At { span: c.span, value: c.value.to_string() }) } else { table.text(key) };
        let value = value?;
        if !value.value.contains("{{") && !is_valid(&value.value) {
            let message = format!("{:?} is no limit of {key}", value.value);
            checked.problems.note(value.span.clone(), message, Some(format!("such as {example}")));
        }
        Some(checked.text(value))
    };
    let memory = read("memory", |text| text.parse::<Bytes>().is_ok_and(|b| b.0 > 0), "\"512MiB\"");
    let cpus = read("cpus", |text| parse_cpus(text).is_some(), "1.5");
    table.finish();
    Limits { memory, cpus }
}

/// Cores as people write them, in thousandths.
pub fn parse_cpus(text: &str) -> Option<u64> {
    let cpus: f64 = text.trim().parse().ok()?;
    (0.01..=10_000.0).contains(&cpus).then_some((cpus * 1_000.0) as u64)
}

fn read_stop(table: &mut Table<'_>, problems: &Problems) -> (i32, Duration) {
    let Some(mut stop) = table.table("stop") else { return (15, DEFAULT_GRACE) };
    let signal = stop.text("signal").and_then(|s| {
        let found = SIGNALS.iter().find(|(name, _)| *name == s.value.trim_start_matches("SIG")).map(|(_, n)| *n);
        if found.is_none() {
            problems.note(
                s.span,
                format!("there is no signal {:?} to stop with", s.value),
                Some("TERM, INT, QUIT, HUP or KILL".to_owned()),
            );
        }
        found
    });
    let grace = stop.duration("grace").map_or(DEFAULT_GRACE, |d| d.value);
    stop.finish();
    (signal.unwrap_or(15), grace)
}

fn read_submit(mut table: Table<'_>, checked: &Checked<'_>, services: &[Service]) -> Option<Submit> {
    let service = table.require::<ServiceName>("service", "\"master\"");
    if let Some(service) = &service
        && !services.iter().any(|s| s.name == service.value)
    {
        checked.problems.note(service.span.clone(), format!("there is no service {:?}", service.value), None);
    }
    if !table.has("command") {
        table.problem("`submit.command` is missing", None);
    }
    let command = checked.texts(table.texts("command"));
    let environment = checked.map(table.table("environment"));
    table.finish();
    Some(Submit { command, environment, service: service?.value })
}

/// Notes predecessors within the runtime that do not exist, and circles.
fn check_order(problems: &Problems, runtime: Option<&RuntimeName>, services: &[Service], spans: &BTreeMap<ServiceKey, Range<usize>>) {
    let Some(runtime) = runtime else { return };
    let own = |key: &ServiceKey| services.iter().find(|s| key.runtime == *runtime && key.service == s.name);
    for (key, span) in spans {
        if key.runtime == *runtime && own(key).is_none() {
            let help =
                nearest(key.service.as_str(), services.iter().map(|s| s.name.as_str())).map(|near| format!("did you mean `{near}`?"));
            problems.note(span.clone(), format!("there is no service {:?}", key.service), help);
        }
    }
    for service in services {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&ServiceKey> = service.after.iter().collect();
        while let Some(key) = next.pop() {
            if key.runtime == *runtime && key.service == service.name {
                let span = spans.get(&service.after[0]).cloned().unwrap_or(0..0);
                problems.note(span, format!("{} comes after itself", service.name), None);
                break;
            }
            if seen.insert(key) {
                next.extend(own(key).iter().flat_map(|s| &s.after));
            }
        }
    }
}
