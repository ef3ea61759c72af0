//! `up` of a cluster that somebody else created: its head takes the file; nothing is made here.

use cloudtik_model::status::Status;

use super::{apply, show_plan};
use crate::cli::Up;
use crate::client::Client;
use crate::clusters::ClusterPaths;
use crate::described::Described;
use crate::failure::Failure;
use crate::output::Printer;
use crate::remote::Remote;
use crate::show;
use crate::terminal::Progress;

pub async fn run(printer: &Printer, arguments: &Up, described: &Described, paths: ClusterPaths) -> Result<(), Failure> {
    let client = Client::reach(paths).await?;
    let name = &client.place.name;
    if let Some(remote) = Remote::of(&client.place)? {
        printer.say(&format!("{name} is the cluster of somebody else at {}, reached as {}, {}", remote.address, remote.name, remote.role));
    }
    let mut plan = apply(&client, described, true).await?;
    if arguments.plan {
        show_plan(printer, described, &plan);
        return Ok(());
    }
    // A person may take long to answer; others go on meanwhile, so the plan is looked at again.
    while !plan.changes.is_empty() {
        show_plan(printer, described, &plan);
        if plan.changes.iter().any(|change| change.disturbs) {
            printer.confirm_async("Apply these changes?", arguments.yes).await?;
        }
        let again = apply(&client, described, true).await?;
        if again == plan {
            break;
        }
        plan = again;
    }
    apply(&client, described, false).await?;
    let mut status = client.status().await?;
    if !arguments.no_wait {
        let mut progress = Progress::new();
        progress.phase(&format!("{name}: waiting for the cluster"));
        let is_enough = |status: &Status| status.ready || status.lacks_only_room;
        status = show::wait_until(&client, arguments.timeout, &mut progress, Some(status.revision), is_enough).await?;
    }
    if printer.is_json() {
        printer.json(&status);
    } else {
        show::print_status(printer, &status);
    }
    printer.say(&match (plan.changes.is_empty(), status.ready) {
        (true, true) => format!("{name} is up to date; nothing to do"),
        (_, true) => format!("{name} is ready"),
        (_, false) => format!("{name} has the file; see what it waits for with `cloudtik status {name}`"),
    });
    Ok(())
}
