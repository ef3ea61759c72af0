//! The contract of [`WorkspaceProvider`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cloudtik_model::ClusterName;
use tokio::sync::watch;

use super::{Breach, Told, clause, with_causes, works};
use crate::Error;
use crate::workspace::{Action, Outcome, Patience, Plan, Presence, ResourceId, Status, WorkspaceProvider, run};

/// Between two looks at a workspace, of which a status may lag behind.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// A workspace that can be reached and disturbed behind the provider's back.
#[async_trait]
pub trait World: Send + Sync {
    /// A provider of the same workspace, as another process would have it: it remembers nothing.
    async fn open(&self) -> Result<Arc<dyn WorkspaceProvider>, Error>;

    /// How long steps are repeated that fail in ways that pass, and how often a status is looked at until it shows what holds.
    fn patience(&self) -> (Patience, u32);

    /// Puts a cluster into the workspace, and takes it away. False if that cannot be brought about.
    async fn add_cluster(&self, name: &ClusterName) -> bool;
    async fn remove_cluster(&self, name: &ClusterName);

    /// Changes a resource so that it is not as desired any more; false if nothing of it can differ.
    async fn damage(&self, resource: &ResourceId) -> bool;

    /// What exists of the workspace, seen without the provider. None if there is no other way to see it.
    async fn exists(&self) -> Option<Vec<String>>;
}

/// Runs the whole suite on a workspace of which nothing exists.
pub async fn check(world: &dyn World, told: Told<'_>) -> Result<(), Breach> {
    let mut suite = Suite { world, told };
    suite.nothing_exists("the suite starts with nothing").await?;
    let size = suite.creates_and_deletes().await?;
    for applied in 0..size {
        suite.an_interrupted_plan_goes_on(applied).await?;
        suite.a_half_made_workspace_is_removed(applied).await?;
        suite.an_interrupted_removal_goes_on(applied).await?;
    }
    suite.clusters_hold_a_workspace().await?;
    suite.drift_is_found_and_repaired().await
}

struct Suite<'a> {
    world: &'a dyn World,
    told: Told<'a>,
}

