//! How calls of a provider fail: what failed decides what the caller may do.

use std::time::Duration;

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
