//! `events` and `why`: the head's durable log, as it is and as an explanation.

use cloudtik_model::alarm::Alarm;
use cloudtik_model::event::{Event, EventKind, What};
use cloudtik_model::job::Job;
use cloudtik_model::node::NodeRecord;
use cloudtik_model::outlook::Size;
use cloudtik_model::status::Service;
use cloudtik_protocol::wire;
use serde::{Deserialize, Serialize};

use crate::cli::Target;
use crate::client::{Client, document, is_refused};
use crate::failing::{Failing, failing, is_failing, log_lines};
use crate::failure::{Failure, NOT_FOUND};
use crate::fold::{Folded, fold};
use crate::jobs;
use crate::output::{Printer, ago, clock};
use crate::pause::Pause;
use crate::waits::state_of;

pub async fn events(printer: &Printer, cluster: Target<'_>, follow: bool, node: Option<String>, from: u64) -> Result<(), Failure> {
    let mut client = Client::connect(cluster).await?;
    let (node, mut from) = (node.unwrap_or_default(), from);
    if !node.is_empty() && !follow {
        // A node that nobody ever heard of has no events, which is no answer to a typing mistake.
        client.admin().explain(wire::NodeRequest { node: node.clone() }).await?;
    }
    let mut pause = Pause::default();
    loop {
        let request = wire::EventsRequest { from, follow, node: node.clone() };
        let mut events = client.admin().events(request).await?.into_inner();
        loop {
            let event: Event = match events.message().await {
                Ok(Some(next)) => document(next)?,
                Err(status) if is_refused(&status) => return Err(status.into()),
                // The head was restarted: the log goes on where it was left.
                Ok(None) | Err(_) if follow => break,
                Ok(None) => return Ok(()),
                Err(status) => return Err(status.into()),
            };
            from = event.position + 1;
            pause = Pause::default();
            if printer.is_json() {
                printer.json_line(&event);
            } else {
                printer.line(&describe(&event));
            }
        }
        pause.wait().await;
        client = match client.reconnect().await {
            Ok(client) => client,
            // It was taken down: there is nothing more to follow.
            Err(_) if !client.place.exists() => return Ok(()),
            Err(failure) => return Err(failure),
        };
    }
}

/// An event on one line.
pub fn describe(event: &Event) -> String {
    let node = event.node.as_ref().map_or("-", |n| n.as_str());
    format!("{:>6}  {}  {:<8}  {node:<8}  {}", event.position, clock(event.at), event.kind.name(), event.sentence())
}

#[derive(Serialize, Deserialize)]
struct Explanation {
    node: String,
    record: Option<NodeRecord>,
    /// The node and generation that replaces this one, if it was lost.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    replaced_by: Option<String>,
    /// The node and generation that this one replaces.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    replaces: Option<String>,
    #[serde(default)]
    services: Vec<Service>,
    events: Vec<Event>,
    /// Earlier events that were left out.
    #[serde(default)]
    left_out: u64,
    /// The events without repetitions.
    #[serde(default, skip_deserializing)]
    folded: Vec<Folded>,
}

async fn why_job(printer: &Printer, client: &Client, name: &str) -> Result<(), Failure> {
    let job: Job = document(client.admin().jobs_status(wire::JobRequest { job: name.to_owned() }).await?.into_inner())?;
    if printer.is_json() {
        printer.json(&job)
    } else {
        jobs::describe(printer, &job)
    }
    Ok(())
}

pub async fn why(printer: &Printer, cluster: Target<'_>, what: Option<String>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    match what {
        None => why_this_size(printer, &client).await,
        Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => why_decision(printer, &client, &number).await,
        Some(named) => match why_node(printer, &client, &named).await {
            // No node has that name: a job may.
            Err(no_node) if no_node.code == NOT_FOUND => match why_job(printer, &client, &named).await {
                Err(no_job) if no_job.code == NOT_FOUND => Err(no_node),
                result => result,
            },
            result => result,
        },
    }
}

/// Why the cluster has the size that it has, and why nothing happens.
async fn why_this_size(printer: &Printer, client: &Client) -> Result<(), Failure> {
    let size = client.outlook().await?;
    let status = client.status().await?;
    let failing = failing(&status);
    if printer.is_json() {
        #[derive(Serialize)]
        struct Why<'a> {
            #[serde(flatten)]
            size: &'a Size,
            alarms: &'a [Alarm],
            failing: &'a [Failing<'a>],
        }
        printer.json(&Why { size: &size, alarms: &status.alarms, failing: &failing });
        return Ok(());
    }
    // That it is held is said below.
    for alarm in status.alarms.iter().filter(|_| size.outlook.held.is_none()) {
        printer.line(&format!("ALARM: {alarm}"));
    }
    let outlook = &size.outlook;
    if let Some(held) = &outlook.held {
        printer.line(&format!(
            "The cluster is {held}. No node is created, replaced or removed; `cloudtik resume {}` ends that.",
            client.place.name
        ));
    }
    for (name, of_type) in &outlook.types {
        let for_room =
            if of_type.for_room > 0 { format!(" by count and {} for requested capacity", of_type.for_room) } else { String::new() };
        printer.line(&format!("{name}: {} running or starting, {} desired{for_room}", of_type.present, of_type.wanted));
        for (i, source) in of_type.sources.iter().enumerate() {
            printer.line(&format!("  {} {source}", if i == 0 { "because" } else { "   also" }));
        }
        for blocked in &of_type.blocked {
            printer.line(&format!("  no more: {blocked}"));
        }
        for (node, what) in &of_type.troubles {
            printer.line(&format!("  {node}: {what}"));
        }
        for (node, why) in &of_type.surplus {
            printer.line(&format!("  {node} is above the desired count: {why}"));
        }
    }
    for line in failing.iter().flat_map(Failing::lines) {
        printer.line(&line);
    }
    for request in &size.requests {
        printer.line(&format!("request {}: {} ({})", request.request.name, request.request.wants, state_of(request)));
    }
    for (name, says) in &outlook.policies {
        printer.line(&format!("policy {name}: {says}"));
    }
    if outlook.cost.0 > 0 {
        printer.line(&format!("every node that may exist costs {} together", outlook.cost));
    }
    let since = match outlook.at.0 {
        0 => "Unchanged since the head started".to_owned(),
        _ => format!("Unchanged for {}", ago(outlook.at)),
    };
    printer.line(&format!("{since}; what led to it: `cloudtik events {}`.", client.place.name));
    Ok(())
}

