//! Under a service manager such as systemd: readiness and the watchdog, by sd_notify(3).

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_tests::{Cluster, programs, send};
use nix::sys::signal::Signal;

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("binds");
        Self { socket, directory }
    }

    fn start(&self, program: &str, arguments: &[&str], state: &Path) -> Child {
        let mut command = Command::new(programs().join(program));
        command.args(arguments).arg(state).env("NOTIFY_SOCKET", self.directory.path().join("notify"));
        command.env("WATCHDOG_USEC", "400000").stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("runs")
    }

    /// Waits for a word; returns how long that took.
    #[track_caller]
    fn hear(&self, word: &str) -> Duration {
        let begun = Instant::now();
        let mut said = Vec::new();
        let mut buffer = [0; 512];
        while begun.elapsed() < Duration::from_secs(10) {
            let left = Duration::from_secs(10).saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).expect("sets");
            let Ok(n) = self.socket.recv(&mut buffer) else { break };
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if text.lines().any(|line| line == word) {
                return begun.elapsed();
            }
            said.push(text);
        }
        panic!("{word} did not come; heard {said:?}");
    }
}

#[test]
fn head_and_agent_say_that_they_are_ready_and_alive() {
    let cluster = Cluster::new("managed", "[workers.default]\nmin = 1");
    cluster.up();
    let home = cluster.node_home("head");
    let status = cluster.status();
    let agent = cluster.node("head").agent.expect("an agent").pid as i32;
    // Nobody keeps them any more. The agent would bring the head back, and the head the agent.
    send(agent, Signal::SIGSTOP);
    for (pid, line) in cluster.processes() {
        if line.contains("cloudtik-head") || line.contains("shim") && line.contains("cloudtik/head") {
            send(pid, Signal::SIGKILL);
        }
    }
    send(agent, Signal::SIGKILL);
    cloudtik_tests::until("the head's end", Duration::from_secs(5), || {
        (!Path::new(&format!("/proc/{}/exe", status.head.pid)).exists()).then_some(())
    });
    let cases: [(&str, &[&str], &Path); 2] =
        [("cloudtik-head", &["--state"], &cluster.directory().join("head")), ("cloudtik-agent", &["run", "--home"], &home)];
    for (program, arguments, state) in cases {
        let manager = Manager::new();
        let mut running = manager.start(program, arguments, state);
        manager.hear("READY=1");
        for _ in 0..3 {
            let took = manager.hear("WATCHDOG=1");
            assert!(took < Duration::from_millis(400), "{program}: the manager would have killed it after {took:?}");
        }
        if program == "cloudtik-head" {
            // One that hangs says nothing, which is what the watchdog is for.
            send(running.id() as i32, Signal::SIGSTOP);
            manager.socket.set_read_timeout(Some(Duration::from_millis(450))).expect("sets");
            while manager.socket.recv(&mut [0; 64]).is_ok() {}
            send(running.id() as i32, Signal::SIGCONT);
            manager.hear("WATCHDOG=1");
        }
        send(running.id() as i32, Signal::SIGTERM);
        manager.hear("STOPPING=1");
        let status = running.wait().expect("ends");
        // The head that the agent keeps may be quicker to start its successor than it is to end.
        assert!(program == "cloudtik-agent" || status.success(), "{program}: {status}");
    }
}
