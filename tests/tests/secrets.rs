//! Secrets that people write into a cluster's file and a runtime's folder, searched for wherever people look.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloudtik_tests::Cluster;

/// Every secret has this in it.
const PLANTED: &str = "planted";

/// Each of its services fails in a way that could show a secret.
const MANIFEST: &str = r#"
[runtime]
name = "leaky"
version = "1"

[properties]
password = { default = "" }
database = { default = "" }
token = { default = "" }

[services.says]
role = "workers"
command = ["/bin/sh", "-c", "cat conf.json; echo \"password: $DB_PASSWORD\"; echo \"Authorization: Bearer $A_TOKEN\"; echo \"cannot reach $DATABASE\"; sleep 0.05; exit 3"]
[services.says.environment]
DB_PASSWORD = "{{ properties.password }}"
A_TOKEN = "{{ properties.token }}"
DATABASE = "{{ properties.database }}"
[services.says.files]
"conf.json" = "conf.json"

[services.missing]
role = "workers"
command = ["/no/such/program", "--password", "{{ properties.password }}"]

[services.unhealthy]
role = "workers"
command = ["/bin/sleep", "1000"]
readiness = { http = "http://me:{{ properties.password }}@{{ node.address }}:18997/x?token={{ properties.token }}", interval = "50ms" }
[services.unhealthy.environment]
PASSWORD = "{{ properties.password }}"

[services.unfetched]
role = "workers"
command = ["/bin/sleep", "1000"]
"#;

const UNFETCHED: &str = r#"
[runtime]
name = "unfetched"
version = "1"
[artifacts.data]
url = "http://me:planted-url@127.0.0.1:9/data.bin"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[services.s]
role = "workers"
command = ["/bin/true"]
"#;

const REST: &str = r#"[head]
record = true
[workers.default]
min = 1
[runtimes.unfetched]
path = "./unfetched"
[runtimes.leaky]
path = "./leaky"
# The old one was password = "planted-comment".
properties = { password = "planted-password", database = "postgres://me:planted-user@127.0.0.1/db", token = "planted-t0ken" }
"#;

fn no_secret_in(what: &str, text: &str) {
    let line = text.lines().find(|line| line.contains(PLANTED));
    assert!(line.is_none(), "a secret is in {what}: {}", line.unwrap_or_default());
}

/// The files below a directory that people read or send: logs and recordings.
fn readable(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            readable(&path, found);
        } else if name == "agent.log"
            || name.starts_with("record-")
            || name == "log" && path.components().any(|c| c.as_os_str() == "cloudtik")
        {
            found.push(path);
        }
    }
}

#[test]
fn no_secret_is_shown_wherever_people_look() {
    let cluster = Cluster::new("secretive", REST);
    let folder = cluster.write_runtime("leaky", MANIFEST);
    fs::write(folder.join("conf.json"), "{\"user\": \"me\", \"password\": {{ properties.password | json }}}\n").expect("writes");
    cluster.write_runtime("unfetched", UNFETCHED);
    let file = cluster.file.display().to_string();
    let ran = cluster.run(&["up", &file, "--yes", "--timeout", "5"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    no_secret_in("what `up` says", &format!("{}{}", ran.out, ran.err));
    // Each of them has failed by now.
    let status = cluster.wait("failures", Duration::from_secs(60), |status| {
        let services = || status.nodes.iter().flat_map(|node| &node.services);
        let failed = |name: &str| services().any(|s| s.name == name && s.failure.is_some());
        failed("leaky/says") && failed("leaky/missing")
    });
    assert!(status.nodes.iter().any(|node| node.services.iter().any(|s| !s.log.is_empty())), "{status:#?}");
    for arguments in [
        &["status"][..],
        &["status", "-o", "json"],
        &["info", "-o", "json"],
        &["nodes", "-o", "json"],
        &["runtimes", "-o", "json"],
        &["why"],
        &["why", "-o", "json"],
        &["events"],
        &["events", "-o", "json"],
        &["dump"],
    ] {
        let mut all = vec![arguments[0], "secretive"];
        all.extend(&arguments[1..]);
        let ran = cluster.run(&all).ok();
        no_secret_in(&format!("{arguments:?}"), &format!("{}{}", ran.out, ran.err));
    }
    // What the services wrote themselves, with their secrets in it.
    let path = cluster.node_home("w1").join("services/leaky/says/log");
    assert!(fs::read_to_string(&path).expect("reads").contains(PLANTED), "the service writes its secrets");
    for arguments in [&["logs", "secretive", "--runtime", "leaky"][..], &["logs", "secretive", "--runtime", "leaky", "-o", "json"]] {
        let ran = cluster.run(arguments).ok();
        assert!(ran.out.contains("[secret]"), "{ran:?}");
        no_secret_in(&format!("{arguments:?}"), &ran.out);
    }
    let node = cluster.run(&["why", "secretive", "w1"]).ok();
    assert!(node.out.contains("cannot reach postgres://me:[secret]@127.0.0.1/db"), "what is left out is all that is: {node:?}");
    no_secret_in("why of a node", &node.out);
    let dump = cluster.run(&["dump", "secretive"]).ok().out;
    assert!(dump.contains("database") && dump.contains("postgres://me:[secret]@127.0.0.1/db"), "the rest of the file is there: {dump}");

    // Errors that quote the file.
    cluster.write(&REST.replace("password = \"planted-password\"", "password = [\"planted-list\"], unknown = 1"));
    for arguments in [&["up", &file, "--yes"][..], &["validate", &file], &["up", &file, "--yes", "-o", "json"]] {
        let ran = cluster.run(arguments);
        assert_eq!(ran.code, 3, "{ran:?}");
        no_secret_in(&format!("{arguments:?}"), &format!("{}{}", ran.out, ran.err));
    }

    let mut files = Vec::new();
    readable(&cluster.directory(), &mut files);
    assert!(files.len() >= 4 && files.iter().any(|path| path.to_string_lossy().contains("record-")), "{files:?}");
    for path in files {
        no_secret_in(&path.display().to_string(), &String::from_utf8_lossy(&fs::read(&path).expect("reads")));
    }
}
