//! Software as a head fetches it and a machine keeps it: the progress of a fetch, the entries of the index.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::goal::Artifact;

/// The progress of one fetch, as `status -o json` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Of the artifact, such as `spark-4.3.0`.
    pub name: String,
    /// What is being done, such as `downloading` or `unpacking`.
    pub step: String,
    /// Bytes that have arrived, each counted once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub done_bytes: Option<u64>,
    /// Bytes of the whole download, where its source says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seconds_left: Option<u64>,
    /// Why the last attempt failed; the next one starts by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

impl fmt::Display for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, step, .. } = self;
        write!(f, "{name}: {step}")?;
        match (self.done_bytes, self.total_bytes) {
            (Some(done), Some(total)) => write!(f, ", {}", part_of(done, total))?,
            (Some(done), None) if done > 0 => write!(f, ", {}", Size(done))?,
            _ => {}
        }
        if let Some(rate) = self.bytes_per_second {
            write!(f, ", {}/s", Size(rate))?;
        }
        if let Some(left) = self.seconds_left {
            match left {
                0..120 => write!(f, ", {left} s left")?,
                120..7_200 => write!(f, ", {} min left", left.div_ceil(60))?,
                _ => write!(f, ", {} h left", left.div_ceil(3_600))?,
            }
        }
        match &self.error {
            Some(error) => write!(f, ": {error}"),
            None => Ok(()),
        }
    }
}

/// `120 of 456 MB`: both in the unit of the whole.
fn part_of(done: u64, total: u64) -> String {
    let (_, size) = unit(total);
    format!("{} of {}", digits(done.min(total), size), Size(total))
}

/// A size in decimal units, as package indexes and disks state theirs: `1.1 GB`, `456 MB`, `8.1 MB`, `12 kB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = unit(self.0);
        write!(f, "{} {unit}", digits(self.0, size))
    }
}

fn unit(bytes: u64) -> (&'static str, u64) {
    match bytes {
        b if b >= 1_000_000_000 => ("GB", 1_000_000_000),
        b if b >= 1_000_000 => ("MB", 1_000_000),
        b if b >= 1_000 => ("kB", 1_000),
        _ => ("B", 1),
    }
}

/// One decimal where the number is small and not whole.
fn digits(bytes: u64, size: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + u128::from(size) / 2) / u128::from(size);
    if size == 1 || tenths >= 100 && size < 1_000_000_000 || tenths.is_multiple_of(10) {
        ((u128::from(bytes) + u128::from(size) / 2) / u128::from(size)).to_string()
    } else {
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

/// What a source became: a file of the index of fetched software.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    #[serde(flatten)]
    pub artifact: Artifact,
    /// Where it came from, such as `pip: pyspark==4.3.0`; empty in indexes of earlier versions.
    #[serde(default)]
    pub source: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_units() {
        let all = [0, 999, 1_000, 12_345, 1_000_000, 8_140_000, 456_021_333, 999_999_999, 1_100_000_000, 21_000_000_000];
        let shown = all.map(|bytes| Size(bytes).to_string());
        assert_eq!(shown, ["0 B", "999 B", "1 kB", "12 kB", "1 MB", "8.1 MB", "456 MB", "1000 MB", "1.1 GB", "21 GB"]);
    }

    #[test]
    fn a_download_shows_its_total_its_rate_and_the_time_left() {
        let mut fetch = Fetch {
            name: "spark-4.3.0".to_owned(),
            step: "downloading".to_owned(),
            done_bytes: Some(120_400_000),
            total_bytes: Some(456_000_000),
            bytes_per_second: Some(8_140_000),
            seconds_left: Some(42),
            error: None,
        };
        assert_eq!(fetch.to_string(), "spark-4.3.0: downloading, 120 of 456 MB, 8.1 MB/s, 42 s left");
        fetch.seconds_left = Some(601);
        fetch.done_bytes = Some(456_800_000);
        assert_eq!(fetch.to_string(), "spark-4.3.0: downloading, 456 of 456 MB, 8.1 MB/s, 11 min left");
        let unknown = Fetch { total_bytes: None, seconds_left: None, ..fetch };
        assert_eq!(unknown.to_string(), "spark-4.3.0: downloading, 457 MB, 8.1 MB/s");
    }
}
