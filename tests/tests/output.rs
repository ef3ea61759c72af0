//! What becomes of output that cannot be written.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cloudtik_tests::{Cluster, until};

fn to_full_disk(cluster: &Cluster, arguments: &[&str]) -> Output {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("there is /dev/full");
    cluster.command(arguments).stdout(full).output().expect("runs")
}

/// Runs with a reader that has gone.
fn to_nobody(cluster: &Cluster, arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    cluster.command(arguments).stdout(writer).output().expect("runs")
}

/// Runs without a standard output.
fn to_closed(cluster: &Cluster, arguments: &[&str]) -> Output {
    let command = cluster.command(arguments);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" >&-", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    shell.output().expect("runs")
}

#[test]
fn output_that_cannot_be_written_is_a_failure_of_every_command() {
    let cluster = Cluster::new("full", "[workers.default]\nmin = 1");
    cluster.up();
    let file = cluster.file.display().to_string();
    let scenario = cluster.file.with_file_name("scenario.toml").display().to_string();
    fs::write(&scenario, "length = \"10m\"\n").expect("writes");
    let commands: [&[&str]; 31] = [
        &["status", "full"],
        &["status", "full", "-w"],
        &["info", "full"],
        &["nodes", "full"],
        &["runtimes", "full"],
        &["list"],
        &["events", "full"],
        &["events", "full", "-f"],
        &["why", "full"],
        &["requests", "full"],
        &["logs", "full"],
        &["logs", "full", "-f"],
        &["dump", "full"],
        &["doctor", "full"],
        &["runtime", "list"],
        &["validate", &file],
        &["completions", "bash"],
        &["version"],
        &["--version"],
        &["--help"],
        &["exec", "--help"],
        &["up", &file, "--plan"],
        &["simulate", &file, "--demand", &scenario],
        &["simulate", &file, "--demand", &scenario, "--decisions"],
        &["workspace", "list"],
        &["workspace", "status", "default"],
        &["workspace", "create", "default", "--plan"],
        &["cache", "list"],
        &["cache", "clean", "--yes"],
        &["rollout", "status", "full"],
        &["runtime", "render", &file],
    ];
    for command in commands {
        for json in [false, true] {
            let arguments: Vec<&str> = command.iter().copied().chain(json.then_some("-ojson")).collect();
            let ran = to_full_disk(&cluster, &arguments);
            let said = String::from_utf8_lossy(&ran.stderr);
            if ran.status.success() {
                // Nothing was printed: there is nothing that could fail.
                let ran = cluster.run(&arguments);
                assert!(ran.out.is_empty(), "{arguments:?} printed {:?} to a full disk and ended with status 0", ran.out);
                continue;
            }
            assert!(ran.status.code() == Some(1) && said.contains("cannot write the output"), "{arguments:?}: {:?} {said}", ran.status);
            assert!(said.contains("the disk is full"), "{arguments:?}: {said}");
            let ran = to_nobody(&cluster, &arguments);
            let said = String::from_utf8_lossy(&ran.stderr);
            // A simulation says on standard error that it runs.
            let is_quiet = said.is_empty() || command[0] == "simulate" && !said.contains("error:");
            assert!(ran.status.success() && is_quiet, "{arguments:?}: {ran:?}");
            let ran = to_closed(&cluster, &arguments);
            let said = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.code() == Some(1), "{arguments:?}: {:?} {said}", ran.status);
            assert!(said.contains("cannot write the output: standard output is closed"), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn a_program_keeps_its_status_when_its_output_cannot_be_written() {
    let cluster = Cluster::new("kept", "[workers.default]\nmin = 1");
    cluster.up();
    let marks = cluster.state().join("marks");
    fs::create_dir_all(&marks).expect("makes");
    // It goes on to its end, and `yes` ends as in a pipeline.
    let script = |n: u32, status: u32| format!("yes; echo ended >&2; touch {}/{n}; exit {status}", marks.display());
    let commands = [vec!["exec", "kept"], vec!["exec", "kept", "--node", "w1"], vec!["exec", "kept", "--all"]];
    for (n, arguments) in commands.into_iter().enumerate() {
        for status in [0, 3] {
            let n = n as u32 * 10 + status;
            let script = script(n, status);
            let arguments: Vec<&str> = arguments.iter().copied().chain(["--", "sh", "-c", &script]).collect();
            let ran = to_full_disk(&cluster, &arguments);
            let said = String::from_utf8_lossy(&ran.stderr);
            let wanted = if status == 0 { 1 } else { 3 };
            assert_eq!(ran.status.code(), Some(wanted), "{arguments:?}: {said}");
            assert_eq!(said.matches("cannot write the output: the disk is full").count(), 1, "{arguments:?}: {said}");
            assert!(said.contains("ended") && marks.join(n.to_string()).exists(), "{arguments:?}: {said}");
            let ran = to_nobody(&cluster, &arguments);
            assert_eq!(ran.status.code(), Some(status as i32), "{arguments:?}: {ran:?}");
            assert!(!String::from_utf8_lossy(&ran.stderr).contains("error:"), "{arguments:?}: {ran:?}");
            let ran = to_closed(&cluster, &arguments);
            assert_eq!(ran.status.code(), Some(wanted), "{arguments:?}: {ran:?}");
        }
    }
    // A reader that has enough is no failure of a program that does nothing but write.
    for arguments in [vec!["exec", "kept"], vec!["exec", "kept", "--all"]] {
        let arguments: Vec<&str> = arguments.into_iter().chain(["--", "yes"]).collect();
        let begun = Instant::now();
        let mut child = cluster.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        let mut some = [0; 10];
        child.stdout.take().expect("piped").read_exact(&mut some).expect("it writes");
        let ran = child.wait_with_output().expect("ends");
        assert!(ran.status.success() && ran.stderr.is_empty(), "{arguments:?}: {ran:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{arguments:?}");
    }
    // What a program says on standard error counts as well.
    let full = || OpenOptions::new().write(true).open("/dev/full").expect("there is /dev/full");
    let status = cluster.command(&["exec", "kept", "--", "sh", "-c", "echo lost >&2"]).stderr(full()).status().expect("runs");
    assert_eq!(status.code(), Some(1));
    // As a document, it is written at the end.
    let ran = to_full_disk(&cluster, &["exec", "kept", "-o", "json", "--", "sh", "-c", "echo out; exit 3"]);
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("the disk is full"), "{ran:?}");
}

#[test]
fn a_disk_that_fills_up_meanwhile_is_told() {
    let cluster = Cluster::new("filled", "[workers.default]\nmin = 0");
    cluster.up();
    // A limit of the size of files stands for the disk; it is met in the middle.
    let out = File::create(cluster.state().join("out")).expect("creates");
    let command = cluster.command(&["exec", "filled", "--", "head", "-c", "5000000", "/dev/zero"]);
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -f 1000; trap '' XFSZ; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null()).stdout(out);
    let ran = limited.output().expect("runs");
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("cannot write the output: File too large"), "{ran:?}");
}

#[test]
fn a_reader_that_paused_without_blocking_gets_everything() {
    let cluster = Cluster::new("waits", "[workers.default]\nmin = 0");
    cluster.up();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("sets");
    let mut command = cluster.command(&["exec", "waits", "--", "head", "-c", "3000000", "/dev/zero"]);
    let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("runs");
    drop(command);
    until("a pipe that is full", Duration::from_secs(10), || {
        let stat = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
        let written = stat.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok());
        (written? > 65_536).then_some(())
    });
    let mut content = Vec::new();
    reader.read_to_end(&mut content).expect("reads");
    assert!(child.wait().expect("ends").success());
    assert_eq!(content.len(), 3_000_000);
}
