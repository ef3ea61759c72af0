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

/// As many answers as items: what failed as a whole failed for each.
fn for_each<T>(count: usize, answer: Result<Items, Error>, operation: &str, take: impl Fn(Item) -> Option<T>) -> Vec<Result<T, Error>> {
    let items = match answer {
        Ok(Items { items }) => items,
        Err(error) => {
            let again = error.is_permanent();
            let text = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source()).map(ToString::to_string);
            let text = text.collect::<Vec<_>>().join(": ");
            let copy = |_| if again { Error::permanent(operation, text.clone()) } else { Error::transient(operation, text.clone()) };
            return std::iter::once(error).chain((1..count).map(copy)).take(count).map(Err).collect();
        }
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
        let (heads, workers): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.bootstrap.node.is_head());
        let mut of_heads = Vec::new();
        for head in heads {
            of_heads.push(self.head.create_one(head).await);
        }
        let of_workers = if workers.is_empty() {
            Vec::new()
        } else {
            let nodes = workers.iter().map(|request| (*request).into()).collect();
            let answer = self.executable.call(Call::Create { nodes }).await;
            for_each(workers.len(), answer, "create a machine", |item| item.instance)
        };
        in_order(requests.iter().map(|request| request.bootstrap.node.is_head()), of_heads, of_workers)
    }

    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
        let (heads, workers): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.node.is_head());
        let mut of_heads = Vec::new();
        for head in heads {
            of_heads.push(self.head.delete_one(head).await);
        }
        let of_workers = if workers.is_empty() {
            Vec::new()
        } else {
            let nodes = workers.iter().map(|request| (*request).into()).collect();
            for_each(workers.len(), self.executable.call(Call::Delete { nodes }).await, "delete a machine", |_| Some(()))
        };
        in_order(requests.iter().map(|request| request.node.is_head()), of_heads, of_workers)
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

/// The answers in the order of their requests, of which `is_head` tells whose each is.
fn in_order<T>(is_head: impl Iterator<Item = bool>, heads: Vec<Result<T, Error>>, workers: Vec<Result<T, Error>>) -> Vec<Result<T, Error>> {
    let (mut heads, mut workers) = (heads.into_iter(), workers.into_iter());
    is_head.map(|is_head| if is_head { heads.next() } else { workers.next() }.unwrap_or_else(|| Err(Error::unanswered()))).collect()
}
