//! `cloudtik down`: nothing of the cluster is left; software stays, and is told.

use std::time::Duration;

use cloudtik_model::node::InstanceState;
use cloudtik_model::software::Size;
use cloudtik_model::status::{Phase, Status};
use cloudtik_protocol::wire;
use cloudtik_providers::NodeProvider;

use crate::cache::{self, Contents};
use crate::cli::{Down, Target};
use crate::client::{Client, document};
use crate::clusters::{Place, find, lookup};
use crate::failure::{Failure, INTERRUPTED};
use crate::output::Printer;
use crate::terminal::Progress;

pub async fn run(printer: &Printer, arguments: &Down) -> Result<(), Failure> {
    let target = Target::from(&arguments.cluster);
    let place = match lookup(target)? {
        Some(place) => place,
        None if arguments.if_exists => {
            if printer.is_json() {
                print_document(printer, &arguments.cluster.cluster, None);
            }
            printer.say(&format!("there is no cluster {}; nothing to do", arguments.cluster.cluster));
            return Ok(());
        }
        None => find(target)?,
    };
    if !place.exists() {
        if printer.is_json() {
            print_document(printer, place.name.as_str(), None);
        }
        printer.say(&format!("{} is not up; nothing to do", place.name));
        return Ok(());
    }
    printer.confirm(&format!("Take {} down, with everything on it?", place.name), arguments.yes)?;
    let lock = place.lock()?;
    let name = &place.name;
    let work = async {
        let mut progress = Progress::new();
        progress.phase(&format!("{name}: asking the head"));
        match Client::dial(&place).await {
            Ok(client) => {
                if let Err(failure) = gently(&client, arguments.timeout, &mut progress).await {
                    progress.keep(&format!("{name}: not gently, because {}", failure.message));
                }
            }
            Err(_) => progress.keep(&format!("{name}: the head does not answer; its nodes are deleted as they are")),
        }
        progress.phase(&format!("{name}: deleting what is left"));
        delete_everything(&place).await
    };
    tokio::select! {
        result = work => result?,
        _ = tokio::signal::ctrl_c() => {
            let left = Failure::new(INTERRUPTED, "interrupted; part of the cluster is still there");
            return Err(left.hint(format!("go on with `cloudtik down {name}`")));
        }
    }
    lock.remove();
    // The cluster is down, even if what else there is cannot be looked at.
    let software = cache::directory().and_then(|directory| cache::look(&directory)).ok().filter(|software| software.bytes > 0);
    if printer.is_json() {
        print_document(printer, name.as_str(), software.as_ref());
    }
    printer.say(&match &software {
        None => format!("{name} is down; nothing is left"),
        Some(software) => format!("{name} is down. {}", what_stays(software)),
    });
    Ok(())
}

fn print_document(printer: &Printer, cluster: &str, software: Option<&Contents>) {
    let (directory, bytes, unused) = software.map_or((None, 0, 0), |s| (Some(&s.directory), s.bytes, s.unused_bytes()));
    let software = serde_json::json!({ "directory": directory, "bytes": bytes, "unused_bytes": unused });
    printer.json(&serde_json::json!({ "cluster": cluster, "done": true, "software": software }));
}

/// The software that stays, how much it is, and how it is removed.
fn what_stays(software: &Contents) -> String {
    let (size, directory) = (Size(software.bytes), software.directory.display());
    match software.unused_bytes() {
        0 => format!("The software in {directory} ({size}) stays: other clusters use it"),
        unused if unused == software.bytes => {
            format!("Its software stays for the next cluster: {size} in {directory}; `cloudtik cache clean` removes it")
        }
        unused => format!(
            "Software stays in {directory}: {size}, of which other clusters use {}; `cloudtik cache clean` removes the other {}",
            Size(software.bytes - unused),
            Size(unused)
        ),
    }
}

/// How long the head may take to hear that the cluster goes down.
const ASKED_WITHIN: Duration = Duration::from_secs(3);

/// Has the head let its workers go, and waits until they are gone.
async fn gently(client: &Client, timeout: Duration, progress: &mut Progress) -> Result<(), Failure> {
    let asked = tokio::time::timeout(ASKED_WITHIN, async { client.admin().shutdown(wire::Empty {}).await }).await;
    asked.map_err(|_| Failure::failed("the head is not set up"))??;
    let name = client.place.name.clone();
    let waiting = async {
        let mut statuses = client.admin().watch(wire::Empty {}).await?.into_inner();
        while let Some(next) = statuses.message().await? {
            let status: Status = document(next)?;
            // Without a description there never was a worker.
            if matches!(status.phase, Phase::Stopped | Phase::Empty) {
                return Ok(());
            }
            let left: Vec<String> = status.nodes.iter().filter(|n| n.kind == "worker").map(|n| format!("{} ({})", n.id, n.state)).collect();
            progress.waiting(&format!("{name}: waiting for {} to go", left.join(", ")));
        }
        Err(Failure::failed("the head went away"))
    };
    tokio::time::timeout(timeout, waiting).await.unwrap_or_else(|_| Err(Failure::failed("the workers took too long")))
}

/// Deletes every instance, the head's first so that it makes no new ones, and then the cluster's own files.
async fn delete_everything(place: &Place) -> Result<(), Failure> {
    // Deleting goes by the directories of the nodes; where the launcher's own note is lost, their addresses do not matter.
    let network = place.remembered().map_or([127, 0, 0], |r| r.network);
    if place.nodes().is_dir() {
        let provider = place.provider(network)?;
        // Twice: a head may have been making a node while it was deleted.
        for _ in 0..2 {
            let mut instances = provider.list().await?;
            instances.sort_by_key(|i| !i.node.is_head());
            for instance in instances.iter().filter(|i| i.state != InstanceState::Terminated) {
                provider.delete(&instance.node, instance.generation, &instance.id).await?;
            }
        }
    }
    // Nothing may be left, be it listed or not: nodes whose directories somebody removed, or what outlived its own.
    place.provider(network)?.kill_everything()?;
    match std::fs::remove_dir_all(&place.directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::failed(format!("cannot remove {}: {error}", place.directory.display())))
        }
        _ => Ok(()),
    }
}
