//! `exec`: what goes on in the background, and what a command that cannot run is told.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cloudtik_tests::{Cluster, send, skipped, until};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Waits for a process id that a script wrote.
fn pid_in(file: &Path) -> i32 {
    until("a process id", Duration::from_secs(5), || fs::read_to_string(file).ok()?.trim().parse().ok())
}

fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !matches!(rest.trim_start().chars().next(), None | Some('Z' | 'X')))
}

#[test]
fn a_program_that_left_the_session_and_redirected_its_output_goes_on_and_the_rest_ends() {
    let cluster = Cluster::new("background", "[workers.default]\nmin = 1");
    cluster.up();
    let marks = cluster.state().join("marks");
    fs::create_dir_all(&marks).expect("makes");
    // What runs in the background writes its process id and becomes `sleep`.
    let file = marks.join("pid");
    let program = format!("sh -c 'echo $$ > {}; exec sleep 4711'", file.display());
    let stubborn = format!("sh -c 'echo $$ > {}; trap \"\" TERM HUP; while :; do sleep 0.1; done'", file.display());
    let redirected = ">/dev/null 2>&1 &";
    // The process id is awaited, so that no rule is kept by chance; but for the last of those that go on, which is ended on at once.
    let wait = format!("\nuntil [ -s {} ]; do sleep 0.01; done", file.display());
    let cases = [
        (format!("setsid {program} {redirected}{wait}"), true),
        (format!("setsid {program} {redirected}"), true),
        (format!("nohup {program} {redirected}{wait}"), false),
        (format!("set -m; {program} {redirected}{wait}"), false),
        (format!("{program} &{wait}"), false),
        (format!("setsid {program} &{wait}"), false),
        (format!("setsid {program} >/dev/null &{wait}"), false),
        (format!("{stubborn} {redirected}{wait}"), false),
        (format!("setsid {stubborn} &{wait}"), false),
    ];
    for node in ["head", "w1"] {
        for (script, goes_on) in &cases {
            let _ = fs::remove_file(&file);
            let ran = cluster.run(&["exec", "background", "--node", node, "--", "bash", "-c", &format!("{script}\nexit 5")]);
            assert_eq!(ran.code, 5, "{script}: {ran:?}");
            let pid = pid_in(&file);
            assert_eq!(is_running(pid), *goes_on, "{node}: {script}");
            if *goes_on {
                assert!(ran.took < Duration::from_secs(3), "{script}: {:?}", ran.took);
                let session = nix::unistd::getsid(Some(Pid::from_raw(pid))).expect("it runs");
                assert_eq!(session.as_raw(), pid, "{script}");
                send(pid, Signal::SIGKILL);
                until("its end", Duration::from_secs(5), || (!is_running(pid)).then_some(()));
            }
        }
    }
    let help = cluster.run(&["exec", "--help"]).ok().out;
    assert!(help.contains("setsid") && help.contains("nohup"), "{help}");
}

#[test]
fn a_command_that_cannot_run_says_why_and_what_to_type() {
    let cluster = Cluster::new("typed", "[workers.default]\nmin = 1");
    cluster.up();
    let plain = cluster.state().join("plain");
    fs::write(&plain, "echo ran").expect("writes");
    let script = cluster.state().join("script");
    fs::write(&script, "#!/no/such/python\nprint(1)\n").expect("writes");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("sets");
    let script = script.display().to_string();
    let (plain, folder) = (plain.display().to_string(), cluster.state().display().to_string());
    let no_such = "cannot run echo a > f: there is no such program in the PATH of the node";
    let cases = [
        (vec!["echo a > f"], 127, no_such.to_owned(), "`cloudtik exec typed -- sh -c 'echo a > f'`".to_owned()),
        (vec!["no-such"], 127, "cannot run no-such: there is no such program".to_owned(), String::new()),
        (vec!["cd", "/tmp"], 127, "cannot run cd".to_owned(), "`cloudtik exec typed -- sh -c 'cd /tmp'`".to_owned()),
        (vec![&plain], 126, "it is not executable".to_owned(), format!("`cloudtik exec typed -- sh {plain}`")),
        (vec![&folder], 126, "it is a directory".to_owned(), String::new()),
        (vec![&script], 127, format!("cannot run {script}: its first line names the interpreter /no/such/python"), String::new()),
        (vec![""], 127, "the first word of the command is empty".to_owned(), "`cloudtik exec typed -- PROGRAM`".to_owned()),
        (vec!["FOO=1", "env"], 127, "cannot run FOO=1".to_owned(), "`cloudtik exec typed -- env 'FOO=1' env`".to_owned()),
    ];
    for (command, code, why, hint) in cases {
        let arguments: Vec<&str> = ["exec", "typed", "--"].into_iter().chain(command).collect();
        let ran = cluster.run(&arguments);
        assert!(ran.code == code && ran.err.contains(&why) && ran.err.contains(&hint), "{arguments:?}: {ran:?}");
        let json: Vec<&str> = ["-o", "json"].into_iter().chain(arguments.iter().copied()).collect();
        let ran = cluster.run(&json);
        let document: serde_json::Value = serde_json::from_str(&ran.err).expect("a document");
        assert!(ran.code == code && document["error"].as_str().is_some_and(|error| error.contains(&why)), "{json:?}: {document}");
        assert!(hint.is_empty() || document["hint"].as_str().is_some_and(|told| told.contains(&hint)), "{json:?}: {document}");
    }
    let ran = cluster.run(&["exec", "typed", "--all", "--", "echo a > f"]);
    assert!(ran.code == 127 && ran.err.contains(&format!("w1: {no_such}")), "{ran:?}");
    assert_eq!(ran.err.matches("`cloudtik exec typed --all -- sh -c 'echo a > f'`").count(), 1, "{ran:?}");

    for (line, right) in [
        (vec!["exec", "typed", "ls", "-l"], "`cloudtik exec typed -- ls -l`"),
        (vec!["exec", "typed", "--node", "w1", "ls"], "`cloudtik exec typed --node w1 -- ls`"),
        (vec!["exec", "typed", "echo", "hi", "--", "x"], "`cloudtik exec typed -- echo hi -- x`"),
        (vec!["exec", "typed", "echo a > f"], "`cloudtik exec typed -- sh -c 'echo a > f'`"),
    ] {
        let ran = cluster.run(&line);
        assert!(ran.code == 2 && ran.err.contains("`--` is missing") && ran.err.contains(right), "{line:?}: {ran:?}");
        let json: Vec<&str> = ["-o", "json"].into_iter().chain(line).collect();
        let ran = cluster.run(&json);
        let document: serde_json::Value = serde_json::from_str(&ran.err).expect("a document");
        assert!(ran.code == 2 && document["error"].as_str().is_some_and(|error| error.contains("`--` is missing")), "{json:?}: {document}");
    }
}

