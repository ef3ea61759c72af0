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

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_type = &self.node_type;
        let seconds = |ms: u64| ms / 1_000;
        match &self.rule {
            Rule::Schedule { hours, workers: Workers::AtLeast(count) } => return write!(f, "{count} of type {of_type}, {hours}"),
            Rule::Schedule { hours, workers: Workers::More(count) } => return write!(f, "{count} more of type {of_type}, {hours}"),
            Rule::Load { metric, high, low, window_ms } => {
                let (low, high) = (low / 10, high / 10);
                write!(f, "{metric} from {low} % to {high} % over {} s on type {of_type}", seconds(*window_ms))?;
            }
            Rule::Signal { signal, per_worker, .. } => write!(f, "one of type {of_type} for every {per_worker} of {signal}")?,
        }
        write!(f, ", from {} to {}, {} s between turns", self.least, self.most, seconds(self.pause_ms))
    }
}

/// Minutes of a week.
const WEEK: u32 = 7 * 24 * 60;

impl Hours {
    /// Whether some moment is in both. Only what is on the clocks of the same place can be told; others count as apart.
    pub fn meets(&self, other: &Self) -> bool {
        let begins_within = |a: &(u32, u32), b: &(u32, u32)| (b.0 + WEEK - a.0) % WEEK < a.1;
        let (ours, theirs) = (self.spans(), other.spans());
        self.time_zone == other.time_zone && ours.iter().any(|a| theirs.iter().any(|b| begins_within(a, b) || begins_within(b, a)))
    }

    /// Whether every moment of the other is in this one, by the clocks of the same place.
    pub fn covers(&self, other: &Self) -> bool {
        let minutes = |of: &Self| -> Vec<bool> {
            let mut on = vec![false; WEEK as usize];
            for (begin, length) in of.spans() {
                (begin..begin + length).for_each(|minute| on[(minute % WEEK) as usize] = true);
            }
            on
        };
        self.time_zone == other.time_zone && minutes(self).into_iter().zip(minutes(other)).all(|(ours, theirs)| ours || !theirs)
    }

    /// When it begins, in minutes of the week, and for how long it is on.
    fn spans(&self) -> Vec<(u32, u32)> {
        let length = (u32::from(self.until) + 24 * 60 - u32::from(self.from) - 1) % (24 * 60) + 1;
        self.days.iter().map(|day| (u32::from(*day) * 24 * 60 + u32::from(self.from), length)).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(days: &[u8], from: u16, until: u16) -> Hours {
        Hours { days: days.to_vec(), from: from * 60, until: until * 60, time_zone: "UTC".to_owned() }
    }

    #[test]
    fn hours_meet_over_midnight_and_over_the_end_of_the_week() {
        let night = hours(&[6], 22, 6);
        assert!(night.meets(&hours(&[0], 5, 7)) && hours(&[0], 5, 7).meets(&night));
        assert!(!night.meets(&hours(&[0], 6, 7)) && !night.meets(&hours(&[6], 0, 22)));
        let whole_day = hours(&[2], 0, 24);
        assert!(whole_day.meets(&hours(&[2], 23, 24)) && !whole_day.meets(&hours(&[3], 0, 1)));
        let elsewhere = Hours { time_zone: "Europe/Berlin".to_owned(), ..whole_day.clone() };
        assert!(!whole_day.meets(&elsewhere));
        assert!(night.covers(&hours(&[0], 0, 5)) && !night.covers(&hours(&[0], 5, 7)) && !night.covers(&elsewhere));
        assert!(hours(&[1, 2], 0, 24).covers(&hours(&[1], 22, 6)) && !hours(&[1], 0, 24).covers(&hours(&[1], 22, 6)));
    }
}
