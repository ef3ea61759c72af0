//! What programs say: the lines of the head and the agent on standard error, chosen by `CLOUDTIK_LOG`, and errors as text.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloudtik_model::secret;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged: `info` unless `CLOUDTIK_LOG` says otherwise, such as `debug` or `info,h2=trace`.
pub fn start() {
    let wanted = std::env::var("CLOUDTIK_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let targets = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(|| WithoutSecrets(std::io::stderr())).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(targets).init();
}

/// Writes lines without the secrets that can be told in them.
struct WithoutSecrets<W>(W);

impl<W: Write> Write for WithoutSecrets<W> {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.write_all(secret::redact(&String::from_utf8_lossy(lines)).as_bytes())?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What the operating system says of a full disk, as errors of other crates and other programs carry it in their texts.
const FULL_DISK: [(&str, &str); 6] = [
    ("[Errno 28] No space left on device", "the disk is full"),
    ("No space left on device (os error 28)", "the disk is full"),
    ("No space left on device", "the disk is full"),
    ("[Errno 122] Disk quota exceeded", "the disk is full: the user's quota is used up"),
    ("Disk quota exceeded (os error 122)", "the disk is full: the user's quota is used up"),
    ("Disk quota exceeded", "the disk is full: the user's quota is used up"),
];

/// A message in which a full disk is called a full disk, however deep in it that stands, and secrets are left out: for the
/// edge at which it is shown.
pub fn plain(message: &str) -> String {
    FULL_DISK.iter().fold(
        secret::redact(message),
        |text, (system, plain)| {
            if text.contains(system) { text.replace(system, plain) } else { text }
        },
    )
}

/// Whether a message that went through [`plain`] is about a full disk.
pub fn is_full_disk(message: &str) -> bool {
    message.contains("the disk is full")
}

/// An error with everything behind it, on one line: for the edge at which it is shown.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    plain(&text)
}

/// Keeps what strangers cause from filling the log: so many lines a second, the rest only counted.
#[derive(Debug, Default)]
pub struct LogRateLimiter(Mutex<Spent>);

#[derive(Debug, Default)]
struct Spent {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

const LINES_A_SECOND: u32 = 20;

impl LogRateLimiter {
    /// Whether a line may be written now, and how many were left out before it.
    pub fn allow(&self) -> Option<u64> {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            (spent.since, spent.lines) = (Some(Instant::now()), 0);
        }
        if spent.lines == LINES_A_SECOND {
            spent.left_out += 1;
            return None;
        }
        spent.lines += 1;
        Some(std::mem::take(&mut spent.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot commit")]
    struct Outer(#[source] Nested);
    /// As crates do it that put the source into their own text.
    #[derive(Debug, thiserror::Error)]
    #[error("I/O error: {0}")]
    struct Nested(io::Error);

    #[test]
    fn a_full_disk_is_called_a_full_disk_in_nested_messages() {
        let of = |number| Outer(Nested(io::Error::from_raw_os_error(number)));
        assert_eq!(chain(&of(nix::libc::ENOSPC)), "cannot commit: I/O error: the disk is full");
        assert_eq!(chain(&of(nix::libc::EDQUOT)), "cannot commit: I/O error: the disk is full: the user's quota is used up");
        assert_eq!(plain("pip: OSError: [Errno 28] No space left on device: '/x'"), "pip: OSError: the disk is full: '/x'");
        assert_eq!(plain("cat: write error: No space left on device"), "cat: write error: the disk is full");
        assert_eq!(chain(&of(nix::libc::EACCES)), "cannot commit: I/O error: Permission denied (os error 13)");
        assert!(is_full_disk(&chain(&of(nix::libc::ENOSPC))) && !is_full_disk(&chain(&of(nix::libc::EACCES))));
    }

    #[test]
    fn lines_of_the_log_and_messages_have_no_secrets() {
        let mut lines = WithoutSecrets(Vec::new());
        lines.write_all(b"INFO asked http://me:planted@host with password=planted\n").expect("writes");
        assert_eq!(lines.0, b"INFO asked http://me:[secret]@host with password=[secret]\n");
        assert_eq!(plain("cannot fetch http://me:planted@host/x"), "cannot fetch http://me:[secret]@host/x");
    }
}
