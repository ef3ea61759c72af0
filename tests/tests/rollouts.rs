//! A revision that does not work goes to one node, and is held there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cloudtik_model::alarm::Alarm;
use cloudtik_model::answer::Answer;
use cloudtik_model::status::{Node as NodeView, Rollout, RolloutState, Status};
use cloudtik_tests::{Cluster, send, until};
use nix::sys::signal::Signal;

const RUNTIME: &str = r#"
[runtime]
name = "web"
version = "1.0"
summary = "A web server that can be told to fail"

[properties]
works = "yes"
checked = "/"

[services.web]
role = "workers"
ports = { web = 8000 }
command = [
    "/bin/sh", "-c",
    "[ {{ properties.works }} = yes ] || { echo it was told to fail >&2; exit 3; }; exec /usr/bin/python3 -m http.server --bind {{ node.address }} {{ ports.web.web }}",
]
readiness = { tcp = "{{ node.address }}:{{ ports.web.web }}", interval = "100ms" }
health = { http = "http://{{ node.address }}:{{ ports.web.web }}{{ properties.checked }}", interval = "500ms", failures = 2 }
stop = { signal = "TERM", grace = "2s" }
"#;

fn file(folder: &Path, works: &str) -> String {
    file_checked(folder, works, "/")
}

fn file_checked(folder: &Path, works: &str, checked: &str) -> String {
    format!(
        "idle_after = \"10s\"\n[workers.default]\nmin = 1\nmax = 5\n[runtimes.web]\npath = \"{}\"\n[runtimes.web.properties]\nworks = \"{works}\"\nchecked = \"{checked}\"",
        folder.display()
    )
}

fn healthy(status: &Status) -> usize {
    status.nodes.iter().filter(|n| n.kind == "worker" && n.state == "ready").count()
}

#[test]
fn a_revision_that_fails_on_a_node_is_held_and_can_be_undone_and_resumed() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let runtime = folder.path().join("web");
    fs::create_dir(&runtime).expect("makes the folder");
    fs::write(runtime.join("runtime.toml"), RUNTIME).expect("writes");
    let cluster = Cluster::new("rolls", &file(&runtime, "yes"));
    let rollout = || -> Rollout {
        serde_json::from_str(&cluster.run(&["rollout", "status", "rolls", "-o", "json"]).ok().out).expect("a roll-out's status")
    };
    cluster.up();
    cluster.run(&["scale", "rolls", "--workers", "4", "--name", "four"]).ok();
    cluster.wait("four workers", Duration::from_secs(60), |s| s.ready && healthy(s) == 4);
    assert_eq!(cluster.run(&["rollout", "resume", "rolls"]).code, 5, "nothing is held");
    assert_eq!(cluster.run(&["rollout", "undo", "rolls", "--yes"]).code, 5, "nothing is under way");

    cluster.write(&file(&runtime, "no"));
    cluster.run(&["up", &cluster.file.display().to_string(), "--yes", "--no-wait"]).ok();
    let held = until("the roll-out to be held", Duration::from_secs(60), || Some(rollout()).filter(|r| r.state == RolloutState::Held));
    let failure = held.failure.clone().expect("it says where");
    assert_eq!((held.from, failure.node.as_str()), (Some(1), "w1"), "{held:?}");
    assert!(failure.problem.to_string().contains("web/web"), "{failure:?}");
    let status = cluster.status();
    assert!(
        !status.ready && status.alarms.iter().any(|a| matches!(a, Alarm::RolloutHeld { revision: 2, node, .. } if node.as_str() == "w1")),
        "{status:?}"
    );
    let told = cluster.run(&["rollout", "status", "rolls"]).ok().out;
    assert!(told.contains("revision 2: held") && told.contains("cloudtik rollout undo rolls"), "{told}");

    // Nobody asks for four any more: the one that fails goes when it was idle for long enough, and those that work stay.
    cluster.run(&["revoke", "rolls", "four"]).ok();
    send(status.head.pid as i32, Signal::SIGKILL);
    let status = cluster.wait("the failing worker to go", Duration::from_secs(120), |s| {
        s.head.pid != status.head.pid && s.nodes.iter().all(|n| n.id.as_str() != "w1")
    });
    assert_eq!((healthy(&status), rollout().state), (3, RolloutState::Held), "{:?}", cluster.events());
    assert_eq!(rollout().outdated.len(), 3, "none of them took it: {:?}", rollout());

    // Tried again, it fails on the next one, and on no other.
    cluster.run(&["scale", "rolls", "--workers", "3"]).ok();
    cluster.run(&["rollout", "resume", "rolls"]).ok();
    until("the roll-out to be held again", Duration::from_secs(60), || Some(rollout()).filter(|r| r.state == RolloutState::Held));
    assert_eq!(healthy(&cluster.status()), 2, "{:?}", cluster.status());
    let answer = cluster.run(&["rollout", "undo", "rolls", "--yes", "-o", "json"]).ok().out;
    let answer: Answer = serde_json::from_str(&answer).expect("an answer");
    assert_eq!(answer, Answer::RolloutUndone { from: 1, revision: 3 });
    let status = cluster.wait("the cluster as it was", Duration::from_secs(60), |s| s.ready && s.revision == 3);
    assert!(status.alarms.is_empty() && healthy(&status) == 3, "{status:?}");
    until("the roll-out's end", Duration::from_secs(10), || (rollout().state == RolloutState::Complete).then_some(()));
}

/// A cluster of three workers that run the web server.
fn three(name: &str, folder: &Path) -> Cluster {
    fs::create_dir(folder).expect("makes the folder");
    fs::write(folder.join("runtime.toml"), RUNTIME).expect("writes");
    let cluster = Cluster::new(name, &file(folder, "yes").replace("min = 1", "min = 3"));
    cluster.up();
    cluster
}

