//! Events that repeat each other, folded: "18 times in 4 min" in place of 18 lines.

use std::time::Duration;

use cloudtik_model::Timestamp;
use cloudtik_model::event::Event;
use serde::Serialize;

use crate::output::approximately;

/// The longest group of events of which repetitions are found: a crash, what follows on its node, and the way back.
const LONGEST_GROUP: usize = 6;
/// A group of several events is folded from so many repetitions on; a single event from two.
const GROUP_REPEATS: usize = 3;

/// One event that stands for those that say the same again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Folded {
    pub times: usize,
    pub first: Timestamp,
    pub last: Timestamp,
    /// The last of them.
    pub event: Event,
}

impl Folded {
    /// How often and in which time, such as `18 times in 4 min`; nothing for what happened once.
    pub fn repeats(&self) -> Option<String> {
        let span = Duration::from_millis(self.last.0.saturating_sub(self.first.0));
        (self.times > 1).then(|| format!("{} times in {}", self.times, approximately(span)))
    }
}

/// Folds repetitions: of single events, and of groups that follow each other in the same order. The order of what is left is
/// that of the events.
pub fn fold(events: &[Event]) -> Vec<Folded> {
    let (mut folded, mut at) = (Vec::new(), 0);
    while at < events.len() {
        let groups = (1..=LONGEST_GROUP).map(|length| (length, repetitions(&events[at..], length)));
        let enough = |(length, times): &(usize, usize)| *times >= if *length == 1 { 2 } else { GROUP_REPEATS };
        // What covers most; of those the shortest.
        let best = groups.filter(enough).max_by_key(|(length, times)| (length * times, std::cmp::Reverse(*length)));
        let (length, times) = best.unwrap_or((1, 1));
        for offset in 0..length {
            let last = at + offset + (times - 1) * length;
            // The last lines of a log are not stored with every repetition.
            let with_most = (0..times).rev().map(|n| &events[at + offset + n * length]).find(|e| !e.log.is_empty());
            let mut event = events[last].clone();
            if let Some(other) = with_most.filter(|_| event.log.is_empty()) {
                event.log.clone_from(&other.log);
            }
            let unstored: u64 = if times > 1 { (0..times).map(|n| events[at + offset + n * length].more).sum() } else { 0 };
            if times > 1 {
                event.more = 0;
            }
            let times = times.saturating_add(unstored as usize);
            folded.push(Folded { times, first: events[at + offset].at, last: event.at, event });
        }
        at += length * times;
    }
    folded
}

/// How often the first `length` events follow each other.
fn repetitions(events: &[Event], length: usize) -> usize {
    if events.len() < length {
        return 0;
    }
    let (group, rest) = events.split_at(length);
    1 + rest.chunks_exact(length).take_while(|other| group.iter().zip(*other).all(|(a, b)| a.repeats(b))).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudtik_model::event::What;
    use cloudtik_model::report::{FailureCause, ServiceState};

    fn event(at: u64, what: What) -> Event {
        Event { node: "w1".parse().ok(), ..Event::new(Timestamp(at), what) }
    }

    fn ran(program: &str) -> What {
        What::Exec { program: program.to_owned() }
    }

    fn crashed(code: i32, restart_in_ms: u64) -> What {
        let failure = FailureCause::Crashed { exit_code: Some(code), how: format!("exit {code}") };
        What::ServiceFailed { service: "queue/q".parse().expect("a key"), failure, restart_in_ms }
    }

    fn shown(events: &[Event]) -> Vec<String> {
        let line = |f: &Folded| format!("{}{}", f.event.message(), f.repeats().map(|r| format!(" ({r})")).unwrap_or_default());
        fold(events).iter().map(line).collect()
    }

    #[test]
    fn a_crash_loop_is_two_lines_with_their_number() {
        let mut events = vec![event(0, ran("first"))];
        let ready = What::ServiceChanged { service: "queue/q".parse().expect("a key"), state: ServiceState::Ready, detail: String::new() };
        for n in 0..18u64 {
            let delay = 200 << n.min(7);
            let mut crash = event(n * 14_118 + 1, crashed(1, delay));
            if n < 3 {
                crash.log.push(format!("run {n}"));
            }
            events.extend([crash, event(n * 14_118 + 2, ready.clone())]);
        }
        events.push(event(300_000, crashed(2, 30_000)));
        let lines = shown(&events);
        assert_eq!(
            lines,
            [
                "exec first",
                "queue/q crashed (exit 1); restarts in 25 s (18 times in 4 min)",
                "queue/q is ready (18 times in 4 min)",
                "queue/q crashed (exit 2); restarts in 30 s",
            ]
        );
        assert_eq!(fold(&events)[1].event.log, ["run 2"], "the last log that is stored");
    }

    #[test]
    fn repetitions_that_were_only_counted_count() {
        let mut events = vec![event(0, ran("a")), event(1_000, ran("a"))];
        events[1].more = 40;
        assert_eq!(shown(&events), ["exec a (42 times in 1 s)"]);
        assert_eq!(shown(&events[1..]), ["exec a (40 more like it since the last event)"]);
    }

    #[test]
    fn what_is_not_the_same_stays_apart() {
        let events: Vec<Event> = ["a", "b", "a", "b", "c", "c", "d"].iter().zip(0..).map(|(m, at)| event(at * 1_000, ran(m))).collect();
        assert_eq!(shown(&events), ["exec a", "exec b", "exec a", "exec b", "exec c (2 times in 1 s)", "exec d"]);
        let mut other = events[4..6].to_vec();
        other[1].generation = Some(cloudtik_model::Generation(2));
        assert_eq!(fold(&other).len(), 2, "of another generation");
        assert!(fold(&[]).is_empty());
    }
}
