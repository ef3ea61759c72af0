//! What is told of a promise that did not hold.

use std::fmt;

/// A promise that did not hold.
#[derive(Debug, Clone)]
pub struct Violation {
    pub seed: u64,
    /// Virtual milliseconds.
    pub at: u64,
    /// Its number in docs/ARCHITECTURE.md.
    pub promise: u8,
    pub what: String,
    /// What happened before, the last lines.
    pub trail: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: promise {} broken at {} ms: {}", self.seed, self.promise, self.at, self.what)?;
        for line in &self.trail {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}
