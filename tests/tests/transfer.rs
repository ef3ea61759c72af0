//! `upload` and `download`, from the command line.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cloudtik_tests::{Cluster, until};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A folder of the test's own, here and on the nodes, which are on this machine.
fn folder(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.state().join(name);
    fs::create_dir_all(&folder).expect("makes");
    folder
}

/// Everything below a folder, hidden files too.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("reads").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().expect("a type").is_dir() {
            found.extend(below(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")));
        }
        found.push(name);
    }
    found.sort();
    found
}

#[test]
fn copies_are_named_as_cp_names_them() {
    let cluster = Cluster::new("named", "[workers.default]\nmin = 0");
    cluster.up();
    let (here, there) = (folder(&cluster, "here"), folder(&cluster, "there"));
    fs::write(here.join("a.txt"), "a").expect("writes");
    fs::create_dir_all(here.join("data/empty")).expect("makes");
    fs::write(here.join("data/b.txt"), "b").expect("writes");
    // Both ways: the same rules hold with the ends exchanged.
    for command in ["upload", "download"] {
        let copy = |from: &str, to: &str| cluster.run(&[command, "named", &text(&here.join(from)), &format!("{}/{to}", text(&there))]);
        copy("a.txt", "new.txt").ok();
        assert_eq!(below(&there), ["new.txt"], "{command}: a new name is a file's name");
        copy("a.txt", "new.txt").ok();
        copy("a.txt", "").ok();
        assert_eq!(below(&there), ["a.txt", "new.txt"], "{command}: into a folder that is there");
        copy("a.txt", "deep/er/").ok();
        assert_eq!(fs::read_to_string(there.join("deep/er/a.txt")).expect("reads"), "a", "{command}: a slash says that it is a folder");
        copy("data", "copy").ok();
        assert_eq!(below(&there.join("copy")), ["b.txt", "empty"], "{command}: a folder under a new name");
        copy("data", "copy").ok();
        assert_eq!(
            below(&there.join("copy")),
            ["b.txt", "data", "data/b.txt", "data/empty", "empty"],
            "{command}: and into one that is there"
        );
        fs::write(there.join("copy/data/own.txt"), "own").expect("writes");
        let ran = copy("data", "copy").ok();
        assert_eq!(below(&there.join("copy/data")), ["b.txt", "empty", "own.txt"], "{command}: what is there stays");
        assert!(ran.err.contains(&text(&there.join("copy/data"))), "{command} says where it is: {}", ran.err);
        let help = cluster.run(&[command, "--help"]).ok().out;
        assert!(help.contains("as by \"cp -r\"") && help.contains("symbolic link"), "{help}");
        let ran = copy("data", "new.txt");
        assert!(ran.code == 1 && ran.err.contains("cannot replace the file"), "{command}: {ran:?}");
        fs::create_dir_all(there.join("taken/a.txt")).expect("makes");
        let ran = copy("a.txt", "taken");
        assert!(ran.code == 1 && ran.err.contains("cannot replace the folder"), "{command}: {ran:?}");
        let ran = cluster.run(&[command, "named", &text(&here.join("a.txt")), &text(&there.join("json.txt")), "-o", "json"]).ok();
        let document: serde_json::Value = serde_json::from_str(&ran.out).expect("a document");
        assert!(document["to"].as_str().is_some_and(|to| to.ends_with("/there/json.txt")), "{document}");
        fs::remove_dir_all(&there).expect("removes");
        fs::create_dir_all(&there).expect("makes");
    }
}

#[test]
fn a_link_that_is_named_is_followed_and_links_inside_folders_are_kept() {
    let cluster = Cluster::new("links", "[workers.default]\nmin = 0");
    cluster.up();
    let (here, there) = (folder(&cluster, "here"), folder(&cluster, "there"));
    fs::create_dir(here.join("logs")).expect("makes");
    fs::write(here.join("logs/app-2.log"), "two").expect("writes");
    symlink("app-2.log", here.join("logs/current.log")).expect("links");
    symlink("logs", here.join("latest")).expect("links");
    symlink("nowhere", here.join("dangling")).expect("links");
    for command in ["upload", "download"] {
        let copy = |from: &str, to: &str| cluster.run(&[command, "links", &text(&here.join(from)), &format!("{}/{to}", text(&there))]);
        copy("logs/current.log", "").ok();
        assert!(!there.join("current.log").is_symlink());
        assert_eq!(fs::read_to_string(there.join("current.log")).expect("reads"), "two", "{command}");
        copy("latest", "").ok();
        assert!(there.join("latest").is_dir() && !there.join("latest").is_symlink(), "{command}");
        assert_eq!(fs::read_link(there.join("latest/current.log")).expect("a link"), Path::new("app-2.log"), "{command}");
        let ran = copy("dangling", "");
        assert!(ran.code == 4 && ran.err.contains("dangling"), "{command}: {ran:?}");
        // A file is written through a link that stands at its place.
        fs::write(there.join("real"), "old").expect("writes");
        symlink("real", there.join("alias")).expect("links");
        copy("logs/app-2.log", "alias").ok();
        assert!(there.join("alias").is_symlink(), "{command}");
        assert_eq!(fs::read_to_string(there.join("real")).expect("reads"), "two", "{command}");
        fs::remove_dir_all(&there).expect("removes");
        fs::create_dir_all(&there).expect("makes");
    }
}

