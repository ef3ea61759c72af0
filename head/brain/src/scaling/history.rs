//! How busy nodes were.

use std::collections::VecDeque;

use cloudtik_model::policy::Metric;
use cloudtik_model::report::Load;

/// Samples of load kept per node.
const SAMPLES: usize = 720;

/// How busy a node was.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// When a load began to hold; the last holds on.
    samples: VecDeque<(u64, Load)>,
}

impl History {
    pub(crate) fn add(&mut self, now: u64, load: Load) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, load));
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
