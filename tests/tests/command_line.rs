//! What a person types and reads: names, times, sizes, waiting, files to start from.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use cloudtik_model::status::Status;
use cloudtik_tests::{Cluster, Ran, repository, until};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Runs with something to read.
fn fed(mut command: Command, input: &[u8]) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(input).expect("writes");
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr), took: Duration::ZERO }
}

/// Runs on a terminal of this kind; returns everything that was written to it.
fn on_terminal(mut command: Command, term: &str) -> String {
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    // What the command starts must not keep the terminal open.
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("closed on exec");
    }
    let end = || Stdio::from(pty.slave.try_clone().expect("clones"));
    command.env_remove("NO_COLOR").env("TERM", term).stdin(end()).stdout(end()).stderr(end());
    let mut child = command.spawn().expect("runs");
    drop((command, pty.slave));
    let mut written = Vec::new();
    // A terminal whose last writer is gone ends with an error.
    let _ = fs::File::from(pty.master).read_to_end(&mut written);
    child.wait().expect("ends");
    String::from_utf8_lossy(&written).into_owned()
}

fn web_runtime() -> String {
    format!("[runtimes.webserver]\npath = \"{}\"", repository().join("examples/runtimes/webserver").display())
}

#[test]
fn a_terminal_without_codes_gets_none() {
    let cluster = Cluster::new("dumb", "[head]\ncpus = 1");
    let file = cluster.file.display().to_string();
    let fails = ["status", "dunb"];
    assert!(on_terminal(cluster.command(&fails), "xterm").contains("\x1b["), "others are written to in colour");
    let said = on_terminal(cluster.command(&fails), "dumb");
    assert!(said.contains("error:") && !said.contains('\x1b'), "{said:?}");
    // Progress, questions, tables, help and problems of files.
    for arguments in [&["up", &file, "--yes"][..], &["status", "dumb"], &["up", "--help"], &["nodes"], &["down", "dumb", "--yes"]] {
        let said = on_terminal(cluster.command(arguments), "dumb");
        assert!(!said.is_empty() && !said.contains('\x1b'), "{arguments:?}: {said:?}");
    }
    fs::write(&cluster.file, "[cluster]\nnmae = 1\n").expect("writes");
    let said = on_terminal(cluster.command(&["up", &file]), "dumb");
    assert!(said.contains("nmae") && !said.contains('\x1b'), "{said:?}");
    // What is written to a file has none, whatever standard error is.
    cluster.assert_nothing_left();
}

