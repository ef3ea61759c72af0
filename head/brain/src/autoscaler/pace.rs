//! At which pace the provider is called.

use std::collections::VecDeque;

/// Calls a minute below which throttling does not slow the head down.
const SLOWEST: u64 = 6;
/// The rate rises once in so many milliseconds at most: answers to earlier calls are still on their way.
const RISE_EVERY: u64 = 1_000;
/// What it rises by each time: a tenth.
const RISE: u64 = 10;
/// A rate that no provider allows, in calls a minute.
const FASTEST: u64 = 600_000;
/// A provider that did not complain for so many milliseconds is called freely again.
const FORGIVEN: u64 = 600_000;
/// What one call costs of what a rate of one a minute brings in a millisecond.
const CALL: u64 = 60_000;
/// The least time without calls after the provider said that there were too many, in milliseconds.
const RESPITE: u64 = 1_000;

/// A token bucket whose rate follows the provider's answers: halved when it says that there were too many calls, raised
/// while it takes them (after Chiu and Jain 1989, who raise by a constant: this must find rates of any size).
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Calls a minute, and what is saved up; nothing while the provider never complained.
    limit: Option<(u64, u64)>,
    refilled: u64,
    blocked_until: u64,
    risen: u64,
    /// When the last calls were made.
    recent: VecDeque<u64>,
}

impl Pace {
    /// Takes leave for a call, or says when to ask again.
    pub(crate) fn take(&mut self, now: u64) -> Result<(), u64> {
        if now < self.blocked_until {
            return Err(self.blocked_until);
        }
        if now >= self.blocked_until + FORGIVEN {
            self.limit = None;
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

    pub(crate) fn throttled(&mut self, now: u64, wait: u64) {
        // Several answers to one burst are one complaint.
        let is_new = now >= self.blocked_until;
        self.blocked_until = self.blocked_until.max(now + wait.max(RESPITE));
        if is_new || self.limit.is_none() {
            let recent = self.recent.len() as u64 * 6;
            let rate = self.limit.map_or(recent, |(rate, _)| rate.min(recent.max(SLOWEST)));
            self.limit = Some(((rate / 2).max(SLOWEST), 0));
            self.refilled = self.blocked_until;
        }
    }

    pub(crate) fn worked(&mut self, now: u64) {
        let Some((rate, _)) = &mut self.limit else { return };
        if now >= self.risen.max(self.blocked_until) + RISE_EVERY {
            self.risen = now;
            *rate = (*rate + 1 + *rate / RISE).min(FASTEST);
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

    /// A provider that takes `rate` calls a second, with a burst of a second's, and answers after two seconds.
    fn calls(rate: u64, wanted: usize) -> (u64, u64, u64) {
        let (mut pace, mut tokens, mut last) = (Pace::default(), rate * 1_000, 0);
        let (mut waiting, mut refused, mut under_way) = (wanted, 0, VecDeque::<(u64, bool)>::new());
        for now in (0u64..).step_by(20) {
            tokens = (tokens + (now - last) * rate).min(rate * 1_000);
            last = now;
            while under_way.front().is_some_and(|(at, _)| *at <= now) {
                match under_way.pop_front() {
                    Some((_, true)) => pace.worked(now),
                    _ => {
                        (waiting, refused) = (waiting + 1, refused + 1);
                        pace.throttled(now, 0);
                    }
                }
            }
            while waiting > 0 && pace.take(now).is_ok() {
                let is_taken = tokens >= 1_000;
                tokens -= if is_taken { 1_000 } else { 0 };
                waiting -= 1;
                under_way.push_back((now + 2_000, is_taken));
            }
            if waiting == 0 && under_way.is_empty() {
                return (now, wanted as u64 * 1_000 / rate, refused);
            }
        }
        unreachable!("time does not end")
    }

    #[test]
    fn it_finds_the_rate_that_a_provider_allows() {
        for (rate, wanted) in [(2, 400), (20, 1_000), (40, 5_000)] {
            let (took, least, refused) = calls(rate, wanted);
            assert!(took < 2 * least + 20_000, "at {rate} a second: {took} ms for what takes {least} ms at least");
            // The first burst is refused but for a second's worth: until then nobody complained.
            assert!(refused < wanted as u64 * 5 / 4, "at {rate} a second: {refused} refused of {wanted}");
        }
    }

    #[test]
    fn the_provider_s_own_pause_is_kept() {
        let mut pace = Pace::default();
        pace.take(1_000).expect("free");
        pace.throttled(1_000, 7_000);
        assert_eq!(pace.take(7_999), Err(8_000));
        assert!(pace.take(20_000).is_ok());
    }
}
