//! The cluster's time, as far as a node knows it: the machine's own clock and what is wrong with it.
//!
//! Certificates hold for a span of time, so a machine whose clock is wrong would find every one of them invalid and
//! could never come in. Such a node takes the head's word for the time: the head is known by a chain to the cluster's
//! root, of which only the dates do not fit, and once the link stands it says the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// A difference below this, in milliseconds, is nothing: certificates are backdated by more.
pub const TOLERATED: i64 = 60_000;

/// A cheap handle; all clones tell the same time.
#[derive(Debug, Clone, Default)]
pub struct ClusterClock {
    /// Milliseconds to add to the machine's clock.
    offset: Arc<AtomicI64>,
    /// It was never earlier than this, in milliseconds since the Unix epoch.
    floor: Arc<AtomicI64>,
}

impl ClusterClock {
    /// Milliseconds since the Unix epoch.
    pub fn now(&self) -> i64 {
        machine().saturating_add(self.offset())
    }

    /// The latest moment that is known to have passed.
    pub fn floor(&self) -> i64 {
        self.floor.load(Ordering::Relaxed)
    }

    /// Notes that a moment has passed, by the word of the head or of whoever made this node.
    pub fn has_passed(&self, at: i64) {
        self.floor.fetch_max(at, Ordering::Relaxed);
    }

    /// How far the machine's clock is behind, in milliseconds; 0 while nothing is known to be wrong.
    pub fn offset(&self) -> i64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Takes the time from the head, in milliseconds since the Unix epoch; true if that changed what is known.
    pub fn set(&self, now: i64) -> bool {
        let offset = now.saturating_sub(machine());
        let offset = if offset.abs() <= TOLERATED { 0 } else { offset };
        let known = self.offset.swap(offset, Ordering::Relaxed);
        (known - offset).abs() > TOLERATED
    }
}

fn machine() -> i64 {
    match UNIX_EPOCH.elapsed() {
        Ok(after) => after.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

impl TimeProvider for ClusterClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now().max(0) as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_are_none() {
        let clock = ClusterClock::default();
        assert!(!clock.set(clock.now() + TOLERATED / 2));
        assert_eq!(clock.offset(), 0);
        let year = 365 * 24 * 3_600_000;
        assert!(clock.clone().set(machine() - year));
        assert!((clock.offset() + year).abs() < 1_000, "all handles tell the same time");
        assert!(!clock.set(machine() - year), "nothing new");
    }
}
