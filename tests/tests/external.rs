//! Workers from an executable that is no part of the programs: the example in Python, and executables that break the protocol.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cloudtik_tests::{Cluster, repository, send, until};
use nix::sys::signal::Signal;

/// The example's service of machines.
struct Machines {
    service: Child,
    directory: PathBuf,
}

impl Machines {
    fn names(&self) -> Vec<String> {
        let found = fs::read_dir(&self.directory).expect("reads").flatten();
        let mut names: Vec<_> = found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Ends and removes every machine behind the provider's back.
    fn clear(&self) {
        for pid in self.processes() {
            send(pid, Signal::SIGKILL);
        }
        for name in self.names() {
            let _ = fs::remove_dir_all(self.directory.join(name));
        }
    }

    /// What runs on machines.
    fn processes(&self) -> Vec<i32> {
        let mark = format!("CLOUDTIK_NODE_HOME={}/", self.directory.display());
        let is_on_one = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(mark.as_bytes()))
        };
        pids().filter(is_on_one).collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
        // What a test did not delete runs on.
        self.clear();
    }
}

/// A cluster of the example's provider, which is not up yet, and its machines.
fn example(name: &str, network: &str) -> (Cluster, Machines) {
    let cluster = Cluster::new(name, "");
    let (example, beside) = (repository().join("examples/external"), cluster.file.with_file_name("provider.py"));
    fs::copy(example.join("provider.py"), beside).expect("copies");
    let directory = cluster.state().join("machines");
    let socket = cluster.file.with_file_name("machines.sock");
    let service = Command::new("python3").arg(example.join("machines.py")).arg(&socket).arg(&directory).spawn().expect("starts");
    until("the service's socket", Duration::from_secs(10), || socket.exists().then_some(()));
    let text = fs::read_to_string(example.join("cluster.toml")).expect("reads");
    let text = text.replace("own-machines", name).replace("/tmp/machines.sock", &socket.display().to_string());
    fs::write(&cluster.file, text.replace("127.210.7", network)).expect("writes");
    (cluster, Machines { service, directory })
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("reads").flatten();
    entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// Processes whose command line has a text.
fn running(text: &str) -> Vec<i32> {
    let has_text = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    };
    pids().filter(has_text).collect()
}

/// Changes the program of a cluster's provider.
fn change(cluster: &Cluster, from: &str, to: &str) {
    let provider = cluster.file.with_file_name("provider.py");
    let text = fs::read_to_string(&provider).expect("reads");
    assert!(text.contains(from), "the example has {from:?}");
    fs::write(&provider, text.replace(from, to)).expect("writes");
}

/// What checks of providers keep in the state directory while they run.
fn grounds(cluster: &Cluster) -> Vec<String> {
    let entries = fs::read_dir(cluster.state()).expect("reads").flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with("provider-check")).collect()
}

#[test]
fn the_example_keeps_the_contract() {
    let (cluster, machines) = example("contract", "127.211.1");
    let file = cluster.file.display().to_string();
    let ran = cluster.run(&["provider", "check", &file, "--yes", "-o", "json"]).ok();
    let report: serde_json::Value = serde_json::from_str(&ran.out).expect("is JSON");
    assert_eq!((&report["passed"], &report["provider"]), (&true.into(), &"external".into()));
    assert!(report["clauses"].as_array().is_some_and(|clauses| clauses.len() > 40), "{report}");
    assert_eq!(machines.names(), Vec::<String>::new());

    // One that forgets what it was asked to delete.
    change(&cluster, "    ask(\"DELETE\", checked(item))\n", "    checked(item)\n");
    let ran = cluster.run(&["provider", "check", &file, "--yes", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.out).expect("is JSON");
    assert_eq!((ran.code, &report["breach"]["clause"]), (1, &"only the deleted instance is gone".into()), "{report}");
}

#[test]
fn a_clean_up_that_fails_hides_no_breach() {
    let (cluster, machines) = example("undeletable", "127.211.3");
    change(&cluster, "    ask(\"DELETE\", checked(item))\n", "    raise Failed(\"permanent\", \"the account is closed\")\n");
    let file = cluster.file.display().to_string();
    let ran = cluster.run(&["provider", "check", &file, "--yes"]);
    assert!(ran.out.contains("FAIL  "), "{ran:?}");
    ran.refused(1, &["breaks the contract", "the clean-up failed: ", "the account is closed", "is to be deleted by hand"]);

    assert!(!machines.names().is_empty(), "they cannot be deleted");
    machines.clear();
    let ran = cluster.run(&["provider", "check", &file, "--yes", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.out).expect("is JSON");
    assert_eq!((ran.code, &report["passed"]), (1, &false.into()));
    let names_the_account = |text: &serde_json::Value| text.as_str().is_some_and(|text| text.contains("the account is closed"));
    assert!(report["breach"]["clause"].is_string() && names_the_account(&report["not_deleted"]), "{report}");
    assert_eq!(grounds(&cluster), Vec::<String>::new());
}

#[test]
fn a_check_that_is_interrupted_leaves_nothing() {
    let (cluster, machines) = example("interrupted", "127.211.4");
    let file = cluster.file.display().to_string();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut command = cluster.command(&["provider", "check", &file, "--yes"]);
        let checking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        until("a machine", Duration::from_secs(60), || (!machines.names().is_empty()).then_some(()));
        send(checking.id() as i32, signal);
        let Output { status, stderr, .. } = checking.wait_with_output().expect("ends");
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.code() == Some(130) && said.contains("what was created is deleted"), "{signal}: {status}: {said}");
        assert_eq!((machines.names(), grounds(&cluster)), (Vec::new(), Vec::new()), "{signal}");
        until("the end of what ran on machines", Duration::from_secs(5), || machines.processes().is_empty().then_some(()));
    }
}

