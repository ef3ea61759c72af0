//! What the clusters of a workspace share, as a plan of steps.
//!
//! Owns: the contract of [`WorkspaceProvider`], the pure decision which steps lead from what is found to what is desired,
//! and the driver that applies steps in order. Must never: know a provider, or hide a step from the caller.

mod run;

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use cloudtik_model::{ClusterName, MoneyPerHour};
use serde::{Deserialize, Serialize};

pub use self::run::{Event, Outcome, Patience, StepFailed, run};
use crate::Error;

/// The stable name of a resource within its workspace, such as `vpc` or `subnet/public-a`. Not the provider's id, which
/// exists only after creation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceId(String);

impl ResourceId {
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a resource costs while it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    Free,
    PerHour(MoneyPerHour),
    /// It costs, and the provider cannot tell how much.
    Unknown,
}

/// One resource as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub id: ResourceId,
    /// What a person reads, such as `the network 10.0.0.0/16`.
    pub summary: String,
    pub cost: Cost,
}

/// How a resource was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Presence {
    Present,
    Missing,
    /// It exists and is not as desired; each difference in words.
    Differs {
        differences: Vec<String>,
    },
    Deleting,
}

/// One resource as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub id: ResourceId,
    #[serde(flatten)]
    pub presence: Presence,
    /// What clusters need of it, such as the provider's id of a subnet.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
}

/// A workspace as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Every desired resource, and what else of the workspace exists; what others depend on comes first.
    pub resources: Vec<Found>,
    /// The clusters in it, sorted.
    pub clusters: Vec<ClusterName>,
}

impl Status {
    /// Whether everything is there and as desired.
    pub fn is_complete(&self) -> bool {
        self.resources.iter().all(|found| found.presence == Presence::Present)
    }

    /// Whether nothing of it exists.
    pub fn is_absent(&self) -> bool {
        self.resources.iter().all(|found| found.presence == Presence::Missing)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Create,
    Change,
    Remove,
}

/// One change of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub action: Action,
    pub resource: ResourceId,
    pub summary: String,
    /// What the resource costs: from this step on, or up to it where it is removed.
    pub cost: Cost,
}

/// Steps in the order in which they are applied.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Plan {
    pub steps: Vec<Step>,
}

impl Plan {
    /// The steps that make a workspace as desired. `desired` lists what others depend on first.
    pub fn to_reach(desired: &[Desired], status: &Status) -> Self {
        let find = |id: &ResourceId| status.resources.iter().find(|found| found.id == *id);
        let mut steps = Vec::new();
        for one in desired {
            let (action, summary) = match find(&one.id).map(|found| &found.presence) {
                Some(Presence::Present) => continue,
                Some(Presence::Differs { differences }) => (Action::Change, format!("{}: {}", one.summary, differences.join(", "))),
                // One that is being deleted is made anew as soon as it is gone.
                Some(Presence::Missing | Presence::Deleting) | None => (Action::Create, one.summary.clone()),
            };
            steps.push(Step { action, resource: one.id.clone(), summary, cost: one.cost });
        }
        let is_desired = |found: &&Found| desired.iter().any(|one| one.id == found.id);
        steps.extend(removals(desired, status.resources.iter().filter(|found| !is_desired(found))));
        Self { steps }
    }

    /// The steps that remove a workspace; refused with [`Error::Conflict`] while clusters are in it.
    pub fn to_remove(workspace: &str, desired: &[Desired], status: &Status) -> Result<Self, Error> {
        if !status.clusters.is_empty() {
            let used_by = status.clusters.iter().map(ToString::to_string).collect();
            return Err(Error::Conflict { what: format!("the workspace {workspace}"), used_by });
        }
        Ok(Self { steps: removals(desired, status.resources.iter()) })
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What the resources that it creates cost together.
    pub fn cost(&self) -> Cost {
        let made: Vec<Cost> = self.steps.iter().filter(|step| step.action == Action::Create).map(|step| step.cost).collect();
        if made.contains(&Cost::Unknown) {
            return Cost::Unknown;
        }
        let sum: MoneyPerHour = made.iter().filter_map(|cost| if let Cost::PerHour(money) = cost { Some(*money) } else { None }).sum();
        if sum == MoneyPerHour::default() { Cost::Free } else { Cost::PerHour(sum) }
    }
}

/// Removes what exists, what depends on others first. What is being deleted is waited for by its step.
fn removals<'a>(desired: &[Desired], found: impl DoubleEndedIterator<Item = &'a Found>) -> Vec<Step> {
    let step = |found: &Found| {
        let known = desired.iter().find(|one| one.id == found.id);
        Step {
            action: Action::Remove,
            resource: found.id.clone(),
            summary: known.map_or_else(|| found.id.to_string(), |one| one.summary.clone()),
            cost: known.map_or(Cost::Unknown, |one| one.cost),
        }
    };
    found.rev().filter(|found| found.presence != Presence::Missing).map(step).collect()
}

