//! The contract of [`NodeProvider`] as a suite that every implementation runs.

use cloudtik_model::node::InstanceState;
use cloudtik_model::{Generation, InstanceId, NodeId};

use crate::{CreateNode, Error, NodeProvider};

/// Runs the whole suite on a provider without instances. `request` makes what is to be created for a node and a
/// generation. Panics with the clause that does not hold.
pub async fn check(provider: &dyn NodeProvider, request: impl Fn(&NodeId, Generation) -> CreateNode) {
    let (w1, w2) = (NodeId::new("w1").expect("valid"), NodeId::new("w2").expect("valid"));
    let first = Generation(1);
    assert_eq!(provider.list().await.expect("lists"), [], "the suite starts without instances");

    let created = provider.create(&request(&w1, first)).await.expect("creates");
    assert_eq!((&created.node, created.generation), (&w1, first), "an instance carries its node and generation");
    let again = provider.create(&request(&w1, first)).await.expect("creates again");
    assert_eq!(created.id, again.id, "create is idempotent in node and generation");
    assert_eq!(created.address, again.address, "the same instance has the same address");

    let other = provider.create(&request(&w2, first)).await.expect("creates another");
    let newer = provider.create(&request(&w1, Generation(2))).await.expect("creates a newer generation");
    assert!(created.id != other.id && created.id != newer.id && other.id != newer.id, "every launch has an id of its own");
    let addresses = [&created.address, &other.address, &newer.address];
    assert!(addresses[0] != addresses[1] && addresses[0] != addresses[2] && addresses[1] != addresses[2], "addresses differ");

    let mut listed: Vec<_> = provider.list().await.expect("lists").into_iter().filter(|i| i.state != InstanceState::Terminated).collect();
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    let mut expected = vec![created.id.clone(), other.id.clone(), newer.id.clone()];
    expected.sort();
    assert_eq!(listed.iter().map(|i| i.id.clone()).collect::<Vec<_>>(), expected, "the list shows what was created, once");

    let mismatch = provider.delete(&w2, first, &created.id).await;
    assert!(matches!(mismatch, Err(Error::Mismatch(_))), "node and instance must match: {mismatch:?}");
    let mismatch = provider.delete(&w1, Generation(2), &created.id).await;
    assert!(matches!(mismatch, Err(Error::Mismatch(_))), "generation and instance must match: {mismatch:?}");
    assert_eq!(provider.list().await.expect("lists").len(), 3, "a refused delete deletes nothing");

    if provider.capabilities().restart_agent {
        for force in [false, true] {
            provider.restart_agent(&w1, first, &created.id, force).await.expect("restarts an agent");
        }
        let missing = provider.restart_agent(&w1, Generation(9), &InstanceId::new("w1.9").expect("valid"), true).await;
        assert!(missing.is_err(), "the agent of no instance cannot be restarted");
    }

    if provider.capabilities().reboot.is_some() {
        provider.reboot(&w1, first, &created.id).await.expect("reboots");
        let mismatch = provider.reboot(&w2, first, &created.id).await;
        assert!(matches!(mismatch, Err(Error::Mismatch(_))), "node and instance must match: {mismatch:?}");
        let missing = provider.reboot(&w1, Generation(9), &InstanceId::new("w1.9").expect("valid")).await;
        assert!(missing.is_err(), "what is not there cannot be rebooted");
        assert_eq!(provider.list().await.expect("lists").len(), 3, "a reboot keeps the instance");
    }

    provider.delete(&w1, first, &created.id).await.expect("deletes");
    provider.delete(&w1, first, &created.id).await.expect("deleting what is gone succeeds");
    let left: Vec<_> = provider.list().await.expect("lists").into_iter().filter(|i| i.state != InstanceState::Terminated).collect();
    assert_eq!(left.len(), 2, "only the deleted instance is gone: {left:?}");
    provider.delete(&w2, first, &other.id).await.expect("deletes");
    provider.delete(&w1, Generation(2), &newer.id).await.expect("deletes");
    assert!(provider.list().await.expect("lists").iter().all(|i| i.state == InstanceState::Terminated), "nothing is left");
}
