//! What is left on the machine after accidents: nothing, or what the sweep finds and names. As root.

mod traced;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cloudtik_model::InstanceId;
use cloudtik_model::node::InstanceState;
use cloudtik_providers::kind::Machines;
use cloudtik_providers::{DeleteNode, NodeProvider};
use cloudtik_virtual::testing::{self, Lost};
use cloudtik_virtual::{Leftover, Virtual, VirtualProvider, sweep};
use traced::{Traced, Victim};
use world::{World, apply, delete_all, eventually, id, program, request, starts};

/// The first processes of an instance.
fn first_processes(world: &World) -> usize {
    testing::left(&world.workspace.directory).iter().filter(|what| what.starts_with("process")).count()
}

/// Only the workspace's own bridge.
fn assert_clean(world: &World, when: &str) {
    let clean = |left: &Vec<String>| left.iter().all(|what| world::is_of_workspace(what));
    eventually(when, || testing::left(&world.workspace.directory), clean);
}

/// Kills a process of a start at a system call, each time some calls later, until the start gets through; each time the node
/// can be created again, and deleted, and nothing is left.
async fn killed_all_along(victim: Victim) {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let w1 = id("w1.1");
    let mut at = 1;
    loop {
        // Makes the directory. Its start is undone, and the traced one takes its place.
        let node = provider.create_one(&request("w1", 1)).await.expect("creates");
        provider.stop(&node.node, node.generation, &w1).expect("stops");
        let place = provider.settings().nodes.join("w1.1");
        let ended = Traced::start(&program(), &["boot".as_ref(), place.as_os_str()]).kill_at(victim, at);
        let created = provider.create_one(&request("w1", 1)).await;
        let created = created.unwrap_or_else(|error| panic!("killed at call {at}, it is not created again: {error:?}"));
        assert_eq!(created.state, InstanceState::Running, "killed at call {at}");
        assert_eq!(first_processes(&world), 1, "killed at call {at}, there are two of it");
        provider.delete_one(&DeleteNode::of(&created)).await.expect("deletes");
        assert_clean(&world, &format!("killed at call {at}, it leaves something"));
        if !ended.was_killed {
            assert_eq!(ended.said, r#"{"Ok":null}"#, "at call {at}");
            break;
        }
        // Entry and exit of each call are two stops: an odd number meets both.
        at += 13;
    }
    assert!(at > 50, "it was traced: {at} stops");
    world.end().await;
}

#[tokio::test]
async fn whoever_starts_a_node_is_killed_at_system_calls_all_along() {
    killed_all_along(Victim::Starter).await;
}

#[tokio::test]
async fn the_first_process_is_killed_at_system_calls_all_along_its_start() {
    killed_all_along(Victim::FirstProcess).await;
}

#[tokio::test]
async fn what_breaks_off_in_the_directory_is_made_good_by_the_next_call() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let nodes = provider.settings().nodes.clone();
    fs::create_dir_all(nodes.join(".w1.1.new/home/deep")).expect("makes");
    let node = provider.create_one(&request("w1", 1)).await.expect("creates");
    // A deletion that ended after the instance was none any more.
    fs::create_dir_all(nodes.join(".w1.1.gone/disk/upper/etc")).expect("makes");
    provider.delete_one(&DeleteNode::of(&node)).await.expect("deletes");
    provider.delete_one(&DeleteNode::of(&node)).await.expect("deletes again");
    fs::create_dir_all(nodes.join(".w2.1.gone/disk")).expect("makes");
    provider.create_one(&request("w3", 1)).await.expect("creates");
    provider.purge().await.expect("purges");
    assert_eq!(first_processes(&world), 0);
    let left: Vec<_> = fs::read_dir(&nodes).expect("reads").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| name == ".lock" || name == ".hosts"), "{left:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_managers_make_each_node_once_and_give_each_an_address_of_its_own() {
    let Some(world) = World::new().await else { return };
    let (one, two, other) = (world.provider("demo"), world.provider("demo"), world.provider("other"));
    let nodes: Vec<_> = (1..=8).map(|n| request(&format!("w{n}"), 1)).collect();
    let (a, b, c) = tokio::join!(one.create(&nodes), two.create(&nodes), other.create(&nodes));
    let ids = |answers: Vec<Result<cloudtik_model::node::Instance, _>>| -> Vec<(InstanceId, Option<String>)> {
        answers.into_iter().map(|a: Result<_, cloudtik_providers::Error>| a.expect("creates")).map(|i| (i.id, i.address)).collect()
    };
    let (a, b, c) = (ids(a), ids(b), ids(c));
    assert_eq!(a, b, "both made the same");
    let addresses: BTreeSet<_> = a.iter().chain(&c).map(|(_, address)| address.clone()).collect();
    assert_eq!(addresses.len(), 16, "clusters of one workspace share its range");
    assert_eq!(first_processes(&world), 16);
    for (instance, _) in &a {
        eventually("its agent starts", || starts(&one, instance), |n| *n == 1);
    }
    // Both delete, while the other cluster stays.
    let deletions: Vec<_> = one.list().await.expect("lists").iter().map(DeleteNode::of).collect();
    let (a, b) = tokio::join!(one.delete(&deletions), two.delete(&deletions));
    assert!(a.iter().chain(&b).all(Result::is_ok), "{a:?} {b:?}");
    assert_eq!(first_processes(&world), 8);
    delete_all(&other).await;
    world.end().await;
}

