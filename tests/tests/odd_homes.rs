//! Real jobs in a home whose path holds a space, quotes, `%`, `#` and letters beyond ASCII: Spark and Prometheus from their
//! registries.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use cloudtik_tests::{Cluster, send, until};
use nix::sys::signal::Signal;

const SPEC: &str = r#"
[workers.default]
min = 2
cpus = 1
memory = "1.5GiB"
[runtimes.spark]
[runtimes.spark.properties]
"spark.odd" = "C:\\dir\\new # x = y\nspark.ui.enabled false"
"spark.history.fs.cleaner.interval" = "1s"
event_log_size = "64m"
[runtimes.prometheus]
"#;

const JOB: &str = r#"
import json, os, sys
from pyspark.sql import SparkSession
import helper, zipped
spark = SparkSession.builder.getOrCreate()
run = lambda n: (helper.double(n), zipped.name(), os.environ.get("STAGE"))
print(json.dumps({
    "odd": spark.conf.get("spark.odd"), "ui": spark.conf.get("spark.ui.enabled", "as it was"), "given": spark.conf.get("spark.given"),
    "arguments": sys.argv[1:], "cores": spark.conf.get("spark.cores.max"), "stage": os.environ["STAGE"],
    "executors": spark.sparkContext.parallelize([1, 2], 2).map(run).collect(),
}))
"#;

fn get(cluster: &Cluster, url: &str) -> serde_json::Value {
    let script = format!("import urllib.request as u; print(u.urlopen({url:?}, timeout=5).read().decode())");
    let out = cluster.run(&["exec", &cluster.name, "--", "/usr/bin/python3", "-c", &script]).out;
    serde_json::from_str(&out).unwrap_or_default()
}

fn console(cluster: &Cluster, name: &str) -> String {
    let status = cluster.status();
    let all = status.runtimes.iter().flat_map(|r| &r.endpoints);
    all.into_iter().find(|e| e.name == name).expect("a console").url.clone()
}

#[test]
fn homes_whose_paths_mean_something_else_to_programs_are_refused() {
    for (state, found) in
        [("a:b", ":"), ("a,b", ","), ("a*b", "*"), ("a?", "?"), ("[a]", "["), ("{a}", "{"), ("a\\b", "\\"), ("a\nb", "\n")]
    {
        let cluster = Cluster::new("refused", "[workers.default]\nmin = 0").with_state(state);
        let ran = cluster.run(&["up", &cluster.file.display().to_string(), "--yes"]);
        assert!(ran.code == 2 && ran.err.contains(&format!("contains {:?}", found.chars().next().expect("one"))), "{state:?}: {ran:?}");
        assert!(ran.err.contains("set CLOUDTIK_HOME"), "{state:?}: {ran:?}");
        assert!(!cluster.state().exists(), "nothing was made");
        let doctor = cluster.run(&["doctor"]);
        assert!(doctor.code == 1 && doctor.out.contains("MISS  state directory"), "{doctor:?}");
        // A link to it does not make it usable.
        fs::create_dir(cluster.state()).expect("makes");
        let link = cluster.file.with_file_name("plain");
        std::os::unix::fs::symlink(cluster.state(), &link).expect("links");
        let up = cluster.command(&["up", &cluster.file.display().to_string(), "--yes"]).env("CLOUDTIK_HOME", &link).output().expect("runs");
        assert_eq!(up.status.code(), Some(2), "{state:?}: {up:?}");
    }
}

