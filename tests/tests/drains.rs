//! How services let their work go before their node does: told by a request, by a command, by a signal; and one that does not.

use std::fs;
use std::time::{Duration, Instant};

use cloudtik_tests::Cluster;

const RUNTIME: &str = r#"
[runtime]
name = "workshop"
version = "1.0"
summary = "Services that take their time to end"

[properties]
log = ""

# Works off what it has when it is told so, and says how much is left.
[services.told]
role = "workers"
ports = { web = 8000 }
command = ["/usr/bin/python3", "{{ service.directory }}/told.py", "{{ node.address }}", "{{ ports.told.web }}", "{{ properties.log }}"]
readiness = { tcp = "{{ node.address }}:{{ ports.told.web }}", interval = "100ms" }
work = { http = "http://{{ node.address }}:{{ ports.told.web }}/work", pointer = "/left", interval = "200ms" }
drain = { http = "http://{{ node.address }}:{{ ports.told.web }}/drain", method = "POST" }

[services.told.files]
"told.py" = "told.py"

[services.helped]
role = "workers"
command = ["/bin/sh", "-c", "trap 'echo helped stops >> {{ properties.log }}; exit 0' TERM; while :; do sleep 0.1; done"]
drain = { command = ["/bin/sh", "-c", "echo help begins >> {{ properties.log }}; sleep 1; echo help ends >> {{ properties.log }}"] }

[services.signalled]
role = "workers"
command = ["/bin/sh", "-c", "trap 'echo signal >> {{ properties.log }}; sleep 1; echo signalled ends >> {{ properties.log }}; exit 0' USR1; while :; do sleep 0.1; done"]
drain = { signal = "USR1" }

# Hears nothing.
[services.deaf]
role = "workers"
command = ["/bin/sh", "-c", "trap '' USR1; while :; do sleep 0.1; done"]
drain = { signal = "USR1", timeout = "3s" }
stop = { signal = "TERM", grace = "1s" }
"#;

const TOLD: &str = r#"
import http.server, json, sys, threading, time

left, log = 5, sys.argv[3]

def note(what):
    with open(log, "a") as file:
        file.write(what + "\n")

def work_off():
    global left
    note("told to end")
    while left > 0:
        time.sleep(0.3)
        left -= 1
    note("nothing left")

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, document):
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"left": left})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        threading.Thread(target=work_off).start()
        self.answer({})

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"#;

#[test]
fn work_is_let_go_as_each_service_says_and_nobody_waits_for_ever() {
    let folder = tempfile::tempdir().expect("a directory");
    fs::write(folder.path().join("runtime.toml"), RUNTIME).expect("written");
    fs::write(folder.path().join("told.py"), TOLD).expect("written");
    let log = folder.path().join("log");
    let spec = format!(
        "[workers.default]\nmin = 0\nmax = 1\n[runtimes.workshop]\npath = \"{}\"\n[runtimes.workshop.properties]\nlog = \"{}\"",
        folder.path().display(),
        log.display()
    );
    let cluster = Cluster::new("letting-go", &spec);
    cluster.up();
    cluster.run(&["scale", "letting-go", "--workers", "1"]).ok();
    cluster.wait("the worker", Duration::from_secs(30), |s| s.ready && s.nodes.len() == 2);
    // It has work, and is scaled in all the same: somebody says so.
    let begun = Instant::now();
    cluster.run(&["scale", "letting-go", "--workers", "0"]).ok();
    cluster.wait("its end", Duration::from_secs(40), |s| s.nodes.iter().all(|n| n.kind == "head" || n.state == "gone"));
    let took = begun.elapsed();
    let said = fs::read_to_string(&log).expect("they say what they do");
    let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("{what:?} is missing in {said:?}"));
    assert!(at("told to end") < at("nothing left"));
    assert!(at("help begins") < at("help ends") && at("help ends") < at("helped stops"), "{said}");
    assert!(at("signal\n") < at("signalled ends"));
    let events = cluster.events();
    let told = "draining → terminating: drained, but workshop/deaf: it had not drained after 3 s";
    assert!(events.iter().any(|e| e.contains(told)), "{events:#?}");
    assert!(took >= Duration::from_secs(3), "one that hears nothing has its time: {took:?}");
    cluster.down();
    cluster.assert_nothing_left();
}
