//! A workspace of a cloud that costs, differs and takes its time: an executable whose steps a test can hold up.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use cloudtik_tests::{Cluster, send, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Resources are files of a directory; a step waits while there is a file `RESOURCE.held`, and says so by `RESOURCE.waits`.
const CLOUD: &str = r#"
import json, os, sys, time

GIVEN = {}

def path(name):
    return os.path.join(GIVEN["directory"], name)

def found(name):
    if not os.path.exists(path(name)):
        return {"id": name, "state": "missing", "outputs": {}}
    size = open(path(name)).read()
    if name == "network" and size != str(GIVEN["size"]):
        return {"id": name, "state": "differs", "differences": ["its size is " + size], "outputs": {}}
    return {"id": name, "state": "present", "outputs": {"id": name + "-1"}}

def apply(action, name):
    end = time.monotonic() + 40
    while os.path.exists(path(name + ".held")) and time.monotonic() < end:
        open(path(name + ".waits"), "w").close()
        time.sleep(0.005)
    if action != "remove":
        with open(path(name), "w") as file:
            file.write(str(GIVEN["size"]))
    elif os.path.exists(path(name)):
        os.remove(path(name))

for line in sys.stdin:
    request = json.loads(line)
    result = {}
    if request["call"] == "start":
        GIVEN.update(request["settings"])
        shared = [
            {"id": "network", "summary": "the network of size %s" % GIVEN["size"]},
            {"id": "gateway", "summary": "the gateway", "price": "0.045/h"},
            {"id": "rules", "summary": "the rules"},
        ]
        result = {"protocol": 1, "capabilities": {"batch": 1}, "workspace": shared}
    elif request["call"] == "workspace-status":
        result = {"resources": [found(name) for name in ("network", "gateway", "rules")]}
    elif request["call"] == "workspace-apply":
        apply(request["action"], request["resource"])
    print(json.dumps({"id": request["id"], "result": result}), flush=True)
"#;

struct Cloud {
    user: Cluster,
    directory: PathBuf,
    /// The workspace's file.
    file: String,
}

impl Cloud {
    /// Nothing exists yet.
    fn new(cluster: &str) -> Self {
        let user = Cluster::new(cluster, "workspace = \"dev\"\n[head]\ncpus = 1");
        let directory = user.file.with_file_name("cloud");
        fs::create_dir(&directory).expect("makes");
        fs::write(user.file.with_file_name("cloud.py"), CLOUD).expect("writes");
        let file = user.file.with_file_name("dev.toml").display().to_string();
        let cloud = Self { user, directory, file };
        cloud.write(1);
        cloud
    }

    fn provider(&self, size: u32) -> String {
        let directory = self.directory.display();
        format!(
            "[provider]\nkind = \"external\"\ncommand = [\"python3\", \"cloud.py\"]\n[provider.settings]\ndirectory = \"{directory}\"\nsize = {size}\n"
        )
    }

    fn write(&self, size: u32) {
        fs::write(&self.file, format!("[workspace]\nname = \"dev\"\n{}", self.provider(size))).expect("writes");
    }

    fn made(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).expect("reads").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| !name.contains('.'));
        names.sort();
        names
    }

    fn document(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.user.run(&all).ok().out).expect("a JSON document")
    }

    fn state(&self) -> Value {
        self.document(&["workspace", "status", "dev"])["state"].clone()
    }

    /// A command that waits in the step of a resource, and where its standard error goes.
    fn held_at(&self, resource: &str, arguments: &[&str]) -> (Child, PathBuf) {
        File::create(self.directory.join(format!("{resource}.held"))).expect("makes");
        let said = self.user.file.with_file_name("said");
        let mut command = self.user.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(File::create(&said).expect("makes")).spawn().expect("runs");
        let waits = self.directory.join(format!("{resource}.waits"));
        until("the step", Duration::from_secs(20), || waits.exists().then_some(()));
        (child, said)
    }

    fn let_go(&self, resource: &str) {
        fs::remove_file(self.directory.join(format!("{resource}.held"))).expect("removes");
    }
}

