//! Reading `runtime.toml`.

mod numbers;
mod submit;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use cloudtik_config::reader::{At, Problems, Table, nearest};
use cloudtik_model::spec::{Membership, Role};
use cloudtik_model::{Bytes, NodeTypeName, RuntimeName, ServiceKey, ServiceName};

use self::numbers::{read_gauge, read_signals};
use self::submit::read_submit;
use super::properties::{read_hand_through, read_properties};
use super::{Artifact, Check, Console, Drain, DrainBy, Limits, Link, Manifest, Metrics, Part, Probe, Service, Source, parse_cpus};
use crate::template;

const SIGNALS: [(&str, i32); 8] = [("TERM", 15), ("INT", 2), ("QUIT", 3), ("HUP", 1), ("KILL", 9), ("USR1", 10), ("USR2", 12), ("PWR", 30)];
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

pub(super) fn read_manifest(root: &mut Table<'_>, problems: &Problems, templates: BTreeMap<String, String>) -> Option<Manifest> {
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
    let properties = read_properties(root, problems);
    let artifacts = read_artifacts(root, &checked);
    let mut spans = BTreeMap::new();
    let mut table = root.require_table("runtime")?;
    let name = table.require::<RuntimeName>("name", "\"my-runtime\"").map(|n| n.value);
    let version = table.require_text("version", "\"1.0\"").map(|v| v.value);
    let hand_through = read_hand_through(&mut table);
    let summary = table.text("summary").map(|s| s.value).unwrap_or_default();
    table.finish();
    let services = read_services(root, name.as_ref(), &checked, &mut spans);
    check_order(problems, name.as_ref(), &services, &spans);
    let signals = read_signals(root, &checked, &services);
    let submit = root.table("submit").and_then(|table| read_submit(table, &checked, &services));
    Some(Manifest {
        name: name?,
        version: version?,
        summary,
        java,
        memory,
        artifacts,
        services,
        signals,
        submit,
        hand_through,
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

fn read_artifacts(root: &mut Table<'_>, checked: &Checked<'_>) -> BTreeMap<String, Artifact> {
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
        let links = table.tables("link").into_iter().filter_map(|mut link| {
            let found = link.require_text("at", "\"lib/current\"").zip(link.require_text("to", "\"lib/v2\""));
            link.finish();
            let (at, to) = found?;
            for path in [&at, &to] {
                if !is_inside(&path.value) {
                    checked.problems.note(path.span.clone(), format!("{:?} is not a path inside the artifact", path.value), None);
                }
            }
            Some(Link { at: at.value, to: to.value })
        });
        let links = links.collect();
        let mut paths = |key: &str| -> Vec<String> {
            let paths = table.texts(key);
            for path in paths.iter().filter(|path| !is_inside(&path.value)) {
                checked.problems.note(path.span.clone(), format!("{:?} is not a path inside the artifact", path.value), None);
            }
            paths.into_iter().map(|path| path.value).collect()
        };
        let (exclude, dangling) = (paths("exclude"), paths("dangling"));
        if !kinds.is_empty() && kinds.len() == 1 {
            table.finish();
        }
        if let Some(source) = source {
            artifacts.insert(name.value.to_string(), Artifact { source, links, exclude, dangling });
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
        let work = table.table("work").and_then(|t| read_gauge(t, checked));
        let drain = table.table("drain").and_then(|t| read_drain(t, checked));
        let membership = table.table("membership").map(|mut t| {
            let membership = Membership {
                quorum: t.boolean("quorum").unwrap_or(false),
                minimum: t.integer("minimum", 1, 1_000).map_or(1, |m| m.value as u32),
            };
            t.finish();
            membership
        });
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
                work,
                drain,
                membership,
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
    let waiting = table.text("waiting").map(|text| checked.text(text));
    if kinds.len() == 1 {
        table.finish();
    }
    Some(Probe { check: check?, interval, timeout, failures, waiting })
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

/// How long letting go of work may take unless the manifest says otherwise.
const DEFAULT_DRAIN: Duration = Duration::from_secs(60);

fn read_drain(mut table: Table<'_>, checked: &Checked<'_>) -> Option<Drain> {
    let kinds: Vec<&str> = ["signal", "command", "http"].into_iter().filter(|k| table.has(k)).collect();
    let by = match kinds.as_slice() {
        ["signal"] => table.text("signal").and_then(|text| {
            let found = SIGNALS.iter().find(|(name, _)| *name == text.value.trim_start_matches("SIG")).map(|(_, n)| DrainBy::Signal(*n));
            if found.is_none() {
                let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
                checked.problems.note(text.span, format!("there is no signal {:?} here", text.value), Some(names.join(", ")));
            }
            found
        }),
        ["command"] => Some(DrainBy::Command(checked.texts(table.texts("command")))),
        ["http"] => table.text("http").map(|url| DrainBy::Request {
            method: table.text("method").map_or_else(|| "PUT".to_owned(), |m| m.value),
            url: checked.text(url),
            body: table.text("body").map(|b| checked.text(b)).unwrap_or_default(),
        }),
        _ => {
            table.problem("a drain has one of `signal`, `command`, `http`", None);
            None
        }
    };
    let timeout = table.duration("timeout").map_or(DEFAULT_DRAIN, |t| t.value);
    if kinds.len() == 1 {
        table.finish();
    }
    Some(Drain { by: by?, timeout })
}
