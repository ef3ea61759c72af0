//! `logs`: what services and agents say.

use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::cli::Logs;
use crate::client::Client;
use crate::failure::{Failure, NOT_FOUND};
use crate::output::Printer;
use crate::session::{Lines, Session};

#[derive(Serialize)]
struct Line {
    node: String,
    /// Empty for the node's agent.
    service: String,
    line: String,
}

pub async fn logs(printer: &Printer, arguments: &Logs) -> Result<(), Failure> {
    let client = Client::connect(&arguments.cluster).await?;
    let status = client.status().await?;
    let known = |name: &str| status.nodes.iter().any(|n| n.id.as_str() == name);
    if let Some(node) = arguments.node.as_deref().filter(|n| !known(n)) {
        return Err(Failure::new(NOT_FOUND, format!("there is no node {node}")).hint(format!("see `cloudtik nodes {}`", client.place.name)));
    }
    let mut wanted: Vec<(String, String)> = Vec::new();
    match &arguments.runtime {
        Some(runtime) => {
            for node in status.nodes.iter().filter(|n| arguments.node.as_deref().is_none_or(|wanted| n.id.as_str() == wanted)) {
                let services = node.services.iter().filter(|s| s.name.split('/').next() == Some(runtime.as_str()));
                wanted.extend(services.map(|s| (node.id.to_string(), s.name.clone())));
            }
            if wanted.is_empty() {
                let failure = Failure::new(NOT_FOUND, format!("no service of the runtime {runtime} was found"));
                return Err(failure.hint(format!("see `cloudtik runtimes {}`", client.place.name)));
            }
        }
        None => match &arguments.node {
            Some(node) => wanted.push((node.clone(), String::new())),
            None => wanted.push(("head".to_owned(), "cloudtik/head".to_owned())),
        },
    }
    let prefixed = wanted.len() > 1;
    let mut running = tokio::task::JoinSet::new();
    let (lines, mut printed) = mpsc::channel::<Line>(64);
    for (node, service) in wanted {
        let (client, lines) = (client.clone(), lines.clone());
        let logs = wire::Logs { service: service.clone(), lines: arguments.lines, follow: arguments.follow };
        running.spawn(async move {
            let mut session = Session::open(&client, &node, What::Logs(logs)).await?;
            let mut parts = Lines::default();
            loop {
                let (found, is_end) = match session.next().await? {
                    Frame::Stdout(bytes) => (parts.take(&bytes), false),
                    Frame::Exit(exit) if exit.code == 0 => (parts.rest().into_iter().collect(), true),
                    Frame::Exit(_) => {
                        let what = if service.is_empty() { "its agent".to_owned() } else { service };
                        return Err(Failure::new(NOT_FOUND, format!("{node} has no log of {what} yet")));
                    }
                    _ => continue,
                };
                for line in found {
                    let _ = lines.send(Line { node: node.clone(), service: service.clone(), line }).await;
                }
                if is_end {
                    return Ok::<(), Failure>(());
                }
            }
        });
    }
    drop(lines);
    while let Some(line) = printed.recv().await {
        if printer.is_json() {
            printer.json_line(&line);
        } else if prefixed {
            printer.line(&format!("{} {}  {}", line.node, line.service, line.line));
        } else {
            printer.line(&line.line);
        }
    }
    while let Some(joined) = running.join_next().await {
        joined.map_err(|e| Failure::failed(e.to_string()))??;
    }
    Ok(())
}
