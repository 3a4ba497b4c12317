//! The clock of this machine, and times for people.

use std::time::{Duration, SystemTime};

use muster_model::UnixTime;

/// Milliseconds since 1970; zero on a machine whose clock is before that.
pub(crate) fn unix_time() -> UnixTime {
    UnixTime::default().after(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// A point in time in UTC, to the second.
pub(crate) fn date_text(time: UnixTime) -> String {
    i64::try_from(time.0 / 1000)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "in the far future".to_owned(), |timestamp| timestamp.to_string())
}

/// An age or a span in its largest units: `1d 3h`, `4m 10s`, `12s`, `153ms`.
pub(crate) fn span_text(span_ms: u64) -> String {
    let whole_ms = match span_ms {
        0..1_000 => span_ms,
        1_000..3_600_000 => span_ms / 1_000 * 1_000,
        3_600_000..86_400_000 => span_ms / 60_000 * 60_000,
        _ => span_ms / 3_600_000 * 3_600_000,
    };
    humantime::format_duration(Duration::from_millis(whole_ms)).to_string()
}

/// Whole milliseconds of a duration, as the wire has them.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(date_text(UnixTime(1_700_000_000_123)), "2023-11-14T22:13:20Z");
        assert_eq!(date_text(UnixTime(u64::MAX)), "in the far future");
        assert_eq!(span_text(153), "153ms");
        assert_eq!(span_text(250_999), "4m 10s");
        assert_eq!(span_text(3_661_000), "1h 1m");
        assert_eq!(span_text(97_261_000), "1day 3h");
    }
}
