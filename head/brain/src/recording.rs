//! A head's life as it can be lived again: what the brain began with, every input with its moment, and a digest of what it
//! decided. The body writes it, one JSON document a line; a replay feeds it to a brain and compares.

use cloudtik_model::{Epoch, Moment};
use serde::{Deserialize, Serialize};

use crate::{Config, Input, Memory, Step};

/// The shape of recordings. Another one is refused.
pub const FORMAT: u32 = 3;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    /// Of the head that recorded: another one may decide otherwise.
    pub version: String,
    pub config: Config,
    pub epoch: Epoch,
    pub memory: Memory,
    pub moment: Moment,
}

/// Every other line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub moment: Moment,
    pub input: Input,
    /// [`Step::digest`] of what it led to.
    pub step: u64,
}

impl Step {
    /// A number that two different steps hardly share: FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>), over all
    /// records and actions.
    pub fn digest(&self) -> u64 {
        struct Fnv(u64);
        impl std::fmt::Write for Fnv {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                for byte in text.bytes() {
                    self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
                Ok(())
            }
        }
        let mut digest = Fnv(0xcbf2_9ce4_8422_2325);
        // Writing to a number does not fail.
        let _ = std::fmt::Write::write_fmt(&mut digest, format_args!("{self:?}"));
        digest.0
    }
}
