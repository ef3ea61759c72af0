//! The processes of a node, found by the mark in their environment.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill as send_signal};
use nix::unistd::Pid;

/// The variable whose value is the instance's directory.
pub use cloudtik_model::bootstrap::NODE_HOME_VARIABLE as MARK;

/// Kills every process that carries the mark of `home`, until none is left.
pub fn kill_marked(home: &Path, within: Duration) -> io::Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let marked = find_marked(home)?;
        if marked.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("processes {marked:?} do not end")));
        }
        for pid in marked {
            kill(pid)?;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends SIGKILL; a process that is gone already is fine.
pub fn kill(pid: i32) -> io::Result<()> {
    match send_signal(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn find_marked(home: &Path) -> io::Result<Vec<i32>> {
    let mut wanted = format!("{MARK}=").into_bytes();
    wanted.extend_from_slice(home.as_os_str().as_bytes());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        // Other users' processes cannot be read and are not ours; dead ones have nothing left to read.
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|b| *b == 0).any(|variable| variable == wanted) {
            found.push(pid);
        }
    }
    Ok(found)
}
