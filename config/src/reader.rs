//! Reads TOML tables key by key. What is missing, of the wrong type, malformed or unknown is noted with its place, and
//! reading goes on, so that one look shows every problem.

mod json;

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{InvalidFile, Problem};
use crate::syntax;

/// A value with its place in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// Where problems of one file are noted.
#[derive(Debug, Clone, Default)]
pub struct Problems(Rc<RefCell<Vec<Problem>>>);

impl Problems {
    pub fn note(&self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.0.borrow_mut().push(Problem { span, message: message.into(), help });
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// Reads a whole file: `read` takes the root table apart; the result stands only if no problem was noted.
pub fn read_file<T>(name: &str, text: &str, read: impl FnOnce(&mut Table<'_>, &Problems) -> Option<T>) -> Result<T, InvalidFile> {
    let problems = Problems::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    for problem in if errors.is_empty() { Vec::new() } else { syntax::problems(text, &errors) } {
        problems.note(problem.span, problem.message, problem.help);
    }
    let invalid = |problems: Problems| InvalidFile::new(name, text, problems.0.borrow().clone());
    if !errors.is_empty() {
        return Err(invalid(problems));
    }
    let mut root = Table::new("", document.span(), document.get_ref(), problems.clone());
    let value = read(&mut root, &problems);
    root.finish();
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(invalid(problems)),
    }
}

/// Reads a part of a file of which the rest is read by others: what is not asked for is no problem.
pub fn read_part<T>(name: &str, text: &str, read: impl FnOnce(&mut Table<'_>, &Problems) -> T) -> Result<T, InvalidFile> {
    let problems = Problems::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    for problem in if errors.is_empty() { Vec::new() } else { syntax::problems(text, &errors) } {
        problems.note(problem.span, problem.message, problem.help);
    }
    let value = read(&mut Table::new("", document.span(), document.get_ref(), problems.clone()), &problems);
    if problems.is_empty() { Ok(value) } else { Err(InvalidFile::new(name, text, problems.0.borrow().clone())) }
}

/// One table, of which every key must be asked for before [`Table::finish`].
#[derive(Debug)]
pub struct Table<'t> {
    path: String,
    span: Range<usize>,
    table: &'t DeTable<'t>,
    known: Vec<String>,
    problems: Problems,
}

/// A number, text or truth value, as runtimes take properties.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

impl Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Boolean(truth) => write!(f, "{truth}"),
        }
    }
}

impl<'t> Table<'t> {
    fn new(path: &str, span: Range<usize>, table: &'t DeTable<'t>, problems: Problems) -> Self {
        Self { path: path.to_owned(), span, table, known: Vec::new(), problems }
    }

    /// Reads with problems noted elsewhere, for what others tell of.
    pub fn quietly<T>(&mut self, problems: &Problems, read: impl FnOnce(&mut Self) -> T) -> T {
        let own = std::mem::replace(&mut self.problems, problems.clone());
        let value = read(self);
        self.problems = own;
        value
    }

