//! Sessions: a program run for somebody at the other end of a stream of its own.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use cloudtik_model::bootstrap::NODE_HOME_VARIABLE;
use cloudtik_protocol::logging::plain;
use cloudtik_protocol::wire::bus_client::BusClient;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::{STDIN_WINDOW, wire};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::dialer::Dialer;
use crate::home::Home;
use crate::pty::Master;

/// Frames of output that wait to be sent; when the other end does not read, the program waits.
const OUTGOING: usize = 16;
const BLOCK: usize = 32 << 10;
/// From the end of the stream to SIGKILL, for a program that is still there.
const GRACE: Duration = Duration::from_secs(5);

/// Opens the session that a command asked for, and runs the program in it.
pub async fn serve(home: &Home, dialer: &Dialer, id: String, execute: wire::Execute) -> anyhow::Result<()> {
    let (outgoing, frames) = mpsc::channel(OUTGOING);
    outgoing.send(frame(Frame::Attach(id))).await?;
    let mut incoming =
        BusClient::new(dialer.dial().await?).session(ReceiverStream::new(frames)).await.context("opening the session")?.into_inner();
    let mut program = match Program::start(home.path(), &execute) {
        Ok(program) => program,
        Err(error) => {
            let exit = wire::Exit { code: 127, error: plain(&format!("{error:#}")) };
            outgoing.send(frame(Frame::Exit(exit))).await?;
            drop(outgoing);
            until_closed(&mut incoming).await;
            return Ok(());
        }
    };
    let group = program.group;
    let ended = CancellationToken::new();
    // They end with this: if the agent stops, so does what it runs for people.
    let (mut copies, mut feeding) = (JoinSet::new(), JoinSet::new());
    for (is_error, from) in program.outputs.drain(..) {
        copies.spawn(copy(from, is_error, outgoing.clone(), ended.clone()));
    }
    // Written by a task of its own: a program that does not read must not keep us from hearing signals, nor the end.
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut input = program.input.take().map(|to| {
        let (sender, blocks) = mpsc::unbounded_channel();
        feeding.spawn(feed(to, blocks, waiting.clone(), outgoing.clone()));
        sender
    });
    let mut connected = true;
    let status = loop {
        tokio::select! {
            status = program.child.wait() => break status?,
            message = incoming.message(), if connected => match message {
                Ok(Some(wire::SessionFrame { frame: Some(received) })) => match received {
                    Frame::Stdin(bytes) => {
                        if waiting.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() > STDIN_WINDOW {
                            tracing::warn!("a session is ended: its other end sends more than there is room for");
                            connected = program.end();
                        }
                        // An error means that the program takes no more.
                        let _ = input.as_ref().map(|to| to.send(bytes));
                    }
                    Frame::EndOfInput(_) => input = None,
                    Frame::Signal(signal) => {
                        if let Ok(signal) = Signal::try_from(signal) {
                            let _ = killpg(group, signal);
                        }
                    }
                    Frame::Resize(size) => program.resize(size),
                    Frame::Attach(_) | Frame::Open(_) | Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) | Frame::Taken(_) => {}
                },
                Ok(Some(_)) => {}
                // Nobody is there any more: the program ends too.
                Ok(None) | Err(_) => connected = program.end(),
            },
            () = tokio::time::sleep_until(program.kill_at.unwrap_or_else(Instant::now)), if program.kill_at.is_some() => {
                let _ = killpg(group, Signal::SIGKILL);
                program.kill_at = None;
            }
        }
    };
    // What it started and left in its group ends with it.
    let _ = killpg(group, Signal::SIGTERM);
    ended.cancel();
    while copies.join_next().await.is_some() {}
    drop(input);
    remove(home.path(), &execute);
    let _ = outgoing.send(frame(Frame::Exit(wire::Exit { code: exit_code(status), error: String::new() }))).await;
    drop(outgoing);
    until_closed(&mut incoming).await;
    Ok(())
}

/// Hands input to the program until there is no more, and says what it took: that is room for as much again.
async fn feed(
    mut to: Box<dyn AsyncWrite + Send + Unpin>,
    mut blocks: mpsc::UnboundedReceiver<Bytes>,
    waiting: Arc<AtomicUsize>,
    outgoing: mpsc::Sender<wire::SessionFrame>,
) {
    let mut takes = true;
    while let Some(block) = blocks.recv().await {
        // A program that takes no more must not keep the other end waiting for room.
        takes = takes && to.write_all(&block).await.and(to.flush().await).is_ok();
        waiting.fetch_sub(block.len(), Ordering::Relaxed);
        if outgoing.send(frame(Frame::Taken(block.len() as u32))).await.is_err() {
            return;
        }
    }
}

