//! The contracts of providers, on this machine's kernel. As root.

mod world;

use cloudtik_providers::conformance;
use world::{SpaceWorld, World};

#[tokio::test]
async fn virtual_nodes_keep_the_contract() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("contract");
    world::keeps_the_contract(&provider, &provider.settings().nodes).await;
    world.end().await;
}

#[tokio::test]
async fn a_virtual_workspace_keeps_the_contract() {
    for nat in [false, true] {
        let Some(space) = SpaceWorld::new(nat) else { return };
        conformance::workspace::check(&space, &mut |_| {}).await.expect("keeps the contract");
    }
}
