//! Commands that change what the head decides: the cluster's size, requests for room, holding, setting nodes aside.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cloudtik_model::answer::Answer;
use cloudtik_model::demand::{Bundle, Counted, Quantity, RequestedCapacity};
use cloudtik_model::{Bytes, NodeTypeName};
use cloudtik_protocol::wire;
use serde::Deserialize;
use tonic::Code;

use crate::cli::{Scale, Target};
use crate::client::{Client, document};
use crate::described::read_text;
use crate::failure::{Failure, USAGE};
use crate::output::{Printer, ago, short};
use crate::waits::{self, state_of};

pub fn print_answer(printer: &Printer, answer: wire::Document) -> Result<(), Failure> {
    let answer: Answer = document(answer)?;
    if printer.is_json() {
        printer.json(&answer)
    } else {
        printer.line(&answer.to_string())
    }
    Ok(())
}

/// A bundle as people write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    cpus: Quantity,
    #[serde(default)]
    memory: Option<String>,
    #[serde(default)]
    gpus: Quantity,
    #[serde(default)]
    resources: BTreeMap<String, Quantity>,
    #[serde(default = "one")]
    count: u32,
}

fn one() -> u32 {
    1
}

pub async fn scale(printer: &Printer, arguments: &Scale) -> Result<(), Failure> {
    let wants = wants(arguments)?;
    let client = Client::connect(&arguments.cluster).await?;
    if arguments.name.as_deref() == Some("") {
        return Err(Failure::new(USAGE, "a request's name is not empty").hint("leave --name out, and it is named by what it asks for"));
    }
    let request = wire::ScaleRequest {
        wants: serde_json::to_vec(&wants).map_err(|e| Failure::failed(e.to_string()))?.into(),
        additive: arguments.add,
        name: arguments.name.clone().unwrap_or_default(),
        lasts_ms: arguments.lasts.map_or(0, |lasts| lasts.as_millis() as u64),
        reason: arguments.reason.clone().unwrap_or_default(),
    };
    let answer = client.admin().scale(request).await.map_err(|status| {
        let (code, cluster) = (status.code(), &client.place.name);
        let failure = Failure::from(status);
        match code {
            Code::FailedPrecondition => failure.hint(format!(
                "change the limit in the cluster's file and run `cloudtik up` again; `cloudtik why {cluster}` shows who wants what"
            )),
            // The head may have stored it before it was gone.
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => {
                failure.hint(format!("whether it was taken is not known: `cloudtik requests {cluster}` shows it"))
            }
            // What was typed makes no sense.
            Code::InvalidArgument => Failure { code: USAGE, ..failure }.hint("see `cloudtik scale --help`"),
            Code::NotFound => failure.hint(format!("`cloudtik why {cluster}` shows the types that there are")),
            _ => failure,
        }
    })?;
    print_answer(printer, answer.into_inner())?;
    if arguments.wait {
        waits::for_request(&client, &as_stored(wants, arguments.add), arguments.name.as_deref(), arguments.timeout).await?;
    }
    Ok(())
}

/// What the head makes of it: beside other requests, a number of workers is one of further workers.
fn as_stored(wants: RequestedCapacity, additive: bool) -> RequestedCapacity {
    match wants {
        RequestedCapacity::Workers { node_type, count } if additive => RequestedCapacity::More { node_type, count },
        wants => wants,
    }
}

fn wants(arguments: &Scale) -> Result<RequestedCapacity, Failure> {
    let usage = |message: String| Failure::new(USAGE, message).hint("see `cloudtik scale --help`");
    let mut bundles: Vec<Counted> = Vec::new();
    let mut add = |bundle: Bundle, count: u32| {
        if count > 0 {
            bundles.push(Counted { bundle, count });
        }
    };
    // What can be shared out anyhow is asked for in pieces that fit on any node.
    if let Some(cpus) = arguments.cpus {
        add(Bundle { cpus: Quantity::ONE, ..Bundle::default() }, cpus);
    }
    if let Some(gpus) = arguments.gpus {
        add(Bundle { gpus: Quantity::ONE, ..Bundle::default() }, gpus);
    }
    if let Some(memory) = arguments.memory {
        const PIECE: u64 = 256 << 20;
        let pieces = u32::try_from(memory.0.div_ceil(PIECE)).map_err(|_| usage(format!("{memory} is too much memory")))?;
        add(Bundle { memory: Bytes(PIECE), ..Bundle::default() }, pieces);
    }
    for (name, amount) in &arguments.resources {
        add(Bundle { resources: BTreeMap::from([(name.clone(), Quantity::ONE)]), ..Bundle::default() }, *amount);
    }
    if let Some(text) = &arguments.bundles {
        let text = match text.strip_prefix('@') {
            Some(path) => {
                read_text(Path::new(path)).map_err(|failure| Failure { code: USAGE, ..failure }.hint("see `cloudtik scale --help`"))?.1
            }
            None => text.clone(),
        };
        let written: Vec<Written> = serde_json::from_str(&text).map_err(|e| {
            usage(format!("--bundles is not a list of bundles: {e}"))
                .hint("such as --bundles '[{\"cpus\": 4, \"memory\": \"8GiB\", \"count\": 2}, {\"gpus\": 1}]'")
        })?;
        for bundle in written {
            let memory = bundle.memory.as_deref().map(str::parse::<Bytes>).transpose().map_err(|e| usage(e.to_string()))?;
            let Written { cpus, gpus, resources, count, .. } = bundle;
            add(Bundle { cpus, memory: memory.unwrap_or_default(), gpus, resources }, count);
        }
    }
    match (arguments.workers, bundles.is_empty()) {
        (Some(_), false) => Err(usage("--workers asks for nodes and the other options for capacity: use one of them at a time".to_owned())),
        (Some(count), true) => {
            let name =
                NodeTypeName::new(arguments.node_type.as_deref().unwrap_or(NodeTypeName::DEFAULT)).map_err(|e| usage(e.to_string()))?;
            Ok(RequestedCapacity::Workers { node_type: name, count })
        }
        (None, true) if is_nothing(arguments) => {
            let message = "a request for 0 has no effect; `cloudtik revoke` withdraws a request".to_owned();
            Err(Failure::new(USAGE, message).hint("`cloudtik requests CLUSTER` lists it"))
        }
        (None, true) => Err(usage("nothing is asked for: use --workers, --cpus, --gpus, --memory, --resources or --bundles".to_owned())),
        (None, false) => Ok(RequestedCapacity::Bundles { bundles, gang: arguments.gang, spread: arguments.spread }),
    }
}

