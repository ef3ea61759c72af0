//! A program that is stopped at every system call, to be killed at one of them (ptrace(2)).

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The program itself.
    Starter,
    /// Its first child.
    FirstProcess,
}

pub struct Traced {
    child: Child,
}

/// How a traced program went.
pub struct Ended {
    pub was_killed: bool,
    /// What the program wrote.
    pub said: String,
}

impl Traced {
    /// Starts a program that waits until it is traced.
    pub fn start(program: &Path, arguments: &[&OsStr]) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read go; exec \"$@\"", "sh"]).arg(program).args(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
        Self { child }
    }

    /// Lets it go on to the stop of this number, and kills it there; or to its end.
    pub fn kill_at(mut self, victim: Victim, at: usize) -> Ended {
        let starter = Pid::from_raw(self.child.id().cast_signed());
        request(libc::PTRACE_ATTACH, starter, 0);
        waitpid(starter, None).expect("is stopped");
        let children = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
        let options = if victim == Victim::FirstProcess { children } else { 0 };
        request(libc::PTRACE_SETOPTIONS, starter, libc::PTRACE_O_TRACEEXEC | options);
        self.child.stdin.take().expect("piped").write_all(b"\n").expect("writes");
        request(libc::PTRACE_CONT, starter, 0);
        // The shell becomes the program.
        while !matches!(waitpid(starter, None).expect("is traced"), WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC)) {
            request(libc::PTRACE_CONT, starter, 0);
        }
        let go_on = if victim == Victim::Starter { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        request(go_on, starter, 0);
        let (mut first, mut stops, mut was_killed, mut has_ended) = (None, 0, false, false);
        // Not the children of other threads.
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            let Some(pid) = status.pid() else { continue };
            if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
                has_ended |= pid == starter;
                if first == Some(pid) {
                    first = None;
                }
                match first {
                    // It is left alone now, for which it must stand still.
                    Some(first) if has_ended => drop(kill(first, Signal::SIGSTOP)),
                    _ if has_ended => break,
                    _ => {}
                }
                continue;
            }
            if pid != starter && has_ended {
                request(libc::PTRACE_DETACH, pid, 0);
                break;
            }
            if pid != starter && first.is_none() {
                first = Some(pid);
                // What it starts is not traced.
                request(libc::PTRACE_SETOPTIONS, pid, 0);
            }
            let is_victim = (pid == starter) == (victim == Victim::Starter);
            stops += usize::from(is_victim);
            if is_victim && stops >= at && !was_killed {
                kill(pid, Signal::SIGKILL).expect("kills");
                was_killed = true;
                continue;
            }
            let signal = match status {
                WaitStatus::Stopped(_, signal) if !matches!(signal, Signal::SIGTRAP | Signal::SIGSTOP) => signal as i32,
                _ => 0,
            };
            request(if is_victim { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT }, pid, signal);
        }
        let mut said = String::new();
        // Nothing else holds the other end.
        self.child.stdout.take().expect("piped").read_to_string(&mut said).expect("reads");
        Ended { was_killed, said }
    }
}

/// Traces a process that goes on, so that it stays after its end until [`reap`].
pub fn seize(process: i32) {
    request(libc::PTRACE_SEIZE, Pid::from_raw(process), 0);
}

/// Takes note of the end of a process that was seized by this thread.
pub fn reap(process: i32) {
    waitpid(Pid::from_raw(process), Some(WaitPidFlag::__WALL)).expect("is traced");
}

#[expect(unsafe_code, reason = "there is no other way to trace; no memory is passed")]
fn request(what: libc::c_uint, pid: Pid, data: i32) {
    // SAFETY: these requests take numbers only.
    let result = unsafe { libc::ptrace(what, pid.as_raw(), std::ptr::null_mut::<libc::c_void>(), data as libc::c_long) };
    // It may have been killed meanwhile, which the next wait tells.
    let errno = nix::errno::Errno::last();
    assert!(result != -1 || errno == nix::errno::Errno::ESRCH, "ptrace {what} of {pid}: {errno}");
}
