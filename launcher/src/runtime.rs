//! `cloudtik runtime`: what is shipped, and one's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cloudtik_model::{Bytes, NodeId, NodeTypeName, Resources, RuntimeName};
use cloudtik_runtimes::catalog::FolderError;
use cloudtik_runtimes::manifest::Manifest;
use cloudtik_runtimes::planner::{Availability, NodeContext, View, Wanted};
use cloudtik_runtimes::{Catalog, catalog};
use serde::Serialize;

use crate::cli::Runtime;
use crate::described::describe;
use crate::failure::{Failure, NOT_FOUND, USAGE, chain};
use crate::output::Printer;

pub fn run(printer: &Printer, command: Runtime) -> Result<(), Failure> {
    match command {
        Runtime::List => {
            list(printer);
            Ok(())
        }
        Runtime::Check { folder } => check(printer, &folder),
        Runtime::Render { file, runtime, node } => render(printer, &file, runtime, &node),
        Runtime::New { name } => new(printer, &name),
    }
}

fn list(printer: &Printer) {
    #[derive(Serialize)]
    struct Listed<'a> {
        name: &'a RuntimeName,
        version: &'a str,
        summary: &'a str,
        services: Vec<&'a str>,
        takes_jobs: bool,
    }
    let shipped = Catalog::shipped();
    let all: Vec<Listed<'_>> = shipped
        .iter()
        .map(|m| Listed {
            name: &m.name,
            version: &m.version,
            summary: &m.summary,
            services: m.services.iter().map(|s| s.name.as_str()).collect(),
            takes_jobs: m.submit.is_some(),
        })
        .collect();
    if printer.is_json() {
        return printer.json(&all);
    }
    let rows: Vec<_> =
        all.iter().map(|l| vec![l.name.to_string(), l.version.to_owned(), l.services.join(", "), l.summary.to_owned()]).collect();
    printer.table(&["RUNTIME", "VERSION", "SERVICES", "SUMMARY"], &rows);
}

fn check(printer: &Printer, folder: &Path) -> Result<(), Failure> {
    let files = catalog::read_folder(folder).map_err(|error| match error {
        FolderError::Io(error) => Failure::new(NOT_FOUND, format!("cannot read {}: {error}", folder.display())),
        FolderError::Invalid(problem) => Failure::invalid(vec![problem]),
    })?;
    let manifest = Manifest::read(&folder.display().to_string(), &files).map_err(|e| Failure::invalid(vec![e]))?;
    let services: Vec<&str> = manifest.services.iter().map(|s| s.name.as_str()).collect();
    if printer.is_json() {
        printer.json(&serde_json::json!({ "name": manifest.name, "version": manifest.version, "services": services }));
    } else {
        printer.line(&format!("{} {} is a valid runtime; its services: {}", manifest.name, manifest.version, services.join(", ")));
    }
    Ok(())
}