#[test]
fn a_status_needs_no_name_fits_80_columns_and_shows_consoles() {
    let cluster = Cluster::new("only", &format!("[workers.default]\nmin = 1\nmax = 3\nmemory = \"1Gi\"\n{}", web_runtime()));
    let none = cluster.run(&["status"]);
    assert_eq!(none.code, 4, "{none:?}");
    cluster.up();
    let shown = cluster.command(&["status"]).env("COLUMNS", "80").output().expect("runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("2/2 nodes ready") && shown.contains("Web server on w1: http://127."), "{shown}");
    assert!(shown.contains("LAST HEARTBEAT") && shown.contains("AGE") && !shown.contains("SINCE") && !shown.contains("HEARD"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    // Where there is room, or no terminal, nothing is left out.
    assert!(cluster.run(&["nodes"]).ok().out.lines().any(|line| line.starts_with("w1") && line.ends_with("webserver")));
    for command in ["info", "runtimes", "list", "events", "why", "requests", "logs", "dump"] {
        cluster.run(&[command]).ok();
    }
    assert_eq!(cluster.run(&["exec", "--", "true"]).ok().out, "");
    // A name that is not there is none to guess.
    let wrong = cluster.run(&["status", "onyl"]);
    assert!(wrong.code == 4 && wrong.err.contains("did you mean `only`?"), "{wrong:?}");

    // Times: local with their zone for people, UTC for programs; TZ is honoured.
    let printed = |zone: &str, format: &str| {
        let mut command = cluster.command(&["events", "-o", format]);
        String::from_utf8(command.env("TZ", zone).output().expect("runs").stdout).expect("text")
    };
    let first: serde_json::Value = serde_json::from_str(printed("Asia/Tokyo", "json").lines().next().expect("an event")).expect("JSON");
    let at = first["at"].as_str().expect("text");
    let (day, time) = at.split_once('T').expect("RFC 3339");
    let time = time.strip_suffix('Z').expect("UTC");
    let in_utc = printed("UTC", "text");
    assert!(in_utc.lines().next().expect("an event").contains(&format!("{day} {time} UTC")), "{at}: {in_utc}");
    let hour: u32 = time[..2].parse().expect("an hour");
    let in_tokyo = printed("Asia/Tokyo", "text");
    assert!(in_tokyo.lines().next().expect("an event").contains(&format!(" {:02}{} JST", (hour + 9) % 24, &time[2..])), "{at}: {in_tokyo}");
    let status: serde_json::Value = serde_json::from_str(&cluster.run(&["status", "-o", "json"]).ok().out).expect("JSON");
    assert!(status["head"]["started"].as_str().is_some_and(|at| at.ends_with('Z')), "{status}");
    let dump: serde_json::Value = serde_json::from_str(&cluster.run(&["dump"]).ok().out).expect("JSON");
    assert!(dump["events"][0]["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{}", dump["events"][0]);
}

#[test]
fn scale_and_drain_wait_and_a_watch_follows_them() {
    let cluster = Cluster::new("waits", "[workers.default]\nmin = 1\nmax = 3");
    cluster.up();
    let mut watch = cluster.command(&["status", "-w", "-o", "json"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
    let watched = std::thread::spawn({
        let lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
        move || lines.map_while(Result::ok).map(|line| serde_json::from_str(&line).expect("a status a line")).collect::<Vec<Status>>()
    });
    let workers = || cluster.status().nodes.iter().filter(|n| n.kind == "worker").map(|n| n.state.clone()).collect::<Vec<_>>();

    cluster.run(&["scale", "--workers", "3", "--wait", "--timeout", "1m"]).ok();
    assert_eq!(workers(), ["ready"; 3], "it waited for them");
    cluster.run(&["scale", "waits", "--workers", "2", "--wait", "--timeout", "60"]).ok();
    assert_eq!(workers(), ["ready"; 2], "it waited for the third to go");
    let before = cluster.node("w1").generation;
    cluster.run(&["drain", "waits", "w1", "--yes", "--wait", "--timeout", "1m30s"]).ok();
    assert!(cluster.status().nodes.iter().all(|n| n.id.as_str() != "w1" || n.generation > before), "it waited for the node to go");

    // What cannot come is told when the time is over.
    cluster.run(&["hold", "waits"]).ok();
    let waited = cluster.run(&["scale", "waits", "--workers", "3", "--wait", "--timeout", "1s"]);
    assert!(waited.code == 6 && waited.err.contains("took longer than 1s"), "{waited:?}");
    cluster.run(&["resume", "waits"]).ok();
    for bad in ["5 minutes", "1.5h", "-1"] {
        assert_eq!(cluster.run(&["status", "waits", "--wait", &format!("--timeout={bad}")]).code, 2, "{bad}");
    }

    cluster.down();
    assert!(until("the end of the watch", Duration::from_secs(10), || watch.try_wait().expect("waits")).success());
    let seen = watched.join().expect("statuses");
    assert!(seen.iter().any(|status| status.nodes.len() == 4 && status.ready), "it saw three workers: {} statuses", seen.len());

    // A script need not know whether it is there.
    assert_eq!(cluster.run(&["down", "waits", "--yes"]).code, 4);
    cluster.run(&["down", "waits", "--yes", "--if-exists"]).ok();
}

#[test]
fn a_file_comes_from_standard_input_and_workspaces_keep_equal_names_apart() {
    let cluster = Cluster::new("twin", "[head]\ncpus = 1");
    cluster.up();
    let text = "[cluster]\nname = \"twin\"\nworkspace = \"other\"\n[provider]\nkind = \"local\"\n[head]\nmemory = \"1G\"\n";
    fed(cluster.command(&["up", "-", "--yes", "--timeout", "5m"]), text.as_bytes()).ok();
    let broken = fed(cluster.command(&["up", "-", "--plan"]), b"[cluster]\nnmae = \"twin\"\n");
    assert!(broken.code == 3 && broken.err.contains("standard input:2:1"), "{broken:?}");

    let list: serde_json::Value = serde_json::from_str(&cluster.run(&["list", "-o", "json"]).ok().out).expect("JSON");
    let found: Vec<(&str, &str)> =
        list.as_array().expect("a list").iter().filter_map(|c| Some((c["cluster"].as_str()?, c["workspace"].as_str()?))).collect();
    assert_eq!(found, [("twin", "default"), ("twin", "other")]);
    assert!(cluster.run(&["list"]).ok().out.starts_with("CLUSTER  WORKSPACE  "));
    for ambiguous in [&["status", "twin"][..], &["status"], &["down", "twin", "--yes"], &["exec", "twin", "--", "true"]] {
        let ran = cluster.run(ambiguous);
        assert!(ran.code == 2, "{ambiguous:?}: {ran:?}");
    }
    assert!(cluster.run(&["nodes", "twin"]).err.contains("--workspace default"));
    let other: Status =
        serde_json::from_str(&cluster.run(&["status", "twin", "--workspace", "other", "-o", "json"]).ok().out).expect("JSON");
    let own: Status = serde_json::from_str(&cluster.run(&["status", "--workspace", "default", "-o", "json"]).ok().out).expect("JSON");
    assert_ne!(other.head.address, own.head.address);
    assert_eq!(other.nodes[0].memory, Some(1_000_000_000), "sizes are read in every usual form");
    cluster.run(&["why", "twin", "head", "--workspace", "other"]).ok();
    cluster.run(&["down", "twin", "--workspace", "other", "--yes"]).ok();
    cluster.run(&["status", "twin"]).ok();
}

#[test]
fn files_to_start_from_are_written_and_checked() {
    let cluster = Cluster::new("unused", "");
    let directory = cluster.state();
    fs::create_dir_all(&directory).expect("makes it");
    let run = |arguments: &[&str]| {
        let output = cluster.command(arguments).current_dir(&directory).output().expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr), took: Duration::ZERO }
    };
    run(&["init", "--name", "first"]).ok();
    let written = fs::read_to_string(directory.join("cluster.toml")).expect("it is written");
    assert!(written.contains("name = \"first\"") && written.contains("# [runtimes.spark]"), "{written}");
    let valid = run(&["validate", "cluster.toml"]).ok();
    assert!(valid.out.contains("cluster.toml is valid: cluster first"), "{}", valid.out);
    assert_eq!(run(&["init", "-"]).ok().out, written.replace("first", "demo"));
    // What is there is not overwritten, not even through a link to nowhere.
    fs::write(directory.join("mine.toml"), "mine").expect("writes");
    std::os::unix::fs::symlink("nowhere.toml", directory.join("link.toml")).expect("links");
    for name in ["cluster.toml", "mine.toml", "link.toml"] {
        let ran = run(&["init", name]);
        assert!(ran.code == 5 && ran.err.contains("exists already"), "{ran:?}");
    }
    assert_eq!(fs::read_to_string(directory.join("mine.toml")).ok().as_deref(), Some("mine"));
    assert!(!directory.join("nowhere.toml").exists());
    assert_eq!(run(&["init", "no/such/folder.toml"]).code, 1);

    // Every problem of every file at once, with its place, and nothing is created.
    fs::write(directory.join("a.toml"), "[cluster]\nnmae = \"a\"\n[provider]\nkind = \"local\"\n").expect("writes");
    let utf16: Vec<u8> = written.encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(directory.join("b.toml"), [&[0xff, 0xfe], utf16.as_slice()].concat()).expect("writes");
    fs::write(directory.join("c.toml"), b"[cluster]\nname = \"caf\xe9\"\n").expect("writes");
    fs::write(directory.join("d.toml"), "cluster:\n  name: demo\nprovider:\n  kind: local\nworkers:\n  default:\n    min: 1\n")
        .expect("writes");
    for command in ["validate", "up", "runtime render", "status"] {
        for (file, place, says) in
            [("b.toml", "b.toml:1:1", "UTF-16"), ("c.toml", "c.toml:2:12", "Latin-1"), ("d.toml", "d.toml:1:1", "YAML")]
        {
            let arguments: Vec<&str> = command.split(' ').chain([file]).collect();
            let ran = run(&arguments);
            let told = ran.err.contains(place) && ran.err.contains(says) && ran.err.contains("1 problem found");
            assert!(ran.code == 3 && told, "{arguments:?}: {ran:?}");
        }
    }
    let all = run(&["validate", "a.toml", "b.toml", "cluster.toml", "c.toml", "d.toml", "-o", "json"]);
    let document: serde_json::Value = serde_json::from_str(&all.err).expect("a document");
    // What has no end is not read to it, and what is empty has no place.
    let endless = run(&["validate", "/dev/zero"]);
    assert!(endless.code == 3 && endless.err.contains("/dev/zero is larger than 4 MiB"), "{endless:?}");
    let empty = run(&["validate", "-"]);
    assert!(empty.code == 3 && empty.err.contains("standard input is empty"), "{empty:?}");
    // Commands to type are such, whatever the file is called.
    let spaced = run(&["init", "my cluster.toml"]).ok();
    assert!(spaced.err.contains("`cloudtik up 'my cluster.toml'`"), "{spaced:?}");
    // What cannot be read hides no problem of the others.
    let some = run(&["validate", "a.toml", "missing.toml", "."]);
    let told = ["a.toml:2:1", "cannot read missing.toml: ", "cannot read .: it is a folder", "problem"];
    assert!(some.code == 3 && told.iter().all(|told| some.err.contains(told)), "{some:?}");
    let of_file = |name: &str| document["problems"].as_array().expect("problems").iter().filter(|p| p["file"] == name).count();
    assert_eq!((all.code, of_file("b.toml"), of_file("c.toml"), of_file("d.toml")), (3, 1, 1, 1), "{document:#}");
    assert!(of_file("a.toml") >= 1 && of_file("cluster.toml") == 0, "{document:#}");
    // Scenarios and runtimes are read the same way.
    let ran = run(&["simulate", "cluster.toml", "--demand", "b.toml"]);
    assert!(ran.code == 3 && ran.err.contains("UTF-16"), "{ran:?}");
    fs::create_dir(directory.join("web")).expect("makes it");
    fs::copy(directory.join("b.toml"), directory.join("web/runtime.toml")).expect("copies");
    let ran = run(&["runtime", "check", "web"]);
    assert!(ran.code == 3 && ran.err.contains("UTF-16"), "{ran:?}");
    fs::write(directory.join("e.toml"), format!("{written}\n[runtimes.web]\npath = \"web\"\n")).expect("writes");
    let ran = run(&["validate", "e.toml"]);
    assert!(ran.code == 3 && ran.err.contains("runtime.toml") && ran.err.contains("UTF-16"), "{ran:?}");
    assert!(!directory.join("workspaces").exists(), "checking creates nothing");
}
