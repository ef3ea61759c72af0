//! Problems of a file that a person wrote, each with its place in the text.

use std::fmt;
use std::ops::Range;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode};

use crate::secrets;

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Bytes of the text.
    pub span: Range<usize>,
    pub message: String,
    pub help: Option<String>,
}

/// Everything that is wrong with one file.
#[derive(Debug)]
pub struct InvalidFile {
    name: String,
    text: String,
    pub problems: Vec<Problem>,
}

impl InvalidFile {
    pub fn new(name: impl Into<String>, text: impl Into<String>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| (p.span.start, p.span.end));
        problems.dedup();
        Self { name: name.into(), text: text.into(), problems }
    }

    /// The problems as a person reads them: each with its line, a caret and, where there is one, a suggestion.
    pub fn render(&self, colour: bool, width: usize) -> String {
        let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_context_lines(1);
        // Problems are logged and sent: the lines that they show must not have secrets.
        let text = secrets::masked(&self.text);
        let mut out = String::new();
        for problem in &self.problems {
            let located = Located { problem, source: NamedSource::new(&self.name, text.clone()) };
            // Writing to a string cannot fail.
            let _ = handler.render_report(&mut out, &located);
        }
        out
    }
}

impl InvalidFile {
    /// Takes in the problems of the same file; gives back those of another.
    pub fn absorb(&mut self, other: Self) -> Option<Self> {
        if other.name != self.name {
            return Some(other);
        }
        let all = std::mem::take(&mut self.problems).into_iter().chain(other.problems).collect();
        *self = Self::new(std::mem::take(&mut self.name), std::mem::take(&mut self.text), all);
        None
    }
}

/// A problem with its place as programs read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
    pub help: Option<String>,
}

impl InvalidFile {
    pub fn places(&self) -> Vec<Place> {
        let place = |problem: &Problem| {
            let before = self.text.get(..problem.span.start).unwrap_or(&self.text);
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            Place {
                file: self.name.clone(),
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                message: problem.message.clone(),
                help: problem.help.clone(),
            }
        };
        self.problems.iter().map(place).collect()
    }
}

impl fmt::Display for InvalidFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "{} has {count} problem{}", self.name, if count == 1 { "" } else { "s" })?;
        for place in self.places() {
            write!(f, "; line {}: {}", place.line, place.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidFile {}

#[derive(Debug)]
struct Located<'a> {
    problem: &'a Problem,
    source: NamedSource<String>,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Located<'_> {}

impl Diagnostic for Located<'_> {
    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.problem.help.as_ref().map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(None, self.problem.span.clone()))))
    }
}
