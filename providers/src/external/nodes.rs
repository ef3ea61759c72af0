//! The machines of a cluster whose workers an executable makes. The head's node is on this machine.

use async_trait::async_trait;
use cloudtik_model::node::Instance;
use cloudtik_model::{Generation, InstanceId, NodeId};

use super::executable::Executable;
use super::wire::{Call, Described, Done, Item, Items, Page};
use crate::local::LocalProvider;
use crate::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider};

/// Pages of one list: more are an executable that goes in circles.
const MAX_PAGES: usize = 10_000;

pub struct ExternalNodes {
    pub head: LocalProvider,
    pub executable: Executable,
    pub capabilities: Capabilities,
}

impl ExternalNodes {
    /// Whether the instance is the head's node.
    fn is_head(&self, instance: &InstanceId) -> bool {
        self.head.heads().is_ok_and(|heads| heads.iter().any(|head| head.id == *instance))
    }

    async fn workers(&self) -> Result<Vec<Instance>, Error> {
        let (mut all, mut page) = (Vec::new(), None::<String>);
        for _ in 0..MAX_PAGES {
            let Page { instances, next } = self.executable.call(Call::List { page: page.as_deref() }).await?;
            all.extend(instances);
            if next.is_none() {
                return Ok(all);
            }
            page = next;
        }
        Err(Error::permanent("list the machines", format!("there are more than {MAX_PAGES} pages")))
    }
}

/// As many answers as items.
fn answers_for<T>(count: usize, answer: Result<Items, Error>, operation: &str, take: impl Fn(Item) -> Option<T>) -> Vec<Result<T, Error>> {
    let items = match answer {
        Ok(Items { items }) => items,
        Err(error) => return error.for_each(count),
    };
    let mut answers: Vec<Result<T, Error>> = Vec::new();
    for mut item in items.into_iter().take(count) {
        answers.push(match item.error.take() {
            Some(failed) => Err(failed.into_error(operation)),
            None => take(item).ok_or_else(|| Error::permanent(operation, "its answer names no instance")),
        });
    }
    answers.resize_with(count, || Err(Error::unanswered()));
    answers
}

#[async_trait]
impl NodeProvider for ExternalNodes {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        let mut all = self.head.heads()?;
        all.extend(self.workers().await?);
        Ok(all)
    }

    async fn create(&self, requests: &[CreateNode]) -> Vec<Result<Instance, Error>> {
        let nodes: Vec<_> = requests.iter().filter(|request| !request.bootstrap.node.is_head()).map(Into::into).collect();
        let mut of_workers = match nodes.len() {
            0 => Vec::new(),
            count => answers_for(count, self.executable.call(Call::Create { nodes }).await, "create a machine", |item| item.instance),
        }
        .into_iter();
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            answers.push(if request.bootstrap.node.is_head() {
                self.head.create_one(request).await
            } else {
                of_workers.next().unwrap_or_else(|| Err(Error::unanswered()))
            });
        }
        answers
    }

    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
        let nodes: Vec<_> = requests.iter().filter(|request| !request.node.is_head()).map(Into::into).collect();
        let mut of_workers = match nodes.len() {
            0 => Vec::new(),
            count => answers_for(count, self.executable.call(Call::Delete { nodes }).await, "delete a machine", |_| Some(())),
        }
        .into_iter();
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            answers.push(if request.node.is_head() {
                self.head.delete_one(request).await
            } else {
                of_workers.next().unwrap_or_else(|| Err(Error::unanswered()))
            });
        }
        answers
    }

    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error> {
        if self.is_head(instance) {
            return self.head.describe(instance).await;
        }
        let Described { instance } = self.executable.call(Call::Describe { instance }).await?;
        Ok(instance)
    }

    async fn changed(&self) {
        self.executable.changed().await;
    }

    async fn restart_agent(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error> {
        if node.is_head() {
            return self.head.restart_agent(node, generation, instance, force).await;
        }
        let call = Call::RestartAgent { node, generation, instance, force };
        self.executable.call(call).await.map(|Done {}| ())
    }

    async fn reboot(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        if node.is_head() {
            return self.head.reboot(node, generation, instance).await;
        }
        self.executable.call(Call::Reboot { node, generation, instance }).await.map(|Done {}| ())
    }
}
