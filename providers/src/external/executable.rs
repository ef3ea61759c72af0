//! One executable: started when it is first called, ended when it does not keep to the protocol, started again by the next call.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::wire::{Answer, Call, Event, Failed, Line, PROTOCOL, Request, Started};
use crate::local::inherited_environment;
use crate::{Error, WireError};

/// Bytes of the longest line: a page of a list of some ten thousand machines.
const MAX_LINE: u64 = 16 << 20;
/// Requests that wait to be written.
const MAX_UNWRITTEN: usize = 64;
/// What the executable said last on its standard error is kept for errors: so many lines, of so many bytes.
const LAST_WORDS: usize = 5;
const MAX_WORDS: usize = 300;
/// One that ended is not started again sooner than this after its last start.
const START_PAUSE: Duration = Duration::from_secs(1);

/// What is run, and for which cluster.
#[derive(Debug, Clone)]
pub struct Program {
    pub command: Vec<String>,
    /// Where it runs.
    pub directory: PathBuf,
    pub cluster: String,
    pub workspace: String,
    pub settings: Value,
    pub agent: PathBuf,
    /// How long a call may take.
    pub timeout: Duration,
}

pub struct Executable {
    program: Program,
    current: tokio::sync::Mutex<Current>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Current {
    running: Option<Running>,
    started: Option<Instant>,
}

/// Why an executable ended, or was ended.
#[derive(Debug, Clone, thiserror::Error)]
enum Ending {
    #[error("{name} cannot be started: {reason}")]
    NotStarted { name: String, reason: String },
    #[error("{name} ended with {status}{words}")]
    Ended { name: String, status: String, words: String },
    #[error("{name} said what is not part of the protocol: {line}")]
    Garbage { name: String, line: String },
    #[error("{name} speaks version {theirs} of the protocol, not {PROTOCOL}")]
    Version { name: String, theirs: u32 },
    #[error("{name} refused to start")]
    Refused { name: String, error: WireError },
    #[error("{name} did not answer to {call:?} within {} ms, and was ended", within.as_millis())]
    Silent { name: String, call: &'static str, within: Duration },
}

/// Ends with whoever holds it.
struct Running {
    link: Link,
    _tasks: JoinSet<()>,
}

/// The way to a running executable.
#[derive(Clone)]
struct Link {
    to: mpsc::Sender<String>,
    shared: Arc<Shared>,
}

type Waiting = HashMap<u64, oneshot::Sender<Result<Value, Failed>>>;

struct Shared {
    name: String,
    /// Its process group, until its leader is reaped: from then on the number may be another's.
    group: Mutex<Option<Pid>>,
    next: AtomicU64,
    /// None once it ended.
    waiting: Mutex<Option<Waiting>>,
    ending: Mutex<Option<Ending>>,
    words: Mutex<VecDeque<String>>,
    changed: Arc<Notify>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.link.shared.kill_finally();
    }
}

impl Ending {
    /// What a call fails with because of it.
    fn into_error(self) -> Error {
        const OPERATION: &str = "call the provider's executable";
        match self {
            Self::Refused { error, .. } => error.into(),
            Self::Version { .. } => Error::permanent(OPERATION, self),
            _ => Error::transient(OPERATION, self),
        }
    }
}

impl Executable {
    pub fn new(program: Program) -> Self {
        Self { program, current: tokio::sync::Mutex::default(), changed: Arc::new(Notify::new()) }
    }

    /// Returns when the executable says that machines changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What the executable can do, by its own word.
    pub async fn start(&self) -> Result<Started, Error> {
        let mut current = self.current.lock().await;
        self.launch(&mut current).await.map(|(_, started)| started)
    }

    /// One call and its answer.
    pub async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let link = self.link().await?;
        self.call_on(&link, call).await
    }

    /// A link to the running executable, which is started if it does not run.
    async fn link(&self) -> Result<Link, Error> {
        let mut current = self.current.lock().await;
        match &current.running {
            Some(running) if running.link.shared.is_alive() => Ok(running.link.clone()),
            _ => self.launch(&mut current).await.map(|(link, _)| link),
        }
    }