#[test]
fn a_log_that_grows_is_copied_as_it_was_at_the_start() {
    let cluster = Cluster::new("growing", "[workers.default]\nmin = 0");
    cluster.up();
    let (here, there) = (folder(&cluster, "here"), folder(&cluster, "there"));
    let log = here.join("live.log");
    let line = "a line of a log that grows all the time\n".repeat(1000);
    fs::write(&log, line.repeat(800)).expect("writes");
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, path) = (stop.clone(), log.clone());
    let writer = std::thread::spawn(move || {
        let mut log = fs::OpenOptions::new().append(true).open(path).expect("opens");
        while !stopped.load(Ordering::Relaxed) {
            log.write_all(b"a line of a log that grows all the time\n").expect("writes");
            std::thread::yield_now();
        }
    });
    for command in ["upload", "download"] {
        for (from, to) in [(&log, there.join(format!("{command}.log"))), (&here, there.join(command))] {
            let before = fs::metadata(&log).expect("there").len();
            cluster.run(&[command, "growing", &text(from), &text(&to)]).ok();
            let after = fs::metadata(&log).expect("there").len();
            let copied = fs::metadata(if to.is_dir() { to.join("live.log") } else { to.clone() }).expect("there").len();
            assert!((before..=after).contains(&copied) && after > before, "{command}: {before} {copied} {after}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("ends");
}

/// A command that may not read what its user may not, even if root runs it.
fn as_ordinary(command: &Command) -> Command {
    let mut ordinary = Command::new("setpriv");
    if nix::unistd::Uid::effective().is_root() {
        ordinary.arg("--bounding-set=-dac_override,-dac_read_search");
    }
    ordinary.arg(command.get_program()).args(command.get_args());
    ordinary.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    ordinary
}

#[test]
fn an_entry_that_cannot_be_read_is_named_at_once_and_nothing_is_copied() {
    let cluster = Cluster::new("unreadable", "[workers.default]\nmin = 0");
    let file = text(&cluster.file);
    let up = as_ordinary(&cluster.command(&["up", &file, "--yes"])).output().expect("runs");
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let (here, there) = (folder(&cluster, "here"), folder(&cluster, "there"));
    fs::create_dir(here.join("inner")).expect("makes");
    fs::write(here.join("inner/a-large"), vec![7; 8 << 20]).expect("writes");
    fs::write(here.join("inner/secret"), "secret").expect("writes");
    fs::set_permissions(here.join("inner/secret"), fs::Permissions::from_mode(0o000)).expect("sets");
    fs::create_dir(here.join("closed")).expect("makes");
    fs::set_permissions(here.join("closed"), fs::Permissions::from_mode(0o000)).expect("sets");
    for command in ["upload", "download"] {
        for (from, named) in [("inner", "secret"), ("inner/secret", "secret"), ("closed", "closed")] {
            let begun = Instant::now();
            let ran = as_ordinary(&cluster.command(&[command, "unreadable", &text(&here.join(from)), &text(&there)])).output();
            let ran = ran.expect("runs");
            let said = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.code() == Some(1) && said.contains(named), "{command} {from}: {said}");
            assert!(said.to_lowercase().contains("permission denied"), "{command} {from}: {said}");
            assert!(begun.elapsed() < Duration::from_secs(3), "{command} {from}: {:?}", begun.elapsed());
            // The other end may still be about to remove what it had.
            let left = format!("{command} {from}: nothing of it");
            until(&left, Duration::from_secs(10), || {
                let left = below(&there);
                (!left.is_empty()).then(|| eprintln!("{left:?}"));
                left.is_empty().then_some(())
            });
        }
    }
    fs::set_permissions(here.join("closed"), fs::Permissions::from_mode(0o700)).expect("sets");
}

#[test]
fn what_is_no_file_is_left_out_of_a_folder_and_told() {
    let cluster = Cluster::new("special", "[workers.default]\nmin = 0");
    cluster.up();
    let (here, there) = (folder(&cluster, "here"), folder(&cluster, "there"));
    nix::unistd::mkfifo(&here.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("makes");
    fs::write(here.join("a.txt"), "a").expect("writes");
    let ran = cluster.run(&["upload", "special", &text(&here), &text(&there), "-o", "json"]).ok();
    let document: serde_json::Value = serde_json::from_str(&ran.out).expect("a document");
    assert!(document["notes"][0].as_str().is_some_and(|note| note.ends_with("pipe was not copied: it is a named pipe")), "{document}");
    assert_eq!(below(&there), ["here", "here/a.txt"]);
    for command in ["upload", "download"] {
        let ran = cluster.run(&[command, "special", &text(&here.join("pipe")), &text(&there)]);
        assert!(ran.code != 0 && ran.err.contains("pipe is neither a file nor a folder"), "{command}: {ran:?}");
    }
}
