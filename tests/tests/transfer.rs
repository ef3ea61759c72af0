//! `upload` and `download`, from the command line.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cloudtik_tests::{Cluster, skipped, until};

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

/// Everything below a folder, byte for byte, with what files hold and links lead to.
fn exactly_below(folder: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("reads").flatten() {
        let (name, path) = (entry.file_name().as_bytes().to_vec(), entry.path());
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.extend(exactly_below(&path).into_iter().map(|(inner, content)| ([&name[..], b"/", &inner[..]].concat(), content)));
        } else if kind.is_symlink() {
            found.push((name, fs::read_link(&path).expect("a link").as_os_str().as_bytes().to_vec()));
        } else {
            found.push((name, fs::read(&path).expect("reads")));
        }
    }
    found.sort();
    found
}

#[test]
fn names_that_are_not_utf_8_are_carried_byte_for_byte() {
    let cluster = Cluster::new("bytes", "[workers.default]\nmin = 0");
    cluster.up();
    let (here, there) = (folder(&cluster, "here"), folder(&cluster, "there"));
    let odd = |name: &[u8]| OsStr::from_bytes(name).to_owned();
    let (file, data) = (here.join(odd(b"caf\xe9 $(x) %s\\n.txt")), here.join(odd(b"d\xff\n")));
    fs::write(&file, "latin").expect("writes");
    fs::create_dir(&data).expect("makes");
    fs::write(data.join(odd(b"\xfe")), "inner").expect("writes");
    symlink(odd(b"\xfe"), data.join(odd(b"link\xfd"))).expect("links");
    let mut expected = vec![
        (b"caf\xe9 $(x) %s\\n.txt".to_vec(), b"latin".to_vec()),
        (b"d\xff\n/\xfe".to_vec(), b"inner".to_vec()),
        (b"d\xff\n/link\xfd".to_vec(), b"\xfe".to_vec()),
        (b"new\xe9/\xfe".to_vec(), b"inner".to_vec()),
        (b"new\xe9/link\xfd".to_vec(), b"\xfe".to_vec()),
    ];
    expected.sort();
    for command in ["upload", "download"] {
        for (from, to) in [(&file, there.clone()), (&data, there.clone()), (&data, there.join(odd(b"new\xe9")))] {
            let ran = cluster.command(&[command, "bytes"]).arg(from).arg(to).output().expect("runs");
            assert!(ran.status.success(), "{command}: {ran:?}");
        }
        assert_eq!(exactly_below(&there), expected, "{command}");
        fs::remove_dir_all(&there).expect("removes");
        fs::create_dir_all(&there).expect("makes");
    }
    // A line that cannot be understood is an error, whatever its bytes.
    let ran = cluster.command(&["upload", "--no-such"]).arg(&file).output().expect("runs");
    assert_eq!(ran.status.code(), Some(2), "{ran:?}");
}

/// The user id of `nobody`.
const NOBODY: u32 = 65534;

fn as_user(command: &Command) -> Command {
    let mut ordinary = Command::new("setpriv");
    if nix::unistd::geteuid().is_root() {
        ordinary.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()]);
    }
    ordinary.arg(command.get_program()).args(command.get_args());
    ordinary.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    ordinary
}

fn nobody_can_run() -> bool {
    let mut version = Command::new(cloudtik_tests::programs().join("cloudtik"));
    as_user(version.arg("version")).output().is_ok_and(|ran| ran.status.success())
}

/// A command of an ordinary user whose cluster this is: GNU tar does otherwise for root, whatever root may do.
fn as_nobody(cluster: &Cluster, command: &Command) -> Command {
    if nix::unistd::geteuid().is_root() {
        let own = format!("{NOBODY}:{NOBODY}");
        let owned = Command::new("chown").args(["-hR", &own]).arg(cluster.file.parent().expect("it lies in a directory")).status();
        assert!(owned.expect("runs").success());
    }
    as_user(command)
}

/// A cluster without workers that is an ordinary user's.
fn cluster_of_nobody(name: &str) -> Option<Cluster> {
    if !nobody_can_run() {
        skipped("copies of an ordinary user need programs that every user may run");
        return None;
    }
    let cluster = Cluster::new(name, "[workers.default]\nmin = 0");
    let up = as_nobody(&cluster, &cluster.command(&["up", &text(&cluster.file), "--yes"])).output().expect("runs");
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    Some(cluster)
}

/// Lets folders be removed again.
fn open_again(path: &Path) {
    if path.is_dir() && !path.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("sets");
        fs::read_dir(path).expect("reads").flatten().for_each(|entry| open_again(&entry.path()));
    }
}

