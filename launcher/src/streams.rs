//! Whether standard output was open when this program began.
//!
//! A Rust program opens a standard stream that is closed on `/dev/null` before `main`, where everything that is written is
//! lost without an error. So it is looked at before that.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, fcntl};

static OUTPUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

// Sound: it touches nothing that is made later, calls nothing but the system, and cannot panic.
#[ctor::ctor(unsafe)]
fn look() {
    OUTPUT_WAS_CLOSED.store(fcntl(std::io::stdout(), FcntlArg::F_GETFD).is_err(), Ordering::Relaxed);
}

pub fn output_was_closed() -> bool {
    OUTPUT_WAS_CLOSED.load(Ordering::Relaxed)
}
