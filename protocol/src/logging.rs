//! What programs say: the lines of the head and the agent on standard error, chosen by `CLOUDTIK_LOG`, and errors as text.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged: `info` unless `CLOUDTIK_LOG` says otherwise, such as `debug` or `info,h2=trace`.
pub fn start() {
    let wanted = std::env::var("CLOUDTIK_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let targets = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(targets).init();
}

/// An error with everything behind it, on one line: for the edge at which it is shown.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// Keeps what strangers cause from filling the log: so many lines a second, the rest only counted.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Spent>);

#[derive(Debug, Default)]
struct Spent {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

const LINES_A_SECOND: u32 = 20;

impl Seldom {
    /// Whether a line may be written now, and how many were left out before it.
    pub fn allow(&self) -> Option<u64> {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            (spent.since, spent.lines) = (Some(Instant::now()), 0);
        }
        if spent.lines == LINES_A_SECOND {
            spent.left_out += 1;
            return None;
        }
        spent.lines += 1;
        Some(std::mem::take(&mut spent.left_out))
    }
}
