//! Programs and files on nodes, from the command line.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cloudtik_tests::{Cluster, Ran, send, until};
use nix::sys::signal::Signal;

#[test]
fn programs_and_files_reach_nodes() {
    let cluster = Cluster::new("reach", "[workers.default]\nmin = 1");
    cluster.up();
    assert_eq!(cluster.run(&["exec", "reach", "--node", "w1", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).code, 7);
    let all = cluster.run(&["exec", "reach", "--all", "--", "sh", "-c", "echo $((6*7))"]).ok();
    assert!(all.out.contains("w1: 42") && all.out.contains("head: 42"), "{}", all.out);
    // Nothing that the agent or a shim needs for itself reaches programs: no signal is blocked.
    for node in ["head", "w1"] {
        let mask = cluster.run(&["exec", "reach", "--node", node, "--", "grep", "SigBlk", "/proc/self/status"]).ok().out;
        assert_eq!(mask.split_whitespace().last(), Some("0000000000000000"), "{node}: {mask}");
    }
    let missing = cluster.run(&["exec", "reach", "--", "/no/such/program"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert_eq!(cluster.run(&["exec", "reach", "--node", "w9", "--", "true"]).code, 4);

    let folder = cluster.state().join("folder");
    fs::create_dir_all(folder.join("deep")).expect("makes");
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(folder.join("deep/file"), &content).expect("writes");
    let there = cluster.state().join("there").display().to_string();
    cluster.run(&["upload", "reach", &folder.display().to_string(), &format!("{there}/"), "--node", "w1"]).ok();
    let back = cluster.state().join("back").display().to_string();
    cluster.run(&["download", "reach", &format!("{there}/folder"), &format!("{back}/"), "--node", "w1"]).ok();
    assert_eq!(fs::read(cluster.state().join("back/folder/deep/file")).expect("came back"), content);
    assert_eq!(cluster.run(&["download", "reach", "/no/such", &back]).code, 4);

    let log = cluster.run(&["logs", "reach", "--node", "w1"]).ok();
    assert!(log.out.contains("joined the cluster"), "{}", log.out);
    let dump = cluster.run(&["dump", "reach"]).ok().out;
    let token = fs::read_to_string(cluster.node_home("w1").join("bootstrap.json")).expect("reads");
    assert!(token.contains("\"token\":\"\""), "a token that served is gone: {token}");
    assert!(dump.contains("\"events\"") && !dump.contains("PRIVATE"), "a dump holds no secret");
    assert_eq!(cluster.run(&["doctor", "reach"]).code, 0);
}

/// Runs with something to read.
fn fed(mut command: Command, input: &[u8]) -> Ran {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(input).expect("writes");
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr), took: begun.elapsed() }
}

/// The processes with this command line.
fn processes(line: &str) -> Vec<i32> {
    let wanted = line.replace(' ', "\0") + "\0";
    let all = fs::read_dir("/proc").expect("there is /proc").flatten();
    let matching = all.filter(|e| fs::read(e.path().join("cmdline")).is_ok_and(|l| l == wanted.as_bytes()));
    matching.filter_map(|e| e.file_name().to_string_lossy().parse().ok()).collect()
}

fn runs(line: &str) -> bool {
    !processes(line).is_empty()
}

/// Bytes that a process has written.
fn written(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}

/// For [`until`]: whether a count that grew has stood still for fifty looks.
fn settled(count: impl Fn() -> u64) -> impl FnMut() -> Option<()> {
    let (mut last, mut looks) = (0, 0);
    move || {
        let now = count();
        looks = if now > 0 && now == last { looks + 1 } else { 0 };
        last = now;
        (looks >= 50).then_some(())
    }
}

#[test]
fn input_output_and_status_are_carried() {
    let cluster = Cluster::new("carried", "[workers.default]\nmin = 2");
    cluster.up();
    // More than fits in any window on the way.
    let long: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    let sum = fed(cluster.command(&["exec", "carried", "--node", "w1", "--", "sha256sum"]), &long).ok();
    assert!(sum.out.starts_with(&cloudtik_protocol::pki::sha256_hex(&long)), "{}", sum.out);
    let all = fed(cluster.command(&["exec", "carried", "--all", "--", "cat"]), b"a line\n").ok();
    let mut lines: Vec<&str> = all.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["head: a line", "w1: a line", "w2: a line"]);
    // One that takes no input does not keep it from the others.
    let script = "test \"${PWD##*/}\" = w1.1 || sha256sum";
    let some = fed(cluster.command(&["exec", "carried", "--all", "--", "sh", "-c", script]), &long).ok();
    assert_eq!(some.out.lines().count(), 2, "{}", some.out);

    let ran = cluster.run(&["exec", "carried", "-o", "json", "--", "sh", "-c", "echo out; echo err >&2; exit 4"]);
    let document: serde_json::Value = serde_json::from_str(&ran.out).expect("a document");
    assert_eq!(
        (ran.code, &document["exit_code"], &document["stdout"], &document["stderr"]),
        (4, &4.into(), &"out\n".into(), &"err\n".into())
    );
    let ran = cluster.run(&["exec", "carried", "--all", "-o", "json", "--", "true"]).ok();
    assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&ran.out).expect("documents").len(), 3);
    let ran = cluster.run(&["logs", "carried", "--node", "w1", "-o", "json", "-n", "1"]).ok();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&ran.out).expect("a line")["node"], "w1");

    // What people did is in the log, without what may be secret.
    let events = cluster.events();
    assert!(events.iter().any(|e| e == "request w1 exec sha256sum"), "{events:#?}");
    assert!(events.iter().all(|e| !e.contains("exit 4")), "{events:#?}");
}

