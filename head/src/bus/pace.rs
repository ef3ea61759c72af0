//! How fast one agent may send what the brain has to handle.

use std::time::Duration;

use tokio::time::Instant;

/// Frames within a short time: after a reconnect, or when many services change together.
const BURST: u32 = 256;
/// The time until one more is allowed.
const PAUSE: Duration = Duration::from_millis(20);

/// The pace of one connection. Heartbeats do not count: of those the latest replaces the others.
#[derive(Debug)]
pub struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Counts one more frame and says when it may be handled: an agent that sends more is read more slowly, and does not
    /// fill the brain's queue.
    pub fn take(&mut self, now: Instant) -> Option<Instant> {
        let passed = now.saturating_duration_since(self.since).as_millis() / PAUSE.as_millis();
        let earned = u32::try_from(passed).unwrap_or(BURST).min(BURST - self.left);
        self.left += earned;
        self.since = if self.left == BURST { now } else { self.since + PAUSE * earned };
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return None;
        }
        self.since += PAUSE;
        Some(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long so many frames take from `now` on that are always at hand.
    fn taken(pace: &mut Pace, frames: u32, now: &mut Instant) -> Duration {
        let begun = *now;
        for _ in 0..frames {
            if let Some(at) = pace.take(*now) {
                *now = at;
            }
        }
        *now - begun
    }

    #[test]
    fn a_burst_passes_at_once_and_a_flood_is_slowed_down() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(taken(&mut pace, BURST, &mut now), Duration::ZERO);
        assert_eq!(taken(&mut pace, 100, &mut now), PAUSE * 100);
        now += PAUSE * 10_000;
        assert_eq!(taken(&mut pace, BURST, &mut now), Duration::ZERO, "what was not used is regained, up to a burst");
        assert_eq!(taken(&mut pace, 1, &mut now), PAUSE);
    }
}