#[test]
fn input_that_cannot_be_read_is_no_end_of_it() {
    let cluster = Cluster::new("input", "[workers.default]\nmin = 0");
    cluster.up();
    let copy = cluster.state().join("copy");
    let script = format!("cat > {}", copy.display());
    let exec = ["exec", "input", "--", "sh", "-c", &script];
    // It does not block and has nothing yet.
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
    let mut child = cluster.command(&exec).stdin(Stdio::from(reader)).spawn().expect("runs");
    until("the program", Duration::from_secs(10), || copy.exists().then_some(()));
    fs::File::from(writer).write_all(b"all of it").expect("writes");
    assert!(child.wait().expect("ends").success());
    assert_eq!(fs::read(&copy).expect("copied"), b"all of it");
    // A folder cannot be read.
    let folder = fs::File::open(cluster.state()).expect("opens");
    let ran = cluster.command(&exec).stdin(Stdio::from(folder)).output().expect("runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.code() == Some(1) && said.contains("cannot read the input: Is a directory"), "{ran:?}");
}

/// A process that holds terminals of an instance of its own, as a container does: with the names of this machine's.
fn holder_of_other_terminals() -> Option<Child> {
    if !nix::unistd::geteuid().is_root() {
        skipped("terminals of containers: an instance of devpts needs root");
        return None;
    }
    const HOLD: &str = r#"
import fcntl, os, struct, time
for n in range(100):
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK: unlock
    os.open(f"/dev/pts/{n}", os.O_RDWR | os.O_NOCTTY)
print("holds", flush=True)
time.sleep(1000)
"#;
    let script = "mount -t devpts -o newinstance,ptmxmode=0666 none /dev/pts && exec python3 -c \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", HOLD]).stdout(Stdio::piped());
    let mut holder = command.spawn().expect("unshare runs");
    let mut said = String::new();
    BufReader::new(holder.stdout.as_mut().expect("piped")).read_line(&mut said).expect("reads");
    assert_eq!(said, "holds\n");
    Some(holder)
}

#[test]
fn a_command_with_a_terminal_keeps_its_status_and_the_same_rule() {
    let cluster = Cluster::new("terminal", "[workers.default]\nmin = 0");
    cluster.up();
    let file = cluster.state().join("pid");
    let on_terminal = |script: &str| {
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        // What the command starts must not keep the terminal open.
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("closed on exec");
        }
        let end = || Stdio::from(pty.slave.try_clone().expect("clones"));
        let mut command = cluster.command(&["exec", "terminal", "-t", "--", "bash", "-c", script]);
        let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("runs");
        drop((command, pty.slave));
        let mut written = Vec::new();
        let _ = fs::File::from(pty.master).read_to_end(&mut written);
        (child.wait().expect("ends").code(), String::from_utf8_lossy(&written).into_owned())
    };
    let (code, said) = on_terminal("tty; test -t 0 && test -t 1 && exit 7");
    assert!(code == Some(7) && said.contains("/dev/pts/"), "{code:?} {said}");
    let program = format!("sh -c 'echo $$ > {}; exec sleep 4712'", file.display());
    let wait = format!("until [ -s {} ]; do sleep 0.01; done", file.display());
    let mut stranger = holder_of_other_terminals();
    for (script, goes_on) in [
        (format!("setsid {program} </dev/null >/dev/null 2>&1 &\n{wait}"), true),
        (format!("nohup {program} </dev/null >/dev/null 2>&1 &\n{wait}"), false),
        (format!("setsid {program} &\n{wait}"), false),
    ] {
        let _ = fs::remove_file(&file);
        let (code, said) = on_terminal(&format!("{script}\nexit 5"));
        assert_eq!(code, Some(5), "{script}: {said}");
        let pid = pid_in(&file);
        assert_eq!(is_running(pid), goes_on, "{script}");
        send(pid, Signal::SIGKILL);
    }
    if let Some(stranger) = &mut stranger {
        assert_eq!(stranger.try_wait().expect("can be asked"), None, "terminals of a container have the same names and are others");
        stranger.kill().expect("ends");
        stranger.wait().expect("ended");
    }
    // Its output is a full disk, and its input a terminal: it ends as where a terminal is gone.
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("there is /dev/full");
    let mut command = cluster.command(&["exec", "terminal", "-t", "--", "sh", "-c", "echo out; exec sleep 4713"]);
    let ran = command.stdin(Stdio::from(pty.slave)).stdout(full).output().expect("runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.code() == Some(129) && said.contains("cannot write the output: the disk is full"), "{:?} {said}", ran.status);
}
