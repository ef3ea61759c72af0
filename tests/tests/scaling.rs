//! Scaling for real: requests, holding and setting aside on plain nodes, and Spark under load.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use cloudtik_model::alarm::Alarm;
use cloudtik_model::status::{Node, Status};
use cloudtik_tests::{Cluster, send};
use nix::sys::signal::Signal;

fn workers(status: &Status) -> Vec<&Node> {
    status.nodes.iter().filter(|n| n.kind == "worker" && n.state != "gone").collect()
}

fn ready(status: &Status) -> usize {
    workers(status).iter().filter(|n| n.state == "ready").count()
}

#[test]
fn people_ask_for_room_and_steer_the_head() {
    let spec = "budget = \"1.30/h\"\n[workers.default]\nmin = 1\nmax = 5\ncpus = 2\nmemory = \"1GiB\"\nprice = \"0.20/h\"\n\
                [workers.large]\nmin = 0\nmax = 2\ncpus = 8\nmemory = \"4GiB\"\nprice = \"0.70/h\"\n[workers.large.resources]\nlicence = 1";
    let cluster = Cluster::new("room", spec);
    cluster.up();
    let run = |arguments: &[&str]| {
        let mut all = vec![arguments[0], "room"];
        all.extend(&arguments[1..]);
        cluster.run(&all)
    };
    // Two times two cores fit on two small nodes, of which one is there.
    let said = run(&["scale", "--cpus", "4", "--reason", "a test"]).ok().out;
    assert!(said.contains("room for 4 × 1 cpu"), "{said}");
    cluster.wait("two workers", Duration::from_secs(20), |s| s.ready && workers(s).len() == 2);
    run(&["scale", "--add", "--name", "solver", "--resources", "licence=1"]).ok();
    cluster.wait("a node with a licence", Duration::from_secs(20), |s| s.ready && s.nodes.iter().any(|n| n.id.as_str() == "large-1"));
    let refused = run(&["scale", "--add", "--cpus", "60"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(refused.err.contains("the budget is 1.30/h"), "{}", refused.err);
    assert_eq!(run(&["scale", "--workers", "2", "--cpus", "1"]).code, 2);
    assert_eq!(run(&["scale", "--bundles", "[{\"cpu\": 1}]"]).code, 2);
    let typo = run(&["scale", "--worker", "2", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&typo.err).expect("programs are told in JSON");
    assert!(typo.code == 2 && told["exit_code"] == 2 && told["error"].to_string().contains("--worker"), "{typo:?}");
    let nobody = run(&["events", "--node", "w77"]);
    assert!(nobody.code == 4 && nobody.err.contains("there is no node w77"), "{nobody:?}");

    // What was asked for survives the head.
    let head = cluster.status().head.pid;
    send(head as i32, Signal::SIGKILL);
    let after = cluster.wait("the head back", Duration::from_secs(20), |s| s.ready && s.head.pid != head);
    assert_eq!(workers(&after).len(), 3);
    let listed = run(&["requests", "-o", "json"]).ok().out;
    let requests: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("JSON");
    let names: Vec<&str> = requests.iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["room", "solver"], "{listed}");
    assert!(requests.iter().all(|r| r["unmet"].is_null()) && requests[0]["reason"] == "a test", "{listed}");
    let why = run(&["why"]).ok().out;
    assert!(why.contains("(ready on large-1)"), "where a request lies is said: {why}");
    assert!(why.contains("because minimum 1") && why.contains("request solver"), "{why}");
    let events = run(&["events", "-o", "json"]).ok().out;
    let event = events.lines().find(|e| e.contains("request large-1")).expect("it is told");
    let number = serde_json::from_str::<serde_json::Value>(event).expect("JSON")["position"].to_string();
    let why = run(&["why", &number]).ok().out;
    assert!(why.contains("not default: has no licence") && why.contains("launched"), "{why}");

    run(&["revoke", "solver", "--now"]).ok();
    cluster.wait("the licence back", Duration::from_secs(30), |s| s.ready && !workers(s).iter().any(|n| n.node_type.as_str() == "large"));
    // A node that is set aside is replaced and kept.
    run(&["quarantine", "w1", "--reason", "odd"]).ok();
    cluster.wait("a replacement", Duration::from_secs(20), |s| s.ready && ready(s) == 2 && workers(s).len() == 3);
    run(&["release", "w1"]).ok();
    cluster.wait("w1 back", Duration::from_secs(20), |s| s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.state == "ready"));

    // A held head replaces nothing.
    run(&["hold", "--reason", "a look"]).ok();
    run(&["kill-node", "w1", "--yes"]).ok();
    let held = cluster.wait("w1 gone", Duration::from_secs(20), |s| workers(s).iter().all(|n| n.id.as_str() != "w1"));
    assert!(held.alarms.iter().any(|a| matches!(a, Alarm::OnHold { reason } if reason == "a look")), "{:?}", held.alarms);
    run(&["resume"]).ok();
    cluster.wait("two workers again", Duration::from_secs(20), |s| s.ready && ready(s) >= 2);

    // A file that leaves no room for what stands says so, and is not waited for in vain.
    cluster.write("[workers.default]\nmin = 1\nmax = 1\ncpus = 2\nmemory = \"1GiB\"");
    let file = cluster.file.display().to_string();
    let plan = cluster.run(&["up", &file, "--plan"]).ok().out;
    assert!(plan.contains("~ change request room: there is no room for all of it"), "{plan}");
    let up = cluster.run(&["up", &file, "--yes"]).ok();
    assert!(up.err.contains("requests beyond it wait for\n  room for 2 × 1 cpu"), "{up:?}");
    assert!(run(&["status"]).ok().out.contains("waiting for room for 2 × 1 cpu"));
    run(&["revoke", "room"]).ok();
    cluster.wait_ready();
    let shape = "[workers.default]\nmin = 1\nmax = 3\ncpus = 2\nmemory = \"1GiB\"\nprice = \"0.20/h\"";
    cluster.write(shape);
    cluster.run(&["up", &file, "--yes"]).ok();
    run(&["scale", "--workers", "3"]).ok();
    cluster.wait("three workers", Duration::from_secs(20), |s| s.ready && ready(s) == 3);
    cluster.write(&format!("budget = \"0.50/h\"\n{shape}"));
    let up = cluster.run(&["up", &file, "--yes"]).ok();
    assert!(up.err.contains("requests beyond it wait for\n  1 more worker of type default"), "{up:?}");
    cluster.down();
    cluster.assert_nothing_left();
}

const BURN: &str = "import time
from pyspark.sql import SparkSession
def burn(n):
    import os, time
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        pass
    return os.environ.get('SPARK_LOCAL_IP', '?')
context = SparkSession.builder.getOrCreate().sparkContext
hosts = context.parallelize(range(70), 70).map(burn).collect()
print(len(hosts), 'done on', len(set(hosts)), flush=True)
";

#[test]
fn a_spark_job_under_load_gets_workers_and_loses_one() {
    let spec = "idle_after = \"4s\"\n[workers.default]\nmin = 1\nmax = 2\ncpus = 1\nmemory = \"1.5GiB\"\n[runtimes.spark]\n\
                [[scaling]]\npolicy = \"load\"\nhigh = 0.5\nlow = 0.1\nwindow = \"6s\"\npause = \"5s\"";
    let cluster = Cluster::new("busy", spec).with_shared_software();
    cluster.up();
    let job = cluster.state().join("burn.py");
    fs::write(&job, BURN).expect("writes");
    let mut running = cluster.command(&["submit", "busy", &job.display().to_string()]).stdout(Stdio::piped()).spawn().expect("runs");
    cluster.wait("a second worker", Duration::from_secs(120), |s| ready(s) == 2);
    assert!(running.try_wait().expect("it can be asked").is_none(), "the job still runs");
    assert!(cluster.events().iter().any(|e| e.contains("policy load-default: 1 → 2")), "{:#?}", cluster.events());
    // One of them dies with all that is on it.
    cluster.run(&["kill-node", "busy", "w1", "--yes"]).ok();
    cluster.wait("w1 replaced", Duration::from_secs(120), |s| {
        s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.generation.0 == 2 && n.state == "ready")
    });
    let mut out = String::new();
    running.stdout.take().expect("piped").read_to_string(&mut out).expect("reads");
    let ended = running.wait().expect("ends");
    assert!(ended.success() && out.contains("70 done on"), "{ended}: {out}");
    // And back in, when there is nothing to do any more.
    let status = cluster.wait("one worker", Duration::from_secs(90), |s| s.ready && workers(s).len() == 1);
    assert_eq!(ready(&status), 1);
    assert!(cluster.events().iter().any(|e| e.contains("scale in w") && e.contains("no longer needed")), "{:#?}", cluster.events());
    cluster.down();
    cluster.assert_nothing_left();
}

