//! How jobs are run: what a runtime's [submit] makes of files, options and shares, and what it refuses.

use std::collections::BTreeMap;

use cloudtik_config::Cluster;
use cloudtik_model::report::Java;
use cloudtik_model::{Bytes, NodeId, NodeTypeName, Resources, goal};
use cloudtik_runtimes::planner::{Availability, Error, Job, JobRequest, Wanted};
use cloudtik_runtimes::{Catalog, Folder, Manifest, NodeContext, Planner, View};

fn job(rest: &str, file: &str, options: &[(&str, &str)], workers: &[(&str, u32)]) -> Result<Job, Error> {
    let text = format!("[cluster]\nname = \"c\"\n[provider]\nkind = \"local\"\n{rest}\n");
    let cluster = Cluster::read("c.toml", &text).unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
    let own = "[runtime]\nname = \"plain\"\nversion = \"1\"\n[services.s]\nrole = \"head\"\ncommand = [\"/x\"]\n\
               [submit]\nservice = \"s\"\ncommand = [\"/bin/sh\", \"{{ job.file }}\"]\n";
    let folders = BTreeMap::from([("plain".parse().expect("valid"), Folder::from([("runtime.toml".to_owned(), own.to_owned())]))]);
    let catalog = Catalog::of_cluster(&cluster.runtimes, &folders, "c.toml", &text).expect("valid");
    let head = NodeContext {
        id: NodeId::head(),
        node_type: NodeTypeName::head(),
        address: "127.0.0.1".to_owned(),
        resources: Resources { cpus: 2, memory: Bytes(2 << 30), gpus: 0 },
        home: "/n".to_owned(),
        artifacts: "/a".to_owned(),
        javas: vec![Java { home: "/java".to_owned(), major: 17 }],
    };
    let there: Vec<(NodeTypeName, Resources)> = workers
        .iter()
        .map(|(name, cpus)| (NodeTypeName::new(*name).expect("valid"), Resources { cpus: *cpus, memory: Bytes(4 << 30), gpus: 0 }))
        .collect();
    let request = JobRequest {
        file: file.to_owned(),
        arguments: vec!["-o".to_owned(), "--".to_owned()],
        options: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..JobRequest::default()
    };
    let here = |wanted: &Wanted| Availability::Here(goal::Artifact { name: wanted.name.clone(), digest: "d".to_owned(), size: 0 });
    Planner::new(cluster, catalog).job(&request, &View::default(), &head, &there, &here)
}

const SPARK: &str = "[workers.default]\nmin = 2\n[runtimes.spark]";
const TWO: [(&str, u32); 2] = [("default", 1), ("default", 1)];

/// What follows in the command after the settings that every job has.
fn tail(job: &Job) -> Vec<&str> {
    let settings = job.command.iter().rposition(|a| a.starts_with("spark.cores.max=")).expect("it is there");
    job.command[settings + 1..].iter().map(String::as_str).collect()
}

#[test]
fn files_are_run_by_their_ending_and_others_are_refused() {
    let python = job(SPARK, "/a b/100%#/x.py", &[], &TWO).expect("runs");
    assert_eq!(tail(&python), ["file:///a%20b/100%25%23/x.py", "-o", "--"]);
    let sql = job(SPARK, "/a b/q.sql", &[], &TWO).expect("runs");
    let driver = "org.apache.spark.sql.hive.thriftserver.SparkSQLCLIDriver";
    assert_eq!(tail(&sql), ["--class", driver, "spark-internal", "-f", "/a b/q.sql", "-o", "--"]);
    for file in ["/j/report.ipynb", "/j/run.sh", "/j/job", "/j.py/job", "/j/x.PY", "/j/.py.txt"] {
        let refused = job(SPARK, file, &[], &TWO).expect_err(file).to_string();
        let name = file.rsplit('/').next().expect("a name");
        assert_eq!(refused, format!("spark cannot run {name}: it runs files that end in .jar, .py, .sql"));
    }
}

