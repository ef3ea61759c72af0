//! Calls that create something end before a check stops, so that its clean-up finds what they made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use cloudtik_model::node::Instance;
use cloudtik_model::{Generation, InstanceId, NodeId};
use cloudtik_providers::workspace::{Desired, Status, Step, WorkspaceProvider};
use cloudtik_providers::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What calls pass that create something.
#[derive(Default)]
pub struct Gate {
    calls: RwLock<()>,
    was_passed: AtomicBool,
}

impl Gate {
    /// The call lasts as long as the guard.
    async fn pass(&self) -> RwLockReadGuard<'_, ()> {
        let call = self.calls.read().await;
        self.was_passed.store(true, Ordering::Relaxed);
        call
    }

    /// Returns when the calls that have begun have ended. No other begins while the guard is held, nor while it is waited for.
    pub async fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.calls.write().await
    }

    /// Whether anything may have been created.
    pub fn was_passed(&self) -> bool {
        self.was_passed.load(Ordering::Relaxed)
    }
}

/// A provider of machines or of a workspace behind a gate.
pub struct Gated<P: ?Sized> {
    pub gate: Arc<Gate>,
    pub provider: Arc<P>,
}

#[async_trait]
impl NodeProvider for Gated<dyn NodeProvider> {
    fn capabilities(&self) -> Capabilities {
        self.provider.capabilities()
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.provider.list().await
    }

    async fn create(&self, requests: &[CreateNode]) -> Vec<Result<Instance, Error>> {
        let _call = self.gate.pass().await;
        self.provider.create(requests).await
    }

    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
        self.provider.delete(requests).await
    }

    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error> {
        self.provider.describe(instance).await
    }

    async fn restart_agent(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error> {
        self.provider.restart_agent(node, generation, instance, force).await
    }

    async fn reboot(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        self.provider.reboot(node, generation, instance).await
    }

    async fn changed(&self) {
        self.provider.changed().await;
    }

    async fn purge(&self) -> Result<(), Error> {
        self.provider.purge().await
    }
}

#[async_trait]
impl WorkspaceProvider for Gated<dyn WorkspaceProvider> {
    fn name(&self) -> String {
        self.provider.name()
    }

    fn desired(&self) -> Vec<Desired> {
        self.provider.desired()
    }

    async fn status(&self) -> Result<Status, Error> {
        self.provider.status().await
    }

    async fn apply(&self, step: &Step) -> Result<(), Error> {
        let _call = self.gate.pass().await;
        self.provider.apply(step).await
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn a_gate_closes_when_the_calls_that_have_begun_have_ended() {
        let gate = Gate::default();
        assert!(!gate.was_passed());
        let begun = gate.pass().await;
        assert!(gate.was_passed());

        let mut closing = std::pin::pin!(gate.close());
        assert!(poll(closing.as_mut()).is_pending(), "a call is under way");
        let mut later = std::pin::pin!(gate.pass());
        assert!(poll(later.as_mut()).is_pending(), "none begins while it closes");
        drop(begun);
        let closed = closing.await;
        assert!(poll(later.as_mut()).is_pending(), "none begins while it is closed");
        drop(closed);
        drop(later.await);
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