    async fn launch(&self, current: &mut Current) -> Result<(Link, Started), Error> {
        let last = current.running.as_ref().and_then(|running| running.link.shared.ending());
        if let Some(last) = last.filter(|_| current.started.is_some_and(|started| started.elapsed() < START_PAUSE)) {
            return Err(last.into_error());
        }
        current.running = None;
        current.started = Some(Instant::now());
        let running = self.spawn()?;
        let link = running.link.clone();
        let Program { cluster, workspace, settings, agent, .. } = &self.program;
        let name = link.shared.name.clone();
        // Where this call is given up, what was started ends with it.
        let answer = self.call_on(&link, Call::Start { protocol: PROTOCOL, cluster, workspace, settings, agent }).await;
        current.running = Some(running);
        let ending = match answer {
            Ok(started @ Started { protocol: PROTOCOL, .. }) => return Ok((link, started)),
            Ok(started) => Ending::Version { name, theirs: started.protocol },
            // It is not asked for anything else.
            Err(error) => Ending::Refused { name, error: error.into() },
        };
        link.shared.end(ending.clone());
        Err(ending.into_error())
    }

    fn spawn(&self) -> Result<Running, Error> {
        let [name, arguments @ ..] = &self.program.command[..] else {
            return Err(Error::permanent("start the provider's executable", "its command is empty"));
        };
        let failed = |reason: String| Ending::NotStarted { name: name.clone(), reason }.into_error();
        let mut command = Command::new(name);
        command.args(arguments).env_clear().envs(inherited_environment());
        command.current_dir(&self.program.directory).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
        let (Some(input), Some(output), Some(errors), Some(id)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take(), child.id())
        else {
            return Err(failed("it has no standard streams".to_owned()));
        };
        let group = Pid::from_raw(id as i32);
        // It waits no longer than the executable runs, which ends with this.
        let end = tokio::task::spawn_blocking(move || ended(group));
        let shared = Arc::new(Shared {
            name: name.clone(),
            group: Mutex::new(Some(group)),
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(Waiting::new())),
            ending: Mutex::new(None),
            words: Mutex::default(),
            changed: self.changed.clone(),
        });
        let (to, lines) = mpsc::channel(MAX_UNWRITTEN);
        let mut tasks = JoinSet::new();
        tasks.spawn(write(input, lines));
        tasks.spawn(listen(errors, shared.clone()));
        tasks.spawn(read(child, end, output, shared.clone()));
        Ok(Running { link: Link { to, shared }, _tasks: tasks })
    }

    async fn call_on<T: DeserializeOwned>(&self, link: &Link, call: Call<'_>) -> Result<T, Error> {
        let (name, timeout, shared) = (call.name(), self.program.timeout, &link.shared);
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let request = Request { id, deadline_ms: timeout.as_millis() as u64, call };
        let line = serde_json::to_string(&request).map_err(|e| Error::permanent(operation(name), e))?;
        let (answer, answered) = oneshot::channel();
        let ended = || Error::transient(operation(name), shared.ending().unwrap_or_else(|| shared.ended("a closed output")));
        match shared.waiting.lock().expect("no panic while it is held").as_mut() {
            Some(waiting) => drop(waiting.insert(id, answer)),
            None => return Err(ended()),
        }
        let exchange = async {
            link.to.send(line).await.map_err(|_| ended())?;
            answered.await.map_err(|_| ended())
        };
        let answer = match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer?,
            Err(_) => {
                let ending = Ending::Silent { name: shared.name.clone(), call: name, within: timeout };
                shared.end(ending.clone());
                return Err(Error::transient(operation(name), ending));
            }
        };
        let value = answer.map_err(|failed| failed.into_error(&operation(name)))?;
        serde_json::from_value(value).map_err(|error| {
            let ending = Ending::Garbage { name: shared.name.clone(), line: format!("the result of {name:?}: {error}") };
            shared.end(ending.clone());
            Error::permanent(operation(name), ending)
        })
    }
}

fn operation(call: &str) -> String {
    format!("call {call:?} of the provider's executable")
}

impl Shared {
    fn is_alive(&self) -> bool {
        self.waiting.lock().expect("no panic while it is held").is_some()
    }

