//! Workers from an executable that is no part of the programs: the example in Python, and executables that break the protocol.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

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
}

impl Drop for Machines {
    fn drop(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
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

/// Processes whose command line has a text.
fn running(text: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("reads").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    let has_text = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    };
    pids.filter(has_text).collect()
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
    let provider = cluster.file.with_file_name("provider.py");
    let text = fs::read_to_string(&provider).expect("reads");
    fs::write(&provider, text.replace("    ask(\"DELETE\", checked(item))\n", "    checked(item)\n")).expect("writes");
    let ran = cluster.run(&["provider", "check", &file, "--yes", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.out).expect("is JSON");
    assert_eq!((ran.code, &report["breach"]["clause"]), (1, &"only the deleted instance is gone".into()), "{report}");
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
