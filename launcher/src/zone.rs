//! The time zone in which moments are shown: that of `TZ`, or the system's.

use std::sync::OnceLock;

use jiff::tz::TimeZone;

/// When summer time begins and ends where a POSIX zone names one and does not say: as the C library and `date` have it.
const RULES_OF_SUMMER: &str = ",M3.2.0,M11.1.0";

/// The zone. What is wrong with `TZ` is told to `warn`, once.
pub fn system(warn: impl FnOnce(&str)) -> TimeZone {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    ZONE.get_or_init(|| {
        let (zone, problem) = choose(std::env::var("TZ").ok().as_deref(), TimeZone::try_system().ok());
        if let Some(problem) = problem {
            warn(&problem);
        }
        zone
    })
    .clone()
}

/// The zone that was found for `TZ`, the one that it describes, or UTC; and what is wrong with it.
fn choose(variable: Option<&str>, found: Option<TimeZone>) -> (TimeZone, Option<String>) {
    if let Some(zone) = found {
        return (zone, None);
    }
    let Some(variable) = variable else { return (TimeZone::UTC, None) };
    match described(variable.strip_prefix(':').unwrap_or(variable)) {
        Some(zone) => (zone, None),
        None => (TimeZone::UTC, Some(format!("TZ={variable} is no time zone; times are in UTC"))),
    }
}

/// A zone in POSIX's notation, such as `CET-1CEST`.
fn described(zone: &str) -> Option<TimeZone> {
    TimeZone::posix(zone).or_else(|_| TimeZone::posix(&format!("{zone}{RULES_OF_SUMMER}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, zone: TimeZone) -> String {
        jiff::Timestamp::from_second(seconds).expect("a moment").to_zoned(zone).strftime("%F %T %Z").to_string()
    }

    #[test]
    fn a_zone_in_posix_notation_is_used_as_date_uses_it() {
        let clock = |seconds, zone: &str| at(seconds, described(zone).expect("a zone"));
        // What `TZ=CET-1CEST date` says, which has the rules of the United States where none are given.
        assert_eq!(clock(1_709_210_096, "CET-1CEST"), "2024-02-29 13:34:56 CET");
        assert_eq!(clock(1_710_500_000, "CET-1CEST"), "2024-03-15 12:53:20 CEST");
        assert_eq!(clock(1_710_500_000, "CET-1CEST,M3.5.0,M10.5.0/3"), "2024-03-15 11:53:20 CET");
        assert_eq!(clock(1_719_836_096, "<+0530>-5:30"), "2024-07-01 17:44:56 +0530");
    }

    #[test]
    fn a_zone_that_there_is_not_is_said() {
        for variable in ["CET-1CEST", ":CET-1CEST"] {
            let (zone, problem) = choose(Some(variable), None);
            assert_eq!((at(1_719_836_096, zone), problem), ("2024-07-01 14:14:56 CEST".to_owned(), None), "{variable}");
        }
        let (zone, problem) = choose(Some("Europe/Nowhere"), None);
        assert_eq!(at(0, zone), "1970-01-01 00:00:00 UTC");
        assert!(problem.is_some_and(|problem| problem.contains("TZ=Europe/Nowhere is no time zone")));
        assert!(choose(Some("UTC"), Some(TimeZone::UTC)).1.is_none() && choose(None, None).1.is_none());
    }
}