#[tokio::test]
async fn a_power_cut_leaves_stopped_nodes_that_start_again_once_the_workspace_is_made_again() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    for node in ["head", "w1"] {
        provider.create_one(&request(node, 1)).await.expect("creates");
    }
    let before = provider.list().await.expect("lists");
    for instance in &before {
        testing::kill(&provider, &instance.id).expect("kills");
    }
    let states = || testing::list(&provider).iter().map(|i| i.state).collect::<Vec<_>>();
    eventually("they are stopped", states, |states| *states == [InstanceState::Stopped; 2]);
    world::command("ip", &["link", "del", &testing::bridge(&world.workspace.directory)]);

    let (node, generation) = (before[1].node.clone(), before[1].generation);
    let refused = provider.reboot(&node, generation, &before[1].id).await;
    assert!(matches!(refused, Err(cloudtik_providers::Error::NotFound(_))), "without a bridge no node starts: {refused:?}");
    apply(&world.workspace, true).await;
    for instance in &before {
        provider.reboot(&instance.node, instance.generation, &instance.id).await.expect("starts");
    }
    assert_eq!(provider.list().await.expect("lists"), before, "addresses and all");
    delete_all(&provider).await;
    world.end().await;
}

#[tokio::test]
async fn what_is_left_of_a_removed_cluster_and_a_removed_workspace_is_found_named_and_removed() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    for node in ["w1", "w2", "w3"] {
        provider.create_one(&request(node, 1)).await.expect("creates");
    }
    let directory = world.workspace.directory.clone();
    // One is only stopped: it stays.
    testing::kill(&provider, &id("w3.1")).expect("kills");
    for node in ["w1.1", "w2.1"] {
        fs::remove_dir_all(provider.settings().nodes.join(node)).expect("removes");
    }
    let swept = sweep(Some(&directory)).expect("sweeps");
    let gone = |node: &str| provider.settings().nodes.join(node);
    for node in ["w1.1", "w2.1"] {
        assert!(swept.contains(&Leftover::Node { instance: gone(node) }), "{swept:?}");
        assert!(swept.iter().any(|what| matches!(what, Leftover::Group { path } if path.ends_with(node))), "{swept:?}");
        assert!(swept.iter().any(|what| matches!(what, Leftover::Address { instance, .. } if *instance == gone(node))), "{swept:?}");
    }
    let ours = |swept: &[Leftover]| swept.iter().any(|what| what.to_string().contains(&*directory.to_string_lossy()));
    assert!(!ours(&sweep(Some(&directory)).expect("sweeps")), "the second sweep finds nothing");
    assert_eq!(provider.list().await.expect("lists").len(), 1);
    provider.create_one(&request("w3", 1)).await.expect("starts what is stopped");

    // Now all of it, behind everybody's back.
    let bridge = testing::bridge(&directory);
    fs::remove_dir_all(&directory).expect("removes");
    let swept = sweep(None).expect("sweeps");
    assert!(swept.contains(&Leftover::Bridge { name: bridge }), "{swept:?}");
    assert!(swept.contains(&Leftover::Node { instance: gone("w3.1") }), "{swept:?}");
    eventually("all is gone", || testing::left(&directory), Vec::is_empty);
    assert!(!ours(&sweep(None).expect("sweeps")), "the second sweep finds nothing");
}

