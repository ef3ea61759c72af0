//! What the cluster is asked for by hand, beyond what its description says.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, NodeTypeName, Timestamp};

/// A number in thousandths, written `2` or `0.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Quantity(pub u64);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0} is not a quantity: a number from 0 to 1000000000, with at most three decimals")]
pub struct InvalidQuantity(String);

/// Larger ones are mistakes, and sums of them might not add up.
const MAX: f64 = 1e9;

impl Quantity {
    pub const ONE: Self = Self(1_000);
    /// The largest.
    pub const MAX: Self = Self(MAX as u64 * 1_000);

    /// The quantity that is nearest to a number: what is less than nothing is nothing.
    pub fn nearest(number: f64) -> Self {
        Self((number.clamp(0.0, MAX) * 1_000.0).round() as u64)
    }
}

impl TryFrom<f64> for Quantity {
    type Error = InvalidQuantity;
    fn try_from(number: f64) -> Result<Self, InvalidQuantity> {
        let thousandths = (number * 1_000.0).round();
        let is_exact = (thousandths / 1_000.0 - number).abs() < 1e-9;
        if (0.0..=MAX).contains(&number) && is_exact { Ok(Self(thousandths as u64)) } else { Err(InvalidQuantity(number.to_string())) }
    }
}

impl From<Quantity> for f64 {
    fn from(quantity: Quantity) -> Self {
        quantity.0 as f64 / 1_000.0
    }
}

impl FromStr for Quantity {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let is_plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let number = text.parse::<f64>().ok().filter(|_| is_plain);
        number.and_then(|n| Self::try_from(n).ok()).ok_or_else(|| InvalidQuantity(format!("{text:?}")))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000, self.0 % 1_000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{rest:03}").trim_end_matches('0'))
    }
}

/// What one piece of work needs on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Cores.
    #[serde(default, skip_serializing_if = "is_none")]
    pub cpus: Quantity,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub memory: Bytes,
    #[serde(default, skip_serializing_if = "is_none")]
    pub gpus: Quantity,
    /// Of what the cluster's node types offer under names of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, Quantity>,
}

fn is_none(quantity: &Quantity) -> bool {
    quantity.0 == 0
}

fn is_empty(bytes: &Bytes) -> bool {
    bytes.0 == 0
}

impl Bundle {
    pub fn is_nothing(&self) -> bool {
        self.cpus.0 == 0 && self.memory.0 == 0 && self.gpus.0 == 0 && self.resources.values().all(|q| q.0 == 0)
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let unit = |n: &Quantity, one: &str, more: &str| format!("{n} {}", if *n == Quantity::ONE { one } else { more });
        if self.cpus.0 > 0 {
            parts.push(unit(&self.cpus, "cpu", "cpus"));
        }
        if self.memory.0 > 0 {
            parts.push(self.memory.to_string());
        }
        if self.gpus.0 > 0 {
            parts.push(unit(&self.gpus, "gpu", "gpus"));
        }
        parts.extend(self.resources.iter().filter(|(_, n)| n.0 > 0).map(|(name, n)| format!("{n} {name}")));
        if parts.is_empty() { f.write_str("nothing") } else { f.write_str(&parts.join(" + ")) }
    }
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "kebab-case")]
pub enum RequestedCapacity {
    /// So many workers of a type; within a type's bounds they are also its most.
    Workers { node_type: NodeTypeName, count: u32 },
    /// So many workers of a type beyond those that are wanted anyway.
    More { node_type: NodeTypeName, count: u32 },
    /// Room for all of these at the same time.
    Bundles {
        bundles: Vec<Counted>,
        /// All of them or none.
        #[serde(default)]
        gang: bool,
        /// Each on a node of its own.
        #[serde(default)]
        spread: bool,
    },
}

impl RequestedCapacity {
    /// A number of workers that is none.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::More { count: 0, .. })
    }

    /// The type of which it wants a number.
    pub fn node_type(&self) -> Option<&NodeTypeName> {
        match self {
            Self::Workers { node_type, .. } | Self::More { node_type, .. } => Some(node_type),
            Self::Bundles { .. } => None,
        }
    }

    /// What it wants room for.
    pub fn bundles(&self) -> &[Counted] {
        match self {
            Self::Bundles { bundles, .. } => bundles,
            Self::Workers { .. } | Self::More { .. } => &[],
        }
    }
}

/// Bundles that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub bundle: Bundle,
    pub count: u32,
}

impl fmt::Display for RequestedCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = |count: u32| if count == 1 { "worker" } else { "workers" };
        match self {
            Self::Workers { node_type, count } => write!(f, "{count} {} of type {node_type}", workers(*count)),
            Self::More { node_type, count } => write!(f, "{count} more {} of type {node_type}", workers(*count)),
            Self::Bundles { bundles, gang, spread } => {
                let parts: Vec<String> = bundles.iter().map(|b| format!("{} × {}", b.count, b.bundle)).collect();
                write!(f, "room for {}", parts.join(", "))?;
                match (gang, spread) {
                    (true, true) => f.write_str(", all or nothing, each on a node of its own"),
                    (true, false) => f.write_str(", all or nothing"),
                    (false, true) => f.write_str(", each on a node of its own"),
                    (false, false) => Ok(()),
                }
            }
        }
    }
}

/// A request that stands until it is revoked, replaced or over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRequest {
    /// Chosen by who asked, else made up; unique in the cluster.
    pub name: String,
    /// Its place in the order in which requests came.
    #[serde(default)]
    pub number: u64,
    pub at: Timestamp,
    /// When it ends by itself, on the head's wall clock.
    #[serde(default)]
    pub until: Option<Timestamp>,
    pub wants: RequestedCapacity,
    /// In the words of who asked.
    #[serde(default)]
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_and_print() {
        for (text, printed) in [("2", "2"), ("0.5", "0.5"), ("1.250", "1.25"), ("0.001", "0.001")] {
            assert_eq!(text.parse::<Quantity>().map(|q| q.to_string()).as_deref(), Ok(printed));
        }
        for bad in ["", "-1", "0.0001", "1e3", "inf", "NaN", "2000000000", "1.2.3"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad:?} must be refused");
        }
    }
}
