//! Records a real session of the quickstart and draws it: `cargo xtask picture`.
//!
//! Arguments: the directory of the programs, and the picture to write. The commands run in a terminal of their own (`script`), with
//! a state directory of their own, and a terminal emulator says what is on the screen after each; nothing is drawn that was not there.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use vt100::{Color, Parser};

/// The session: what is shown as typed, and whether it is shown at all.
const SESSION: [(&str, bool); 5] = [
    ("cloudtik up examples/quickstart.toml --yes", true),
    ("cloudtik submit quickstart examples/jobs/wordcount.py /usr/share/common-licenses/GPL-3 | tail -4", true),
    ("cloudtik kill-node quickstart w1 --yes", true),
    ("cloudtik status quickstart --wait", true),
    ("cloudtik down quickstart --yes", false),
];
const COLUMNS: u16 = 100;
const ROWS: u16 = 200;

/// In units of the picture.
const CHARACTER: f32 = 8.4;
const LINE: f32 = 19.0;
const MARGIN: f32 = 16.0;
const BACKGROUND: &str = "#16181d";
const TEXT: &str = "#d5d8de";
const PROMPT: &str = "#7fc97f";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [programs, picture] = arguments.as_slice() else { panic!("usage: picture PROGRAMS PICTURE.svg") };
    let programs = fs::canonicalize(programs).expect("the programs are built");
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut drawing = Drawing::default();
    let mut failed = None;
    for (command, is_shown) in SESSION {
        // What was made is taken down, whatever else fails.
        if failed.is_some() && is_shown {
            continue;
        }
        let (screen, is_ok) = record(command, &programs, home.path());
        if !is_ok {
            failed = Some(format!("{command} failed:\n{}", screen.screen().contents()));
        } else if is_shown {
            drawing.command(command, &screen);
        }
    }
    if let Some(failed) = failed {
        panic!("{failed}");
    }
    fs::write(picture, drawing.finish()).expect("writes the picture");
}

/// Runs a command in a terminal; returns what is on its screen in the end, and whether the command ended well.
fn record(command: &str, programs: &Path, home: &Path) -> (Parser, bool) {
    eprintln!("$ {command}");
    let inside = format!("stty cols {COLUMNS} rows {ROWS}; set -o pipefail; {command}");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &format!("bash -c '{inside}'"), "/dev/null"]);
    script.env("PATH", path).env("CLOUDTIK_HOME", home.join("state")).env("TERM", "xterm-256color").env_remove("NO_COLOR");
    script.current_dir(cloudtik_tests::repository()).stdin(Stdio::null());
    let output = script.output().expect("script runs");
    let mut screen = Parser::new(ROWS, COLUMNS, 0);
    screen.process(&output.stdout);
    (screen, output.status.success())
}

#[derive(Default)]
struct Drawing {
    lines: u16,
    body: String,
}

impl Drawing {
    fn command(&mut self, command: &str, after: &Parser) {
        if self.lines > 0 {
            self.lines += 1;
        }
        self.span(0, "$", PROMPT, true);
        self.span(2, command, TEXT, true);
        self.lines += 1;
        let screen = after.screen();
        let rows: Vec<String> = screen.rows(0, COLUMNS).collect();
        let last = rows.iter().rposition(|row| !row.trim().is_empty()).map_or(0, |last| last + 1);
        for row in 0..last as u16 {
            let mut column = 0;
            while column < COLUMNS {
                // Cells of one look are one span.
                let look = |column: u16| screen.cell(row, column).map(|cell| (cell.bold(), cell.fgcolor()));
                let (begun, first) = (column, look(column));
                let mut text = String::new();
                while column < COLUMNS && look(column) == first {
                    let cell = screen.cell(row, column).map(|cell| cell.contents().to_owned()).unwrap_or_default();
                    text.push_str(if cell.is_empty() { " " } else { &cell });
                    column += 1;
                }
                let (bold, colour) = first.unwrap_or((false, Color::Default));
                self.span(begun, text.trim_end(), hexadecimal(colour), bold);
            }
            self.lines += 1;
        }
    }

    fn span(&mut self, column: u16, text: &str, colour: &str, bold: bool) {
        let indent = text.len() - text.trim_start().len();
        let text = text.trim_start();
        if text.is_empty() {
            return;
        }
        let (x, y) = (MARGIN + (f32::from(column) + indent as f32) * CHARACTER, MARGIN + (f32::from(self.lines) + 0.75) * LINE);
        let width = text.chars().count() as f32 * CHARACTER;
        let weight = if bold { " font-weight=\"bold\"" } else { "" };
        // Spaces that nothing collapses: whether `xml:space` is heeded differs.
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace(' ', "\u{a0}");
        let _ = writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{width:.1}\" fill=\"{colour}\"{weight}>{text}</text>");
    }

    fn finish(self) -> String {
        let (width, height) = (2.0 * MARGIN + f32::from(COLUMNS) * CHARACTER, 2.0 * MARGIN + f32::from(self.lines) * LINE);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
             font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" font-size=\"14\">\n\
             <title>A cluster comes up, counts words, and replaces a node that was killed</title>\n\
             <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n{}</svg>\n",
            self.body
        )
    }
}

fn hexadecimal(colour: Color) -> &'static str {
    match colour {
        Color::Idx(1 | 9) => "#e06c75",
        Color::Idx(2 | 10) => "#7fc97f",
        Color::Idx(3 | 11) => "#e5c07b",
        Color::Idx(4 | 12) => "#61afef",
        Color::Idx(_) | Color::Rgb(..) | Color::Default => TEXT,
    }
}
