//! `logs`: what services and agents say.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use cloudtik_model::Generation;
use cloudtik_model::secret::Redactor;
use cloudtik_model::status::{Node, Phase, Status};
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cli::Logs;
use crate::client::{Client, is_refused};
use crate::failure::{Failure, NOT_AUTHORISED, NOT_FOUND, TIMED_OUT};
use crate::output::{Printer, talk};
use crate::pause::Pause;
use crate::session::{Lines, Session};

/// Of a log that appears while logs are followed, everything is news.
const EVERYTHING: u32 = u32::MAX;
/// How long a node that does not answer is not worth a word.
const QUIET: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Line {
    node: String,
    /// Empty for the node's agent.
    service: String,
    line: String,
}

/// One log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    node: String,
    generation: Generation,
    /// Empty for the node's agent.
    service: String,
}

/// How the following of a log ended.
enum End {
    /// Everything that was asked for was printed.
    Whole,
    /// There is no such node any more, or it is about to go; with the reason.
    NodeGone(String),
    /// The cluster was taken down.
    ClusterGone,
}

pub async fn logs(printer: &Printer, arguments: &Logs) -> Result<(), Failure> {
    let client = Client::connect(&arguments.cluster).await?;
    let status = client.status().await?;
    let name = &client.place.name;
    if let Some(node) = arguments.node.as_deref().filter(|node| status.nodes.iter().all(|n| n.id.as_str() != *node)) {
        return Err(Failure::new(NOT_FOUND, format!("there is no node {node}")).hint(format!("see `cloudtik nodes {name}`")));
    }
    let mut known = sources(&status, arguments);
    let is_expected = |runtime: &String| arguments.follow && status.runtimes.iter().any(|r| r.name.as_str() == runtime.as_str());
    if let Some(runtime) = arguments.runtime.as_ref().filter(|runtime| known.is_empty() && !is_expected(runtime)) {
        let failure = Failure::new(NOT_FOUND, format!("no service of the runtime {runtime} was found"));
        return Err(failure.hint(format!("see `cloudtik runtimes {name}`")));
    }
    // Others may join while logs of a runtime are followed; one node that is named ends what follows it.
    let takes_more = arguments.follow && arguments.runtime.is_some() && (arguments.node.is_none() || known.is_empty());
    let prefixed = known.len() > 1 || takes_more;
    let (lines, mut printed) = mpsc::channel::<Line>(64);
    let mut running = JoinSet::new();
    for source in &known {
        let logs = wire::Logs { service: source.service.clone(), lines: arguments.lines, follow: arguments.follow, ..Default::default() };
        running.spawn(follow(client.clone(), source.clone(), logs, lines.clone()));
    }
    let mut lines = Some(lines).filter(|_| takes_more);
    let (news, mut statuses) = mpsc::channel(1);
    let mut watching = JoinSet::new();
    if takes_more {
        watching.spawn(watch(client.clone(), news));
    }
    let mut failed = None;
    loop {
        tokio::select! {
            line = printed.recv() => match line {
                Some(line) => print(printer, prefixed, &line),
                None => break,
            },
            Some(status) = statuses.recv() => match (status, &lines) {
                (Err(failure), _) => return Err(failure),
                (Ok(Some(status)), Some(lines)) => for source in sources(&status, arguments) {
                    if known.insert(source.clone()) {
                        let logs = wire::Logs { service: source.service.clone(), lines: EVERYTHING, follow: true, ..Default::default() };
                        running.spawn(follow(client.clone(), source, logs, lines.clone()));
                    }
                },
                // The cluster was taken down: nothing else will come.
                _ => lines = None,
            },
            Some(joined) = running.join_next() => {
                let (source, result) = joined.map_err(|e| Failure::failed(e.to_string()))?;
                match result {
                    Ok(End::Whole) => {}
                    Ok(End::ClusterGone) => lines = None,
                    Ok(End::NodeGone(reason)) if takes_more => talk(&format!("{} {}: {reason}", source.node, source.service)),
                    Ok(End::NodeGone(reason)) => failed = Some(Failure::new(NOT_FOUND, reason)),
                    Err(failure) if takes_more => talk(&format!("{} {}: {}", source.node, source.service, failure.message)),
                    Err(failure) => failed = Some(failure),
                }
            }
        }
    }
    if takes_more {
        talk(&format!("{name} was taken down"));
    }
    while let Some(joined) = running.join_next().await {
        match joined.map_err(|e| Failure::failed(e.to_string()))?.1 {
            Ok(End::NodeGone(reason)) if !takes_more => failed = Some(Failure::new(NOT_FOUND, reason)),
            Err(failure) if !takes_more => failed = Some(failure),
            _ => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

fn print(printer: &Printer, prefixed: bool, line: &Line) {
    if printer.is_json() {
        printer.json_line(line);
    } else if prefixed {
        printer.line(&format!("{} {}  {}", line.node, line.service, line.line));
    } else {
        printer.line(&line.line);
    }
}

/// The logs that are asked for and there are.
fn sources(status: &Status, arguments: &Logs) -> BTreeSet<Source> {
    let source =
        |node: &Node, service: &str| Source { node: node.id.to_string(), generation: node.generation, service: service.to_owned() };
    let mut found = BTreeSet::new();
    for node in &status.nodes {
        let is_named = arguments.node.as_deref().is_none_or(|wanted| node.id.as_str() == wanted);
        match &arguments.runtime {
            Some(runtime) if is_named => {
                let services = node.services.iter().filter(|s| s.name.split('/').next() == Some(runtime.as_str()));
                found.extend(services.map(|s| source(node, &s.name)));
            }
            None if arguments.node.is_some() && is_named => drop(found.insert(source(node, ""))),
            None if arguments.node.is_none() && node.kind == "head" => drop(found.insert(source(node, "cloudtik/head"))),
            _ => {}
        }
    }
    found
}

/// Sends every status, and nothing in the end when the cluster was taken down; or why the head says no more.
async fn watch(mut client: Client, news: mpsc::Sender<Result<Option<Status>, Failure>>) {
    let mut pause = Pause::default();
    loop {
        let refused = match client.watch().await {
            Ok(mut statuses) => loop {
                match statuses.message().await {
                    Ok(Some(status)) => {
                        pause = Pause::default();
                        if news.send(Ok(Some(status))).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            },
            Err(status) => Some(status),
        };
        if let Some(status) = refused.filter(is_refused) {
            let _ = news.send(Err(status.into())).await;
            return;
        }
        pause.wait().await;
        match client.reconnect().await {
            Ok(next) => client = next,
            Err(_) if !client.place.exists() => break,
            Err(_) => {}
        }
    }
    let _ = news.send(Ok(None)).await;
}

async fn follow(client: Client, source: Source, logs: wire::Logs, lines: mpsc::Sender<Line>) -> (Source, Result<End, Failure>) {
    let result = follow_one(client, &source, logs, lines).await;
    (source, result)
}

/// Prints one log. While it is followed, restarts of the head and of the node's agent are bridged: it goes on after the last
/// line that was printed.
async fn follow_one(mut client: Client, source: &Source, logs: wire::Logs, lines: mpsc::Sender<Line>) -> Result<End, Failure> {
    let (node, service) = (&source.node, &source.service);
    let mut reading = Reading::default();
    let mut pause = Pause::default();
    let is_broken = |failure: &Failure| logs.follow && failure.code == TIMED_OUT;
    let mut session = match Session::open(&client, node, What::Logs(logs.clone())).await {
        Ok(session) => Some(session),
        Err(failure) if is_broken(&failure) => None,
        Err(failure) => return Err(failure),
    };
    loop {
        let Some(open) = &mut session else {
            match reopen(&client, source, reading.resume(&logs), &mut pause).await? {
                Ok(reopened) => {
                    client = reopened.0;
                    session = Some(reopened.1);
                }
                Err(end) => return Ok(end),
            }
            continue;
        };
        let (found, is_end) = match open.next().await {
            Ok(Frame::Position(position)) => {
                reading.goes_on_at(position);
                continue;
            }
            Ok(Frame::Stdout(bytes)) => {
                pause = Pause::default();
                (reading.take(&bytes), false)
            }
            Ok(Frame::Exit(exit)) if exit.code == 0 && !logs.follow => (reading.rest(), true),
            Ok(Frame::Exit(exit)) if !logs.follow => {
                let what = if service.is_empty() { "its agent" } else { service.as_str() };
                let missing = Failure::new(NOT_FOUND, format!("{node} has no log of {what} yet"));
                return Err(if exit.error.is_empty() { missing } else { Failure::failed(format!("{node}: {}", exit.error)) });
            }
            Err(failure) if !is_broken(&failure) => return Err(failure),
            // The head or the agent was restarted, or the node goes.
            Ok(Frame::Exit(_)) | Err(_) => {
                session = None;
                continue;
            }
            Ok(_) => continue,
        };
        for line in found {
            let _ = lines.send(Line { node: node.clone(), service: service.clone(), line }).await;
        }
        if is_end {
            return Ok(End::Whole);
        }
    }
}

/// How far a log was read.
#[derive(Debug, Default)]
struct Reading {
    parts: Lines,
    /// Where the next bytes stand. Agents of an earlier version do not say.
    at: Option<wire::LogPosition>,
    /// The end of the last whole line.
    whole: Option<wire::LogPosition>,
    /// What a service writes is its own, and shown without secrets.
    secrets: Redactor,
}

impl Reading {
    fn goes_on_at(&mut self, position: wire::LogPosition) {
        if self.parts.waiting() == 0 {
            self.whole = Some(position.clone());
        }
        self.at = Some(position);
    }

    /// Takes bytes in and gives every line that is whole now, without secrets.
    fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let lines = self.parts.take(bytes);
        if let Some(at) = &mut self.at {
            at.offset += bytes.len() as u64;
            if !lines.is_empty() {
                // What waits now has come with these bytes.
                self.whole = Some(wire::LogPosition { offset: at.offset - self.parts.waiting() as u64, ..at.clone() });
            }
        }
        self.without_secrets(lines)
    }

    /// What is left when the log has ended.
    fn rest(&mut self) -> Vec<String> {
        let rest = self.parts.rest().into_iter().collect();
        self.without_secrets(rest)
    }

    fn without_secrets(&mut self, mut lines: Vec<String>) -> Vec<String> {
        for line in &mut lines {
            if let Cow::Owned(redacted) = self.secrets.line(line) {
                *line = redacted;
            }
        }
        lines
    }

    /// What is to be opened to go on after the last whole line; what was begun is read again.
    fn resume(&mut self, logs: &wire::Logs) -> wire::Logs {
        self.parts = Lines::default();
        self.at = None;
        match &self.whole {
            Some(whole) => wire::Logs { after: Some(whole.clone()), ..logs.clone() },
            None => logs.clone(),
        }
    }
}

/// Opens a log again once its node is linked to a head, however long that takes, unless the node goes or the cluster does.
async fn reopen(client: &Client, source: &Source, logs: wire::Logs, pause: &mut Pause) -> Result<Result<(Client, Session), End>, Failure> {
    let begun = tokio::time::Instant::now();
    let mut is_told = false;
    loop {
        pause.wait().await;
        match try_reopen(client, source, &logs).await {
            Ok(reopened) => return Ok(reopened),
            Err(Some(refused)) => return Err(refused),
            Err(None) if !is_told && begun.elapsed() >= QUIET => {
                talk(&format!("{} {}: its node is not connected; waiting for it", source.node, source.service));
                is_told = true;
            }
            Err(None) => {}
        }
    }
}

/// Fails without a reason while the node cannot be reached, and with one where waiting does not help.
async fn try_reopen(client: &Client, source: &Source, logs: &wire::Logs) -> Result<Result<(Client, Session), End>, Option<Failure>> {
    let lasting = |failure: Failure| Some(failure).filter(|failure| failure.code == NOT_AUTHORISED);
    let client = match client.reconnect().await {
        Ok(client) => client,
        Err(_) if !client.place.exists() => return Ok(Err(End::ClusterGone)),
        Err(failure) => return Err(lasting(failure)),
    };
    let status = client.status().await.map_err(lasting)?;
    if let Some(end) = end_of(&status, source) {
        return Ok(Err(end));
    }
    if !status.nodes.iter().any(|n| n.id.as_str() == source.node && n.agent.is_some()) {
        return Err(None);
    }
    let opened = Session::open(&client, &source.node, What::Logs(logs.clone())).await;
    opened.map(|session| Ok((client, session))).map_err(lasting)
}

/// Whether a log has come to its end with its node, or with the cluster.
fn end_of(status: &Status, source: &Source) -> Option<End> {
    let node = status.nodes.iter().find(|n| n.id.as_str() == source.node);
    let name = &source.node;
    match node {
        _ if matches!(status.phase, Phase::Stopping | Phase::Stopped) => Some(End::ClusterGone),
        None => Some(End::NodeGone(format!("{name} is gone; `cloudtik why {} {name}` tells why", status.cluster))),
        Some(node) if node.generation != source.generation => {
            Some(End::NodeGone(format!("{name} was replaced; `cloudtik why {} {name}` tells why", status.cluster)))
        }
        Some(node) if matches!(node.state.as_str(), "terminating" | "failed" | "requested" | "launched") => {
            let why = node.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            Some(End::NodeGone(format!("{name} goes{why}")))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_goes_on_after_the_last_whole_line() {
        let logs = wire::Logs { lines: 10, follow: true, ..Default::default() };
        let at = |file: &str, offset| wire::LogPosition { file: file.to_owned(), offset };
        let mut reading = Reading::default();
        assert_eq!(reading.resume(&logs), logs, "nothing was read");
        reading.goes_on_at(at("a", 100));
        assert_eq!(reading.take(b"one\ntw"), ["one"]);
        let resumed = |reading: &mut Reading| reading.resume(&logs).after;
        assert_eq!(resumed(&mut reading), Some(at("a", 104)));
        // What was begun comes again. It ends in another file, and with it the line.
        reading.goes_on_at(at("a", 104));
        assert_eq!(reading.take(b"tw"), [""; 0]);
        reading.goes_on_at(at("b", 0));
        assert_eq!(reading.take(b""), [""; 0]);
        assert_eq!(reading.take(b"o\nthree\nf"), ["two", "three"]);
        assert_eq!(resumed(&mut reading), Some(at("b", 8)));
        reading.goes_on_at(at("b", 8));
        assert_eq!(reading.take(b"f"), [""; 0]);
        reading.goes_on_at(at("c", 0));
        assert_eq!(resumed(&mut reading), Some(at("b", 8)), "a line that was begun in one file and goes on in the next");
    }
}
