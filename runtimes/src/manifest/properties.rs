//! Properties: what a cluster file may set for a runtime, and what a value must be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use cloudtik_config::reader::{Problems, Scalar, Table, nearest, parse_duration};
use cloudtik_model::Bytes;

use crate::size::parse_size;

/// One property of a runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    /// As templates see it.
    pub default: Scalar,
    pub kind: Kind,
    /// The least value, of a kind that has an order.
    pub min: Option<Scalar>,
    /// The greatest value, of a kind that has an order.
    pub max: Option<Scalar>,
    /// The only values, if there are any.
    pub choices: Vec<String>,
    /// What of one worker it must not exceed.
    pub within: Option<Within>,
    /// The name of the same setting in the runtime's own configuration, by which it may be set as well.
    pub alias: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Integer,
    Number,
    Boolean,
    Text,
    /// Of memory or files; in templates as programs on a JVM write it, such as `512m`.
    Size,
    /// A span of time; in templates with one unit, such as `15d`.
    Duration,
    /// An absolute path, or the name of a program.
    Program,
}

/// What of one worker a property must not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// Its processors.
    Cpus,
    /// The share of its memory that the runtime plans with.
    Memory,
}

/// Names of properties that are not declared, and yet are the runtime's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HandThrough {
    #[default]
    Nothing,
    Everything,
    /// What begins with one of these.
    Prefixes(Vec<String>),
}

impl HandThrough {
    pub fn takes(&self, name: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix.as_str())),
        }
    }
}

/// Why a property cannot have a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What the value must be.
    pub expected: String,
    pub help: Option<String>,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Text => "text in quotes",
            Self::Size => "a size",
            Self::Duration => "a span of time",
            Self::Program => "an absolute path or the name of a program",
        })
    }
}

const KINDS: [(&str, Kind); 7] = [
    ("integer", Kind::Integer),
    ("number", Kind::Number),
    ("boolean", Kind::Boolean),
    ("text", Kind::Text),
    ("size", Kind::Size),
    ("duration", Kind::Duration),
    ("program", Kind::Program),
];

const WITHIN: [(&str, Within); 2] = [("worker.cpus", Within::Cpus), ("worker.memory", Within::Memory)];

impl Kind {
    fn of(value: &Scalar) -> Self {
        match value {
            Scalar::Text(_) => Self::Text,
            Scalar::Integer(_) => Self::Integer,
            Scalar::Float(_) => Self::Number,
            Scalar::Boolean(_) => Self::Boolean,
        }
    }

    fn example(self) -> Option<&'static str> {
        match self {
            Self::Size => Some("such as \"512m\", \"2g\" or \"1.5GiB\""),
            Self::Duration => Some("such as \"500ms\", \"10s\", \"24h\" or \"30d\""),
            Self::Program => Some("such as \"/usr/bin/python3\" or \"python3\""),
            Self::Integer | Self::Number | Self::Boolean | Self::Text => None,
        }
    }

    /// A value of this kind as templates see it.
    fn read(self, value: &Scalar) -> Option<Scalar> {
        match (self, value) {
            (Self::Integer, Scalar::Integer(_))
            | (Self::Number, Scalar::Integer(_) | Scalar::Float(_))
            | (Self::Boolean, Scalar::Boolean(_)) => Some(value.clone()),
            (Self::Text, Scalar::Text(text)) => (!text.contains('\0')).then(|| value.clone()),
            (Self::Size, Scalar::Text(text)) => parse_size(text).and_then(jvm_size).map(Scalar::Text),
            (Self::Duration, Scalar::Text(text)) => parse_duration(text).map(|span| Scalar::Text(one_unit(span))),
            (Self::Program, Scalar::Text(text)) => {
                let is_program = text.starts_with('/') || !text.contains('/');
                (!text.is_empty() && is_program && !text.contains(char::is_control)).then(|| value.clone())
            }
            _ => None,
        }
    }

    /// A value as a number, for comparisons: bytes of memory, milliseconds of time. None of a kind that has no order.
    fn measure(self, value: &Scalar) -> Option<f64> {
        match (self, value) {
            (Self::Integer | Self::Number, Scalar::Integer(number)) => Some(*number as f64),
            (Self::Number, Scalar::Float(number)) => Some(*number),
            (Self::Size, Scalar::Text(text)) => parse_size(text).map(|bytes| bytes.0 as f64),
            (Self::Duration, Scalar::Text(text)) => parse_duration(text).map(|span| span.as_millis() as f64),
            _ => None,
        }
    }
}

