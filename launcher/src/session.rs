//! A program that runs on a node for us: its streams, its exit status, and how it is cancelled from here.

use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::{STDIN_WINDOW, wire};
use nix::poll::PollFlags;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::client::Client;
use crate::failure::{FAILED, Failure, INTERRUPTED, TIMED_OUT};
use crate::interrupts::Interrupts;
pub use crate::output::{Reading, Stream};
use crate::output::{talk, wait_until};

const QUEUE: usize = 16;
const BLOCK: usize = 32 << 10;
const SIGTERM: i32 = 15;
const SIGPIPE: i32 = 13;
const EIO: i32 = 5;
/// From the first interrupt until the program is left to be killed by its agent.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

/// One running program, seen from here.
pub struct Session {
    pub input: Input,
    output: Streaming<wire::SessionFrame>,
    /// The head went away in the middle.
    pub is_broken: bool,
}

/// The way to a program. Input waits for room at the program's end; signals and the end of input do not.
#[derive(Clone)]
pub struct Input {
    frames: mpsc::Sender<wire::SessionFrame>,
    room: Arc<Semaphore>,
    /// Why the input could not be read to its end.
    failure: Arc<OnceLock<String>>,
}

impl Input {
    /// Sends input once there is room for it; false if the program takes no more.
    pub async fn send(&self, bytes: Bytes) -> bool {
        for block in bytes.chunks(BLOCK) {
            let Ok(room) = self.room.acquire_many(block.len() as u32).await else { return false };
            room.forget();
            if self.frames.send(frame(Frame::Stdin(Bytes::copy_from_slice(block)))).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Ends the input where it could not be read further: a program that ends well has not got all of it.
    async fn fail(&self, why: String) -> bool {
        let _ = self.failure.set(why);
        self.tell(Frame::EndOfInput(true)).await
    }

    /// Says something that needs no room; false if the stream is closed.
    pub async fn tell(&self, what: Frame) -> bool {
        self.frames.send(frame(what)).await.is_ok()
    }
}

fn frame(frame: Frame) -> wire::SessionFrame {
    wire::SessionFrame { frame: Some(frame) }
}

impl Session {
    pub async fn open(client: &Client, node: &str, what: What) -> Result<Self, Failure> {
        let (sender, frames) = mpsc::channel(QUEUE);
        let input = Input { frames: sender, room: Arc::new(Semaphore::new(STDIN_WINDOW)), failure: Arc::default() };
        input.tell(Frame::Open(wire::OpenRequest { node: node.to_owned(), what: Some(what) })).await;
        let output = client.admin().session(ReceiverStream::new(frames)).await?.into_inner();
        Ok(Self { input, output, is_broken: false })
    }

    /// The next piece of output, or the exit.
    pub async fn next(&mut self) -> Result<Frame, Failure> {
        loop {
            // A stream that breaks is the head's end; what a node's end is comes as an answer.
            let next = match self.output.message().await {
                Err(status) if !matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled) => return Err(status.into()),
                next => next.unwrap_or(None),
            };
            match next {
                Some(wire::SessionFrame {
                    frame: Some(frame @ (Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) | Frame::Position(_))),
                }) => {
                    return Ok(frame);
                }
                Some(wire::SessionFrame { frame: Some(Frame::Taken(bytes)) }) => self.input.room.add_permits(bytes as usize),
                Some(_) => {}
                None => {
                    self.is_broken = true;
                    return Err(Failure::new(TIMED_OUT, "lost the connection to the head, which ends the program"));
                }
            }
        }
    }

