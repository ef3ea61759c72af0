//! The contract of [`NodeProvider`] as a suite that every implementation runs.

pub mod workspace;

use std::time::{Duration, Instant};

use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::spec::Offer;
use cloudtik_model::{ClusterName, Generation, InstanceId, NodeId, NodeTypeName};

use crate::{CreateNode, DeleteNode, Error, NodeProvider};

/// Between two looks at a list that may lag behind.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A node as the suite has it created. Its agent, if one runs, finds no head at `head`; `ca` is the root certificate in PEM.
pub fn request(node: &NodeId, generation: Generation, head: &str, ca: &str) -> CreateNode {
    let node_type = NodeTypeName::new(NodeTypeName::DEFAULT).expect("valid");
    let bootstrap = Bootstrap {
        cluster: ClusterName::new("contract").expect("valid"),
        node: node.clone(),
        generation,
        node_type: node_type.clone(),
        head: head.to_owned(),
        ca: ca.to_owned(),
        token: "token".to_owned(),
        address: None,
        resources: None,
        pinned: Vec::new(),
        artifacts: None,
        heartbeat_ms: 1_000,
        dead_man_ms: None,
        power_off: Vec::new(),
        made_at: 0,
    };
    CreateNode { node_type, shape: None, offer: Offer::default(), bootstrap }
}

/// Runs the whole suite on a provider without instances. `request` makes what is to be created for a node and a
/// generation. Panics with the clause that does not hold.
pub async fn check(provider: &dyn NodeProvider, request: impl Fn(&NodeId, Generation) -> CreateNode) {
    let (w1, w2) = (NodeId::new("w1").expect("valid"), NodeId::new("w2").expect("valid"));
    let first = Generation(1);
    assert!(provider.capabilities().batch > 0, "a call carries an item at least");
    assert_eq!(provider.list().await.expect("lists"), [], "the suite starts without instances");

    let created = provider.create_one(&request(&w1, first)).await.expect("creates");
    assert_eq!((&created.node, created.generation), (&w1, first), "an instance carries its node and generation");
    let again = provider.create_one(&request(&w1, first)).await.expect("creates again");
    assert_eq!(created.id, again.id, "create is idempotent in node and generation");
    assert_eq!(created.address, again.address, "the same instance has the same address");

    // One of them is there already.
    let requests = [request(&w2, first), request(&w1, first), request(&w1, Generation(2))];
    let [other, again, newer] = <[Instance; 3]>::try_from(create_all(provider, &requests).await).expect("three");
    assert_eq!((&other.node, other.generation), (&w2, first), "answers are in the order of the requests");
    assert_eq!((&newer.node, newer.generation), (&w1, Generation(2)), "answers are in the order of the requests");
    assert_eq!(created.id, again.id, "create is idempotent in a batch");
    assert!(created.id != other.id && created.id != newer.id && other.id != newer.id, "every launch has an id of its own");
    let addresses = [&created.address, &other.address, &newer.address];
    let differ = addresses[0] != addresses[1] && addresses[0] != addresses[2] && addresses[1] != addresses[2];
    assert!(differ || addresses.contains(&&None), "addresses differ: {addresses:?}");

    lists(provider, &[&created, &other, &newer], "the list shows what was created, once").await;
    let described = provider.describe(&other.id).await.expect("describes");
    assert_eq!((&described.id, &described.node, described.generation), (&other.id, &w2, first), "an instance is described as it is");

    refuses_mismatches(provider, &created, &other).await;
    lists(provider, &[&created, &other, &newer], "a refused delete deletes nothing").await;
    restarts(provider, &created, &other).await;
    lists(provider, &[&created, &other, &newer], "a reboot keeps the instance").await;

    provider.delete_one(&DeleteNode::of(&created)).await.expect("deletes");
    provider.delete_one(&DeleteNode::of(&created)).await.expect("deleting what is gone succeeds");
    lists(provider, &[&other, &newer], "only the deleted instance is gone").await;
    match provider.describe(&created.id).await {
        Err(Error::NotFound(_)) => {}
        Ok(described) if described.state == InstanceState::Terminated => {}
        other => panic!("what is gone is not described: {other:?}"),
    }

    // What is gone, what does not match, and what is there.
    let wrong = DeleteNode { node: w2.clone(), ..DeleteNode::of(&newer) };
    let answers = delete_all(provider, &[DeleteNode::of(&created), wrong, DeleteNode::of(&other)]).await;
    assert!(
        matches!(answers[..], [Ok(()), Err(Error::Mismatch(_)), Ok(())]),
        "an item that fails leaves the others of its batch alone: {answers:?}"
    );
    lists(provider, &[&newer], "of a batch only what matches is deleted").await;
    provider.delete_one(&DeleteNode::of(&newer)).await.expect("deletes");
    lists(provider, &[], "nothing is left").await;
}

