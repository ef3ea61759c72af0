//! The head of a cluster makes nodes from within a node, through the service on the machine. As root.

mod world;

use std::fs;

use async_trait::async_trait;
use cloudtik_model::node::Instance;
use cloudtik_model::{Generation, InstanceId, NodeId};
use cloudtik_providers::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider};
use cloudtik_virtual::{RemoteProvider, open, testing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use world::{World, eventually, id, request};

/// The nodes that the suite makes; the head's is there all the time.
struct Workers(RemoteProvider);

#[async_trait]
impl NodeProvider for Workers {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    async fn list(&self) -> Result<Vec<Instance>, Error> {
        Ok(self.0.list().await?.into_iter().filter(|instance| !instance.node.is_head()).collect())
    }
    async fn create(&self, requests: &[CreateNode]) -> Vec<Result<Instance, Error>> {
        self.0.create(requests).await
    }
    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
        self.0.delete(requests).await
    }
    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error> {
        self.0.describe(instance).await
    }
    async fn restart_agent(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error> {
        self.0.restart_agent(node, generation, instance, force).await
    }
    async fn reboot(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        self.0.reboot(node, generation, instance).await
    }
}

/// The processes of the service.
fn servers(world: &World) -> Vec<i32> {
    let left = testing::left(&world.workspace.directory);
    let servers = left.iter().filter_map(|what| what.strip_prefix("serve ")?.split(' ').next()?.parse().ok());
    servers.collect()
}

#[tokio::test]
async fn the_service_keeps_the_contract_and_goes_on_when_either_of_its_processes_is_killed() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("contract");
    let head = provider.create_one(&request("head", 1)).await.expect("creates");
    let remote = RemoteProvider::new(&provider.settings().nodes);
    world::keeps_the_contract(&Workers(remote.clone()), &provider.settings().nodes).await;

    let both = |seen: &Vec<i32>| seen.len() == 2;
    for victim in [0, 1, 0, 1] {
        let pair = eventually("there are two", || servers(&world), both);
        kill(Pid::from_raw(pair[victim]), Signal::SIGKILL).expect("kills");
        eventually("another takes its place", || servers(&world), |seen| both(seen) && !seen.contains(&pair[victim]));
        let until = std::time::Instant::now() + world::DEADLINE;
        while let Err(error) = remote.list().await {
            assert!(std::time::Instant::now() < until, "it answers again; last: {error:?}");
        }
    }
    // Both at once: until somebody looks after it.
    let pair = eventually("there are two", || servers(&world), both);
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for process in &pair {
            kill(Pid::from_raw(*process), signal).expect("kills");
        }
    }
    eventually("it is gone", || servers(&world), Vec::is_empty);
    assert!(matches!(remote.list().await, Err(Error::Transient { .. })), "what is asked meanwhile may be asked again");
    provider.ensure_service().expect("starts it");
    assert_eq!(remote.list().await.expect("lists").len(), 1);

    provider.delete_one(&DeleteNode::of(&head)).await.expect("deletes");
    assert_eq!(servers(&world), Vec::<i32>::new(), "it ends with the head's node");
    world.end().await;
}

#[tokio::test]
async fn the_service_goes_on_while_its_second_process_cannot_be_started() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let head = provider.create_one(&request("head", 1)).await.expect("creates");
    let both = |seen: &Vec<i32>| seen.len() == 2;
    let pair = eventually("there are two", || servers(&world), both);
    // Its log cannot be opened.
    let log = provider.settings().nodes.join(".service/log");
    fs::remove_file(&log).expect("removes");
    fs::create_dir(&log).expect("makes");
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.split(' ').nth(3).and_then(|parent| parent.parse::<i32>().ok())
    };
    let second = if parent(pair[0]) == Some(pair[1]) { pair[0] } else { pair[1] };
    kill(Pid::from_raw(second), Signal::SIGKILL).expect("kills");
    // Its parent looks after it twice a second.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
    let remote = RemoteProvider::new(&provider.settings().nodes);
    eventually("some looks", || (), |()| std::time::Instant::now() > until);
    assert_eq!(remote.list().await.expect("answers").len(), 1);
    fs::remove_dir(&log).expect("removes");
    eventually("there are two again", || servers(&world), both);
    provider.delete_one(&DeleteNode::of(&head)).await.expect("deletes");
    world.end().await;
}

const FROM_A_NODE: &str = "CLOUDTIK_TEST_SETTINGS";

#[tokio::test]
async fn only_a_head_s_node_reaches_the_service_and_makes_nodes_beside_itself() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    for node in ["head", "w1"] {
        provider.create_one(&request(node, 1)).await.expect("creates");
    }
    let settings = serde_json::to_string(provider.settings()).expect("serializes");
    let own = std::env::current_exe().expect("a test knows its program");
    let ask = |from: &str| {
        let home = provider.home(&id(from));
        let (settings, home) = (format!("{FROM_A_NODE}={settings}"), format!("CLOUDTIK_NODE_HOME={}", home.display()));
        let arguments = [settings.as_str(), &home, &own.to_string_lossy(), "--exact", "from_a_node", "--ignored", "--nocapture"];
        testing::run_on(&provider, &id(from), "/usr/bin/env", &arguments).expect("runs")
    };
    let asked = ask("head.1");
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stdout));
    let listed: Vec<String> = provider.list().await.expect("lists").iter().map(|i| i.id.to_string()).collect();
    assert_eq!(listed, ["head.1", "w1.1", "w9.1"]);
    let asked = ask("w1.1");
    assert!(!asked.status.success(), "a worker makes nodes: {}", String::from_utf8_lossy(&asked.stdout));

    // What the head's node made does not end with it.
    provider.reboot(&NodeId::new("head").expect("valid"), Generation(1), &id("head.1")).await.expect("reboots");
    let states: Vec<_> = testing::list(&provider).iter().map(|i| i.state.name()).collect();
    assert_eq!(states, ["running"; 3]);
    world::delete_all(&provider).await;
    world.end().await;
}

#[tokio::test]
#[ignore = "the test above has it run on a node"]
async fn from_a_node() {
    let settings = std::env::var_os(FROM_A_NODE).expect("the test above sets it");
    let settings = serde_json::from_str(&settings.to_string_lossy()).expect("parses");
    open(settings).create_one(&request("w9", 1)).await.expect("creates");
}