impl Suite<'_> {
    async fn open(&self) -> Result<Arc<dyn WorkspaceProvider>, Breach> {
        works("a workspace is opened", self.world.open().await)
    }

    async fn nothing_exists(&mut self, text: &str) -> Result<(), Breach> {
        match self.world.exists().await {
            Some(found) => clause(self.told, text, found.is_empty(), || found.join(", ")),
            None => Ok(()),
        }
    }

    async fn status_where(&mut self, text: &str, holds: impl Fn(&Status) -> bool) -> Result<Status, Breach> {
        let mut last = String::new();
        for _ in 0..self.world.patience().1 {
            match self.open().await?.status().await {
                Ok(status) if holds(&status) => {
                    (self.told)(text);
                    return Ok(status);
                }
                Ok(status) => last = format!("{status:?}"),
                Err(error) if error.is_permanent() => {
                    return Err(Breach { clause: "status fails only in ways that pass".to_owned(), found: with_causes(&error) });
                }
                Err(error) => last = with_causes(&error),
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Err(Breach { clause: text.to_owned(), found: format!("last seen: {last}") })
    }

    /// A plan, past failures that pass.
    async fn plan_of(&self, is_removal: bool) -> Result<Result<Plan, Error>, Breach> {
        let mut attempts = self.world.patience().0.attempts;
        loop {
            let provider = self.open().await?;
            match if is_removal { provider.delete_plan().await } else { provider.plan().await } {
                Err(Error::Throttled { .. } | Error::Transient { .. }) if attempts > 0 => attempts -= 1,
                result => return Ok(result),
            }
        }
    }

    async fn planned(&self) -> Result<Plan, Breach> {
        works("a workspace is planned", self.plan_of(false).await?)
    }

    async fn planned_removal(&self) -> Result<Plan, Breach> {
        works("a removal is planned", self.plan_of(true).await?)
    }

    async fn apply_all(&mut self, plan: &Plan) -> Result<(), Breach> {
        let (_stop, stopped) = watch::channel(false);
        let outcome = run(self.open().await?.as_ref(), plan, self.world.patience().0, stopped, |_| {}).await;
        let holds = matches!(outcome, Ok(Outcome::Done));
        clause(self.told, "every step holds in the end", holds, || format!("{outcome:?}"))
    }

    async fn create(&mut self) -> Result<Plan, Breach> {
        let plan = self.planned().await?;
        self.apply_all(&plan).await?;
        self.status_where("what was created becomes visible", Status::is_complete).await?;
        Ok(plan)
    }

    async fn delete(&mut self) -> Result<Plan, Breach> {
        let plan = self.planned_removal().await?;
        self.apply_all(&plan).await?;
        self.status_where("what was removed is not shown any more", Status::is_absent).await?;
        self.nothing_exists("a removal leaves nothing").await?;
        Ok(plan)
    }

    /// Answers how many resources there are.
    async fn creates_and_deletes(&mut self) -> Result<usize, Breach> {
        let size = self.open().await?.desired().len();
        self.status_where("status tells of what is missing", |status| status.is_absent() && status.resources.len() == size).await?;
        let plan = self.planned_removal().await?;
        clause(self.told, "nothing is removed where nothing is", plan.is_empty(), || format!("{plan:?}"))?;

        let plan = self.create().await?;
        clause(self.told, "a first plan has a step for every resource", plan.steps.len() == size, || format!("{plan:?}"))?;
        let only_creates = plan.steps.iter().all(|step| step.action == Action::Create);
        clause(self.told, "a first plan only creates", only_creates, || format!("{plan:?}"))?;
        let made = self.world.exists().await;
        let second = self.planned().await?;
        clause(self.told, "nothing is left to do after it", second.is_empty(), || format!("{second:?}"))?;
        self.apply_all(&plan).await?;
        let again = self.world.exists().await;
        clause(self.told, "applied twice, nothing is made twice", again == made, || format!("{made:?}, then {again:?}"))?;

        let removal = self.delete().await?;
        clause(self.told, "a removal has a step for every resource", removal.steps.len() == size, || format!("{removal:?}"))?;
        self.apply_all(&removal).await?;
        let second = self.planned_removal().await?;
        clause(self.told, "removing what is gone succeeds", second.is_empty(), || format!("{second:?}"))?;
        Ok(size)
    }

    async fn an_interrupted_plan_goes_on(&mut self, applied: usize) -> Result<(), Breach> {
        let plan = self.planned().await?;
        self.apply_all(&first_steps(&plan, applied)).await?;
        self.create().await?;
        self.delete().await?;
        (self.told)(&format!("a plan that was interrupted after {applied} steps goes on"));
        Ok(())
    }

    async fn a_half_made_workspace_is_removed(&mut self, applied: usize) -> Result<(), Breach> {
        let plan = self.planned().await?;
        self.apply_all(&first_steps(&plan, applied)).await?;
        let present = |status: &Status| status.resources.iter().filter(|found| found.presence == Presence::Present).count();
        self.status_where("what was created becomes visible", |status| present(status) == applied).await?;
        self.delete().await?;
        (self.told)(&format!("a workspace of which {applied} resources were made is removed"));
        Ok(())
    }

    async fn an_interrupted_removal_goes_on(&mut self, applied: usize) -> Result<(), Breach> {
        self.create().await?;
        let removal = self.planned_removal().await?;
        self.apply_all(&first_steps(&removal, applied)).await?;
        // Either way: made whole again, or removed.
        self.create().await?;
        let removal = self.planned_removal().await?;
        self.apply_all(&first_steps(&removal, applied)).await?;
        self.delete().await?;
        (self.told)(&format!("a removal that was interrupted after {applied} steps goes on"));
        Ok(())
    }

    async fn clusters_hold_a_workspace(&mut self) -> Result<(), Breach> {
        let demo = ClusterName::new("demo").expect("valid");
        self.create().await?;
        let removal = self.planned_removal().await?;
        if !self.world.add_cluster(&demo).await {
            return self.delete().await.map(drop);
        }
        self.status_where("status tells of clusters", |status| status.clusters == [demo.clone()]).await?;
        let made = self.world.exists().await;
        let refused = self.plan_of(true).await?;
        let holds = matches!(&refused, Err(Error::Conflict { used_by, .. }) if *used_by == ["demo"]);
        clause(self.told, "a workspace with clusters is not removed, and they are named", holds, || format!("{refused:?}"))?;
        // A plan of before the cluster came.
        let (_stop, stopped) = watch::channel(false);
        let outcome = run(self.open().await?.as_ref(), &removal, self.world.patience().0, stopped, |_| {}).await;
        let holds = outcome
            .as_ref()
            .is_err_and(|failed| failed.applied == 0 && matches!(&failed.source, Error::Conflict { used_by, .. } if *used_by == ["demo"]));
        clause(self.told, "an old plan does not remove it either", holds, || format!("{outcome:?}"))?;
        let left = self.world.exists().await;
        clause(self.told, "a refused removal removes nothing", left == made, || format!("{made:?}, then {left:?}"))?;
        self.world.remove_cluster(&demo).await;
        self.status_where("a cluster that is gone is not told", |status| status.clusters.is_empty()).await?;
        self.delete().await.map(drop)
    }

    async fn drift_is_found_and_repaired(&mut self) -> Result<(), Breach> {
        self.create().await?;
        for resource in self.open().await?.desired() {
            if !self.world.damage(&resource.id).await {
                continue;
            }
            let is_off = |status: &Status| status.resources.iter().any(|f| f.id == resource.id && f.presence != Presence::Present);
            self.status_where("drift is found", is_off).await?;
            let plan = self.create().await?;
            let holds = plan.steps.iter().any(|step| step.resource == resource.id);
            clause(self.told, "drift is repaired by a step of its own", holds, || format!("{plan:?}"))?;
        }
        self.delete().await.map(drop)
    }
}

fn first_steps(plan: &Plan, count: usize) -> Plan {
    Plan { steps: plan.steps[..count.min(plan.steps.len())].to_vec() }
}
