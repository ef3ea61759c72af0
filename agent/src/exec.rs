//! Sessions: a program run for somebody at the other end of a stream of its own.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use cloudtik_model::bootstrap::NODE_HOME_VARIABLE;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::bus_client::BusClient;
use cloudtik_protocol::wire::session_frame::Frame;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::home::Home;

/// Frames of output that wait to be sent; when the other end does not read, the program waits.
const OUTGOING: usize = 16;
const BLOCK: usize = 32 << 10;
/// From the end of the stream to SIGKILL, for a program that is still there.
const GRACE: Duration = Duration::from_secs(5);

/// Opens the session that a command asked for, and runs the program in it.
pub async fn serve(home: &Home, channel: Channel, id: String, execute: wire::Execute) -> anyhow::Result<()> {
    let (outgoing, frames) = mpsc::channel(OUTGOING);
    outgoing.send(frame(Frame::Attach(id))).await?;
    let mut incoming = BusClient::new(channel).session(ReceiverStream::new(frames)).await.context("opening the session")?.into_inner();
    let mut program = match Program::start(home.path(), &execute) {
        Ok(program) => program,
        Err(error) => {
            let exit = wire::Exit { code: 127, error: format!("{error:#}") };
            outgoing.send(frame(Frame::Exit(exit))).await?;
            drop(outgoing);
            until_closed(&mut incoming).await;
            return Ok(());
        }
    };
    let group = program.group;
    let copies: Vec<_> = program.outputs.drain(..).map(|(is_error, from)| tokio::spawn(copy(from, is_error, outgoing.clone()))).collect();
    let mut input = program.input.take();
    let mut connected = true;
    let status = loop {
        tokio::select! {
            status = program.child.wait() => break status?,
            message = incoming.message(), if connected => match message {
                Ok(Some(wire::SessionFrame { frame: Some(received) })) => match received {
                    Frame::Stdin(bytes) => {
                        if let Some(to) = &mut input
                            && to.write_all(&bytes).await.is_err()
                        {
                            // The program does not read any more.
                            input = None;
                        }
                    }
                    Frame::EndOfInput(_) => input = None,
                    Frame::Signal(signal) => {
                        if let Ok(signal) = Signal::try_from(signal) {
                            let _ = killpg(group, signal);
                        }
                    }
                    Frame::Resize(size) => program.resize(size),
                    Frame::Attach(_) | Frame::Open(_) | Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) => {}
                },
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    // Nobody is there any more: the program ends too.
                    connected = false;
                    let _ = killpg(group, Signal::SIGTERM);
                    if tokio::time::timeout(GRACE, program.child.wait()).await.is_err() {
                        let _ = killpg(group, Signal::SIGKILL);
                    }
                }
            },
        }
    };
    // What it started and left in its group ends with it.
    let _ = killpg(group, Signal::SIGTERM);
    for task in copies {
        let _ = tokio::time::timeout(GRACE, task).await;
    }
    let _ = outgoing.send(frame(Frame::Exit(wire::Exit { code: exit_code(status), error: String::new() }))).await;
    drop(outgoing);
    until_closed(&mut incoming).await;
    Ok(())
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
    input: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>,
    outputs: Vec<(bool, Box<dyn AsyncRead + Send + Unpin>)>,
    terminal: Option<OwnedFd>,
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
            return Ok(Self { child, group, input, outputs, terminal: None });
        }
        let size = execute.size.map(|s| Winsize { ws_row: s.rows as u16, ws_col: s.columns as u16, ws_xpixel: 0, ws_ypixel: 0 });
        let pty = openpty(size.as_ref(), None).context("opening a terminal")?;
        command.env("TERM", execute.environment.get("TERM").map_or("xterm-256color", String::as_str));
        command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave);
        // `setsid` needs not to lead a group; it forks and waits otherwise, which would lose the group's number.
        let child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        drop(command);
        let group = Pid::from_raw(child.id().context("the program ended at once")? as i32);
        let reader = tokio::fs::File::from_std(File::from(pty.master.try_clone()?));
        let writer = tokio::fs::File::from_std(File::from(pty.master.try_clone()?));
        Ok(Self { child, group, input: Some(Box::new(writer)), outputs: vec![(false, Box::new(reader))], terminal: Some(pty.master) })
    }

    fn resize(&self, size: wire::TerminalSize) {
        let Some(terminal) = &self.terminal else { return };
        let size = rustix::termios::Winsize { ws_row: size.rows as u16, ws_col: size.columns as u16, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = rustix::termios::tcsetwinsize(terminal, size);
    }
}

async fn copy(mut from: Box<dyn AsyncRead + Send + Unpin>, is_error: bool, outgoing: mpsc::Sender<wire::SessionFrame>) {
    let mut buffer = vec![0; BLOCK];
    loop {
        match from.read(&mut buffer).await {
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
