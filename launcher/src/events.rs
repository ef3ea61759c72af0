//! `events` and `why`: the head's durable log, as it is and as an explanation.

use cloudtik_model::event::{Event, EventKind};
use cloudtik_model::node::NodeRecord;
use cloudtik_protocol::wire;
use serde::{Deserialize, Serialize};

use crate::client::{Client, document};
use crate::failure::Failure;
use crate::output::{Printer, ago, clock};

pub async fn events(printer: &Printer, cluster: &str, follow: bool, node: Option<String>, from: u64) -> Result<(), Failure> {
    let mut client = Client::connect(cluster).await?;
    let (node, mut from) = (node.unwrap_or_default(), from);
    loop {
        let request = wire::EventsRequest { from, follow, node: node.clone() };
        let mut events = client.admin().events(request).await?.into_inner();
        loop {
            let event: Event = match events.message().await {
                Ok(Some(next)) => document(next)?,
                // The head was restarted: the log goes on where it was left.
                Ok(None) | Err(_) if follow => break,
                Ok(None) => return Ok(()),
                Err(status) => return Err(status.into()),
            };
            from = event.position + 1;
            if printer.is_json() {
                printer.json_line(&event);
            } else {
                printer.line(&describe(&event));
            }
        }
        client = match Client::connect(client.place.name.as_str()).await {
            Ok(client) => client,
            // It was taken down: there is nothing more to follow.
            Err(_) if !client.place.exists() => return Ok(()),
            Err(failure) => return Err(failure),
        };
    }
}

fn describe(event: &Event) -> String {
    let node = event.node.as_ref().map_or("-", |n| n.as_str());
    format!("{}  {:<8}  {node:<8}  {}", clock(event.at), event.kind.name(), event.message)
}

#[derive(Serialize, Deserialize)]
struct Explanation {
    node: String,
    record: Option<NodeRecord>,
    events: Vec<Event>,
    /// Earlier events that were left out.
    #[serde(default)]
    left_out: u64,
}

pub async fn why(printer: &Printer, cluster: &str, node: &str) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let explanation: Explanation = document(client.admin().explain(wire::NodeRequest { node: node.to_owned() }).await?.into_inner())?;
    if printer.is_json() {
        printer.json(&explanation);
        return Ok(());
    }
    if let Some(record) = &explanation.record {
        let (name, generation) = (record.life.name(), record.generation);
        printer.line(&format!("{} is {name} since {} (generation {generation}, type {})", record.id, ago(record.since), record.node_type));
    }
    printer.line("");
    printer.line("What led to it:");
    if explanation.left_out > 0 {
        printer.line(&format!("({} earlier events: `cloudtik events {} --node {node}`)", explanation.left_out, client.place.name));
    }
    for event in &explanation.events {
        let mark = match event.kind {
            EventKind::Decision => "decided",
            EventKind::Verdict => "concluded",
            EventKind::Refusal => "refused",
            EventKind::Request => "asked",
            EventKind::Alarm => "ALARM",
            EventKind::Node | EventKind::Service | EventKind::Head => "",
        };
        let generation = event.generation.map(|g| g.0).unwrap_or_default();
        printer.line(&format!("{}  #{generation}  {mark:<9}  {}", clock(event.at), event.message));
        for text in event.details.values() {
            printer.line(&format!("{:>39}  because {text}", ""));
        }
    }
    Ok(())
}
