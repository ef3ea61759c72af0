//! What the brain is told of batches, on a provider that answers as scripted.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cloudtik_brain::{Action, FailureKind, Input};
use cloudtik_model::node::Instance;
use cloudtik_model::{Generation, InstanceId, NodeId};
use cloudtik_providers::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider};

use super::{delete, split};
use crate::runner::effects::{Effect, EffectQueue};

/// Answers the next delete with what it was given.
struct Scripted(Mutex<Vec<Result<(), Error>>>);

#[async_trait]
impl NodeProvider for Scripted {
    fn capabilities(&self) -> Capabilities {
        unreachable!("the test divides requests itself")
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        Ok(Vec::new())
    }

    async fn create(&self, _: &[CreateNode]) -> Vec<Result<Instance, Error>> {
        Vec::new()
    }

    async fn delete(&self, _: &[DeleteNode]) -> Vec<Result<(), Error>> {
        std::mem::take(&mut *self.0.lock().expect("nothing panics while holding the lock"))
    }

    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error> {
        Err(Error::NotFound(instance.to_string()))
    }

    async fn restart_agent(&self, _: &NodeId, _: Generation, instance: &InstanceId, _: bool) -> Result<(), Error> {
        Err(Error::NotFound(instance.to_string()))
    }

    async fn reboot(&self, _: &NodeId, _: Generation, instance: &InstanceId) -> Result<(), Error> {
        Err(Error::NotFound(instance.to_string()))
    }
}

fn request(number: u32) -> DeleteNode {
    DeleteNode {
        node: NodeId::new(format!("w{number}")).expect("valid"),
        generation: Generation(number),
        instance: InstanceId::new(format!("w{number}.{number}")).expect("valid"),
    }
}

#[tokio::test]
async fn each_item_of_a_batch_is_told_with_its_own_result() {
    let throttled = Error::Throttled { message: "rate exceeded".to_owned(), retry_after: Some(std::time::Duration::from_secs(3)) };
    let conflict = Error::Conflict { what: "w3.3".to_owned(), used_by: vec!["an image".to_owned()] };
    // The last of four is left without an answer.
    let provider = Arc::new(Scripted(Mutex::new(vec![Ok(()), Err(throttled), Err(conflict)])));
    let told: Vec<_> = delete(provider, (1..=4).map(request).collect())
        .await
        .into_iter()
        .map(|(worked, input)| match input {
            Input::Deleted { node, generation, instance, result } => {
                assert_eq!(instance.as_str(), format!("{node}.{generation}", generation = generation.0));
                assert_eq!(worked, result.is_ok());
                (node.to_string(), result.err().map(|failure| (failure.kind, failure.retry_after)))
            }
            other => panic!("not the answer to a deletion: {other:?}"),
        })
        .collect();
    let expected = [
        ("w1".to_owned(), None),
        ("w2".to_owned(), Some((FailureKind::Throttled, Some(3_000)))),
        ("w3".to_owned(), Some((FailureKind::Transient, None))),
        ("w4".to_owned(), Some((FailureKind::Transient, None))),
    ];
    assert_eq!(told, expected);
}

#[test]
fn requests_are_divided_by_what_a_call_may_carry() {
    assert_eq!(split(&[1, 2, 3, 4, 5], 2), [vec![1, 2], vec![3, 4], vec![5]]);
    assert_eq!(split(&[1, 2], 100), [vec![1, 2]]);
    assert_eq!(split(&[1, 2], 0), [vec![1], vec![2]]);
    assert!(split::<u8>(&[], 3).is_empty());
}

#[tokio::test]
async fn what_is_due_together_is_taken_together() {
    let effects = EffectQueue::default();
    for number in 1..=3 {
        let DeleteNode { node, generation, instance } = request(number);
        effects.push(Effect { action: Action::Delete { node, generation, instance }, node: None });
    }
    let first = effects.next().await.expect("there is one");
    assert!(matches!(first.action, Action::Delete { generation: Generation(1), .. }));
    let rest: Vec<_> = effects.take_ready().into_iter().map(|effect| effect.action).collect();
    assert!(matches!(rest[..], [Action::Delete { generation: Generation(2), .. }, Action::Delete { generation: Generation(3), .. }]));
    assert!(effects.take_ready().is_empty());
}
