//! `cloudtik doctor`: looks for what is missing or broken, and says what to do.

use std::path::Path;

use cloudtik_model::Timestamp;
use cloudtik_protocol::wire::setup_client::SetupClient;
use cloudtik_protocol::{pki, wire};
use serde::Serialize;

use crate::cli::Target;
use crate::client::Client;
use crate::clusters::{home, program, usable};
use crate::failure::{FAILED, Failure};
use crate::head_node::HeadNode;
use crate::orphans;
use crate::output::{Printer, ago, short};

/// The least free space for software and logs, in bytes.
const ENOUGH_SPACE: u64 = 4 << 30;
/// A certificate that ends sooner than this is worth a word.
const SOON: i64 = 30 * 24 * 3600;

#[derive(Serialize)]
struct Finding {
    what: String,
    ok: bool,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

pub async fn run(printer: &Printer, cluster: Option<Target<'_>>) -> Result<u8, Failure> {
    let mut findings = machine();
    findings.extend(left_processes().await);
    if let Some(cluster) = cluster {
        findings.extend(of_cluster(cluster).await);
    }
    let healthy = findings.iter().all(|f| f.ok);
    if printer.is_json() {
        printer.json(&findings);
    } else {
        for finding in &findings {
            let mark = if finding.ok { "ok  " } else { "MISS" };
            printer.line(&format!("{mark}  {:<28} {}", finding.what, finding.detail));
            if let Some(hint) = finding.hint.as_ref().filter(|_| !finding.ok) {
                printer.line(&format!("      hint: {hint}"));
            }
        }
    }
    Ok(if healthy { 0 } else { FAILED })
}

fn machine() -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in ["cloudtik-agent", "cloudtik-head"] {
        findings.push(match program(name) {
            Ok(path) => found(name, path.display().to_string()),
            Err(failure) => missing(name, failure.message, failure.hint.unwrap_or_default()),
        });
    }
    let clients = [
        ("python3", "for runtimes from the Python package index", "apt-get install python3 python3-pip"),
        ("pip3", "for runtimes from the Python package index", "apt-get install python3-pip"),
        ("apt-get", "for runtimes from Debian packages", "use a Debian or Ubuntu machine for such runtimes"),
        ("dpkg-deb", "for runtimes from Debian packages", "apt-get install dpkg"),
        ("tar", "to unpack software", "apt-get install tar"),
    ];
    for (name, why, hint) in clients {
        findings.push(match on_path(name) {
            Some(path) => found(name, path),
            None => missing(name, format!("not found; needed {why}"), hint.to_owned()),
        });
    }
    findings.push(match home() {
        Ok(home) => state_directory(&home),
        Err(failure) => missing("state directory", failure.message, failure.hint.unwrap_or_default()),
    });
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    findings.push(if limit >= 1024 {
        found("open files", format!("{limit} allowed"))
    } else {
        missing("open files", format!("only {limit} allowed"), "ulimit -n 1024".to_owned())
    });
    findings
}

/// Processes of clusters whose state was removed while they ran.
async fn left_processes() -> Vec<Finding> {
    let found = match orphans::find() {
        Ok(found) => found,
        Err(failure) => return vec![missing("orphan processes", failure.message, String::new())],
    };
    let mut findings = Vec::new();
    for orphan in found {
        let pids: Vec<String> = orphan.processes.iter().map(ToString::to_string).collect();
        let (name, count, node) = (&orphan.paths.name, pids.len(), orphan.node());
        let missing_part = if orphan.directory.is_dir() { orphan.paths.head() } else { orphan.directory.clone() };
        let plural = if count == 1 { "process of" } else { "processes of" };
        let detail = format!("{count} {plural} {node} of the cluster {name}, though {} was removed", missing_part.display());
        let in_workspace = match orphan.paths.workspace_name() {
            workspace if workspace == "default" => String::new(),
            workspace => format!(" --workspace {workspace}"),
        };
        // A cluster that is there otherwise has its other nodes to lose, and its head, whose node can be made again.
        let hint = if orphan.is_of_head() && HeadNode::of(&orphan.paths).await.is_ok_and(|node| node.is_lost()) {
            format!("`{}` makes the head's node anew; the head goes on with its state", orphan.paths.up_command())
        } else if orphan.paths.head().is_dir() {
            format!("`kill -9 {}` ends them", pids.join(" "))
        } else {
            format!("`cloudtik down {name}{in_workspace} --yes` ends them, or `kill -9 {}`", pids.join(" "))
        };
        findings.push(missing("orphan processes", detail, hint));
    }
    findings
}