    fn ending(&self) -> Option<Ending> {
        self.ending.lock().expect("no panic while it is held").clone()
    }

    /// Ends it. The first reason stands, and whoever waits for an answer gets it.
    fn end(&self, ending: Ending) {
        {
            let mut first = self.ending.lock().expect("no panic while it is held");
            if first.is_some() {
                return;
            }
            *first = Some(ending.clone());
        }
        tracing::warn!("{ending}");
        self.waiting.lock().expect("no panic while it is held").take();
        self.kill();
    }

    /// Kills it with whatever it started: others of its group may run on when it has ended.
    fn kill(&self) {
        if let Some(group) = *self.group.lock().expect("no panic while it is held") {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }

    /// The same for the last time, before its leader is reaped.
    fn kill_finally(&self) {
        if let Some(group) = self.group.lock().expect("no panic while it is held").take() {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }

    fn ended(&self, status: &str) -> Ending {
        let words = self.words.lock().expect("no panic while it is held");
        let words =
            if words.is_empty() { String::new() } else { format!("; it said: {}", words.iter().cloned().collect::<Vec<_>>().join(" | ")) };
        Ending::Ended { name: self.name.clone(), status: status.to_owned(), words }
    }

    /// Takes a line in; false if it is not part of the protocol.
    fn take(&self, line: &[u8]) -> bool {
        match serde_json::from_slice(line) {
            Ok(Line::Event { event: Event::Changed }) => {
                self.changed.notify_one();
                true
            }
            Ok(Line::Answer(Answer { id, result, error })) => {
                let waiting = self.waiting.lock().expect("no panic while it is held").as_mut().and_then(|waiting| waiting.remove(&id));
                match (waiting, result, error) {
                    (Some(waiting), Some(result), None) => drop(waiting.send(Ok(result))),
                    (Some(waiting), None, Some(error)) => drop(waiting.send(Err(error))),
                    _ => return false,
                }
                true
            }
            Err(_) => false,
        }
    }
}

/// Writes whole lines until nobody has any more.
async fn write(mut input: ChildStdin, mut lines: mpsc::Receiver<String>) {
    while let Some(mut line) = lines.recv().await {
        line.push('\n');
        if input.write_all(line.as_bytes()).await.is_err() || input.flush().await.is_err() {
            return;
        }
    }
}

/// Returns when a child has ended, and leaves it to be reaped.
fn ended(child: Pid) {
    while waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
}

/// Takes answers in until the output ends, and then the executable with it.
async fn read(mut child: Child, mut end: JoinHandle<()>, output: ChildStdout, shared: Arc<Shared>) {
    let mut output = BufReader::new(output);
    let (mut line, mut has_ended) = (Vec::new(), false);
    loop {
        let read = async { (&mut output).take(MAX_LINE).read_until(b'\n', &mut line).await.unwrap_or(0) };
        let length = tokio::select! {
            length = read => length,
            // What it started may hold its output open; what it wrote is still to be read.
            _ = &mut end, if !has_ended => {
                has_ended = true;
                shared.kill();
                continue;
            }
        };
        if length == 0 && line.is_empty() {
            break;
        }
        if !line.ends_with(b"\n") || !shared.take(&line) {
            let text = String::from_utf8_lossy(&line);
            let text: String = text.trim().chars().take(MAX_WORDS).collect();
            shared.end(Ending::Garbage { name: shared.name.clone(), line: text });
            break;
        }
        line.clear();
    }
    shared.kill_finally();
    let status = child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
    // Its last words may come after its output ended.
    tokio::time::sleep(Duration::from_millis(20)).await;
    shared.end(shared.ended(&status));
}

/// Logs what the executable says on its standard error.
async fn listen(errors: ChildStderr, shared: Arc<Shared>) {
    let mut lines = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text: String = String::from_utf8_lossy(&line).trim_end().chars().take(MAX_WORDS).collect();
        tracing::info!(provider = shared.name, "{text}");
        let mut words = shared.words.lock().expect("no panic while it is held");
        words.push_back(text);
        if words.len() > LAST_WORDS {
            words.pop_front();
        }
    }
}