    /// Hands output to `show` until the program ends; returns its exit status. An interrupt cancels the program. Where `show`
    /// says that a stream is not read any more, the program's writes to it fail from then on, as in a pipeline; its end by
    /// SIGPIPE is then no failure.
    pub async fn follow(&mut self, mut show: impl FnMut(Stream, &[u8]) -> Reading) -> Result<u8, Failure> {
        let mut interrupts = Interrupts::listen()?;
        let mut asked = false;
        let mut closed: Vec<Stream> = Vec::new();
        let mut give_up = std::pin::pin!(tokio::time::sleep(Duration::MAX));
        loop {
            let interrupted = tokio::select! {
                next = self.next() => {
                    let (stream, bytes) = match next? {
                        Frame::Stdout(bytes) => (Stream::Out, bytes),
                        Frame::Stderr(bytes) => (Stream::Error, bytes),
                        Frame::Exit(_) if asked => {
                            talk("cancelled");
                            return Ok(INTERRUPTED);
                        }
                        Frame::Exit(exit) if !closed.is_empty() && exit.code == 128 + SIGPIPE => return Ok(0),
                        Frame::Exit(exit) => {
                            let status = exit_status(exit)?;
                            let why = self.input.failure.get().filter(|_| status == 0);
                            return why.map_or(Ok(status), |why| Err(Failure::failed(why.clone())));
                        }
                        _ => continue,
                    };
                    if !closed.contains(&stream) && show(stream, &bytes) == Reading::Ended {
                        closed.push(stream);
                        self.input.tell(Frame::CloseOutput(to_wire(stream).into())).await;
                    }
                    false
                },
                () = interrupts.next() => true,
                () = &mut give_up, if asked => {
                    talk("it does not end; disconnecting, which kills it");
                    return Ok(INTERRUPTED);
                }
            };
            if interrupted {
                // Dropping the session ends what is left of it.
                if asked || !self.input.tell(Frame::Signal(SIGTERM)).await {
                    return Ok(INTERRUPTED);
                }
                asked = true;
                give_up.as_mut().reset(tokio::time::Instant::now() + CANCEL_PATIENCE);
                talk("cancelling; press Ctrl-C again to leave at once");
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // There will be no more room: whoever waits for it need not.
        self.input.room.close();
    }
}

pub fn to_wire(stream: Stream) -> wire::OutputStream {
    match stream {
        Stream::Out => wire::OutputStream::Stdout,
        Stream::Error => wire::OutputStream::Stderr,
    }
}

pub fn exit_status(exit: wire::Exit) -> Result<u8, Failure> {
    if exit.error.is_empty() {
        return Ok(u8::try_from(exit.code).unwrap_or(FAILED));
    }
    Err(Failure::new(u8::try_from(exit.code).unwrap_or(FAILED), exit.error))
}

/// Reads standard input, for one program or for several at once, on a thread of its own: it cannot be waited for
/// otherwise.
pub fn forward_input(mut to: Vec<Input>) {
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let mut buffer = vec![0; BLOCK];
        loop {
            let read = read_input(&mut buffer).map(|read| Bytes::copy_from_slice(&buffer[..read]));
            let is_end = read.as_ref().map_or(true, Bytes::is_empty);
            // Programs that ended need no more.
            to.retain(|to| {
                runtime.block_on(async {
                    match &read {
                        Ok(bytes) if bytes.is_empty() => to.tell(Frame::EndOfInput(true)).await,
                        Ok(bytes) => to.send(bytes.clone()).await,
                        Err(error) => to.fail(format!("cannot read the input: {error}")).await,
                    }
                })
            });
            if is_end || to.is_empty() {
                return;
            }
        }
    });
}

/// Reads from standard input; nothing at its end.
fn read_input(buffer: &mut [u8]) -> io::Result<usize> {
    let mut input = io::stdin();
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_until(input.as_fd(), PollFlags::POLLIN)?,
            // A terminal that is gone has ended.
            Err(error) if error.raw_os_error() == Some(EIO) && input.is_terminal() => return Ok(0),
            result => return result,
        }
    }
}

/// Puts bytes together to lines.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes bytes in and gives every line that is whole now, without its end.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.0.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        lines
    }

    /// How many bytes wait for the end of their line.
    pub fn waiting(&self) -> usize {
        self.0.len()
    }

    /// What is left without an end.
    pub fn rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.0);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}
