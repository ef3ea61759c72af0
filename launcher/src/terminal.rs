//! The terminal: live progress, and raw mode for programs that want one.

use std::io;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::termios::{self, OptionalActions, Termios};

use crate::output::{takes_codes, talk};

/// Elsewhere than on a terminal, a line at most this often.
const LINE_PAUSE: Duration = Duration::from_secs(2);
/// Elsewhere than on a terminal, a line at most this often where only numbers changed.
const NUMBERS_PAUSE: Duration = Duration::from_secs(10);
/// What things that are waited for are indented by.
const INDENT: &str = "    ";
/// Columns before the text: the spinner and the time.
const BEFORE_TEXT: usize = 12;

/// What is being done and waited for: a live display on a terminal, a line now and then elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    last: String,
    /// What was printed last.
    shown: String,
    printed: Option<Instant>,
}

impl Progress {
    pub fn new() -> Self {
        let bar = takes_codes(&io::stderr()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {elapsed:>3} {msg}").expect("the template is valid");
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, last: String::new(), shown: String::new(), printed: None }
    }

    /// Another phase began.
    pub fn phase(&mut self, text: &str) {
        self.printed = None;
        self.waiting(text);
    }

    /// What is being done now.
    pub fn waiting(&mut self, text: &str) {
        self.waiting_for(text, &[]);
    }

    /// What is being done now, and what is waited for: a line each on a terminal, wrapped at its width.
    pub fn waiting_for(&mut self, text: &str, waits: &[String]) {
        match &self.bar {
            Some(bar) => {
                let columns = termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
                let columns = if columns == 0 { 80 } else { columns };
                bar.set_message(lines(text, waits, columns));
            }
            None => {
                let colon = if waits.is_empty() { "" } else { ", waiting for " };
                self.last = format!("{text}{colon}{}", waits.join("; "));
                self.catch_up();
            }
        }
    }

    /// Elsewhere than on a terminal: prints what is waited for, if that is news and the last line is a while ago.
    pub fn catch_up(&mut self) {
        if self.bar.is_some() || self.last == self.shown {
            return;
        }
        let pause = if words(&self.last).eq(words(&self.shown)) { NUMBERS_PAUSE } else { LINE_PAUSE };
        if self.printed.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        self.printed = Some(Instant::now());
        self.shown.clone_from(&self.last);
        talk(&self.last);
    }

    /// A line that stays.
    pub fn keep(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => talk(text),
        }
    }
}

/// A text and what is waited for, as lines of a terminal that has so many columns.
fn lines(text: &str, waits: &[String], columns: usize) -> String {
    let wrap = |text: &str, columns: usize| textwrap::wrap(text, columns.max(20)).join(&format!("\n{INDENT}{INDENT}"));
    let comma = if waits.is_empty() { "" } else { ", waiting for" };
    let mut lines = vec![wrap(&format!("{text}{comma}"), columns.saturating_sub(BEFORE_TEXT))];
    lines.extend(waits.iter().map(|wait| format!("{INDENT}{}", wrap(wait, columns.saturating_sub(2 * INDENT.len() + 1)))));
    lines.join("\n")
}

/// The words of a text, without numbers and what goes with them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_unit = |word: &str| ["of", "B", "kB", "MB", "GB", "B/s", "kB/s", "MB/s", "GB/s", "s", "min", "h", "left", "%"].contains(&word);
    text.split([' ', ',', ';']).filter(move |word| !word.is_empty() && !is_unit(word) && word.parse::<f64>().is_err())
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Raw mode of the terminal on standard input, for as long as this lives.
pub struct RawMode(Termios);

impl RawMode {
    pub fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Rows and columns of the terminal.
pub fn size() -> Option<(u32, u32)> {
    let size = termios::tcgetwinsize(io::stdout()).ok()?;
    Some((u32::from(size.ws_row), u32::from(size.ws_col)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_what_is_waited_for_is_cut_off() {
        let waits = [
            "spark-4.3.0: downloading, 120 of 456 MB, 8.1 MB/s, 42 s left".to_owned(),
            "prometheus-debian: failed, next try in 4 s: apt-get ended with exit status: 100: E: Unable to locate package".to_owned(),
        ];
        let shown = lines("quickstart: 1 of 3 nodes ready", &waits, 80);
        assert!(shown.lines().all(|line| line.chars().count() < 80), "{shown}");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let all = format!("quickstart: 1 of 3 nodes ready, waiting for {} {}", waits[0], waits[1]);
        assert_eq!(words(&shown), words(&all));
        assert_eq!(shown.lines().nth(1), Some("    spark-4.3.0: downloading, 120 of 456 MB, 8.1 MB/s, 42 s left"));
    }

    #[test]
    fn what_differs_in_numbers_only_is_little_news() {
        let [early, late, other] = [
            "q: 1 of 3 nodes ready, waiting for spark: downloading, 456 MB",
            "q: 1 of 3 nodes ready, waiting for spark: downloading, 120 of 456 MB, 8.1 MB/s, 42 s left",
            "q: 1 of 3 nodes ready, waiting for spark: unpacking",
        ];
        assert!(words(early).eq(words(late)));
        assert!(!words(late).eq(words(other)));
    }
}
