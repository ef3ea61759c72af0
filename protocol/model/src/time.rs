//! Moments. Deadlines are measured on the monotonic clock; the wall clock only labels what people read.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One reading of both clocks, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds on a clock that never jumps; only differences within one process mean anything.
    pub mono: u64,
    /// Milliseconds since the Unix epoch, as the machine believes.
    pub wall: Timestamp,
}

/// Milliseconds since the Unix epoch. Programs read it as RFC 3339 too, which is how people are shown it ([`crate::printed`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// What [`crate::printed`] knows it by.
    pub(crate) const NAME: &'static str = "Timestamp";

    /// In UTC, to the millisecond: `2024-02-29T12:34:56.789Z`.
    pub fn rfc3339(self) -> String {
        let moment = i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        format!("{:.3}", moment.unwrap_or(jiff::Timestamp::MAX))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(Self::NAME, &self.0)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("milliseconds since the Unix epoch, or a moment of RFC 3339")
            }
            fn visit_u64<E: de::Error>(self, milliseconds: u64) -> Result<Timestamp, E> {
                Ok(Timestamp(milliseconds))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                let moment: jiff::Timestamp = text.parse().map_err(E::custom)?;
                u64::try_from(moment.as_millisecond()).map(Timestamp).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_numbers_where_they_are_stored_and_are_read_in_both_forms() {
        let at = Timestamp(1_709_210_096_789);
        let text = serde_json::to_string(&at).expect("JSON");
        assert_eq!(text, "1709210096789");
        for text in [text.as_str(), "\"2024-02-29T12:34:56.789Z\"", "\"2024-02-29T13:34:56.789+01:00\""] {
            assert_eq!(serde_json::from_str::<Timestamp>(text).ok(), Some(at), "{text}");
        }
        for bad in ["-1", "1.5", "\"yesterday\"", "\"1969-12-31T23:59:59Z\"", "null"] {
            assert!(serde_json::from_str::<Timestamp>(bad).is_err(), "{bad} must be refused");
        }
        assert_eq!((at.rfc3339(), Timestamp(0).rfc3339()), ("2024-02-29T12:34:56.789Z".into(), "1970-01-01T00:00:00.000Z".into()));
    }
}
