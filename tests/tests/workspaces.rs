//! Workspaces: made from a file, shown, changed, completed after a kill, and never deleted under a cluster.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cloudtik_tests::{Cluster, repository, send, skipped, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A user's home with the file of the workspace `dev`, and a cluster whose file names that workspace.
fn user(cluster: &str) -> (Cluster, String) {
    let user = Cluster::new(cluster, "workspace = \"dev\"\n[head]\ncpus = 1");
    let file = user.file.with_file_name("dev.toml");
    fs::write(&file, "# Ours.\n[workspace]\nname = \"dev\"\n\n[provider]\nkind = \"local\"\n").expect("writes");
    (user, file.display().to_string())
}

/// What exists below the directory of workspaces, without locks.
fn kept(user: &Cluster) -> Vec<String> {
    let root = user.state().join("workspaces");
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = vec![root.clone()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(&root).expect("below it").display().to_string();
            if !name.ends_with(".lock") {
                found.push(name);
            }
            if path.is_dir() {
                left.push(path);
            }
        }
    }
    found.sort();
    found
}

const COMPLETE: [&str; 3] = ["dev", "dev.toml", "dev/clusters"];

fn document(user: &Cluster, arguments: &[&str]) -> Value {
    let all: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
    serde_json::from_str(&user.run(&all).ok().out).expect("a JSON document")
}

fn state(user: &Cluster, workspace: &str) -> String {
    document(user, &["workspace", "status", workspace])["state"].as_str().expect("a state").to_owned()
}

#[test]
fn a_workspace_is_planned_created_once_shown_and_deleted() {
    let (user, file) = user("unused");
    let plan = user.run(&["workspace", "create", &file, "--plan"]).ok().out;
    assert!(plan.starts_with("dev, provider local:\n  + create directory: ") && plan.ends_with("\n  costs nothing\n"), "{plan}");
    let plan = document(&user, &["workspace", "create", &file, "--plan"]);
    assert_eq!(plan["done"], false);
    assert_eq!(
        (&plan["workspace"], &plan["provider"], &plan["command"], &plan["cost"]),
        (&json!("dev"), &json!("local"), &json!("create"), &json!("free"))
    );
    let resources: Vec<_> =
        plan["changes"].as_array().expect("changes").iter().map(|change| (&change["action"], &change["resource"])).collect();
    assert_eq!(resources, [(&json!("create"), &json!("directory")), (&json!("create"), &json!("clusters"))]);
    assert!(!user.state().exists(), "a plan changes nothing");
    user.run(&["workspace", "status", "dev"]).refused(4, &["there is no workspace dev", "cloudtik workspace create"]);
    user.run(&["workspace", "update", &file]).refused(4, &["there is no workspace dev", "cloudtik workspace create"]);
    assert!(!user.state().exists(), "what is refused changes nothing");

    // What is free is not asked.
    let made = user.run(&["workspace", "create", &file]).ok();
    assert!(made.err.contains("the workspace dev is complete"), "{made:?}");
    assert_eq!(kept(&user), COMPLETE);
    let definition = fs::read_to_string(user.state().join("workspaces/dev.toml")).expect("it is kept");
    assert!(definition.starts_with(&fs::read_to_string(&file).expect("reads")), "{definition}");
    let again = user.run(&["workspace", "create", &file]).ok();
    assert!(again.err.contains("nothing to do") && again.out.is_empty(), "{again:?}");
    let again = document(&user, &["workspace", "create", "dev"]);
    assert_eq!((&again["changes"], &again["done"]), (&json!([]), &json!(true)));

    let shown = user.run(&["workspace", "status"]).ok().out;
    assert!(shown.starts_with("dev: complete, provider local\nclusters: none\n\nRESOURCE   STATE    COST  DESCRIPTION\n"), "{shown}");
    let narrow = user.command(&["workspace", "status", "dev"]).env("COLUMNS", "80").output().expect("runs").stdout;
    assert!(String::from_utf8_lossy(&narrow).lines().all(|line| line.chars().count() <= 80));
    let status = document(&user, &["workspace", "status", &file]);
    assert_eq!((&status["file_differs"], &status["state"], &status["clusters"]), (&json!(false), &json!("complete"), &json!([])));
    let directory = user.state().join("workspaces/dev").canonicalize().expect("it is there").display().to_string();
    assert_eq!(status["resources"][0]["outputs"]["path"], json!(directory));
    let list = document(&user, &["workspace", "list"]);
    assert_eq!(list, json!([{ "workspace": "dev", "provider": "local", "state": "complete", "clusters": [] }]));

    let plan = document(&user, &["workspace", "delete", "dev", "--plan"]);
    assert_eq!(plan["changes"].as_array().map(Vec::len), Some(2));
    user.run(&["workspace", "delete", "dev"]).refused(2, &["--yes", "Delete the workspace dev?"]);
    assert_eq!(kept(&user), COMPLETE);
    user.run(&["workspace", "delete", "dev", "--yes"]).ok();
    assert_eq!(fs::read_dir(user.state().join("workspaces")).expect("it stays").count(), 0, "not even a lock is left");
    user.run(&["workspace", "delete", "dev", "--yes"]).refused(4, &["there is no workspace dev"]);
    user.run(&["workspace", "delete", "dev", "--if-exists"]).ok();
    let gone = user.run(&["workspace", "delete", &file]).ok();
    assert!(gone.err.contains("nothing of it was left"), "{gone:?}");
    assert_eq!(document(&user, &["workspace", "list"]), json!([]));
}

