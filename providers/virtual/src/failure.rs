//! How work on the machine fails, in a form that goes from one process to another.

use std::io;

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
