//! Values of flags.

use std::ops::RangeInclusive;
use std::time::Duration;

use cloudtik_config::reader::parse_span;

const DAY: Duration = Duration::from_secs(86_400);
/// How long something may be asked for.
const SPANS: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY.saturating_mul(366);

/// Why the value of a flag was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalid {
    Timeout,
    Span,
    Resource,
    Amount(String),
    Assignment,
    Cpus,
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Timeout => f.write_str("not a time such as 90s, 5m or 1h30m"),
            Self::Span => f.write_str("not a time from 1s to 366d, such as 90s, 30m, 2h or 7d"),
            Self::Assignment => f.write_str("not NAME=VALUE"),
            Self::Cpus => f.write_str("not a number of processors from 0.001 to 4096, such as 2 or 0.5"),
            Self::Resource => f.write_str("not a resource such as licences=2"),
            Self::Amount(amount) => write!(f, "{amount:?} is not a whole number"),
        }
    }
}

impl std::error::Error for Invalid {}

/// A span of time; a number without a unit is seconds.
fn time(text: &str) -> Option<Duration> {
    match text.parse() {
        Ok(seconds) if text.bytes().all(|b| b.is_ascii_digit()) => Some(Duration::from_secs(seconds)),
        _ => parse_span(text),
    }
}

/// How long something is waited for. Zero looks once.
pub fn timeout(text: &str) -> Result<Duration, Invalid> {
    time(text).filter(|time| *time <= *SPANS.end()).ok_or(Invalid::Timeout)
}

/// How long something lasts.
pub fn span(text: &str) -> Result<Duration, Invalid> {
    time(text).filter(|time| SPANS.contains(time)).ok_or(Invalid::Span)
}

/// `name=amount`.
pub fn resource(text: &str) -> Result<(String, u32), Invalid> {
    let (name, amount) = text.split_once('=').ok_or(Invalid::Resource)?;
    let amount = amount.parse().map_err(|_| Invalid::Amount(amount.to_owned()))?;
    Ok((name.to_owned(), amount))
}

/// `NAME=VALUE`, as it is.
pub fn assignment(text: &str) -> Result<String, Invalid> {
    text.split_once('=').filter(|(name, _)| !name.is_empty()).map(|_| text.to_owned()).ok_or(Invalid::Assignment)
}

/// Processors, in thousandths.
pub fn cpus(text: &str) -> Result<u64, Invalid> {
    let number: f64 = text.parse().map_err(|_| Invalid::Cpus)?;
    let millis = (number * 1_000.0).round();
    if (1.0..=4_096_000.0).contains(&millis) { Ok(millis as u64) } else { Err(Invalid::Cpus) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_plain_numbers_are_seconds() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5_400), ("2d", 172_800), ("0", 0)] {
            assert_eq!(timeout(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "-1", "5 m", "m5", "1.5h", "30m1h", "1h1h", "5x", "99999999999999999999", "400d", "+5"] {
            assert_eq!(timeout(bad), Err(Invalid::Timeout), "{bad}");
        }
        assert_eq!(span("0"), Err(Invalid::Span), "nothing lasts no time");
        assert_eq!(span("90"), Ok(Duration::from_secs(90)));
    }
}
