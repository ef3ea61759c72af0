//! How busy nodes were.

use std::collections::VecDeque;

use cloudtik_model::policy::Metric;
use cloudtik_model::report::Load;

/// Samples of load kept per node.
const SAMPLES: usize = 720;
/// Where there are more, what was so long ago is told in so many pieces at least.
const PIECES: u64 = 32;

/// How busy a node was.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// When a load began to hold; the last holds on.
    samples: VecDeque<(u64, Load)>,
}

impl History {
    pub(crate) fn add(&mut self, now: u64, load: Load) {
        if self.samples.len() == SAMPLES {
            self.thin_out(now);
        }
        self.samples.push_back((now, load));
    }

    /// What is long ago is told in longer pieces: none is longer than a share of its age.
    fn thin_out(&mut self, now: u64) {
        let all: Vec<(u64, Load)> = std::mem::take(&mut self.samples).into();
        for (i, (at, load)) in all.iter().enumerate() {
            let end = all.get(i + 1).map_or(now, |(next, _)| *next);
            match self.samples.back_mut() {
                Some((begin, first)) if (end - *begin) * PIECES <= now - *begin => {
                    *first = between(first, at - *begin, load, end - at);
                }
                _ => self.samples.push_back((*at, *load)),
            }
        }
        while self.samples.len() > SAMPLES * 3 / 4 {
            self.samples.pop_front();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.samples.clear();
    }

    pub(crate) fn latest(&self) -> Option<Load> {
        self.samples.back().map(|(_, load)| *load)
    }

    /// The average since `from`, if the whole time is covered.
    pub(crate) fn average(&self, metric: Metric, from: u64, now: u64) -> Option<u64> {
        let of = |load: &Load| match metric {
            Metric::Cpu => Some(load.cpu),
            Metric::Memory => Some(load.memory),
            Metric::Gpu => load.gpu,
        };
        if self.samples.front().is_none_or(|(at, _)| *at > from) || now <= from {
            return None;
        }
        let (mut sum, mut end) = (0u64, now);
        for (at, load) in self.samples.iter().rev() {
            let begin = (*at).max(from);
            sum += u64::from(of(load)?) * end.saturating_sub(begin);
            end = end.min(begin);
            if *at <= from {
                break;
            }
        }
        Some(sum / (now - from))
    }
}

/// The average of two loads that held for so long.
fn between(first: &Load, before: u64, second: &Load, after: u64) -> Load {
    let average = |a: u32, b: u32| {
        let (sum, whole) = (u64::from(a) * before + u64::from(b) * after, before + after);
        sum.checked_div(whole).map_or(b, |average| average as u32)
    };
    let gpu = first.gpu.zip(second.gpu).map(|(a, b)| average(a, b));
    Load { cpu: average(first.cpu, second.cpu), memory: average(first.memory, second.memory), gpu }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_stay_what_they_are() {
        let mut history = History::default();
        let load = |cpu| Load { cpu, memory: cpu / 2, gpu: None };
        // A day, once a second: 100 and 300 in turn, then 900 for the last hour.
        for second in 0..86_400u64 {
            let cpu = if second >= 82_800 { 900 } else { 100 + 200 * (second % 2) as u32 };
            history.add(second * 1_000, load(cpu));
        }
        assert!(history.samples.len() <= SAMPLES, "{}", history.samples.len());
        let now = 86_400_000;
        assert_eq!(history.average(Metric::Cpu, now - 60_000, now), Some(900));
        // What is long ago is told in long pieces: of one of them, a part is taken for the whole.
        let hour = history.average(Metric::Cpu, now - 3_600_000, now).expect("covered");
        assert!(hour.abs_diff(900) <= 20, "{hour}");
        let half = history.average(Metric::Memory, now - 43_200_000, now).expect("covered");
        assert!(half.abs_diff((11 * 100 + 450) / 12) <= 10, "{half}");
        assert_eq!(history.average(Metric::Cpu, 0, now + 1).map(|n| n / 10), Some((23 * 200 + 900) / 24 / 10));
    }
}