fn render(printer: &Printer, file: &Path, runtime: Option<String>, node: &str) -> Result<(), Failure> {
    let described = describe(file)?;
    let id: NodeId = node.parse().map_err(|e: cloudtik_model::id::InvalidName| Failure::new(USAGE, e.to_string()))?;
    let types = described.cluster.workers.keys();
    let node_type = if id.is_head() {
        NodeTypeName::head()
    } else {
        let of_type = |t: &&NodeTypeName| (1..=10_000).any(|n| NodeId::worker(t, n) == id);
        types.clone().find(of_type).cloned().ok_or_else(|| {
            let example = types.clone().next().map_or_else(|| "head".to_owned(), |t| NodeId::worker(t, 1).to_string());
            Failure::new(NOT_FOUND, format!("no node type of {} has a node {node}", file.display()))
                .hint(format!("such as --node {example}"))
        })?
    };
    let shape = described.cluster.workers.get(&node_type);
    let context = NodeContext {
        id,
        node_type,
        address: if node == "head" { "127.0.0.1".to_owned() } else { "127.0.0.2".to_owned() },
        resources: Resources {
            cpus: shape.and_then(|w| w.cpus).unwrap_or(2),
            memory: shape.and_then(|w| w.memory).unwrap_or(Bytes(2 << 30)),
            gpus: shape.and_then(|w| w.gpus).unwrap_or(0),
        },
        home: "/NODE".to_owned(),
        artifacts: "/ARTIFACTS".to_owned(),
        javas: Vec::new(),
    };
    let view = View { head_address: "127.0.0.1".to_owned(), bus: "127.0.0.1:7070".to_owned() };
    let coming = |_: &Wanted| Availability::Coming("not fetched for this".to_owned());
    let mut plan = described.planner.plan(&view, &context, &BTreeSet::new(), &coming).map_err(|e| Failure::failed(chain(&e)))?;
    if let Some(wanted) = &runtime
        && !described.cluster.runtimes.iter().any(|r| r.name.as_str() == wanted)
    {
        let names: Vec<&str> = described.cluster.runtimes.iter().map(|r| r.name.as_str()).collect();
        let failure = Failure::new(NOT_FOUND, format!("{} has no runtime {wanted}", file.display()));
        return Err(match cloudtik_config::reader::nearest(wanted, names.iter().copied()) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure.hint(format!("it has: {}", names.join(", "))),
        });
    }
    plan.services.retain(|s| runtime.as_ref().is_none_or(|r| s.key.runtime.as_str() == r));
    for service in &mut plan.services {
        service.hold = false;
        service.waits_for.clear();
    }
    if printer.is_json() {
        printer.json(&plan.services);
        return Ok(());
    }
    if plan.services.is_empty() {
        printer.say("it has no service on that node");
    }
    for service in &plan.services {
        printer.line(&printer.bold(&format!("# {}", service.key)));
        for (name, value) in &service.environment {
            printer.line(&format!("{name}={value}"));
        }
        printer.line(&service.command.iter().map(|a| quote(a)).collect::<Vec<_>>().join(" \\\n    "));
        for file in &service.files {
            printer.line(&format!("\n--- {} (mode {:o})", file.path, file.mode));
            printer.line(file.content.trim_end());
        }
        printer.line("");
    }
    Ok(())
}

fn quote(argument: &str) -> String {
    let plain = !argument.is_empty() && argument.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&b));
    if plain { argument.to_owned() } else { format!("'{}'", argument.replace('\'', "'\\''")) }
}

const NEW_MANIFEST: &str = r#"# A runtime: what nodes are to run. `cloudtik runtime check` says what is wrong with it.

[runtime]
name = "NAME"
version = "1.0"
summary = "What it is, in one line"

# Software comes from a registry or a URL, is fetched once by the head and unpacked on nodes:
# [artifacts.server]
# url = "https://example.org/server-{{ version }}.tar.gz"
# sha256 = "<64 hexadecimal digits>"

[properties]
greeting = "hello"

[services.web]
role = "workers"                       # head, workers, all, or type:NODE-TYPE
ports = { web = 8000 }
command = ["/usr/bin/python3", "-m", "http.server", "--bind", "{{ node.address }}", "{{ ports.web.web }}"]
readiness = { tcp = "{{ node.address }}:{{ ports.web.web }}" }

[services.web.files]
"index.html" = "index.html"
"#;

fn new(printer: &Printer, name: &str) -> Result<(), Failure> {
    let name: RuntimeName = name.parse().map_err(|e: cloudtik_model::id::InvalidName| Failure::new(USAGE, e.to_string()))?;
    let folder = Path::new(name.as_str());
    fs::create_dir(folder).map_err(|e| Failure::failed(format!("cannot make the folder {name}: {e}")))?;
    fs::write(folder.join("runtime.toml"), NEW_MANIFEST.replace("NAME\"", &format!("{name}\"")))?;
    fs::write(folder.join("index.html"), "{{ properties.greeting | xml }} from {{ node.id | xml }} of {{ cluster.name | xml }}\n")?;
    if printer.is_json() {
        printer.json(&serde_json::json!({ "name": name, "folder": format!("./{name}") }));
        return Ok(());
    }
    printer.say(&format!("made {name}/runtime.toml; check it with `cloudtik runtime check {name}`, and use it in a cluster's file:"));
    printer.line(&format!("[runtimes.{name}]\npath = \"./{name}\""));
    Ok(())
}
