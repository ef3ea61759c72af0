//! The contracts of providers, on this machine's kernel. As root.

mod world;

use cloudtik_model::{Generation, NodeId};
use cloudtik_providers::conformance::{self, Checked, check};
use world::{SpaceWorld, World};

#[tokio::test]
async fn virtual_nodes_keep_the_contract() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("contract");
    let request = |node: &NodeId, generation: Generation| conformance::request(node, generation, "10.0.0.254:9", "ca");
    let checked = Checked { provider: &provider, request: &request, many: 10, hold: None };
    check(&checked, &mut |_| {}).await.expect("keeps the contract");
    world.end().await;
}

#[tokio::test]
async fn a_virtual_workspace_keeps_the_contract() {
    for nat in [false, true] {
        let Some(space) = SpaceWorld::new(nat) else { return };
        conformance::workspace::check(&space, &mut |_| {}).await.expect("keeps the contract");
    }
}
