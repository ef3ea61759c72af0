//! Services that fail, and services that only take their time: what people see of them.

use std::fs;
use std::time::Duration;

use cloudtik_model::report::FailureCause;
use cloudtik_tests::Cluster;

const MANIFEST: &str = r#"
[runtime]
name = "queue"
version = "1"

# Ends with status 3 again and again, and says why; its secret does not get into what is shown.
[services.q]
role = "workers"
command = ["/bin/sh", "-c", "echo \"connecting with $DB_PASSWORD\"; echo 'cannot reach the database'; sleep 0.05; exit 3"]
[services.q.environment]
DB_PASSWORD = "hunter22"

# Nothing ever listens on its port.
[services.slow]
role = "workers"
command = ["/bin/sleep", "1000"]
readiness = { tcp = "{{ node.address }}:18999", interval = "50ms" }

# Answers, and does not register.
[services.member]
role = "workers"
command = ["/usr/bin/python3", "-m", "http.server", "--bind", "{{ node.address }}", "18998"]
files = { "state.json" = "state.json" }
readiness = { http = "http://{{ node.address }}:18998/state.json", pointer = "/master", equals = "m1", interval = "50ms", waiting = "waiting to register with the master" }
"#;

fn cluster(name: &str) -> Cluster {
    let cluster = Cluster::new(name, "[workers.default]\nmin = 1\n[runtimes.queue]\npath = \"./queue\"");
    let folder = cluster.write_runtime("queue", MANIFEST);
    fs::write(folder.join("state.json"), "{\"master\": \"\"}").expect("writes");
    cluster
}