#[tokio::test]
async fn a_node_that_ended_while_it_was_paused_starts_again() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("paused");
    let w1 = provider.create_one(&request("w1", 1)).await.expect("creates");
    testing::pause(&provider, &w1.id, true).expect("pauses");
    testing::kill(&provider, &w1.id).expect("kills");
    eventually("it ends", || testing::look(&provider, &w1.id).state, |state| *state != InstanceState::Running);
    provider.create_one(&request("w1", 1)).await.expect("starts again");
    world::delete_all(&provider).await;
    world.end().await;
}

#[tokio::test]
async fn a_node_whose_lock_was_lost_is_neither_started_twice_nor_kept_from_being_deleted() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let lock = provider.settings().nodes.join("w1.1/machine.lock");
    let removed = || fs::remove_file(&lock).expect("removes");
    let emptied = || fs::write(&lock, "").expect("empties");
    let replaced = || {
        let text = fs::read(&lock).expect("reads");
        fs::remove_file(&lock).expect("removes");
        fs::write(&lock, text).expect("writes");
    };
    let losses: [(&str, &dyn Fn()); 3] = [("removed", &removed), ("emptied", &emptied), ("replaced", &replaced)];
    for (how, lose) in losses {
        let node = provider.create_one(&request("w1", 1)).await.expect("creates");
        lose();
        // Whatever is answered while one has the lock and does not say who it is.
        if how != "emptied" {
            let again = provider.create_one(&request("w1", 1)).await.expect("creates again");
            assert_eq!((again.state, first_processes(&world)), (InstanceState::Running, 1), "its lock was {how}");
            lose();
        }
        provider.reboot(&node.node, node.generation, &node.id).await.unwrap_or_else(|e| panic!("its lock was {how}: {e:?}"));
        assert_eq!(first_processes(&world), 1, "its lock was {how}");
        lose();
        provider.delete_one(&DeleteNode::of(&node)).await.unwrap_or_else(|e| panic!("its lock was {how}: {e:?}"));
        assert_clean(&world, &format!("its lock was {how}"));
    }
    let node = provider.create_one(&request("w2", 1)).await.expect("creates");
    fs::remove_file(provider.settings().nodes.join("w2.1/machine.lock")).expect("removes");
    assert_eq!(testing::look(&provider, &node.id).state, InstanceState::Running, "a node without a lock is not said to be stopped");
    delete_all(&provider).await;
    world.end().await;
}

