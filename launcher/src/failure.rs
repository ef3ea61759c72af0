//! How commands fail, and with which exit status.

use cloudtik_config::diagnostics::InvalidFile;
pub use cloudtik_protocol::logging::chain;
use cloudtik_protocol::readiness::{is_setting_up, is_silent};
use cloudtik_providers as providers;
use tonic::{Code, Status};

/// What went wrong, and what to do next.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub code: u8,
    pub message: String,
    pub hint: Option<String>,
    /// Somebody was asked and said no: nothing was changed.
    pub declined: bool,
    /// Another command changed the cluster meanwhile, so that this one has nothing more to do.
    pub overtaken: bool,
    /// Diagnostics that are printed before the message.
    pub diagnostics: Vec<InvalidFile>,
}

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const INVALID: u8 = 3;
pub const NOT_FOUND: u8 = 4;
pub const REFUSED: u8 = 5;
pub const TIMED_OUT: u8 = 6;
pub const NOT_AUTHORISED: u8 = 7;
/// Of what ended because of an interrupt, as shells have it.
pub const INTERRUPTED: u8 = 130;

impl Failure {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, declined: false, overtaken: false, diagnostics: Vec::new() }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    pub fn invalid(diagnostics: Vec<InvalidFile>) -> Self {
        let count: usize = diagnostics.iter().map(|d| d.problems.len()).sum();
        let message = format!("{count} problem{} found; nothing was changed", if count == 1 { "" } else { "s" });
        Self { diagnostics, ..Self::new(INVALID, message) }
    }

    /// Another command changed the cluster while this one waited.
    pub fn overtaken(message: impl Into<String>) -> Self {
        Self { overtaken: true, ..Self::new(REFUSED, message) }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// The one mapping from the head's answers.
impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument => INVALID,
            Code::NotFound => NOT_FOUND,
            Code::FailedPrecondition | Code::ResourceExhausted => REFUSED,
            Code::DeadlineExceeded | Code::Unavailable => TIMED_OUT,
            Code::PermissionDenied | Code::Unauthenticated => NOT_AUTHORISED,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::AlreadyExists
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => FAILED,
        };
        // Transport errors carry what they are twice over; the innermost says it.
        let message = match std::error::Error::source(&status) {
            Some(source) if status.message().is_empty() || status.code() == Code::Unknown => chain(source),
            _ => status.message().to_owned(),
        };
        // The connection is there, and the other end does not answer its pings.
        if is_silent(&status) {
            let failure = Self::new(TIMED_OUT, "the head does not answer");
            return failure.hint("it may be paused or overloaded; `cloudtik status CLUSTER` shows when it is back");
        }
        let failure = Self::new(code, message);
        if is_setting_up(&status) {
            return failure.hint("`cloudtik up CLUSTER.toml` goes on with it, `cloudtik down CLUSTER` removes it");
        }
        failure
    }
}

/// The one mapping from a provider's errors.
impl From<providers::Error> for Failure {
    fn from(error: providers::Error) -> Self {
        let code = match &error {
            providers::Error::Undeletable { .. }
            | providers::Error::StockOut(_)
            | providers::Error::Quota { .. }
            | providers::Error::Conflict { .. }
            | providers::Error::Throttled { .. } => REFUSED,
            providers::Error::Permission { .. } => NOT_AUTHORISED,
            providers::Error::NotFound(_) => NOT_FOUND,
            providers::Error::Mismatch(_) | providers::Error::Transient { .. } | providers::Error::Permanent { .. } => FAILED,
        };
        Self::new(code, chain(&error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<cloudtik_protocol::pki::Error> for Failure {
    fn from(error: cloudtik_protocol::pki::Error) -> Self {
        Self::failed(chain(&error))
    }
}

/// Why a head cannot be dialled. Transport errors repeat what they are about at every layer: the innermost says it.
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = || std::iter::successors(Some(error), |e| e.source());
    match causes().find_map(io_kind) {
        Some(std::io::ErrorKind::ConnectionRefused) => "no process listens on its socket".to_owned(),
        Some(std::io::ErrorKind::NotFound) => "it has no socket, which it makes when it starts".to_owned(),
        _ => causes().last().map_or_else(String::new, ToString::to_string),
    }
}

pub fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}
