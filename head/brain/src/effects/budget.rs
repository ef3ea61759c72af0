//! How much may be stored within a short time, and in the long run.

/// How many events were stored within a short time.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) used: u64,
    /// When it last became less, on the brain's clock.
    at: u64,
}

impl Budget {
    /// Allows one more for each `pause` that has passed, in milliseconds.
    pub(crate) fn renew(&mut self, now: u64, pause: u64) {
        let renewed = now.saturating_sub(self.at) / pause;
        self.used = self.used.saturating_sub(renewed);
        self.at = if self.used == 0 { now } else { self.at.saturating_add(renewed.saturating_mul(pause)) };
    }

    /// When one more is allowed.
    pub(crate) fn free_at(&self, burst: u64, pause: u64) -> u64 {
        if self.used < burst { 0 } else { self.at.saturating_add(pause) }
    }
}
