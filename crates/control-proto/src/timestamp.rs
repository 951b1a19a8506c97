//! Instants on the wire: RFC 3339 text, with Go's zero time standing for "none".

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::datetime};

/// An instant in UTC, to the nanosecond; years 1 to 9999, as Go can write them.
///
/// The default is Go's zero time, `0001-01-01T00:00:00Z`.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(OffsetDateTime);

/// Not an RFC 3339 instant between the years 1 and 9999.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected an RFC 3339 time such as 2026-08-01T12:00:00Z")]
pub struct TimestampError;

impl Timestamp {
    /// Go's zero time.
    pub const ZERO: Self = Self(datetime!(0001-01-01 00:00:00 UTC));
    const LAST: Self = Self(datetime!(9999-12-31 23:59:59.999_999_999 UTC));

    /// Whether this is Go's zero time: "none", "never" or "up to you", as the field says.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// Seconds since 1970; out of range becomes the first or last instant.
    #[must_use]
    pub fn from_unix_seconds(seconds: i64) -> Self {
        OffsetDateTime::from_unix_timestamp(seconds).map_or(
            if seconds < 0 { Self::ZERO } else { Self::LAST },
            Self::clamped,
        )
    }

    /// Seconds since 1970, rounded down.
    #[must_use]
    pub const fn unix_seconds(&self) -> i64 {
        self.0.unix_timestamp()
    }

    /// Milliseconds since 1970; out of range becomes the first or last instant.
    #[must_use]
    pub fn from_unix_millis(millis: i64) -> Self {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).map_or(
            if millis < 0 { Self::ZERO } else { Self::LAST },
            Self::clamped,
        )
    }

    /// Milliseconds since 1970, rounded down.
    #[must_use]
    pub const fn unix_millis(&self) -> i64 {
        self.0.unix_timestamp() * 1000 + self.0.millisecond() as i64
    }

    /// This instant and `later`; saturates.
    #[must_use]
    pub fn saturating_add(self, later: Duration) -> Self {
        time::Duration::try_from(later)
            .ok()
            .and_then(|later| self.0.checked_add(later))
            .map_or(Self::LAST, Self::clamped)
    }

    /// How much later this is than `earlier`; zero if it is not.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0 - earlier.0).unwrap_or(Duration::ZERO)
    }

    fn clamped(instant: OffsetDateTime) -> Self {
        Self(instant.to_offset(UtcOffset::UTC)).clamp(Self::ZERO, Self::LAST)
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        Self::ZERO
    }
}

impl From<SystemTime> for Timestamp {
    fn from(instant: SystemTime) -> Self {
        Self::clamped(OffsetDateTime::from(instant))
    }
}

impl From<Timestamp> for SystemTime {
    /// Instants before 1970 become 1970.
    fn from(instant: Timestamp) -> Self {
        UNIX_EPOCH + instant.saturating_since(Timestamp::from_unix_seconds(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let instant = OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|instant| instant.checked_to_offset(UtcOffset::UTC))
            .ok_or(TimestampError)?;
        let instant = Self(instant);
        (Self::ZERO..=Self::LAST)
            .contains(&instant)
            .then_some(instant)
            .ok_or(TimestampError)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    /// Accepts RFC 3339; the empty text (and so null) is the zero time.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 time")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                if text.is_empty() {
                    Ok(Timestamp::ZERO)
                } else {
                    text.parse().map_err(E::custom)
                }
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}
