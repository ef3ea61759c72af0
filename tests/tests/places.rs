//! Where clusters keep themselves: what is mounted there, who may look, what was removed by hand, and whose file it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_model::alarm::Alarm;
use cloudtik_tests::{Cluster, Ran, skipped, until};

/// A mount that is taken away when dropped.
struct Mount(PathBuf);

impl Mount {
    /// None, said loudly, where this user may not mount.
    fn make(arguments: &[&str], at: &Path) -> Option<Self> {
        fs::create_dir_all(at).expect("makes the directory");
        let mounted = Command::new("mount").args(arguments).arg(at).output();
        if mounted.is_ok_and(|o| o.status.success()) {
            return Some(Self(at.to_owned()));
        }
        skipped("mounts below a node need the right to mount (root)");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn what_is_mounted_below_a_node_is_never_deleted() {
    let cluster = Cluster::new("mounts", "[workers.default]\nmin = 2");
    cluster.up();
    let data = cluster.file.with_file_name("data");
    fs::create_dir_all(data.join("deep")).expect("makes");
    fs::write(data.join("deep/precious"), "data").expect("writes");
    // One of the same file system, which its device number does not tell, and one of another.
    let bound = cluster.node_home("w1").join("a b/mounted");
    let Some(first) = Mount::make(&["--bind", &data.display().to_string()], &bound) else { return };
    let scratch = cluster.node_home("w2").join("scratch");
    let Some(second) = Mount::make(&["-t", "tmpfs", "tmpfs"], &scratch) else { return };
    fs::write(scratch.join("precious"), "data").expect("writes");

    cluster.run(&["drain", "mounts", "w1", "--yes"]).ok();
    cluster.run(&["kill-node", "mounts", "w2", "--yes"]).ok();
    let not_deletable = |status: &cloudtik_model::status::Status, node: &str, mount: &Path| {
        let mount = mount.display().to_string();
        let of_node = status.nodes.iter().find(|n| n.id.as_str() == node && n.state == "terminating");
        of_node.and_then(|n| n.reason.as_ref()).is_some_and(|reason| reason.contains("not deletable") && reason.contains(&mount))
    };
    let status = cluster.wait("both to be shown as not deletable", Duration::from_secs(30), |s| {
        not_deletable(s, "w1", &bound) && not_deletable(s, "w2", &scratch)
    });
    assert!(status.alarms.iter().any(|a| matches!(a, Alarm::Undeletable { node } if node.as_str() == "w1")), "{:?}", status.alarms);
    let shown = cluster.run(&["status", "mounts"]).ok().out;
    let unmount = |mount: &Path| format!("umount {}", shlex::try_quote(&mount.display().to_string()).expect("no NUL"));
    for mount in [&bound, &scratch] {
        assert_eq!(shown.matches(&unmount(mount)).count(), 1, "what to do is said once: {shown}");
    }
    assert!(data.join("deep/precious").exists() && scratch.join("precious").exists());
    assert!(bound.parent().expect("has one").parent().expect("has one").join("bootstrap.json").exists(), "nothing at all is deleted");

    let refused = cluster.run(&["down", "mounts", "--yes"]);
    assert!(refused.code == 5 && refused.err.contains(&bound.display().to_string()), "{refused:?}");
    assert!(refused.err.contains(&scratch.display().to_string()), "every mount is named: {refused:?}");
    let command = refused.err.split('`').nth(1).expect("a command to type").to_owned();
    assert_eq!(shlex::split(&command).expect("words"), ["umount".to_owned(), scratch.display().to_string(), bound.display().to_string()]);
    assert!(cluster.node_home("head").exists() && data.join("deep/precious").exists(), "a refused `down` deletes nothing");
    let document: serde_json::Value =
        serde_json::from_str(&cluster.run(&["down", "mounts", "--yes", "-o", "json"]).err).expect("an error document");
    assert!(document["hint"].as_str().is_some_and(|hint| hint.contains("umount")), "{document:#}");

    // Once nothing is mounted the deletion goes on by itself.
    drop(first);
    drop(second);
    cluster.wait("their replacement", Duration::from_secs(60), |s| s.ready && s.nodes.len() == 3);
    assert_eq!(fs::read(data.join("deep/precious")).expect("it is there"), b"data");
    cluster.down();
    cluster.assert_nothing_left();
}

#[test]
fn an_interrupt_is_heard_while_a_cluster_is_deleted() {
    let cluster = Cluster::new("interrupted", "[workers.default]\nmin = 0");
    cluster.up();
    // Much to delete, beside the nodes.
    let junk = cluster.directory().join("junk");
    fs::create_dir(&junk).expect("makes");
    fs::write(junk.join("first"), "").expect("writes");
    for n in 0..60_000 {
        fs::hard_link(junk.join("first"), junk.join(n.to_string())).expect("links");
    }
    let head = cluster.node_home("head");
    let mut command = cluster.command(&["down", "interrupted", "--yes"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    until("the deletion of what is left", Duration::from_secs(30), || (!head.exists()).then_some(()));
    cloudtik_tests::send(child.id() as i32, nix::sys::signal::Signal::SIGINT);
    let (code, said) = ended(child);
    assert!(code == Some(130) && said.contains("`cloudtik down interrupted`"), "{code:?} {said}");
    cluster.down();
    cluster.assert_nothing_left();
}

/// Runs a command with the most open umask.
fn openly(cluster: &Cluster, arguments: &[&str]) -> Ran {
    let command = cluster.command(arguments);
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    let begun = Instant::now();
    let output = shell.output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr), took: begun.elapsed() }
}

/// Everything at and below a directory that others than its owner may enter, read or write.
fn open_to_others(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let mode = metadata.permissions().mode() & 0o777;
        // What services write for themselves is below directories that are closed.
        if metadata.is_dir() && mode & 0o077 != 0 {
            found.push(format!("{mode:o} {}", path.display()));
        }
        if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
    found
}

#[test]
fn state_directories_are_closed_to_others_whatever_the_umask() {
    let cluster = Cluster::new("umask", "[workers.default]\nmin = 1");
    openly(&cluster, &["doctor"]);
    assert_eq!(open_to_others(&cluster.state()), Vec::<String>::new(), "after `doctor` made the state directory");
    openly(&cluster, &["up", &cluster.file.display().to_string(), "--yes"]).ok();
    openly(&cluster, &["exec", "umask", "--node", "w1", "--", "true"]).ok();
    assert_eq!(open_to_others(&cluster.state()), Vec::<String>::new(), "after `up`");
    // Ones that an earlier version left open are closed by the next `up`.
    for directory in [cluster.state().join("workspaces/default/clusters"), cluster.directory()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).expect("opens");
    }
    cluster.down();
    openly(&cluster, &["up", &cluster.file.display().to_string(), "--yes"]).ok();
    assert_eq!(open_to_others(&cluster.state()), Vec::<String>::new(), "after another `up`");
}

/// Nothing ever listens on its port.
const NEVER_READY: &str = r#"
[runtime]
name = "never"
version = "1"

[services.one]
role = "workers"
command = ["/bin/sleep", "1000"]
readiness = { tcp = "{{ node.address }}:18997", interval = "50ms" }
"#;

/// A description that never becomes ready: its service never does.
fn never_ready(cluster: &Cluster) -> String {
    let folder = cluster.write_runtime("never", NEVER_READY);
    format!("[workers.default]\nmin = 1\n[runtimes.never]\npath = \"{}\"", folder.display())
}

fn waiting_up(cluster: &Cluster) -> Child {
    let mut command = cluster.command(&["up", &cluster.file.display().to_string(), "--yes", "--timeout", "600"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs")
}

fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_up_that_waits_locks_out_neither_the_corrected_file_nor_down() {
    let cluster = Cluster::new("waits", "");
    cluster.write(&never_ready(&cluster));
    let first = waiting_up(&cluster);
    cluster.wait("the service that never gets ready", Duration::from_secs(60), |s| s.waiting_for.iter().any(|w| w.contains("never/one")));
    cluster.write("[workers.default]\nmin = 1");
    cluster.up();
    let (code, said) = ended(first);
    assert!(code == Some(5) && said.contains("another command gave waits another description"), "{code:?} {said}");

    cluster.write(&never_ready(&cluster));
    let first = waiting_up(&cluster);
    cluster.wait("the service again", Duration::from_secs(60), |s| s.waiting_for.iter().any(|w| w.contains("never/one")));
    cluster.down();
    let (code, said) = ended(first);
    assert!(code == Some(5) && said.contains("by another command"), "{code:?} {said}");
    cluster.assert_nothing_left();
}

#[test]
fn a_removed_socket_is_made_again() {
    let cluster = Cluster::new("socket", "[workers.default]\nmin = 1");
    cluster.up();
    let before = cluster.status().head.pid;
    fs::remove_file(cluster.directory().join("head/admin.sock")).expect("removes");
    cluster.up();
    let status = cluster.status();
    assert!(status.ready && status.head.pid == before, "the head went on: {status:#?}");
}

#[test]
fn a_head_whose_directory_was_moved_says_so_once_and_is_reached_again_when_it_is_back() {
    let cluster = Cluster::new("moved", "");
    cluster.up();
    let (head, away) = (cluster.directory().join("head"), cluster.directory().join("head-away"));
    fs::rename(&head, &away).expect("moves");
    let log = cluster.node_home("head").join("services/cloudtik/head/log");
    let said =
        || fs::read_to_string(&log).expect("reads").lines().filter(|line| line.contains("ERROR") && line.contains("Unix socket")).count();
    until("the error", Duration::from_secs(20), || (said() > 0).then_some(()));
    // Several looks later.
    let begun = Instant::now();
    until("some looks", Duration::from_secs(10), || (begun.elapsed() > Duration::from_secs(4)).then_some(()));
    assert_eq!(said(), 1);
    fs::rename(&away, &head).expect("moves back");
    assert!(cluster.status().ready);
}

#[test]
fn a_cluster_whose_state_directory_was_removed_ends() {
    let cluster = Cluster::new("removed", "[workers.default]\nmin = 2");
    cluster.up();
    assert!(cluster.processes().len() > 3);
    // Whatever is written meanwhile may be in the way.
    until("the removal", Duration::from_secs(10), || fs::remove_dir_all(cluster.state()).is_ok().then_some(()));
    until("the end of all processes", Duration::from_secs(20), || cluster.processes().is_empty().then_some(()));
    assert!(!cluster.directory().exists(), "nothing of it comes back");
    cluster.up();
    assert!(cluster.status().ready);

    // The head's state only: it cannot go on, and `down` removes the rest.
    fs::remove_dir_all(cluster.directory().join("head")).expect("removes");
    until("the end of all processes", Duration::from_secs(20), || cluster.processes().is_empty().then_some(()));
    let refused = cluster.run(&["up", &cluster.file.display().to_string(), "--yes"]);
    assert!(refused.code == 5 && refused.err.contains("was removed") && refused.err.contains("cloudtik down removed"), "{refused:?}");
    assert!(!refused.err.contains("cloudtik up"), "what does not help is not advised: {refused:?}");
    let status = cluster.run(&["status", "removed"]);
    assert!(status.code == 5 && status.err.contains("was removed") && !status.err.contains("cloudtik up"), "{status:?}");
    cluster.down();
    cluster.assert_nothing_left();
}

#[test]
fn processes_of_a_removed_cluster_are_found_and_ended() {
    let cluster = Cluster::new("orphaned", "[workers.default]\nmin = 1");
    // What could not end by itself: stopped when its directory went.
    let nodes = cluster.directory().join("nodes/w1.1");
    let mut orphan = Command::new("sleep").arg("740001").env("CLOUDTIK_NODE_HOME", &nodes).spawn().expect("runs");
    until("the process in the list", Duration::from_secs(5), || (!cluster.processes().is_empty()).then_some(()));
    let ran = cluster.run(&["doctor"]);
    let pid = orphan.id().to_string();
    assert!(ran.code != 0 && ran.out.contains("orphan processes") && ran.out.contains(&pid), "{ran:?}");
    assert!(ran.out.contains("cloudtik down orphaned --yes"), "{ran:?}");
    let findings: serde_json::Value = serde_json::from_str(&cluster.run(&["doctor", "-o", "json"]).out).expect("a document");
    let found = findings.as_array().expect("findings").iter().find(|f| f["what"] == "orphan processes").expect("it is found");
    assert!(found["ok"] == false && found["hint"].as_str().is_some_and(|hint| hint.contains(&pid)), "{found:#}");
    assert!(cluster.run(&["list"]).ok().err.contains("orphaned"), "`list` tells of it");
    cluster.run(&["down", "orphaned", "--yes"]).ok();
    assert_eq!(orphan.wait().expect("it ended").code(), None, "killed");
    let ran = cluster.run(&["doctor"]);
    assert!(!ran.out.contains("orphan processes"), "{ran:?}");
}

#[test]
fn a_node_whose_directory_was_removed_is_not_ready_and_is_replaced() {
    let cluster = Cluster::new("homeless", "[workers.default]\nmin = 2");
    cluster.up();
    fs::remove_dir_all(cluster.node_home("w1")).expect("removes");
    let status = cluster.wait("w1 to be replaced", Duration::from_secs(60), |s| {
        s.ready && s.nodes.len() == 3 && s.nodes.iter().all(|n| n.instance.as_ref().is_none_or(|i| i.as_str() != "w1.1"))
    });
    assert!(status.nodes.iter().all(|n| n.state == "ready"));
    let why = cluster.events();
    assert!(why.iter().any(|e| e.contains("w1 ready → suspect") || e.contains("w1") && e.contains("→ down")), "{why:#?}");

    // Nobody replaces the head's own node; it must not be called ready.
    fs::remove_dir_all(cluster.node_home("head")).expect("removes");
    cluster.wait("the head's node not to be ready", Duration::from_secs(30), |s| {
        !s.ready && s.nodes.iter().any(|n| n.kind == "head" && n.state != "ready")
    });
}

#[test]
fn another_file_for_a_cluster_is_said_and_asked() {
    let cluster = Cluster::new("owned", "[workers.default]\nmin = 1");
    cluster.up();
    let (file, other) = (cluster.file.display().to_string(), cluster.file.with_file_name("other.toml"));
    fs::copy(&cluster.file, &other).expect("copies");
    let other = other.display().to_string();
    for arguments in [vec!["up", &other, "--plan"], vec!["up", &other]] {
        let ran = cluster.run(&arguments);
        assert!(ran.out.contains(&file) && ran.out.contains(&other), "both files are named: {ran:?}");
        assert_eq!(ran.code, if arguments.len() == 3 { 0 } else { 2 }, "{ran:?}");
    }
    let plan: serde_json::Value = serde_json::from_str(&cluster.run(&["up", &other, "--plan", "-o", "json"]).ok().out).expect("a plan");
    assert_eq!(plan["changes"][0]["what"], "the cluster's file", "{plan:#}");
    assert!(cluster.run(&["list"]).ok().out.contains(&file), "nothing was changed");
    cluster.run(&["up", &other, "--yes"]).ok();
    assert!(cluster.run(&["list"]).ok().out.contains(&other));
    assert!(cluster.run(&["up", &other]).ok().err.contains("nothing to do"), "it is asked once");
}

#[test]
fn a_cluster_file_that_is_a_link_means_the_file_that_it_led_to() {
    let cluster = Cluster::new("linked", "[workers.default]\nmin = 0");
    let (link, other) = (cluster.file.with_file_name("link.toml"), cluster.file.with_file_name("other.toml"));
    fs::copy(&cluster.file, &other).expect("copies");
    let link_to = |target: &Path| {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).expect("links");
    };
    link_to(&cluster.file);
    let (file, linked, other_text) = (cluster.file.display().to_string(), link.display().to_string(), other.display().to_string());
    cluster.run(&["up", &linked, "--yes"]).ok();
    // Another name of the same file is no other file, and does not become the cluster's.
    assert!(cluster.run(&["up", &file]).ok().err.contains("nothing to do"));
    assert!(cluster.run(&["list"]).ok().out.contains(&linked), "it is still known as it was named");
    link_to(&other);
    let plan = cluster.run(&["up", &linked, "--plan"]).ok();
    assert!(plan.out.contains("the cluster's file") && plan.out.contains(&file) && plan.out.contains(&linked), "{plan:?}");
    assert_eq!(cluster.run(&["up", &linked]).code, 2, "it is asked");
    assert!(cluster.run(&["up", &file]).ok().err.contains("nothing to do"), "the file is the one that the link led to");
    cluster.run(&["up", &linked, "--yes"]).ok();
    assert!(cluster.run(&["up", &other_text]).ok().err.contains("nothing to do"));
    assert_eq!(cluster.run(&["up", &file]).code, 2);
    // What is piped in has no file, and takes none away.
    let text = fs::File::open(&other).expect("opens");
    assert!(cluster.command(&["up", "-", "--yes"]).stdin(text).output().expect("runs").status.success());
    assert_eq!(cluster.run(&["up", &file]).code, 2);
}

#[test]
fn a_cluster_whose_workspace_was_changed_in_its_file_is_said_and_asked() {
    let cluster = Cluster::new("moves", "[workers.default]\nmin = 0");
    cluster.up();
    cluster.write("workspace = \"other\"\n[workers.default]\nmin = 0");
    let file = cluster.file.display().to_string();
    let plan = cluster.run(&["up", &file, "--plan"]).ok();
    let said = ["keep cluster moves in the workspace default", "names another workspace now", "`cloudtik down moves --workspace default`"];
    assert!(said.iter().all(|said| plan.out.contains(said)), "{plan:?}");
    assert_eq!(cluster.run(&["up", &file]).code, 2, "it is asked");
    cluster.run(&["up", &file, "--yes"]).ok();
    cluster.run(&["down", "moves", "--workspace", "other", "--yes"]).ok();
}

#[test]
fn a_cluster_that_was_renamed_in_its_file_is_said_and_asked() {
    let mut cluster = Cluster::new("before", "[workers.default]\nmin = 1");
    cluster.up();
    let renamed = fs::read_to_string(&cluster.file).expect("reads").replace("before", "after");
    fs::write(&cluster.file, renamed).expect("writes");
    let file = cluster.file.display().to_string();
    let plan = cluster.run(&["up", &file, "--plan"]).ok();
    assert!(plan.out.contains("keep cluster before") && plan.out.contains("cloudtik down before"), "{plan:?}");
    let asked = cluster.run(&["up", &file]);
    assert!(asked.code == 2 && asked.out.contains("keep cluster before"), "{asked:?}");
    assert!(!cluster.state().join("workspaces/default/clusters/after").exists(), "nothing was made");
    cluster.run(&["up", &file, "--yes"]).ok();
    assert!(cluster.run(&["up", &file]).ok().err.contains("nothing to do"), "it is asked once");
    cluster.run(&["down", "before", "--yes"]).ok();
    cluster.name = "after".to_owned();
}

#[test]
fn heads_that_hang_do_not_hold_up_the_list() {
    let cluster = Cluster::new("quick", "[workers.default]\nmin = 1");
    let clusters = cluster.state().join("workspaces/default/clusters");
    let hanging: Vec<_> = ["hang1", "hang2", "hang3"]
        .iter()
        .map(|name| {
            let head = clusters.join(name).join("head");
            fs::create_dir_all(&head).expect("makes");
            UnixListener::bind(head.join("admin.sock")).expect("listens")
        })
        .collect();
    let ran = cluster.run(&["list", "-o", "json"]).ok();
    assert!(ran.took < Duration::from_secs(5), "{ran:?}");
    let listed: Vec<serde_json::Value> = serde_json::from_str(&ran.out).expect("a list");
    let found: Vec<_> = listed.iter().map(|l| (l["cluster"].as_str().unwrap_or(""), l["phase"].as_str().unwrap_or(""))).collect();
    assert_eq!(found, [("hang1", "unreachable"), ("hang2", "unreachable"), ("hang3", "unreachable")]);
    drop(hanging);
}

#[test]
fn followed_logs_show_nodes_that_join_and_tell_of_those_that_go() {
    let cluster = Cluster::new("follow", "");
    let runtime = "[runtime]\nname = \"teller\"\nversion = \"1\"\n[services.one]\nrole = \"workers\"\n\
                   command = [\"/bin/sh\", \"-c\", \"echo hello from {{ node.id }}; exec sleep 1000\"]\n";
    let folder = cluster.write_runtime("teller", runtime);
    cluster.write(&format!("[workers.default]\nmin = 1\nmax = 3\n[runtimes.teller]\npath = \"{}\"", folder.display()));
    cluster.up();

    let (out, err) = (cluster.file.with_file_name("out"), cluster.file.with_file_name("err"));
    let mut command = cluster.command(&["logs", "follow", "-f", "--runtime", "teller"]);
    command.stdout(fs::File::create(&out).expect("creates")).stderr(fs::File::create(&err).expect("creates"));
    let mut follower = command.spawn().expect("runs");
    let said = |path: &Path, text: &str| fs::read_to_string(path).unwrap_or_default().contains(text).then_some(());
    until("the log that was there", Duration::from_secs(20), || said(&out, "hello from w1"));
    cluster.run(&["scale", "follow", "--workers", "2"]).ok();
    until("the log of the node that joined", Duration::from_secs(40), || said(&out, "hello from w2"));

    // One that follows a single node ends with it, at once, and says why: whatever of the node it follows.
    let of_node = ["logs", "follow", "-f", "--node", "w2"];
    let followers = [of_node.to_vec(), [&of_node[..], &["--runtime", "teller"]].concat()].map(|arguments| {
        let mut alone = cluster.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        let mut first = [0];
        std::io::Read::read_exact(alone.stdout.as_mut().expect("piped"), &mut first).expect("it follows");
        alone
    });
    cluster.run(&["kill-node", "follow", "w2", "--yes"]).ok();
    let killed = Instant::now();
    for alone in followers {
        let (code, why) = ended(alone);
        assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
        assert!(code == Some(4) && why.contains("w2") && !why.contains("no heartbeat"), "{code:?} {why}");
    }
    until("a word on the node that went", Duration::from_secs(20), || said(&err, "w2 teller/one"));
    cluster.down();
    until("the end of what follows", Duration::from_secs(20), || follower.try_wait().expect("can be asked"));
}

/// Counts without end, quickly, with lines that are alike between the numbers.
const COUNTER: &str = r#"
[runtime]
name = "counter"
version = "1"
[services.one]
role = "workers"
command = ["/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; echo tick; echo tick; sleep 0.002; done"]
"#;

#[test]
fn followed_logs_go_on_where_they_stopped_when_agent_and_head_are_killed() {
    let cluster = Cluster::new("resumes", "");
    let folder = cluster.write_runtime("counter", COUNTER);
    cluster.write(&format!("[workers.default]\nmin = 2\n[runtimes.counter]\npath = \"{}\"", folder.display()));
    cluster.up();
    let out = cluster.file.with_file_name("out");
    let mut command = cluster.command(&["logs", "resumes", "-f", "--runtime", "counter", "-o", "json"]);
    command.stdout(fs::File::create(&out).expect("creates")).stderr(Stdio::null());
    let mut follower = command.spawn().expect("runs");
    let lines_of = |node: &str| -> Vec<String> {
        let text = fs::read_to_string(&out).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("a document a line");
        let of_node = whole.lines().map(line).filter(|line| line["node"] == node);
        of_node.map(|line| line["line"].as_str().expect("text").to_owned()).collect()
    };
    let count = |node: &str| lines_of(node).iter().filter_map(|line| line.parse::<u32>().ok()).max().unwrap_or(0);
    let agent = |node: &str| cluster.node(node).agent.expect("it is linked").pid as i32;
    let begun = until("what is counted", Duration::from_secs(20), || Some(count("w1")).filter(|n| *n > 20));
    for node in ["w1", "w1", "w2"] {
        let (killed, at) = (agent(node), count(node));
        cloudtik_tests::send(killed, nix::sys::signal::Signal::SIGKILL);
        until("lines after the agent came back", Duration::from_secs(60), || (count(node) > at + 200).then_some(()));
    }
    let (head, at) = (cluster.status().head.pid as i32, count("w1"));
    cloudtik_tests::send(head, nix::sys::signal::Signal::SIGKILL);
    until("lines after the head came back", Duration::from_secs(60), || (count("w1") > at + 200).then_some(()));
    for node in ["w1", "w2"] {
        let lines = lines_of(node);
        let first = lines.iter().position(|line| line != "tick").expect("a number");
        let start: u32 = lines[first].parse().expect("a number");
        for (n, three) in lines[first..].chunks_exact(3).enumerate() {
            let expected = [(start + n as u32).to_string(), "tick".to_owned(), "tick".to_owned()];
            assert_eq!(three, expected, "{node}: a line was lost or doubled after {}", start + n as u32 - 1);
        }
    }
    assert!(count("w1") > begun + 600);
    cluster.down();
    until("the end of what follows", Duration::from_secs(20), || follower.try_wait().expect("can be asked"));
}

#[test]
fn what_follows_ends_when_its_reader_closes() {
    let cluster = Cluster::new("closes", "[workers.default]\nmin = 1");
    cluster.up();
    for arguments in [vec!["logs", "closes", "-f"], vec!["events", "closes", "-f"], vec!["status", "closes", "-w"]] {
        let mut child = cluster.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
        let mut out = child.stdout.take().expect("piped");
        let mut first = [0];
        std::io::Read::read_exact(&mut out, &mut first).expect("it says something");
        drop(out);
        let status = until("its end", Duration::from_secs(10), || child.try_wait().expect("can be asked"));
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
}