#[tokio::test]
async fn nodes_of_a_removed_cluster_are_named_and_ended_and_those_of_others_stay() {
    let Some(world) = World::new().await else { return };
    let (provider, other) = (world.provider("demo"), world.provider("other"));
    for node in ["head", "w1"] {
        provider.create_one(&request(node, 1)).await.expect("creates");
        other.create_one(&request(node, 1)).await.expect("creates");
    }
    let nodes = provider.settings().nodes.clone();
    let workspaces = world.home.path();
    fs::create_dir(other.settings().nodes.with_file_name("head")).expect("makes");
    let clusters = [&nodes, &other.settings().nodes];
    let [demo, _] = clusters.map(|nodes| nodes.parent().expect("has one").to_owned());
    // What the service makes meanwhile may be in the way.
    eventually("its directory is removed", || fs::remove_dir_all(&demo).is_ok(), |removed| *removed);

    let left = Virtual.leftovers(workspaces).expect("looks");
    let found: Vec<_> = left.iter().map(|left| (left.directory.clone(), left.processes.len())).collect();
    assert_eq!(found, [(nodes.join("head.1"), 1), (nodes.join("w1.1"), 1)]);
    Virtual.end_leftovers(&nodes).expect("ends them");
    assert!(Virtual.leftovers(workspaces).expect("looks").is_empty());
    let left = testing::left(&world.workspace.directory);
    assert!(!left.iter().any(|what| what.contains("clusters/demo/") || what.ends_with("/demo")), "{left:?}");
    assert_eq!(testing::list(&other).iter().filter(|i| i.state == InstanceState::Running).count(), 2, "the other cluster runs on");

    // Where the directories are there still, too: all that runs below them ends.
    Virtual.end_leftovers(&other.settings().nodes).expect("ends them");
    assert_eq!(first_processes(&world), 0);
    assert_clean(&world, "something is left of what was ended");
    delete_all(&other).await;
    world.end().await;
}

#[tokio::test]
async fn a_sweep_does_not_call_removed_what_does_not_end() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let w1 = provider.create_one(&request("w1", 1)).await.expect("creates");
    eventually("its agent starts", || starts(&provider, &w1.id), |n| *n == 1);
    let first = testing::first_process(&provider, &w1.id).expect("runs");
    // The kernel keeps the first process until all others of the node are gone, and one that is traced goes when its tracer says so.
    let agent = eventually("its agent is its child", || children(first), |found| found.len() == 1)[0];
    traced::seize(agent);
    fs::remove_dir_all(provider.settings().nodes.join("w1.1")).expect("removes");
    let swept = sweep(Some(&world.workspace.directory));
    traced::reap(agent);
    let error = swept.expect_err("it has not ended");
    assert!(std::error::Error::source(&error).is_some_and(|e| e.to_string().contains("does not end")), "{error:?}");
    eventually("it ends", || Path::new(&format!("/proc/{first}")).exists(), |exists| !exists);
    sweep(Some(&world.workspace.directory)).expect("sweeps");
    world.end().await;
}

fn children(process: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A small generator of numbers, so that a round can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// One thing that happens to one of a few nodes.
async fn round(provider: &VirtualProvider, dice: &mut Dice, generations: &mut [u32; 4]) -> String {
    let number = dice.roll(4) as usize;
    let (node, generation) = (format!("w{number}"), generations[number]);
    let instance = id(&format!("{node}.{generation}"));
    let there = provider.describe(&instance).await.ok();
    let Some(there) = there else {
        provider.create_one(&request(&node, generation)).await.expect("creates");
        return format!("create {instance}");
    };
    let is_running = there.state == InstanceState::Running;
    match dice.roll(7) {
        0 if is_running => {
            testing::kill(provider, &instance).expect("kills");
            format!("kill {instance}")
        }
        1 if is_running => {
            // Whatever the node does meanwhile.
            let _ = testing::lose(provider, &instance, Lost::Both, 100);
            format!("cut {instance}")
        }
        2 if is_running => {
            let _ = testing::heal(provider, &instance);
            format!("heal {instance}")
        }
        3 if is_running => {
            testing::pause(provider, &instance, true).expect("pauses");
            format!("pause {instance}")
        }
        4 => {
            provider.reboot(&there.node, there.generation, &instance).await.expect("reboots");
            format!("reboot {instance}")
        }
        5 => {
            provider.create_one(&request(&node, generation)).await.expect("creates again");
            format!("create {instance} again")
        }
        _ => {
            provider.delete_one(&DeleteNode::of(&there)).await.expect("deletes");
            generations[number] += 1;
            format!("delete {instance}")
        }
    }
}

/// The network namespaces of all processes.
fn network_namespaces() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/proc").expect("reads").flatten();
    entries.filter_map(|entry| fs::read_link(entry.path().join("ns/net")).ok()).collect()
}

