//! Looking at a cluster, and the short commands that change it.

use std::time::Duration;

use cloudtik_model::Bytes;
use cloudtik_model::job::JobsSummary;
use cloudtik_model::software::Size;
use cloudtik_model::status::{Phase, Status};
use cloudtik_protocol::wire;
use serde::Serialize;

use crate::cache;
use crate::cli::Target;
use crate::client::{Client, document, is_refused};
use crate::cluster_statuses;
use crate::clusters;
use crate::failing::{Failing, Shown, failing};
use crate::failure::{Failure, TIMED_OUT};
use crate::orphans;
use crate::output::{Printer, ago, clock, columns_of_output, short};
use crate::pause::Pause;
use crate::remote::Remote;
use crate::terminal::Progress;

/// How long nothing new is waited for before what is waited for is said again where no terminal shows it.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Things that are waited for and shown.
const SHOWN_WAITS: usize = 3;
/// Running jobs that are named.
const SHOWN_JOBS: usize = 5;

pub async fn status(printer: &Printer, cluster: Target<'_>, wait: Option<Duration>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let status = match wait {
        Some(timeout) => {
            let mut progress = Progress::new();
            progress.phase(&format!("{}: waiting for the cluster", client.place.name));
            wait_until(&client, timeout, &mut progress, None, |status| status.ready).await?
        }
        None => client.status().await?,
    };
    if printer.is_json() {
        printer.json(&status);
    } else {
        print_whole(printer, &status);
    }
    Ok(())
}

/// A status with what is wrong and what is waited for.
pub fn print_whole(printer: &Printer, status: &Status) {
    print_status(printer, status);
    for alarm in &status.alarms {
        printer.line(&format!("ALARM: {alarm}"));
    }
    for wait in &status.waiting_for {
        printer.line(&format!("waiting for {wait}"));
    }
    for line in failing(status).iter().flat_map(Failing::lines_beside_states) {
        printer.line(&line);
    }
    if let Some(line) = jobs_line(&status.jobs) {
        printer.line(&line);
    }
}

/// Which jobs run, and how many wait.
fn jobs_line(jobs: &JobsSummary) -> Option<String> {
    let names: Vec<String> = jobs.running.iter().map(|job| format!("{} ({})", job.id, job.name)).collect();
    let more = usize::try_from(jobs.running_left_out).unwrap_or(usize::MAX);
    let running = match names.len().saturating_add(more) {
        0 => None,
        count => {
            let shown = names.len().min(SHOWN_JOBS);
            let rest = count - shown;
            let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            Some(format!("{count} running: {}{rest}", names[..shown].join(", ")))
        }
    };
    let queued = (jobs.queued > 0).then(|| format!("{} queued", jobs.queued));
    let parts: Vec<String> = queued.into_iter().chain(running).collect();
    (!parts.is_empty()).then(|| format!("jobs: {}", parts.join(", ")))
}