#[test]
fn a_workspace_with_clusters_is_not_deleted() {
    let (user, file) = user("tenant");
    user.run(&["workspace", "create", &file]).ok();
    let up = user.run(&["up", &user.file.display().to_string(), "--yes", "--timeout", "5m"]).ok();
    assert!(!up.err.contains("made the workspace"), "it was there: {up:?}");
    assert_eq!(document(&user, &["workspace", "status", "dev"])["clusters"], json!(["tenant"]));
    assert_eq!(document(&user, &["workspace", "list"])[0]["clusters"], json!(["tenant"]));
    for named in ["dev", &file] {
        let ran = user.run(&["workspace", "delete", named, "--yes"]);
        ran.refused(5, &["the workspace dev is in use by tenant", "`cloudtik down tenant --workspace dev`"]);
    }
    user.run(&["workspace", "delete", "dev", "--plan"]).refused(5, &["in use by tenant"]);
    assert!(user.run(&["status", "tenant"]).code == 0 && state(&user, "dev") == "complete", "nothing was changed");
    user.run(&["down", "tenant", "--yes"]).ok();
    user.run(&["workspace", "delete", &file, "--yes"]).ok();
    assert_eq!(kept(&user), [""; 0]);
}

#[test]
fn up_makes_a_free_workspace_and_remembers_it() {
    let (user, file) = user("first");
    let cluster_file = user.file.display().to_string();
    let up = user.run(&["up", &cluster_file, "--yes", "--timeout", "5m"]).ok();
    assert!(up.err.contains("made the workspace dev"), "{up:?}");
    assert_eq!(state(&user, "dev"), "complete");
    // The file says the same as what `up` made.
    assert!(user.run(&["workspace", "create", &file]).ok().err.contains("nothing to do"));
    assert!(!user.run(&["up", &cluster_file, "--yes"]).ok().err.contains("made the workspace"));
    user.run(&["down", "first", "--yes"]).ok();
    user.run(&["workspace", "delete", "dev", "--yes"]).ok();

    // A workspace of another provider, as another version may have made it.
    user.run(&["workspace", "create", &file]).ok();
    let definition = user.state().join("workspaces/dev.toml");
    let text = fs::read_to_string(&definition).expect("reads").replace("kind = \"local\"", "kind = \"aws\"");
    fs::write(&definition, text).expect("writes");
    for arguments in [&["up", &*cluster_file, "--yes"][..], &["up", &cluster_file, "--plan"], &["workspace", "status", "dev"]] {
        user.run(arguments).refused(3, &["the provider `aws` is not part of this version", "workspaces/dev.toml"]);
    }
    assert_eq!(document(&user, &["workspace", "list"])[0]["state"], "unknown");
}

