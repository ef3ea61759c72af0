//! Moments. Deadlines are measured on the monotonic clock; the wall clock only labels what people read.

use serde::{Deserialize, Serialize};

/// One reading of both clocks, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds on a clock that never jumps; only differences within one process mean anything.
    pub mono: u64,
    /// Milliseconds since the Unix epoch, as the machine believes.
    pub wall: Timestamp,
}

/// Milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);
