//! What is printed: data on standard output, talk on standard error.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cloudtik_model::Timestamp;
use cloudtik_model::printed::Printed;
use cloudtik_protocol::VERSION;
use cloudtik_protocol::logging::{is_full_disk, plain};
use jiff::tz::TimeZone;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::failure::{FAILED, Failure, USAGE};
use crate::streams::output_was_closed;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: stable and documented.
    Json,
}

/// Where a program says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Error,
}

/// Whether output is still read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Reading {
    GoesOn,
    Ended,
}

#[derive(Clone)]
pub struct Printer {
    format: Format,
    /// Whether data, and talk, may carry codes.
    data_codes: bool,
    talk_codes: bool,
    output: Arc<Output>,
}

/// What became of the streams that data goes to.
#[derive(Default)]
struct Output {
    state: Mutex<OutputState>,
    ended: tokio::sync::Notify,
}

#[derive(Default)]
struct OutputState {
    /// Those that take no more.
    ended: Vec<Stream>,
    /// Why, unless their readers went away.
    failure: Option<io::Error>,
}

impl Output {
    fn state(&self) -> std::sync::MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, stream: Stream, written: io::Result<()>) -> Reading {
        let Err(error) = written else { return Reading::GoesOn };
        let mut state = self.state();
        state.ended.push(stream);
        if error.kind() != io::ErrorKind::BrokenPipe {
            state.failure.get_or_insert(error);
        }
        self.ended.notify_one();
        Reading::Ended
    }
}

