//! Whoever reads what a command prints. A command that prints news for as long as it runs ends when its reader closes the
//! pipe, not only when it has something to print again.

use std::io;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

use crate::failure::Failure;

/// Runs a command until it ends, or until the reader of standard output closes it, which is success.
pub async fn while_read(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let (closed, is_closed) = oneshot::channel();
    // On a thread of its own, which ends with the process: waiting for this is not reading or writing.
    std::thread::spawn(move || {
        let out = io::stdout();
        let mut watched = [PollFd::new(out.as_fd(), PollFlags::empty())];
        let is_over = |flags: PollFlags| flags.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
        // What is not a pipe never says that it is closed.
        while let Ok(_) | Err(nix::errno::Errno::EINTR) = poll(&mut watched, PollTimeout::NONE) {
            match watched[0].revents() {
                Some(flags) if is_over(flags) => {
                    let _ = closed.send(());
                    return;
                }
                // Standard output is not open at all: writing says so.
                Some(flags) if !flags.is_empty() => return,
                _ => {}
            }
        }
    });
    tokio::select! {
        result = command => result,
        Ok(()) = is_closed => Ok(()),
    }
}
