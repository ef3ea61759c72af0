//! Work that nobody asks room for, as a fluid: it comes at a rate, keeps cores busy, and waits where there are none.

use std::collections::VecDeque;

use cloudtik_model::report::Load;
use cloudtik_model::simulation::Work;

const HOUR: f64 = 3_600_000.0;

/// The work for one type's cores. Cores are in thousandths, work is in those times milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Fluid {
    /// Cores that it would keep busy.
    pub rate: u64,
    /// Cores that there are.
    pub capacity: u64,
    at: u64,
    backlog: f64,
    offered: f64,
    /// The backlog over time, for Little's law.
    waited: f64,
    longest_wait: f64,
    /// When how much had come, from the moment at which the oldest came that still waits.
    came: VecDeque<(u64, f64)>,
}

impl Fluid {
    /// Lets time go on, with rate and capacity as they are.
    pub fn advance(&mut self, now: u64) {
        let mut span = (now - self.at) as f64;
        if self.backlog <= 0.0 {
            self.came.clear();
            self.came.push_back((self.at, self.offered));
        }
        self.at = now;
        let (rate, capacity) = (self.rate as f64, self.capacity as f64);
        self.offered += rate * span;
        let growth = rate - capacity;
        if self.backlog <= 0.0 && growth <= 0.0 {
            return;
        }
        self.came.push_back((now, self.offered));
        // It may be worked off before the time is over.
        let is_done = growth < 0.0 && self.backlog <= -growth * span;
        if is_done {
            span = self.backlog / -growth;
        }
        let after = if is_done { 0.0 } else { self.backlog + growth * span };
        self.waited += (self.backlog + after) / 2.0 * span;
        self.backlog = after;
        self.longest_wait = self.longest_wait.max(self.oldest_wait(now));
    }

    /// How long the oldest that waits has waited.
    fn oldest_wait(&mut self, now: u64) -> f64 {
        let done = self.offered - self.backlog;
        while self.came.get(1).is_some_and(|(_, came)| *came <= done) {
            self.came.pop_front();
        }
        let (Some((from, before)), Some((until, after))) = (self.came.front(), self.came.get(1)) else { return 0.0 };
        let share = if after > before { (done - before) / (after - before) } else { 1.0 };
        now as f64 - (*from as f64 + share * (until - from) as f64)
    }

    /// How long until nothing waits any more, if that comes.
    pub fn worked_off_in(&self) -> Option<u64> {
        let spare = self.capacity.checked_sub(self.rate).filter(|spare| *spare > 0 && self.backlog > 0.0)?;
        Some((self.backlog / spare as f64) as u64 + 1)
    }

    /// How busy each of the type's nodes is.
    pub fn load(&self) -> Load {
        let share = if self.backlog > 0.0 { 1_000 } else { (self.rate * 1_000).checked_div(self.capacity).unwrap_or(0).min(1_000) };
        Load { cpu: share as u32, ..Load::default() }
    }

    /// Work that was done, in core-milliseconds.
    pub fn done(&self) -> f64 {
        (self.offered - self.backlog) / 1_000.0
    }

    pub fn summary(&self) -> Work {
        Work {
            core_hours: self.offered / 1_000.0 / HOUR,
            mean_wait_ms: if self.offered > 0.0 { (self.waited / self.offered) as u64 } else { 0 },
            longest_wait_ms: self.longest_wait as u64,
            left: self.backlog / 1_000.0 / HOUR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_waits_where_there_are_too_few_cores() {
        // Two cores' worth comes for 10 s to one core: 10 core-seconds wait then, and are worked off in 10 s.
        let mut fluid = Fluid { rate: 2_000, capacity: 1_000, ..Fluid::default() };
        (1..=10).for_each(|second| fluid.advance(second * 1_000));
        assert_eq!(fluid.load().cpu, 1_000);
        fluid.rate = 0;
        (11..=30).for_each(|second| fluid.advance(second * 1_000));
        let summary = fluid.summary();
        // A triangle of 20 s times 10 core-seconds, over 20 core-seconds of work. What comes last waits longest.
        assert_eq!((summary.mean_wait_ms, summary.longest_wait_ms), (5_000, 9_500));
        assert!((fluid.done() - 20_000.0).abs() < 1e-6 && summary.left == 0.0 && fluid.load().cpu == 0);
    }

    #[test]
    fn work_waits_for_the_first_core() {
        let mut fluid = Fluid { rate: 1_000, ..Fluid::default() };
        fluid.advance(60_000);
        fluid.capacity = 1_000_000;
        (1..=10).for_each(|step| fluid.advance(60_000 + step * 100));
        let summary = fluid.summary();
        assert_eq!((summary.longest_wait_ms, fluid.backlog), (60_000, 0.0));
        assert!((29_000..=31_000).contains(&summary.mean_wait_ms), "{summary:?}");
    }
}