#[test]
fn options_become_what_the_runtime_declares() {
    let options = [("conf", "spark.x=a b"), ("packages", "g:a:1"), ("env", "A=1=2"), ("packages", "g:b:2"), ("conf", "spark.y=2")];
    let python = [("py-files", "/j/m,1.py"), ("py-files", "/j/n.zip")];
    let made = job(SPARK, "/j/x.py", &[&options[..], &python[..]].concat(), &TWO).expect("runs");
    let expected = [
        "--conf",
        "spark.x=a b",
        "--packages",
        "g:a:1,g:b:2",
        "--conf",
        "spark.executorEnv.A=1=2",
        "--conf",
        "spark.y=2",
        "--py-files",
        "file:///j/m%2C1.py,file:///j/n.zip",
        "file:///j/x.py",
        "-o",
        "--",
    ];
    assert_eq!(tail(&made), expected);
    assert_eq!(made.environment.get("A").map(String::as_str), Some("1=2"));
    let made = job(SPARK, "/j/x.jar", &[("class", "org.example.Main")], &TWO).expect("runs");
    assert_eq!(tail(&made), ["--class", "org.example.Main", "file:///j/x.jar", "-o", "--"]);
}

#[test]
fn options_that_a_runtime_does_not_take_are_refused() {
    let refused = |rest: &str, file: &str, option: (&str, &str)| job(rest, file, &[option], &TWO).expect_err("refused").to_string();
    assert_eq!(refused(SPARK, "/j/x.py", ("class", "Main")), "--class is for files that end in .jar, not for x.py");
    assert_eq!(refused(SPARK, "/j/x.jar", ("py-files", "/j/m.py")), "--py-files is for files that end in .py, not for x.jar");
    assert_eq!(refused(SPARK, "/j/x.py", ("env", "A")), "--env \"A\": write NAME=VALUE");
    let plain = "[runtimes.plain]\npath = \"./plain\"";
    assert_eq!(refused(plain, "/j/x.py", ("conf", "a=b")), "plain takes no --conf for a job");
    assert_eq!(job(plain, "/j/anything", &[], &[]).expect("runs").command, ["/bin/sh", "/j/anything", "-o", "--"]);
}

#[test]
fn a_job_takes_its_share_of_the_cores_in_whole_executors() {
    let cores = |spark: &str, rest: &str, workers: &[(&str, u32)]| {
        let text =
            format!("[workers.default]\nmin = 2\nmax = 10\ncpus = 4\nmemory = \"8GiB\"\n{rest}\n[runtimes.spark.properties]\n{spark}");
        let made = job(&text, "/j/x.py", &[], workers).expect("runs");
        made.command.iter().find_map(|a| a.strip_prefix("spark.cores.max=").map(str::to_owned)).expect("it is there")
    };
    assert_eq!(cores("", "", &[("default", 4), ("default", 4)]), "4", "half of what is there");
    assert_eq!(cores("job_share = 1", "", &[("default", 4), ("default", 4)]), "8");
    assert_eq!(cores("executor_cores = 3", "", &[("default", 4), ("default", 4)]), "3", "whole executors");
    assert_eq!(cores("executor_cores = 3", "", &[("default", 4)]), "3", "one executor at least");
    assert_eq!(cores("", "", &[]), "1");
    assert_eq!(cores("\"spark.cores.max\" = 7", "", &[("default", 4)]), "7", "Spark's own setting counts before the share");
    // What a policy makes the cluster grow to is shared before it is there.
    let policy = "[[scaling]]\npolicy = \"load\"\nworkers = \"default\"\nhigh = 0.8\n";
    assert_eq!(cores("", policy, &[("default", 4)]), "20");
}

#[test]
fn broken_declarations_of_submit_are_explained() {
    let text = "\
[runtime]
name = \"mine\"
version = \"1\"
[services.s]
role = \"head\"
command = [\"/x\"]
[submit]
service = \"s\"
command = [\"/x\", \"{{ job.file }}\"]
files = { \".py\" = [\"{{ job.file }}\"] }
options = { clas = { arguments = [\"--class\"] }, conf = { argument = [\"x\"], files = [\"pyy\"] } }
";
    let folder = Folder::from([("runtime.toml".to_owned(), text.to_owned())]);
    insta::assert_snapshot!("broken-submit", Manifest::read("mine", &folder).expect_err("broken").render(false, 100));
}
