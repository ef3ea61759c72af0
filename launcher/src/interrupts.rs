//! Ctrl-C, and its like for programs, as something that a command can wait for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Failure, INTERRUPTED};

/// SIGINT and SIGTERM.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// From here on an interrupt does not end the command by itself.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns at the next interrupt. One that came since the last call counts.
    pub async fn next(&mut self) {
        self.next_signal().await;
    }

    /// The same, and says which signal it was.
    pub async fn next_signal(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }

    /// Does what changes nothing, unless it is interrupted.
    pub async fn unless<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            result = work => result,
            () = self.next() => Err(Failure::new(INTERRUPTED, "interrupted; nothing was changed")),
        }
    }
}
