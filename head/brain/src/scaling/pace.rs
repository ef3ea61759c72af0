//! At which pace the provider is called.

use std::collections::VecDeque;

/// Calls a minute below which throttling does not slow the head down.
const SLOWEST: u64 = 6;
/// Calls a minute from which on nothing is held back any more.
const UNHINDERED: u64 = 6_000;
/// What one call costs of what a rate of one a minute brings in a millisecond.
const CALL: u64 = 60_000;
/// The least time without calls after the provider said that there were too many, in milliseconds.
const RESPITE: u64 = 1_000;

/// A token bucket whose rate follows the provider's answers: halved when it says that there were too many calls, raised
/// with each that it takes (additive increase, multiplicative decrease: Chiu and Jain 1989).
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Calls a minute, and what is saved up; nothing while the provider never complained.
    limit: Option<(u64, u64)>,
    refilled: u64,
    blocked_until: u64,
    /// When the last calls were made.
    recent: VecDeque<u64>,
}

impl Pace {
    /// Takes leave for a call, or says when to ask again.
    pub(crate) fn take(&mut self, now: u64) -> Result<(), u64> {
        if now < self.blocked_until {
            return Err(self.blocked_until);
        }
        if let Some((rate, saved)) = &mut self.limit {
            let gained = now.saturating_sub(self.refilled).saturating_mul(*rate);
            // No more than a second's worth, at least one call.
            *saved = saved.saturating_add(gained).min((*rate * 1_000).max(CALL));
            self.refilled = now;
            if *saved < CALL {
                return Err(now + (CALL - *saved).div_ceil(*rate));
            }
            *saved -= CALL;
        }
        while self.recent.front().is_some_and(|at| now.saturating_sub(*at) > 10_000) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        Ok(())
    }

    pub(crate) fn throttled(&mut self, now: u64, retry_after: Option<u64>) {
        // Several answers to one burst are one complaint.
        let is_new = now >= self.blocked_until;
        self.blocked_until = self.blocked_until.max(now + retry_after.unwrap_or(0).max(RESPITE));
        if is_new || self.limit.is_none() {
            let recent = self.recent.len() as u64 * 6;
            let rate = self.limit.map_or(recent, |(rate, _)| rate.min(recent.max(SLOWEST)));
            self.limit = Some(((rate / 2).max(SLOWEST), 0));
            self.refilled = self.blocked_until;
        }
    }

    pub(crate) fn worked(&mut self) {
        if let Some((rate, _)) = &mut self.limit {
            *rate += 1 + *rate / 20;
            if *rate > UNHINDERED {
                self.limit = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_complains_nobody_waits() {
        let mut pace = Pace::default();
        assert!((0..10_000).all(|_| pace.take(5).is_ok()));
    }

    #[test]
    fn it_finds_the_rate_that_a_provider_allows() {
        // The provider takes two calls a second, with a burst of ten.
        let (mut pace, mut tokens, mut last) = (Pace::default(), 10_000u64, 0);
        let (mut taken, mut refused) = (0, 0);
        for now in (0..600_000).step_by(20) {
            tokens = (tokens + (now - last) * 2).min(10_000);
            last = now;
            while pace.take(now).is_ok() {
                if tokens >= 1_000 {
                    tokens -= 1_000;
                    taken += 1;
                    pace.worked();
                } else {
                    refused += 1;
                    pace.throttled(now, None);
                }
            }
        }
        assert!(taken > 600, "half of what is allowed is used at least: {taken}");
        assert!(refused < taken / 8, "and few calls are refused: {refused} of {taken}");
    }

    #[test]
    fn the_provider_s_own_pause_is_kept() {
        let mut pace = Pace::default();
        pace.take(1_000).expect("free");
        pace.throttled(1_000, Some(7_000));
        assert_eq!(pace.take(7_999), Err(8_000));
        assert!(pace.take(20_000).is_ok());
    }
}