#[test]
fn a_reader_that_pauses_holds_up_nobody() {
    let cluster = Cluster::new("paused", "[workers.default]\nmin = 1");
    cluster.up();
    let before = cluster.events().len();
    let pausing = || cluster.command(&["exec", "paused", "--node", "w1", "--", "yes"]).stdout(Stdio::piped()).spawn().expect("runs");
    let mut readers: Vec<_> = (0..8).map(|_| pausing()).collect();
    // Until every buffer on the way is full, and then for longer than a node may be silent.
    until("programs that wait", Duration::from_secs(20), settled(|| processes("yes").into_iter().map(written).sum()));
    let (mut heard, mut last) = (0, u64::MAX);
    until("five more heartbeats", Duration::from_secs(15), || {
        let node = cluster.node("w1");
        assert_eq!(node.state, "ready");
        let age = node.heartbeat_age_ms.expect("it is heard");
        heard += u32::from(age < last);
        last = age;
        (heard > 5).then_some(())
    });
    cluster.run(&["exec", "paused", "--node", "w1", "--", "true"]).ok();
    let suspected: Vec<_> = cluster.events().split_off(before).into_iter().filter(|e| e.contains("suspect")).collect();
    assert_eq!(suspected, Vec::<String>::new());
    let mut some = [0; 4];
    readers[0].stdout.as_mut().expect("piped").read_exact(&mut some).expect("it goes on");
    assert_eq!(&some, b"y\ny\n");
    for reader in &mut readers {
        reader.kill().expect("it runs");
        let _ = reader.wait();
    }
    until("the end of what nobody follows", Duration::from_secs(15), || (!runs("yes")).then_some(()));
}

#[test]
fn a_program_that_does_not_read_is_cancelled_all_the_same() {
    let cluster = Cluster::new("deafened", "[workers.default]\nmin = 1");
    cluster.up();
    for interrupted in [true, false] {
        let mut client = cluster.command(&["exec", "deafened", "--node", "w1", "--", "sleep", "4711"]);
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
        let mut input = client.stdin.take().expect("piped");
        let fed = Arc::new(AtomicU64::new(0));
        let count = fed.clone();
        let feeder = std::thread::spawn(move || {
            while input.write_all(&[0; 4 << 10]).is_ok() {
                count.fetch_add(4 << 10, Ordering::Relaxed);
            }
        });
        until("the program", Duration::from_secs(10), || runs("sleep 4711").then_some(()));
        // Until everything on the way is full.
        until("a feeder that waits", Duration::from_secs(10), settled(|| fed.load(Ordering::Relaxed)));
        // Ctrl-C, or the client is gone without a word.
        send(client.id() as i32, if interrupted { Signal::SIGINT } else { Signal::SIGKILL });
        until("the program's end", Duration::from_secs(8), || (!runs("sleep 4711")).then_some(()));
        let _ = client.wait();
        feeder.join().expect("the feeder ends with its client");
    }
}
