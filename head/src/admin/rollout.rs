//! Going back to what the cluster ran before a roll-out.

use cloudtik_config::undo::with_runtimes_of;
use cloudtik_model::answer::Answer;
use cloudtik_model::status::Plan;
use tonic::Status;

use super::{Head, stopped};
use crate::revisions::Description;

impl Head {
    /// Rolls out what nodes ran before the roll-out that is under way, as a new revision. What else was changed since stays.
    pub(super) async fn undo_rollout(&self) -> Result<Answer, Status> {
        self.exclusively(|own| async move {
            let (from, description) = own.undone().await?;
            let taken = own.take_description(description, false).await.map_err(|status| does_not_fit(from, &status))?;
            Ok(Answer::RolloutUndone { from, revision: taken.revision })
        })
        .await
    }

    /// What that would change.
    pub(super) async fn plan_undo(&self) -> Result<Plan, Status> {
        self.exclusively(|own| async move {
            let (from, description) = own.undone().await?;
            own.take_description(description, true).await.map(|taken| taken.plan).map_err(|status| does_not_fit(from, &status))
        })
        .await
    }

    /// The revision that nodes ran before, and the present description with that in it.
    async fn undone(&self) -> Result<(u64, Description), Status> {
        let rollout = self.brain.query(|brain| brain.rollout()).await.map_err(stopped)?;
        let Some(from) = rollout.from else {
            return Err(Status::failed_precondition("no roll-out is under way: there is nothing to undo"));
        };
        let Some(earlier) = self.revisions.description(from) else {
            return Err(Status::failed_precondition(format!("what revision {from} said is not kept any more")));
        };
        let Some((revision, present, _)) = self.revisions.latest() else {
            return Err(Status::failed_precondition("there is no revision yet: there is nothing to undo"));
        };
        let cluster_file =
            with_runtimes_of(&present.cluster_file, &earlier.cluster_file).map_err(|e| Status::internal(format!("a stored file: {e}")))?;
        let undone = Description { cluster_file, runtime_files: earlier.runtime_files };
        if undone == present {
            let message = format!("revision {revision} runs what revision {from} ran: there is nothing to undo");
            return Err(Status::failed_precondition(message));
        }
        Ok((from, undone))
    }
}

/// What ran before cannot run with what else was changed since.
fn does_not_fit(from: u64, status: &Status) -> Status {
    let message = format!(
        "what revision {from} ran does not fit the rest of the present file; correct the file and run `cloudtik up`: {}",
        status.message()
    );
    Status::new(status.code(), message)
}
