//! The output of a job on its way to whoever reads it here, from a position on, through restarts of the head and of its agent.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use cloudtik_model::JobId;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::follow::QUIET;
use crate::client::Client;
use crate::failure::{FAILED, Failure, TIMED_OUT};
use crate::output::{Printer, Stream, talk};
use crate::pause::Pause;
use crate::session::{Session, to_wire};

/// Everything that is kept of an output.
const EVERYTHING: u32 = u32::MAX;
/// Pieces of output that wait to be printed.
const QUEUE: usize = 16;
/// How long the output of a job that has ended is waited for.
const REST_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of each output that a document has, the last.
const MAX_KEPT: usize = 16 << 20;

/// The two outputs of a job on their way to whoever reads them here. They are written by a thread of their own: a reader that does not
/// read must not keep interrupts from being heard.
pub struct Output {
    client: Client,
    id: JobId,
    lines: Option<u32>,
    has_ended: watch::Receiver<bool>,
    tails: JoinSet<Result<(), Failure>>,
    /// Until the tails have begun.
    pieces: Option<mpsc::Sender<Piece>>,
    writer: Option<JoinHandle<Kept>>,
    kept: Kept,
}

/// The last part of what was printed, for programs.
#[derive(Default)]
struct Kept {
    stdout: VecDeque<u8>,
    stderr: VecDeque<u8>,
}

impl Kept {
    fn add(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = match stream {
            Stream::Out => &mut self.stdout,
            Stream::Error => &mut self.stderr,
        };
        kept.extend(bytes);
        kept.drain(..kept.len().saturating_sub(MAX_KEPT));
    }
}

impl Output {
    pub fn new(printer: &Printer, client: &Client, id: JobId, lines: Option<u32>, has_ended: watch::Receiver<bool>) -> Self {
        let (pieces, mut printed) = mpsc::channel(QUEUE);
        let printer = printer.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut kept = Kept::default();
            while let Some(Piece { stream, bytes }) = printed.blocking_recv() {
                if printer.is_json() {
                    kept.add(stream, &bytes);
                } else {
                    // The job goes on, and its output is kept, whether or not somebody reads it here.
                    let _ = printer.copy(stream, &bytes);
                }
            }
            kept
        });
        let (client, tails) = (client.clone(), JoinSet::new());
        Self { client, id, lines, has_ended, tails, pieces: Some(pieces), writer: Some(writer), kept: Kept::default() }
    }

    /// Begins to read, if it has not begun.
    pub fn begin(&mut self) {
        let Some(pieces) = self.pieces.take() else { return };
        for stream in [Stream::Out, Stream::Error] {
            let lines = self.lines.unwrap_or(EVERYTHING);
            self.tails.spawn(tail(self.client.clone(), self.id, stream, lines, pieces.clone(), self.has_ended.clone()));
        }
    }

    /// Whether something is being read or written.
    pub fn is_running(&self) -> bool {
        self.pieces.is_none() && self.writer.is_some()
    }

    /// Whether everything was written that there is.
    pub fn is_over(&self) -> bool {
        !self.is_running()
    }

    /// Waits for the next of its parts to end.
    pub async fn step(&mut self) -> Result<(), Failure> {
        if let Some(tail) = self.tails.join_next().await {
            return tail.map_err(|e| Failure::failed(e.to_string()))?;
        }
        if let Some(writer) = &mut self.writer {
            self.kept = writer.await.map_err(|e| Failure::failed(e.to_string()))?;
            self.writer = None;
        }
        Ok(())
    }

    /// The last part of each output, of one that is printed as a document.
    pub fn kept(self) -> (String, String) {
        let text = |bytes: VecDeque<u8>| String::from_utf8_lossy(&Vec::from(bytes)).into_owned();
        (text(self.kept.stdout), text(self.kept.stderr))
    }
}

/// A piece of a job's output.
struct Piece {
    stream: Stream,
    bytes: Bytes,
}

/// Hands on one output of a job: what it printed, what it prints until it has ended, and then what is left.
async fn tail(
    mut client: Client,
    id: JobId,
    stream: Stream,
    lines: u32,
    pieces: mpsc::Sender<Piece>,
    mut has_ended: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let mut after: Option<wire::LogPosition> = None;
    let (mut pause, mut well, mut is_told) = (Pause::default(), Instant::now(), false);
    loop {
        let is_rest = *has_ended.borrow_and_update();
        let logs = wire::Logs {
            job: id.to_string(),
            stream: to_wire(stream).into(),
            lines,
            follow: !is_rest,
            after: after.clone(),
            ..Default::default()
        };
        let before = after.clone();
        let failure = match read(&client, logs, stream, &pieces, &mut after, &mut has_ended).await {
            Read::Whole if is_rest => return Ok(()),
            // It has ended meanwhile: the rest is read once more.
            Read::Ended | Read::Whole => continue,
            Read::Lasting(failure) => return Err(failure),
            Read::Passing(failure) => failure,
        };
        if after != before {
            (pause, well, is_told) = (Pause::default(), Instant::now(), false);
        }
        if is_rest && well.elapsed() >= REST_PATIENCE {
            return Err(failure.hint(format!("its output is kept: try `cloudtik jobs logs {} {id}` later", client.place.name)));
        }
        if !is_told && well.elapsed() >= QUIET {
            talk(&format!("cannot read the job's output: {}; trying again", failure.message));
            is_told = true;
        }
        pause.wait().await;
        match client.reconnect().await {
            Ok(next) => client = next,
            Err(failure) if !client.place.exists() => return Err(failure),
            Err(_) => {}
        }
    }
}

/// Why reading stopped.
enum Read {
    /// At the end of what there is.
    Whole,
    /// The job has ended.
    Ended,
    /// The head or its agent is away.
    Passing(Failure),
    /// Reading again will not help.
    Lasting(Failure),
}

impl From<Failure> for Read {
    fn from(failure: Failure) -> Self {
        if matches!(failure.code, FAILED | TIMED_OUT) { Self::Passing(failure) } else { Self::Lasting(failure) }
    }
}

async fn read(
    client: &Client,
    logs: wire::Logs,
    stream: Stream,
    pieces: &mpsc::Sender<Piece>,
    after: &mut Option<wire::LogPosition>,
    has_ended: &mut watch::Receiver<bool>,
) -> Read {
    let follow = logs.follow;
    let mut session = match Session::open(client, "", What::Logs(logs)).await {
        Ok(session) => session,
        Err(failure) => return failure.into(),
    };
    loop {
        let frame = tokio::select! {
            frame = session.next() => frame,
            _ = has_ended.wait_for(|ended| *ended), if follow => return Read::Ended,
        };
        match frame {
            Ok(Frame::Position(position)) => *after = Some(position),
            Ok(Frame::Stdout(bytes)) => {
                if let Some(position) = after {
                    position.offset += bytes.len() as u64;
                }
                if pieces.send(Piece { stream, bytes }).await.is_err() {
                    return Read::Lasting(Failure::failed("the job's output cannot be written"));
                }
            }
            // An output that is not there is empty.
            Ok(Frame::Exit(exit)) if exit.error.is_empty() => return Read::Whole,
            Ok(Frame::Exit(exit)) => return Read::Lasting(Failure::failed(exit.error)),
            Ok(_) => {}
            Err(failure) => return failure.into(),
        }
    }
}
