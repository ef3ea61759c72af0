//! Jobs: what they are given, how they end, and that they run once to their end whatever dies around them.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cloudtik_model::answer::Answer;
use cloudtik_model::job::{JobEnd, JobSpec, JobStateName, JobWait};
use cloudtik_protocol::transport::dial_unix;
use cloudtik_protocol::wire::admin_client::AdminClient;
use cloudtik_protocol::wire::{JobUpload, job_upload::Part};
use cloudtik_tests::jobs::{MINUTE, batch, batch_with, detach, job, jobs, script, wait_for};
use cloudtik_tests::{Cluster, Ran, send, until};
use nix::sys::signal::Signal;

fn printed(cluster: &Cluster, name: &str) -> Ran {
    cluster.run(&["jobs", "logs", &cluster.name, name]).ok()
}

/// Processes of this machine whose command line has a text.
fn processes(text: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").expect("lists").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(text));
    pids.filter(has).collect()
}

/// Where jobs are on the head's node.
fn directory(cluster: &Cluster) -> PathBuf {
    cluster.node_home("head").join("jobs")
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
    // One that does not tell its length is not read for ever.
    let ran = cluster.run(&["submit", "oversized", "/dev/zero"]);
    assert!(ran.code == 5 && ran.err.contains("is larger than 256 MiB"), "{ran:?}");
    assert_eq!(jobs(&cluster), []);
    // The largest that may be.
    File::options().write(true).open(&path).expect("opens").set_len(256 << 20).expect("sets");
    cluster.run(&["submit", "oversized", &file]).ok();
}

#[test]
fn a_job_has_a_directory_an_environment_and_outputs_of_its_own() {
    let cluster = batch("own");
    let data = script(&cluster, "data.csv", "1,2\n");
    let text = "ls; cat data.csv; pwd; echo $HOME; echo $CLOUDTIK_JOB_ID $CLOUDTIK_JOB_NAME $CLOUDTIK_CLUSTER; wc -c; echo loud >&2; touch left; exit 3";
    let file = script(&cluster, "own.sh", text);
    let ran = cluster.run(&["submit", "--files", &data, "--name", "mine", "own", &file]);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!((ran.code, &lines[..3]), (3, &["data.csv", "own.sh", "1,2"][..]), "{ran:?}");
    assert_eq!(lines[3], lines[4], "it starts in its directory, which is its home");
    assert_eq!(lines[5..], ["1 mine own", "0"], "nothing comes from its standard input");
    assert!(ran.err.contains("job 1 (mine) is submitted to own") && ran.err.contains("loud\n"), "{ran:?}");
    assert!(ran.err.contains("job 1 (mine) failed: exit 3"), "{ran:?}");
    // What it printed is kept, what it left in its directory is not.
    let kept = printed(&cluster, "mine");
    assert_eq!((kept.out.as_str(), kept.err.as_str()), (ran.out.as_str(), "loud\n"));
    until("its directory to go", MINUTE, || (!PathBuf::from(lines[3]).exists()).then_some(()));
    // A program of the node, with its own variables.
    let ran = cluster
        .run(&["submit", "--env", "STAGE=x=y", "--files", &data, "--command", "own", "--", "sh", "-c", "echo $STAGE; cat data.csv"])
        .ok();
    assert_eq!(ran.out, "x=y\n1,2\n");
    let ran = cluster.run(&["submit", "own", "--command", "--", "no-such-program", "x"]);
    assert!(ran.code == 1 && ran.err.contains("cannot start") && ran.err.contains("no-such-program"), "{ran:?}");
    let ran = cluster.run(&["submit", "own", "--command", "-o", "json", "--", "sh", "-c", "echo out; echo err >&2; exit 4"]);
    let document: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(
        (&document["stdout"], &document["stderr"], &document["exit_code"]),
        (&"out\n".into(), &"err\n".into(), &4.into()),
        "{ran:?}"
    );
    assert_eq!(document["job"]["state"], "failed");
    let names: Vec<String> = jobs(&cluster).into_iter().map(|job| format!("{} {}", job.name, job.state)).collect();
    assert_eq!(names, ["mine failed", "sh-2 succeeded", "no-such-program-3 failed", "sh-4 failed"]);
}