impl Property {
    /// The value as templates see it.
    pub fn check(&self, value: &Scalar) -> Result<Scalar, Mismatch> {
        let read = self.kind.read(value).ok_or_else(|| Mismatch {
            expected: self.kind.to_string(),
            help: self.kind.example().map(str::to_owned).or_else(|| self.names_number(value)),
        })?;
        if let Scalar::Text(text) = value
            && !self.choices.is_empty()
            && !self.choices.contains(text)
        {
            let near = nearest(text, self.choices.iter().map(String::as_str)).map(|near| format!("did you mean {near:?}?"));
            return Err(Mismatch { expected: format!("one of {}", self.choices.join(", ")), help: near });
        }
        let bound = |bound: &Option<Scalar>| bound.as_ref().and_then(|b| Some((self.kind.measure(b)?, b.clone())));
        let (min, max) = (bound(&self.min), bound(&self.max));
        let Some(measure) = self.kind.measure(value) else { return Ok(read) };
        // What is no number is in no range.
        let is_inside = measure.is_finite() && min.as_ref().is_none_or(|b| measure >= b.0) && max.as_ref().is_none_or(|b| measure <= b.0);
        if is_inside {
            return Ok(read);
        }
        let expected = match (min, max) {
            (Some((_, min)), Some((_, max))) => format!("between {min} and {max}"),
            (Some((_, min)), None) => format!("at least {min}"),
            (None, Some((_, max))) => format!("at most {max}"),
            (None, None) => "a finite number".to_owned(),
        };
        Err(Mismatch { expected, help: None })
    }

    /// A number that was written as text.
    fn names_number(&self, value: &Scalar) -> Option<String> {
        let Scalar::Text(text) = value else { return None };
        let is_number = matches!(self.kind, Kind::Integer | Kind::Number) && text.parse::<f64>().is_ok();
        (is_number || self.kind == Kind::Boolean && matches!(text.as_str(), "true" | "false"))
            .then(|| format!("leave out the quotes: {text}"))
    }

    /// How much of a worker it takes: processors or bytes.
    pub fn amount(&self, value: &Scalar) -> Option<f64> {
        self.kind.measure(value)
    }
}

/// Reads `[properties]`: a default, or a table with `default` and what a value must be.
pub(super) fn read_properties(root: &mut Table<'_>, problems: &Problems) -> BTreeMap<String, Property> {
    let mut properties = BTreeMap::new();
    let Some(mut table) = root.table("properties") else { return properties };
    for key in table.names::<String>() {
        let property = if table.is_table(&key.value) {
            table.table(&key.value).and_then(|inner| read_property(inner, problems))
        } else {
            table.scalar(&key.value).map(|default| Property {
                kind: Kind::of(&default.value),
                default: default.value,
                min: None,
                max: None,
                choices: Vec::new(),
                within: None,
                alias: None,
            })
        };
        if let Some(property) = property {
            properties.insert(key.value, property);
        }
    }
    properties
}

fn read_property(mut table: Table<'_>, problems: &Problems) -> Option<Property> {
    if !table.has("default") {
        table.problem("a property has a default", Some("add default = …".to_owned()));
    }
    let default = table.scalar("default");
    let mut word = |key: &str, known: &[&str]| {
        let text = table.text(key)?;
        if !known.contains(&text.value.as_str()) {
            let near = nearest(&text.value, known.iter().copied()).map(|near| format!("did you mean `{near}`?"));
            let message = format!("there is no `{key}` {:?}", text.value);
            problems.note(text.span, message, near.or_else(|| Some(format!("one of {}", known.join(", ")))));
            return None;
        }
        Some(text.value)
    };
    let kind = word("type", &KINDS.map(|(name, _)| name));
    let within = word("within", &WITHIN.map(|(name, _)| name));
    let bounds: Vec<_> = ["min", "max"].iter().map(|key| table.scalar(key)).collect();
    let choices: Vec<String> = table.texts("choices").into_iter().map(|c| c.value).collect();
    let alias = table.text("alias").map(|a| a.value);
    table.finish();
    let default = default?;
    let kind = kind.and_then(|name| KINDS.iter().find(|(known, _)| *known == name)).map_or_else(|| Kind::of(&default.value), |(_, k)| *k);
    for bound in bounds.iter().flatten().filter(|b| kind.measure(&b.value).is_none()) {
        let has_order = matches!(kind, Kind::Integer | Kind::Number | Kind::Size | Kind::Duration);
        let expected = if has_order {
            format!("a bound of this property must be {kind}")
        } else {
            "the values of this property have no order".to_owned()
        };
        let help = Some("`min` and `max` are for integers, numbers, sizes and durations".to_owned());
        problems.note(bound.span.clone(), expected, help.filter(|_| !has_order));
    }
    let [min, max] = bounds.try_into().ok()?;
    let within = within.and_then(|name| WITHIN.iter().find(|(known, _)| *known == name)).map(|(_, within)| *within);
    let mut property =
        Property { default: default.value, kind, min: min.map(|b| b.value), max: max.map(|b| b.value), choices, within, alias };
    match property.check(&property.default) {
        Ok(value) => property.default = value,
        Err(mismatch) => problems.note(default.span, format!("the default must be {}", mismatch.expected), mismatch.help),
    }
    Some(property)
}

