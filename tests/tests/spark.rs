//! The main job: Spark and Prometheus from their registries, a real word count, every target scraped; on nodes that are
//! processes, and on virtual nodes.
//!
//! The software (about 480 MB) is fetched once per build directory.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cloudtik_model::status::Status;
use cloudtik_tests::{Cluster, Ran, repository, send, skipped, until};
use nix::sys::signal::Signal;

const SPEC: &str = "[workers.default]\nmin = 2\nmax = 3\ncpus = 1\nmemory = \"1.5GiB\"\n[runtimes.spark]\n[runtimes.prometheus]";
const TEXT: &str = "/usr/share/common-licenses/GPL-3";
/// Held by the test that runs: a Spark is enough for a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn service_pid(status: &Status, node: &str, service: &str) -> Option<u32> {
    let node = status.nodes.iter().find(|n| n.id.as_str() == node)?;
    node.services.iter().find(|s| s.name == service)?.pid
}

/// GET from the head's node; the cluster's own addresses are reachable from there.
fn get(cluster: &Cluster, url: &str) -> serde_json::Value {
    let script = format!("import urllib.request as u; print(u.urlopen({url:?}, timeout=5).read().decode())");
    let out = cluster.run(&["exec", &cluster.name, "--", "/usr/bin/python3", "-c", &script]).out;
    serde_json::from_str(&out).unwrap_or_default()
}

fn submit(cluster: &Cluster, job: &str, arguments: &[&str]) -> Ran {
    let path = cluster.state().join("job.py");
    fs::write(&path, job).expect("writes");
    let file = path.display().to_string();
    let mut all = vec!["submit", cluster.name.as_str(), file.as_str()];
    all.extend(arguments);
    cluster.run(&all)
}

/// What the word count must say, counted here.
fn expected() -> (String, usize, usize) {
    let text = fs::read_to_string(TEXT).expect("every Debian carries it").to_lowercase();
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_default() += 1;
    }
    let (word, most) = counts.iter().max_by_key(|(_, n)| **n).expect("it has words");
    (format!("{most:6}  {word}"), counts.values().sum(), counts.len())
}

#[test]
fn a_real_job_runs_on_a_real_cluster() {
    let _alone = alone();
    let cluster = Cluster::new("words", SPEC).with_shared_software();
    cluster.up();
    let status = cluster.status();
    assert!(status.ready && status.runtimes.iter().all(|r| r.state == "ready"), "{status:#?}");

    words_are_counted(&cluster);
    let job = repository().join("examples/jobs/wordcount.py").display().to_string();
    assert_eq!(submit(&cluster, "import sys; sys.exit(7)", &[]).code, 7, "the exit status is carried");
    assert_eq!(cluster.run(&["submit", "words", "--runtime", "prometheus", &job]).code, 5, "Prometheus takes no jobs");

    // Agents and the head come and go; Spark does not notice.
    let worker = service_pid(&status, "w1", "spark/worker");
    let agent = status.nodes.iter().find(|n| n.id.as_str() == "w1").and_then(|n| n.agent.clone()).expect("an agent");
    send(agent.pid as i32, Signal::SIGKILL);
    send(status.head.pid as i32, Signal::SIGKILL);
    let after = cluster.wait("both back", Duration::from_secs(30), |s| {
        s.ready && s.head.pid != status.head.pid && s.nodes.iter().all(|n| n.agent.as_ref().is_some_and(|a| a.pid != agent.pid))
    });
    assert_eq!(service_pid(&after, "w1", "spark/worker"), worker, "the Spark worker's process is the same");
    assert_eq!(service_pid(&after, "head", "spark/master"), service_pid(&status, "head", "spark/master"));

    every_target_is_scraped(&cluster, &after);
    metrics_are_well_formed(&cluster, &after);
    an_interrupt_cancels_the_job(&cluster, &after);
    cluster.down();
    cluster.assert_nothing_left();
}

/// The quickstart's job says what is counted here.
fn words_are_counted(cluster: &Cluster) {
    let job = repository().join("examples/jobs/wordcount.py").display().to_string();
    let counted = cluster.run(&["submit", &cluster.name, &job, TEXT]).ok();
    let (most, words, different) = expected();
    assert!(counted.out.lines().next().is_some_and(|l| l == most), "{}", counted.out);
    assert!(counted.out.contains(&format!("{words} words, {different} of them different")), "{}", counted.out);
}

/// The example's file, and a cluster of it under another name.
fn example(file: &str, name: &str) -> Cluster {
    let text = fs::read_to_string(repository().join("examples").join(file)).expect("it is there");
    let cluster = Cluster::new(name, "");
    let named = text.lines().find(|line| line.starts_with("name = ")).expect("it names its cluster");
    fs::write(&cluster.file, text.replace(named, &format!("name = \"{name}\""))).expect("writes");
    cluster
}

fn the_quickstart_s_job_runs_on_virtual_nodes(cluster: &Cluster) {
    let status = cluster.status();
    assert!(status.ready && status.runtimes.iter().all(|r| r.state == "ready"), "{status:#?}");
    words_are_counted(cluster);
    assert_eq!(submit(cluster, "import sys; sys.exit(7)", &[]).code, 7, "the exit status is carried");
    every_target_is_scraped(cluster, &status);
    // Each worker's Java is seen on its own node alone.
    let java = |node: &str| cluster.run(&["exec", &cluster.name, "--node", node, "--", "pgrep", "-c", "java"]).out.trim().to_owned();
    until("the end of the executors", Duration::from_secs(20), || (java("w1") == "1" && java("w2") == "1").then_some(()));
    cluster.down();
    cluster.assert_nothing_left();
    cluster.run(&["workspace", "delete", "default", "--yes"]).ok();
}

