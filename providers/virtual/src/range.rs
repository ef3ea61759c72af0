//! A range of IPv4 addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Smaller ranges have no room for a gateway and a few nodes.
const MAX_PREFIX: u8 = 29;
/// Larger ones cannot be of one site.
const MIN_PREFIX: u8 = 8;

/// A network such as `10.77.0.0/20`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    network: u32,
    prefix: u8,
}

/// A text is no range of addresses that a workspace can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of addresses; write one such as 10.77.0.0/20, from /{MIN_PREFIX} to /{MAX_PREFIX}")]
pub struct InvalidRange(String);

impl Range {
    /// The range of a size that an address lies in.
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        Self { network: u32::from(address) & mask(prefix), prefix }
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The host's address, the first of the range.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network | !mask(self.prefix))
    }

    /// The addresses that nodes may have.
    pub fn nodes(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.network + 2..u32::from(self.broadcast())).map(Ipv4Addr::from)
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    pub fn overlaps(self, other: Self) -> bool {
        let wider = mask(self.prefix.min(other.prefix));
        self.network & wider == other.network & wider
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl FromStr for Range {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let invalid = || InvalidRange(text.to_owned());
        let (address, prefix) = text.trim().split_once('/').ok_or_else(invalid)?;
        let (address, prefix): (Ipv4Addr, u8) = (address.parse().map_err(|_| invalid())?, prefix.parse().map_err(|_| invalid())?);
        let range = Self::of(address, prefix);
        let is_valid = (MIN_PREFIX..=MAX_PREFIX).contains(&prefix) && Ipv4Addr::from(range.network) == address;
        if is_valid { Ok(range) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for Range {
    type Error = InvalidRange;

    fn try_from(text: String) -> Result<Self, InvalidRange> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_have_a_gateway_nodes_and_an_end() {
        let range: Range = "10.77.16.0/29".parse().expect("valid");
        assert_eq!(range.to_string(), "10.77.16.0/29");
        assert_eq!((range.gateway(), range.broadcast()), (Ipv4Addr::new(10, 77, 16, 1), Ipv4Addr::new(10, 77, 16, 7)));
        let nodes: Vec<_> = range.nodes().map(|a| a.octets()[3]).collect();
        assert_eq!(nodes, [2, 3, 4, 5, 6]);
        for bad in ["10.77.16.1/29", "10.77.16.0", "10.77.0.0/30", "10.0.0.0/7", "x/20", "10.77.0.0/-1", ""] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }

    #[test]
    fn overlaps_are_found_both_ways() {
        let range = |text: &str| text.parse::<Range>().expect("valid");
        assert!(range("10.77.0.0/16").overlaps(range("10.77.16.0/20")));
        assert!(range("10.77.16.0/20").overlaps(range("10.77.0.0/16")));
        assert!(!range("10.77.0.0/20").overlaps(range("10.77.16.0/20")));
        assert!(range("10.77.16.0/20").contains(Ipv4Addr::new(10, 77, 31, 255)));
    }
}
