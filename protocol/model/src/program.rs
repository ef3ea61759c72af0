//! Programs of ours as they are placed on machines and served to them: by digest and architecture.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A SHA-256: 64 hexadecimal digits in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SHA-256 of 64 hexadecimal digits in lower case")]
pub struct InvalidDigest(pub String);

impl Digest {
    /// The digest whose bytes these are.
    pub fn of_bytes(bytes: &[u8; 32]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let is_valid = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_valid { Ok(Self(text.to_owned())) } else { Err(InvalidDigest(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a program was compiled for, and what a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    #[serde(rename = "x86_64")]
    X86_64,
    Aarch64,
}

impl Architecture {
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// As `uname -m` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// What the first bytes of a program say; none for a script, and for what is no program of Linux (elf(5): the machine
    /// stands in the bytes 18 and 19).
    pub fn of_program(first_bytes: &[u8]) -> Option<Self> {
        /// 64 bits, little endian.
        const MAGIC: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
        if !first_bytes.starts_with(&MAGIC) {
            return None;
        }
        match u16::from_le_bytes([*first_bytes.get(18)?, *first_bytes.get(19)?]) {
            62 => Some(Self::X86_64),
            183 => Some(Self::Aarch64),
            _ => None,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The agent's program for one architecture, which the head serves by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentProgram {
    pub arch: Architecture,
    pub sha256: Digest,
    /// In bytes.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_strictly_and_architectures_from_programs() {
        let digest = Digest::of_bytes(&[0xab; 32]);
        assert_eq!(digest.as_str().parse(), Ok(digest.clone()));
        for wrong in [&digest.as_str()[1..], &digest.as_str().to_uppercase(), "", "../../etc/passwd"] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Digest>("\"abc\"").is_err());
        let mut program = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        program.resize(18, 0);
        assert_eq!(Architecture::of_program(&program), None, "it ends before its machine");
        let of = |machine: u8| Architecture::of_program(&[program.as_slice(), &[machine, 0]].concat());
        assert_eq!([62, 183, 3].map(of), [Some(Architecture::X86_64), Some(Architecture::Aarch64), None]);
        assert_eq!(Architecture::of_program(b"#!/bin/sh\nexec /usr/bin/true\n"), None);
        let document = serde_json::to_value(Architecture::ALL).expect("a document");
        assert_eq!(document, serde_json::json!(["x86_64", "aarch64"]));
    }
}
