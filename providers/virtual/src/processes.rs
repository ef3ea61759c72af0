//! The processes of the program beside the provider, found by their arguments: what runs is known without any file.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Between two looks at processes that are to end.
const LOOK: Duration = Duration::from_millis(2);
/// In a lock, after the process and its start: it is set up.
pub const READY: &str = "ready";

/// A process, as the machine's own namespace numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstProcess {
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub started: u64,
    pub is_ready: bool,
}

impl FirstProcess {
    /// Reads the lock's content: process id and start, and a word once it is set up.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (pid, started) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { pid, started, is_ready: words.next() == Some(READY) })
    }

    /// Whether it is still that process.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Sends a signal, if it is still that process. One that has ended is fine.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // Now that it is held, its number cannot be given to another.
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(process, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Clock ticks from boot to the start of a process that has not ended (proc_pid_stat(5)).
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
    // One that has ended stays until its parent looks.
    if matches!(*fields.first()?, "Z" | "X") { None } else { fields.get(19)?.parse().ok() }
}

/// The first processes of the machine's nodes, each with the directory of its instance.
pub fn first_processes() -> io::Result<Vec<(FirstProcess, PathBuf)>> {
    // What it starts looks like it for a moment.
    Ok(doing("init")?.into_iter().filter(|(process, _)| is_first(process.pid)).collect())
}

/// The first processes of one instance: one, unless its lock was lost.
pub fn first_of(instance: &Path) -> io::Result<Vec<FirstProcess>> {
    Ok(first_processes()?.into_iter().filter(|(_, of)| of == instance).map(|(process, _)| process).collect())
}

/// The processes that do one thing, each with the directory that it does it for.
pub fn doing(verb: &str) -> io::Result<Vec<(FirstProcess, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // What ends meanwhile is no concern.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let [program, does, directory, ..] = words.as_slice() else { continue };
        if !program.ends_with(b"/cloudtik-virtual") || *does != verb.as_bytes() {
            continue;
        }
        let Some(started) = start_time(pid) else { continue };
        found.push((FirstProcess { pid, started, is_ready: true }, PathBuf::from(OsStr::from_bytes(directory))));
    }
    Ok(found)
}

/// Whether a process is the first one of a namespace of process numbers (proc_pid_status(5)).
fn is_first(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

/// Kills what `find` finds until it finds nothing and all of it has ended.
pub fn end(find: impl Fn() -> io::Result<Vec<FirstProcess>>, within: Duration) -> io::Result<()> {
    let until = Instant::now() + within;
    let mut left: Vec<FirstProcess> = Vec::new();
    loop {
        left.retain(FirstProcess::is_alive);
        if left.is_empty() {
            left = find()?;
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            let numbers: Vec<i32> = left.iter().map(|process| process.pid).collect();
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("the processes {numbers:?} do not end")));
        }
        left.iter().try_for_each(|process| process.signal(Signal::KILL))?;
        std::thread::sleep(LOOK);
    }
}
