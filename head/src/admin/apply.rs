//! Taking a description of the cluster, or saying what it would change.

use std::collections::BTreeSet;

use cloudtik_brain::{Brain, Input};
use cloudtik_model::NodeTypeName;
use cloudtik_model::conflict::RequestConflict;
use cloudtik_model::spec::Steps;
use cloudtik_model::status::{Change, Plan};
use cloudtik_protocol::logging::chain;
use cloudtik_runtimes::changes::compare;
use tonic::Status;

use super::{Head, stopped};
use crate::revisions::{Checked, Description};

/// Descriptions that are kept though nobody runs them.
const REVISIONS_KEPT: u64 = 20;

impl Head {
    /// Takes a description, or says what it would change. Goes on to its end when whoever asked has gone: a description that is
    /// stored is told to the brain.
    pub(super) async fn apply(&self, description: Description, plan_only: bool) -> Result<Plan, Status> {
        let own = self.clone();
        let applying = self.tasks.spawn(async move { own.apply_to_the_end(description, plan_only).await });
        applying.await.map_err(|e| Status::internal(e.to_string()))?
    }

    async fn apply_to_the_end(&self, description: Description, plan_only: bool) -> Result<Plan, Status> {
        let _one = self.applying.lock().await;
        let Checked { planner, provider } = self.revisions.read(&description).map_err(Status::invalid_argument)?;
        if planner.cluster().name != self.settings.cluster {
            let message = format!("the file describes the cluster {}, this is {}", planner.cluster().name, self.settings.cluster);
            return Err(Status::invalid_argument(message));
        }
        let kind = &self.settings.provider.kind;
        if provider.kind().name() != kind.as_str() {
            let message = format!(
                "the file asks for the provider {}, and the machines of {} are the provider {kind}'s; take it down first",
                provider.kind().name(),
                self.settings.cluster
            );
            return Err(Status::failed_precondition(message));
        }
        let latest = self.revisions.latest();
        let stopping = self.brain.query(Brain::is_stopping).await.map_err(stopped)?;
        let old = latest.as_ref().filter(|_| !stopping).map(|(_, _, planner)| &**planner);
        let (mut plan, steps) = compare(old, &planner);
        plan.changes.extend(self.workers_to_go(&planner).await?);
        let unchanged = latest.as_ref().is_some_and(|(_, known, _)| *known == description) && !stopping;
        if !unchanged {
            plan.conflicts = self.conflicting_requests(&planner).await?;
            plan.changes.extend(plan.conflicts.iter().map(change_of));
        }
        if plan_only || unchanged {
            return Ok(plan);
        }
        self.machines.set(&provider.settings).map_err(|e| Status::failed_precondition(chain(&e)))?;
        let revision = self.revisions.next();
        let (store, document) = (self.store.clone(), serde_json::to_vec(&description).map_err(|e| Status::internal(e.to_string()))?);
        tokio::task::spawn_blocking(move || store.put_revision(revision, &document))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::internal(e.to_string()))?;
        let spec = self.settings.spec(&planner, revision, steps);
        self.revisions.put(revision, description, Checked { planner, provider });
        self.brain.send(Input::Specified { spec, actor: self.actor.clone() }).await;
        if let Err(status) = self.forget_old_revisions().await {
            // The description is taken; tidying up is for the next one.
            tracing::warn!("old descriptions are kept: {}", status.message());
        }
        // Answered once it is stored.
        self.brain.query(|_| ()).await.map_err(stopped)?;
        Ok(plan)
    }

    /// Of the revisions that no node runs any more, the last few are kept, to be looked at.
    pub(super) async fn forget_old_revisions(&self) -> Result<(), Status> {
        let in_use = |brain: &Brain| {
            // That to which a roll-out may have to go back.
            brain.oldest_revision().into_iter().chain(brain.rollout().from).min()
        };
        let oldest = self.brain.query(in_use).await.map_err(stopped)?;
        let (latest, oldest) = (self.revisions.next().saturating_sub(1), oldest.unwrap_or(0));
        let before = oldest.min(latest.saturating_sub(REVISIONS_KEPT));
        self.revisions.forget_before(before);
        let store = self.store.clone();
        let forgotten = tokio::task::spawn_blocking(move || store.forget_revisions_before(before)).await;
        forgotten.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| Status::internal(e.to_string()))
    }

    /// The requests that stand and would lose what they have, or could not have it.
    async fn conflicting_requests(&self, planner: &cloudtik_runtimes::Planner) -> Result<Vec<RequestConflict>, Status> {
        let spec = self.settings.spec(planner, 0, Steps::default());
        self.brain.query(move |brain| brain.conflicting_requests(&spec)).await.map_err(stopped)
    }

    /// The workers that a description would end, which nobody should learn afterwards.
    async fn workers_to_go(&self, planner: &cloudtik_runtimes::Planner) -> Result<Vec<Change>, Status> {
        // The revision's number decides nothing here.
        let spec = self.settings.spec(planner, 0, Steps::default());
        let whose = move |brain: &Brain| {
            let excess = brain.excess(&spec).into_iter();
            let conflicts: BTreeSet<String> =
                brain.conflicting_requests(&spec).into_iter().flat_map(|conflict| conflict.requests).collect();
            let stays = |request: &String| !conflicts.contains(request);
            let on = |name: &NodeTypeName| match spec.workers.contains_key(name) {
                true => Vec::new(),
                false => brain.requests_on(name).into_iter().filter(stays).collect(),
            };
            excess.map(|(name, present, wanted)| (on(&name), name, present, wanted)).collect::<Vec<_>>()
        };
        let excess = self.brain.query(whose).await.map_err(stopped)?;
        let change = |(requests, name, present, wanted): (Vec<String>, NodeTypeName, usize, usize)| {
            let going = present - wanted;
            let workers = if going == 1 { "worker" } else { "workers" };
            let mut detail = format!("{present} running or starting, {wanted} desired");
            if !requests.is_empty() {
                detail.push_str(&format!("; the placements of {} move to other nodes, new ones if needed", requests.join(", ")));
            }
            Change { action: "destroy".to_owned(), what: format!("{going} {workers} of type {name}"), detail, disturbs: true }
        };
        Ok(excess.into_iter().map(change).collect())
    }
}

fn change_of(conflict: &RequestConflict) -> Change {
    Change { action: "change".to_owned(), what: conflict.to_string(), detail: conflict.why.to_string(), disturbs: true }
}
