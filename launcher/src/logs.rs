//! `logs`: what services and agents say.

use std::time::Duration;

use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::{transport, wire};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::cli::Logs;
use crate::client::Client;
use crate::failure::{Failure, NOT_FOUND, TIMED_OUT};
use crate::output::Printer;
use crate::session::{Lines, Session};

/// Lines that are looked at again after a restart, so that none is missed.
const LINES_AGAIN: u32 = 50;
/// How long a node may take to come back to a head that was restarted.
const REOPEN_PATIENCE: Duration = Duration::from_secs(15);

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
            let mut session = Session::open(&client, &node, What::Logs(logs.clone())).await?;
            let (mut parts, mut last, mut again) = (Lines::default(), None::<String>, false);
            loop {
                let next = match session.next().await {
                    // The head or the agent was restarted: what is said from now on is followed again.
                    Err(failure) if logs.follow && failure.code == TIMED_OUT => {
                        let client = client.reconnect().await?;
                        let logs = wire::Logs { lines: LINES_AGAIN, ..logs.clone() };
                        session = reopen(&client, &node, logs).await?;
                        (parts, again) = (Lines::default(), true);
                        continue;
                    }
                    next => next?,
                };
                let (mut found, is_end) = match next {
                    Frame::Stdout(bytes) => (parts.take(&bytes), false),
                    Frame::Exit(exit) if exit.code == 0 => (parts.rest().into_iter().collect(), true),
                    Frame::Exit(_) => {
                        let what = if service.is_empty() { "its agent".to_owned() } else { service };
                        return Err(Failure::new(NOT_FOUND, format!("{node} has no log of {what} yet")));
                    }
                    _ => continue,
                };
                // What was shown before the break is not shown again.
                if std::mem::take(&mut again)
                    && let Some(shown) = last.as_ref().and_then(|last| found.iter().rposition(|line| line == last))
                {
                    found.drain(..=shown);
                }
                last = found.last().cloned().or(last);
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

/// Opens a log again once its node is linked to the new head.
async fn reopen(client: &Client, node: &str, logs: wire::Logs) -> Result<Session, Failure> {
    let deadline = tokio::time::Instant::now() + REOPEN_PATIENCE;
    transport::retry_until(deadline, Duration::from_millis(100), || async {
        client.status().await.ok().filter(|s| s.nodes.iter().any(|n| n.id.as_str() == node && n.agent.is_some())).ok_or(())
    })
    .await
    .map_err(|()| Failure::new(TIMED_OUT, format!("{node} is not heard by the head that started")))?;
    Session::open(client, node, What::Logs(logs)).await
}
