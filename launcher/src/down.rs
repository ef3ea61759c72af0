//! `cloudtik down`: nothing of the cluster is left; software stays, and is told.

use std::time::Duration;

use cloudtik_model::node::InstanceState;
use cloudtik_model::software::Size;
use cloudtik_model::status::{Phase, Status};
use cloudtik_protocol::files::{RemoveError, refuse_mounts, remove_tree};
use cloudtik_protocol::wire;
use cloudtik_providers::DeleteNode;
use cloudtik_registry::registry;

use crate::cache::{self, Contents};
use crate::cli::{Down, Target};
use crate::client::Client;
use crate::clusters::{ClusterPaths, artifacts, find, lookup};
use crate::failure::{Failure, INTERRUPTED, REFUSED, chain};
use crate::interrupts::Interrupts;
use crate::lock::Lock;
use crate::orphans::{self, Orphan};
use crate::output::Printer;
use crate::remote::Remote;
use crate::terminal::Progress;

pub async fn run(printer: &Printer, arguments: &Down) -> Result<(), Failure> {
    let target = Target::from(&arguments.cluster);
    let known = lookup(target)?;
    // Its directory was removed while it ran.
    if known.as_ref().is_none_or(|paths| !paths.exists()) {
        let of_this = |orphan: &Orphan| match &known {
            Some(paths) => orphan.paths == *paths,
            None => {
                let is_in = |workspace: &str| orphan.paths.workspace_name() == workspace;
                target.cluster == Some(orphan.paths.name.as_str()) && target.workspace.is_none_or(is_in)
            }
        };
        if let Some(orphan) = orphans::find()?.into_iter().find(of_this) {
            return end_orphans(printer, &orphan.paths, arguments.yes).await;
        }
    }
    let paths = match known {
        Some(paths) => paths,
        None if arguments.if_exists => {
            if printer.is_json() {
                print_document(printer, &arguments.cluster.cluster, None);
            }
            let within = target.workspace.map_or_else(String::new, |workspace| format!(" in the workspace {workspace}"));
            printer.say(&format!("there is no cluster {}{within}; nothing to do", arguments.cluster.cluster));
            return Ok(());
        }
        None => find(target)?,
    };
    if !paths.exists() {
        if printer.is_json() {
            print_document(printer, paths.name.as_str(), None);
        }
        printer.say(&format!("{} is not up; nothing to do", paths.name));
        return Ok(());
    }
    if let Some(remote) = Remote::of(&paths)? {
        return down_elsewhere(printer, arguments, &paths, &remote).await;
    }
    let name = &paths.name;
    nothing_mounted(&paths)?;
    printer.confirm(&format!("Take {name} down, with everything on it?"), arguments.yes)?;
    let work = async {
        let mut progress = Progress::new();
        progress.phase(&format!("{name}: asking the head"));
        // Held while the head is asked and while everything is deleted, not while workers go.
        let lock = Lock::take(&paths).await?;
        let client = Client::dial(&paths).await.ok();
        let asked = match &client {
            Some(client) => Some(shut_down(client).await),
            None => None,
        };
        drop(lock);
        let was_stopping = matches!(asked, Some(Ok(())));
        let gone = match (&client, asked) {
            (Some(client), Some(Ok(()))) => Some(workers_gone(client, arguments.timeout, &mut progress).await),
            (_, asked) => asked,
        };
        match gone {
            Some(Ok(())) => {}
            Some(Err(failure)) if failure.overtaken => return Err(failure),
            Some(Err(failure)) => progress.keep(&format!("{name}: graceful shutdown failed: {}", failure.message)),
            None => progress.keep(&format!("{name}: the head does not answer; its nodes are deleted without draining")),
        }
        progress.phase(&format!("{name}: deleting what is left"));
        let lock = Lock::take(&paths).await?;
        // A head that never heard of the shutdown is as it was, which says nothing about another command.
        if was_stopping
            && let Ok(client) = Client::dial(&paths).await
            && let Ok(Ok(status)) = tokio::time::timeout(ASKED_WITHIN, client.status()).await
        {
            is_still_wanted(&status)?;
        }
        delete_everything(&paths).await?;
        Ok::<_, Failure>(lock)
    };
    let mut interrupts = Interrupts::listen()?;
    let lock = tokio::select! {
        result = work => result?,
        () = interrupts.next() => {
            let left = Failure::new(INTERRUPTED, "interrupted; part of the cluster is still there");
            return Err(left.hint(format!("go on with `cloudtik down {name}`")));
        }
    };
    lock.remove();
    // The cluster is down, even if what else there is cannot be looked at.
    let software = artifacts().and_then(|directory| cache::look(&directory)).ok().filter(|software| software.bytes > 0);
    if printer.is_json() {
        print_document(printer, name.as_str(), software.as_ref());
    }
    printer.say(&match &software {
        None => format!("{name} is down; nothing is left"),
        Some(software) => format!("{name} is down. {}", what_stays(software)),
    });
    Ok(())
}

