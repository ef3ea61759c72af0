//! The shim: owns one process, its logs and its exit status, and outlives the agent.
//!
//! It reads `run.json`, starts the process in a group of its own, copies its output to bounded logs, forwards the stop
//! signal, reaps, and leaves `exit.json`. It tells its starter one line on its standard output: `started` or what went
//! wrong. One thread, no runtime: it must be small and simple, for it is what cannot be restarted.
//!
//! A service's process is started as often as its shim is. A run with [`Once`] (an attempt of a job) begins at most once: its
//! shim, which holds the directory's lock, starts nothing where a file says that it has begun or never is to, and writes `begun`
//! durably before it starts the process. If `begun` is there, but neither `exit.json` nor a shim that holds the lock, the shim was killed.

mod files;
mod launch;
mod log;

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cloudtik_protocol::files::write_atomically;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use self::files::Reserved;
pub use self::files::{BEGUN_FILE, Begun, END_FILE, EXIT_FILE, Exit, LOCK_FILE, LOG_FILE, Once, RUN_FILE, Run, STATE_FILE, State};
#[cfg(test)]
pub(crate) use self::launch::program;
pub use self::launch::{Launched, launch};
pub use self::log::Log;
use crate::clock::now;
use crate::process::Process;

/// What the shim says when the process runs.
const STARTED: &str = "started";
/// What it says when another shim has the directory, or the agent itself.
const OCCUPIED: &str = "occupied";
/// What it says of a run that happens once, and has begun or is never to.
const BEGUN: &str = "begun";
/// Output is read in blocks of at most so many bytes.
const BLOCK: usize = 256 << 10;
/// What the pipe of a job's output holds, in bytes, where the kernel allows it.
const PIPE: i32 = 1 << 20;
/// Blocks of output that are still read when the process has ended: more than a pipe holds.
const LAST_WORDS: u32 = 64;
/// How long what forked away may take to end.
const ORPHANS_END: Duration = Duration::from_secs(2);
/// From one SIGKILL to the next, where the process does not end.
const KILL_AGAIN: Duration = Duration::from_secs(1);

