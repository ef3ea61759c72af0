//! Scaling policies: what asks for workers by itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::NodeTypeName;
use crate::demand::Quantity;

/// One `[[scaling]]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Unique in the cluster.
    pub name: String,
    /// Whose number it decides.
    pub node_type: NodeTypeName,
    /// It never asks for fewer than this.
    pub least: u32,
    /// It never asks for more than this.
    pub most: u32,
    /// Milliseconds that it waits from a change to the next one of the other direction.
    pub pause_ms: u64,
    pub rule: Rule,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case")]
pub enum Rule {
    /// How busy the type's nodes are, in thousandths, as an average over the window.
    Load {
        metric: Metric,
        /// Above this there are to be more.
        high: u32,
        /// Below this there are to be fewer.
        low: u32,
        /// Milliseconds.
        window_ms: u64,
    },
    /// So many at certain times.
    Schedule { hours: Hours, workers: Workers },
    /// As many as a number that a runtime gives needs.
    Signal {
        /// `<runtime>.<signal>`.
        signal: String,
        /// How much of it one worker serves.
        per_worker: Quantity,
        /// Whether the number is of what waits only, or of all work.
        counts: Counts,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    Cpu,
    Memory,
    Gpu,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Gpu => "gpu",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counts {
    /// What runs and what waits.
    All,
    /// What waits for room.
    Waiting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workers {
    /// At least so many.
    AtLeast(u32),
    /// So many beyond the type's minimum.
    More(u32),
}

/// Times of the week, on the clocks of a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours {
    /// From Monday, 0, to Sunday, 6: on which of them it begins.
    pub days: Vec<u8>,
    /// Minutes after midnight.
    pub from: u16,
    /// Minutes after midnight; not after `from` is on the next day.
    pub until: u16,
    /// A name of the IANA time zone database.
    pub time_zone: String,
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let days: Vec<&str> = self.days.iter().filter_map(|d| NAMES.get(usize::from(*d)).copied()).collect();
        let days = if days.len() == 7 { "every day".to_owned() } else { days.join(", ") };
        let time = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        write!(f, "{days} {}–{} ({})", time(self.from), time(self.until), self.time_zone)
    }
}