/// A runtime of one's own whose only service tells how much waits.
const QUEUE: &str = r#"
[runtime]
name = "queue"
version = "1.0"
summary = "Tells how much waits"

[services.board]
role = "head"
ports = { web = 8000 }
command = ["/usr/bin/python3", "-m", "http.server", "--bind", "{{ node.address }}", "--directory", "{{ properties.board }}", "{{ ports.board.web }}"]
readiness = { tcp = "{{ node.address }}:{{ ports.board.web }}", interval = "100ms" }

[properties]
board = "/"

[signals.waiting]
summary = "what waits, in all queues"
service = "board"
http = "http://{{ node.address }}:{{ ports.board.web }}/queues.json"
pointer = "/queues/*/waiting"
interval = "200ms"

[signals.backlog]
summary = "the same, as a metric"
service = "board"
http = "http://{{ node.address }}:{{ ports.board.web }}/metrics.txt"
metric = "queue_backlog"
labels = { tier = "gold" }
interval = "200ms"
"#;

#[test]
fn what_a_runtime_says_decides_the_size() {
    let folder = tempfile::tempdir().expect("a directory");
    let (runtime, board) = (folder.path().join("queue"), folder.path().join("board"));
    for directory in [&runtime, &board] {
        fs::create_dir(directory).expect("made");
    }
    fs::write(runtime.join("runtime.toml"), QUEUE).expect("written");
    let tell = |name: &str, text: String| {
        // At once, so that nobody reads half of it.
        let (draft, whole) = (board.join("draft"), board.join(name));
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &whole)).expect("written");
    };
    let waiting =
        |a: u32, b: u32| tell("queues.json", format!("{{\"queues\": {{\"a\": {{\"waiting\": {a}}}, \"b\": {{\"waiting\": {b}}}}}}}"));
    let backlog = |gold: u32| {
        tell(
            "metrics.txt",
            format!("# TYPE queue_backlog gauge\nqueue_backlog{{tier=\"gold\"}} {gold}\nqueue_backlog{{tier=\"tin\"}} 90\n"),
        )
    };
    waiting(0, 0);
    backlog(0);
    let policy = |signal: &str, of: &str| {
        format!(
            "[[scaling]]\npolicy = \"signal\"\nname = \"{of}\"\nworkers = \"{of}\"\nsignal = \"queue.{signal}\"\nper_worker = 10\npause = \"1s\"\n"
        )
    };
    let spec = format!(
        "[workers.default]\nmin = 1\nmax = 4\n[workers.other]\nmin = 0\nmax = 2\n{}{}[runtimes.queue]\npath = \"{}\"\n[runtimes.queue.properties]\nboard = \"{}\"",
        policy("waiting", "default"),
        policy("backlog", "other"),
        runtime.display(),
        board.display()
    );
    let cluster = Cluster::new("signals", &format!("idle_after = \"1s\"\n{spec}"));
    cluster.up();
    let of = |status: &Status, kind: &str| {
        status.nodes.iter().filter(|n| n.kind == "worker" && n.node_type.as_str() == kind && n.state == "ready").count()
    };
    waiting(7, 14);
    cluster.wait("three workers for 21 that wait", Duration::from_secs(20), |s| s.ready && of(s, "default") == 3);
    backlog(11);
    cluster.wait("two workers for the backlog", Duration::from_secs(20), |s| s.ready && of(s, "other") == 2);
    let why = cluster.run(&["why", "signals"]).ok().out;
    assert!(why.contains("policy default: queue.waiting is 21") && why.contains("policy other: queue.backlog is 11"), "{why}");
    waiting(0, 3);
    backlog(0);
    cluster.wait("one worker is enough again", Duration::from_secs(30), |s| of(s, "default") == 1 && of(s, "other") == 0);
    cluster.down();
    cluster.assert_nothing_left();
}
