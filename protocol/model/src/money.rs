//! Money per hour, exact: millionths of a currency unit, so that sums never drift.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A price or a budget: millionths of a currency unit per hour, written `0.40/h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MoneyPerHour(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not money per hour, such as \"12.50/h\"")]
pub struct InvalidMoney(String);

/// More than any machine costs in an hour: a larger number is a mistake, and would not add up.
const MAX_UNITS: u64 = 10_000_000;

impl FromStr for MoneyPerHour {
    type Err = InvalidMoney;
    fn from_str(text: &str) -> Result<Self, InvalidMoney> {
        let fail = || InvalidMoney(text.to_owned());
        let number = text.strip_suffix("/h").ok_or_else(fail)?.trim();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 6 || number.ends_with('.') {
            return Err(fail());
        }
        let units: u64 = whole.parse().map_err(|_| fail())?;
        if units > MAX_UNITS {
            return Err(fail());
        }
        let millionths: u64 = format!("{fraction:0<6}").parse().map_err(|_| fail())?;
        units.checked_mul(1_000_000).and_then(|m| m.checked_add(millionths)).map(Self).ok_or_else(fail)
    }
}

impl MoneyPerHour {
    /// What so many cost.
    pub fn times(self, count: u32) -> Self {
        Self(self.0.saturating_mul(u64::from(count)))
    }
}

impl std::iter::Sum for MoneyPerHour {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        Self(all.fold(0, |sum, one| sum.saturating_add(one.0)))
    }
}

impl fmt::Display for MoneyPerHour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let fraction = format!("{rest:06}");
        let kept = fraction.trim_end_matches('0');
        write!(f, "{whole}.{kept:0<2}/h")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_reads_and_prints() {
        for (text, printed) in [("12.50/h", "12.50/h"), ("0.4/h", "0.40/h"), ("3/h", "3.00/h"), ("0.000125/h", "0.000125/h")] {
            assert_eq!(text.parse::<MoneyPerHour>().map(|m| m.to_string()).as_deref(), Ok(printed));
        }
        for bad in ["", "1", "1.5", "-1/h", "1./h", ".5/h", "1.0000001/h", "1e3/h", "99999999999999999/h", "10000001/h"] {
            assert!(bad.parse::<MoneyPerHour>().is_err(), "{bad:?} must be refused");
        }
    }
}