#[test]
fn odd_names_are_taken_as_they_are_or_refused_clearly() {
    let cluster = batch("oddly");
    for name in ["a b.sh", "-x.sh", "ü'\"$(x).sh", "new\nline.sh", "*.sh", ".hidden"] {
        let path = cluster.state().join(name);
        fs::write(&path, "for word; do printf '%s|' \"$word\"; done; ls").expect("writes");
        let path = path.display().to_string();
        let ran = cluster.run(&["submit", "oddly", &path, "-o", "a b", "", "ü", "$(x)", "*"]).ok();
        assert!(ran.out.starts_with("-o|a b||ü|$(x)|*|"), "{name}: {ran:?}");
    }
    let file = script(&cluster, "job.sh", "true");
    for name in ["", "7", "Ä", "a b", "../x", "a/b", &"x".repeat(64)] {
        let ran = cluster.run(&["submit", "--name", name, "oddly", &file]);
        assert!(ran.code == 2 && ran.err.contains("--name"), "{name:?}: {ran:?}");
    }
    let invalid = std::ffi::OsStr::from_bytes(b"\xff.sh");
    fs::write(cluster.state().join(invalid), "true").expect("writes");
    let mut command = cluster.command(&["submit", "oddly"]);
    let ran = command.arg(cluster.state().join(invalid)).output().expect("runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.code() == Some(2) && said.contains("is not UTF-8"), "{said}");
    for wrong in ["nope", "999"] {
        let ran = cluster.run(&["jobs", "status", "oddly", wrong]);
        assert!(ran.code == 4 && ran.err.contains(&format!("there is no job {wrong}")), "{ran:?}");
    }
}

#[test]
fn a_job_goes_on_without_the_command_that_submitted_it() {
    let cluster = batch("alone");
    let mark = cluster.state().join("mark");
    let text = format!("touch {0}; while [ -e {0} ]; do sleep 0.1; done; echo done", mark.display());
    for (n, signal) in [Signal::SIGKILL, Signal::SIGHUP].into_iter().enumerate() {
        let file = script(&cluster, "job.sh", &text);
        let mut command = cluster.command(&["submit", "--name", &format!("alone-{n}"), "alone", &file]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
        until("the job", MINUTE, || mark.exists().then_some(()));
        send(child.id() as i32, signal);
        let _ = child.wait();
        assert_eq!(job(&cluster, &format!("alone-{n}")).state, JobStateName::Running, "{signal}");
        fs::remove_file(&mark).expect("removes");
        assert_eq!(wait_for(&cluster, &format!("alone-{n}"), JobStateName::Succeeded).attempt, 1);
        assert_eq!(printed(&cluster, &format!("alone-{n}")).out, "done\n");
    }
}

#[test]
fn an_interrupt_cancels_where_nobody_can_be_asked() {
    let cluster = batch("interrupted");
    let mark = cluster.state().join("mark");
    for (n, signal) in [Signal::SIGINT, Signal::SIGTERM].into_iter().enumerate() {
        let file = script(&cluster, "job.sh", &format!("touch {}; sleep 1000", mark.display()));
        let name = format!("cancelled-{n}");
        let mut command = cluster.command(&["submit", "--name", &name, "interrupted", &file]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
        until("the job", MINUTE, || mark.exists().then_some(()));
        send(child.id() as i32, signal);
        assert_eq!(child.wait().expect("ends").code(), Some(130));
        let ended = job(&cluster, &name);
        assert_eq!((ended.state, ended.cancelled.is_some()), (JobStateName::Cancelled, true));
        fs::remove_file(&mark).expect("removes");
    }
}

#[test]
fn at_a_terminal_an_interrupt_asks() {
    let cluster = batch("asked");
    for (name, answer, state, code) in [
        ("left", "d\n", JobStateName::Running, 0),
        ("ended", "c\n", JobStateName::Cancelled, 130),
        ("followed", "\n", JobStateName::Running, 0),
    ] {
        let file = script(&cluster, "job.sh", "echo begun; sleep 1000");
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let mut command = cluster.command(&["submit", "--name", name, "asked", &file]);
        let end = || Stdio::from(pty.slave.try_clone().expect("clones"));
        let mut child: Child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("runs");
        drop(pty.slave);
        let mut terminal = File::from(pty.master);
        let mut said = String::new();
        let mut until_said = |what: &str| {
            use std::io::Read;
            let mut block = [0; 4096];
            while !said.contains(what) {
                let read = terminal.read(&mut block).expect("it says something");
                said.push_str(&String::from_utf8_lossy(&block[..read]));
            }
            said.clear();
            terminal.try_clone().expect("clones")
        };
        until_said("begun");
        send(child.id() as i32, Signal::SIGINT);
        let mut terminal = until_said("[c/d/G]");
        std::io::Write::write_all(&mut terminal, answer.as_bytes()).expect("answers");
        if answer == "\n" {
            // It goes on; the next time it is left.
            until_said("again");
            send(child.id() as i32, Signal::SIGINT);
            let mut terminal = until_said("[c/d/G]");
            std::io::Write::write_all(&mut terminal, b"d\n").expect("answers");
        }
        let ended = until("the end of submit", MINUTE, || child.try_wait().expect("it can be waited for"));
        assert_eq!(ended.code(), Some(code), "{answer:?}");
        assert_eq!(job(&cluster, name).state, state, "{answer:?}");
        cluster.run(&["jobs", "cancel", "asked", name]);
        until("its end", MINUTE, || job(&cluster, name).end);
        cluster.run(&["jobs", "delete", "--yes", "asked", name]).ok();
    }
}

#[tokio::test]
async fn the_same_submission_again_is_the_same_job() {
    let cluster = batch("again");
    let counter = cluster.state().join("counter");
    let channel = dial_unix(&cluster.directory().join("head/admin.sock")).await.expect("dials");
    let mut admin = AdminClient::new(channel);
    let program = format!("echo ran >> {}", counter.display());
    let spec = |submission: &str| -> JobSpec {
        let text = serde_json::json!({ "submission": submission, "work": "command", "program": "sh", "arguments": ["-c", program], "name": "once" });
        serde_json::from_value(text).expect("a job")
    };
    let mut submit = async |submission: &str| {
        let first = JobUpload { part: Some(Part::Spec(serde_json::to_vec(&spec(submission)).expect("JSON").into())) };
        let answer = admin.jobs_submit(tokio_stream::once(first)).await?;
        Ok::<Answer, tonic::Status>(serde_json::from_slice(&answer.into_inner().json).expect("an answer"))
    };
    let Ok(Answer::JobSubmitted { job, again: false, .. }) = submit("key").await else { panic!("the first is taken") };
    for _ in 0..3 {
        let answer = submit("key").await.expect("a repeated command");
        assert!(matches!(answer, Answer::JobSubmitted { job: known, again: true, .. } if known == job), "{answer:?}");
    }
    let refused = submit("other").await.expect_err("another job of that name");
    assert!(refused.message().contains("has the name once"), "{refused:?}");
    wait_for(&cluster, "once", JobStateName::Succeeded);
    let answer = submit("key").await.expect("also when it has ended");
    assert!(matches!(answer, Answer::JobSubmitted { again: true, .. }), "{answer:?}");
    assert_eq!(fs::read_to_string(&counter).expect("it ran"), "ran\n");
}

#[test]
fn jobs_wait_for_their_turn_and_say_so() {
    let cluster = batch_with("turns", "[jobs]\nparallel = 1\nkeep = 2");
    let mark = cluster.state().join("mark");
    fs::write(&mark, "").expect("writes");
    let order = cluster.state().join("order");
    let text = format!("echo $CLOUDTIK_JOB_NAME >> {}; while [ -e {} ]; do sleep 0.05; done", order.display(), mark.display());
    for name in ["first", "second", "third"] {
        assert_eq!(detach(&cluster, &["--name", name], &text), name);
    }
    wait_for(&cluster, "first", JobStateName::Running);
    let waiting = job(&cluster, "third");
    assert!(matches!(waiting.waits_for, Some(JobWait::Parallel { running: 1, limit: 1 })), "{waiting:?}");
    let status = cluster.status();
    assert_eq!((status.jobs.queued, status.jobs.running.len()), (2, 1), "{:?}", status.jobs);
    let shown = cluster.run(&["status", "turns"]).ok().out;
    assert!(shown.contains("first") && shown.contains("2 queued"), "{shown}");
    let told = cluster.run(&["jobs", "status", "turns", "second"]).ok().out;
    assert!(told.contains("waits for its turn: 1 jobs run, the limit is 1"), "{told}");
    // One is taken out of the queue, the others go in their order.
    cluster.run(&["jobs", "cancel", "turns", "second"]).ok();
    assert_eq!(job(&cluster, "second").end, Some(JobEnd::Cancelled));
    let refused = cluster.run(&["jobs", "cancel", "turns", "second"]);
    assert!(refused.code == 5 && refused.err.contains("has ended: cancelled"), "{refused:?}");
    let refused = cluster.run(&["jobs", "delete", "--yes", "turns", "third"]);
    assert!(refused.code == 5 && refused.err.contains("only a job that has ended is deleted"), "{refused:?}");
    fs::remove_file(&mark).expect("removes");
    wait_for(&cluster, "third", JobStateName::Succeeded);
    assert_eq!(fs::read_to_string(&order).expect("they ran"), "first\nthird\n");
    // Of those that have ended two are kept, with what they printed.
    detach(&cluster, &["--name", "fourth"], "true");
    wait_for(&cluster, "fourth", JobStateName::Succeeded);
    let kept: Vec<String> = until("two to be kept", MINUTE, || {
        Some(jobs(&cluster).iter().map(|job| job.name.to_string()).collect::<Vec<_>>()).filter(|names| names.len() == 2)
    });
    assert_eq!(kept, ["third", "fourth"]);
    until("what others printed to go", MINUTE, || (fs::read_dir(directory(&cluster)).expect("lists").count() == 2).then_some(()));
    cluster.run(&["jobs", "delete", "--yes", "turns", "third"]).ok();
    until("what it printed to go", MINUTE, || (fs::read_dir(directory(&cluster)).expect("lists").count() == 1).then_some(()));
    // Its name is free again, its number is not.
    assert_eq!(detach(&cluster, &["--name", "third"], "true"), "third");
    assert_eq!(job(&cluster, "third").id.0, 5);
    let events = cluster.events().join("\n");
    for said in [
        "submit: job 1 (first)",
        "job 1 (first) started",
        "job 1 (first) succeeded",
        "jobs cancel: job 2 (second)",
        "jobs delete: job 3 (third)",
    ] {
        assert!(events.contains(said), "{said} is not in {events}");
    }
}

#[test]
fn a_job_is_ended_with_all_that_it_started_whatever_it_ignores() {
    let cluster = batch("stubborn");
    let sleep = format!("{}", 1_000_000 + std::process::id());
    let text = format!("trap '' TERM INT HUP; (setsid sleep {sleep} &) ; sleep {sleep} & echo begun; while :; do sleep {sleep}; done");
    let name = detach(&cluster, &[], &text);
    until("what it starts", MINUTE, || (processes(&sleep).len() >= 3).then_some(()));
    let begun = std::time::Instant::now();
    cluster.run(&["jobs", "cancel", "--wait", "stubborn", &name]).ok();
    assert_eq!(job(&cluster, &name).end, Some(JobEnd::Cancelled));
    assert!(begun.elapsed() > Duration::from_secs(8), "it had its grace");
    until("all that it started to end", MINUTE, || processes(&sleep).is_empty().then_some(()));
    // One that ends while it leaves others behind.
    let name = detach(&cluster, &[], &format!("(setsid sleep {sleep} &); exit 0"));
    wait_for(&cluster, &name, JobStateName::Succeeded);
    until("what it left to end", MINUTE, || processes(&sleep).is_empty().then_some(()));
}

#[test]
fn a_job_that_runs_too_long_or_fails_is_ended_and_tried_as_often_as_it_may() {
    let cluster = batch("tries");
    let file = script(&cluster, "job.sh", "sleep 1000");
    let ran = cluster.run(&["submit", "--timeout", "1s", "--retries", "3", "--name", "late", "tries", &file]);
    assert!(ran.code == 6 && ran.err.contains("timed out"), "{ran:?}");
    assert_eq!(job(&cluster, "late").attempt, 1, "time is up for all attempts");
    let counter = cluster.state().join("counter");
    let text = format!("echo x >> {0}; echo attempt $(wc -l < {0}); [ $(wc -l < {0}) -ge 3 ]", counter.display());
    let file = script(&cluster, "job.sh", &text);
    let ran = cluster.run(&["submit", "--retries", "5", "--name", "third", "tries", &file]).ok();
    assert_eq!(ran.out, "attempt 1\nattempt 2\nattempt 3\n", "{ran:?}");
    let ended = job(&cluster, "third");
    assert_eq!((ended.attempt, ended.attempts, ended.history.len()), (3, 6, 3));
    let told = cluster.run(&["jobs", "status", "tries", "third"]).ok().out;
    assert!(told.contains("3 of 6") && told.contains("failed: exit 1"), "{told}");
    let why = cluster.run(&["why", "tries", "third"]).ok().out;
    assert!(why.contains("succeeded"), "{why}");
}

#[test]
fn a_gigabyte_of_output_is_whole_whoever_reads_it_slowly() {
    let cluster = batch("gigabyte");
    let size = 1u64 << 30;
    let file = script(&cluster, "job.sh", &format!("head -c {size} /dev/zero | tr '\\0' x; echo; echo end >&2"));
    // A reader that takes its time does not hold the job up.
    let mut command = cluster.command(&["submit", "--name", "large", "gigabyte", &file]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
    wait_for(&cluster, "large", JobStateName::Succeeded);
    let counted = Command::new("wc").arg("-c").stdin(child.stdout.take().expect("piped")).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), (size + 1).to_string());
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_reader_that_does_not_read_keeps_no_interrupt_from_being_heard() {
    let cluster = batch("stuck");
    let file = script(&cluster, "job.sh", "yes");
    let mut command = cluster.command(&["submit", "--name", "loud", "stuck", &file]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
    let writes = || {
        fs::read_dir(format!("/proc/{}/task", child.id()))
            .expect("it runs")
            .flatten()
            .any(|thread| fs::read_to_string(thread.path().join("wchan")).is_ok_and(|waits| waits.contains("pipe_write")))
    };
    until("a full pipe", MINUTE, || writes().then_some(()));
    send(child.id() as i32, Signal::SIGTERM);
    wait_for(&cluster, "loud", JobStateName::Cancelled);
    send(child.id() as i32, Signal::SIGTERM);
    let ended = until("the end of submit", MINUTE, || child.try_wait().expect("it can be waited for"));
    assert_eq!(ended.code(), Some(130));
}

#[test]
fn output_that_cannot_be_written_here_changes_nothing_of_the_job() {
    let cluster = batch("unwritten");
    for (status, wanted) in [(0, 1), (3, 3)] {
        let file = script(&cluster, "job.sh", &format!("seq 100000; echo ended >&2; exit {status}"));
        let full = File::options().write(true).open("/dev/full").expect("there is /dev/full");
        let ran = cluster.command(&["submit", "unwritten", &file]).stdout(full).output().expect("runs");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(wanted), "{said}");
        assert!(said.contains("cannot write the output: the disk is full") && said.contains("ended"), "{said}");
    }
    // A reader that has enough is no failure, and the job goes on.
    let file = script(&cluster, "job.sh", "seq 100000; exit 4");
    let mut command = cluster.command(&["submit", "--name", "enough", "unwritten", &file]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ends").code(), Some(4));
    assert_eq!(printed(&cluster, "enough").out.lines().count(), 100_000);
}

#[test]
fn the_clock_of_who_submits_does_not_matter() {
    let cluster = batch("clocks");
    if !PathBuf::from("/usr/bin/faketime").exists() {
        return cloudtik_tests::skipped("a wrong clock needs faketime");
    }
    let file = script(&cluster, "job.sh", "sleep 2; echo done");
    for (shift, name) in [("+1h", "ahead"), ("-1h", "behind")] {
        let own = cluster.command(&["submit", "--timeout", "50s", "--name", name, "clocks", &file]);
        let mut command = Command::new("faketime");
        command.arg("-f").arg(shift).arg(own.get_program()).args(own.get_args());
        command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
        let ran = command.output().expect("runs");
        assert_eq!((ran.status.code(), String::from_utf8_lossy(&ran.stdout).as_ref()), (Some(0), "done\n"), "{ran:?}");
        let ended = job(&cluster, name);
        let took = ended.ended.expect("ended").0 - ended.submitted.0;
        assert!((2_000..50_000).contains(&took), "{ended:?}");
    }
}

#[test]
fn jobs_that_reserve_room_wait_for_it() {
    let cluster = batch("room");
    let memory = cluster.node("head").memory.expect("known") / 2 + (64 << 20);
    let size = format!("{memory}B");
    let mark = cluster.state().join("mark");
    fs::write(&mark, "").expect("writes");
    let text = format!("while [ -e {} ]; do sleep 0.05; done", mark.display());
    detach(&cluster, &["--name", "big", "--memory", &size], &text);
    wait_for(&cluster, "big", JobStateName::Running);
    detach(&cluster, &["--name", "bigger", "--memory", &size], &text);
    let waiting = job(&cluster, "bigger");
    assert!(matches!(waiting.waits_for, Some(JobWait::Room { .. })), "{waiting:?}");
    // What reserves nothing passes it.
    detach(&cluster, &["--name", "small"], "true");
    wait_for(&cluster, "small", JobStateName::Succeeded);
    fs::remove_file(&mark).expect("removes");
    wait_for(&cluster, "bigger", JobStateName::Succeeded);
    let file = script(&cluster, "job.sh", "true");
    let refused = cluster.run(&["submit", "--memory", "900TiB", "room", &file]);
    assert!(refused.code == 5 && refused.err.contains("no room will ever do"), "{refused:?}");
}

#[test]
fn running_jobs_end_with_their_cluster() {
    let cluster = batch("ends");
    let sleep = format!("{}", 2_000_000 + std::process::id());
    detach(&cluster, &[], &format!("sleep {sleep}"));
    until("the job", MINUTE, || (!processes(&sleep).is_empty()).then_some(()));
    cluster.down();
    assert_eq!(processes(&sleep), [0; 0]);
    cluster.assert_nothing_left();
}
