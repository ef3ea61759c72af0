//! A real browser for tests of web pages: headless Chromium, driven over the WebDriver protocol.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const CHROMIUM: &str = "/usr/bin/chromium";
const DRIVER: &str = "/usr/bin/chromedriver";
/// How long a page may load what it asks for.
const LOADING: Duration = Duration::from_secs(30);

/// A browser with one window. Dropping it closes it.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

/// What a page did: what went wrong on it, and where it leads.
#[derive(Debug, Default)]
pub struct Page {
    /// Errors of scripts, requests that failed or were answered with an error.
    pub errors: Vec<String>,
    /// Addresses that it links to, without fragments.
    pub links: BTreeSet<String>,
    /// Requests that were answered.
    pub answered: usize,
    pub text: String,
}

impl Browser {
    /// Whether this machine has one.
    pub fn is_installed() -> bool {
        [CHROMIUM, DRIVER].iter().all(|path| Path::new(path).exists())
    }

    pub fn start() -> Self {
        let mut driver =
            Command::new(DRIVER).arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("chromedriver runs");
        let lines = BufReader::new(driver.stdout.take().expect("piped")).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            let rest = line.split_once("started successfully on port ")?.1;
            rest.trim_end_matches('.').parse().ok()
        });
        let mut browser = Self { driver, port: port.expect("chromedriver says its port"), session: String::new() };
        let arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": CHROMIUM, "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        }}});
        let made = browser.ask("POST", "/session", &capabilities);
        made["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        browser
    }

    /// Opens a page, waits until it has loaded all that it asks for, and says what came of it.
    pub fn open(&self, url: &str) -> Page {
        let own = format!("/session/{}", self.session);
        // What the last page still said is not this one's.
        for kind in ["browser", "performance"] {
            self.log(kind);
        }
        self.ask("POST", &format!("{own}/url"), &json!({ "url": url }));
        let (mut page, mut under_way) = (Page::default(), BTreeSet::new());
        let deadline = Instant::now() + LOADING;
        loop {
            // A script that is to run next has run once this is answered.
            let script = "const done = arguments[0]; requestAnimationFrame(() => setTimeout(done, 0))";
            self.ask("POST", &format!("{own}/execute/async"), &json!({ "script": script, "args": [] }));
            let entries = self.log("performance");
            for entry in &entries {
                let message: Value = serde_json::from_str(entry["message"].as_str().unwrap_or_default()).unwrap_or_default();
                page.note(&message["message"], &mut under_way);
            }
            if entries.is_empty() && under_way.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{url} still loads {under_way:?} after {LOADING:?}");
        }
        for entry in self.log("browser") {
            if entry["level"] == "SEVERE" {
                page.errors.push(entry["message"].as_str().unwrap_or_default().to_owned());
            }
        }
        let script = "return [document.body.innerText, [...document.links].map(a => a.href)]";
        let found = self.ask("POST", &format!("{own}/execute/sync"), &json!({ "script": script, "args": [] }));
        found[0].as_str().unwrap_or_default().clone_into(&mut page.text);
        let links = found[1].as_array().into_iter().flatten().filter_map(Value::as_str);
        page.links = links.map(|link| link.split('#').next().unwrap_or(link).to_owned()).collect();
        page
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.ask("POST", &format!("/session/{}/se/log", self.session), &json!({ "type": kind }));
        entries.as_array().cloned().unwrap_or_default()
    }

    /// A command of the WebDriver protocol; returns its value.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("chromedriver listens");
        let body = body.to_string();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n");
        write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").expect("writes");
        let body = body_of(&mut BufReader::new(stream)).expect("chromedriver answers");
        let value: Value = serde_json::from_slice::<Value>(&body).unwrap_or_else(|e| panic!("{path}: {e}"))["value"].take();
        assert!(value["error"].is_null(), "{path}: {value:#}");
        value
    }
}

/// The body of an answer. The driver keeps the connection open after it.
fn body_of(answer: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        answer.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body)?;
    Ok(body)
}

impl Page {
    fn note(&mut self, event: &Value, under_way: &mut BTreeSet<String>) {
        let (method, told) = (event["method"].as_str().unwrap_or_default(), &event["params"]);
        let id = told["requestId"].as_str().unwrap_or_default().to_owned();
        match method {
            "Network.requestWillBeSent" => {
                under_way.insert(id);
            }
            "Network.responseReceived" => {
                let (status, url) = (told["response"]["status"].as_u64().unwrap_or(0), &told["response"]["url"]);
                self.answered += 1;
                if status >= 400 {
                    self.errors.push(format!("{url} is answered with {status}"));
                }
            }
            "Network.loadingFinished" => {
                under_way.remove(&id);
            }
            "Network.loadingFailed" => {
                under_way.remove(&id);
                self.errors.push(format!("a request failed: {}", told["errorText"]));
            }
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends Chromium with its session; asking must not panic while a test that failed is unwound.
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let _ = write!(stream, "DELETE /session/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", self.session);
            let _ = body_of(&mut BufReader::new(stream));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
