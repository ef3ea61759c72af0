//! What a machine has and what work needs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes, written `2GiB` or `2Gi`, `512MiB`, `1.5GB` or `1.5G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size, such as \"2GiB\", \"512Mi\" or \"4G\"")]
pub struct InvalidBytes(String);

/// The longest first: each is looked for at the end of the text. Without an `i` they are powers of 1000, as everywhere else.
const UNITS: [(&str, u64); 18] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
    ("k", 1_000),
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

impl FromStr for Bytes {
    type Err = InvalidBytes;
    fn from_str(text: &str) -> Result<Self, InvalidBytes> {
        let fail = || InvalidBytes(text.to_owned());
        let (number, unit) =
            UNITS.iter().find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|n| (n.trim(), *unit))).ok_or_else(fail)?;
        let value: f64 = number.parse().map_err(|_| fail())?;
        let bytes = value * unit as f64;
        if !number.starts_with(|c: char| c.is_ascii_digit()) || !bytes.is_finite() || bytes >= u64::MAX as f64 {
            return Err(fail());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = match self.0 {
            b if b >= 1 << 40 => ("TiB", 1u64 << 40),
            b if b >= 1 << 30 => ("GiB", 1 << 30),
            b if b >= 1 << 20 => ("MiB", 1 << 20),
            b if b >= 1 << 10 => ("KiB", 1 << 10),
            _ => ("B", 1),
        };
        if self.0.is_multiple_of(size) {
            write!(f, "{}{unit}", self.0 / size)
        } else {
            write!(f, "{:.1}{unit}", self.0 as f64 / size as f64)
        }
    }
}

impl Bytes {
    pub fn mebibytes(self) -> u64 {
        self.0 >> 20
    }
}

/// What a node offers to the runtimes on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Processor cores.
    pub cpus: u32,
    pub memory: Bytes,
    #[serde(default)]
    pub gpus: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_and_prints() {
        for (text, bytes, printed) in [
            ("2GiB", 2u64 << 30, "2GiB"),
            ("512MiB", 512 << 20, "512MiB"),
            ("1.5GiB", 3 << 29, "1.5GiB"),
            ("1GB", 1_000_000_000, "953.7MiB"),
            ("2Gi", 2 << 30, "2GiB"),
            ("512Mi", 512 << 20, "512MiB"),
            ("1Ti", 1 << 40, "1TiB"),
            ("8Ki", 8 << 10, "8KiB"),
            ("1G", 1_000_000_000, "953.7MiB"),
            ("1.5 M", 1_500_000, "1.4MiB"),
            ("2k", 2_000, "2.0KiB"),
        ] {
            let parsed: Bytes = text.parse().expect("valid");
            assert_eq!((parsed.0, parsed.to_string().as_str()), (bytes, printed));
        }
        for bad in ["", "2", "GiB", "-1GiB", "2 gib", "infGiB", "1e40TiB", "NaNB", "2g", "2m", "2GI", "2iB", "G", "Gi"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?} must be refused");
        }
    }
}