#[test]
fn what_differs_is_shown_and_put_back() {
    let (user, file) = user("unused");
    user.run(&["workspace", "create", &file]).ok();
    let clusters = user.state().join("workspaces/dev/clusters");
    fs::set_permissions(&clusters, Permissions::from_mode(0o755)).expect("opens it");
    let shown = user.run(&["workspace", "status", "dev"]).ok();
    assert!(shown.out.starts_with("dev: differs, ") && shown.out.contains("\nclusters differs: others may enter it\n"), "{shown:?}");
    let status = document(&user, &["workspace", "status", "dev"]);
    assert_eq!(status["resources"][1]["differences"], json!(["others may enter it"]));
    let plan = user.run(&["workspace", "update", &file, "--plan"]).ok().out;
    assert!(plan.contains("  ~ change clusters: ") && plan.contains("others may enter it"), "{plan}");
    user.run(&["workspace", "update", "dev"]).refused(2, &["Change the workspace dev?"]);
    assert_eq!(state(&user, "dev"), "differs");
    user.run(&["workspace", "update", "dev", "--yes"]).ok();
    assert_eq!(state(&user, "dev"), "complete");

    fs::remove_dir(&clusters).expect("removes");
    assert_eq!(state(&user, "dev"), "incomplete");
    fs::write(&clusters, "mine").expect("writes");
    let failed = user.run(&["workspace", "create", "dev", "--yes"]);
    failed.refused(1, &["step 1 of 1 failed", "`cloudtik workspace create dev` goes on from there"]);
    assert_eq!(fs::read_to_string(&clusters).ok().as_deref(), Some("mine"), "what is in the way stays");
    fs::remove_file(&clusters).expect("removes");
    user.run(&["workspace", "create", "dev"]).ok();
    assert_eq!(kept(&user), COMPLETE);
}

/// Runs a command that is killed as it enters the `number`th call of these names; false if there were not so many.
fn killed_at(user: &Cluster, calls: &str, number: usize, arguments: &[&str]) -> bool {
    let ours = user.command(arguments);
    let mut traced = Command::new("strace");
    let inject = format!("inject={calls}:signal=SIGKILL:when={number}");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject, "--"]);
    traced.arg(ours.get_program()).args(ours.get_args()).envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = traced.stdin(Stdio::null()).output().expect("strace runs");
    assert!(output.status.success() || output.status.code().is_none(), "neither ended well nor killed: {output:?}");
    output.status.code().is_none()
}

#[test]
fn a_command_that_is_killed_anywhere_is_completed_by_the_same_command() {
    let can_trace = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).output().is_ok_and(|output| output.status.success());
    if !can_trace {
        return skipped("kills at every change of a workspace need strace, and the right to trace");
    }
    let (user, file) = user("unused");
    let changes = ["?mkdir,?mkdirat", "?rename,?renameat,?renameat2", "?chmod,?fchmod,?fchmodat", "?unlink,?unlinkat", "?rmdir", "fsync"];
    let (mut of_create, mut of_delete) = (0, 0);
    for calls in changes {
        for number in 1.. {
            let was_killed = killed_at(&user, calls, number, &["workspace", "create", &file]);
            of_create += usize::from(was_killed);
            user.run(&["workspace", "create", &file]).ok();
            let is_complete = kept(&user).iter().filter(|name| !name.ends_with(".tmp")).eq(&COMPLETE);
            assert!(is_complete && state(&user, "dev") == "complete", "killed at {calls} {number}: {:?}", kept(&user));
            user.run(&["workspace", "delete", "dev", "--yes"]).ok();
            fs::remove_dir_all(user.state()).expect("begins anew");
            if !was_killed {
                break;
            }
        }
        for number in 1.. {
            user.run(&["workspace", "create", &file]).ok();
            let was_killed = killed_at(&user, calls, number, &["workspace", "delete", "dev", "--yes"]);
            of_delete += usize::from(was_killed);
            user.run(&["workspace", "delete", "dev", "--yes", "--if-exists"]).ok();
            assert_eq!(kept(&user), [""; 0], "killed at {calls} {number}");
            fs::remove_dir_all(user.state()).expect("begins anew");
            if !was_killed {
                break;
            }
        }
    }
    // Directories, the definition, and their removal.
    assert!(of_create >= 4 && of_delete >= 3, "killed {of_create} and {of_delete} times");
}