/// Has the head of somebody else's cluster let its workers go. What runs the head, and the cluster's files, are where the cluster was
/// created.
async fn down_elsewhere(printer: &Printer, arguments: &Down, paths: &ClusterPaths, remote: &Remote) -> Result<(), Failure> {
    let name = &paths.name;
    printer.confirm_async(&format!("Remove every worker of {name}, with everything on it?"), arguments.yes).await?;
    let client = Client::reach(paths.clone()).await?;
    let mut progress = Progress::new();
    progress.phase(&format!("{name}: asking the head"));
    shut_down(&client).await?;
    workers_gone(&client, arguments.timeout, &mut progress).await?;
    drop(progress);
    let cluster = &remote.cluster;
    if printer.is_json() {
        printer.json(&serde_json::json!({ "cluster": name, "done": false }));
    }
    printer.say(&format!("the workers of {name} are gone. Its head stays: `cloudtik down {cluster}` removes it where it was created"));
    Ok(())
}

/// Ends what runs of a cluster that has no directory any more.
async fn end_orphans(printer: &Printer, paths: &ClusterPaths, yes: bool) -> Result<(), Failure> {
    let name = &paths.name;
    printer.confirm(&format!("The directory of {name} was removed while it ran. End its processes?"), yes)?;
    // While a person answered, the cluster may have been brought up anew, with processes that carry the same directories.
    let may_be_locked = paths.directory.parent().is_some_and(std::path::Path::is_dir);
    let _lock = if may_be_locked { Some(Lock::take(paths).await?) } else { None };
    if paths.exists() {
        return Err(Failure::overtaken(format!("{name} was brought up by another command; it stays")));
    }
    registry().end_leftovers(&paths.nodes())?;
    if printer.is_json() {
        print_document(printer, name.as_str(), None);
    }
    printer.say(&format!("{name} is down: the processes that were left of it have ended"));
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

/// How long the head may take to hear that the cluster is being taken down.
const ASKED_WITHIN: Duration = Duration::from_secs(3);

/// Refuses to delete what is mounted from elsewhere, before anything is changed.
fn nothing_mounted(paths: &ClusterPaths) -> Result<(), Failure> {
    refuse_mounts(&paths.directory).map_err(|error| not_removed(paths, &error))
}

fn not_removed(paths: &ClusterPaths, error: &RemoveError) -> Failure {
    let name = &paths.name;
    match error {
        RemoveError::Mounted(mounts) => Failure::new(REFUSED, format!("{mounts} below the directory of {name}; nothing was deleted"))
            .hint(format!("`{}`, then `cloudtik down {name}`; what is mounted is never deleted", mounts.unmount())),
        RemoveError::Io { .. } => Failure::failed(chain(error)),
    }
}

/// Has the head let its workers go.
async fn shut_down(client: &Client) -> Result<(), Failure> {
    let asked = tokio::time::timeout(ASKED_WITHIN, async { client.admin().shutdown(wire::Empty {}).await }).await;
    asked.map_err(|_| Failure::failed("the head is not set up"))??;
    Ok(())
}

/// Another command may bring the cluster up again while this one waits.
fn is_still_wanted(status: &Status) -> Result<(), Failure> {
    if matches!(status.phase, Phase::Converging | Phase::Ready) {
        let name = &status.cluster;
        let hint = format!("`cloudtik down {name}` takes it down after all");
        return Err(Failure::overtaken(format!("another command brought {name} up again; it stays")).hint(hint));
    }
    Ok(())
}

/// Waits until the workers are gone.
async fn workers_gone(client: &Client, timeout: Duration, progress: &mut Progress) -> Result<(), Failure> {
    let name = client.place.name.clone();
    let waiting = async {
        let mut statuses = client.watch().await?;
        while let Some(status) = statuses.message().await? {
            // Without a description there never was a worker.
            if matches!(status.phase, Phase::Stopped | Phase::Empty) {
                return Ok(());
            }
            is_still_wanted(&status)?;
            nothing_mounted(&client.place).map_err(|failure| Failure { overtaken: true, ..failure })?;
            let left: Vec<String> = status.nodes.iter().filter(|n| n.kind == "worker").map(|n| format!("{} ({})", n.id, n.state)).collect();
            progress.waiting(&format!("{name}: waiting for {} to go", left.join(", ")));
        }
        Err(Failure::failed("lost the connection to the head"))
    };
    tokio::time::timeout(timeout, waiting).await.unwrap_or_else(|_| Err(Failure::failed("timed out waiting for the workers")))
}

/// Deletes every instance, the head's first so that it makes no new ones, and then the cluster's own files.
async fn delete_everything(paths: &ClusterPaths) -> Result<(), Failure> {
    nothing_mounted(paths)?;
    if let Some(known) = paths.provider() {
        let provider = registry().nodes(&known)?;
        // Twice: a head may have been making a node while it was deleted.
        for _ in 0..2 {
            let mut instances = provider.list().await?;
            instances.sort_by_key(|i| !i.node.is_head());
            for instance in instances.iter().filter(|i| i.state != InstanceState::Terminated) {
                provider.delete_one(&DeleteNode::of(instance)).await?;
            }
        }
    }
    let own = paths.clone();
    // On a thread of its own, so that an interrupt is heard meanwhile.
    let deletion = tokio::task::spawn_blocking(move || {
        // Nothing may be left, be it listed or not: nodes whose directories somebody removed, or what outlived its own.
        registry().end_leftovers(&own.nodes())?;
        remove_tree(&own.directory).map_err(|error| not_removed(&own, &error))
    });
    deletion.await.map_err(|e| Failure::failed(e.to_string()))?
}
