//! External providers whose executables are scripts of the shell: what they are asked, and what becomes of their answers.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloudtik_model::node::Instance;
use cloudtik_model::{ClusterName, Generation, NodeId};
use cloudtik_providers::conformance;
use cloudtik_providers::external::External;
use cloudtik_providers::kind::{ClusterSite, Machines, WorkspaceSite};
use cloudtik_providers::{CreateNode, DeleteNode, Error, NodeProvider, WorkspaceProvider};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Answers to `start`; `$asked` notes every request.
const START: &str = r#"
asked() { read -r line && echo "$line" >> asked; }
asked; echo '{"id":1,"result":{"protocol":1,"capabilities":{"batch":8}}}'
"#;
const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    directory: TempDir,
}

impl World {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let world = Self { directory };
        world.write(script);
        world
    }

    fn write(&self, script: &str) {
        fs::write(self.path("provider.sh"), script).expect("writes");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn settings() -> Value {
        json!({ "command": ["sh", "provider.sh"], "timeout_ms": 5000, "head_address": "127.0.0.1", "settings": {}, "shapes": {} })
    }

    /// Settles a cluster with the script as it is, and then has its provider run another one.
    async fn provider(&self, script: &str) -> Arc<dyn NodeProvider> {
        let (name, directory) = (ClusterName::new("demo").expect("valid"), self.directory.path());
        let site = ClusterSite {
            cluster: &name,
            workspace: "default",
            base: directory,
            workspace_directory: directory,
            directory,
            nodes: &self.path("nodes"),
            agent: &self.path("cloudtik-agent"),
            programs: directory,
            shared: &[],
            for_heads: &[],
            state: directory,
            ports: &[],
        };
        let settled = External.settle(&Self::settings(), &site).await.expect("settles");
        let _ = fs::remove_file(self.path("asked"));
        self.write(script);
        External.nodes(&Self::settings(), &settled.site).expect("opens")
    }

    async fn workspace(&self) -> Result<Arc<dyn WorkspaceProvider>, Error> {
        let (directory, programs) = (self.path("dev"), self.directory.path());
        let site = WorkspaceSite { directory: &directory, base: programs, agent: &self.path("cloudtik-agent"), programs };
        External.workspace(&Self::settings(), &site).await
    }

    /// The calls that the executable was asked for.
    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("asked")).unwrap_or_default();
        let call = |line: &str| serde_json::from_str::<Value>(line).expect("a document")["call"].as_str().expect("a text").to_owned();
        text.lines().map(call).collect()
    }
}

fn creation(node: &str) -> CreateNode {
    conformance::request(&NodeId::new(node).expect("valid"), Generation(1), "10.0.0.254:9", "ca")
}

#[tokio::test]
async fn an_executable_that_refused_to_start_is_asked_for_nothing_else() {
    let world = World::new(START);
    let refuses = r#"
        read -r line; echo "$line" >> asked
        echo '{"id":1,"error":{"code":"permission","message":"x","action":"machines.make"}}'
        while read -r line; do echo "$line" >> asked; done"#;
    let provider = world.provider(refuses).await;
    for attempt in 0..3 {
        let refused = provider.list().await;
        assert!(matches!(&refused, Err(Error::Permission { action }) if action == "machines.make"), "{attempt}: {refused:?}");
    }
    assert_eq!(world.asked(), ["start"], "it is not started again at once");
}

