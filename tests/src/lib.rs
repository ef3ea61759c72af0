//! Real clusters for end-to-end tests: the built programs, a state directory of their own, loopback only.
//!
//! Owns: bringing a cluster up and down around a test, looking at it, hurting it. Waits are bounded and say what they saw
//! last.

pub mod browser;
pub mod jobs;

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cloudtik_model::status::{Node, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// One user's state directory and one cluster in it. Dropping it takes the cluster down, and checks nothing.
pub struct Cluster {
    home: TempDir,
    /// The name of the state directory.
    state: String,
    pub name: String,
    pub file: PathBuf,
    /// Where software is kept between tests, if the test needs any.
    artifacts: Option<PathBuf>,
    /// Programs of the cluster's own, instead of those that were built.
    programs: Option<PathBuf>,
    /// A network namespace that `up` runs in, with all that comes of it.
    network: Option<Child>,
    /// An ordinary user whose cluster it is, where root runs the test.
    user: Option<u32>,
}

/// The number of a user that no machine has.
const ORDINARY_USER: u32 = 54_321;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Ran {
    /// The output of a command that must have worked.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "the command failed:\n{}{}", self.out, self.err);
        self
    }

    /// Of a command that must have ended with a status and said all of some texts.
    #[track_caller]
    pub fn refused(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for said in says {
            assert!(self.err.contains(said), "{said:?} is not in: {}", self.err);
        }
    }
}

/// The directory of the built programs: where this test's own program is.
pub fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its program");
    let directory = own.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST").to_owned();
    assert!(directory.join("cloudtik-head").exists(), "build the programs first: cargo build --workspace");
    directory
}

/// Says loudly that a test cannot run here: not through its captured output, and again at the end of the test command.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    if let Some(list) = std::env::var_os("CLOUDTIK_SKIPPED") {
        let file = fs::OpenOptions::new().create(true).append(true).open(list);
        let _ = file.and_then(|mut file| writeln!(file, "{why}"));
    }
}

/// The root of the checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the checkout").to_owned()
}

impl Cluster {
    /// A cluster that is not up yet. `rest` is its file below `[cluster]` and `[provider]`; what stands before
    /// its first table belongs to `[cluster]`.
    pub fn new(name: &str, rest: &str) -> Self {
        let home = tempfile::Builder::new().prefix("ctk").tempdir().expect("a temporary directory");
        let file = home.path().join("cluster.toml");
        let cluster = Self {
            home,
            state: "state".to_owned(),
            name: name.to_owned(),
            file,
            artifacts: None,
            programs: None,
            network: None,
            user: None,
        };
        cluster.write(rest);
        cluster
    }