#[test]
fn jobs_run_in_a_home_of_odd_characters() {
    let cluster = Cluster::new("odd", SPEC).with_state("o'd \"d%20#é").with_shared_software();
    cluster.up();
    let folder = cluster.file.parent().expect("it lies in a directory").join("a job");
    fs::create_dir_all(&folder).expect("makes");
    let file = |name: &str, content: &str| {
        let path = folder.join(name);
        fs::write(&path, content).expect("writes");
        path.display().to_string()
    };
    let (job, helper) = (file("50% done.py", JOB), file("helper.py", "def double(n): return 2 * n\n"));
    let zip = folder.join("with space.zip").display().to_string();
    let pack = "import sys, zipfile; zipfile.ZipFile(sys.argv[1], 'w').writestr('zipped.py', 'def name(): return \"zipped\"')";
    let packed = std::process::Command::new("/usr/bin/python3").args(["-c", pack, &zip]).status().expect("python runs");
    assert!(packed.success());

    let modules = format!("{helper},{zip}");
    let options = ["--conf", "spark.given=a b\\c", "--env", "STAGE=x y", "--py-files", &modules];
    let all = [&["submit"][..], &options, &["odd", &job, "-o", "out.csv", "--", "-h"]].concat();
    let ran = cluster.run(&all).ok();
    let said: serde_json::Value = serde_json::from_str(ran.out.trim()).expect("it printed a document");
    let expected = serde_json::json!({
        "odd": "C:\\dir\\new # x = y\nspark.ui.enabled false", "ui": "as it was", "given": "a b\\c",
        "arguments": ["-o", "out.csv", "--", "-h"], "cores": "1", "stage": "x y",
        "executors": [[2, "zipped", "x y"], [4, "zipped", "x y"]],
    });
    assert_eq!(said, expected);

    let query = file("sum.sql", "create temporary view v as select explode(sequence(1, 10)) n;\nselect sum(n) from v;\n");
    assert_eq!(cluster.run(&["submit", "odd", &query]).ok().out, "55\n");
    let refused = cluster.run(&["submit", "odd", &file("notes.ipynb", "{}")]);
    assert!(
        refused.code == 5 && refused.err.contains("spark cannot run notes.ipynb: it runs files that end in .jar, .py, .sql"),
        "{refused:?}"
    );

    event_logs_are_cleaned(&cluster);
    every_target_is_scraped(&cluster);
    two_jobs_run_at_once(&cluster, &file("sleep.py", SLEEP));
    cluster.down();
    cluster.assert_nothing_left();
}

/// Room for one application's log is kept: that of the latest one.
fn event_logs_are_cleaned(cluster: &Cluster) {
    let history = console(cluster, "Spark history");
    let events = cluster.node_home("head").join("data/spark/events");
    let logs = || -> Vec<PathBuf> { fs::read_dir(&events).expect("there are logs").flatten().map(|e| e.path()).collect() };
    until("one log, and the history that shows it", Duration::from_secs(60), || {
        let left = logs();
        let shown = get(cluster, &format!("{history}/api/v1/applications"));
        let [only] = shown.as_array()?.as_slice() else { return None };
        let is_it = left.len() == 1 && left[0].to_string_lossy().ends_with(only["id"].as_str()?);
        (is_it && only["name"].as_str()?.starts_with("SparkSQL")).then_some(())
    });
}

fn every_target_is_scraped(cluster: &Cluster) {
    let base = console(cluster, "Prometheus");
    until("eight targets, all up", Duration::from_secs(60), || {
        let targets = get(cluster, &format!("{base}/api/v1/targets"));
        let active = targets["data"]["activeTargets"].as_array()?.clone();
        (active.len() == 8 && active.iter().all(|t| t["health"] == "up")).then_some(())
    });
}

const SLEEP: &str = "\
import time
from pyspark.sql import SparkSession
s = SparkSession.builder.getOrCreate()
s.sparkContext.parallelize(range(2), 2).foreach(lambda _: time.sleep(600))
";

/// Each takes its share of the cores, so neither waits for the other.
fn two_jobs_run_at_once(cluster: &Cluster, job: &str) {
    let master = console(cluster, "Spark master");
    let start = || {
        let mut command = cluster.command(&["submit", "odd", job]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs")
    };
    let mut running = [start(), start()];
    until("two applications with a core each", Duration::from_secs(90), || {
        let state = get(cluster, &format!("{master}/json/"));
        let active = state["activeapps"].as_array()?.clone();
        (active.len() == 2 && active.iter().all(|app| app["cores"] == 1 && app["state"] == "RUNNING")).then_some(())
    });
    for job in &mut running {
        send(job.id() as i32, Signal::SIGINT);
    }
    for job in &mut running {
        assert!(!job.wait().expect("ends").success());
    }
}