/// Removes what was brought for the program only.
fn remove(home: &Path, execute: &wire::Execute) {
    if execute.directory.is_empty() {
        return;
    }
    let directory = home.join(&execute.directory);
    for name in execute.remove.iter().filter(|name| !name.contains('/') && *name != "..") {
        let _ = std::fs::remove_file(directory.join(name));
    }
    if !execute.remove.is_empty() {
        let _ = std::fs::remove_dir(directory);
    }
}

/// The head closes when it has everything; leaving sooner would take back what is still on its way.
async fn until_closed(incoming: &mut tonic::Streaming<wire::SessionFrame>) {
    let _ = tokio::time::timeout(GRACE, async { while let Ok(Some(_)) = incoming.message().await {} }).await;
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1)
}

struct Program {
    child: Child,
    group: Pid,
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    outputs: Vec<(bool, Box<dyn AsyncRead + Send + Unpin>)>,
    terminal: Option<OwnedFd>,
    /// When it is killed, if it was told to end.
    kill_at: Option<Instant>,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Not its leader alone, which is what dropping the child kills.
        if self.child.id().is_some() {
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }
}

impl Program {
    fn start(home: &Path, execute: &wire::Execute) -> anyhow::Result<Self> {
        let (program, arguments) = execute.command.split_first().context("no command was given")?;
        let directory = if execute.directory.is_empty() { home.to_owned() } else { home.join(&execute.directory) };
        std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let mut command = if execute.terminal {
            // `setsid --ctty` gives the program the terminal as its controlling one.
            let mut command = Command::new("setsid");
            command.args(["--ctty", "--wait", program]);
            command
        } else {
            Command::new(program)
        };
        command.args(arguments).current_dir(&directory).envs(&execute.environment).kill_on_drop(true);
        if let Ok(mark) = std::env::var(NODE_HOME_VARIABLE) {
            command.env(NODE_HOME_VARIABLE, mark);
        }
        if !execute.terminal {
            command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
            let group = Pid::from_raw(child.id().context("the program ended at once")? as i32);
            let input = child.stdin.take().map(|s| Box::new(s) as Box<_>);
            let mut outputs: Vec<(bool, Box<dyn AsyncRead + Send + Unpin>)> = Vec::new();
            outputs.extend(child.stdout.take().map(|s| (false, Box::new(s) as Box<_>)));
            outputs.extend(child.stderr.take().map(|s| (true, Box::new(s) as Box<_>)));
            return Ok(Self { child, group, input, outputs, terminal: None, kill_at: None });
        }
        let size = execute.size.map(|s| Winsize { ws_row: s.rows as u16, ws_col: s.columns as u16, ws_xpixel: 0, ws_ypixel: 0 });
        let pty = openpty(size.as_ref(), None).context("opening a terminal")?;
        // What else is started meanwhile must not hold the terminal open.
        for end in [&pty.master, &pty.slave] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC).context("opening a terminal")?;
        }
        command.env("TERM", execute.environment.get("TERM").map_or("xterm-256color", String::as_str));
        command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave);
        // `setsid` needs not to lead a group; it forks and waits otherwise, which would lose the group's number.
        let child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        drop(command);
        let group = Pid::from_raw(child.id().context("the program ended at once")? as i32);
        let (reader, writer) = (Master::new(pty.master.try_clone()?)?, Master::new(pty.master.try_clone()?)?);
        Ok(Self {
            child,
            group,
            input: Some(Box::new(writer)),
            outputs: vec![(false, Box::new(reader))],
            terminal: Some(pty.master),
            kill_at: None,
        })
    }

    /// Tells the program to end, and after a grace makes it. False: nobody is connected any more.
    fn end(&mut self) -> bool {
        let _ = killpg(self.group, Signal::SIGTERM);
        self.kill_at = Some(Instant::now() + GRACE);
        false
    }

    fn resize(&self, size: wire::TerminalSize) {
        let Some(terminal) = &self.terminal else { return };
        let size = rustix::termios::Winsize { ws_row: size.rows as u16, ws_col: size.columns as u16, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = rustix::termios::tcsetwinsize(terminal, size);
    }
}

/// Sends what the program says. Once it has ended, what others of it hold open is not waited for.
async fn copy(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    is_error: bool,
    outgoing: mpsc::Sender<wire::SessionFrame>,
    ended: CancellationToken,
) {
    let given_up = async {
        ended.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::pin!(given_up);
    let mut buffer = vec![0; BLOCK];
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = &mut given_up => return,
        };
        match read {
            // A terminal whose programs are gone answers with an error.
            Ok(0) | Err(_) => return,
            Ok(n) => {
                let bytes = Bytes::copy_from_slice(&buffer[..n]);
                let frame = frame(if is_error { Frame::Stderr(bytes) } else { Frame::Stdout(bytes) });
                if outgoing.send(frame).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn frame(frame: Frame) -> wire::SessionFrame {
    wire::SessionFrame { frame: Some(frame) }
}
