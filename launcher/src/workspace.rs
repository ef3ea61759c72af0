//! What clusters share: `cloudtik workspace`, and what `up` makes of it by itself.
//!
//! Owns: which workspaces there are, when a person is asked, and what is said. Must never: know a provider, or remember what
//! a provider can tell.

mod change;
mod definition;
mod directory;
mod show;
mod steps;

use cloudtik_model::{ClusterName, WorkspaceName};
use cloudtik_providers::workspace::{Action, Cost, Plan};

use self::definition::Definition;
use crate::cli::Workspace;
use crate::described::{Described, is_standard_input};
use crate::failure::{Failure, INVALID, REFUSED};
use crate::interrupts::Interrupts;
use crate::lock::Lock;
use crate::output::{Printer, quoted};

pub async fn run(printer: &Printer, command: &Workspace) -> Result<(), Failure> {
    match command {
        Workspace::Create(arguments) => change::reach(printer, arguments, change::Verb::Create).await,
        Workspace::Update(arguments) => change::reach(printer, arguments, change::Verb::Update).await,
        Workspace::Delete(arguments) => change::delete(printer, arguments).await,
        Workspace::Status { workspace } => show::status(printer, workspace.as_deref()).await,
        Workspace::List => show::list(printer).await,
    }
}

/// Refuses a cluster whose workspace is another provider's.
pub fn check(described: &Described) -> Result<(), Failure> {
    of_cluster(described).map(|_| ())
}

/// The definition that was applied, if there is one; else what the cluster needs.
fn of_cluster(described: &Described) -> Result<(Definition, bool), Failure> {
    let cluster = &described.cluster;
    match Definition::applied(&cluster.workspace)? {
        None => Ok((Definition::needed_by(described)?, false)),
        Some(applied) => {
            on_the_same(&cluster.name, described.provider.kind().name(), &cluster.workspace, applied.kind())?;
            Ok((applied, true))
        }
    }
}

/// A cluster is in a workspace of its own provider.
fn on_the_same(cluster: &ClusterName, kind: &str, workspace: &WorkspaceName, of_workspace: &str) -> Result<(), Failure> {
    if kind == of_workspace {
        return Ok(());
    }
    let message = format!("the cluster {cluster} is on the provider `{kind}`, and its workspace {workspace} is on `{of_workspace}`");
    let hint = "both must be on the same; name another workspace in the cluster's file: `cloudtik workspace list` shows them";
    Err(Failure::new(INVALID, message).hint(hint))
}

/// Makes what is missing of the workspace of a cluster, if it costs nothing.
pub async fn ensure(printer: &Printer, described: &Described, interrupts: &mut Interrupts) -> Result<(), Failure> {
    let (definition, is_applied) = of_cluster(described)?;
    let is_complete = async { Ok(definition.open().await?.plan().await?.is_empty()) };
    if is_applied && directory::is_made(&definition.name)? && interrupts.unless(is_complete).await? {
        return Ok(());
    }
    directory::make_root()?;
    let name = &definition.name;
    let _lock = interrupts.unless(Lock::of_workspace(name)).await?;
    let (definition, _) = of_cluster(described)?;
    let look = async {
        let workspace = definition.open().await?;
        let plan = workspace.plan().await?;
        Ok((workspace, plan))
    };
    let (workspace, plan) = interrupts.unless(look).await?;
    if let Some(why) = needs_a_person(&plan) {
        let message = format!("the workspace {name} is not as it is to be, and {why}");
        return Err(Failure::new(REFUSED, message).hint(format!("`cloudtik workspace status {name}` shows it; {}", by_a_person(name)?)));
    }
    definition.remember()?;
    if plan.is_empty() {
        return directory::make(name);
    }
    let path = if is_standard_input(&described.path) { "-".into() } else { described.path.to_string_lossy() };
    let left = format!("`cloudtik up {}` goes on from there", quoted(&path));
    steps::apply(printer, workspace.as_ref(), &plan, &left, async || interrupts.next().await).await?;
    if !printer.is_json() {
        printer.say(&format!("made the workspace {name}"));
    }
    directory::make(name)
}

/// How a person makes a workspace that `up` does not.
fn by_a_person(name: &WorkspaceName) -> Result<String, Failure> {
    let named = if Definition::applied(name)?.is_some() { name.as_str() } else { "FILE" };
    Ok(format!("`cloudtik workspace create {named}` makes it"))
}

/// Why `up` does not apply a plan by itself, if it does not.
fn needs_a_person(plan: &Plan) -> Option<String> {
    match plan.cost() {
        Cost::PerHour(money) => return Some(format!("what is missing costs {money}")),
        Cost::Unknown => return Some("what is missing costs an amount that the provider does not tell".to_owned()),
        Cost::Free => {}
    }
    let removed = plan.steps.iter().find(|step| step.action == Action::Remove)?;
    Some(format!("{} would be removed", removed.summary))
}

#[cfg(test)]
mod tests;