pub fn main(directory: &Path) -> ExitCode {
    match start(directory) {
        Ok(Start::Runs(shim)) => {
            say(STARTED);
            shim.attend()
        }
        Ok(Start::Occupied) => {
            say(OCCUPIED);
            ExitCode::SUCCESS
        }
        Ok(Start::Begun) => {
            say(BEGUN);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn say(word: &str) {
    let mut out = io::stdout();
    // The starter may be gone: that changes nothing here.
    let _ = writeln!(out, "{word}");
    let _ = out.flush();
}

enum Start {
    Runs(Box<Shim>),
    Occupied,
    Begun,
}

struct Shim {
    directory: PathBuf,
    run: Run,
    process: Process,
    started_at: u64,
    outputs: Vec<Output>,
    buffer: Vec<u8>,
    signals: SignalFd,
    exit_file: Option<Reserved>,
    stopped: bool,
    timed_out: bool,
    /// Once it was told to end.
    kill_at: Option<Instant>,
    /// When its time is over.
    deadline: Option<Instant>,
    /// Held for the shim's life.
    _lock: File,
}

/// What the process prints into one pipe, and where that goes.
struct Output {
    pipe: Option<PipeReader>,
    log: Log,
}

fn start(directory: &Path) -> io::Result<Start> {
    let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(directory.join(LOCK_FILE))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(Start::Occupied),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    let run: Run = serde_json::from_slice(&fs::read(directory.join(RUN_FILE))?)?;
    if run.once.is_some() && files::has_begun(directory) {
        return Ok(Start::Begun);
    }
    // Says whose it is, should shim.json be lost.
    lock.set_len(0)?;
    writeln!(&lock, "{}", std::process::id())?;
    let _ = nix::sys::prctl::set_name(c"cloudtik-shim");
    // A session of our own: no terminal's hang-up, no group signal meant for the agent reaches us.
    setsid()?;
    // Orphans of the process come to us to be reaped.
    nix::sys::prctl::set_child_subreaper(true)?;
    let started_at = now().0;
    let (state_file, exit_file) = (Reserved::new(directory, STATE_FILE), Reserved::new(directory, EXIT_FILE));
    if run.once.is_none() {
        match fs::remove_file(directory.join(EXIT_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A service goes on where its end could not be written.
        return Shim::begin(directory, run, started_at, (state_file.ok(), exit_file.ok()), lock);
    }
    // Once it has begun, what it is known by must be written: it does not begin again.
    let (state_file, exit_file) = (state_file?, exit_file?);
    files::begin(directory, started_at)?;
    Shim::begin(directory, run, started_at, (Some(state_file), Some(exit_file)), lock)
}

impl Shim {
    /// Starts the process. Where that fails, the end of a run that happens once says so.
    fn begin(
        directory: &Path,
        run: Run,
        started_at: u64,
        (state_file, exit_file): (Option<Reserved>, Option<Reserved>),
        lock: File,
    ) -> io::Result<Start> {
        let is_once = run.once.is_some();
        let failed = |exit_file: Option<Reserved>, error: io::Error| {
            if is_once {
                let exit = Exit { not_started: Some(error.to_string()), started_at, ended_at: now().0, ..Exit::default() };
                let _ = write(directory, EXIT_FILE, exit_file, &exit.to_json());
            }
            error
        };
        let (outputs, process, signals) = match spawn(directory, &run) {
            Ok(spawned) => spawned,
            Err(error) => return Err(failed(exit_file, error)),
        };
        let state = State {
            shim: Process::of(std::process::id() as i32).ok_or_else(|| io::Error::other("/proc does not show this process"))?,
            process,
            identity: run.identity.clone(),
            stop_grace_ms: run.stop_grace_ms,
            starts: run.starts,
            started_at,
            artifacts: run.artifacts.clone(),
        };
        if let Err(error) = write(directory, STATE_FILE, state_file, &serde_json::to_vec(&state)?) {
            // Nobody would know of it.
            let _ = process.kill_group();
            return Err(failed(exit_file, error));
        }
        let timeout = run.once.as_ref().and_then(|once| once.timeout_ms);
        Ok(Start::Runs(Box::new(Self {
            directory: directory.to_owned(),
            run,
            process,
            started_at,
            outputs,
            buffer: vec![0; BLOCK],
            signals,
            exit_file,
            stopped: false,
            timed_out: false,
            kill_at: None,
            deadline: timeout.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms))),
            _lock: lock,
        })))
    }

    fn attend(mut self) -> ExitCode {
        // It may have ended before its end could be heard of.
        if let Some(exit) = self.reap() {
            return self.finish(exit);
        }
        loop {
            let next = if self.kill_at.is_some() { self.kill_at } else { self.deadline };
            let timeout = next.map_or(PollTimeout::NONE, |at| {
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let mut polled = Vec::new();
            for (n, output) in self.outputs.iter().enumerate() {
                if let Some(pipe) = &output.pipe {
                    descriptors.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
                    polled.push(n);
                }
            }
            match poll(&mut descriptors, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
            let has_output = |descriptor: &PollFd<'_>| descriptor.any().unwrap_or(false);
            let readable: Vec<usize> = polled.into_iter().zip(&descriptors[1..]).filter(|(_, d)| has_output(d)).map(|(n, _)| n).collect();
            for n in readable {
                self.outputs[n].copy(&mut self.buffer);
            }
            // Before signals: what has ended by itself is not ended by one.
            if let Some(exit) = self.reap() {
                return self.finish(exit);
            }
            while let Ok(Some(signal)) = self.signals.read_signal() {
                if signal.ssi_signo == Signal::SIGTERM as u32 && self.kill_at.is_none() {
                    self.stopped = true;
                    self.stop();
                }
            }
            if self.kill_at.is_none() && self.deadline.is_some_and(|at| at <= Instant::now()) {
                self.timed_out = true;
                self.stop();
            }
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                let _ = self.process.kill_group();
                self.kill_at = Some(Instant::now() + KILL_AGAIN);
            }
        }
    }

    /// Tells the process to end, and when it is made to.
    fn stop(&mut self) {
        let signal = Signal::try_from(self.run.stop_signal).unwrap_or(Signal::SIGTERM);
        let _ = killpg(Pid::from_raw(self.process.pid), signal);
        self.kill_at = Some(Instant::now() + Duration::from_millis(self.run.stop_grace_ms));
    }

    /// Reaps whatever ended; returns how our process did.
    fn reap(&self) -> Option<Exit> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == self.process.pid => {
                    return Some(Exit { code: Some(code), ..Exit::default() });
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == self.process.pid => {
                    return Some(Exit { signal: Some(signal as i32), ..Exit::default() });
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn finish(mut self, exit: Exit) -> ExitCode {
        // What the process left behind is not a service any more, nor a job: its group, and whatever forked away from that, which
        // came to us when its parent ended.
        let _ = self.process.kill_group();
        if !self.run.leaves_children {
            self.end_orphans();
        }
        for output in &mut self.outputs {
            for _ in 0..LAST_WORDS {
                let Some(pipe) = &output.pipe else { break };
                // What it said last, but no waiting for strangers that hold the pipe.
                let mut ready = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
                if !poll(&mut ready, PollTimeout::ZERO).is_ok_and(|n| n > 0) {
                    break;
                }
                output.copy(&mut self.buffer);
            }
        }
        let exit = Exit {
            memory_limit: self.run.groups.ran_out_of_memory(),
            stopped: self.stopped,
            timed_out: self.timed_out,
            lost_output: self.outputs.iter().map(|output| output.log.lost()).sum(),
            started_at: self.started_at,
            ended_at: now().0,
            ..exit
        };
        self.run.groups.remove();
        let _ = write(&self.directory, EXIT_FILE, self.exit_file.take(), &exit.to_json());
        ExitCode::SUCCESS
    }

    /// Kills what is left of the service, and what comes to us when that ends, until there is no child any more.
    fn end_orphans(&self) {
        let deadline = Instant::now() + ORPHANS_END;
        while Instant::now() < deadline {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
                    for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl Output {
    fn new(log: Log) -> io::Result<(Self, PipeWriter)> {
        let (pipe, input) = io::pipe()?;
        Ok((Self { pipe: Some(pipe), log }, input))
    }

    /// Copies one block.
    fn copy(&mut self, buffer: &mut [u8]) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read(buffer) {
            Ok(0) => self.pipe = None,
            Ok(n) => self.log.write(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.pipe = None,
        }
    }
}

/// Starts the process with its pipes, in its groups.
fn spawn(directory: &Path, run: &Run) -> io::Result<(Vec<Output>, Process, SignalFd)> {
    let open = |path: PathBuf| Log::open(path, run.log_max_bytes, run.log_keep);
    let (outputs, stdout, stderr) = match &run.once {
        None => {
            let (output, input) = Output::new(open(directory.join(LOG_FILE))?)?;
            (vec![output], input.try_clone()?, input)
        }
        Some(once) => {
            let (out, stdout) = Output::new(open(once.stdout.clone())?)?;
            let mut log = open(once.stderr.clone())?;
            if once.attempt > 1 {
                log.mark(&format!("--- attempt {} ---", once.attempt));
            }
            let (err, stderr) = Output::new(log)?;
            for input in [&stdout, &stderr] {
                // Fewer turns for much output; without the right to it, the usual size does.
                let _ = fcntl(input, FcntlArg::F_SETPIPE_SZ(PIPE));
            }
            (vec![out, err], stdout, stderr)
        }
    };
    let (program, arguments) = run.command.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    // Born in its groups, so that nothing that it starts can escape them; the shim itself does not count.
    run.groups.enter()?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(run.environment.iter().map(|(k, v)| (k, v)))
        .current_dir(run.once.as_ref().map_or(directory, |once| &once.work))
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0)
        .spawn();
    run.groups.leave();
    let child = child.map_err(|e| io::Error::new(e.kind(), format!("cannot start {program}: {e}")))?;
    let process = Process { pid: child.id() as i32, started: Process::of(child.id() as i32).map_or(0, |p| p.started) };
    // Only now: a process inherits what is blocked, and must find every signal as usual.
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGPIPE] {
        blocked.add(signal);
    }
    let signals = blocked.thread_block().and_then(|()| SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK));
    let signals = signals.inspect_err(|_| drop(process.kill_group()))?;
    Ok((outputs, process, signals))
}

/// In place where room was reserved, so that a full disk does not keep it from being written.
fn write(directory: &Path, name: &str, reserved: Option<Reserved>, text: &[u8]) -> io::Result<()> {
    match reserved.map(|file| file.commit(text)) {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) | None => write_atomically(&directory.join(name), text, 0o600),
    }
}
