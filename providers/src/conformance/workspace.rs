//! The contract of [`WorkspaceProvider`] as a suite that every implementation runs.

use std::time::Duration;

use async_trait::async_trait;
use cloudtik_model::ClusterName;
use tokio::sync::watch;

use crate::Error;
use crate::workspace::{Action, Outcome, Patience, Plan, Presence, ResourceId, Status, WorkspaceProvider, run};

/// Looks of the suite at a workspace before it says that something does not become visible.
const LOOKS: u32 = 200;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
/// Enough for the faults that a world injects; each fault passes by itself.
const PATIENCE: Patience = Patience { attempts: 50, pause: Duration::from_millis(1), longest: Duration::from_millis(5) };

/// A workspace that can be reached and disturbed behind the provider's back.
#[async_trait]
pub trait World: Send + Sync {
    /// A provider of the same workspace, as another process would have it: it remembers nothing.
    fn open(&self) -> Box<dyn WorkspaceProvider>;

    /// Puts a cluster into the workspace, and takes it away.
    async fn add_cluster(&self, name: &ClusterName);
    async fn remove_cluster(&self, name: &ClusterName);

    /// Changes a resource so that it is not as desired any more; false if nothing of it can differ.
    async fn damage(&self, resource: &ResourceId) -> bool;

    /// What exists of the workspace, seen without the provider.
    async fn exists(&self) -> Vec<String>;
}

/// Runs the whole suite on a workspace of which nothing exists. Panics with the clause that does not hold.
pub async fn check(world: &dyn World) {
    assert_eq!(world.exists().await, Vec::<String>::new(), "the suite starts with nothing");
    let size = creates_and_deletes(world).await;
    for applied in 0..size {
        an_interrupted_plan_goes_on(world, applied).await;
        a_half_made_workspace_is_removed(world, applied).await;
        an_interrupted_removal_goes_on(world, applied).await;
    }
    clusters_hold_a_workspace(world).await;
    drift_is_found_and_repaired(world).await;
}