fn rollout_of(cluster: &Cluster) -> Rollout {
    serde_json::from_str(&cluster.run(&["rollout", "status", &cluster.name, "-o", "json"]).ok().out).expect("a roll-out's status")
}

/// Waits until the roll-out is held; at no time are fewer than two of three workers well.
fn held(cluster: &Cluster) -> Rollout {
    until("the roll-out to be held", Duration::from_secs(90), || {
        let status = cluster.status();
        let is_ill = |node: &&NodeView| node.kind == "worker" && node.services.iter().any(|s| s.state != "ready");
        let ill: Vec<_> = status.nodes.iter().filter(is_ill).map(|node| &node.id).collect();
        assert!(ill.len() <= 1, "{ill:?} are hit");
        Some(rollout_of(cluster)).filter(|r| r.state == RolloutState::Held)
    })
}

#[test]
fn a_health_check_that_fails_is_tried_on_one_worker_and_undone() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let runtime = folder.path().join("web");
    let cluster = three("checks", &runtime);
    cluster.write(&file_checked(&runtime, "yes", "/nothing-there").replace("min = 1", "min = 3"));
    cluster.run(&["up", &cluster.file.display().to_string(), "--yes", "--no-wait"]).ok();
    let held = held(&cluster);
    assert_eq!((held.from, held.outdated.len()), (Some(1), 2), "{held:?}");
    // A limit that is changed meanwhile has nothing to do with it, and stays.
    cluster.write(&file_checked(&runtime, "yes", "/nothing-there").replace("min = 1", "min = 3").replace("max = 5", "max = 7"));
    cluster.run(&["up", &cluster.file.display().to_string(), "--yes", "--no-wait"]).ok();
    assert_eq!(rollout_of(&cluster).state, RolloutState::Held, "it changes nothing in the roll-out");
    let undone = cluster.run(&["rollout", "undo", "checks", "--yes"]).ok();
    assert!(undone.err.contains("web") && !undone.err.contains("node type"), "it shows what changes, and only that: {undone:?}");
    cluster.wait("what ran before", Duration::from_secs(60), |s| s.ready && s.revision == 4 && s.alarms.is_empty());
    cluster.write(&file(&runtime, "yes").replace("min = 1", "min = 3").replace("max = 5", "max = 7"));
    let plan = cluster.run(&["up", &cluster.file.display().to_string(), "--plan"]).ok();
    assert!(plan.out.contains("nothing to change"), "{plan:?}");
    until("the roll-out's end", Duration::from_secs(30), || (rollout_of(&cluster).state == RolloutState::Complete).then_some(()));
}

#[test]
fn a_runtime_that_comes_and_crashes_is_tried_on_one_worker_and_undone() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let runtime = folder.path().join("web");
    let cluster = three("comes", &runtime);
    let other = folder.path().join("bad");
    fs::create_dir(&other).expect("makes the folder");
    let bad = "[runtime]\nname = \"bad\"\nversion = \"1\"\nsummary = \"ends at once\"\n[services.bad]\nrole = \"workers\"\ncommand = [\"/bin/false\"]\n";
    fs::write(other.join("runtime.toml"), bad).expect("writes");
    let text = file(&runtime, "yes").replace("min = 1", "min = 3");
    cluster.write(&format!("{text}\n[runtimes.bad]\npath = \"{}\"", other.display()));
    cluster.run(&["up", &cluster.file.display().to_string(), "--yes", "--no-wait"]).ok();
    let held = held(&cluster);
    assert!(held.failure.as_ref().is_some_and(|f| f.problem.to_string().contains("bad/bad")), "{held:?}");
    assert_eq!(held.outdated.len(), 2, "{held:?}");
    cluster.run(&["rollout", "undo", "comes", "--yes"]).ok();
    cluster.wait("the cluster as it was", Duration::from_secs(60), |s| s.ready && s.revision == 3 && s.alarms.is_empty());
}

#[test]
fn a_revision_whose_software_cannot_be_fetched_is_held_with_the_cause() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let runtime = folder.path().join("web");
    let cluster = three("unfetched", &runtime);
    // Nothing listens there.
    let artifact = format!("[artifacts.data]\nurl = \"http://127.0.0.1:1/data.bin\"\nsha256 = \"{}\"\n\n[services.web]", "0".repeat(64));
    let manifest = RUNTIME.replace("version = \"1.0\"", "version = \"2.0\"").replace("[services.web]", &artifact);
    fs::write(runtime.join("runtime.toml"), manifest.replace("exec /usr/bin", ": {{ artifacts.data }}; exec /usr/bin")).expect("writes");
    cluster.run(&["up", &cluster.file.display().to_string(), "--yes", "--no-wait"]).ok();
    let held = until("the roll-out to be held", Duration::from_secs(90), || {
        Some(rollout_of(&cluster)).filter(|rollout| rollout.state == RolloutState::Held)
    });
    let problem = held.failure.expect("it says why").problem.to_string();
    assert!(problem.starts_with("the head cannot fetch data-2.0: "), "{problem}");
    assert_eq!(held.outdated.len(), 2, "no other node takes it");
    assert_eq!(healthy(&cluster.status()), 2, "what ran before goes on there");
    assert!(
        cluster.status().nodes.iter().flat_map(|n| &n.services).all(|s| !s.name.starts_with("web/") || s.state == "ready"),
        "and also here"
    );
    cluster.run(&["rollout", "undo", "unfetched", "--yes"]).ok();
    cluster.wait("what ran before", Duration::from_secs(60), |s| s.ready && s.revision == 3 && s.alarms.is_empty());
}