async fn refuses_mismatches(provider: &dyn NodeProvider, created: &Instance, other: &Instance) {
    let mismatch = provider.delete_one(&DeleteNode { node: other.node.clone(), ..DeleteNode::of(created) }).await;
    assert!(matches!(mismatch, Err(Error::Mismatch(_))), "node and instance must match: {mismatch:?}");
    let mismatch = provider.delete_one(&DeleteNode { generation: Generation(2), ..DeleteNode::of(created) }).await;
    assert!(matches!(mismatch, Err(Error::Mismatch(_))), "generation and instance must match: {mismatch:?}");
}

async fn restarts(provider: &dyn NodeProvider, created: &Instance, other: &Instance) {
    let DeleteNode { node, generation, instance } = DeleteNode::of(created);
    let (never, unknown) = (Generation(9), InstanceId::new(format!("{node}.9")).expect("valid"));
    if provider.capabilities().restart_agent {
        for force in [false, true] {
            provider.restart_agent(&node, generation, &instance, force).await.expect("restarts an agent");
        }
        let missing = provider.restart_agent(&node, never, &unknown, true).await;
        assert!(missing.is_err(), "the agent of no instance cannot be restarted");
    }
    if provider.capabilities().reboot.is_some() {
        provider.reboot(&node, generation, &instance).await.expect("reboots");
        let mismatch = provider.reboot(&other.node, generation, &instance).await;
        assert!(matches!(mismatch, Err(Error::Mismatch(_))), "node and instance must match: {mismatch:?}");
        let missing = provider.reboot(&node, never, &unknown).await;
        assert!(missing.is_err(), "what is not there cannot be rebooted");
    }
}

/// Creates all, by calls as large as the provider takes.
async fn create_all(provider: &dyn NodeProvider, requests: &[CreateNode]) -> Vec<Instance> {
    let mut created = Vec::new();
    for batch in requests.chunks(provider.capabilities().batch) {
        let answers = provider.create(batch).await;
        assert_eq!(answers.len(), batch.len(), "every item of a creation has an answer");
        created.extend(answers.into_iter().map(|answer| answer.expect("creates")));
    }
    created
}

/// Deletes all, by calls as large as the provider takes.
async fn delete_all(provider: &dyn NodeProvider, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
    let mut answers = Vec::new();
    for batch in requests.chunks(provider.capabilities().batch) {
        let of_batch = provider.delete(batch).await;
        assert_eq!(of_batch.len(), batch.len(), "every item of a deletion has an answer");
        answers.extend(of_batch);
    }
    answers
}

/// Looks at the list until it shows exactly `expected`, for as long as the provider may lag behind.
async fn lists(provider: &dyn NodeProvider, expected: &[&Instance], clause: &str) {
    let mut expected: Vec<_> = expected.iter().map(|i| (i.id.clone(), i.node.clone(), i.generation)).collect();
    expected.sort();
    let latest = Instant::now() + provider.capabilities().visibility;
    loop {
        let is_last = Instant::now() >= latest;
        let instances = provider.list().await.expect("lists");
        let alive = instances.into_iter().filter(|i| i.state != InstanceState::Terminated);
        let mut listed: Vec<_> = alive.map(|i| (i.id, i.node, i.generation)).collect();
        listed.sort();
        if listed == expected {
            return;
        }
        assert!(!is_last, "{clause}: listed {listed:?}, expected {expected:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
