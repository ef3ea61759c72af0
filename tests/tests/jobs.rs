//! Jobs: their files on the way to the head, and what is left of them there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use cloudtik_tests::{Cluster, send, until};
use nix::sys::signal::Signal;

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

/// A cluster that runs shell scripts as jobs.
fn batch(name: &str) -> Cluster {
    let cluster = Cluster::new(name, "[workers.default]\nmin = 0\n[runtimes.batch]\npath = \"./batch\"");
    cluster.write_runtime("batch", MANIFEST);
    cluster.up();
    cluster
}

fn job(cluster: &Cluster, text: &str) -> String {
    let path = cluster.state().join("job.sh");
    fs::write(&path, text).expect("writes");
    path.display().to_string()
}

/// What jobs left on the head: their files, and the records of them.
fn left(cluster: &Cluster) -> Vec<PathBuf> {
    let home = cluster.node_home("head");
    let of = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = of(home.join("jobs")).flat_map(|job| of(job.clone()).chain([job])).collect();
    found.extend(of(home.join("brought")));
    found
}

fn nothing_left(cluster: &Cluster) {
    until("an end without leftovers", Duration::from_secs(10), || left(cluster).is_empty().then_some(()));
}

/// Submits a job that takes a while to be sent.
fn large(cluster: &Cluster) -> Child {
    let path = cluster.state().join("large");
    File::create(&path).expect("creates").set_len(255 << 20).expect("sets");
    let mut command = cluster.command(&["submit", &cluster.name, &path.display().to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs")
}

#[test]
fn a_job_s_file_that_is_too_large_is_refused_before_it_is_sent() {
    let cluster = batch("oversized");
    let path = cluster.state().join("large.sh");
    // It has no content on the disk: only its length counts.
    let file = File::create(&path).expect("creates");
    file.set_len((256 << 20) + 1).expect("sets");
    file.write_all_at(b"exit 0\n", 0).expect("writes");
    let file = path.display().to_string();
    let ran = cluster.run(&["submit", "oversized", &file]);
    assert!(ran.code == 5 && ran.err.contains("is larger than 256 MiB"), "{ran:?}");
    assert!(ran.took < Duration::from_secs(1), "{ran:?}");
    let ran = cluster.run(&["submit", "-o", "json", "oversized", &file]);
    assert!(ran.code == 5 && ran.err.contains("is larger than 256 MiB"), "{ran:?}");
    // One that does not tell its length is not read for ever.
    let ran = cluster.run(&["submit", "oversized", "/dev/zero"]);
    assert!(ran.code == 5 && ran.err.contains("is larger than 256 MiB"), "{ran:?}");
    assert_eq!(left(&cluster), Vec::<PathBuf>::new());
    // The largest that may be.
    File::options().write(true).open(&path).expect("opens").set_len(256 << 20).expect("sets");
    cluster.run(&["submit", "oversized", &file]).ok();
    nothing_left(&cluster);
}

#[test]
fn a_job_reads_its_input_after_its_file() {
    let cluster = batch("input");
    let file = job(&cluster, "wc -c; exit 4");
    let ran = cluster.run(&["submit", "input", &file]);
    assert_eq!((ran.code, ran.out.trim()), (4, "0"), "{ran:?}");
    nothing_left(&cluster);
    let ran = cluster.run(&["submit", "input", &job(&cluster, "")]).ok();
    assert_eq!(ran.out, "");
    nothing_left(&cluster);
}

#[test]
fn nothing_is_left_of_a_submit_that_was_killed() {
    let cluster = batch("killed");
    // While its file is sent.
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let mut child = large(&cluster);
        until("a file on its way", Duration::from_secs(20), || (!left(&cluster).is_empty()).then_some(()));
        send(child.id() as i32, signal);
        let _ = child.wait();
        nothing_left(&cluster);
    }
    // While it runs.
    let mark = cluster.state().join("mark");
    let file = job(&cluster, &format!("touch {}; sleep 1000", mark.display()));
    for signal in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM] {
        let _ = fs::remove_file(&mark);
        let mut command = cluster.command(&["submit", "killed", &file]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
        until("the job", Duration::from_secs(10), || mark.exists().then_some(()));
        assert!(!left(&cluster).is_empty());
        send(child.id() as i32, signal);
        let _ = child.wait();
        nothing_left(&cluster);
    }
    // The agent that runs it is killed: the next one removes it.
    let _ = fs::remove_file(&mark);
    let mut command = cluster.command(&["submit", "killed", &file]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
    until("the job", Duration::from_secs(10), || mark.exists().then_some(()));
    let agent = cluster.node("head").agent.expect("it is linked").pid;
    send(agent as i32, Signal::SIGKILL);
    until("the end of the submit", Duration::from_secs(30), || child.try_wait().expect("it can be waited for"));
    until("what the next agent removes", Duration::from_secs(30), || left(&cluster).is_empty().then_some(()));
}

#[test]
fn a_job_keeps_its_status_when_its_output_cannot_be_written() {
    let cluster = batch("unwritten");
    for (status, wanted) in [(0, 1), (3, 3)] {
        let file = job(&cluster, &format!("yes; echo ended >&2; exit {status}"));
        for json in [false, true] {
            if json {
                // As a document, the output is kept: of a job that ends by itself.
                job(&cluster, &format!("echo out; echo ended >&2; exit {status}"));
            }
            let full = File::options().write(true).open("/dev/full").expect("there is /dev/full");
            let format = if json { "json" } else { "text" };
            let ran = cluster.command(&["-o", format, "submit", "unwritten", &file]).stdout(full).output().expect("runs");
            let said = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.code(), Some(wanted), "{said}");
            assert!(said.contains("cannot write the output: the disk is full") && (json || said.contains("ended")), "{said}");
        }
    }
    nothing_left(&cluster);
}