fn state_directory(home: &Path) -> Finding {
    let what = "state directory";
    if let Err(failure) = usable(home) {
        return missing(what, failure.message, failure.hint.unwrap_or_default());
    }
    let probe = home.join(".doctor");
    let written = cloudtik_protocol::files::create_missing_directories(home)
        .and_then(|()| std::fs::write(&probe, b"x"))
        .and_then(|()| std::fs::remove_file(&probe));
    if let Err(error) = written {
        return missing(what, format!("{}: {error}", home.display()), "set CLOUDTIK_HOME to a directory that you can write".to_owned());
    }
    match nix::sys::statvfs::statvfs(home) {
        Ok(stat) if stat.blocks_available() * stat.fragment_size() < ENOUGH_SPACE => {
            let free = cloudtik_model::Bytes(stat.blocks_available() * stat.fragment_size());
            missing(what, format!("{} has only {free} free", home.display()), "make room, or set CLOUDTIK_HOME elsewhere".to_owned())
        }
        _ => found(what, home.display().to_string()),
    }
}

async fn of_cluster(cluster: Target<'_>) -> Vec<Finding> {
    let client = match Client::connect(cluster).await {
        Ok(client) => client,
        Err(failure) => return vec![missing("head", failure.message, failure.hint.unwrap_or_default())],
    };
    let mut findings = Vec::new();
    if let Ok(chain) = pki::load_chain(&client.place.ca().join("root.crt"))
        && let Some(Ok((_, ends))) = chain.first().map(pki::validity)
    {
        let left = ends - now();
        let detail = format!("good for {}", short(std::time::Duration::from_secs(left.max(0) as u64)));
        findings.push(if left > SOON {
            found("root certificate", detail)
        } else {
            missing("root certificate", detail, "make a new cluster soon".to_owned())
        });
    }
    let mut setup = SetupClient::new(client.channel.clone());
    if let Ok(reply) = setup.certificate_request(wire::Empty {}).await {
        let left = reply.into_inner().expires_at - now();
        let detail = format!("good for {}", short(std::time::Duration::from_secs(left.max(0) as u64)));
        findings.push(if left > SOON {
            found("head's certificate", detail)
        } else {
            missing("head's certificate", detail, format!("`{}` has it certified anew; nothing is restarted", client.place.up_command()))
        });
    }
    match client.status().await {
        Ok(status) => {
            findings.push(found("head", format!("{}, up {}", status.head.address, ago(Timestamp(status.head.started.0)))));
            for node in &status.nodes {
                let why = node.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                let (what, detail) = (format!("node {}", node.id), format!("{}{why}", node.state));
                let hint = format!("`cloudtik why {} {}` tells what happened", status.cluster, node.id);
                findings.push(if node.state == "ready" && node.reason.is_none() {
                    found(&what, detail)
                } else {
                    missing(&what, detail, hint)
                });
            }
            findings.extend(status.alarms.iter().map(|alarm| missing("alarm", alarm.to_string(), "see `cloudtik events`".to_owned())));
        }
        Err(failure) => findings.push(missing("head", failure.message, failure.hint.unwrap_or_default())),
    }
    findings
}

fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64)
}

fn on_path(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|p| p.join(name)).find(|p| p.is_file()).map(|p| p.display().to_string())
}

fn found(what: &str, detail: String) -> Finding {
    Finding { what: what.to_owned(), ok: true, detail, hint: None }
}

fn missing(what: &str, detail: String, hint: String) -> Finding {
    Finding { what: what.to_owned(), ok: false, detail, hint: (!hint.is_empty()).then_some(hint) }
}
