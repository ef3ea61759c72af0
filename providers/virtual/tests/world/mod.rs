//! A workspace of virtual nodes around a test, and what of it is on the machine.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloudtik_model::{Bytes, ClusterName, Generation, InstanceId, NodeId, Resources};
use cloudtik_providers::conformance::workspace::World as Workspace;
use cloudtik_providers::conformance::{self, Checked, Hold, MountBelow};
use cloudtik_providers::workspace::{Patience, ResourceId, WorkspaceProvider, run};
use cloudtik_providers::{CreateNode, DeleteNode, Error, NodeProvider};
use cloudtik_virtual::{Settings, VirtualProvider, VirtualWorkspace, testing};
use tempfile::TempDir;
use tokio::sync::watch;

/// What nodes run instead of an agent: it notes its start and waits.
const AGENT: &str = "#!/bin/sh\necho started >> starts\nexec sleep 1000000\n";
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn may_run() -> bool {
    if !nix::unistd::geteuid().is_root() {
        cloudtik_tests::skipped("virtual nodes in the machine's own namespaces need root");
        return false;
    }
    true
}

pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_cloudtik-virtual").into()
}

/// One workspace, in which clusters are made.
pub struct World {
    pub home: TempDir,
    pub workspace: VirtualWorkspace,
}

impl World {
    /// Skips loudly where this cannot be.
    pub async fn new() -> Option<Self> {
        if !may_run() {
            return None;
        }
        Some(Self::with_nat(false).await)
    }

    pub async fn with_nat(nat: bool) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let agent = home.path().join("agent");
        fs::write(&agent, AGENT).expect("writes");
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("sets");
        let workspace = VirtualWorkspace { directory: home.path().join("dev"), range: None, nat, program: program() };
        apply(&workspace, true).await;
        Self { home, workspace }
    }

    pub fn settings(&self, cluster: &str) -> Settings {
        let cluster = ClusterName::new(cluster).expect("valid");
        let directory = self.workspace.directory.join("clusters").join(cluster.as_str());
        fs::create_dir_all(&directory).expect("makes");
        Settings {
            nodes: directory.join("nodes"),
            cluster,
            workspace: self.workspace.directory.clone(),
            agent: self.home.path().join("agent"),
            program: program(),
            shared: Vec::new(),
            for_heads: Vec::new(),
            hidden: Vec::new(),
        }
    }

    pub fn provider(&self, cluster: &str) -> VirtualProvider {
        VirtualProvider::new(self.settings(cluster))
    }

    /// Removes the clusters, which must have no instances, and the workspace; nothing may be left.
    pub async fn end(self) {
        let left = testing::left(&self.workspace.directory);
        assert!(left.iter().all(|what| is_of_workspace(what)), "nodes left something: {left:?}");
        fs::remove_dir_all(self.workspace.directory.join("clusters")).expect("removes");
        fs::create_dir(self.workspace.directory.join("clusters")).expect("makes");
        apply(&self.workspace, false).await;
        assert_eq!(testing::left(&self.workspace.directory), Vec::<String>::new(), "the workspace left something");
        let swept = cloudtik_virtual::sweep(Some(&self.workspace.directory)).expect("sweeps");
        let own: Vec<_> = swept.iter().filter(|what| what.to_string().contains(&*self.home.path().to_string_lossy())).collect();
        assert!(own.is_empty(), "the sweep found something: {own:?}");
    }
}

/// A test that fails leaves nothing either.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.workspace.directory);
            let _ = cloudtik_virtual::sweep(None);
        }
    }
}

/// Whether something is of the workspace itself.
pub fn is_of_workspace(what: &str) -> bool {
    ["link ctb", "table ", "ground "].iter().any(|own| what.starts_with(own))
}

/// Makes or removes a workspace.
pub async fn apply(workspace: &VirtualWorkspace, make: bool) {
    let plan = if make { workspace.plan().await } else { workspace.delete_plan().await }.expect("plans");
    let (_stop, stopped) = watch::channel(false);
    run(workspace, &plan, Patience::default(), stopped, |_| {}).await.expect("applies");
}

/// Runs the suite on the nodes of a provider, which must have none, and whose directories are in `nodes`. An ordinary user cannot mount,
/// and goes without machines that are in use.
pub async fn keeps_the_contract(provider: &dyn NodeProvider, nodes: &Path) {
    let hold = MountBelow::new(nodes);
    let request = |node: &NodeId, generation: Generation| conformance::request(node, generation, "10.0.0.254:9", "ca");
    let checked = Checked { provider, request: &request, many: 10, hold: hold.as_ref().map(|hold| hold as &dyn Hold) };
    conformance::check(&checked, &mut |_| {}).await.expect("keeps the contract");
}

