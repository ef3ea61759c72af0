//! What counts as time. The head that was paused, starved or swapped out was deaf, not its nodes dumb: the time that it
//! slept through is taken out of every deadline, by running the brain on a clock that stood still meanwhile.

use cloudtik_model::{Moment, Timestamp};

/// Lateness up to this, in milliseconds, is ordinary scheduling.
const TOLERANCE: u64 = 250;

/// A pause that doubles: `first` at the first time, never more than `longest`.
pub fn doubling(first: u64, times: u32, longest: u64) -> u64 {
    first.saturating_mul(1 << times.saturating_sub(1).min(16)).min(longest)
}

#[derive(Debug)]
pub struct Clock {
    /// It asks to be called at least this often, in milliseconds, so that a pause shows.
    pulse: u64,
    mono: u64,
    wall: Timestamp,
    /// Milliseconds that the head slept through since it started.
    slept: u64,
    wake: u64,
}

impl Clock {
    pub fn new(now: Moment, pulse: u64) -> Self {
        Self { pulse, mono: now.mono, wall: now.wall, slept: 0, wake: now.mono + pulse }
    }

    /// Takes the time in; returns by how many milliseconds the call was late, if that is worth noticing.
    pub fn advance(&mut self, now: Moment) -> u64 {
        self.mono = self.mono.max(now.mono);
        self.wall = now.wall;
        let late = self.mono.saturating_sub(self.wake);
        if late <= TOLERANCE {
            return 0;
        }
        self.slept += late;
        late
    }

    /// Milliseconds of the brain's own time.
    pub fn now(&self) -> u64 {
        self.mono - self.slept
    }

    /// A moment of the caller's clock as the brain's own time; it may be later than now.
    pub fn at(&self, mono: u64) -> u64 {
        mono.saturating_sub(self.slept)
    }

    /// Milliseconds of the caller's clock, which counts what the head slept through.
    pub fn monotonic(&self) -> u64 {
        self.mono
    }

    pub fn wall(&self) -> Timestamp {
        self.wall
    }

    pub fn plan_wake(&mut self, timer: Option<u64>, other: Option<u64>) {
        let earliest = [timer, other].into_iter().flatten().min().map_or(u64::MAX, |at| at.saturating_add(self.slept));
        self.wake = earliest.clamp(self.mono + 1, self.mono + self.pulse);
    }

    pub fn next_wake(&self) -> u64 {
        self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PULSE: u64 = 500;

    fn at(mono: u64) -> Moment {
        Moment { mono, wall: Timestamp(0) }
    }

    #[test]
    fn a_pause_does_not_count() {
        let mut clock = Clock::new(at(1_000), PULSE);
        assert_eq!(clock.advance(at(1_400)), 0);
        clock.plan_wake(None, None);
        let before = clock.now();
        let lag = clock.advance(at(61_400));
        assert!(lag > 59_000, "{lag}");
        assert!(clock.now() - before <= PULSE);
        clock.plan_wake(Some(clock.now() + 100), None);
        assert_eq!(clock.next_wake(), 61_500, "deadlines are given back on the caller's clock");
    }

    #[test]
    fn a_clock_that_runs_backwards_stands_still() {
        let mut clock = Clock::new(at(1_000), PULSE);
        clock.advance(at(500));
        assert_eq!(clock.now(), 1_000);
    }
}