    /// The place of the table's header.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    fn named(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The place of a key's value, or of the table where there is none.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        let found = self.table.iter().find(|(k, _)| k.get_ref() == key);
        found.map_or_else(|| self.span(), |(_, value)| value.span())
    }

    fn get(&mut self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.push(key.to_owned());
        self.table.iter().find(|(k, _)| k.get_ref() == key).map(|(_, value)| value)
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(k, _)| k.get_ref() == key)
    }

    /// Whether a key holds a table, `{ … }` or `[…]`.
    pub fn is_table(&self, key: &str) -> bool {
        self.table.iter().any(|(k, value)| k.get_ref() == key && matches!(value.get_ref(), DeValue::Table(_)))
    }

    pub fn is_list(&self, key: &str) -> bool {
        self.table.iter().any(|(k, value)| k.get_ref() == key && matches!(value.get_ref(), DeValue::Array(_)))
    }

    /// Notes a problem with the table as a whole.
    pub fn problem(&self, message: impl Into<String>, help: Option<String>) {
        self.problems.note(self.span(), message, help);
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let message = format!("`{}` must be {expected}, not {}", self.named(key), described(value.get_ref()));
        self.problems.note(value.span(), message, None);
    }

    fn missing(&self, key: &str, example: &str) {
        self.problem(format!("`{}` is missing", self.named(key)), Some(format!("add {key} = {example}")));
    }

    pub fn text(&mut self, key: &str) -> Option<At<String>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(At { value: text.to_string(), span: value.span() }),
            _ => {
                self.wrong_type(key, value, "text in quotes");
                None
            }
        }
    }

    pub fn require_text(&mut self, key: &str, example: &str) -> Option<At<String>> {
        if !self.has(key) {
            self.missing(key, example);
        }
        self.text(key)
    }

    /// Text that is parsed into a type of its own.
    pub fn parse<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<At<T>> {
        let text = self.text(key)?;
        match text.value.parse() {
            Ok(value) => Some(At { value, span: text.span }),
            Err(error) => {
                self.problems.note(text.span, format!("`{}`: {error}", self.named(key)), None);
                None
            }
        }
    }

    pub fn require<T: FromStr<Err: Display>>(&mut self, key: &str, example: &str) -> Option<At<T>> {
        if !self.has(key) {
            self.missing(key, example);
        }
        self.parse(key)
    }

    /// A whole number within bounds.
    pub fn integer(&mut self, key: &str, least: u64, most: u64) -> Option<At<u64>> {
        let value = self.get(key)?;
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(key, value, "a whole number");
            return None;
        };
        match u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
            Ok(number) if (least..=most).contains(&number) => Some(At { value: number, span: value.span() }),
            _ => {
                let bounds = if most == u64::MAX { format!("at least {least}") } else { format!("between {least} and {most}") };
                self.problems.note(value.span(), format!("`{}` must be {bounds}, not {}", self.named(key), number.as_str()), None);
                None
            }
        }
    }

    pub fn float(&mut self, key: &str, least: f64, most: f64) -> Option<At<f64>> {
        let value = self.get(key)?;
        let number = match value.get_ref() {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            _ => {
                self.wrong_type(key, value, "a number");
                return None;
            }
        };
        match number {
            Some(number) if (least..=most).contains(&number) => Some(At { value: number, span: value.span() }),
            _ => {
                self.problems.note(value.span(), format!("`{}` must be between {least} and {most}", self.named(key)), None);
                None
            }
        }
    }

    /// A span of time such as `500ms`, `10s`, `5m`, `24h` or `30d`; not zero.
    pub fn duration(&mut self, key: &str) -> Option<At<Duration>> {
        let text = self.text(key)?;
        match parse_duration(&text.value) {
            Some(value) => Some(At { value, span: text.span }),
            None => {
                let help = Some("such as \"500ms\", \"10s\" or \"5m\"".to_owned());
                let message = match parse_span(&text.value) {
                    Some(_) => format!("`{}` must be greater than zero", self.named(key)),
                    None => format!("{:?} is not a span of time", text.value),
                };
                self.problems.note(text.span, message, help);
                None
            }
        }
    }

    /// A span of time, or a list of the shortest and the longest one; none is less than `least`.
    pub fn durations(&mut self, key: &str, least: Duration) -> Option<At<(Duration, Duration)>> {
        let value = self.get(key)?;
        let texts: Vec<String> = match value.get_ref() {
            DeValue::String(text) => vec![text.to_string(), text.to_string()],
            _ => self.texts(key).into_iter().map(|text| text.value).collect(),
        };
        let parsed: Vec<Duration> = texts.iter().filter_map(|text| parse_span(text)).collect();
        match parsed[..] {
            [from, to] if texts.len() == 2 && from <= to && from >= least => Some(At { value: (from, to), span: value.span() }),
            _ => {
                let message = format!("`{}` must be a span of time, or the shortest and the longest one", self.named(key));
                self.problems.note(value.span(), message, Some("such as \"60s\" or [\"30s\", \"90s\"]".to_owned()));
                None
            }
        }
    }

    pub fn boolean(&mut self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(truth) => Some(*truth),
            _ => {
                self.wrong_type(key, value, "true or false");
                None
            }
        }
    }

    pub fn scalar(&mut self, key: &str) -> Option<At<Scalar>> {
        let value = self.get(key)?;
        let scalar = match value.get_ref() {
            DeValue::String(text) => Some(Scalar::Text(text.to_string())),
            DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok().map(Scalar::Integer),
            DeValue::Float(number) => number.as_str().parse().ok().map(Scalar::Float),
            DeValue::Boolean(truth) => Some(Scalar::Boolean(*truth)),
            _ => None,
        };
        if scalar.is_none() {
            self.wrong_type(key, value, "text, a number or a boolean");
        }
        scalar.map(|scalar| At { value: scalar, span: value.span() })
    }

    /// A list of texts; absent is empty.
    pub fn texts(&mut self, key: &str) -> Vec<At<String>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value, "a list of texts");
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::String(text) => texts.push(At { value: text.to_string(), span: item.span() }),
                _ => self.wrong_type(key, item, "a list of texts"),
            }
        }
        texts
    }

    /// A table of which somebody else knows the keys, as JSON. Dates become texts; numbers that JSON does not have are problems.
    pub fn json(&mut self, key: &str) -> Option<serde_json::Value> {
        let value = self.get(key)?;
        self.as_table(key, value)?;
        Some(json::of(&self.named(key), value, &self.problems))
    }

    /// A whole number that must be there.
    pub fn require_integer(&mut self, key: &str, least: u64, most: u64, example: &str) -> Option<At<u64>> {
        if !self.has(key) {
            self.missing(key, example);
        }
        self.integer(key, least, most)
    }

    /// A table, or nothing if it is absent.
    pub fn table(&mut self, key: &str) -> Option<Table<'t>> {
        let value = self.get(key)?;
        self.as_table(key, value)
    }

    fn as_table(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Option<Table<'t>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Table::new(&self.named(key), value.span(), table, self.problems.clone())),
            _ => {
                self.wrong_type(key, value, "a table");
                None
            }
        }
    }

    pub fn require_table(&mut self, key: &str) -> Option<Table<'t>> {
        if !self.has(key) {
            self.problem(format!("the table `{}` is missing", self.named(key)), Some(format!("add [{}]", self.named(key))));
        }
        self.table(key)
    }

    /// A list of tables; absent is empty.
    pub fn tables(&mut self, key: &str) -> Vec<Table<'t>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value, "a list of tables");
            return Vec::new();
        };
        items.iter().filter_map(|item| self.as_table(key, item)).collect()
    }

    /// The keys of a table whose keys are names that somebody chose.
    pub fn names<T: FromStr<Err: Display>>(&mut self) -> Vec<At<T>> {
        let mut names = Vec::new();
        for (key, _) in self.table.iter() {
            match key.get_ref().parse::<T>() {
                Ok(value) => names.push(At { value, span: key.span() }),
                Err(error) => {
                    self.problems.note(key.span(), error.to_string(), None);
                    self.known.push(key.get_ref().to_string());
                }
            }
        }
        names.sort_by_key(|n| n.span.start);
        names
    }

    /// Takes every key for known, where the table as a whole is wrong.
    pub fn accept_all(&mut self) {
        self.known.extend(self.table.iter().map(|(key, _)| key.get_ref().to_string()));
    }

    /// Notes every key that nobody asked for, with the nearest one that somebody did.
    pub fn finish(self) {
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if self.known.iter().any(|k| k == name) {
                continue;
            }
            let help = nearest(name, self.known.iter().map(String::as_str)).map(|near| format!("did you mean `{near}`?")).or_else(|| {
                let mut known: Vec<&str> = self.known.iter().map(String::as_str).collect();
                known.sort_unstable();
                known.dedup();
                (!known.is_empty()).then(|| format!("known here: {}", known.join(", ")))
            });
            self.problems.note(key.span(), format!("unknown key `{}`", self.named(name)), help);
        }
    }
}

/// A span of time such as `500ms`, `10s`, `5m`, `1h30m` or `30d`; not zero.
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse_span(text).filter(|span| !span.is_zero())
}

/// The units of time in milliseconds, the largest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The same, which may be zero.
pub fn parse_span(text: &str) -> Option<Duration> {
    let (mut rest, mut units, mut milliseconds) = (text, &UNITS[..], 0u64);
    while !rest.is_empty() || text.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        // Each unit once, the larger before the smaller.
        let position = units.iter().position(|(name, _)| *name == unit)?;
        milliseconds = milliseconds.checked_add(number.parse::<u64>().ok()?.checked_mul(units[position].1)?)?;
        (rest, units) = (after, &units[position + 1..]);
    }
    Some(Duration::from_millis(milliseconds))
}

/// The name that a misspelt one was probably meant to be.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .filter(|(distance, k)| *distance <= 1 + k.len().max(name.len()) / 4)
        .min()
        .map(|(_, k)| k)
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
