//! When a schedule begins and ends, on the clocks of its place. Nights on which the clocks change are one hour longer or
//! shorter; a time that such a night leaves out is taken an hour later.

use cloudtik_model::Timestamp;
use cloudtik_model::policy::Hours;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span};

/// Whether a schedule is on, and when that changes next.
pub(super) fn begins_or_ends(hours: &Hours, at: Timestamp) -> Option<(bool, Timestamp)> {
    let zone = TimeZone::get(&hours.time_zone).ok()?;
    let now = jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?;
    let today = now.to_zoned(zone.clone()).date();
    let mut next: Option<jiff::Timestamp> = None;
    let mut is_on = false;
    // A week on, and yesterday, whose night may reach into today.
    for ahead in -1..=8i64 {
        let day = today.checked_add(Span::new().days(ahead)).ok()?;
        let weekday = u8::try_from(day.weekday().to_monday_zero_offset()).ok()?;
        if !hours.days.contains(&weekday) {
            continue;
        }
        let begin = moment(day, hours.from, &zone)?;
        let end_day = if hours.until > hours.from { day } else { day.checked_add(Span::new().days(1)).ok()? };
        let mut end = moment(end_day, hours.until, &zone)?;
        if end <= begin {
            // It begins an hour later, in what the night leaves out: then it ends later too.
            let length = i64::from(hours.until) - i64::from(hours.from);
            end = begin.checked_add(SignedDuration::from_mins(length)).ok()?;
        }
        is_on |= begin <= now && now < end;
        for edge in [begin, end] {
            if edge > now {
                next = Some(next.map_or(edge, |n| n.min(edge)));
            }
        }
    }
    let next = next.and_then(|n| u64::try_from(n.as_millisecond()).ok()).map_or(Timestamp(u64::MAX), Timestamp);
    Some((is_on, next))
}

fn moment(day: Date, minutes: u16, zone: &TimeZone) -> Option<jiff::Timestamp> {
    // Midnight at the end of the day is minute 1440.
    let time = day.at(0, 0, 0, 0).checked_add(SignedDuration::from_mins(i64::from(minutes))).ok()?;
    zone.to_ambiguous_timestamp(time).compatible().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let moment: jiff::Timestamp = text.parse().expect("a moment");
        Timestamp(moment.as_millisecond() as u64)
    }

    fn hours(days: &[u8], from: u16, until: u16, zone: &str) -> Hours {
        Hours { days: days.to_vec(), from, until, time_zone: zone.to_owned() }
    }

    #[test]
    fn office_hours_in_a_place() {
        let office = hours(&[0, 1, 2, 3, 4], 9 * 60, 17 * 60, "Europe/Berlin");
        // A Monday in winter: Berlin is an hour ahead.
        assert_eq!(begins_or_ends(&office, at("2026-11-23T07:59:00Z")), Some((false, at("2026-11-23T08:00:00Z"))));
        assert_eq!(begins_or_ends(&office, at("2026-11-23T08:00:00Z")), Some((true, at("2026-11-23T16:00:00Z"))));
        // In summer two.
        assert_eq!(begins_or_ends(&office, at("2026-07-06T07:00:00Z")), Some((true, at("2026-07-06T15:00:00Z"))));
        // From Friday evening to Monday morning.
        assert_eq!(begins_or_ends(&office, at("2026-11-27T16:00:00Z")), Some((false, at("2026-11-30T08:00:00Z"))));
    }

    #[test]
    fn nights_reach_into_the_next_day() {
        let night = hours(&[6], 22 * 60, 6 * 60, "UTC");
        assert_eq!(begins_or_ends(&night, at("2026-11-23T05:59:00Z")), Some((true, at("2026-11-23T06:00:00Z"))));
        assert_eq!(begins_or_ends(&night, at("2026-11-23T06:00:00Z")), Some((false, at("2026-11-29T22:00:00Z"))));
        // Clocks go back in the night to Sunday the 25th of October: it lasts an hour longer.
        let long = hours(&[5], 22 * 60, 6 * 60, "Europe/Berlin");
        assert_eq!(begins_or_ends(&long, at("2026-10-24T20:00:00Z")), Some((true, at("2026-10-25T05:00:00Z"))));
    }

    #[test]
    fn a_time_that_a_night_leaves_out() {
        // In Berlin, the 29th of March 2026 has no half past two.
        let gap = hours(&[6], 2 * 60 + 30, 4 * 60, "Europe/Berlin");
        assert_eq!(begins_or_ends(&gap, at("2026-03-29T00:00:00Z")), Some((false, at("2026-03-29T01:30:00Z"))));
        let short = hours(&[6], 2 * 60 + 30, 3 * 60 + 15, "Europe/Berlin");
        assert_eq!(begins_or_ends(&short, at("2026-03-29T01:30:00Z")), Some((true, at("2026-03-29T02:15:00Z"))));
        assert_eq!(begins_or_ends(&hours(&[6], 0, 60, "Mars/Olympus"), at("2026-03-29T00:00:00Z")), None);
    }
}
