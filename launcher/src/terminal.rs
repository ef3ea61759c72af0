//! The terminal: live progress, and raw mode for programs that want one.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::termios::{self, OptionalActions, Termios};

/// Elsewhere than on a terminal, a line at most this often.
const LINE_PAUSE: Duration = Duration::from_secs(2);

/// What is being done and waited for: one living line on a terminal, a line now and then elsewhere.
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
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}").expect("the template is valid");
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

    /// What is waited for now.
    pub fn waiting(&mut self, text: &str) {
        self.last = text.to_owned();
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.catch_up(),
        }
    }

    /// Elsewhere than on a terminal: prints what is waited for, if that is news and the last line is a while ago.
    pub fn catch_up(&mut self) {
        if self.bar.is_some() || self.last == self.shown || self.printed.is_some_and(|at| at.elapsed() < LINE_PAUSE) {
            return;
        }
        self.printed = Some(Instant::now());
        self.shown.clone_from(&self.last);
        crate::output::talk(&self.last);
    }

    /// A line that stays.
    pub fn keep(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => crate::output::talk(text),
        }
    }
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

/// Whether control codes may be written to a stream: it is a terminal, and one that knows them.
pub fn takes_codes(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Rows and columns of the terminal.
pub fn size() -> Option<(u32, u32)> {
    let size = termios::tcgetwinsize(io::stdout()).ok()?;
    Some((u32::from(size.ws_row), u32::from(size.ws_col)))
}
