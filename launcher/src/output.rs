//! What is printed: data on standard output, talk on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use cloudtik_model::Timestamp;
use cloudtik_protocol::VERSION;
use cloudtik_protocol::logging::{is_full_disk, plain};
use serde::Serialize;

use crate::cli::Format;
use crate::failure::{FAILED, Failure, USAGE};

pub struct Printer {
    format: Format,
    colour: bool,
}

impl Printer {
    pub fn new(format: Format) -> Self {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { format, colour }
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes data; a reader that went away is no failure.
    pub fn raw(&self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
            let broken = error.kind() == io::ErrorKind::BrokenPipe;
            std::process::exit(if broken { 0 } else { i32::from(FAILED) });
        }
    }

    pub fn line(&self, text: &str) {
        self.raw(format!("{text}\n").as_bytes());
    }

    /// Data for programs, on several lines.
    pub fn json(&self, value: &impl Serialize) {
        self.line(&serde_json::to_string_pretty(value).expect("documents become JSON"));
    }

    /// Data for programs, on one line.
    pub fn json_line(&self, value: &impl Serialize) {
        self.line(&serde_json::to_string(value).expect("documents become JSON"));
    }

    /// Talk.
    pub fn say(&self, text: &str) {
        talk(text);
    }

    pub fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
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
            talk(diagnostics.render(self.colour, width).trim_end_matches('\n'));
        }
        let label = if self.colour { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
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
        let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let format_row = |cells: Vec<&str>| {
            let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        self.line(&format_row(header.to_vec()));
        for row in rows {
            self.line(&format_row(row.iter().map(String::as_str).collect()));
        }
    }

    /// Asks before something is destroyed, on a thread of its own, so that an interrupt is heard meanwhile.
    pub async fn confirm_async(&self, question: &str, yes: bool) -> Result<(), Failure> {
        let (own, question) = (Self { format: self.format, colour: self.colour }, question.to_owned());
        let asking = tokio::task::spawn_blocking(move || own.confirm(&question, yes));
        asking.await.map_err(|e| Failure::failed(e.to_string()))?
    }

    /// Asks before something is destroyed.
    pub fn confirm(&self, question: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::new(USAGE, format!("{question} Nobody is there to answer.")).hint("add --yes to answer beforehand"));
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

/// Says something on standard error; that nobody listens is no failure.
pub fn talk(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(io::stderr()).map_or(100, |size| usize::from(size.ws_col).clamp(60, 120))
}

/// Columns of the terminal that data is printed on; nothing where it goes elsewhere.
pub fn columns_of_output() -> Option<usize> {
    rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

pub fn ago(at: Timestamp) -> String {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
    short(Duration::from_millis(now.saturating_sub(at.0)))
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

/// A moment as people read it: UTC, to the millisecond.
pub fn clock(at: Timestamp) -> String {
    let (seconds, millis) = (at.0 / 1000, at.0 % 1000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date: Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html>, civil_from_days.
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{millis:03}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_readable() {
        assert_eq!(clock(Timestamp(0)), "1970-01-01 00:00:00.000");
        assert_eq!(clock(Timestamp(1_709_210_096_789)), "2024-02-29 12:34:56.789");
        assert_eq!(short(Duration::from_secs(3_725)), "1h02m");
    }
}
