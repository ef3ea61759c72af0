//! How often a caller may bring a wrong token.

use core::net::IpAddr;
use std::collections::BTreeMap;

/// Wrong tokens in a row that one address may bring at once.
const BURST: u32 = 5;
/// Milliseconds until one more may be tried.
const REFILL: u64 = 10_000;
/// Addresses that are remembered. Beyond that, those who are not known wait.
const MAX_SOURCES: usize = 1_024;

/// Wrong tokens, by the address that brought them.
#[derive(Debug, Default)]
pub struct Attempts(BTreeMap<Source, Failures>);

/// An IPv4 address, or the network of an IPv6 address: a machine has many of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let octets = v6.octets();
                Self::V6(std::array::from_fn(|i| octets[i]))
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    /// When it last grew or shrank, on the monotonic clock in milliseconds.
    at: u64,
}

impl Failures {
    /// After what was forgiven since.
    fn at(self, now: u64) -> Self {
        let forgiven = now.saturating_sub(self.at) / REFILL;
        let count = self.count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        Self { count, at: self.at.saturating_add(forgiven.saturating_mul(REFILL)) }
    }
}

impl Attempts {
    /// Whether an address may try a token at `now`, in milliseconds of a monotonic clock.
    pub fn may_try(&mut self, now: u64, from: IpAddr) -> bool {
        let source = Source::from(from);
        if self.0.len() >= MAX_SOURCES {
            self.0.retain(|_, failures| failures.at(now).count > 0);
        }
        match self.0.get(&source) {
            Some(failures) => failures.at(now).count < BURST,
            None => self.0.len() < MAX_SOURCES,
        }
    }

    /// Notes that it was wrong.
    pub fn failed(&mut self, now: u64, from: IpAddr) {
        let entry = self.0.entry(from.into()).or_insert(Failures { count: 0, at: now });
        let before = entry.at(now);
        // What was whole begins to be forgiven now.
        let at = if before.count == 0 { now } else { before.at };
        *entry = Failures { count: before.count.saturating_add(1), at };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn wrong_tokens_are_limited_by_address_and_forgiven_with_time() {
        let (mut attempts, bad, good) = (Attempts::default(), address("192.0.2.1"), address("192.0.2.2"));
        for _ in 0..BURST {
            assert!(attempts.may_try(0, bad));
            attempts.failed(0, bad);
        }
        assert!(!attempts.may_try(0, bad) && !attempts.may_try(REFILL - 1, bad));
        assert!(attempts.may_try(0, good), "others are not held up");
        assert!(attempts.may_try(REFILL, bad));
        attempts.failed(REFILL, bad);
        assert!(!attempts.may_try(REFILL, bad), "one was forgiven, not all");
        assert!(attempts.may_try(REFILL * 10, bad));
    }

    #[test]
    fn a_network_of_the_sixth_version_is_one_source_and_memory_is_bounded() {
        let mut attempts = Attempts::default();
        for n in 0..BURST {
            attempts.failed(0, address(&format!("2001:db8::{n}")));
        }
        assert!(!attempts.may_try(0, address("2001:db8::ffff")) && attempts.may_try(0, address("2001:db8:0:1::1")));
        for n in 0..MAX_SOURCES as u32 * 2 {
            let from = IpAddr::from(core::net::Ipv4Addr::from_bits(n));
            if attempts.may_try(1, from) {
                attempts.failed(1, from);
            }
        }
        assert_eq!(attempts.0.len(), MAX_SOURCES);
        assert!(attempts.may_try(REFILL * 100, address("192.0.2.1")), "what was forgiven makes room");
    }
}
