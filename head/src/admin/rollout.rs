//! Going on with a roll-out that is held, and going back to what the cluster ran before.

use cloudtik_model::status::RolloutAnswer;
use tonic::Status;

use super::{Head, stopped};

pub(super) fn resumed(revision: u64) -> RolloutAnswer {
    RolloutAnswer { message: format!("the roll-out of revision {revision} is tried again"), revision }
}

impl Head {
    /// Rolls out the description that the cluster ran before the roll-out that is under way, as a new revision.
    pub(super) async fn undo_rollout(&self) -> Result<RolloutAnswer, Status> {
        let rollout = self.brain.query(|brain| brain.rollout()).await.map_err(stopped)?;
        let Some(from) = rollout.from else {
            return Err(Status::failed_precondition("no roll-out is under way: there is nothing to undo"));
        };
        let Some(description) = self.revisions.description(from) else {
            return Err(Status::failed_precondition(format!("what revision {from} said is not kept any more")));
        };
        self.apply(description, false).await?;
        let revision = self.revisions.latest().map_or(0, |(revision, ..)| revision);
        let message = format!("revision {from} is rolled out again, as revision {revision}; the cluster's file still says otherwise");
        Ok(RolloutAnswer { message, revision })
    }
}