/// What a test has created.
pub fn request(node: &str, generation: u32) -> CreateNode {
    let node = NodeId::new(node).expect("valid");
    conformance::request(&node, Generation(generation), "10.0.0.254:9", "ca")
}

pub fn limited(node: &str, memory: u64, cpus: u32) -> CreateNode {
    let mut request = request(node, 1);
    request.bootstrap.resources = Some(Resources { cpus, memory: Bytes(memory), gpus: 0 });
    request
}

pub fn id(text: &str) -> InstanceId {
    InstanceId::new(text).expect("valid")
}

/// Deletes every instance.
pub async fn delete_all(provider: &VirtualProvider) {
    for instance in provider.list().await.expect("lists") {
        provider.delete_one(&DeleteNode::of(&instance)).await.expect("deletes");
    }
}

/// Looks until something holds; says what it saw last.
pub fn eventually<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> T, holds: impl Fn(&T) -> bool) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        let seen = look();
        if holds(&seen) {
            return seen;
        }
        assert!(Instant::now() < until, "{what}; last seen: {seen:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A workspace alone.
pub struct SpaceWorld {
    _home: TempDir,
    workspace: VirtualWorkspace,
}

impl SpaceWorld {
    pub fn new(nat: bool) -> Option<Self> {
        may_run().then(|| Self::of_anybody(nat))
    }

    pub fn of_anybody(nat: bool) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let workspace = VirtualWorkspace { directory: home.path().join("dev"), range: None, nat, program: program() };
        Self { _home: home, workspace }
    }

    /// Makes the workspace and removes it.
    pub async fn try_out(&self) -> Result<(), Error> {
        for make in [true, false] {
            let plan = if make { self.workspace.plan().await } else { self.workspace.delete_plan().await }?;
            let (_stop, stopped) = watch::channel(false);
            if let Err(failed) = run(&self.workspace, &plan, Patience::default(), stopped, |_| {}).await {
                return Err(failed.source);
            }
        }
        Ok(())
    }

    fn cluster(&self, name: &ClusterName) -> PathBuf {
        self.workspace.directory.join("clusters").join(name.as_str())
    }
}

#[async_trait]
impl Workspace for SpaceWorld {
    async fn open(&self) -> Result<Arc<dyn WorkspaceProvider>, Error> {
        Ok(Arc::new(self.workspace.clone()))
    }

    fn patience(&self) -> (Patience, u32) {
        (Patience { attempts: 50, pause: Duration::from_millis(1), longest: Duration::from_millis(5) }, 200)
    }

    async fn add_cluster(&self, name: &ClusterName) -> bool {
        fs::create_dir(self.cluster(name)).expect("makes");
        true
    }

    async fn remove_cluster(&self, name: &ClusterName) {
        fs::remove_dir(self.cluster(name)).expect("removes");
    }

    async fn damage(&self, resource: &ResourceId) -> bool {
        let directory = &self.workspace.directory;
        let bridge = testing::bridge(directory);
        match resource.as_str() {
            "directory" => fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("opens it"),
            "clusters" => fs::set_permissions(directory.join("clusters"), fs::Permissions::from_mode(0o755)).expect("opens it"),
            "range" => fs::write(directory.join("network/range"), "10.0.0.0").expect("writes"),
            // Within a network that nothing else enters.
            "bridge" if !nix::unistd::geteuid().is_root() => return false,
            "bridge" => command("ip", &["link", "set", &bridge, "down"]),
            "namespaces" => testing::kill_ground(directory).expect("ends"),
            _ => command("nft", &["flush", "table", "ip", &format!("cloudtik-{}", bridge.trim_start_matches("ctb"))]),
        }
        true
    }

    async fn exists(&self) -> Option<Vec<String>> {
        let directory = &self.workspace.directory;
        let paths = [directory.clone(), directory.join("clusters"), directory.join("network")];
        let paths = paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string());
        Some(paths.chain(testing::left(directory)).collect())
    }
}

pub fn command(program: &str, arguments: &[&str]) {
    let ran = Command::new(program).args(arguments).output().expect("the program is there");
    assert!(ran.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// What a node's agent wrote.
pub fn starts(provider: &VirtualProvider, instance: &InstanceId) -> usize {
    fs::read_to_string(provider.home(instance).join("starts")).map_or(0, |text| text.lines().count())
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
