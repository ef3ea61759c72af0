//! Virtual nodes of an ordinary user: all of a workspace lies in one user namespace.

mod world;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use cloudtik_model::node::InstanceState;
use cloudtik_providers::{DeleteNode, Error, NodeProvider, conformance};
use cloudtik_virtual::testing;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use world::{SpaceWorld, World, delete_all, eventually, id, request, starts};

const AS_USER: &str = "CLOUDTIK_TEST_AS_USER";
/// Nobody has this number.
const USER: u32 = 54_321;

#[test]
fn an_ordinary_user_has_virtual_nodes_or_is_told_which_setting_forbids_them() {
    let own = std::env::current_exe().expect("a test knows its program");
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(&own);
    command.args(["--exact", "as_an_ordinary_user", "--ignored", "--nocapture"]).env(AS_USER, "1").env("TMPDIR", home.path());
    if nix::unistd::geteuid().is_root() {
        chown(home.path(), Some(USER), Some(USER)).expect("gives it away");
        command.uid(USER).gid(USER);
    }
    let ran = match command.output() {
        Ok(ran) => ran,
        Err(error) => return cloudtik_tests::skipped(&format!("an ordinary user may not run {}: {error}", own.display())),
    };
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    if let Some(why) = err.lines().find_map(|line| line.strip_prefix("FORBIDDEN: ")) {
        return cloudtik_tests::skipped(why);
    }
    assert!(ran.status.success(), "{out}\n{err}");
    let left: Vec<_> = fs::read_dir(home.path()).expect("reads").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "files are left: {left:?}");
}

#[tokio::test]
#[ignore = "the test above has an ordinary user run it"]
async fn as_an_ordinary_user() {
    assert!(std::env::var_os(AS_USER).is_some(), "the test above sets it");
    let space = SpaceWorld::of_anybody(false);
    match space.try_out().await {
        Ok(()) => {}
        Err(Error::Permission { action }) => {
            assert!(action.contains("sysctl -w") || action.contains("run as root"), "{action}");
            eprintln!("FORBIDDEN: {action}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    }
    conformance::workspace::check(&space, &mut |_| {}).await.expect("keeps the contract");

    let world = World::with_nat(false).await;
    let provider = world.provider("contract");
    world::keeps_the_contract(&provider, &provider.settings().nodes).await;

    for node in ["head", "w1"] {
        provider.create_one(&request(node, 1)).await.expect("creates");
    }
    let w1 = id("w1.1");
    eventually("the agent starts", || starts(&provider, &w1), |n| *n == 1);
    let output = |script: &str| {
        let ran = testing::run_on(&provider, &w1, "/bin/sh", &["-c", script]).expect("runs");
        format!("{}{}", String::from_utf8_lossy(&ran.stdout).trim(), String::from_utf8_lossy(&ran.stderr).trim())
    };
    assert_eq!(output("cat /proc/sys/kernel/hostname; id -u"), "w1\n0");
    let name = format!("cloudtik-written-{}", std::process::id());
    for directory in ["/etc", "/tmp", "/run"] {
        assert_eq!(output(&format!("echo x > {directory}/{name}; cat {directory}/{name}")), "x");
        assert!(!Path::new(directory).join(&name).exists(), "what a node writes in {directory} is on the machine");
    }
    // A file that only root of the node may remove.
    assert_eq!(output("mkdir -p /etc/closed/in && chmod 0 /etc/closed/in /etc/closed"), "");
    let head = provider.head_address().expect("has one").to_string();
    assert!(output("getent hosts head").starts_with(&head));
    // Nodes hear each other: what does not listen refuses, which takes its answer.
    let refused = output(&format!("bash -c 'exec 3<>/dev/tcp/{head}/9'"));
    assert!(refused.contains("refused"), "{refused}");

    // The end of the namespaces is the end of all that is in them.
    let holder = testing::left(&world.workspace.directory);
    let holder = holder.iter().find_map(|what| what.strip_prefix("ground ")?.split(' ').next()?.parse().ok()).expect("somebody holds them");
    kill(Pid::from_raw(holder), Signal::SIGKILL).expect("kills");
    let states = || testing::list(&provider).iter().map(|i| i.state).collect::<Vec<_>>();
    eventually("all nodes stop", states, |states| *states == [InstanceState::Stopped; 2]);
    world::apply(&world.workspace, true).await;
    for instance in testing::list(&provider) {
        provider.reboot(&instance.node, instance.generation, &instance.id).await.expect("starts");
    }
    assert_eq!(states(), [InstanceState::Running; 2]);
    let first = testing::look(&provider, &w1);
    provider.delete_one(&DeleteNode::of(&first)).await.expect("deletes");
    delete_all(&provider).await;
    world.end().await;
}
