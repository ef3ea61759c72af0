//! `cloudtik workspace create`, `update` and `delete`. The same command goes on where it was interrupted.

use std::sync::Arc;

use cloudtik_config::workspace::says_the_same;
use cloudtik_model::WorkspaceName;
use cloudtik_providers::Error;
use cloudtik_providers::workspace::{Action, Cost, Plan, Status, WorkspaceProvider};

use super::definition::{Definition, Named, forget};
use super::directory;
use super::show::{Shown, show_plan};
use super::steps;
use crate::cli::{ChangeWorkspace, DeleteWorkspace};
use crate::clusters;
use crate::failure::{Failure, NOT_FOUND, REFUSED};
use crate::interrupts::Interrupts;
use crate::lock::Lock;
use crate::output::Printer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Create,
    Update,
    Delete,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// A workspace and its provider, as both are at one moment.
struct Looked {
    definition: Definition,
    workspace: Arc<dyn WorkspaceProvider>,
    status: Status,
    plan: Plan,
}

impl Looked {
    fn shown(&self, verb: Verb, done: bool) -> Shown<'_> {
        Shown { definition: &self.definition, verb, plan: &self.plan, clusters: &self.status.clusters, done }
    }
}

/// Makes a workspace as it is to be.
pub async fn reach(printer: &Printer, arguments: &ChangeWorkspace, verb: Verb) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen()?;
    let named = Named::find(Some(&arguments.workspace))?;
    let look = async || {
        let definition = wanted(&named, verb)?;
        let workspace = definition.open().await?;
        let status = look_at(&definition.name, workspace.as_ref()).await?;
        let plan = Plan::to_reach(&workspace.desired(), &status);
        Ok::<_, Failure>(Looked { definition, workspace, status, plan })
    };
    if arguments.plan {
        let looked = interrupts.unless(look()).await?;
        show_plan(printer, &looked.shown(verb, false));
        return Ok(());
    }
    // What is refused leaves no trace, not even a directory.
    wanted(&named, verb)?;
    directory::make_root()?;
    let name = &named.name;
    let (lock, looked) = agree(printer, &mut interrupts, name, verb, arguments.yes, look).await?;
    looked.definition.remember()?;
    if !looked.plan.is_empty() {
        let left = format!(
            "`cloudtik workspace {} {}` goes on from there; `cloudtik workspace delete {name}` removes it",
            verb.name(),
            named.typed
        );
        steps::apply(printer, looked.workspace.as_ref(), &looked.plan, &left, async || interrupts.next().await).await?;
    }
    drop(lock);
    if printer.is_json() {
        show_plan(printer, &looked.shown(verb, true));
        return Ok(());
    }
    printer.say(&match (looked.plan.is_empty(), verb) {
        (true, Verb::Create) => format!("the workspace {name} is complete; nothing to do"),
        (true, _) => format!("the workspace {name} is as it is to be; nothing to change"),
        (false, _) => format!("the workspace {name} is complete. Look at it with `cloudtik workspace status {name}`"),
    });
    Ok(())
}

/// Looks at a workspace until its plan needs no answer of a person, or is the one that a person agreed to. The lock is held from the
/// last look on.
async fn agree(
    printer: &Printer,
    interrupts: &mut Interrupts,
    name: &WorkspaceName,
    verb: Verb,
    yes: bool,
    look: impl AsyncFn() -> Result<Looked, Failure>,
) -> Result<(Lock, Looked), Failure> {
    let mut agreed: Option<Plan> = None;
    loop {
        let lock = interrupts.unless(Lock::of_workspace(name)).await?;
        let looked = interrupts.unless(look()).await?;
        if looked.plan.is_empty() || agreed.as_ref() == Some(&looked.plan) {
            return Ok((lock, looked));
        }
        if !printer.is_json() {
            show_plan(printer, &looked.shown(verb, false));
        }
        let Some(question) = question(name, verb, &looked.plan).filter(|_| !yes) else { return Ok((lock, looked)) };
        // A person may take long to answer; others go on meanwhile, so the plan is looked at again.
        drop(lock);
        interrupts.unless(printer.confirm_async(&question, false)).await?;
        agreed = Some(looked.plan);
    }
}

/// What a command may do with a person's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Apply,
    /// There is nothing to update.
    NothingThere,
    /// A workspace stays on its provider.
    OtherProvider,
    /// What exists is changed by `update` only.
    OtherDefinition,
}

/// What a definition says, and on which provider.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    pub kind: &'a str,
    pub text: &'a str,
}

/// Whether a command may apply a file, by what was applied last and whether the workspace has a directory.
pub fn verdict(verb: Verb, file: Said<'_>, applied: Option<Said<'_>>, has_directory: bool) -> Verdict {
    match applied {
        None if verb == Verb::Update && !has_directory => Verdict::NothingThere,
        Some(applied) if applied.kind != file.kind => Verdict::OtherProvider,
        Some(applied) if verb == Verb::Create && !says_the_same(applied.text, file.text) => Verdict::OtherDefinition,
        _ => Verdict::Apply,
    }
}