    /// A cluster of virtual nodes that is not up yet; none where this machine does not allow it.
    pub fn of_virtual_nodes(name: &str, rest: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skipped("clusters of virtual nodes need root here");
            return None;
        }
        Some(Self::new(name, rest).with_kind("virtual"))
    }

    /// Changes what kind of provider its file asks for.
    pub fn with_kind(self, kind: &str) -> Self {
        let text = fs::read_to_string(&self.file).expect("reads");
        fs::write(&self.file, text.replace("kind = \"local\"", &format!("kind = \"{kind}\""))).expect("writes");
        self
    }

    /// Gives the user's state directory another name, such as one with a space.
    pub fn with_state(mut self, name: &str) -> Self {
        name.clone_into(&mut self.state);
        self
    }

    /// Shares fetched software with other tests and other runs.
    pub fn with_shared_software(mut self) -> Self {
        let target = programs().parent().expect("target/PROFILE").join("test-software");
        fs::create_dir_all(&target).expect("makes the directory");
        fs::create_dir_all(self.state()).expect("makes the directory");
        std::os::unix::fs::symlink(&target, self.state().join("artifacts")).expect("links");
        self.artifacts = Some(target.canonicalize().expect("it is there"));
        self
    }

    /// Gives the cluster a network namespace of its own, with nothing but loopback in it. False where that may not be.
    pub fn own_network(&mut self) -> bool {
        let script = "ip link set lo up && echo up && exec sleep 100000";
        let holder = Command::new("unshare").args(["--net", "sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut holder) = holder else { return false };
        let mut said = String::new();
        let _ = BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut said);
        if said.trim() != "up" {
            let _ = holder.wait();
            return false;
        }
        self.network = Some(holder);
        true
    }

    /// Runs a command in the cluster's network namespace.
    #[track_caller]
    pub fn in_network(&self, program: &str, arguments: &[&str]) {
        let holder = self.network.as_ref().expect("the cluster has a network of its own");
        let output = Command::new("nsenter").arg(format!("--net=/proc/{}/ns/net", holder.id())).arg(program).args(arguments).output();
        let output = output.expect("nsenter runs");
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes the cluster an ordinary user's, with all that its commands start. None where such a user cannot run the programs.
    pub fn of_ordinary_user(mut self) -> Option<Self> {
        if nix::unistd::geteuid().is_root() {
            self.user = Some(ORDINARY_USER);
            let own = format!("{ORDINARY_USER}:{ORDINARY_USER}");
            // Root uses shared software all the same.
            let owned = Command::new("chown").args(["-hR", &own]).arg(self.home.path()).args(&self.artifacts).status();
            assert!(owned.expect("chown runs").success());
        }
        let can_run = self.command(&["version"]).output().is_ok_and(|ran| ran.status.success());
        if can_run {
            return Some(self);
        }
        skipped(&format!("an ordinary user may not run the programs in {}", programs().display()));
        None
    }

    /// Gives the cluster programs of its own, to be replaced; returns their directory.
    pub fn own_programs(&mut self) -> PathBuf {
        let own = self.home.path().join("bin");
        fs::create_dir_all(&own).expect("makes the directory");
        for name in ["cloudtik-agent", "cloudtik-head"] {
            fs::copy(programs().join(name), own.join(name)).expect("copies");
        }
        self.programs = Some(own.clone());
        own
    }

    pub fn write(&self, rest: &str) {
        let (own, tables) = rest.split_at(rest.find('[').unwrap_or(rest.len()));
        let text = format!("[cluster]\nname = \"{}\"\n{own}[provider]\nkind = \"local\"\n{tables}\n", self.name);
        fs::write(&self.file, text).expect("writes");
    }

    /// Writes the folder of a runtime beside the cluster's file: `path = "./NAME"` there.
    pub fn write_runtime(&self, name: &str, manifest: &str) -> PathBuf {
        let folder = self.file.with_file_name(name);
        fs::create_dir_all(&folder).expect("makes the folder");
        fs::write(folder.join("runtime.toml"), manifest).expect("writes");
        folder
    }

    /// The user's state directory.
    pub fn state(&self) -> PathBuf {
        self.home.path().join(&self.state)
    }

    pub fn directory(&self) -> PathBuf {
        self.state().join("workspaces/default/clusters").join(&self.name)
    }

    pub fn node_home(&self, node: &str) -> PathBuf {
        let nodes = self.directory().join("nodes");
        let found = fs::read_dir(&nodes).expect("there are nodes").flatten().map(|e| e.path());
        let prefix = format!("{node}.");
        let mut matching: Vec<_> = found.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix))).collect();
        matching.sort();
        matching.pop().unwrap_or_else(|| panic!("there is no node {node} in {}", nodes.display()))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_through(&[], arguments)
    }

    /// The command as a program runs it, such as `unshare` with its options, in the cluster's network and as its user.
    pub fn command_through(&self, runner: &[&str], arguments: &[&str]) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(holder) = &self.network {
            words.extend(["nsenter".into(), format!("--net=/proc/{}/ns/net", holder.id()).into()]);
        }
        if let Some(user) = self.user {
            let become_it = ["setpriv".to_owned(), format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
            words.extend(become_it.map(OsString::from));
        }
        words.extend(runner.iter().map(OsString::from));
        words.push(programs().join("cloudtik").into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments).env("CLOUDTIK_HOME", self.state()).env("NO_COLOR", "1").stdin(Stdio::null());
        if self.user.is_some() {
            command.env("HOME", self.home.path()).current_dir(self.home.path());
        }
        command.envs(self.programs.iter().map(|own| ("CLOUDTIK_BIN", own)));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        let begun = Instant::now();
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("cloudtik runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr), took: begun.elapsed() }
    }

    pub fn up(&self) -> Ran {
        let file = self.file.display().to_string();
        let ran = self.run(&["up", &file, "--yes", "--timeout", "600"]);
        if ran.code != 0 {
            eprintln!("{}", self.logs());
        }
        ran.ok()
    }

    /// Brings a cluster of virtual nodes up; false, said loudly, where the kernel forbids those to its user, which the command must
    /// explain.
    pub fn up_or_forbidden(&self) -> bool {
        let ran = self.run(&["up", &self.file.display().to_string(), "--yes", "--timeout", "600"]);
        if let Some(why) = ran.err.lines().find(|line| line.contains("namespaces for ordinary users")) {
            assert!(why.contains("sysctl -w") || why.contains("run as root"), "{ran:?}");
            skipped(why);
            return false;
        }
        if ran.code != 0 {
            eprintln!("{}", self.logs());
        }
        ran.ok();
        true
    }

    pub fn down(&self) -> Ran {
        self.run(&["down", &self.name, "--yes"]).ok()
    }

    pub fn status(&self) -> Status {
        serde_json::from_str(&self.run(&["status", &self.name, "-o", "json"]).ok().out).expect("a status document")
    }

    pub fn node(&self, id: &str) -> Node {
        let status = self.status();
        status.nodes.iter().find(|n| n.id.as_str() == id).cloned().unwrap_or_else(|| panic!("there is no node {id}: {status:#?}"))
    }

    /// Waits until `wanted` holds of the status.
    #[track_caller]
    pub fn wait(&self, what: &str, within: Duration, wanted: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + within;
        loop {
            let ran = self.run(&["status", &self.name, "-o", "json"]);
            if let Ok(status) = serde_json::from_str::<Status>(&ran.out)
                && wanted(&status)
            {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{what} did not come within {within:?}; last seen:\n{}{}\n{}",
                ran.out,
                ran.err,
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait_ready(&self) -> Status {
        self.wait("readiness", Duration::from_secs(60), |s| s.ready)
    }

    /// The events as `kind node message`, oldest first.
    pub fn events(&self) -> Vec<String> {
        let out = self.run(&["events", &self.name, "-o", "json"]).ok().out;
        let line = |line: &str| {
            let event: serde_json::Value = serde_json::from_str(line).expect("an event a line");
            let text = |key: &str| event[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", text("kind"), text("node"), text("message"))
        };
        out.lines().map(line).collect()
    }

    /// What the head and the agents said last, for a test that fails.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let Ok(nodes) = fs::read_dir(self.directory().join("nodes")) else { return text };
        for node in nodes.flatten() {
            for log in ["agent.log", "services/cloudtik/head/log"] {
                let path = node.path().join(log);
                if let Ok(content) = fs::read_to_string(&path) {
                    let lines: Vec<&str> = content.lines().collect();
                    text.push_str(&format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(25)..].join("\n")));
                }
            }
        }
        text
    }

    /// Processes that belong to this cluster's nodes, with their command lines. Dead ones are not counted.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("CLOUDTIK_NODE_HOME={}", self.directory().display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("there is /proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            if environment.split(|b| *b == 0).any(|v| v.starts_with(mark.as_bytes())) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()));
            }
        }
        found
    }

    /// After `down`: no process, no file of the cluster.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let processes = self.processes();
            if processes.is_empty() && !self.directory().exists() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {processes:?}, directory there: {}", self.directory().exists());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.run(&["down", &self.name, "--yes", "--timeout", "10"]);
        // A test that failed in the middle must leave nothing either; these processes are the cluster's own.
        for (pid, _) in self.processes() {
            send(pid, Signal::SIGKILL);
        }
        // A workspace of virtual nodes is more than its directory: a bridge of the machine.
        if fs::read_to_string(&self.file).is_ok_and(|text| text.contains("kind = \"virtual\"")) {
            let _ = self.run(&["workspace", "delete", "default", "--yes"]);
        }
        if let Some(holder) = &mut self.network {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// Sends a signal to a process of the cluster; one that is gone is fine.
pub fn send(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Waits until `look` returns something.
#[track_caller]
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come within {within:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
