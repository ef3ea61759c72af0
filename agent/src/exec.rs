//! Sessions: a program run for somebody at the other end of a stream of its own.
//!
//! Where a program ends, what it started ends too, unless it left the program's session and holds none of its output.

mod family;
mod interpreter;
mod log;
pub mod program;

use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::wire::bus_client::BusClient;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::{STDIN_WINDOW, wire};
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Streaming;

use self::program::Program;
use crate::dialer::Dialer;
use crate::home::Home;

/// Frames of output that wait to be sent; when the other end does not read, the program waits.
const OUTGOING: usize = 16;
const BLOCK: usize = 32 << 10;
/// From the end of the stream to SIGKILL, for a program that is still there.
const GRACE: Duration = Duration::from_secs(5);

/// Opens the session that a command asked for.
async fn open(dialer: &Dialer, id: &str) -> anyhow::Result<(mpsc::Sender<wire::SessionFrame>, Streaming<wire::SessionFrame>)> {
    let (outgoing, frames) = mpsc::channel(OUTGOING);
    outgoing.send(frame(Frame::Attach(id.to_owned()))).await?;
    let opened = BusClient::new(dialer.dial().await?).session(ReceiverStream::new(frames)).await;
    Ok((outgoing, opened.context("opening the session")?.into_inner()))
}

/// Opens the session that a command asked for, and sends a log of the node in it.
pub async fn serve_log(home: &Home, dialer: &Dialer, id: String, wanted: wire::ReadLog) -> anyhow::Result<()> {
    let (outgoing, mut incoming) = open(dialer, &id).await?;
    log::send(home.path().join(&wanted.path), wanted, &outgoing, &mut incoming).await?;
    drop(outgoing);
    until_closed(&mut incoming).await;
    Ok(())
}

/// Opens the session that a command asked for, and runs the program in it.
///
/// If it is cancelled, the program and its family are killed by a task of `tasks`.
pub async fn serve(home: &Home, dialer: &Dialer, tasks: &TaskTracker, id: String, execute: wire::Execute) -> anyhow::Result<()> {
    let (outgoing, mut incoming) = open(dialer, &id).await?;
    let execute = Arc::new(execute);
    // On a thread that may block: the node's directory, the PATH and the program may be on a file system that hangs.
    let (own, asked, tracker) = (home.clone(), execute.clone(), tasks.clone());
    let starting = tokio::task::spawn_blocking(move || Program::start(own.path(), &asked, &tracker));
    let mut program = match starting.await? {
        Ok(program) => program,
        Err(error) => {
            let exit = wire::Exit { code: error.exit_code(), error: chain(&error) };
            outgoing.send(frame(Frame::Exit(exit))).await?;
            drop(outgoing);
            until_closed(&mut incoming).await;
            return Ok(());
        }
    };
    let ended = CancellationToken::new();
    let closed = [CancellationToken::new(), CancellationToken::new()];
    // They end with this: if the agent stops, so does what it runs for people.
    let (mut copies, mut feeding) = (JoinSet::new(), JoinSet::new());
    for (is_error, from) in program.outputs.drain(..) {
        copies.spawn(copy(from, is_error, outgoing.clone(), closed[usize::from(is_error)].clone(), ended.clone()));
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
                            program.signal(signal);
                        }
                    }
                    // A terminal has one stream, and no way to close it but to hang up.
                    Frame::CloseOutput(_) if execute.terminal => program.signal(Signal::SIGHUP),
                    Frame::CloseOutput(stream) => {
                        closed[usize::from(stream == i32::from(wire::OutputStream::Stderr))].cancel();
                    }
                    Frame::Resize(size) => program.resize(size),
                    Frame::Attach(_) | Frame::Open(_) | Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) | Frame::Taken(_) | Frame::Position(_) => {}
                },
                Ok(Some(_)) => {}
                // Nobody is there any more: the program ends too.
                Ok(None) | Err(_) => connected = program.end(),
            },
            () = tokio::time::sleep_until(program.kill_at.unwrap_or_else(Instant::now)), if program.kill_at.is_some() => {
                program.signal(Signal::SIGKILL);
                program.kill_at = None;
            }
        }
    };
    program.end_family(&mut copies).await;
    ended.cancel();
    while copies.join_next().await.is_some() {}
    drop(input);
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

/// The head closes when it has everything; leaving sooner would take back what is still on its way.
async fn until_closed(incoming: &mut Streaming<wire::SessionFrame>) {
    let _ = tokio::time::timeout(GRACE, async { while let Ok(Some(_)) = incoming.message().await {} }).await;
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1)
}

/// Sends what the program prints, until nobody reads it any more: then the program's next write fails. Once the program and its
/// family have ended, what still holds the stream open is not waited for.
async fn copy(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    is_error: bool,
    outgoing: mpsc::Sender<wire::SessionFrame>,
    closed: CancellationToken,
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
            () = closed.cancelled() => return,
            read = from.read(&mut buffer) => read,
            () = &mut given_up => return,
        };
        match read {
            // A terminal whose programs are gone answers with an error.
            Ok(0) | Err(_) => return,
            Ok(n) => {
                let bytes = Bytes::copy_from_slice(&buffer[..n]);
                let frame = frame(if is_error { Frame::Stderr(bytes) } else { Frame::Stdout(bytes) });
                let is_sent = tokio::select! {
                    sent = outgoing.send(frame) => sent.is_ok(),
                    () = closed.cancelled() => false,
                };
                if !is_sent {
                    return;
                }
            }
        }
    }
}

fn frame(frame: Frame) -> wire::SessionFrame {
    wire::SessionFrame { frame: Some(frame) }
}
