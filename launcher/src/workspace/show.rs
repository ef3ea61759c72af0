//! `cloudtik workspace status` and `list`, and how plans are shown.

use std::collections::BTreeMap;
use std::time::Duration;

use cloudtik_model::{ClusterName, WorkspaceName};
use cloudtik_providers::workspace::{Action, Cost, Desired, Found, Plan, Presence, Status, Step};
use serde::Serialize;
use tokio::task::JoinSet;

use super::change::{Verb, look_at};
use super::definition::{Definition, Named, path_of};
use crate::clusters;
use crate::failure::Failure;
use crate::output::{Printer, columns_of_output, first_of, listed};

/// How long `list` waits for a provider.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Columns that a narrow terminal does without, the first first.
const SPARE_COLUMNS: [&str; 2] = ["DESCRIPTION", "COST"];
/// Clusters that a line of `list` names.
const SHOWN_CLUSTERS: usize = 5;

/// A plan, and what it is for.
pub struct Shown<'a> {
    pub definition: &'a Definition,
    pub verb: Verb,
    pub plan: &'a Plan,
    pub clusters: &'a [ClusterName],
    /// Whether it was applied.
    pub done: bool,
}

#[derive(Serialize)]
struct PlanDocument<'a> {
    workspace: &'a WorkspaceName,
    provider: &'a str,
    command: &'static str,
    changes: Vec<Change<'a>>,
    /// Of what is created.
    cost: String,
    clusters: &'a [ClusterName],
    done: bool,
}

#[derive(Serialize)]
struct Change<'a> {
    action: Action,
    resource: &'a str,
    summary: &'a str,
    cost: String,
}

pub fn cost(cost: Cost) -> String {
    match cost {
        Cost::Free => "free".to_owned(),
        Cost::PerHour(money) => money.to_string(),
        Cost::Unknown => "unknown".to_owned(),
    }
}

fn change(step: &Step) -> Change<'_> {
    Change { action: step.action, resource: step.resource.as_str(), summary: &step.summary, cost: cost(step.cost) }
}

pub fn show_plan(printer: &Printer, shown: &Shown<'_>) {
    let Shown { definition, verb, plan, clusters, done } = shown;
    if printer.is_json() {
        return printer.json(&PlanDocument {
            workspace: &definition.name,
            provider: definition.kind(),
            command: verb.name(),
            changes: plan.steps.iter().map(change).collect(),
            cost: cost(plan.cost()),
            clusters,
            done: *done,
        });
    }
    if plan.is_empty() {
        let what = if *verb == Verb::Delete { "delete" } else { "change" };
        return printer.line(&format!("{}: nothing to {what}", definition.name));
    }
    printer.line(&format!("{}, provider {}:", printer.bold(definition.name.as_str()), definition.kind()));
    plan_lines(plan).iter().for_each(|line| printer.line(line));
    if *verb == Verb::Update && !clusters.is_empty() {
        printer.line(&format!("  used by {}", listed(clusters)));
    }
}

/// A line for each step, and what they cost together.
pub fn plan_lines(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    for step in &plan.steps {
        let (sign, verb) = match step.action {
            Action::Create => ("+", "create"),
            Action::Change => ("~", "change"),
            Action::Remove => ("-", "remove"),
        };
        let costs = match step.cost {
            Cost::Free => String::new(),
            Cost::PerHour(money) => format!(", {money}"),
            Cost::Unknown => ", at an unknown cost".to_owned(),
        };
        lines.push(format!("  {sign} {verb} {}: {}{costs}", step.resource, step.summary));
    }
    if plan.steps.iter().any(|step| step.action == Action::Create) {
        lines.push(match plan.cost() {
            Cost::Free => "  costs nothing".to_owned(),
            Cost::PerHour(money) => format!("  costs {money} while it exists"),
            Cost::Unknown => "  costs an amount that the provider does not tell".to_owned(),
        });
    }
    lines
}

/// How a workspace is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Complete,
    /// Part of it is there.
    Incomplete,
    /// All of it is there, and some is not as it is to be.
    Differs,
    Deleting,
    /// Nothing of it exists.
    Missing,
    /// The provider does not answer.
    Unreachable,
    /// There is no definition, or none that can be read.
    Unknown,
}

impl State {
    pub fn of(desired: &[Desired], status: &Status) -> Self {
        let is = |presence: &Presence| of_interest(desired, status).any(|found| found.presence == *presence);
        if Plan::to_reach(desired, status).is_empty() {
            Self::Complete
        } else if status.is_absent() {
            Self::Missing
        } else if is(&Presence::Deleting) {
            Self::Deleting
        } else if is(&Presence::Missing) {
            Self::Incomplete
        } else {
            Self::Differs
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Differs => "differs",
            Self::Deleting => "deleting",
            Self::Missing => "missing",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Debug, Serialize)]
struct StatusDocument<'a> {
    workspace: &'a WorkspaceName,
    provider: &'a str,
    state: State,
    /// Where the definition is kept; absent if nothing was applied here.
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<String>,
    /// Whether the file that was named says something else than what was applied; absent without one of the two.
    #[serde(skip_serializing_if = "Option::is_none")]
    file_differs: Option<bool>,
    resources: Vec<ResourceDocument<'a>>,
    clusters: &'a [ClusterName],
}

#[derive(Debug, Serialize)]
struct ResourceDocument<'a> {
    resource: &'a str,
    state: &'static str,
    differences: &'a [String],
    /// Whether the definition has it.
    desired: bool,
    summary: &'a str,
    cost: String,
    outputs: &'a BTreeMap<String, String>,
}