/// Follows the status until it is as it is to be, saying what the cluster waits for. With the revision that the caller
/// waits for, a later one ends the wait: another command gave the cluster another description.
pub async fn wait_until(
    client: &Client,
    timeout: Duration,
    progress: &mut Progress,
    own: Option<u64>,
    is_enough: impl Fn(&Status) -> bool,
) -> Result<Status, Failure> {
    let (mut last, mut shown, name) = (None, Shown::default(), client.place.name.clone());
    let waiting = async {
        let (mut client, mut pause) = (client.clone(), Pause::default());
        loop {
            let mut statuses = client.watch().await?;
            loop {
                let next = tokio::select! {
                    next = statuses.message() => next,
                    () = tokio::time::sleep(CATCH_UP) => {
                        progress.catch_up();
                        continue;
                    }
                };
                let status = match next {
                    Ok(Some(status)) => status,
                    Err(status) if is_refused(&status) => return Err(status.into()),
                    // The head was restarted: look again.
                    Ok(None) | Err(_) => break,
                };
                pause = Pause::default();
                if matches!(status.phase, Phase::Stopping | Phase::Stopped) {
                    return Err(Failure::overtaken(format!("{name} is being taken down by another command")));
                }
                if let Some(own) = own.filter(|own| status.revision > *own) {
                    let now = status.revision;
                    let message = format!("another command gave {name} another description: it works towards revision {now}, not {own}");
                    return Err(Failure::overtaken(message).hint(format!("wait for that one with `cloudtik status {name} --wait`")));
                }
                if is_enough(&status) {
                    return Ok(status);
                }
                let news = shown.news(&status);
                if !news.is_empty() {
                    progress.keep(&news.join("\n"));
                }
                let (nodes, waits) = describe_waits(&status);
                progress.waiting_for(&format!("{name}: {nodes}"), &waits);
                last = Some(status);
            }
            progress.waiting(&format!("{name}: the head is restarting"));
            pause.wait().await;
            client = client.reconnect().await.map_err(|failure| match client.place.exists() {
                true => failure,
                false => Failure::overtaken(format!("{name} was taken down by another command")),
            })?;
        }
    };
    match tokio::time::timeout(timeout, waiting).await {
        Ok(result) => result,
        Err(_) => {
            let waits = last.as_ref().map_or_else(|| "its head".to_owned(), |s: &Status| s.waiting_for.join("\n  "));
            let logs: Vec<String> = last.iter().flat_map(failing).flat_map(|f| f.lines_beside_states()).collect();
            let waits = if logs.is_empty() { waits } else { format!("{waits}\n{}", logs.join("\n")) };
            let hint = format!("look further with `cloudtik events {name}` and `cloudtik logs {name} --runtime RUNTIME`");
            Err(Failure::new(TIMED_OUT, format!("{name} is not ready after {}; it waits for\n  {waits}", short(timeout))).hint(hint))
        }
    }
}

/// How many nodes are ready, and how many there are.
fn ready_nodes(status: &Status) -> (usize, usize) {
    (status.nodes.iter().filter(|n| n.state == "ready").count(), status.nodes.len())
}

/// How many nodes are ready, and the first of what the cluster waits for.
fn describe_waits(status: &Status) -> (String, Vec<String>) {
    let (ready, total) = ready_nodes(status);
    let mut waits: Vec<String> = status.waiting_for.iter().take(SHOWN_WAITS).cloned().collect();
    let more = status.waiting_for.len().saturating_sub(SHOWN_WAITS);
    if more > 0 {
        waits.push(format!("{more} more"));
    }
    (format!("{ready} of {total} nodes ready"), waits)
}

pub fn print_status(printer: &Printer, status: &Status) {
    let phase = if status.ready { "ready" } else { status.phase.name() };
    let (ready, total) = ready_nodes(status);
    let name = printer.bold(status.cluster.as_str());
    printer.line(&format!("{name}: {phase}, {ready}/{total} nodes ready, revision {}", status.revision));
    let (address, epoch, age) = (&status.head.address, status.head.epoch.0, ago(status.head.started));
    printer.line(&format!("head: {address}, up {age}, epoch {epoch}"));
    printer.line("");
    print_nodes(printer, status);
    print_runtimes(printer, status);
}

/// Columns of the nodes' table that are left out where it is too wide.
const SPARE_COLUMNS: [&str; 2] = ["RUNTIMES", "TYPE"];

fn print_nodes(printer: &Printer, status: &Status) {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = status
        .nodes
        .iter()
        .map(|node| {
            let runtimes: Vec<String> = node
                .runtimes
                .iter()
                .map(|(name, state)| match state.as_str() {
                    "ready" => name.to_string(),
                    "backoff" => format!("{name} (crashed)"),
                    state => format!("{name} ({state})"),
                })
                .collect();
            vec![
                node.id.to_string(),
                node.node_type.to_string(),
                node.state.clone(),
                or_none(node.address.clone()),
                or_none(node.cpus.map(|c| c.to_string())),
                or_none(node.memory.map(|m| Bytes(m).to_string())),
                or_none(node.heartbeat_age_ms.map(|ms| format!("{} ago", short(Duration::from_millis(ms))))),
                ago(node.since),
                runtimes.join(", "),
            ]
        })
        .collect();
    let header = ["NODE", "TYPE", "STATE", "ADDRESS", "CPUS", "MEMORY", "LAST HEARTBEAT", "AGE", "RUNTIMES"];
    printer.table_within(columns_of_output(), &header, &rows, &SPARE_COLUMNS);
    // Reasons are sentences, which no column has room for.
    for node in &status.nodes {
        if let Some(reason) = &node.reason {
            printer.line(&format!("{} is {}: {reason}", node.id, node.state));
        }
    }
}

