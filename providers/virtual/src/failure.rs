//! How work on the machine fails, in a form that goes from one process to another.

use std::io;
use std::time::Duration;

use cloudtik_providers::Error;
use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    #[error("not found: {0}")]
    NotFound(String),
    /// A setting of the kernel forbids it.
    #[error("{0}")]
    Forbidden(String),
    #[error("cannot {operation}: {message}")]
    Failed { operation: String, message: String, may_pass: bool },
}

impl Failure {
    pub fn io(operation: impl Into<String>, error: io::Error) -> Self {
        let may_pass = !matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput | io::ErrorKind::ReadOnlyFilesystem
        );
        Self::Failed { operation: operation.into(), message: error.to_string(), may_pass }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound(what) => Self::NotFound(what),
            Failure::Forbidden(message) => Self::Permission { action: message },
            Failure::Failed { operation, message, may_pass: true } => Self::transient(operation, io::Error::other(message)),
            Failure::Failed { operation, message, may_pass: false } => Self::permanent(operation, io::Error::other(message)),
        }
    }
}

/// [`Error`] as it is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WireError {
    StockOut(String),
    Quota { quota: String, message: String },
    Throttled { message: String, retry_after_ms: Option<u64> },
    Permission { action: String },
    NotFound(String),
    Conflict { what: String, used_by: Vec<String> },
    Mismatch(String),
    Undeletable { what: String, source: String },
    Transient { operation: String, source: String },
    Permanent { operation: String, source: String },
}

impl From<Error> for WireError {
    fn from(error: Error) -> Self {
        match error {
            Error::StockOut(what) => Self::StockOut(what),
            Error::Quota { quota, message } => Self::Quota { quota, message },
            Error::Throttled { message, retry_after } => {
                Self::Throttled { message, retry_after_ms: retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)) }
            }
            Error::Permission { action } => Self::Permission { action },
            Error::NotFound(what) => Self::NotFound(what),
            Error::Conflict { what, used_by } => Self::Conflict { what, used_by },
            Error::Mismatch(what) => Self::Mismatch(what),
            Error::Undeletable { what, source } => Self::Undeletable { what, source: chain(source.as_ref()) },
            Error::Transient { operation, source } => Self::Transient { operation, source: chain(source.as_ref()) },
            Error::Permanent { operation, source } => Self::Permanent { operation, source: chain(source.as_ref()) },
        }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        match error {
            WireError::StockOut(what) => Self::StockOut(what),
            WireError::Quota { quota, message } => Self::Quota { quota, message },
            WireError::Throttled { message, retry_after_ms } => {
                Self::Throttled { message, retry_after: retry_after_ms.map(Duration::from_millis) }
            }
            WireError::Permission { action } => Self::Permission { action },
            WireError::NotFound(what) => Self::NotFound(what),
            WireError::Conflict { what, used_by } => Self::Conflict { what, used_by },
            WireError::Mismatch(what) => Self::Mismatch(what),
            WireError::Undeletable { what, source } => Self::Undeletable { what, source: source.into() },
            WireError::Transient { operation, source } => Self::Transient { operation, source: source.into() },
            WireError::Permanent { operation, source } => Self::Permanent { operation, source: source.into() },
        }
    }
}

/// An error with all that it came of.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