#[test]
fn what_costs_is_shown_and_asked_and_never_made_by_up() {
    let cloud = Cloud::new("costly");
    let (user, file) = (&cloud.user, &*cloud.file);
    let plan = user.run(&["workspace", "create", file, "--plan"]).ok().out;
    assert!(plan.contains("\n  + create gateway: the gateway, 0.045/h\n") && plan.ends_with("  costs 0.045/h while it exists\n"), "{plan}");
    assert_eq!(cloud.document(&["workspace", "create", file, "--plan"])["cost"], "0.045/h");
    user.run(&["workspace", "create", file]).refused(2, &["--yes", "Create the workspace dev, for 0.045/h?"]);

    let cluster = format!("[cluster]\nname = \"costly\"\nworkspace = \"dev\"\n{}", cloud.provider(1));
    fs::write(&user.file, cluster).expect("writes");
    let up = user.run(&["up", &user.file.display().to_string(), "--yes"]);
    up.refused(5, &["what is missing costs 0.045/h", "`cloudtik workspace create FILE` makes it"]);
    assert_eq!(cloud.made(), [""; 0], "nothing was made");
    assert_eq!(cloud.document(&["workspace", "list"]), json!([]));

    user.run(&["workspace", "create", file, "--yes"]).ok();
    assert_eq!(cloud.made(), ["gateway", "network", "rules"]);
    let status = cloud.document(&["workspace", "status", "dev"]);
    assert_eq!((&status["state"], &status["resources"][3]["cost"]), (&json!("complete"), &json!("0.045/h")));
    assert_eq!(status["resources"][3]["outputs"], json!({ "id": "gateway-1" }));

    // A cluster of another provider.
    user.write("workspace = \"dev\"\n[head]\ncpus = 1");
    for plan in [None, Some("--plan")] {
        let file = user.file.display().to_string();
        let arguments: Vec<&str> = ["up", &file, "--yes"].into_iter().chain(plan).collect();
        let says = "the cluster costly is on the provider `local`, and its workspace dev is on `external`";
        user.run(&arguments).refused(3, &[says, "cloudtik workspace list"]);
    }
    fs::write(file, "[workspace]\nname = \"dev\"\n[provider]\nkind = \"local\"\n").expect("writes");
    for command in [&["workspace", "create", file][..], &["workspace", "update", file], &["workspace", "delete", file, "--yes"]] {
        user.run(command).refused(5, &["on the provider `external`; the file names `local`"]);
    }
    user.run(&["workspace", "delete", "dev", "--yes"]).ok();
    assert_eq!(cloud.made(), [""; 0]);
}

#[test]
fn another_definition_is_applied_by_update_which_shows_what_changes() {
    let cloud = Cloud::new("changed");
    let (user, file) = (&cloud.user, &*cloud.file);
    user.run(&["workspace", "create", file, "--yes"]).ok();
    cloud.write(2);
    let create = user.run(&["workspace", "create", file, "--yes"]);
    create.refused(5, &["the workspace dev exists, and was made from another definition", "cloudtik workspace update"]);
    assert_eq!(cloud.document(&["workspace", "status", file])["file_differs"], true);
    assert_eq!(cloud.state(), "complete", "by its name it is what was applied");
    let plan = user.run(&["workspace", "update", file, "--plan"]).ok().out;
    assert!(plan.contains("  ~ change network: the network of size 2: its size is 1"), "{plan}");
    user.run(&["workspace", "update", file]).refused(2, &["Change the workspace dev?"]);
    assert_eq!(fs::read_to_string(cloud.directory.join("network")).ok().as_deref(), Some("1"), "it was not agreed to");
    user.run(&["workspace", "update", file, "--yes"]).ok();
    assert_eq!(fs::read_to_string(cloud.directory.join("network")).ok().as_deref(), Some("2"));
    assert_eq!(cloud.document(&["workspace", "status", file])["file_differs"], false);
    user.run(&["workspace", "delete", file, "--yes"]).ok();
    assert_eq!(cloud.made(), [""; 0]);
}

#[test]
fn an_interrupted_command_is_completed_by_the_same_command() {
    let cloud = Cloud::new("interrupted");
    let create = ["workspace", "create", &*cloud.file, "--yes"];
    let pid = |child: &Child| i32::try_from(child.id()).expect("a process id");

    // Ctrl-C lets the step end.
    let (mut child, said) = cloud.held_at("gateway", &create);
    let has_said = |what: &str| fs::read_to_string(&said).expect("reads").contains(what).then_some(());
    send(pid(&child), Signal::SIGINT);
    until("a word about the step", Duration::from_secs(20), || has_said("the present step ends first"));
    assert!(child.try_wait().expect("looks").is_none(), "it waits for the step");
    cloud.let_go("gateway");
    let ended = until("the end", Duration::from_secs(20), || child.try_wait().expect("waits"));
    assert_eq!(ended.code(), Some(130));
    assert!(has_said("interrupted: 4 of 5 steps hold").is_some() && has_said("goes on from there").is_some());
    assert_eq!((cloud.made(), cloud.state()), (vec!["gateway".to_owned(), "network".to_owned()], json!("incomplete")));
    cloud.user.run(&create).ok();
    assert_eq!(cloud.state(), "complete");

    // A second Ctrl-C does not wait; a removal goes on, too.
    let remove = ["workspace", "delete", "dev", "--yes"];
    let (mut child, said) = cloud.held_at("network", &remove);
    let has_said = |what: &str| fs::read_to_string(&said).expect("reads").contains(what).then_some(());
    send(pid(&child), Signal::SIGINT);
    until("a word about the step", Duration::from_secs(20), || has_said("the present step ends first"));
    send(pid(&child), Signal::SIGINT);
    let ended = until("the end", Duration::from_secs(20), || child.try_wait().expect("waits"));
    assert_eq!(ended.code(), Some(130));
    assert!(has_said("interrupted within a step").is_some());
    cloud.let_go("network");
    cloud.user.run(&remove).ok();
    assert_eq!(cloud.made(), [""; 0]);

    // A kill leaves what the next run completes.
    let (mut child, _) = cloud.held_at("rules", &create);
    child.kill().expect("kills");
    child.wait().expect("ends");
    assert_eq!(cloud.state(), "incomplete");
    cloud.let_go("rules");
    cloud.user.run(&create).ok();
    assert_eq!(cloud.state(), "complete");
    cloud.user.run(&remove).ok();
    assert_eq!(cloud.document(&["workspace", "list"]), json!([]));
}