/// Makes what the clusters of one workspace share.
///
/// The contract, checked by [`crate::conformance::workspace`]:
/// - `status` changes nothing, and tells of every desired resource and of everything else that belongs to the workspace.
/// - `apply` is idempotent, also where another process applied the step or where the answer to it was lost: what exists as
///   desired is not made twice, and removing what is gone succeeds. It returns when the step holds; a resource that is not
///   visible yet, or not gone yet, is [`Error::Transient`].
/// - Resources are recognised by the workspace's and their own name, so that no local memory is needed to go on.
/// - What others use is not removed: [`Error::Conflict`] names who uses it. A workspace with clusters is never removed.
/// - Nothing is retried inside; errors say whether repeating helps.
#[async_trait]
pub trait WorkspaceProvider: Send + Sync {
    /// The name of the workspace.
    fn name(&self) -> String;

    /// Every resource of the workspace, what others depend on first.
    fn desired(&self) -> Vec<Desired>;

    async fn status(&self) -> Result<Status, Error>;

    async fn apply(&self, step: &Step) -> Result<(), Error>;

    /// The steps that are missing to what is desired; none if all is there.
    async fn plan(&self) -> Result<Plan, Error> {
        Ok(Plan::to_reach(&self.desired(), &self.status().await?))
    }

    /// The steps to nothing; none if all is gone.
    async fn delete_plan(&self) -> Result<Plan, Error> {
        Plan::to_remove(&self.name(), &self.desired(), &self.status().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(id: &str, cost: Cost) -> Desired {
        Desired { id: ResourceId::new(id), summary: id.to_owned(), cost }
    }

    fn found(id: &str, presence: Presence) -> Found {
        Found { id: ResourceId::new(id), presence, outputs: BTreeMap::new() }
    }

    fn steps(plan: &Plan) -> Vec<(Action, &str)> {
        plan.steps.iter().map(|step| (step.action, step.resource.as_str())).collect()
    }

    #[test]
    fn a_plan_makes_in_order_changes_what_differs_and_removes_the_rest_in_reverse() {
        let cents = |cents: u64| Cost::PerHour(MoneyPerHour(cents * 10_000));
        let wanted = [desired("vpc", Cost::Free), desired("subnet", Cost::Free), desired("gateway", cents(5)), desired("nat", cents(4))];
        let differs = Presence::Differs { differences: vec!["a rule is missing".to_owned()] };
        let resources = vec![
            found("vpc", differs),
            found("subnet", Presence::Present),
            found("gateway", Presence::Deleting),
            found("nat", Presence::Missing),
            found("old-role", Presence::Present),
            found("old-user", Presence::Present),
        ];
        let mut status = Status { resources, clusters: Vec::new() };
        let plan = Plan::to_reach(&wanted, &status);
        let expected = [
            (Action::Change, "vpc"),
            (Action::Create, "gateway"),
            (Action::Create, "nat"),
            (Action::Remove, "old-user"),
            (Action::Remove, "old-role"),
        ];
        assert_eq!(steps(&plan), expected);
        assert_eq!(plan.cost(), cents(9), "what changes or goes adds no cost");

        let plan = Plan::to_remove("dev", &wanted, &status).expect("no cluster is in it");
        let removed: Vec<&str> = plan.steps.iter().map(|step| step.resource.as_str()).collect();
        assert_eq!(removed, ["old-user", "old-role", "gateway", "subnet", "vpc"]);

        status.clusters = vec![ClusterName::new("demo").expect("valid")];
        let refused = Plan::to_remove("dev", &wanted, &status);
        assert!(matches!(&refused, Err(Error::Conflict { used_by, .. }) if *used_by == ["demo"]), "{refused:?}");
    }
}
