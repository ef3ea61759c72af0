//! Clusters that run jobs, for tests.

use std::fs;
use std::time::Duration;

use cloudtik_model::job::{Job, JobStateName};

use crate::{Cluster, until};

const MANIFEST: &str = r#"
[runtime]
name = "batch"
version = "1"
[services.queue]
role = "head"
command = ["/bin/sleep", "1000"]
[submit]
service = "queue"
command = ["/bin/sh", "{{ job.file }}"]
"#;

pub const MINUTE: Duration = Duration::from_secs(60);

/// A cluster that runs shell scripts as jobs.
pub fn batch(name: &str) -> Cluster {
    batch_with(name, "")
}

pub fn batch_with(name: &str, jobs: &str) -> Cluster {
    let cluster = Cluster::new(name, &format!("[workers.default]\nmin = 0\n{jobs}\n[runtimes.batch]\npath = \"./batch\""));
    cluster.write_runtime("batch", MANIFEST);
    cluster.up();
    cluster
}

/// A script, as a file of this machine.
pub fn script(cluster: &Cluster, name: &str, text: &str) -> String {
    let path = cluster.state().join(name);
    fs::write(&path, text).expect("writes");
    path.display().to_string()
}

/// Submits a script, leaves it to itself, and returns its name.
pub fn detach(cluster: &Cluster, options: &[&str], text: &str) -> String {
    let file = script(cluster, "job.sh", text);
    let all = [&["submit", "--detach"][..], options, &[&cluster.name, &file]].concat();
    cluster.run(&all).ok().out.trim().to_owned()
}

pub fn job(cluster: &Cluster, name: &str) -> Job {
    let ran = cluster.run(&["jobs", "status", &cluster.name, name, "-o", "json"]).ok();
    serde_json::from_str(&ran.out).expect("a job")
}

pub fn jobs(cluster: &Cluster) -> Vec<Job> {
    serde_json::from_str(&cluster.run(&["jobs", "list", &cluster.name, "-o", "json"]).ok().out).expect("jobs")
}

pub fn wait_for(cluster: &Cluster, name: &str, state: JobStateName) -> Job {
    until(&format!("{name} to be {state}"), MINUTE, || {
        // It may not be submitted yet.
        let ran = cluster.run(&["jobs", "status", &cluster.name, name, "-o", "json"]);
        serde_json::from_str(&ran.out).ok().filter(|job: &Job| job.state == state)
    })
}