#[test]
fn a_check_that_breaks_off_removes_the_workspace_also_with_a_cluster_in_it() {
    let (cluster, _machines) = example("held", "127.211.5");
    // A network, which is a file; where a cluster is in the workspace, its status fails once.
    let (network, home) = (cluster.file.with_file_name("network"), cluster.state());
    let calls = format!(
        r#"
NETWORK = {network:?}
BROKEN = NETWORK + ".broken"


def workspace_status(_):
    if not os.path.exists(BROKEN) and glob.glob({home:?} + "/provider-check-*/provider-check/clusters/demo"):
        open(BROKEN, "w").close()
        raise Failed("permanent", "the network is out of reach")
    return {{"resources": [{{"id": "network", "state": "present" if os.path.exists(NETWORK) else "missing"}}]}}


def workspace_apply(request):
    if request["action"] == "create":
        open(NETWORK, "w").close()
    elif os.path.exists(NETWORK):
        os.remove(NETWORK)
    return {{}}


CALLS = {{
    "workspace-apply": workspace_apply,"#
    );
    change(&cluster, "import http.client\n", "import glob\nimport http.client\nimport os\n");
    change(&cluster, "\nCALLS = {", &calls);
    change(&cluster, r#"lambda _: {"resources": []}"#, "workspace_status");
    let shared = r#""capabilities": able, "workspace": [{"id": "network", "summary": "a network"}]}"#;
    change(&cluster, r#""capabilities": able}"#, shared);
    let ran = cluster.run(&["provider", "check", &cluster.file.display().to_string(), "--yes", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("is no JSON: {ran:?}"));
    let found = report["breach"]["found"].as_str().unwrap_or_default();
    assert!(ran.code == 1 && found.contains("the network is out of reach"), "{report}");
    assert_eq!(report["not_deleted"], serde_json::Value::Null, "{report}");
    assert!(!network.exists() && grounds(&cluster).is_empty());
}

/// Makes a workspace of the executable `provider.sh`, which works.
fn workspace_of_executable(cluster: &Cluster, name: &str) {
    let start = r#"read line; echo '{"id":1,"result":{"protocol":1,"capabilities":{"batch":1}}}'; cat > /dev/null"#;
    fs::write(cluster.file.with_file_name("provider.sh"), start).expect("writes");
    let file = cluster.file.with_file_name(format!("{name}.toml"));
    let text = format!("[workspace]\nname = \"{name}\"\n[provider]\nkind = \"external\"\ncommand = [\"sh\", \"provider.sh\"]\n");
    fs::write(&file, text).expect("writes");
    cluster.run(&["workspace", "create", &file.display().to_string(), "--yes"]).ok();
}

#[test]
fn a_workspace_whose_executable_is_broken_is_listed_as_unreachable_beside_the_others() {
    let cluster = Cluster::new("beside", "");
    workspace_of_executable(&cluster, "broken");
    let sound = cluster.file.with_file_name("sound.toml");
    fs::write(&sound, "[workspace]\nname = \"sound\"\n[provider]\nkind = \"local\"\n").expect("writes");
    cluster.run(&["workspace", "create", &sound.display().to_string(), "--yes"]).ok();
    let states = || {
        let out = cluster.run(&["workspace", "list", "-o", "json"]).ok().out;
        let listed: Vec<serde_json::Value> = serde_json::from_str(&out).expect("is JSON");
        let text = |one: &serde_json::Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        listed.iter().map(|one| (text(one, "workspace"), text(one, "state"))).collect::<Vec<_>>()
    };
    let expect =
        |broken: &str| [("broken", broken), ("sound", "complete")].map(|(name, state)| (name.to_owned(), state.to_owned())).to_vec();
    assert_eq!(states(), expect("complete"));
    fs::write(cluster.file.with_file_name("provider.sh"), "exit 3").expect("writes");
    assert_eq!(states(), expect("unreachable"));
    let ran = cluster.run(&["workspace", "status", "broken"]);
    assert!(ran.code != 0 && ran.err.contains("ended with exit status: 3"), "{ran:?}");
}

#[test]
fn up_is_interrupted_also_while_it_looks_at_its_workspace() {
    let cluster = Cluster::new("looking", "");
    workspace_of_executable(&cluster, "slow");
    fs::write(cluster.file.with_file_name("provider.sh"), "exec sleep 730019").expect("writes");
    let provider = "[provider]\nkind = \"external\"\ncommand = [\"sh\", \"provider.sh\"]\n";
    let workers = "[workers.default]\ncpus = 1\nmemory = \"1GiB\"\n";
    fs::write(&cluster.file, format!("[cluster]\nname = \"looking\"\nworkspace = \"slow\"\n{provider}{workers}")).expect("writes");
    let mut command = cluster.command(&["up", &cluster.file.display().to_string(), "--yes"]);
    let up = command.stderr(Stdio::piped()).spawn().expect("starts");
    until("the look", Duration::from_secs(10), || (!running("sleep 730019").is_empty()).then_some(()));
    let begun = Instant::now();
    send(up.id() as i32, Signal::SIGINT);
    let Output { status, stderr, .. } = up.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.code() == Some(130) && said.contains("nothing was changed"), "{status}: {said}");
    assert!(begun.elapsed() < Duration::from_secs(10), "it waited for the executable");
    until("the executable's end", Duration::from_secs(5), || running("sleep 730019").is_empty().then_some(()));
}

#[test]
fn a_cluster_runs_on_an_executable_and_outlives_it() {
    let (cluster, machines) = example("outside", "127.211.2");
    let text = fs::read_to_string(&cluster.file).expect("reads");
    fs::write(&cluster.file, text.replace("[provider.settings]", "timeout = \"2s\"\n[provider.settings]")).expect("writes");
    cluster.up();
    assert_eq!(machines.names(), ["default.outside.w1.1", "default.outside.w2.1"]);
    cluster.run(&["exec", "outside", "--node", "w1", "--", "true"]).ok();
    let node = cluster.node("w1");
    assert_eq!((node.cpus, node.address.as_deref().map(|a| a.starts_with("127.211.2."))), (Some(2), Some(true)));

    // Whatever runs of the executable is ended, and the next call starts it again.
    let provider = cluster.file.with_file_name("provider.py");
    let runs_here = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| Some(&*cwd) == provider.parent());
    let of_head = || running("provider.py").into_iter().filter(runs_here);
    for pid in of_head() {
        send(pid, Signal::SIGKILL);
    }
    cluster.run(&["kill-node", "outside", "w1", "--yes"]).ok();
    cluster.wait("a worker in its place", Duration::from_secs(30), |s| s.ready && s.nodes.iter().any(|n| n.id.as_str() == "w3"));

    // One that answers no call stops no worker and no head; mended, it goes on.
    let text = fs::read_to_string(&provider).expect("reads");
    fs::write(&provider, "import time\ntime.sleep(1000)\n").expect("writes");
    for pid in of_head() {
        send(pid, Signal::SIGKILL);
    }
    cluster.run(&["scale", "outside", "--workers", "3"]).ok();
    until("the reason", Duration::from_secs(30), || {
        let requested = cluster.status().nodes.into_iter().find(|node| node.state == "requested")?;
        let why = cluster.run(&["why", "outside", requested.id.as_str()]);
        why.out.contains("did not answer to").then_some(())
    });
    let ready = cluster.status().nodes.iter().filter(|node| node.state == "ready").count();
    assert_eq!(ready, 3, "the head and two workers go on");
    fs::write(&provider, text).expect("writes");
    cluster.wait("the third worker", Duration::from_secs(60), |s| s.ready && s.nodes.len() == 4);

    cluster.down();
    cluster.assert_nothing_left();
    assert_eq!(machines.names(), Vec::<String>::new());
    until("the executable's end", Duration::from_secs(10), || of_head().next().is_none().then_some(()));
}

#[test]
fn an_executable_that_is_killed_between_making_and_answering_makes_nothing_twice() {
    let (cluster, machines) = example("unanswered", "127.211.6");
    // Of each machine: it ends when the machine is made, and before it says so.
    let dies = r#"
    mark = os.path.join(os.getcwd(), "made-" + name(item["node"], item["generation"]))
    if not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), 9)
"#;
    change(&cluster, "import http.client\n", "import http.client\nimport os\n");
    let made = "ask(\"PUT\", f\"/machines/{name(item['node'], item['generation'])}\", document)";
    let (from, to) = ("    return {\"instance\": instance(", "    return {\"instance\": instance(machine)}\n");
    change(&cluster, &format!("{from}{made})}}\n"), &format!("    machine = {made}{dies}{to}"));
    cluster.up();
    assert_eq!(machines.names(), ["default.unanswered.w1.1", "default.unanswered.w2.1"]);
    let marks = fs::read_dir(cluster.file.parent().expect("has one")).expect("reads").flatten();
    let marks = marks.filter(|entry| entry.file_name().to_string_lossy().starts_with("made-")).count();
    assert_eq!(marks, 2, "each was made, and its executable killed, once");
    cluster.down();
    cluster.assert_nothing_left();
    assert_eq!(machines.names(), Vec::<String>::new());
}

#[test]
fn executables_that_break_the_protocol_are_ended_with_what_they_started() {
    let cluster = Cluster::new("broken", "");
    let start = r#"read line; echo '{"id":1,"result":{"protocol":1,"capabilities":{"batch":1}}}'; read line; "#;
    let cases = [
        ("exec sleep 730017", "did not answer to \"start\" within 1000 ms"),
        ("sleep 730017 & echo hello; wait", "said what is not part of the protocol: hello"),
        ("sleep 730017 & echo cannot find my settings >&2; exit 3", "ended with exit status: 3; it said: cannot find my settings"),
        (
            r#"read line; echo '{"id":1,"result":{"protocol":2,"capabilities":{"batch":1}}}'; exec sleep 730017"#,
            "speaks version 2 of the protocol",
        ),
        (r#"read line; echo '{"id":7,"result":{}}'; exec sleep 730017"#, "said what is not part of the protocol: {\"id\":7"),
        (r#"read line; echo '{"id":1,"result":{}}'; exec sleep 730017"#, "missing field `protocol`"),
        (r#"read line; echo '{"id":1,"error":{"code":"nope","message":"x"}}'; exec sleep 730017"#, "said what is not part of the protocol"),
        (
            r#"read line; echo '{"id":1,"error":{"code":"permission","message":"x","action":"machines.make"}}'; exec sleep 730017"#,
            "not permitted: machines.make is missing",
        ),
        ("read line; head -c 17000000 /dev/zero; exec sleep 730017", "said what is not part of the protocol"),
        (&format!("{start} exec sleep 730017"), "did not answer to \"list\" within 1000 ms"),
        (
            &format!("{start} echo '{{\"id\":2,\"result\":{{\"instances\":[],\"next\":1}}}}'; exec sleep 730017"),
            "said what is not part of the protocol",
        ),
    ];
    for (script, expected) in cases {
        fs::write(cluster.file.with_file_name("provider.sh"), script).expect("writes");
        let provider = "[provider]\nkind = \"external\"\ncommand = [\"sh\", \"provider.sh\"]\ntimeout = \"1s\"\n";
        let text = format!("[cluster]\nname = \"broken\"\n{provider}[workers.default]\ncpus = 1\nmemory = \"1GiB\"\n");
        fs::write(&cluster.file, text).expect("writes");
        let file = cluster.file.display().to_string();
        let ran = cluster.run(&["provider", "check", &file, "--yes"]);
        assert!(ran.code != 0 && ran.err.contains(expected), "{script}: {}{}", ran.out, ran.err);
        until("their end", Duration::from_secs(5), || running("sleep 730017").is_empty().then_some(()));
    }
    fs::write(cluster.file.with_file_name("provider.sh"), "exit 3").expect("writes");
    let ran = cluster.run(&["up", &cluster.file.display().to_string(), "--yes"]);
    assert!(ran.code == 1 && ran.err.contains("ended with exit status: 3"), "{}", ran.err);
    assert!(!cluster.directory().join("head/head.json").exists(), "nothing is made where the executable does not start");
}