#[tokio::test]
async fn a_failure_of_the_whole_call_is_the_answer_for_each_of_its_items() {
    let world = World::new(START);
    let fails = |error: &str| format!("{START}\nasked; echo '{{\"id\":2,\"error\":{error}}}'; cat > /dev/null");
    let requests = ["w1", "w2", "w3"].map(creation);
    type Expected = fn(&Error) -> bool;
    let cases: [(&str, Expected); 4] = [
        (r#"{"code":"stock-out","message":"none left"}"#, |e| matches!(e, Error::StockOut(what) if what == "none left")),
        (r#"{"code":"quota","message":"too many","quota":"cpus"}"#, |e| matches!(e, Error::Quota { quota, .. } if quota == "cpus")),
        (r#"{"code":"throttled","message":"slow down","retry_after_ms":7000}"#, |e| e.retry_after() == Some(Duration::from_secs(7))),
        (r#"{"code":"permission","message":"x","action":"make"}"#, |e| matches!(e, Error::Permission { action } if action == "make")),
    ];
    for (error, is_expected) in cases {
        world.write(START);
        let provider = world.provider(&fails(error)).await;
        let answers = provider.create(&requests).await;
        assert!(answers.len() == 3 && answers.iter().all(|answer| answer.as_ref().is_err_and(is_expected)), "{error}: {answers:?}");
        let delete = |request: &CreateNode| {
            let (node, generation) = (request.bootstrap.node.clone(), request.bootstrap.generation);
            DeleteNode { instance: format!("{node}.1").parse().expect("valid"), node, generation }
        };
        world.write(START);
        let provider = world.provider(&fails(error)).await;
        let answers = provider.delete(&requests.each_ref().map(delete)).await;
        assert!(answers.len() == 3 && answers.iter().all(|answer| answer.as_ref().is_err_and(is_expected)), "{error}: {answers:?}");
    }
}

#[tokio::test]
async fn a_price_that_cannot_be_read_is_named() {
    let started = |price: &str| {
        let shared = format!(r#"{{"id":"gateway","summary":"a gateway","price":"{price}"}}"#);
        format!("read line; echo '{{\"id\":1,\"result\":{{\"protocol\":1,\"capabilities\":{{\"batch\":1}},\"workspace\":[{shared}]}}}}'")
    };
    let world = World::new(&started("0.045/hour"));
    let Err(error) = world.workspace().await else { panic!("the price is taken for one") };
    let text = error.to_string();
    assert!(error.is_permanent() && text.contains("0.045/hour") && text.contains("gateway"), "{text}");
    world.write(&started("0.045/h"));
    let workspace = world.workspace().await.expect("starts");
    assert!(workspace.desired().iter().any(|one| one.id.as_str() == "gateway"));
}

#[tokio::test]
async fn an_executable_has_the_environment_of_nodes_and_no_other() {
    let world = World::new(&format!("env > environment\n{START}"));
    let _provider = world.provider("").await;
    let environment = fs::read_to_string(world.path("environment")).expect("reads");
    let has = |name: &str| environment.lines().any(|line| line.starts_with(&format!("{name}=")));
    // Cargo gives tests the second one.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(has("PATH") && !has("CARGO_MANIFEST_DIR"), "{environment}");
}

#[tokio::test]
async fn a_change_that_the_executable_tells_is_heard() {
    let world = World::new(START);
    let list = r#"{"id":2,"result":{"instances":[]}}"#;
    let tells = format!(
        "{START}\nasked; echo '{list}'\nwhile [ ! -e machines-changed ]; do sleep 0.02; done\necho '{{\"event\":\"changed\"}}'\ncat > /dev/null"
    );
    let provider = world.provider(&tells).await;
    provider.list().await.expect("lists");
    let early = tokio::time::timeout(Duration::from_millis(100), provider.changed()).await;
    assert!(early.is_err(), "nothing has changed");
    fs::write(world.path("machines-changed"), "").expect("writes");
    tokio::time::timeout(DEADLINE, provider.changed()).await.expect("the change is heard");
}

/// Makes each machine once, by its name. The first time it ends after that, before it has answered.
const DIES: &str = r#"
made='"node":"w1","generation":1'
while asked; do
    id=${line#'{"id":'}; id=${id%%,*}
    case $line in
    *'"call":"create"'*)
        mkdir machine 2>/dev/null && echo made >> makes && kill -KILL $$
        echo "{\"id\":$id,\"result\":{\"items\":[{\"instance\":{\"id\":\"m1\",$made,\"address\":null,\"state\":\"running\"}}]}}" ;;
    *'"call":"list"'*)
        instances=; [ -d machine ] && instances="{\"id\":\"m1\",$made,\"address\":null,\"state\":\"running\"}"
        echo "{\"id\":$id,\"result\":{\"instances\":[$instances]}}" ;;
    esac
done
"#;

#[tokio::test]
async fn a_machine_whose_executable_was_killed_before_it_answered_is_listed_and_not_made_again() {
    let world = World::new(START);
    let provider = world.provider(&format!("{START}{DIES}")).await;
    let request = creation("w1");
    let lost = provider.create_one(&request).await;
    assert!(matches!(lost, Err(Error::Transient { .. })), "whether it had its effect is not known: {lost:?}");
    // It is started again at most once a second.
    let until = std::time::Instant::now() + DEADLINE;
    let listed = loop {
        match provider.list().await {
            Ok(listed) => break listed,
            Err(error) => assert!(std::time::Instant::now() < until, "it starts again; last: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let made: Instance = provider.create_one(&request).await.expect("it is there");
    assert_eq!(listed, [made]);
    assert_eq!(world.asked(), ["start", "create", "start", "list", "create"], "it is started again once");
    assert_eq!(fs::read_to_string(world.path("makes")).expect("reads"), "made\n");
}
