//! A full disk and a state directory that cannot be written: a clear error, and nothing is lost.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cloudtik_model::job::{Job, JobEnd};
use cloudtik_tests::{Cluster, skipped, until};

/// A file system of its own with little room, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// None, said loudly, where this user may not mount.
    fn mount(at: &'a Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("makes the directory");
        let options = format!("size={size},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        if mounted.is_ok_and(|o| o.status.success()) {
            return Some(Self(at));
        }
        skipped("a full disk needs the right to mount (root)");
        None
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0).status().expect("mount runs").success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let cluster = Cluster::new("full", "[workers.default]\nmin = 1\nmax = 3");
    let state = cluster.state();
    let Some(disk) = SmallDisk::mount(&state, "16k") else { return };
    let file = cluster.file.display().to_string();
    let ran = cluster.run(&["up", &file, "--timeout", "5"]);
    assert!(ran.code != 0 && ran.err.contains("the disk is full"), "{ran:?}");

    // With room, the same command goes on from there.
    // Programs with what debuggers need are large, and another file system shares none.
    disk.resize("400m");
    cluster.up();
    let before = cluster.status();

    // Full while it runs: what cannot be stored is not acknowledged.
    let filler = state.join("filler");
    let mut out = fs::File::create(&filler).expect("creates");
    while out.write_all(&[0; 64 << 10]).is_ok() {}
    while out.write_all(&[0; 512]).is_ok() {}
    drop(out);
    let refused = cluster.run(&["scale", "full", "--workers", "3"]);
    let acknowledged = refused.code == 0;
    assert!(acknowledged || refused.err.contains("the disk is full") || refused.err.contains("does not answer"), "{refused:?}");
    // What it only has in mind is gone with it.
    for (pid, _) in cluster.processes().iter().filter(|(_, line)| line.contains("cloudtik-head")) {
        cloudtik_tests::send(*pid, nix::sys::signal::Signal::SIGKILL);
    }
    fs::remove_file(&filler).expect("removes");
    let status = cluster.wait("its return", Duration::from_secs(60), |s| s.ready);
    let workers = status.nodes.iter().filter(|n| n.kind == "worker").count();
    assert_eq!(workers, if acknowledged { 3 } else { 1 }, "what was acknowledged is kept, and only that: {refused:?}");
    assert_eq!(before.revision, status.revision);
    cluster.run(&["scale", "full", "--workers", "2"]).ok();
    cluster.wait("two workers", Duration::from_secs(30), |s| s.ready && s.nodes.len() == 3);
    cluster.down();
    until("an empty cluster directory", Duration::from_secs(5), || (!cluster.directory().exists()).then_some(()));
    drop(disk);
}

/// On a node, and deep in what its agent says.
#[test]
fn a_service_that_a_full_disk_keeps_from_starting_says_so() {
    let cluster = Cluster::new("cramped", "[workers.default]\nmin = 1\n[runtimes.queue]\npath = \"./queue\"");
    let manifest = "[runtime]\nname = \"queue\"\nversion = \"1\"\n[services.q]\nrole = \"workers\"\ncommand = [\"/bin/sleep\", \"1000\"]";
    cluster.write_runtime("queue", manifest);
    cluster.up();
    let service = |s: &cloudtik_model::status::Status| s.nodes.iter().flat_map(|n| n.services.clone()).find(|s| s.name == "queue/q");
    let pid = service(&cluster.status()).and_then(|q| q.pid).expect("it runs");
    let directory = cluster.node_home("w1").join("services/queue/q");
    let Some(disk) = SmallDisk::mount(&directory, "4k") else { return };
    let mut filler = fs::File::create(directory.join("filler")).expect("creates");
    while filler.write_all(&[0; 512]).is_ok() {}
    drop(filler);
    cloudtik_tests::send(pid as i32, nix::sys::signal::Signal::SIGKILL);
    let is_full = |s: &cloudtik_model::status::Status| service(s).is_some_and(|q| q.description.contains("the disk is full"));
    let status = cluster.wait("what keeps it from starting", Duration::from_secs(20), is_full);
    let q = service(&status).expect("it is there");
    assert!(q.description.starts_with("cannot start (") && q.description.contains("tries again in"), "{q:?}");
    let all = format!("{}{:#?}", cluster.run(&["status", "cramped"]).ok().out, cluster.events());
    assert!(all.contains("queue/q on w1: cannot start (") && !all.contains("No space left") && !all.contains("os error"), "{all}");
    drop(disk);
    cluster.wait("its return", Duration::from_secs(60), |s| s.ready);
    cluster.down();
    cluster.assert_nothing_left();
}

#[test]
fn a_job_that_fills_the_disk_keeps_its_end_and_says_what_was_lost() {
    let cluster = Cluster::new("filled", "[workers.default]\nmin = 0");
    let state = cluster.state();
    let Some(disk) = SmallDisk::mount(&state, "500m") else { return };
    cluster.up();
    // It prints more than there is room for, and goes on.
    let (mark, text) = (
        cluster.file.with_file_name("mark"),
        "yes x | head -c 600000000; touch \"$1\"; while [ -e \"$1\" ]; do sleep 0.1; done; echo end >&2; exit 7",
    );
    let mark_name = mark.display().to_string();
    cluster.run(&["submit", "--detach", "--name", "loud", "--command", "filled", "--", "sh", "-c", text, "sh", &mark_name]).ok();
    until("the disk to be full", Duration::from_secs(120), || mark.exists().then_some(()));
    // Somebody makes room: what was printed first is not needed.
    disk.resize("900m");
    fs::remove_file(&mark).expect("removes");
    let ended = until("its end", Duration::from_secs(120), || {
        let ran = cluster.run(&["jobs", "status", "filled", "loud", "-o", "json"]);
        serde_json::from_str::<Job>(&ran.out).ok().filter(Job::has_ended)
    });
    assert_eq!((ended.end, ended.attempt), (Some(JobEnd::Failed { exit_code: 7 }), 1));
    let lost = ended.history[0].lost_output;
    assert!(lost > 0, "{lost} bytes were lost");
    let told = cluster.run(&["jobs", "status", "filled", "loud"]).ok().out;
    assert!(told.contains("of its output could not be kept"), "{told}");
    assert_eq!(cluster.run(&["jobs", "logs", "filled", "loud"]).ok().err, "end\n");
    cluster.down();
}

#[test]
fn a_state_directory_that_cannot_be_is_said() {
    let cluster = Cluster::new("nowhere", "[workers.default]\nmin = 1");
    let file = cluster.file.display().to_string();
    let ran = cluster.command(&["up", &file]).env("CLOUDTIK_HOME", "/dev/null/state").output().expect("runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success() && said.contains("/dev/null/state"), "{said}");
}
