//! Software that this machine keeps: it stays after `down`, which says so, and is listed and removed by `cache`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cloudtik_protocol::pki::sha256_hex;
use cloudtik_tests::Cluster;
use serde_json::Value;

/// Serves a directory on loopback while a test runs.
struct Server {
    process: std::process::Child,
    address: String,
}

impl Server {
    fn start(directory: &Path) -> Self {
        let script = "import http.server as h, functools as f, sys
s = h.ThreadingHTTPServer(('127.0.0.1', 0), f.partial(h.SimpleHTTPRequestHandler, directory=sys.argv[1]))
print(s.server_port, flush=True); s.serve_forever()";
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", script]).arg(directory).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = python.spawn().expect("python runs");
        let mut port = String::new();
        let mut out = std::io::BufReader::new(process.stdout.take().expect("piped"));
        std::io::BufRead::read_line(&mut out, &mut port).expect("it says its port");
        Self { process, address: format!("127.0.0.1:{}", port.trim()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["-o", "json"]);
    serde_json::from_str(&cluster.run(&all).ok().out).expect("a document")
}

#[test]
fn software_is_kept_for_clusters_that_exist_and_told_and_removed_afterwards() {
    let cluster = Cluster::new("keeps", "[workers.default]\nmin = 1\n[runtimes.keeps]\npath = \"./keeps\"");
    let folder = cluster.file.parent().expect("it lies in a directory").join("keeps");
    fs::create_dir_all(&folder).expect("makes");
    let content = vec![7; 5_000_000];
    fs::write(folder.join("data.bin"), &content).expect("writes");
    let server = Server::start(&folder);
    let sum = sha256_hex(&content);
    let manifest = format!(
        "[runtime]\nname = \"keeps\"\nversion = \"1\"\n[artifacts.data]\nurl = \"http://{}/data.bin\"\nsha256 = \"{sum}\"\n[services.keeper]\nrole = \"workers\"\ncommand = [\"/bin/sh\", \"-c\", \"exec tail -f {{{{ artifacts.data }}}}/data.bin\"]\n",
        server.address
    );
    fs::write(folder.join("runtime.toml"), manifest).expect("writes");
    assert_eq!(json(&cluster, &["cache", "list"])["bytes"], 0, "nothing was fetched yet");
    cluster.up();

    // What a cluster uses is kept.
    let listed = json(&cluster, &["cache", "list"]);
    let software = &listed["software"][0];
    assert_eq!((&software["name"], &software["used_by"][0]), (&Value::from("data-1"), &Value::from("keeps")), "{listed:#}");
    assert!(software["source"].as_str().is_some_and(|s| s.ends_with("/data.bin")), "{listed:#}");
    // Packed and unpacked.
    assert!(software["bytes"].as_u64().is_some_and(|b| (10_000_000..10_500_000).contains(&b)), "{listed:#}");
    let table = cluster.run(&["cache", "list"]).ok().out;
    assert!(table.lines().nth(1).is_some_and(|l| l.starts_with("data-1") && l.contains("10 MB") && l.ends_with("keeps")), "{table}");
    let cleaned = cluster.run(&["cache", "clean"]).ok();
    assert!(cleaned.err.contains("kept data-1 (10 MB): used by keeps") && cleaned.err.contains("nothing to remove"), "{cleaned:?}");
    assert!(cluster.wait_ready().ready);
    let info = json(&cluster, &["info", "keeps"]);
    assert_eq!((&info["software"]["bytes"], &info["software"]["unused_bytes"]), (&listed["bytes"], &Value::from(0)), "{info:#}");
    let told = cluster.run(&["info", "keeps"]).ok().out;
    assert!(told.lines().any(|line| line.starts_with("software   10 MB in ") && line.ends_with(", 0 B of it unused")), "{told}");
    // How much is kept.
    let limit = Value::from(20u64 << 30);
    assert_eq!((&info["software"]["limit_bytes"], &listed["limits"][0]["bytes"]), (&limit, &limit), "{info:#} {listed:#}");
    assert_eq!(listed["limits"][0]["cluster"], "keeps");
    assert!(told.lines().any(|line| line.starts_with("limit      20GiB of software")), "{told}");
    assert!(table.lines().any(|line| line == "limit of keeps: 20GiB"), "{table}");

    // What somebody removed by hand is fetched again when a node needs it.
    let artifacts = cluster.state().join("artifacts");
    let digest = software["digest"].as_str().expect("a digest").to_owned();
    fs::remove_file(artifacts.join(format!("{digest}.tar"))).expect("was kept");
    fs::remove_dir_all(artifacts.join("unpacked").join(&digest)).expect("was unpacked");
    let before = cluster.node("w1").instance;
    cluster.run(&["kill-node", "keeps", "w1", "--yes"]).ok();
    cluster.wait("its replacement", Duration::from_secs(60), |s| {
        s.ready && s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.instance != before)
    });

    // `down` leaves it and says so.
    let down = cluster.run(&["down", "keeps", "--yes", "-o", "json"]).ok();
    let told: Value = serde_json::from_str(&down.out).expect("a document");
    assert_eq!(told["software"]["bytes"], told["software"]["unused_bytes"]);
    assert!(told["software"]["bytes"].as_u64().is_some_and(|b| b > 10_000_000), "{told:#}");
    assert!(down.err.contains("keeps is down. Its software stays for the next cluster: 10 MB in "), "{down:?}");
    assert!(down.err.contains("`cloudtik cache clean` removes it"), "{down:?}");

    // What broke off goes, what is under way stays, and nothing goes without an answer.
    let (broken, busy) = ("b".repeat(64), "c".repeat(64));
    for key in [&broken, &busy] {
        fs::write(artifacts.join(format!(".part-{key}")), vec![1; 50_000]).expect("writes");
    }
    let lock = File::create(artifacts.join(format!(".fetch-{busy}.lock"))).expect("makes");
    lock.lock().expect("locks");
    assert_eq!(cluster.run(&["cache", "clean"]).code, 2, "it asks");
    assert_eq!(json(&cluster, &["cache", "list"])["software"].as_array().map(Vec::len), Some(1));
    let cleaned = json(&cluster, &["cache", "clean", "--yes"]);
    assert_eq!(cleaned["removed"][0]["name"], "data-1", "{cleaned:#}");
    assert!(cleaned["removed_bytes"].as_u64().is_some_and(|b| b > 10_000_000), "{cleaned:#}");
    assert!(!artifacts.join(format!(".part-{broken}")).exists() && artifacts.join(format!(".part-{busy}")).exists());
    drop(lock);
    cluster.run(&["cache", "clean", "--yes"]).ok();
    assert_eq!(json(&cluster, &["cache", "list"])["bytes"], 0);
    assert_eq!(cluster.run(&["cache", "clean"]).ok().err.trim(), "there is nothing to remove");
    cluster.assert_nothing_left();
}

/// The manifest of a runtime whose process runs from software without naming it.
fn running(server: &Server, file: &str, content: &[u8], script: &str) -> String {
    format!(
        "[runtime]\nname = \"keeps\"\nversion = \"1\"\n[artifacts.data]\nurl = \"http://{}/{file}\"\nsha256 = \"{}\"\n\
         [services.keeper]\nrole = \"workers\"\nstop = {{ grace = \"600s\" }}\n\
         command = [\"/bin/sh\", \"-c\", \"{script}\"]\nenvironment = {{ FILE = \"{file}\" }}\n",
        server.address,
        sha256_hex(content)
    )
}

#[test]
fn software_is_kept_while_something_runs_from_it_though_the_goal_has_moved_on() {
    let cluster = Cluster::new("keeps", "[workers.default]\nmin = 1\n[runtimes.keeps]\npath = \"./keeps\"");
    let folder = cluster.file.parent().expect("it lies in a directory").join("keeps");
    fs::create_dir_all(&folder).expect("makes");
    let contents = [("old.bin", vec![1; 100_000]), ("new.bin", vec![2; 100_000])];
    for (name, content) in &contents {
        fs::write(folder.join(name), content).expect("writes");
    }
    let server = Server::start(&folder);
    let describe = |(name, content): &(&str, Vec<u8>), script: &str| {
        fs::write(folder.join("runtime.toml"), running(&server, name, content, script)).expect("writes");
    };
    describe(&contents[0], "trap '' TERM; while :; do sleep 1; done");
    cluster.up();
    let old = json(&cluster, &["cache", "list"])["software"][0]["digest"].as_str().expect("a digest").to_owned();

    // The goal names other software, and the process of the old one does not end.
    describe(&contents[1], "exec sleep 600");
    cluster.run(&["up", cluster.file.to_str().expect("UTF-8"), "--yes", "--no-wait"]).ok();
    cluster.wait("a goal without the old software", Duration::from_secs(60), |_| {
        let nodes = fs::read_dir(cluster.directory().join("nodes")).expect("there are nodes").flatten();
        let mut goals = nodes
            .filter(|n| n.file_name().to_string_lossy().starts_with("w1"))
            .map(|node| fs::read_to_string(node.path().join("goal.json")));
        goals.all(|goal| goal.is_ok_and(|goal| !goal.contains(&old)))
    });
    let is_there = |cluster: &Cluster| cluster.state().join("artifacts/unpacked").join(&old).join("old.bin").exists();
    let cleaned = json(&cluster, &["cache", "clean", "--yes"]);
    assert!(is_there(&cluster), "{cleaned:#}");
    assert!(
        cleaned["kept"].as_array().is_some_and(|kept| kept.iter().any(|s| s["digest"] == *old && s["used_by"][0] == "keeps")),
        "{cleaned:#}"
    );

    for (pid, _) in cluster.processes().into_iter().filter(|(_, command)| command.contains("trap '' TERM")) {
        cloudtik_tests::send(pid, nix::sys::signal::Signal::SIGKILL);
    }
    // Nothing runs from it any more; but it is being fetched, by a head that this command does not know.
    cluster.run(&["down", "keeps", "--yes"]).ok();
    let artifacts = cluster.state().join("artifacts");
    let entry = fs::read_dir(artifacts.join("index")).expect("an index").flatten().map(|e| e.path());
    let entry = entry.into_iter().find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(&old))).expect("it is in the index");
    let key = entry.file_stem().expect("a name").to_string_lossy().into_owned();
    let lock = File::create(artifacts.join(format!(".fetch-{key}.lock"))).expect("makes");
    lock.lock().expect("locks");
    json(&cluster, &["cache", "clean", "--yes"]);
    assert!(is_there(&cluster) && entry.exists());
    // Its index has not been written yet.
    fs::remove_file(&entry).expect("removes");
    json(&cluster, &["cache", "clean", "--yes"]);
    assert!(is_there(&cluster));
    drop(lock);
    json(&cluster, &["cache", "clean", "--yes"]);
    assert!(!is_there(&cluster));
    cluster.assert_nothing_left();
}