async fn status_where(world: &dyn World, holds: impl Fn(&Status) -> bool, clause: &str) -> Status {
    let mut last = None;
    for _ in 0..LOOKS {
        match world.open().status().await {
            Ok(status) if holds(&status) => return status,
            Ok(status) => last = Some(status),
            Err(error) => assert!(!error.is_permanent(), "status fails only in ways that pass: {error:?}"),
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    panic!("{clause}; last seen: {last:?}");
}

/// A plan, past failures that pass.
async fn planned(world: &dyn World, removal: bool) -> Result<Plan, Error> {
    let mut attempts = PATIENCE.attempts;
    loop {
        let provider = world.open();
        match if removal { provider.delete_plan().await } else { provider.plan().await } {
            Err(Error::Throttled { .. } | Error::Transient { .. }) if attempts > 0 => attempts -= 1,
            result => return result,
        }
    }
}

async fn apply_all(world: &dyn World, plan: &Plan) {
    let (_stop, stopped) = watch::channel(false);
    let outcome = run(world.open().as_ref(), plan, PATIENCE, stopped, |_| {}).await;
    assert_eq!(outcome.expect("every step holds in the end"), Outcome::Done);
}

async fn create(world: &dyn World) -> Plan {
    let plan = planned(world, false).await.expect("plans");
    apply_all(world, &plan).await;
    status_where(world, Status::is_complete, "what was created becomes visible").await;
    plan
}

async fn delete(world: &dyn World) -> Plan {
    let plan = planned(world, true).await.expect("plans the removal");
    apply_all(world, &plan).await;
    status_where(world, Status::is_absent, "what was removed is not shown any more").await;
    assert_eq!(world.exists().await, Vec::<String>::new(), "a removal leaves nothing");
    plan
}

fn first_steps(plan: &Plan, count: usize) -> Plan {
    Plan { steps: plan.steps[..count.min(plan.steps.len())].to_vec() }
}

/// Answers how many resources there are.
async fn creates_and_deletes(world: &dyn World) -> usize {
    let size = world.open().desired().len();
    status_where(world, |status| status.is_absent() && status.resources.len() == size, "status tells of what is missing").await;
    assert!(planned(world, true).await.expect("plans").is_empty(), "nothing is removed where nothing is");

    let plan = create(world).await;
    assert_eq!(plan.steps.len(), size, "a first plan has a step for every resource");
    assert!(plan.steps.iter().all(|step| step.action == Action::Create), "a first plan only creates: {plan:?}");
    let made = world.exists().await;
    assert!(planned(world, false).await.expect("plans").is_empty(), "nothing is left to do");
    apply_all(world, &plan).await;
    assert_eq!(world.exists().await, made, "applied twice, nothing is made twice");

    let removal = delete(world).await;
    assert_eq!(removal.steps.len(), size, "a removal has a step for every resource");
    apply_all(world, &removal).await;
    assert!(planned(world, true).await.expect("plans").is_empty(), "deleting what is gone succeeds");
    size
}

async fn an_interrupted_plan_goes_on(world: &dyn World, applied: usize) {
    let plan = planned(world, false).await.expect("plans");
    apply_all(world, &first_steps(&plan, applied)).await;
    create(world).await;
    delete(world).await;
}

async fn a_half_made_workspace_is_removed(world: &dyn World, applied: usize) {
    let plan = planned(world, false).await.expect("plans");
    apply_all(world, &first_steps(&plan, applied)).await;
    let present = |status: &Status| status.resources.iter().filter(|found| found.presence == Presence::Present).count();
    status_where(world, |status| present(status) == applied, "what was created becomes visible").await;
    delete(world).await;
}

async fn an_interrupted_removal_goes_on(world: &dyn World, applied: usize) {
    create(world).await;
    let removal = planned(world, true).await.expect("plans the removal");
    apply_all(world, &first_steps(&removal, applied)).await;
    // Either way: made whole again, or removed.
    create(world).await;
    let removal = planned(world, true).await.expect("plans the removal");
    apply_all(world, &first_steps(&removal, applied)).await;
    delete(world).await;
}

async fn clusters_hold_a_workspace(world: &dyn World) {
    let demo = ClusterName::new("demo").expect("valid");
    create(world).await;
    let removal = planned(world, true).await.expect("plans the removal");
    world.add_cluster(&demo).await;
    status_where(world, |status| status.clusters == [demo.clone()], "status tells of clusters").await;
    let made = world.exists().await;
    let refused = planned(world, true).await;
    assert!(
        matches!(&refused, Err(Error::Conflict { used_by, .. }) if *used_by == ["demo"]),
        "a workspace with clusters is not removed, and they are named: {refused:?}"
    );
    // A plan of before the cluster came.
    let (_stop, stopped) = watch::channel(false);
    let failed = run(world.open().as_ref(), &removal, PATIENCE, stopped, |_| {}).await.expect_err("a step is refused");
    assert!(
        matches!(&failed.source, Error::Conflict { used_by, .. } if *used_by == ["demo"]),
        "an old plan does not remove it either: {failed:?}"
    );
    assert_eq!(failed.applied, 0, "no step of a refused removal holds");
    assert_eq!(world.exists().await, made, "a refused removal removes nothing");
    world.remove_cluster(&demo).await;
    status_where(world, |status| status.clusters.is_empty(), "a cluster that is gone is not told").await;
    delete(world).await;
}

async fn drift_is_found_and_repaired(world: &dyn World) {
    create(world).await;
    for resource in world.open().desired() {
        if !world.damage(&resource.id).await {
            continue;
        }
        let is_off = |status: &Status| status.resources.iter().any(|f| f.id == resource.id && f.presence != Presence::Present);
        status_where(world, is_off, "drift is found").await;
        let plan = create(world).await;
        assert!(plan.steps.iter().any(|step| step.resource == resource.id), "drift is repaired by a step of its own: {plan:?}");
    }
    delete(world).await;
}