#[tokio::test]
async fn two_hundred_rounds_of_faults_leave_nothing() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let seed = 0x0d1c_e5ee_d000_0001;
    let (mut dice, mut generations, mut done) = (Dice(seed), [1; 4], Vec::new());
    let mut made = BTreeSet::new();
    for _ in 0..200 {
        done.push(round(&provider, &mut dice, &mut generations).await);
        for instance in testing::list(&provider) {
            if let Ok(pid) = testing::first_process(&provider, &instance.id) {
                made.extend(fs::read_link(format!("/proc/{pid}/ns/net")).ok());
            }
        }
    }
    let own = fs::read_link("/proc/self/ns/net").expect("reads");
    made.remove(&own);
    assert!(made.len() > 20, "{} nodes were started: {done:?}", made.len());
    delete_all(&provider).await;
    assert_clean(&world, "something is left of the rounds");
    let left: Vec<_> = network_namespaces().intersection(&made).cloned().collect();
    // A number may be given again to a namespace of somebody else.
    let marked = processes_below(&world.workspace.directory);
    assert!(marked.is_empty(), "processes are left: {marked:?}, in {left:?}");
    world.end().await;
}

/// Every process that has a path in its environment or its arguments.
fn processes_below(directory: &Path) -> Vec<String> {
    let text = directory.to_string_lossy().into_owned();
    let has = |file: PathBuf| fs::read(file).is_ok_and(|content| String::from_utf8_lossy(&content).contains(&text));
    let entries = fs::read_dir("/proc").expect("reads").flatten().map(|e| e.path());
    entries.filter(|path| has(path.join("environ")) || has(path.join("cmdline"))).map(|path| path.display().to_string()).collect()
}

#[tokio::test]
async fn a_manager_that_is_killed_leaves_nodes_that_another_deletes() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let settings = world.home.path().join("settings.json");
    fs::write(&settings, serde_json::to_vec(provider.settings()).expect("serializes")).expect("writes");
    for pause in [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64] {
        let mut manager = Command::new(std::env::current_exe().expect("a test knows its program"));
        manager.args(["--exact", "manager", "--ignored", "--nocapture"]).env(MANAGER, &settings);
        let mut manager = manager.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("starts");
        let begun = provider.settings().nodes.join(".lock");
        eventually("it begins", || begun.exists(), |begun| *begun);
        // Not a wait for anything: where it is killed, earlier and later.
        std::thread::sleep(std::time::Duration::from_millis(pause));
        manager.kill().expect("kills");
        manager.wait().expect("ends");
        let nodes: Vec<_> = (1..=8).map(|n| request(&format!("w{n}"), 1)).collect();
        for created in provider.create(&nodes).await {
            assert_eq!(created.expect("creates").state, InstanceState::Running);
        }
        assert_eq!(first_processes(&world), 8);
        delete_all(&provider).await;
        assert_clean(&world, &format!("killed after {pause} ms, it leaves something"));
        fs::remove_file(&begun).expect("removes");
    }
    world.end().await;
}

const MANAGER: &str = "CLOUDTIK_TEST_MANAGER";

/// Makes eight nodes.
#[tokio::test]
#[ignore = "the test above starts and kills it"]
async fn manager() {
    let settings = std::env::var_os(MANAGER).expect("the test above sets it");
    let settings = serde_json::from_slice(&fs::read(settings).expect("reads")).expect("parses");
    let nodes: Vec<_> = (1..=8).map(|n| request(&format!("w{n}"), 1)).collect();
    VirtualProvider::new(settings).create(&nodes).await;
}