/// `hand_through_properties`: true, false, or a list of what the names begin with.
pub(super) fn read_hand_through(table: &mut Table<'_>) -> HandThrough {
    const KEY: &str = "hand_through_properties";
    if table.is_list(KEY) {
        return HandThrough::Prefixes(table.texts(KEY).into_iter().map(|p| p.value).filter(|p| !p.is_empty()).collect());
    }
    if table.boolean(KEY).unwrap_or(false) { HandThrough::Everything } else { HandThrough::Nothing }
}

/// As a JVM reads it; less than a kibibyte is none.
fn jvm_size(bytes: Bytes) -> Option<String> {
    match bytes.0 >> 10 {
        0 => None,
        kibibytes if kibibytes.is_multiple_of(1 << 20) => Some(format!("{}g", kibibytes >> 20)),
        kibibytes if kibibytes.is_multiple_of(1 << 10) => Some(format!("{}m", kibibytes >> 10)),
        kibibytes => Some(format!("{kibibytes}k")),
    }
}

/// A span of time with one unit: what every program reads.
fn one_unit(span: Duration) -> String {
    const DAY: u128 = 86_400_000;
    match span.as_millis() {
        ms if ms.is_multiple_of(DAY) => format!("{}d", ms / DAY),
        ms if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        ms if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        ms if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(kind: Kind, min: Option<Scalar>, max: Option<Scalar>) -> Property {
        Property { default: Scalar::Integer(1), kind, min, max, choices: Vec::new(), within: None, alias: None }
    }

    #[test]
    fn memory_and_spans_of_time_are_read_in_the_usual_forms_and_written_in_one() {
        let text = |text: &str| Scalar::Text(text.to_owned());
        for (written, seen) in [("512m", "512m"), ("2G", "2g"), ("2048M", "2g"), ("1.5GiB", "1536m"), ("600k", "600k"), ("1GB", "976562k")]
        {
            assert_eq!(property(Kind::Size, None, None).check(&text(written)), Ok(text(seen)), "{written}");
        }
        for bad in ["lots", "512", "", "m", "1.5m", "-1g", "512mib", "99999999999999t", "100B"] {
            assert!(property(Kind::Size, None, None).check(&text(bad)).is_err(), "{bad}");
        }
        assert!(property(Kind::Size, None, None).check(&Scalar::Integer(512)).is_err());
        for (written, seen) in [("15d", "15d"), ("60s", "1m"), ("48h", "2d"), ("1500ms", "1500ms")] {
            assert_eq!(property(Kind::Duration, None, None).check(&text(written)), Ok(text(seen)), "{written}");
        }
        assert!(property(Kind::Duration, None, None).check(&text("0s")).is_err());
    }

    #[test]
    fn a_value_outside_its_range_is_refused() {
        let share = property(Kind::Number, Some(Scalar::Float(0.01)), Some(Scalar::Integer(1)));
        assert!(share.check(&Scalar::Float(0.5)).is_ok() && share.check(&Scalar::Integer(1)).is_ok());
        for bad in [0.0, 1.5, f64::NAN, f64::INFINITY] {
            assert_eq!(share.check(&Scalar::Float(bad)).expect_err("out of range").expected, "between 0.01 and 1");
        }
        let cores = property(Kind::Integer, Some(Scalar::Integer(1)), None);
        assert_eq!(cores.check(&Scalar::Integer(0)).expect_err("too few").expected, "at least 1");
        let help = cores.check(&Scalar::Text("2".to_owned())).expect_err("text").help;
        assert_eq!(help.as_deref(), Some("leave out the quotes: 2"));
    }
}