/// What is told of a node after a decision about it, at most.
const AFTERWARDS: usize = 12;
/// What is read for that, at most, since events repeat each other.
const AFTERWARDS_READ: usize = 200;

async fn why_decision(printer: &Printer, client: &Client, number: &str) -> Result<(), Failure> {
    let missing = || {
        Failure::new(NOT_FOUND, format!("there is no event {number}")).hint(format!("`cloudtik events {}` numbers them", client.place.name))
    };
    let position: u64 = number.parse().map_err(|_| missing())?;
    let mut events = client.admin().events(wire::EventsRequest { from: position, follow: false, node: String::new() }).await?.into_inner();
    let event: Event = match events.message().await? {
        Some(next) => document(next)?,
        None => return Err(missing()),
    };
    if event.position != position {
        return Err(missing());
    }
    let mut afterwards: Vec<Event> = Vec::new();
    if let Some(node) = &event.node {
        let request = wire::EventsRequest { from: position + 1, follow: false, node: node.to_string() };
        let mut later = client.admin().events(request).await?.into_inner();
        while fold(&afterwards).len() < AFTERWARDS
            && afterwards.len() < AFTERWARDS_READ
            && let Some(next) = later.message().await?
        {
            let next: Event = document(next)?;
            if next.generation != event.generation {
                break;
            }
            afterwards.push(next);
        }
    } else {
        // What was decided in the same step, and by that.
        while afterwards.len() < AFTERWARDS
            && let Some(next) = events.message().await?
        {
            let next: Event = document(next)?;
            if next.at != event.at || next.kind == EventKind::Request {
                break;
            }
            afterwards.push(next);
        }
    }
    if printer.is_json() {
        #[derive(Serialize)]
        struct Decision {
            event: Event,
            afterwards: Vec<Event>,
        }
        printer.json(&Decision { event, afterwards });
        return Ok(());
    }
    printer.line(&describe(&event));
    for (what, text) in event.details() {
        printer.line(&format!("  {what}: {text}"));
    }
    for line in log_lines("  last lines of the log:", &event.log) {
        printer.line(&line);
    }
    if !afterwards.is_empty() {
        printer.line("");
        printer.line("What followed:");
        for folded in fold(&afterwards) {
            let repeats = folded.repeats().map(|repeats| format!(" ({repeats})")).unwrap_or_default();
            printer.line(&format!("{}{repeats}", describe(&folded.event)));
        }
    }
    Ok(())
}

async fn why_node(printer: &Printer, client: &Client, node: &str) -> Result<(), Failure> {
    let mut explanation: Explanation = document(client.admin().explain(wire::NodeRequest { node: node.to_owned() }).await?.into_inner())?;
    explanation.folded = fold(&explanation.events);
    if printer.is_json() {
        printer.json(&explanation);
        return Ok(());
    }
    if let Some(record) = &explanation.record {
        let (name, generation) = (record.life.name(), record.generation);
        printer.line(&format!(
            "{} has been {name} for {} (generation {generation}, type {})",
            record.id,
            ago(record.since),
            record.node_type
        ));
    }
    if let Some(other) = &explanation.replaced_by {
        printer.line(&format!("{other} replaces it"));
    }
    if let Some(other) = &explanation.replaces {
        printer.line(&format!("It replaces {other}"));
    }
    if let Some(record) = &explanation.record {
        for service in explanation.services.iter().filter(|service| is_failing(service)) {
            for line in (Failing { node: &record.id, service }).lines() {
                printer.line(&line);
            }
        }
    }
    printer.line("");
    printer.line("What led to it:");
    if explanation.left_out > 0 {
        printer.line(&format!("({} earlier events: `cloudtik events {} --node {node}`)", explanation.left_out, client.place.name));
    }
    for folded in &explanation.folded {
        let event = &folded.event;
        let repeats = folded.repeats().map(|repeats| format!(" ({repeats})")).unwrap_or_default();
        let mark = match event.kind {
            EventKind::Decision => "decided",
            EventKind::Verdict => "concluded",
            EventKind::Refusal => "refused",
            EventKind::Request => "asked",
            EventKind::Alarm => "ALARM",
            EventKind::Node | EventKind::Service | EventKind::Job | EventKind::Head => "",
        };
        let generation = event.generation.map(|g| g.0).unwrap_or_default();
        printer.line(&format!("{}  #{generation}  {mark:<9}  {}{repeats}", clock(event.at), event.sentence()));
        let is_evidence = matches!(event.what, What::NodeDown { .. } | What::InstanceLost { .. });
        for (what, text) in event.details() {
            // Evidence speaks for itself; it is only numbered.
            let what = if is_evidence { "because" } else { &what };
            printer.line(&format!("{:>width$}  {what}: {text}", "", width = clock(event.at).chars().count() + 16));
        }
        for line in &event.log {
            printer.line(&format!("{:>width$}  | {line}", "", width = clock(event.at).chars().count() + 16));
        }
    }
    Ok(())
}