/// Consoles of one runtime that a status shows; workers may have one each.
const SHOWN_CONSOLES: usize = 3;

fn print_runtimes(printer: &Printer, status: &Status) {
    if status.runtimes.is_empty() {
        return;
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    for runtime in &status.runtimes {
        let mut consoles: Vec<String> =
            runtime.endpoints.iter().take(SHOWN_CONSOLES).map(|endpoint| format!("{}: {}", endpoint.name, endpoint.url)).collect();
        let more = runtime.endpoints.len().saturating_sub(SHOWN_CONSOLES) + runtime.endpoints_left_out;
        if more > 0 {
            consoles.push(format!("{more} more: cloudtik runtimes {}", status.cluster));
        }
        let first = consoles.first().cloned().unwrap_or_else(|| "-".to_owned());
        rows.push(vec![runtime.name.to_string(), runtime.version.clone(), runtime.state.clone(), first]);
        rows.extend(consoles.into_iter().skip(1).map(|console| vec![String::new(), String::new(), String::new(), console]));
    }
    printer.line("");
    printer.table(&["RUNTIME", "VERSION", "STATE", "CONSOLES"], &rows);
}

fn print_endpoints(printer: &Printer, status: &Status) {
    for runtime in &status.runtimes {
        for endpoint in &runtime.endpoints {
            printer.line(&format!("{}: {}", endpoint.name, endpoint.url));
        }
        if runtime.endpoints_left_out > 0 {
            printer.line(&left_out(runtime));
        }
    }
}

/// Of what the head does not name.
fn left_out(runtime: &cloudtik_model::status::Runtime) -> String {
    format!(
        "{} more consoles of {} are not listed: the head names the first {}",
        runtime.endpoints_left_out,
        runtime.name,
        runtime.endpoints.len()
    )
}

pub async fn info(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let status = client.status().await?;
    let paths = &client.place;
    let remote = Remote::of(paths)?;
    let file = paths.remembered().map(|r| r.file.display().to_string()).unwrap_or_default();
    let software = if remote.is_none() { Some(cache::look(&clusters::artifacts()?)?) } else { None };
    if printer.is_json() {
        #[derive(Serialize)]
        struct Software<'a> {
            /// Of this machine; absent where the cluster is reached over the network, and so is what is in it.
            #[serde(skip_serializing_if = "Option::is_none")]
            directory: Option<&'a std::path::Path>,
            #[serde(skip_serializing_if = "Option::is_none")]
            bytes: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            unused_bytes: Option<u64>,
            /// Beyond this the head removes archives that no node needs.
            limit_bytes: Option<u64>,
        }
        #[derive(Serialize)]
        struct Info<'a> {
            cluster: &'a str,
            file: &'a str,
            directory: String,
            /// Absent where the cluster is reached over the network.
            #[serde(skip_serializing_if = "Option::is_none")]
            socket: Option<String>,
            /// How it is reached otherwise.
            #[serde(skip_serializing_if = "Option::is_none")]
            access: Option<&'a Remote>,
            head: &'a cloudtik_model::status::Head,
            runtimes: &'a [cloudtik_model::status::Runtime],
            software: Software<'a>,
        }
        printer.json(&Info {
            cluster: paths.name.as_str(),
            file: &file,
            directory: paths.directory.display().to_string(),
            socket: remote.is_none().then(|| paths.socket().display().to_string()),
            access: remote.as_ref(),
            head: &status.head,
            runtimes: &status.runtimes,
            software: Software {
                directory: software.as_ref().map(|s| s.directory.as_path()),
                bytes: software.as_ref().map(|s| s.bytes),
                unused_bytes: software.as_ref().map(cache::Contents::unused_bytes),
                limit_bytes: status.head.software_limit.map(|limit| limit.0),
            },
        });
        return Ok(());
    }
    printer.line(&format!("cluster    {}", paths.name));
    match &remote {
        Some(remote) => printer.line(&format!("access     {}, {}, until {}", remote.name, remote.role, clock(remote.expires))),
        None => printer.line(&format!("file       {file}")),
    }
    printer.line(&format!("directory  {}", paths.directory.display()));
    printer.line(&format!("head       {} (version {}, process {})", status.head.address, status.head.version, status.head.pid));
    if let Some(software) = software {
        let (all, unused) = (Size(software.bytes), Size(software.unused_bytes()));
        printer.line(&format!("software   {all} in {}, {unused} of it unused", software.directory.display()));
    }
    if let Some(limit) = status.head.software_limit {
        printer.line(&format!("limit      {limit} of software; beyond it the head removes archives that no node needs"));
    }
    for runtime in &status.runtimes {
        printer.line(&format!("{:<10} {} ({})", runtime.name, runtime.version, runtime.state));
        for endpoint in &runtime.endpoints {
            printer.line(&format!("           {}: {}", endpoint.name, endpoint.url));
        }
        if runtime.endpoints_left_out > 0 {
            printer.line(&format!("           {}", left_out(runtime)));
        }
    }
    Ok(())
}

