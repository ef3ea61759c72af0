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

/// Superseded descriptions that are kept.
const REVISIONS_KEPT: u64 = 20;

/// What came of a description.
pub(super) struct Taken {
    pub plan: Plan,
    /// The latest by now: the description's own, unless it was only planned or changes nothing.
    pub revision: u64,
}

impl Head {
    /// Takes a description, or says what it would change.
    pub(super) async fn apply(&self, description: Description, plan_only: bool) -> Result<Plan, Status> {
        self.exclusively(move |own| async move { own.take_description(description, plan_only).await.map(|taken| taken.plan) }).await
    }

    /// Does what reads and changes descriptions while nothing else does. Goes on to its end when the caller has gone: a description
    /// that is stored reaches the brain.
    pub(super) async fn exclusively<T, W>(&self, work: impl FnOnce(Self) -> W + Send + 'static) -> Result<T, Status>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Status>> + Send,
    {
        let own = self.clone();
        let working = self.tasks.spawn(async move {
            let applying = own.applying.clone();
            let _one = applying.lock().await;
            work(own).await
        });
        working.await.map_err(|e| Status::internal(e.to_string()))?
    }

    /// Only within [`Self::exclusively`].
    pub(super) async fn take_description(&self, description: Description, plan_only: bool) -> Result<Taken, Status> {
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
        let (workers, conflicts) = self.losses(&planner).await?;
        plan.changes.extend(workers);
        let unchanged = latest.as_ref().is_some_and(|(_, known, _)| *known == description) && !stopping;
        if !unchanged {
            plan.changes.extend(conflicts.iter().map(change_of));
            plan.conflicts = conflicts;
        }
        let machines = self.machines.prepare(&provider.settings).map_err(|e| Status::failed_precondition(chain(&e)))?;
        if plan_only || unchanged {
            return Ok(Taken { plan, revision: latest.map_or(0, |(revision, ..)| revision) });
        }
        let revision = self.revisions.next();
        let (store, document) = (self.store.clone(), serde_json::to_vec(&description).map_err(|e| Status::internal(e.to_string()))?);
        tokio::task::spawn_blocking(move || store.put_revision(revision, &document))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::internal(e.to_string()))?;
        self.machines.replace(machines);
        let spec = self.settings.spec(&planner, revision, steps);
        self.revisions.put(revision, description, Checked { planner, provider });
        self.brain.send(Input::Specified { spec, actor: self.actor.clone() }).await;
        if let Err(status) = self.forget_old_revisions().await {
            // The description is taken; tidying up is for the next one.
            tracing::warn!("old descriptions are kept: {}", status.message());
        }
        // Answered once it is stored.
        self.brain.query(|_| ()).await.map_err(stopped)?;
        Ok(Taken { plan, revision })
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

    /// What a description would take: workers, and the room of requests.
    async fn losses(&self, planner: &cloudtik_runtimes::Planner) -> Result<(Vec<Change>, Vec<RequestConflict>), Status> {
        // The revision's number decides nothing here.
        let spec = self.settings.spec(planner, 0, Steps::default());
        let look = move |brain: &Brain| {
            let conflicts = brain.conflicting_requests(&spec);
            let ended: BTreeSet<&String> = conflicts.iter().flat_map(|conflict| &conflict.requests).collect();
            let on = |name: &NodeTypeName| match spec.workers.contains_key(name) {
                true => Vec::new(),
                false => brain.requests_on(name).into_iter().filter(|request| !ended.contains(request)).collect(),
            };
            let excess = brain.excess(&spec).into_iter();
            let excess: Vec<_> = excess.map(|(name, present, wanted)| (on(&name), name, present, wanted)).collect();
            (excess, conflicts)
        };
        let (excess, conflicts) = self.brain.query(look).await.map_err(stopped)?;
        let change = |(requests, name, present, wanted): (Vec<String>, NodeTypeName, usize, usize)| {
            let going = present - wanted;
            let workers = if going == 1 { "worker" } else { "workers" };
            let mut detail = format!("{present} running or starting, {wanted} desired");
            if !requests.is_empty() {
                detail.push_str(&format!("; the placements of {} move to other nodes, new ones if needed", requests.join(", ")));
            }
            Change { action: "destroy".to_owned(), what: format!("{going} {workers} of type {name}"), detail, disturbs: true }
        };
        Ok((excess.into_iter().map(change).collect(), conflicts))
    }
}

fn change_of(conflict: &RequestConflict) -> Change {
    Change { action: "change".to_owned(), what: conflict.to_string(), detail: conflict.why.to_string(), disturbs: true }
}
