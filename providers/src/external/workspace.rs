//! A workspace whose resources an executable makes, beside the directory on this machine.

use async_trait::async_trait;

use super::executable::Executable;
use super::wire::{Call, Done, WorkspaceStatus};
use crate::local::LocalWorkspace;
use crate::workspace::{Desired, Status, Step, WorkspaceProvider};
use crate::{Error, workspace};

pub struct ExternalWorkspace {
    pub local: LocalWorkspace,
    pub executable: Executable,
    /// What the executable makes, by its own word; what others depend on comes first.
    pub shared: Vec<Desired>,
}

#[async_trait]
impl WorkspaceProvider for ExternalWorkspace {
    fn name(&self) -> String {
        self.local.name()
    }

    fn desired(&self) -> Vec<Desired> {
        self.local.desired().into_iter().chain(self.shared.iter().cloned()).collect()
    }

    async fn status(&self) -> Result<Status, Error> {
        let mut status = self.local.status().await?;
        if !self.shared.is_empty() {
            let WorkspaceStatus { resources } = self.executable.call(Call::WorkspaceStatus).await?;
            let told = |desired: &&Desired| !resources.iter().any(|found| found.id == desired.id);
            if let Some(untold) = self.shared.iter().find(told) {
                return Err(Error::permanent("look at the workspace", format!("the executable does not tell of {}", untold.id)));
            }
            status.resources.extend(resources);
        }
        Ok(status)
    }

    async fn apply(&self, step: &Step) -> Result<(), Error> {
        if self.local.desired().iter().any(|own| own.id == step.resource) {
            return self.local.apply(step).await;
        }
        if step.action == workspace::Action::Remove {
            let used_by: Vec<String> = self.local.status().await?.clusters.iter().map(ToString::to_string).collect();
            if !used_by.is_empty() {
                return Err(Error::Conflict { what: format!("the workspace {}", self.name()), used_by });
            }
        }
        let call = Call::WorkspaceApply { action: step.action, resource: &step.resource };
        self.executable.call(call).await.map(|Done {}| ())
    }
}