#[test]
fn what_fails_is_shown_with_the_end_of_its_log_and_what_starts_does_not_look_broken() {
    let cluster = cluster("failing");
    let file = cluster.file.display().to_string();
    let ran = cluster.run(&["up", &file, "--yes", "--timeout", "12"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    let shown = |text: &str| {
        assert!(text.contains("queue/q on w1: crashed (exit 3); restarts in"), "{text}");
        assert!(text.contains(":\n  | connecting with [secret]\n  | cannot reach the database"), "{text}");
        assert!(text.contains("queue/slow on w1: starting: waiting for port 18999"), "{text}");
        assert!(text.contains("queue/member on w1: starting: waiting to register with the master"), "{text}");
        assert!(!text.contains("os error") && !text.contains("hunter22") && !text.contains("backoff"), "{text}");
    };
    shown(&ran.err);
    assert!(ran.err.contains("last lines of the log of queue/q on w1"), "{ran:?}");
    // While it waited, too: before the summary.
    let (waiting, _) = ran.err.split_once("error:").expect("a failure");
    assert!(waiting.contains("| cannot reach the database"), "{waiting}");

    let is_crashed = |s: &cloudtik_model::status::Status| {
        s.nodes.iter().flat_map(|n| &n.services).any(|s| s.name == "queue/q" && s.state == "backoff" && s.restarts >= 3)
    };
    let status = cluster.wait("three restarts", Duration::from_secs(20), is_crashed);
    let q = status.nodes.iter().flat_map(|n| &n.services).find(|s| s.name == "queue/q").expect("it is there");
    let failure = q.failure.clone().expect("it failed");
    assert_eq!(failure.cause, FailureCause::Crashed { exit_code: Some(3), how: "exit 3".to_owned() });
    assert_eq!(q.log, ["connecting with [secret]", "cannot reach the database"]);
    assert!(q.description.starts_with("crashed (exit 3); restarts in"), "{q:?}");
    shown(&cluster.run(&["status", "failing"]).ok().out);

    let events = cluster.events();
    assert!(events.iter().any(|e| e.contains("queue/q crashed (exit 3); restarts in 200 ms")), "{events:#?}");
    let why = cluster.run(&["why", "failing", "w1"]).ok().out;
    assert!(why.contains("| cannot reach the database") && why.contains("queue/q on w1: crashed (exit 3)"), "{why}");
    let folded: Vec<&str> = why.lines().filter(|l| l.contains("crashed (exit 3)") && l.contains(" times in ")).collect();
    assert_eq!(folded.len(), 1, "repetitions are one line: {why}");
    let why: serde_json::Value = serde_json::from_str(&cluster.run(&["why", "failing", "w1", "-o", "json"]).ok().out).expect("JSON");
    let of_crashes = |e: &&serde_json::Value| e["event"]["what"]["failure"]["how"] == "exit 3";
    let fold = why["folded"].as_array().expect("a list").iter().find(of_crashes).expect("crashes are there");
    assert!(fold["times"].as_u64().is_some_and(|n| n >= 3) && fold["event"]["log"].as_array().is_some_and(|log| !log.is_empty()), "{fold}");
    let why = cluster.run(&["why", "failing"]).ok().out;
    assert!(why.contains("queue/q on w1: crashed (exit 3)") && why.contains("| cannot reach the database"), "{why}");
    let why: serde_json::Value = serde_json::from_str(&cluster.run(&["why", "failing", "-o", "json"]).ok().out).expect("JSON");
    assert_eq!(why["failing"][0]["failure"]["exit_code"], 3, "{why}");
    cluster.down();
    cluster.assert_nothing_left();
}

#[test]
fn jobs_that_fit_on_no_worker_are_refused_and_a_lost_worker_s_replacement_is_named() {
    let cluster = Cluster::new("large", "[workers.default]\nmin = 1\n[runtimes.batch]\npath = \"./batch\"");
    let manifest = |cores: u32| {
        format!(
            r#"
[runtime]
name = "batch"
version = "1"
[services.queue]
role = "head"
command = ["/bin/sleep", "1000"]
[services.runner]
role = "workers"
command = ["/bin/sleep", "1000"]
[submit]
service = "queue"
command = ["/bin/sh", "{{{{ job.file }}}}"]
part = {{ name = "task", cpus = {cores}, memory = "1m", advice = "ask for fewer cores" }}
"#
        )
    };
    let folder = cluster.write_runtime("batch", &manifest(10_000));
    cluster.up();
    let job = folder.join("job.sh");
    fs::write(&job, "echo ran").expect("writes");
    let submit = || cluster.run(&["submit", "large", &job.display().to_string()]);
    let refused = submit();
    let misfit = "jobs of batch cannot run: each task needs 10000 cores and 1MiB on one worker; a worker of type default has";
    assert!(refused.code == 5 && refused.err.contains(misfit) && refused.err.contains("ask for fewer cores"), "{refused:?}");
    assert!(cluster.status().alarms.iter().any(|alarm| alarm.to_string().starts_with(misfit)), "{:#?}", cluster.status().alarms);
    assert!(cluster.run(&["why", "large"]).ok().out.contains(misfit));
    let why: serde_json::Value = serde_json::from_str(&cluster.run(&["why", "large", "-o", "json"]).ok().out).expect("JSON");
    assert!(why["alarms"][0]["message"].as_str().is_some_and(|alarm| alarm.starts_with(misfit)), "{why}");
    cluster.write_runtime("batch", &manifest(1));
    cluster.up();
    let ran = submit().ok();
    assert_eq!(ran.out, "ran\n");
    assert!(cluster.status().alarms.is_empty(), "{:#?}", cluster.status().alarms);

    cluster.run(&["kill-node", "large", "w1", "--yes"]).ok();
    let replacement = cloudtik_tests::until("its replacement", Duration::from_secs(20), || {
        let events = cluster.events();
        let event = events.iter().find(|e| e.contains("it replaces w1 (generation 1)"))?;
        event.split(' ').nth(1).map(str::to_owned)
    });
    let why = cluster.run(&["why", "large", &replacement]).ok().out;
    assert!(why.contains("It replaces w1 (generation 1)"), "{why}");
    if replacement != "w1" {
        let why = cluster.run(&["why", "large", "w1"]).ok().out;
        assert!(why.contains(&format!("{replacement} (generation 1) replaces it")), "{why}");
    }
    cluster.down();
    cluster.assert_nothing_left();
}

#[test]
fn a_head_that_is_gone_is_told_without_numbers_of_the_operating_system() {
    let cluster = Cluster::new("headless", "[workers.default]\nmin = 0\nmax = 1");
    cluster.up();
    let (keeper, head) = (cluster.node("head").agent.expect("an agent").pid, cluster.status().head.pid);
    for pid in [keeper, head] {
        cloudtik_tests::send(pid as i32, nix::sys::signal::Signal::SIGKILL);
    }
    let ran = cluster.run(&["status", "headless"]);
    assert!(ran.code == 6 && ran.err.contains("the head of headless does not answer: no process listens on its socket"), "{ran:?}");
    assert!(!ran.err.contains("os error") && ran.err.contains("cloudtik up"), "{ran:?}");
    cluster.up();
    cluster.down();
    cluster.assert_nothing_left();
}