#[test]
fn commands_at_once_wait_for_each_other() {
    let (user, file) = user("unused");
    for round in 0..5 {
        let start = || {
            let mut command = user.command(&["workspace", "create", &file]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs")
        };
        let both = [start(), start(), start()];
        for child in both {
            let output = child.wait_with_output().expect("ends");
            assert!(output.status.success(), "round {round}: {output:?}");
        }
        assert_eq!(kept(&user), COMPLETE);
        user.run(&["workspace", "delete", "dev", "--yes"]).ok();
    }

    // Another command has the lock: this one says that it waits, hears Ctrl-C, and has changed nothing.
    let lock = File::create(user.state().join("workspaces/.dev.lock")).expect("makes");
    lock.lock().expect("locks");
    let said = user.file.with_file_name("said");
    let mut waiting = user.command(&["workspace", "create", &file]);
    let mut waiting = waiting.stdout(Stdio::null()).stderr(File::create(&said).expect("makes")).spawn().expect("runs");
    let says = |what: &str| fs::read_to_string(&said).expect("reads").contains(what).then_some(());
    until("a word about the wait", Duration::from_secs(20), || says("another command is changing the workspace dev"));
    send(i32::try_from(waiting.id()).expect("a process id"), Signal::SIGINT);
    let ended = until("the end of the command", Duration::from_secs(20), || waiting.try_wait().expect("waits"));
    assert_eq!(ended.code(), Some(130));
    assert!(says("interrupted; nothing was changed").is_some());
    assert_eq!(kept(&user), [""; 0]);
}

#[test]
fn a_question_is_answered_or_interrupted() {
    let (user, file) = user("unused");
    user.run(&["workspace", "create", &file]).ok();
    // What is typed at the question, or Ctrl-C; the exit status; what is said; and whether the workspace stays.
    for (answer, code, says, stays) in [
        (None, 130, "interrupted; nothing was changed", true),
        (Some("n\n"), 1, "not confirmed", true),
        (Some("y\n"), 0, "is deleted", false),
    ] {
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("clones"));
        let said = user.file.with_file_name("said");
        let mut command = user.command(&["workspace", "delete", "dev"]);
        // Standard error is a file, which can be looked at while the command waits.
        let mut asking = command.stdin(end()).stdout(Stdio::null()).stderr(File::create(&said).expect("makes")).spawn().expect("runs");
        let has_said = |what: &str| fs::read_to_string(&said).expect("reads").contains(what).then_some(());
        until("the question", Duration::from_secs(20), || has_said("Delete the workspace dev? [y/N]"));
        match answer {
            Some(answer) => File::from(pty.master.try_clone().expect("clones")).write_all(answer.as_bytes()).expect("types"),
            None => send(i32::try_from(asking.id()).expect("a process id"), Signal::SIGINT),
        }
        let ended = until("the end of the command", Duration::from_secs(20), || asking.try_wait().expect("waits"));
        assert_eq!(ended.code(), Some(code), "{answer:?}");
        assert!(has_said(says).is_some(), "{answer:?}: {}", fs::read_to_string(&said).expect("reads"));
        assert_eq!(!kept(&user).is_empty(), stays, "{answer:?}");
    }
}

