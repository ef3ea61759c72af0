//! How a workspace that exists changes. As root.

mod world;

use std::fs;
use std::process::Command;

use cloudtik_providers::Error;
use cloudtik_providers::workspace::{Action, WorkspaceProvider};
use cloudtik_virtual::{VirtualWorkspace, testing};
use world::{World, apply};

fn said(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).output().expect("the program is there");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

#[tokio::test]
async fn another_range_is_planned_and_made_for_all_that_has_the_old_one_and_refused_while_clusters_have_it() {
    if !world::may_run() {
        return;
    }
    let world = World::with_nat(true).await;
    let directory = world.workspace.directory.clone();
    let old = fs::read_to_string(directory.join("network/range")).expect("reads");
    // Of the documentation of networks: no machine has it.
    let range = "198.51.100.0/24".parse().expect("valid");
    let changed = VirtualWorkspace { range: Some(range), ..world.workspace.clone() };

    fs::create_dir(directory.join("clusters/demo")).expect("makes");
    match changed.plan().await {
        Err(Error::Conflict { what, used_by }) => {
            assert!(what.contains(&old) && what.contains("198.51.100.0/24") && used_by == ["demo"], "{what}: {used_by:?}");
        }
        other => panic!("a cluster has addresses of the old range: {other:?}"),
    }
    fs::remove_dir(directory.join("clusters/demo")).expect("removes");

    let plan = changed.plan().await.expect("plans");
    let steps: Vec<_> = plan.steps.iter().map(|step| (step.action, step.resource.as_str())).collect();
    assert_eq!(steps, [(Action::Change, "range"), (Action::Change, "bridge"), (Action::Change, "nat")], "{plan:?}");
    apply(&changed, true).await;
    assert!(changed.plan().await.expect("plans").is_empty());
    let bridge = testing::bridge(&directory);
    let addresses = said("ip", &["-4", "-o", "address", "show", "dev", &bridge]);
    assert!(addresses.contains("198.51.100.1/24") && addresses.lines().count() == 1, "{addresses}");
    let rules = said("nft", &["list", "table", "ip", &format!("cloudtik-{}", bridge.trim_start_matches("ctb"))]);
    assert!(rules.contains("198.51.100.0/24") && !rules.contains(&old), "{rules}");
    world.end().await;
}