/// What is to be there, and what is there. A provider may tell of more that could be.
fn of_interest<'a>(desired: &'a [Desired], status: &'a Status) -> impl Iterator<Item = &'a Found> {
    let is_desired = |found: &Found| desired.iter().any(|one| one.id == found.id);
    status.resources.iter().filter(move |found| found.presence != Presence::Missing || is_desired(found))
}

fn resource<'a>(desired: &'a [Desired], found: &'a Found) -> ResourceDocument<'a> {
    let (state, differences): (_, &[String]) = match &found.presence {
        Presence::Present => ("present", &[]),
        Presence::Missing => ("missing", &[]),
        Presence::Differs { differences } => ("differs", differences),
        Presence::Deleting => ("deleting", &[]),
    };
    let known = desired.iter().find(|one| one.id == found.id);
    ResourceDocument {
        resource: found.id.as_str(),
        state,
        differences,
        desired: known.is_some(),
        summary: known.map_or("", |one| &one.summary),
        cost: cost(known.map_or(Cost::Unknown, |one| one.cost)),
        outputs: &found.outputs,
    }
}

pub async fn status(printer: &Printer, named: Option<&str>) -> Result<(), Failure> {
    let named = Named::find(named)?;
    let name = &named.name;
    let definition = named.definition()?;
    let workspace = definition.open().await?;
    let status = look_at(name, workspace.as_ref()).await?;
    let desired = workspace.desired();
    let state = State::of(&desired, &status);
    let applied = Definition::applied(name)?;
    let file_differs = named.file.as_ref().zip(applied.as_ref()).map(|(file, applied)| !applied.says_the_same(file));
    let resources: Vec<ResourceDocument<'_>> = of_interest(&desired, &status).map(|found| resource(&desired, found)).collect();
    if printer.is_json() {
        let definition_path = applied.map(|_| path_of(name)).transpose()?.map(|path| path.display().to_string());
        let (provider, clusters) = (definition.kind(), &*status.clusters);
        printer.json(&StatusDocument { workspace: name, provider, state, definition: definition_path, file_differs, resources, clusters });
        return Ok(());
    }
    printer.line(&format!("{}: {}, provider {}", printer.bold(name.as_str()), state.name(), definition.kind()));
    printer.line(&format!("clusters: {}", if status.clusters.is_empty() { "none".to_owned() } else { listed(&status.clusters) }));
    printer.line("");
    let row = |one: &ResourceDocument<'_>| vec![one.resource.to_owned(), one.state.to_owned(), one.cost.clone(), one.summary.to_owned()];
    let rows: Vec<Vec<String>> = resources.iter().map(row).collect();
    printer.table_within(columns_of_output(), &["RESOURCE", "STATE", "COST", "DESCRIPTION"], &rows, &SPARE_COLUMNS);
    for one in &resources {
        if !one.differences.is_empty() {
            printer.line(&format!("{} differs: {}", one.resource, one.differences.join("; ")));
        }
        if !one.desired {
            printer.line(&format!("{} is not part of the definition any more", one.resource));
        }
    }
    if file_differs == Some(true) {
        printer.say(&format!("{} says something else than what was applied: see `cloudtik workspace update {0} --plan`", named.typed));
    } else if state != State::Complete {
        let verb = if state == State::Differs { Verb::Update } else { Verb::Create };
        printer.say(&format!("`cloudtik workspace {} {}` makes it complete", verb.name(), named.typed));
    }
    Ok(())
}

#[derive(Serialize)]
struct Listed {
    workspace: WorkspaceName,
    provider: Option<&'static str>,
    state: State,
    clusters: Vec<ClusterName>,
}

pub async fn list(printer: &Printer) -> Result<(), Failure> {
    // All at once: a provider that hangs holds up no other.
    let mut looked = JoinSet::new();
    for (number, name) in clusters::workspace_names()?.into_iter().enumerate() {
        looked.spawn(async move { (number, look(name).await) });
    }
    let mut all = looked.join_all().await;
    all.sort_by_key(|(number, _)| *number);
    let all: Vec<Listed> = all.into_iter().map(|(_, listed)| listed).collect::<Result<_, _>>()?;
    if printer.is_json() {
        printer.json(&all);
        return Ok(());
    }
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let row = |one: Listed| {
        let provider = or_dash(one.provider.unwrap_or_default().to_owned());
        vec![one.workspace.to_string(), provider, one.state.name().to_owned(), or_dash(first_of(&one.clusters, SHOWN_CLUSTERS))]
    };
    printer.table(&["WORKSPACE", "PROVIDER", "STATE", "CLUSTERS"], &all.into_iter().map(row).collect::<Vec<_>>());
    Ok(())
}

async fn look(name: WorkspaceName) -> Result<Listed, Failure> {
    let clusters = clusters::of_workspace(&name)?;
    let Ok(Some(definition)) = Definition::applied(&name) else {
        return Ok(Listed { workspace: name, provider: None, state: State::Unknown, clusters });
    };
    let provider = Some(definition.kind());
    let looking = async {
        let workspace = definition.open().await?;
        let status = look_at(&name, workspace.as_ref()).await?;
        Ok::<_, Failure>((State::of(&workspace.desired(), &status), status.clusters))
    };
    // `workspace status` says why one does not answer.
    let looked = tokio::time::timeout(LIST_TIMEOUT, looking).await;
    let (state, clusters) = looked.ok().and_then(Result::ok).unwrap_or((State::Unreachable, clusters));
    Ok(Listed { workspace: name, provider, state, clusters })
}