#[test]
fn the_quickstart_runs_on_virtual_nodes() {
    let _alone = alone();
    if !nix::unistd::geteuid().is_root() {
        return skipped("Spark on root's virtual nodes needs root");
    }
    let cluster = example("virtual.toml", "isolated").with_shared_software();
    cluster.up();
    the_quickstart_s_job_runs_on_virtual_nodes(&cluster);
}

#[test]
fn the_quickstart_runs_on_an_ordinary_user_s_virtual_nodes() {
    let _alone = alone();
    let cluster = Cluster::new("owned", SPEC).with_kind("virtual").with_shared_software();
    let Some(cluster) = cluster.of_ordinary_user() else { return };
    if cluster.up_or_forbidden() {
        the_quickstart_s_job_runs_on_virtual_nodes(&cluster);
    }
}

fn every_target_is_scraped(cluster: &Cluster, status: &Status) {
    let prometheus = status.runtimes.iter().find(|r| r.name.as_str() == "prometheus").expect("it runs");
    let base = &prometheus.endpoints[0].url;
    // Head, three agents, Spark's master and two workers, and Prometheus itself.
    until("eight targets, all up", Duration::from_secs(60), || {
        let targets = get(cluster, &format!("{base}/api/v1/targets"));
        let active = targets["data"]["activeTargets"].as_array()?.clone();
        (active.len() == 8 && active.iter().all(|t| t["health"] == "up")).then_some(())
    });
    let query = format!("{base}/api/v1/query?query=sum%20by%20(node)%20(rate(node_cpu_seconds_total%5B1m%5D))");
    until("a rate of node CPU for every node", Duration::from_secs(60), || {
        let answer = get(cluster, &query);
        (answer["data"]["result"].as_array()?.len() == 3).then_some(())
    });
    // By the names that dashboards for the node exporter ask for.
    for name in ["node_memory_MemAvailable_bytes", "node_memory_HugePages_Total", "node_load1", "node_filesystem_avail_bytes"] {
        let answer = get(cluster, &format!("{base}/api/v1/query?query=count%20by%20(node)%20({name})"));
        assert_eq!(answer["data"]["result"].as_array().map(Vec::len), Some(3), "{name}: {answer}");
    }
}

/// `promtool check metrics` on every endpoint of the head and the agents.
fn metrics_are_well_formed(cluster: &Cluster, status: &Status) {
    let unpacked = fs::read_dir(cluster.state().join("artifacts/unpacked")).expect("software is there").flatten();
    let promtool = unpacked.map(|e| e.path().join("usr/bin/promtool")).find(|p| p.exists()).expect("Prometheus brings it");
    let identity = cluster.node_home("head").join("identity");
    let mut urls = vec![format!("https://{}/metrics", status.head.address)];
    urls.extend(status.nodes.iter().map(|n| format!("https://{}:7071/metrics", n.address.as_deref().unwrap_or_default())));
    for url in urls {
        let script = "import ssl, sys, urllib.request as u
c = ssl.create_default_context(cafile=sys.argv[2]); c.load_cert_chain(sys.argv[3], sys.argv[4])
sys.stdout.write(u.urlopen(sys.argv[1], context=c, timeout=5).read().decode())";
        let fetched = Command::new("/usr/bin/python3")
            .args(["-c", script, &url])
            .args(["ca.crt", "node.crt", "node.key"].map(|f| identity.join(f)))
            .output()
            .expect("python runs");
        assert!(fetched.status.success(), "{url}: {}", String::from_utf8_lossy(&fetched.stderr));
        let mut check =
            Command::new(&promtool).args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        std::io::Write::write_all(&mut check.stdin.take().expect("a pipe"), &fetched.stdout).expect("writes");
        let said = check.wait_with_output().expect("ends");
        assert!(said.status.success() && said.stderr.is_empty(), "{url}: {}", String::from_utf8_lossy(&said.stderr));
    }
}

fn an_interrupt_cancels_the_job(cluster: &Cluster, status: &Status) {
    let path = cluster.state().join("sleep.py");
    let job = "import time\nfrom pyspark.sql import SparkSession\ns = SparkSession.builder.getOrCreate()\n\
               s.sparkContext.parallelize(range(2), 2).foreach(lambda _: time.sleep(600))\n";
    fs::write(&path, job).expect("writes");
    let running = cluster.command(&["submit", "words", &path.display().to_string()]).stderr(Stdio::null()).spawn().expect("runs");
    let master = status.runtimes.iter().flat_map(|r| &r.endpoints).find(|e| e.name == "Spark master").expect("a console").url.clone();
    let cores = || get(cluster, &format!("{master}/json/"))["coresused"].as_u64();
    until("the job's executors", Duration::from_secs(60), || (cores()? > 0).then_some(()));
    send(running.id() as i32, Signal::SIGINT);
    let begun = Instant::now();
    let ended = running.wait_with_output().expect("ends");
    assert!(!ended.status.success() && begun.elapsed() < Duration::from_secs(15), "{ended:?} after {:?}", begun.elapsed());
    until("free cores", Duration::from_secs(20), || (cores()? == 0).then_some(()));
}
