//! One program that runs for somebody: how it is started, signalled and ended.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cloudtik_model::bootstrap::NODE_HOME_VARIABLE;
use cloudtik_protocol::wire;
use nix::errno::Errno;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::GRACE;
use super::family::{Family, Output};
use super::interpreter::{self, Missing};
use crate::pty::Master;

/// Where programs are looked for when no PATH is set, as the C library does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Why a program cannot be started. The message is for people.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no command was given")]
    NoCommand,
    #[error("the first word of the command is empty: it is to name a program")]
    NoName,
    #[error("cannot run {0}: there is no such program in the PATH of the node")]
    NotFound(String),
    #[error("cannot run {0}: there is no such file on the node")]
    NoFile(String),
    #[error("cannot run {0}: it is a directory")]
    Directory(String),
    #[error("cannot run {0}: it is not executable")]
    NotExecutable(String),
    #[error("cannot run {0}: {1}")]
    Interpreter(String, Missing),
    #[error("cannot create {}", .0.display())]
    WorkingDirectory(PathBuf, #[source] io::Error),
    #[error("cannot open a terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot run {0}")]
    Start(String, #[source] io::Error),
}

impl Error {
    /// As shells have it: 127 for what is not there, 126 for what is no program.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NoCommand | Self::NoName | Self::NotFound(_) | Self::NoFile(_) | Self::Interpreter(..) => 127,
            Self::Directory(_) | Self::NotExecutable(_) | Self::WorkingDirectory(..) | Self::Terminal(_) | Self::Start(..) => 126,
        }
    }
}

pub struct Program {
    pub child: Child,
    /// Its process id, which is also the number of its group and of its session.
    leader: Pid,
    family: Family,
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Whether it is standard error, and the stream.
    pub outputs: Vec<(bool, Box<dyn AsyncRead + Send + Unpin>)>,
    terminal: Option<OwnedFd>,
    /// When it is killed, if it was told to end.
    pub kill_at: Option<Instant>,
    /// Whether all that was to end with it has.
    is_over: bool,
    tasks: TaskTracker,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Not its leader alone, which is what dropping the child kills. Every process of the machine is looked at for that,
        // which takes a while and may hang with a mount.
        if !self.is_over {
            let family = self.family.clone();
            self.tasks.spawn_blocking(move || family.signal(true, Signal::SIGKILL));
        }
    }
}

impl Program {
    pub fn start(home: &Path, execute: &wire::Execute, tasks: &TaskTracker) -> Result<Self, Error> {
        let (program, arguments) = execute.command.split_first().ok_or(Error::NoCommand)?;
        let directory = if execute.directory.is_empty() { home.to_owned() } else { home.join(&execute.directory) };
        let unusable = |error| Error::WorkingDirectory(directory.clone(), error);
        // A node's directory that was deleted does not come back.
        if !home.is_dir() {
            return Err(unusable(std::io::ErrorKind::NotFound.into()));
        }
        cloudtik_protocol::files::create_missing_directories(&directory).map_err(unusable)?;
        let own_path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let path = execute.environment.get("PATH").map_or_else(|| own_path.clone(), OsString::from);
        check(program, &path, &directory)?;
        // It makes the program the leader of a session, and becomes it. It must not lead a group before: it would fork.
        let mut command = Command::new(find("setsid", &own_path, &directory)?);
        if execute.terminal {
            // The terminal becomes the session's.
            command.args(["--ctty", "--wait"]);
        }
        command.arg("--").arg(program).args(arguments).current_dir(&directory).envs(&execute.environment).kill_on_drop(true);
        if let Ok(mark) = env::var(NODE_HOME_VARIABLE) {
            command.env(NODE_HOME_VARIABLE, mark);
        }
        let cannot_start = |error| Error::Start(program.clone(), error);
        let ended_at_once = || cannot_start(io::Error::other("it ended at once"));
        if !execute.terminal {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().map_err(cannot_start)?;
            let leader = child.id().ok_or_else(ended_at_once)? as i32;
            let family = Family::new(leader, [child.stdout.as_ref().and_then(Output::of), child.stderr.as_ref().and_then(Output::of)]);
            let input = child.stdin.take().map(|s| Box::new(s) as Box<_>);
            let mut outputs: Vec<(bool, Box<dyn AsyncRead + Send + Unpin>)> = Vec::new();
            outputs.extend(child.stdout.take().map(|s| (false, Box::new(s) as Box<_>)));
            outputs.extend(child.stderr.take().map(|s| (true, Box::new(s) as Box<_>)));
            let leader = Pid::from_raw(leader);
            return Ok(Self { child, leader, family, input, outputs, terminal: None, kill_at: None, is_over: false, tasks: tasks.clone() });
        }
        let size = execute.size.map(|s| Winsize { ws_row: s.rows as u16, ws_col: s.columns as u16, ws_xpixel: 0, ws_ypixel: 0 });
        let pty = openpty(size.as_ref(), None).map_err(|error| Error::Terminal(error.into()))?;
        // What else is started meanwhile must not hold the terminal open.
        for end in [&pty.master, &pty.slave] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC).map_err(|error| Error::Terminal(error.into()))?;
        }
        let terminal = Output::of(&pty.slave);
        let again = |end: &OwnedFd| end.try_clone().map_err(Error::Terminal);
        command.env("TERM", execute.environment.get("TERM").map_or("xterm-256color", String::as_str));
        command.stdin(again(&pty.slave)?).stdout(again(&pty.slave)?).stderr(pty.slave);
        let child = command.spawn().map_err(cannot_start)?;
        drop(command);
        let leader = child.id().ok_or_else(ended_at_once)? as i32;
        let master = || Master::new(again(&pty.master)?).map_err(Error::Terminal);
        let (reader, writer) = (master()?, master()?);
        Ok(Self {
            child,
            leader: Pid::from_raw(leader),
            family: Family::new(leader, [terminal]),
            input: Some(Box::new(writer)),
            outputs: vec![(false, Box::new(reader))],
            terminal: Some(pty.master),
            kill_at: None,
            is_over: false,
            tasks: tasks.clone(),
        })
    }

    /// Signals the program and what is in its group.
    pub fn signal(&self, signal: Signal) {
        if self.child.id().is_none() {
            return;
        }
        // It may not lead its group yet.
        if killpg(self.leader, signal) == Err(Errno::ESRCH) {
            let _ = kill(self.leader, signal);
        }
    }

    /// Tells the program to end, and after a grace makes it. False: nobody is connected any more.
    pub fn end(&mut self) -> bool {
        self.signal(Signal::SIGTERM);
        self.kill_at = Some(Instant::now() + GRACE);
        false
    }

    pub fn resize(&self, size: wire::TerminalSize) {
        let Some(terminal) = &self.terminal else { return };
        let size = rustix::termios::Winsize { ws_row: size.rows as u16, ws_col: size.columns as u16, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = rustix::termios::tcsetwinsize(terminal, size);
    }

    /// Ends what the program left behind, by the rule of [`Family`]; `copies` are of its output, and end with those that hold it.
    pub async fn end_family(&mut self, copies: &mut JoinSet<()>) {
        self.family.end(copies).await;
        self.is_over = true;
    }
}