pub async fn nodes(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let status = Client::connect(cluster).await?.status().await?;
    if printer.is_json() {
        printer.json(&status.nodes)
    } else {
        print_nodes(printer, &status)
    }
    Ok(())
}

pub async fn runtimes(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let status = Client::connect(cluster).await?.status().await?;
    if printer.is_json() {
        printer.json(&status.runtimes);
        return Ok(());
    }
    let mut rows = Vec::new();
    for node in &status.nodes {
        for service in &node.services {
            // A head of an earlier version describes nothing.
            let state = if service.description.is_empty() { service.state.clone() } else { service.description.clone() };
            rows.push(vec![
                service.name.clone(),
                node.id.to_string(),
                state,
                service.pid.map_or_else(|| "-".to_owned(), |p| p.to_string()),
                service.restarts.to_string(),
                ago(service.since),
            ]);
        }
    }
    printer.table(&["SERVICE", "NODE", "STATE", "PROCESS", "RESTARTS", "AGE"], &rows);
    print_endpoints(printer, &status);
    Ok(())
}

pub async fn list(printer: &Printer) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Listed {
        cluster: String,
        workspace: String,
        phase: String,
        nodes: usize,
        head: Option<String>,
        file: String,
    }
    let mut all = Vec::new();
    for (paths, status) in cluster_statuses::all().await? {
        all.push(Listed {
            cluster: paths.name.to_string(),
            workspace: paths.workspace_name(),
            phase: status.as_ref().map_or_else(|why| why.name().to_owned(), |s| s.phase.name().to_owned()),
            nodes: status.as_ref().map_or(0, |s| s.nodes.len()),
            head: status.ok().map(|s| s.head.address),
            file: paths.remembered().map(|r| r.file.display().to_string()).unwrap_or_default(),
        });
    }
    if printer.is_json() {
        printer.json(&all);
        return Ok(());
    }
    let rows: Vec<_> = all
        .into_iter()
        .map(|l| vec![l.cluster, l.workspace, l.phase, l.nodes.to_string(), l.head.unwrap_or_else(|| "-".to_owned()), l.file])
        .collect();
    // Its directory was removed while it ran: it is no cluster any more, and it is not nothing.
    let mut left: Vec<String> = orphans::find()?.into_iter().filter(|o| !o.paths.exists()).map(|o| o.paths.name.to_string()).collect();
    left.dedup();
    if !left.is_empty() {
        printer.say(&format!("processes of removed clusters still run: {}; see `cloudtik doctor`", left.join(", ")));
    }
    printer.table(&["CLUSTER", "WORKSPACE", "PHASE", "NODES", "HEAD", "FILE"], &rows);
    Ok(())
}

pub async fn dump(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let mut parts = client.admin().dump(wire::Empty {}).await?.into_inner();
    let mut json = Vec::new();
    while let Some(part) = parts.message().await? {
        json.extend_from_slice(&part.json);
    }
    let dump: serde_json::Value = document(wire::Document { json: json.into() })?;
    printer.json(&dump);
    Ok(())
}
