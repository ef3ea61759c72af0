//! The machines of one cluster: what a provider of nodes is asked and what it promises.

use std::time::Duration;

use async_trait::async_trait;
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::spec::Offer;
use cloudtik_model::{Generation, InstanceId, NodeId, NodeTypeName, ShapeName};

use crate::Error;

/// What a provider can do beyond listing, creating and deleting, and how it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`NodeProvider::restart_agent`] works.
    pub restart_agent: bool,
    /// [`NodeProvider::reboot`] works, and this long after it the agent is back.
    pub reboot: Option<Duration>,
    /// The machines are the user's own: never deleted for being unreachable.
    pub owned_machines: bool,
    /// How long an instance that exists may be missing from the list.
    pub visibility: Duration,
    /// How many items one call of `create` or `delete` may carry, at least one.
    pub batch: usize,
}

/// What is to be made.
#[derive(Debug, Clone)]
pub struct CreateNode {
    pub node_type: NodeTypeName,
    /// Of the provider's catalogue, where the type names one.
    pub shape: Option<ShapeName>,
    /// How and where it is bought, for providers that have a choice.
    pub offer: Offer,
    /// Carries cluster, node and generation, which are the idempotency key and the tags of the instance.
    pub bootstrap: Bootstrap,
}

/// What is to be deleted: the instance, if it is that generation of that node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteNode {
    pub node: NodeId,
    pub generation: Generation,
    pub instance: InstanceId,
}

impl DeleteNode {
    /// The deletion of an instance as it was listed.
    pub fn of(instance: &Instance) -> Self {
        Self { node: instance.node.clone(), generation: instance.generation, instance: instance.id.clone() }
    }
}

/// Makes and deletes the machines of one cluster.
///
/// The contract, checked by [`crate::conformance`]:
/// - `create` and `delete` take at most [`Capabilities::batch`] items and return one answer for each, in their order. An
///   item that fails leaves the others alone.
/// - `create` is idempotent in (node, generation): repeated, also by another process or in another batch, it returns the
///   same instance, and its first bootstrap payload stands.
/// - `list` shows every instance of the cluster, and of no other, with the tags that it was created with, at the latest
///   `visibility` after its creation. It returns all pages or an error.
/// - `delete` returns when the instance cannot run anything any more; deleting what is gone succeeds; node, generation
///   and instance must match, else [`Error::Mismatch`] and nothing happens. Data that was brought from elsewhere (a mount)
///   is never deleted with it: that is [`Error::Undeletable`], and the instance stays.
/// - `describe` fails with [`Error::NotFound`] for what was never made or is gone.
/// - Nothing is retried or decided inside; errors say whether repeating helps.
#[async_trait]
pub trait NodeProvider: Send + Sync {
    fn capabilities(&self) -> Capabilities;

    async fn list(&self) -> Result<Vec<Instance>, Error>;

    async fn create(&self, requests: &[CreateNode]) -> Vec<Result<Instance, Error>>;

    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>>;

    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error>;

    /// Starts the node's agent again where it is, leaving everything else on the node alone. An agent that hangs is
    /// ended first; one that runs well is not disturbed.
    async fn restart_agent(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error>;

    /// Starts the machine anew: everything on it ends, its disks stay, and its agent starts by itself.
    async fn reboot(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error>;

    /// Returns when something about the machines may have changed since the last list, so that the next look comes sooner. It may
    /// return for no reason; where the provider tells of no changes it never does.
    async fn changed(&self) {
        std::future::pending().await
    }

    /// Ends whatever runs for the cluster, listed or not, as far as that can be told without any record of it.
    async fn purge(&self) -> Result<(), Error> {
        let instances = self.list().await?;
        let left: Vec<_> = instances.iter().filter(|i| i.state != InstanceState::Terminated).map(DeleteNode::of).collect();
        for batch in left.chunks(self.capabilities().batch.max(1)) {
            self.delete(batch).await.into_iter().collect::<Result<Vec<()>, Error>>()?;
        }
        Ok(())
    }

    /// Creates one node.
    async fn create_one(&self, request: &CreateNode) -> Result<Instance, Error> {
        self.create(std::slice::from_ref(request)).await.pop().unwrap_or_else(|| Err(Error::unanswered()))
    }

    /// Deletes one node.
    async fn delete_one(&self, request: &DeleteNode) -> Result<(), Error> {
        self.delete(std::slice::from_ref(request)).await.pop().unwrap_or_else(|| Err(Error::unanswered()))
    }
}

/// The instance of a node's generation where the provider chooses ids: the same launch always means the same machine.
pub fn instance_id(node: &NodeId, generation: Generation) -> InstanceId {
    InstanceId::new(format!("{node}.{generation}")).expect("node ids are shorter than instance ids may be")
}

/// The node and generation that such an id says.
pub fn parse_instance(id: &InstanceId) -> Option<(NodeId, Generation)> {
    let (node, generation) = id.as_str().rsplit_once('.')?;
    Some((node.parse().ok()?, Generation(generation.parse().ok()?)))
}