/// Whether a program can be run in a directory. Blocks.
pub fn check(program: &str, path: &OsStr, directory: &Path) -> Result<(), Error> {
    let file = find(program, path, directory)?;
    interpreter::missing(&file, directory).map_or(Ok(()), |missing| Err(Error::Interpreter(program.to_owned(), missing)))
}

/// The file of a program, as `execvp` finds it: in the PATH if it is a mere name.
fn find(program: &str, path: &OsStr, directory: &Path) -> Result<PathBuf, Error> {
    if program.is_empty() {
        return Err(Error::NoName);
    }
    let is_name = !program.contains('/');
    let candidates: Vec<PathBuf> = match is_name {
        true => env::split_paths(path).map(|folder| directory.join(folder).join(program)).collect(),
        false => vec![directory.join(program)],
    };
    let mut found = if is_name { Error::NotFound(program.to_owned()) } else { Error::NoFile(program.to_owned()) };
    for candidate in candidates {
        if candidate.is_dir() {
            // In a PATH, it only has the name by chance.
            if !is_name {
                found = Error::Directory(program.to_owned());
            }
        } else if access(&candidate, AccessFlags::X_OK).is_ok() {
            return Ok(candidate);
        } else if candidate.exists() {
            found = Error::NotExecutable(program.to_owned());
        }
    }
    Err(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_run_says_which_kind_it_is() {
        let folder = tempfile::tempdir().expect("makes");
        std::fs::create_dir_all(folder.path().join("bin/ls")).expect("makes");
        std::fs::write(folder.path().join("bin/plain"), "text").expect("writes");
        let try_one = |program: &str| {
            let path = env::join_paths([folder.path().join("bin"), "/usr/bin".into(), "/bin".into()]).expect("a path");
            find(program, &path, folder.path()).map_err(|error| (error.exit_code(), error.to_string()))
        };
        assert!(try_one("ls").is_ok(), "a folder in the PATH does not hide a program");
        let failures = [
            ("", 127, "the first word of the command is empty: it is to name a program"),
            ("no-such", 127, "cannot run no-such: there is no such program in the PATH of the node"),
            ("./no-such", 127, "cannot run ./no-such: there is no such file on the node"),
            ("bin/ls", 126, "cannot run bin/ls: it is a directory"),
            ("bin/plain", 126, "cannot run bin/plain: it is not executable"),
            ("plain", 126, "cannot run plain: it is not executable"),
        ];
        for (program, code, message) in failures {
            assert_eq!(try_one(program), Err((code, message.to_owned())));
        }
    }

    #[tokio::test]
    async fn a_dropped_program_is_killed_with_its_family_beside_the_agents_thread() {
        let folder = tempfile::tempdir().expect("makes");
        let tasks = TaskTracker::new();
        // Its child leaves the session but holds the output.
        let command = ["sh", "-c", "setsid sleep 600 & echo $!; sleep 600"].map(str::to_owned).to_vec();
        let mut program = Program::start(folder.path(), &wire::Execute { command, ..Default::default() }, &tasks).expect("starts");
        let (_, mut out) = program.outputs.remove(0);
        let mut said = [0; 16];
        let n = tokio::io::AsyncReadExt::read(&mut out, &mut said).await.expect("reads");
        let child: i32 = std::str::from_utf8(&said[..n]).expect("text").trim().parse().expect("a number");
        let family = program.family.clone();
        drop(program);
        assert_eq!(tasks.len(), 1, "a task of the tracker looks for them, not the dropping thread");
        tasks.close();
        tasks.wait().await;
        let ended = async {
            while !family.members(true).is_empty() || crate::process::Process::of(child).is_some() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), ended).await.expect("all of them end");
    }
}
