//! `cloudtik up`: from a file to a running cluster.

mod elsewhere;
mod head;

use std::path::Path;
use std::time::{Duration, Instant};

use cloudtik_model::status::{Plan, Status};
use cloudtik_protocol::{transport, wire};
use cloudtik_runtimes::changes;
use serde::Serialize;

use crate::cli::Up;
use crate::client::{Client, document};
use crate::clusters::{ClusterPaths, home, usable};
use crate::described::{Described, describe};
use crate::failure::{Failure, INTERRUPTED};
use crate::head_node::{self, HeadNode};
use crate::interrupts::Interrupts;
use crate::lock::Lock;
use crate::output::{Printer, quoted};
use crate::programs;
use crate::remote;
use crate::show;
use crate::takeover;
use crate::terminal::Progress;
use crate::workspace;

/// How long a head may take to open its socket.
const HEAD_PATIENCE: Duration = Duration::from_secs(20);

/// Where the time went.
#[derive(Default)]
struct Timings(Vec<(&'static str, Duration)>);

impl Timings {
    fn note(&mut self, phase: &'static str, since: &mut Instant) {
        self.0.push((phase, since.elapsed()));
        *since = Instant::now();
    }
}

pub async fn run(printer: &Printer, arguments: &Up) -> Result<(), Failure> {
    let begun = Instant::now();
    let (mut timings, mut mark) = (Timings::default(), begun);
    let described = describe(&arguments.file)?;
    let paths = ClusterPaths::of(&described.cluster)?;
    usable(&home()?)?;
    timings.note("read and check the file", &mut mark);
    if let Some(elsewhere) = remote::instead_of(&paths)? {
        return elsewhere::run(printer, arguments, &described, elsewhere).await;
    }

    workspace::check(&described)?;
    if arguments.plan {
        let plan = match running(&paths).await? {
            Some(client) => whole_plan(&client, &described, &paths).await?,
            None => first_plan(&described, &paths)?,
        };
        show_plan(printer, &described, &plan);
        return Ok(());
    }

    // From here on an interrupt is ours to explain.
    let mut interrupts = Interrupts::listen()?;
    workspace::ensure(printer, &described, &mut interrupts).await?;
    let work = bring_up(printer, arguments, &described, &paths, &mut timings, mark);
    let result = tokio::select! {
        result = work => result,
        () = interrupts.next() => Err(Failure::new(INTERRUPTED, "interrupted")),
    };
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(failure) => return Err(what_is_left(failure, &paths, &arguments.file).await),
    };
    if printer.is_json() {
        printer.json(&outcome.status);
    } else if outcome.waited == Waited::ForReadiness {
        show::print_status(printer, &outcome.status);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let name = &paths.name;
    match outcome.waited {
        Waited::ForNothing => printer.say(&format!("{name} is up to date; nothing to do ({seconds:.2} s)")),
        Waited::ForReadiness if !outcome.status.ready => {
            let waits = outcome.status.waiting_for.join("\n  ");
            printer.say(&format!("{name} matches its file ({seconds:.2} s); requests beyond it wait for\n  {waits}"));
            printer.say(&format!("`cloudtik requests {name}` lists them, and `cloudtik revoke` withdraws one"));
        }
        Waited::ForReadiness => printer.say(&format!("{name} is ready ({seconds:.2} s). Look further with `cloudtik status {name}`")),
        Waited::No => printer.say(&format!("{name} is starting. Wait for it with `cloudtik status {name} --wait`")),
    }
    if arguments.timings {
        for (phase, took) in &outcome.timings.0 {
            printer.say(&format!("  {:>8.1} ms  {phase}", took.as_secs_f64() * 1000.0));
        }
    }
    Ok(())
}

struct Outcome {
    status: Status,
    waited: Waited,
    timings: Timings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// It was told not to wait.
    No,
    /// Everything was as it is to be.
    ForNothing,
    ForReadiness,
}

async fn bring_up(
    printer: &Printer,
    arguments: &Up,
    described: &Described,
    paths: &ClusterPaths,
    timings: &mut Timings,
    mut mark: Instant,
) -> Result<Outcome, Failure> {
    let mut timings = std::mem::take(timings);
    let mut lock = Lock::take(paths).await?;
    // One whose node was lost has a description all the same.
    let mut is_made = HeadNode::of(paths).await? != HeadNode::Missing;
    if !is_made && !takeover::changes(described, paths)?.is_empty() {
        show_plan(printer, described, &first_plan(described, paths)?);
        drop(lock);
        printer.confirm_async(&format!("Bring {} up?", paths.name), arguments.yes).await?;
        lock = Lock::take(paths).await?;
        // Another command may have brought it up meanwhile: then this is a change of that, with a plan of its own.
        is_made = HeadNode::of(paths).await? != HeadNode::Missing;
    }
    let mut progress = Progress::new();
    let client = match running(paths).await.ok().flatten() {
        Some(client) if HeadNode::of(paths).await?.is_made() => client,
        _ => {
            progress.phase(&format!("{}: making the head", paths.name));
            head::make(described, paths).await?;
            timings.note("make the head's node", &mut mark);
            progress.phase(&format!("{}: waiting for the head to answer", paths.name));
            let deadline = tokio::time::Instant::now() + HEAD_PATIENCE;
            let dialled = transport::retry_until(deadline, Duration::from_millis(1), || Client::dial(paths)).await;
            let client = match dialled {
                Ok(client) => client,
                Err(failure) => return Err(head::trouble(paths, failure).await),
            };
            timings.note("start the head's agent and the head", &mut mark);
            client
        }
    };
    head::install_identity(&client, described, paths).await?;
    timings.note("certify the head", &mut mark);
    let mut unchanged = false;
    let mut shown = None;
    if is_made {
        loop {
            let plan = whole_plan(&client, described, paths).await?;
            unchanged = plan.changes.is_empty();
            if unchanged || shown.as_ref() == Some(&plan) {
                break;
            }
            drop(progress);
            show_plan(printer, described, &plan);
            let harmful = plan.changes.iter().any(|c| c.disturbs);
            if harmful && !arguments.yes {
                // A person may take long to answer; others go on meanwhile, so the plan is looked at again.
                drop(lock);
                printer.confirm_async("Apply these changes?", arguments.yes).await?;
                lock = Lock::take(paths).await?;
                if !HeadNode::of(paths).await?.is_made() {
                    return Err(Failure::overtaken(format!("{} was taken down by another command", paths.name)));
                }
            }
            progress = Progress::new();
            shown = Some(plan);
        }
    }
    if is_made && programs::place(paths).await? {
        progress.keep(&format!("{}: other programs are placed; agents and the head are those when they start again", paths.name));
    }
    takeover::note(described, paths)?;
    apply(&client, described, false).await?;
    timings.note("hand the description over", &mut mark);
    if arguments.no_wait {
        let status = client.status().await?;
        return Ok(Outcome { status, waited: Waited::No, timings });
    }
    let status = client.status().await?;
    // From here on it only waits, and other commands may change the cluster.
    drop(lock);
    let was_ready = is_made && status.ready;
    progress.phase(&format!("{}: waiting for the cluster", paths.name));
    // What people ask for beyond the file may have to wait for ever.
    let is_enough = |status: &Status| status.ready || status.lacks_only_room;
    let status = show::wait_until(&client, arguments.timeout, &mut progress, Some(status.revision), is_enough).await?;
    timings.note("workers and runtimes", &mut mark);
    let waited = if unchanged && was_ready { Waited::ForNothing } else { Waited::ForReadiness };
    Ok(Outcome { status, waited, timings })
}

/// The head, if the cluster has one. A head that is restarting is waited for a little.
async fn running(paths: &ClusterPaths) -> Result<Option<Client>, Failure> {
    if HeadNode::of(paths).await? == HeadNode::Missing {
        return Ok(None);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
    transport::retry_until(deadline, Duration::from_millis(20), || Client::dial(paths)).await.map(Some)
}

async fn apply(client: &Client, described: &Described, plan_only: bool) -> Result<Plan, Failure> {
    let mut runtime_files = std::collections::HashMap::new();
    for (runtime, folder) in &described.folders {
        for (path, text) in folder {
            runtime_files.insert(format!("{runtime}/{path}"), text.clone().into_bytes().into());
        }
    }
    let request = wire::ApplyRequest { cluster_file: described.text.clone(), runtime_files, plan_only };
    document(client.admin().apply(request).await?.into_inner())
}

/// What bringing the file up would change in the cluster and beside it.
async fn whole_plan(client: &Client, described: &Described, paths: &ClusterPaths) -> Result<Plan, Failure> {
    let mut plan = apply(client, described, true).await?;
    plan.changes.splice(0..0, takeover::changes(described, paths)?);
    if HeadNode::of(paths).await?.is_lost() {
        plan.changes.insert(0, head_node::change());
    }
    Ok(plan)
}

fn first_plan(described: &Described, paths: &ClusterPaths) -> Result<Plan, Failure> {
    let (mut plan, _) = changes::compare(None, &described.planner);
    let head =
        cloudtik_model::status::Change { action: "create".to_owned(), what: "head".to_owned(), detail: String::new(), disturbs: false };
    plan.changes.insert(0, head);
    plan.changes.splice(0..0, takeover::changes(described, paths)?);
    Ok(plan)
}

/// A change as plans show it.
pub fn in_a_line(change: &cloudtik_model::status::Change) -> String {
    let sign = match change.action.as_str() {
        "create" => "+",
        "destroy" => "-",
        "keep" => "=",
        _ => "~",
    };
    let detail = if change.detail.is_empty() { String::new() } else { format!(": {}", change.detail) };
    format!("  {sign} {} {}{detail}", change.action, change.what)
}

fn show_plan(printer: &Printer, described: &Described, plan: &Plan) {
    if printer.is_json() {
        #[derive(Serialize)]
        struct Shown<'a> {
            cluster: &'a cloudtik_model::ClusterName,
            #[serde(flatten)]
            plan: &'a Plan,
        }
        return printer.json(&Shown { cluster: &described.cluster.name, plan });
    }
    if plan.changes.is_empty() {
        return printer.line(&format!("{}: nothing to change", described.cluster.name));
    }
    printer.line(&format!("{}, provider {}:", printer.bold(described.cluster.name.as_str()), described.cluster.provider));
    plan.changes.iter().for_each(|change| printer.line(&in_a_line(change)));
    if let Some(price) = plan.price {
        printer.line(&format!("  costs {price} at the minimum, where prices are known"));
    }
}

async fn what_is_left(failure: Failure, paths: &ClusterPaths, file: &Path) -> Failure {
    // Whoever did not confirm changed nothing.
    if !paths.exists() || failure.declined || failure.overtaken || failure.code == crate::failure::USAGE {
        return failure;
    }
    // It cannot go on from there.
    if head_node::lost_state(paths).await.is_some() {
        return failure;
    }
    // It goes on by itself once the head has a description.
    let described = match Client::dial(paths).await {
        Ok(client) => client.status().await.is_ok_and(|status| status.revision > 0),
        Err(_) => false,
    };
    let state = if described { "what was created remains and keeps running:" } else { "what was created remains, unfinished:" };
    let (name, file) = (&paths.name, quoted(&file.to_string_lossy()));
    let mut lines = vec![(format!("cloudtik up {file}"), "go on from here"), (format!("cloudtik down {name}"), "remove it")];
    if described {
        lines.insert(0, (format!("cloudtik status {name}"), "see it"));
    }
    let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let lines: Vec<String> = lines.iter().map(|(command, what)| format!("  {command:<width$}   {what}")).collect();
    let left = format!("{state}\n{}", lines.join("\n"));
    let hint = failure.hint.clone().map_or_else(|| left.clone(), |hint| format!("{hint}\n{left}"));
    failure.hint(hint)
}