/// Writes all of it, also where the other end made the stream non-blocking.
fn write_all(mut to: impl Write + AsFd, mut bytes: &[u8]) -> io::Result<()> {
    loop {
        let step = if bytes.is_empty() { to.flush().map(|()| None) } else { to.write(bytes).map(Some) };
        match step {
            Ok(None) => return Ok(()),
            Ok(Some(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Some(written)) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_until(to.as_fd(), PollFlags::POLLOUT)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("standard output is closed")
}

/// Waits until a stream that does not block can go on.
pub fn wait_until(stream: BorrowedFd<'_>, can: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(stream, can)], PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Printer {
    pub fn new(format: Format) -> Self {
        Self { format, data_codes: has_colour(&io::stdout()), talk_codes: has_colour(&io::stderr()), output: Arc::default() }
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes data. What becomes of it counts at the end: [`Printer::finish`].
    pub fn raw(&self, bytes: &[u8]) {
        let _ = self.copy(Stream::Out, bytes);
    }

    /// Writes what a program printed, and says whether more of it can be written.
    pub fn copy(&self, stream: Stream, bytes: &[u8]) -> Reading {
        if self.output.state().ended.contains(&stream) {
            return Reading::Ended;
        }
        let written = match stream {
            Stream::Out if output_was_closed() => Err(closed()),
            Stream::Out => write_all(io::stdout().lock(), bytes),
            Stream::Error => write_all(io::stderr().lock(), bytes),
        };
        self.output.record(stream, written)
    }

    /// Notes how data was written by others.
    pub fn wrote(&self, written: io::Result<()>) {
        let written = if output_was_closed() { Err(closed()) } else { written };
        let _ = self.output.record(Stream::Out, written);
    }

    /// Comes when data cannot be written any more.
    pub async fn output_ended(&self) {
        self.output.ended.notified().await;
    }

    /// The exit status of a command, after what went wrong was said. Output that could not be written is a failure, whatever
    /// else came of the command; a reader that went away is none.
    pub fn finish(&self, result: Result<u8, Failure>) -> u8 {
        let code = result.unwrap_or_else(|failure| {
            self.failure(&failure);
            failure.code
        });
        let Some(error) = self.output.state().failure.take() else { return code };
        self.failure(&Failure::failed(format!("cannot write the output: {error}")));
        if code == 0 { FAILED } else { code }
    }

    pub fn line(&self, text: &str) {
        self.raw(format!("{text}\n").as_bytes());
    }

    /// Data for programs, on several lines.
    pub fn json(&self, value: &impl Serialize) {
        self.line(&serde_json::to_string_pretty(&Printed(value)).expect("documents become JSON"));
    }

    /// Data for programs, on one line.
    pub fn json_line(&self, value: &impl Serialize) {
        self.line(&serde_json::to_string(&Printed(value)).expect("documents become JSON"));
    }

    /// Talk.
    pub fn say(&self, text: &str) {
        talk(text);
    }

    pub fn bold(&self, text: &str) -> String {
        if self.data_codes { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Says what went wrong, on standard error; for programs as one document.
    pub fn failure(&self, failure: &Failure) {
        let message = plain(&failure.message);
        let free_space = || "free space on that disk, then run the command again".to_owned();
        let hint = failure.hint.as_deref().map(plain).or_else(|| is_full_disk(&message).then(free_space));
        if self.is_json() {
            let place = |p: cloudtik_config::diagnostics::Place| serde_json::json!({ "file": p.file, "line": p.line, "column": p.column, "message": p.message, "help": p.help });
            let problems: Vec<_> = failure.diagnostics.iter().flat_map(|d| d.places()).map(place).collect();
            let document = serde_json::json!({
                "error": message, "hint": hint, "exit_code": failure.code, "problems": problems,
            });
            return talk(&format!("{document:#}"));
        }
        let width = terminal_width();
        for diagnostics in &failure.diagnostics {
            talk(diagnostics.render(self.talk_codes, width).trim_end_matches('\n'));
        }
        let label = if self.talk_codes { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        talk(&format!("{label} {message}"));
        if let Some(hint) = &hint {
            talk(&format!("\nhint: {hint}"));
        }
    }

    pub fn version(&self) {
        #[derive(Serialize)]
        struct Version {
            version: &'static str,
            protocol: u32,
        }
        let version = Version { version: VERSION, protocol: cloudtik_protocol::PROTOCOL_VERSION };
        if self.is_json() { self.json(&version) } else { self.line(&format!("cloudtik {VERSION}")) }
    }

    /// A table; columns are as wide as what is in them.
    pub fn table(&self, header: &[&str], rows: &[Vec<String>]) {
        let widths = widths_of(header, rows);
        let format_row = |cells: Vec<&str>| {
            let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        self.line(&format_row(header.to_vec()));
        for row in rows {
            self.line(&format_row(row.iter().map(String::as_str).collect()));
        }
    }

    /// A table that leaves out columns, the first of `spare` first, where it is wider than the terminal.
    pub fn table_within(&self, columns: Option<usize>, header: &[&str], rows: &[Vec<String>], spare: &[&str]) {
        let (mut header, mut rows) = (header.to_vec(), rows.to_vec());
        narrow(columns, &mut header, &mut rows, spare);
        self.table(&header, &rows);
    }

    /// Asks before something is destroyed, on a thread of its own, so that an interrupt is heard meanwhile.
    pub async fn confirm_async(&self, question: &str, yes: bool) -> Result<(), Failure> {
        let (own, question) = (self.clone(), question.to_owned());
        let asking = tokio::task::spawn_blocking(move || own.confirm(&question, yes));
        asking.await.map_err(|e| Failure::failed(e.to_string()))?
    }

    /// Asks before something is destroyed.
    pub fn confirm(&self, question: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(
                Failure::new(USAGE, "confirmation required and no terminal: use --yes").hint(format!("the question is: {question}"))
            );
        }
        let _ = write!(io::stderr(), "{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            return Ok(());
        }
        let declined = Failure::failed("not confirmed; nothing was changed").hint("answer `y`, or add --yes");
        Err(Failure { declined: true, ..declined })
    }
}

/// Between two columns.
const GAP: usize = 2;

fn widths_of(header: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

fn width_of(header: &[&str], rows: &[Vec<String>]) -> usize {
    widths_of(header, rows).iter().sum::<usize>() + GAP * header.len().saturating_sub(1)
}

/// Leaves out columns, the first of `spare` first, until a table fits.
fn narrow(columns: Option<usize>, header: &mut Vec<&str>, rows: &mut [Vec<String>], spare: &[&str]) {
    for column in spare {
        if columns.is_none_or(|columns| width_of(header, rows) <= columns) {
            return;
        }
        if let Some(index) = header.iter().position(|name| name == column) {
            header.remove(index);
            rows.iter_mut().for_each(|row| drop(row.remove(index)));
        }
    }
}

/// Whether codes for colours may be written to a stream.
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    takes_codes(stream) && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// A word as a shell takes it, for commands that people are to type.
pub fn quoted(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), Into::into)
}

/// Whether control codes may be written to a stream: it is a terminal, and one that knows them.
pub fn takes_codes(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Says something on standard error; that nobody listens is no failure.
pub fn talk(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(io::stderr()).map_or(100, |size| usize::from(size.ws_col).clamp(60, 120))
}

/// Columns of the terminal that data is printed on, or those that COLUMNS says; nothing where it goes elsewhere.
pub fn columns_of_output() -> Option<usize> {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    if told.is_some() {
        return told;
    }
    rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

pub fn ago(at: Timestamp) -> String {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
    short(Duration::from_millis(now.saturating_sub(at.0)))
}

/// Names as a sentence has them.
pub fn listed(names: &[impl ToString]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The first of some names, and how many more there are: `w1, w2 and 3 more`.
pub fn first_of(names: &[impl ToString], most: usize) -> String {
    let named: Vec<String> = names.iter().take(most).map(ToString::to_string).collect();
    match names.len().saturating_sub(most) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A span of time in its two largest units.
pub fn short(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{}ms", span.as_millis()),
        s @ 1..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        s => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// A span of time in its largest unit, as in "18 times in 4 min".
pub fn approximately(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{} ms", span.as_millis()),
        s @ 1..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min", s / 60),
        s @ 3600..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// A moment as people read it: local time with its zone, to the millisecond. `TZ` is honoured.
pub fn clock(at: Timestamp) -> String {
    local(at, "%Y-%m-%d %H:%M:%S.%3f %Z")
}

/// A moment in local time, in a format of `strftime`.
pub fn local(at: Timestamp, format: &str) -> String {
    in_zone(at, format, crate::zone::system(|problem| talk(&format!("warning: {problem}"))))
}

fn in_zone(at: Timestamp, format: &str, zone: TimeZone) -> String {
    let moment = i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.unwrap_or(jiff::Timestamp::MAX).to_zoned(zone).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_local_and_name_their_zone() {
        let (winter, summer) = (Timestamp(1_709_210_096_789), Timestamp(1_719_836_096_000));
        let clock = |at, zone: &str| in_zone(at, "%Y-%m-%d %H:%M:%S.%3f %Z", TimeZone::get(zone).expect("a zone"));
        assert_eq!(clock(winter, "UTC"), "2024-02-29 12:34:56.789 UTC");
        assert_eq!(clock(winter, "Europe/Berlin"), "2024-02-29 13:34:56.789 CET");
        assert_eq!(clock(summer, "Europe/Berlin"), "2024-07-01 14:14:56.000 CEST");
        assert_eq!(clock(winter, "Asia/Kolkata"), "2024-02-29 18:04:56.789 IST");
        assert_eq!(short(Duration::from_secs(3_725)), "1h02m");
    }

    #[test]
    fn tables_leave_out_what_does_not_fit() {
        let left = |columns| {
            let mut header = vec!["NODE", "TYPE", "STATE", "RUNTIMES"];
            let mut rows = [vec!["w1".to_owned(), "default".to_owned(), "ready".to_owned(), "x".repeat(30)]];
            narrow(columns, &mut header, &mut rows, &["RUNTIMES", "TYPE"]);
            assert_eq!(rows[0].len(), header.len());
            header.join(" ")
        };
        // 4, 7, 5 and 30 characters, and what is between them.
        assert_eq!(left(None), "NODE TYPE STATE RUNTIMES");
        assert_eq!(left(Some(52)), "NODE TYPE STATE RUNTIMES");
        assert_eq!(left(Some(51)), "NODE TYPE STATE");
        assert_eq!(left(Some(19)), "NODE STATE");
        assert_eq!(left(Some(1)), "NODE STATE", "what is not spare stays");
    }
}