/// The definition that a command is to reach; refused where the command is not the one for it.
fn wanted(named: &Named, verb: Verb) -> Result<Definition, Failure> {
    let name = &named.name;
    let Some(file) = &named.file else { return named.definition() };
    let applied = Definition::applied(name)?;
    match verdict(verb, file.said(), applied.as_ref().map(Definition::said), clusters::workspace(name)?.is_dir()) {
        Verdict::Apply => Ok(file.clone()),
        Verdict::NothingThere => {
            let hint = format!("create it: `cloudtik workspace create {}`", named.typed);
            Err(Failure::new(NOT_FOUND, format!("there is no workspace {name}")).hint(hint))
        }
        Verdict::OtherProvider => Err(other_provider(name, applied.as_ref().map_or("", Definition::kind), file.kind())),
        Verdict::OtherDefinition => {
            let message = format!("the workspace {name} exists, and was made from another definition than that of {}", named.typed);
            let hint = format!("`cloudtik workspace update {} --plan` shows what it would change", named.typed);
            Err(Failure::new(REFUSED, message).hint(hint))
        }
    }
}

fn other_provider(name: &WorkspaceName, applied: &str, file: &str) -> Failure {
    let message = format!("the workspace {name} is on the provider `{applied}`; the file names `{file}`");
    Failure::new(REFUSED, message).hint(format!("give the new one another name, or delete the old one: `cloudtik workspace delete {name}`"))
}

/// What the provider finds, with the clusters that are known here, of which the provider may not know yet.
pub async fn look_at(name: &WorkspaceName, workspace: &dyn WorkspaceProvider) -> Result<Status, Failure> {
    let mut status = workspace.status().await?;
    status.clusters.extend(clusters::of_workspace(name)?);
    status.clusters.sort();
    status.clusters.dedup();
    Ok(status)
}

/// What a person is asked before a plan is applied, if anything.
pub fn question(name: &WorkspaceName, verb: Verb, plan: &Plan) -> Option<String> {
    let what = match verb {
        Verb::Create => format!("Create the workspace {name}"),
        Verb::Update => format!("Change the workspace {name}"),
        Verb::Delete => return Some(format!("Delete the workspace {name}?")),
    };
    match plan.cost() {
        Cost::PerHour(money) => Some(format!("{what}, for {money}?")),
        Cost::Unknown => Some(format!("{what}, for an amount that the provider does not tell?")),
        Cost::Free if plan.steps.iter().any(|step| step.action != Action::Create) => Some(format!("{what}?")),
        Cost::Free => None,
    }
}

/// Removes a workspace without clusters.
pub async fn delete(printer: &Printer, arguments: &DeleteWorkspace) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen()?;
    let named = match Named::find(Some(&arguments.workspace)) {
        Err(failure) if failure.code == NOT_FOUND && arguments.if_exists => {
            if printer.is_json() {
                printer.json(&serde_json::json!({ "workspace": arguments.workspace, "command": "delete", "changes": [], "done": true }));
            }
            printer.say(&format!("there is no workspace {}; nothing to do", arguments.workspace));
            return Ok(());
        }
        found => found?,
    };
    let name = &named.name;
    let look = async || {
        let definition = named.definition()?;
        if let Some(file) = named.file.as_ref().filter(|file| file.kind() != definition.kind()) {
            return Err(other_provider(name, definition.kind(), file.kind()));
        }
        let workspace = definition.open().await?;
        let status = look_at(name, workspace.as_ref()).await?;
        let plan = Plan::to_remove(name.as_str(), &workspace.desired(), &status).map_err(|error| in_use(name, error))?;
        Ok::<_, Failure>(Looked { definition, workspace, status, plan })
    };
    // What is refused changes nothing.
    let first = interrupts.unless(look()).await?;
    if arguments.plan {
        show_plan(printer, &first.shown(Verb::Delete, false));
        return Ok(());
    }
    directory::make_root()?;
    let (lock, looked) = agree(printer, &mut interrupts, name, Verb::Delete, arguments.yes, look).await?;
    let left = format!("`cloudtik workspace delete {name}` goes on from there");
    steps::apply(printer, looked.workspace.as_ref(), &looked.plan, &left, async || interrupts.next().await).await?;
    directory::remove(name)?;
    forget(name)?;
    lock.remove();
    if printer.is_json() {
        show_plan(printer, &looked.shown(Verb::Delete, true));
        return Ok(());
    }
    let nothing = if looked.plan.is_empty() { "; nothing of it was left" } else { "" };
    printer.say(&format!("the workspace {name} is deleted{nothing}"));
    Ok(())
}

fn in_use(name: &WorkspaceName, error: Error) -> Failure {
    let hint = match &error {
        Error::Conflict { used_by, .. } => match &used_by[..] {
            [one] => format!("take it down first: `cloudtik down {one} --workspace {name}`"),
            _ => format!("take them down first, each with `cloudtik down CLUSTER --workspace {name}`"),
        },
        _ => return error.into(),
    };
    Failure::from(error).hint(hint)
}
