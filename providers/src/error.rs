//! How calls of a provider fail: what failed decides what the caller may do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a provider's call failed: what failed decides what the caller may do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no capacity: {0}")]
    StockOut(String),
    /// The account may have no more of `quota`, as the provider names it.
    #[error("quota {quota} exceeded: {message}")]
    Quota { quota: String, message: String },
    #[error("throttled: {message}")]
    Throttled { message: String, retry_after: Option<Duration> },
    #[error("not permitted: {action} is missing")]
    Permission { action: String },
    #[error("not found: {0}")]
    NotFound(String),
    /// It is in use, by what `used_by` names; nothing was changed.
    #[error("{what} is in use by {}", used_by.join(", "))]
    Conflict { what: String, used_by: Vec<String> },
    /// What is asked for and what exists under that id differ.
    #[error("mismatch: {0}")]
    Mismatch(String),
    /// Nothing of it was deleted, since something is in the way that only a person can remove.
    #[error("{what} cannot be deleted")]
    Undeletable { what: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {operation}")]
    Transient { operation: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {operation}")]
    Permanent { operation: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl Error {
    /// Repeating the call may help; whether it had its effect is not known.
    pub fn transient(operation: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Transient { operation: operation.into(), source: source.into() }
    }

    /// The same call fails again.
    pub fn permanent(operation: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Permanent { operation: operation.into(), source: source.into() }
    }

    /// The provider returned fewer answers than it was given items.
    pub fn unanswered() -> Self {
        Self::transient("get the provider's answer for each item", std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
    }

    /// The failure of a whole call as the answer for each of its items.
    pub fn for_each<T>(self, items: usize) -> Vec<Result<T, Self>> {
        let error = WireError::from(self);
        (0..items).map(|_| Err(error.clone().into())).collect()
    }

    /// Whether the same call will fail the same way.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Permission { .. } | Self::Mismatch(_) | Self::Undeletable { .. } | Self::Permanent { .. })
    }

    /// How long to wait before the next call, where the provider says it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// [`Error`] as it is sent to other processes, and copied: its sources are their words.
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