#[test]
fn a_mistake_is_explained_and_changes_nothing() {
    let (user, file) = user("unused");
    let other = user.file.with_file_name("other.toml");
    let with = |text: &str| fs::write(&other, text).expect("writes");
    let other = other.display().to_string();
    with("[workspace]\nnmae = \"dev\"\n[provider]\nkind = \"lokal\"\n[network]\n");
    for command in ["create", "update", "delete", "status"] {
        let ran = user.run(&["workspace", command, &other]);
        ran.refused(3, &["other.toml:2:1", "did you mean `name`?", "did you mean `local`?", "unknown key `network`", "4 problems found"]);
    }
    let ran = user.run(&["workspace", "create", &other, "-o", "json"]);
    let error: Value = serde_json::from_str(&ran.err).expect("a document");
    assert_eq!((&error["exit_code"], error["problems"].as_array().map(Vec::len)), (&json!(3), Some(4)), "{error:#}");
    with("[workspace]\nname = \"dev\"\n[provider]\nkind = \"local\"\nregion = \"north\"\n");
    user.run(&["workspace", "create", &other]).refused(3, &["other.toml:5:1", "unknown key `provider.region`", "1 problem found"]);
    with("[workspace]\nname = \"dev\"\n[provider]\nkind = \"simulated\"\n");
    user.run(&["workspace", "create", &other]).refused(3, &["the provider `simulated` has no workspaces"]);
    let cluster_file = user.file.display().to_string();
    user.run(&["workspace", "create", &cluster_file]).refused(3, &["this is a cluster file, not a workspace file", "1 problem found"]);
    user.run(&["workspace", "create", "/no/such.toml"]).refused(4, &["cannot read /no/such.toml", "docs/workspace-file.md"]);
    user.run(&["workspace", "create", "dev"]).refused(4, &["there is no workspace dev"]);
    assert!(!user.state().exists(), "nothing was made");

    user.run(&["workspace", "create", &file]).ok();
    user.run(&["workspace", "status", "dve"]).refused(4, &["there is no workspace dve", "did you mean `dev`?"]);
    user.run(&["workspace", "delete", "prod", "--yes"]).refused(4, &["there is no workspace prod", "there is: dev"]);
    with("[workspace]\nname = \"test\"\n[provider]\nkind = \"local\"\n");
    user.run(&["workspace", "create", &other]).ok();
    user.run(&["workspace", "status"]).refused(2, &["there are 2 workspaces", "dev, test"]);
    // The definition is all that says whose a workspace is.
    fs::remove_file(user.state().join("workspaces/dev.toml")).expect("removes");
    user.run(&["workspace", "delete", "dev", "--yes"]).refused(4, &["its definition is missing"]);
    user.run(&["workspace", "delete", &file, "--yes"]).ok();
    user.run(&["workspace", "delete", "test", "--yes"]).ok();
    assert_eq!(kept(&user), [""; 0]);
}

#[test]
fn names_are_completed_and_the_example_is_valid() {
    let (user, file) = user("unused");
    user.run(&["workspace", "create", &file]).ok();
    for command in ["create", "update", "delete", "status"] {
        let mut asked = user.command(&["--", "cloudtik", "workspace", command, "d"]);
        let asked = asked.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "3").env("_CLAP_IFS", "\n").current_dir(Path::new("/"));
        let offered = String::from_utf8(asked.output().expect("runs").stdout).expect("UTF-8");
        assert!(offered.lines().any(|name| name == "dev"), "{command}: {offered:?}");
    }
    let example = repository().join("examples/workspace.toml").display().to_string();
    let plan = document(&user, &["workspace", "create", &example, "--plan"]);
    assert_eq!(plan["provider"], "local", "{plan}");
    // A file may be piped in.
    let mut piped = user.command(&["workspace", "create", "-", "-o", "json"]);
    let output = piped.stdin(File::open(&example).expect("opens")).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    let made: Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!((&made["workspace"], &made["done"]), (&plan["workspace"], &json!(true)));
}
