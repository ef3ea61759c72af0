//! The shim of a run that happens once, as the agent starts it: the real program, with real processes.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_tests::skipped;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// How long anything may take that ends by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// A job's directory, as an agent lays it.
struct Job {
    home: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl Job {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        Self { home: folder.path().to_owned(), _folder: Some(folder) }
    }

    fn attempt(&self, number: u32) -> PathBuf {
        self.home.join(number.to_string())
    }

    /// Lays an attempt that runs a script of the shell; `more` replaces what stands in `run.json` otherwise.
    fn lay(&self, number: u32, script: &str, more: &Value) {
        let directory = self.attempt(number);
        fs::create_dir_all(directory.join("work")).expect("makes");
        let mut run = json!({
            "command": ["/bin/sh", "-c", script],
            "environment": [["PATH", "/usr/bin:/bin"]],
            "stop_signal": 15,
            "stop_grace_ms": 500,
            "log_max_bytes": 1 << 30,
            "log_keep": 1,
            "identity": "",
            "once": {
                "work": directory.join("work"),
                "stdout": self.home.join("stdout"),
                "stderr": self.home.join("stderr"),
                "attempt": number,
            },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            match (run.get_mut(key), value) {
                (Some(Value::Object(into)), Value::Object(more)) => into.extend(more.clone()),
                _ => run[key] = value.clone(),
            }
        }
        fs::write(directory.join("run.json"), run.to_string()).expect("writes");
    }

    fn start(&self, number: u32) -> (Child, String) {
        let mut shim = Command::new(env!("CARGO_BIN_EXE_cloudtik-agent"))
            .arg("shim")
            .arg(self.attempt(number))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let (mut said, mut byte) = (Vec::new(), [0]);
        let out = shim.stdout.as_mut().expect("its output");
        while out.read(&mut byte).expect("reads") == 1 && byte != *b"\n" {
            said.push(byte[0]);
        }
        (shim, String::from_utf8(said).expect("text"))
    }

    /// Runs an attempt to its end; returns `exit.json`.
    fn run(&self, number: u32, script: &str, more: &Value) -> Value {
        self.lay(number, script, more);
        let (mut shim, said) = self.start(number);
        assert_eq!(said, "started");
        wait(&mut shim);
        self.exit(number)
    }

    fn exit(&self, number: u32) -> Value {
        let text = fs::read(self.attempt(number).join("exit.json")).expect("exit.json");
        serde_json::from_slice(&text).expect("JSON")
    }

    fn output(&self, name: &str) -> String {
        fs::read_to_string(self.home.join(name)).expect("a log")
    }

    /// Waits until a file of the working directory has content.
    fn said(&self, number: u32, file: &str) -> String {
        let path = self.attempt(number).join("work").join(file);
        until(&format!("{} has content", path.display()), || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')))
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait(shim: &mut Child) {
    until("the shim ends", || shim.try_wait().expect("waits"));
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn terminate(shim: &Child) {
    kill(Pid::from_raw(shim.id() as i32), Signal::SIGTERM).expect("sends");
}

#[test]
fn an_attempt_begins_once() {
    let job = Job::new();
    let exit = job.run(1, "echo ran >>../../times; pwd; exit 3", &json!({}));
    assert_eq!((&exit["code"], &exit["stopped"], &exit["lost_output"]), (&json!(3), &json!(false), &json!(0)));
    let (started, ended) = (exit["started_at"].as_u64(), exit["ended_at"].as_u64());
    assert!(started.expect("a time") > 1_700_000_000_000 && ended >= started, "{exit}");
    assert_eq!(job.output("stdout").trim(), job.attempt(1).join("work").to_str().expect("text"));
    for lost in [None, Some("exit.json"), Some("begun")] {
        // Whichever of its marks is lost, the other one holds.
        let (mark, aside) = (lost.map(|name| job.attempt(1).join(name)), job.home.join("lost"));
        mark.iter().for_each(|mark| fs::rename(mark, &aside).expect("the mark is there"));
        let (mut shim, said) = job.start(1);
        wait(&mut shim);
        mark.iter().for_each(|mark| fs::rename(&aside, mark).expect("it is put back"));
        assert_eq!(said, "begun", "without {lost:?}");
    }
    assert_eq!(job.output("times"), "ran\n");
    // The agent noted that it is never to begin.
    job.lay(2, "echo ran >>../../times", &json!({}));
    fs::write(job.attempt(2).join("end.json"), "").expect("writes");
    let (mut shim, said) = job.start(2);
    wait(&mut shim);
    assert_eq!((said.as_str(), job.output("times").as_str()), ("begun", "ran\n"));
}

#[test]
fn an_attempt_whose_shim_was_killed_does_not_begin_again() {
    let job = Job::new();
    job.lay(1, "echo $$ >pid; sleep 600", &json!({}));
    let (mut shim, said) = job.start(1);
    assert_eq!(said, "started");
    let pid: i32 = job.said(1, "pid").trim().parse().expect("a number");
    let (mut other, said) = job.start(1);
    assert_eq!(said, "occupied");
    wait(&mut other);
    shim.kill().expect("kills");
    wait(&mut shim);
    let (mut again, said) = job.start(1);
    assert_eq!(said, "begun");
    wait(&mut again);
    assert!(!job.attempt(1).join("exit.json").exists(), "nobody saw its end");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it ran without its shim");
}

#[test]
fn both_outputs_are_apart_and_complete() {
    let job = Job::new();
    // 64 MiB into each, at the same time, the last of it just before the end.
    let script = "yes out | head -c 67108864 & yes err | head -c 67108864 >&2; wait; echo last; echo last >&2";
    let exit = job.run(1, script, &json!({}));
    assert_eq!((&exit["code"], &exit["lost_output"]), (&json!(0), &json!(0)));
    for (name, word) in [("stdout", "out\n"), ("stderr", "err\n")] {
        let text = job.output(name);
        let (body, last) = text.split_at(64 << 20);
        assert_eq!(last, "last\n", "{name}");
        assert!(body.as_bytes().chunks(4).all(|line| line == word.as_bytes()), "{name}");
    }
}

#[test]
fn what_is_beyond_the_limit_of_a_log_is_counted() {
    let job = Job::new();
    let exit = job.run(1, "seq 1 200000; echo few >&2", &json!({ "log_max_bytes": 100_000 }));
    let text: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    let kept = job.output("stdout.1") + &job.output("stdout");
    assert!(text.ends_with(&kept) && kept.len() > 100_000, "{} bytes", kept.len());
    assert_eq!(exit["lost_output"], json!(text.len() - kept.len()));
    assert_eq!(job.output("stderr"), "few\n");
    // The second attempt's output follows, and is told apart.
    let exit = job.run(2, "echo again >&2", &json!({}));
    assert_eq!((job.output("stderr").as_str(), &exit["lost_output"]), ("few\n--- attempt 2 ---\nagain\n", &json!(0)));
}

#[test]
fn one_that_ignores_the_signal_is_killed_after_its_grace() {
    let job = Job::new();
    job.lay(1, "trap 'echo no' TERM; echo $$ >pid; while :; do sleep 0.05; done", &json!({}));
    let (mut shim, _) = job.start(1);
    job.said(1, "pid");
    let told = Instant::now();
    terminate(&shim);
    wait(&mut shim);
    let exit = job.exit(1);
    assert_eq!((&exit["signal"], &exit["stopped"], &exit["timed_out"]), (&json!(9), &json!(true), &json!(false)));
    assert!(told.elapsed() >= Duration::from_millis(500), "it had its grace");
    assert_eq!(job.output("stdout"), "no\n", "the signal reached it once");
}

#[test]
fn one_that_heeds_the_signal_ends_as_it_wants() {
    let job = Job::new();
    job.lay(1, "trap 'echo bye; exit 7' TERM; echo $$ >pid; while :; do sleep 0.05; done", &json!({ "stop_grace_ms": 60_000 }));
    let (mut shim, _) = job.start(1);
    job.said(1, "pid");
    terminate(&shim);
    wait(&mut shim);
    let exit = job.exit(1);
    assert_eq!((&exit["code"], &exit["stopped"]), (&json!(7), &json!(true)));
    assert_eq!(job.output("stdout"), "bye\n");
}

#[test]
fn one_whose_time_is_over_is_ended() {
    let job = Job::new();
    let begun = Instant::now();
    let exit = job.run(1, "trap '' TERM; echo waits; while :; do sleep 0.05; done", &json!({ "once": { "timeout_ms": 300 } }));
    assert_eq!((&exit["timed_out"], &exit["stopped"], &exit["signal"]), (&json!(true), &json!(false), &json!(9)));
    assert!(begun.elapsed() >= Duration::from_millis(800), "its time, then its grace");
    let exit = job.run(2, "exit 0", &json!({ "once": { "timeout_ms": 600_000 } }));
    assert_eq!((&exit["timed_out"], &exit["code"]), (&json!(false), &json!(0)));
}

#[test]
fn what_a_job_forked_ends_with_it_and_its_output_is_whole() {
    let job = Job::new();
    // One in the group, one in a session of its own; both hold the output.
    let script = "sleep 600 & echo $! >a; setsid sh -c 'echo $$ >b; echo from b; sleep 600' & \
                  while [ ! -s b ]; do sleep 0.01; done; seq 1 10000; exit 0";
    let exit = job.run(1, script, &json!({}));
    assert_eq!(exit["code"], json!(0));
    for file in ["a", "b"] {
        let pid: i32 = job.said(1, file).trim().parse().expect("a number");
        assert!(!is_alive(pid), "{file}: {pid} is left");
    }
    let text = job.output("stdout");
    assert!(text.contains("from b\n") && text.ends_with("9999\n10000\n"), "{} bytes", text.len());
}

#[test]
fn what_cannot_be_started_has_an_end_that_says_so() {
    let job = Job::new();
    job.lay(1, "", &json!({ "command": ["./no such ä"] }));
    let (mut shim, said) = job.start(1);
    wait(&mut shim);
    assert!(said.starts_with("cannot start ./no such ä: No such file or directory"), "{said}");
    assert_eq!(job.exit(1)["not_started"], json!(said));
    let (mut shim, said) = job.start(1);
    wait(&mut shim);
    assert_eq!(said, "begun");
}

/// A small file system of its own, while it lives.
struct SmallDisk {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new(options: &str) -> nix::Result<Self> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("disk");
        fs::create_dir(&path).expect("makes");
        mount(Some("cloudtik-test"), &path, Some("tmpfs"), MsFlags::empty(), Some(options))?;
        Ok(Self { path, _folder: folder })
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.path.join("filler")).expect("creates");
        let block = [b'x'; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

#[test]
fn on_a_full_disk_the_end_is_known_and_what_is_lost_is_counted() {
    let disk = match SmallDisk::new("size=8m") {
        Ok(disk) => disk,
        Err(error) => return skipped(&format!("a full disk under a job: a small file system cannot be mounted: {error}")),
    };
    let job = Job { home: disk.path.clone(), _folder: None };
    // It fills the disk itself, and ends.
    let exit = job.run(1, "yes | head -c 33554432; echo end >&2; exit 5", &json!({}));
    assert_eq!(exit["code"], json!(5), "{exit}");
    let kept = fs::metadata(job.home.join("stdout")).expect("a log").len();
    assert!(kept > 0, "what there was room for is there");
    let lost = exit["lost_output"].as_u64().expect("a number");
    assert!((33_554_432 - kept..=33_554_432 - kept + 4).contains(&lost), "{lost} of {} bytes", 33_554_432 - kept);
    // On a disk that is full already, nothing begins, and that is said.
    disk.fill();
    let second = job.attempt(2);
    fs::create_dir_all(second.join("work")).expect("directories need no room here");
    fs::hard_link(job.attempt(1).join("run.json"), second.join("run.json")).expect("links");
    let (mut shim, said) = job.start(2);
    wait(&mut shim);
    assert!(said.contains("No space left on device"), "{said}");
    assert!(!second.join("begun").exists() && !second.join("exit.json").exists());
}

#[test]
fn whatever_room_the_disk_has_an_attempt_that_begins_runs() {
    const PAGE: u64 = 4096;
    const ATTEMPTS: u32 = 12;
    let disk = match SmallDisk::new("size=1m") {
        Ok(disk) => disk,
        Err(error) => return skipped(&format!("a disk with little room: a small file system cannot be mounted: {error}")),
    };
    let outside = tempfile::tempdir().expect("a temporary directory");
    let job = Job { home: disk.path.clone(), _folder: None };
    for number in 1..=ATTEMPTS {
        job.lay(number, &format!("echo {number} >>{}/runs", outside.path().display()), &json!({}));
    }
    let (mut ran, mut refused) = (String::new(), 0);
    for number in 1..=ATTEMPTS {
        disk.fill();
        let filler = fs::OpenOptions::new().write(true).open(disk.path.join("filler")).expect("opens");
        let full = filler.metadata().expect("there").len();
        filler.set_len(full - u64::from(number - 1) * PAGE).expect("shrinks");
        let (mut shim, said) = job.start(number);
        wait(&mut shim);
        if job.attempt(number).join("begun").exists() {
            assert_eq!((said.as_str(), &job.exit(number)["code"]), ("started", &json!(0)), "with {} pages", number - 1);
            ran += &format!("{number}\n");
        } else {
            assert!(said.contains("No space left on device"), "with {} pages: {said}", number - 1);
            refused += 1;
        }
    }
    assert_eq!(fs::read_to_string(outside.path().join("runs")).expect("some ran"), ran);
    assert!(refused > 0, "there was a disk without room");
}

#[test]
fn its_files_are_for_their_owner_only() {
    let job = Job::new();
    job.run(1, "echo $HOME", &json!({}));
    for name in ["stdout", "stderr", "1/begun", "1/shim.json", "1/exit.json", "1/shim.lock"] {
        let metadata = fs::metadata(job.home.join(name)).expect(name);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        assert_eq!(metadata.uid(), nix::unistd::getuid().as_raw());
    }
}