#[test]
fn folders_that_may_not_be_written_are_copied_as_they_are() {
    let Some(cluster) = cluster_of_nobody("closed") else { return };
    let (here, there) = (folder(&cluster, "here"), folder(&cluster, "there"));
    let data = here.join("data");
    fs::create_dir_all(data.join("inner")).expect("makes");
    fs::write(data.join("inner/a"), "a").expect("writes");
    let modes = [("inner/a", 0o444), ("inner", 0o555), ("", 0o555)];
    for (path, mode) in modes {
        fs::set_permissions(data.join(path), fs::Permissions::from_mode(mode)).expect("sets");
    }
    for command in ["upload", "download"] {
        let copy = |to: &Path| {
            let ran = as_nobody(&cluster, &cluster.command(&[command, "closed", &text(&data), &text(to)])).output().expect("runs");
            (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
        };
        // Under a name of its own, into a folder, and where its parents are missing.
        for (to, copied) in [("copy", "copy"), ("", "data"), ("deep/er/copy", "deep/er/copy")] {
            let (code, said) = copy(&there.join(to));
            assert_eq!(code, Some(0), "{command} {to}: {said}");
            for (path, mode) in modes {
                let copied = there.join(copied).join(path);
                assert_eq!(fs::metadata(&copied).expect("there").permissions().mode() & 0o777, mode, "{command}: {}", copied.display());
            }
        }
        // What is there already may not be written; GNU tar does it all the same, and leaves the folder as it was.
        let (code, said) = copy(&there);
        let inner = there.join("data/inner");
        assert_eq!(fs::metadata(&inner).expect("there").permissions().mode() & 0o777, 0o555, "{command}");
        let is_told = said.contains(&format!("cannot write {}/a: ", inner.display())) && said.to_lowercase().contains("permission denied");
        assert!(if code == Some(0) { command == "upload" } else { code == Some(1) && is_told }, "{command}: {code:?} {said}");
        let left = below(&there);
        assert!(!left.iter().any(|name| name.contains(".cloudtik")), "{command}: {left:?}");
        open_again(&there);
        fs::remove_dir_all(&there).expect("removes");
        fs::create_dir_all(&there).expect("makes");
    }
    open_again(&data);
}

#[test]
fn what_cannot_be_copied_says_why_and_leaves_nothing() {
    let Some(cluster) = cluster_of_nobody("why") else { return };
    let (here, there) = (folder(&cluster, "here"), folder(&cluster, "there"));
    fs::write(here.join("file"), vec![7; 4 << 20]).expect("writes");
    fs::create_dir_all(here.join("data/closed")).expect("makes");
    fs::write(here.join("data/closed/big"), vec![7; 4 << 20]).expect("writes");
    for (path, mode) in [("data/closed", 0o555), ("data", 0o555)] {
        fs::set_permissions(here.join(path), fs::Permissions::from_mode(mode)).expect("sets");
    }
    fs::create_dir_all(there.join("closed")).expect("makes");
    fs::write(there.join("closed/secret"), "secret").expect("writes");
    fs::write(there.join("plain"), "").expect("writes");
    fs::set_permissions(there.join("closed"), fs::Permissions::from_mode(0o555)).expect("sets");
    fs::create_dir_all(here.join("shut")).expect("makes");
    fs::write(here.join("shut/secret"), "secret").expect("writes");
    fs::set_permissions(here.join("shut"), fs::Permissions::from_mode(0o000)).expect("sets");
    let before = below(&there);
    for command in ["upload", "download"] {
        let copy = |from: &str, to: &str| {
            let ran = as_nobody(&cluster, &cluster.command(&[command, "why", from, to])).output().expect("runs");
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            let raw = ["mv:", "tar:", "mktemp:", "mkdir:", "stat:", "sh:"].into_iter().find(|tool| said.contains(tool));
            assert_eq!(raw, None, "{command} {from} {to}: {said}");
            assert_eq!(below(&there), before, "{command} {from} {to}: nothing is left");
            (ran.status.code(), said)
        };
        for from in ["file", "data"] {
            let from = text(&here.join(from));
            for (from, to) in [(from.as_str(), ""), ("", from.as_str())] {
                let (code, said) = copy(from, to);
                assert!(code == Some(2) && (said.contains("a path is empty") || said.contains("a value is required")), "{command}: {said}");
            }
            for to in ["closed", "closed/new", "closed/new/er/", "plain/new", "plain/new/er"] {
                let (code, said) = copy(&from, &text(&there.join(to)));
                // Of a file in the way, systems say either.
                let why = if to.starts_with("closed") { ["permission denied"; 2] } else { ["not a directory", "file exists"] };
                let is_said = said.contains("cannot ") && why.iter().any(|why| said.to_lowercase().contains(why));
                assert!(code == Some(1) && is_said, "{command} {from} {to}: {said}");
            }
        }
        for from in ["shut/secret", "shut"] {
            let (code, said) = copy(&text(&here.join(from)), &text(&there.join("new/")));
            let why = format!("cannot read {}: ", text(&here.join(from)));
            assert!(code == Some(1) && said.contains(&why) && said.to_lowercase().contains("permission denied"), "{command}: {said}");
        }
    }
    full_disks(&cluster, &here, &there);
    fs::set_permissions(there.join("closed"), fs::Permissions::from_mode(0o700)).expect("sets");
    for path in ["shut", "data"] {
        fs::set_permissions(here.join(path), fs::Permissions::from_mode(0o700)).expect("sets");
        open_again(&here.join(path));
    }
}

/// A disk with room for a part of what is copied.
fn full_disks(cluster: &Cluster, here: &Path, there: &Path) {
    let small = there.join("small");
    fs::create_dir(&small).expect("makes");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small).output().expect("runs");
    if !mounted.status.success() {
        return skipped("copies to a full disk need the right to mount (root)");
    }
    for command in ["upload", "download"] {
        for (from, named) in [("file", "file"), ("data", "data"), ("file", "new/er/file")] {
            let to = small.join(named);
            let ran = as_nobody(cluster, &cluster.command(&[command, "why", &text(&here.join(from)), &text(&to)])).output().expect("runs");
            let said = String::from_utf8_lossy(&ran.stderr);
            let is_said = said.contains("cannot write ") && said.contains(": the disk is full") && said.contains("free space");
            assert!(ran.status.code() == Some(1) && is_said, "{command} {from}: {said}");
            assert_eq!(below(&small), Vec::<String>::new(), "{command} {from}: nothing is left");
        }
    }
    let _ = Command::new("umount").arg("-l").arg(&small).status();
}
