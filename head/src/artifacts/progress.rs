//! The progress of a fetch: what is being done, how many bytes of how many, how fast.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cloudtik_model::software::Fetch;

/// The span that a rate is the average of.
const WINDOW: Duration = Duration::from_secs(10);
/// A shorter span says nothing about the rate.
const SHORTEST: Duration = Duration::from_secs(1);

/// What a fetch does at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Work that is not measured in bytes, such as `unpacking`.
    Doing(String),
    /// `done` counts every byte once, wherever the client keeps it meanwhile.
    Downloading { what: String, done: u64, total: Option<u64> },
}

impl Step {
    pub fn doing(what: &str) -> Self {
        Self::Doing(what.to_owned())
    }
}

/// The progress of one fetch.
#[derive(Debug)]
pub struct Progress {
    name: String,
    step: Step,
    /// Bytes at moments of the last [`WINDOW`], oldest first.
    samples: VecDeque<(Instant, u64)>,
}

impl Progress {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), step: Step::doing("starting"), samples: VecDeque::new() }
    }

    pub fn note(&mut self, step: Step, now: Instant) {
        match &step {
            Step::Doing(_) => self.samples.clear(),
            Step::Downloading { what, done, .. } => {
                let goes_on = matches!(&self.step, Step::Downloading { what: before, .. } if before == what);
                if !goes_on || self.samples.back().is_some_and(|(_, last)| done < last) {
                    self.samples.clear();
                }
                self.samples.push_back((now, *done));
                // One sample older than the window stays, so that the window is covered.
                while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
                    self.samples.pop_front();
                }
            }
        }
        self.step = step;
    }

    pub fn show(&self, now: Instant) -> Fetch {
        let fetch = Fetch { name: self.name.clone(), ..Fetch::default() };
        match &self.step {
            Step::Doing(what) => Fetch { step: what.clone(), ..fetch },
            Step::Downloading { what, done, total } => {
                // What has all arrived is being looked at by its client.
                let rate = self.rate(now).filter(|_| total.is_none_or(|total| *done < total));
                let left = total.zip(rate).filter(|(_, rate)| *rate > 0).map(|(total, rate)| total.saturating_sub(*done).div_ceil(rate));
                let step = if what.is_empty() { "downloading".to_owned() } else { format!("downloading {what}") };
                Fetch { step, done_bytes: Some(*done), total_bytes: *total, bytes_per_second: rate, seconds_left: left, ..fetch }
            }
        }
    }

    /// Bytes per second. A download that stalls gets slower while one looks, since `now` goes on.
    fn rate(&self, now: Instant) -> Option<u64> {
        let ((begun, first), (_, last)) = (self.samples.front()?, self.samples.back()?);
        let span = now.duration_since(*begun);
        (span >= SHORTEST).then(|| ((last - first) as f64 / span.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    fn downloading(done: u64) -> Step {
        Step::Downloading { what: String::new(), done, total: Some(100_000_000) }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (begun, mut progress) = (Instant::now(), Progress::new("spark"));
        for second in 0..=20 {
            // Slow at first, then ten times as fast.
            let done = if second <= 10 { second * 400_000 } else { 4_000_000 + (second - 10) * 4_000_000 };
            progress.note(downloading(done), at(begun, second));
        }
        let shown = progress.show(at(begun, 20));
        assert_eq!((shown.bytes_per_second, shown.seconds_left), (Some(4_000_000), Some(14)), "{shown:?}");
        assert_eq!(shown.to_string(), "spark: downloading, 44 of 100 MB, 4 MB/s, 14 s left");
        assert!(progress.show(at(begun, 30)).bytes_per_second < Some(2_100_000), "a stall is seen");
        progress.note(downloading(100_000_000), at(begun, 31));
        assert_eq!(progress.show(at(begun, 33)).to_string(), "spark: downloading, 100 of 100 MB");
    }

    #[test]
    fn another_file_or_attempt_begins_its_own_count() {
        let (begun, mut progress) = (Instant::now(), Progress::new("spark"));
        progress.note(downloading(9_000_000), begun);
        progress.note(downloading(9_500_000), at(begun, 5));
        assert_eq!(progress.show(at(begun, 5)).bytes_per_second, Some(100_000));
        progress.note(downloading(0), at(begun, 6));
        assert_eq!(progress.show(at(begun, 6)).bytes_per_second, None, "an attempt that begins anew");
        progress.note(Step::Downloading { what: "numpy.whl".to_owned(), done: 0, total: None }, at(begun, 9));
        assert_eq!(progress.show(at(begun, 9)).to_string(), "spark: downloading numpy.whl");
        progress.note(Step::doing("unpacking"), at(begun, 10));
        assert_eq!(progress.show(at(begun, 10)).to_string(), "spark: unpacking");
    }
}
