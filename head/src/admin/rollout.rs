//! Going back to what the cluster ran before a roll-out.

use cloudtik_model::answer::Answer;
use tonic::Status;

use super::{Head, stopped};

impl Head {
    /// Rolls out the description that the cluster ran before the roll-out that is under way, as a new revision.
    pub(super) async fn undo_rollout(&self) -> Result<Answer, Status> {
        let rollout = self.brain.query(|brain| brain.rollout()).await.map_err(stopped)?;
        let Some(from) = rollout.from else {
            return Err(Status::failed_precondition("no roll-out is under way: there is nothing to undo"));
        };
        let Some(description) = self.revisions.description(from) else {
            return Err(Status::failed_precondition(format!("what revision {from} said is not kept any more")));
        };
        self.apply(description, false).await?;
        let revision = self.revisions.latest().map_or(0, |(revision, ..)| revision);
        Ok(Answer::RolloutUndone { from, revision })
    }
}