/// Something was named, and none of it wanted.
fn is_nothing(arguments: &Scale) -> bool {
    let Scale { cpus, gpus, memory, resources, bundles, .. } = arguments;
    cpus.is_some() || gpus.is_some() || memory.is_some() || !resources.is_empty() || bundles.is_some()
}

pub async fn requests(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let size = client.outlook().await?;
    if printer.is_json() {
        printer.json(&size.requests);
        return Ok(());
    }
    if size.requests.is_empty() {
        printer.line("there are no requests beyond the cluster's file");
        return Ok(());
    }
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
    let rows: Vec<Vec<String>> = size
        .requests
        .into_iter()
        .map(|request| {
            let state = state_of(&request);
            let of = request.request;
            let ends =
                of.until.map_or_else(|| "-".to_owned(), |at| format!("in {}", short(Duration::from_millis(at.0.saturating_sub(now)))));
            vec![of.name, of.wants.to_string(), ago(of.at), ends, of.reason, state]
        })
        .collect();
    printer.table(&["REQUEST", "WANTS", "AGE", "ENDS", "REASON", "STATE"], &rows);
    Ok(())
}

pub async fn revoke(printer: &Printer, cluster: Target<'_>, name: &str, now: bool) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let answer = client
        .admin()
        .revoke(wire::RevokeRequest { name: name.to_owned(), now })
        .await
        .map_err(|status| Failure::from(status).hint(format!("`cloudtik requests {}` lists what is asked for", client.place.name)))?;
    print_answer(printer, answer.into_inner())
}

pub async fn hold(printer: &Printer, cluster: Target<'_>, reason: Option<String>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let answer = client.admin().hold(wire::HoldRequest { reason: reason.unwrap_or_default() }).await?;
    print_answer(printer, answer.into_inner())
}

pub async fn resume(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    print_answer(printer, client.admin().resume(wire::Empty {}).await?.into_inner())
}

pub async fn quarantine(printer: &Printer, cluster: Target<'_>, node: &str, reason: Option<String>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let request = wire::QuarantineRequest { node: node.to_owned(), reason: reason.unwrap_or_default() };
    print_answer(printer, client.admin().quarantine_node(request).await?.into_inner())
}

pub async fn release(printer: &Printer, cluster: Target<'_>, node: &str) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    print_answer(printer, client.admin().release_node(wire::NodeRequest { node: node.to_owned() }).await?.into_inner())
}

pub async fn kill_node(printer: &Printer, cluster: Target<'_>, node: &str, yes: bool) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    printer.confirm(&format!("Kill {node} of {} with everything on it?", client.place.name), yes)?;
    let answer = client.admin().kill_node(wire::NodeRequest { node: node.to_owned() }).await?;
    print_answer(printer, answer.into_inner())
}

pub async fn drain(printer: &Printer, cluster: Target<'_>, node: &str, yes: bool, wait: Option<Duration>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    printer.confirm(&format!("Drain and remove {node} of {}?", client.place.name), yes)?;
    // Its successor has the same name.
    let before = client.status().await?.nodes.into_iter().find(|n| n.id.as_str() == node);
    let answer = client.admin().drain_node(wire::NodeRequest { node: node.to_owned() }).await?;
    print_answer(printer, answer.into_inner())?;
    match (wait, before) {
        (Some(timeout), Some(before)) => waits::for_removal(&client, &before.id, before.generation, timeout).await,
        _ => Ok(()),
    }
}
