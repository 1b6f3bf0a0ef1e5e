//! Times and durations as people write and read them. Times are shown in UTC, as the log has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// Longest duration that is understood.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Why a duration was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Neither `1m30s` nor `1:30` nor a number of seconds.
    #[error("not a duration; write it like `1m30s`, `1:30`, `2h` or `90`")]
    Form,
    /// Over ten years.
    #[error("too long; ten years is the most")]
    TooLong,
}

/// Reads `1m30s`, `2h`, `250ms`, `1:30`, `1:02:03`, `90` or `1.5` (seconds).
///
/// # Errors
/// See [`DurationError`].
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    let seconds = if text.contains(':') {
        colons(text)?
    } else if let Ok(seconds) = number(text) {
        seconds
    } else {
        units(text)?
    };
    if !seconds.is_finite() || seconds < 0.0 {
        return Err(DurationError::Form);
    }
    if seconds > LONGEST.as_secs_f64() {
        return Err(DurationError::TooLong);
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn number(text: &str) -> Result<f64, DurationError> {
    // `parse` would also take `inf`, `nan`, signs and exponents.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(DurationError::Form);
    }
    text.parse().map_err(|_| DurationError::Form)
}

fn colons(text: &str) -> Result<f64, DurationError> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() > 3 {
        return Err(DurationError::Form);
    }
    parts.iter().try_fold(0.0, |sum, part| Ok(sum * 60.0 + number(part)?))
}

fn units(text: &str) -> Result<f64, DurationError> {
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(DurationError::Form)?;
        let (amount, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let scale = match unit {
            "ms" => 0.001,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(DurationError::Form),
        };
        sum += number(amount)? * scale;
        rest = tail.trim_start();
    }
    if text.is_empty() { Err(DurationError::Form) } else { Ok(sum) }
}

/// A moment: RFC 3339, `YYYY-MM-DD`, or how long ago (`2h`).
///
/// # Errors
/// It is none of them.
pub fn parse_since(text: &str, now: SystemTime) -> Result<SystemTime, DurationError> {
    if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(moment.into());
    }
    if let Ok(day) = time::Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Ok(day.midnight().assume_utc().into());
    }
    now.checked_sub(parse_duration(text)?).ok_or(DurationError::TooLong)
}

/// `2026-11-22 13:08:54.123Z` of nanoseconds since the Unix epoch.
#[must_use]
pub fn stamp_ns(ns: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns))
        .ok()
        .and_then(|moment| {
            let form =
                format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]Z");
            moment.format(form).ok()
        })
        .unwrap_or_else(|| format!("{ns} ns"))
}

/// `2026-11-22 13:08Z` of milliseconds since the Unix epoch; a dash for none.
#[must_use]
pub fn minute_ms(ms: i64) -> String {
    if ms <= 0 {
        return "–".to_owned();
    }
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|moment| moment.format(format_description!("[year]-[month]-[day] [hour]:[minute]Z")).ok())
        .unwrap_or_else(|| format!("{ms} ms"))
}

/// `1:02:03` or `2:03`.
#[must_use]
pub fn position(at: Duration) -> String {
    let seconds = at.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// `8h`, `12min`, `45s`: the two largest units.
#[must_use]
pub fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}min"),
        (0, _, 0) => format!("{hours}h"),
        (0, _, _) => format!("{hours}h{minutes:02}min"),
        (_, 0, _) => format!("{days}d"),
        _ => format!("{days}d{hours}h"),
    }
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Time from now until then; none if it has passed.
#[must_use]
pub fn until_ms(ms: i64) -> Option<Duration> {
    u64::try_from(ms.saturating_sub(now_ms())).ok().filter(|left| *left > 0).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_people_write() {
        for (text, ms) in [
            ("90", 90_000),
            ("1.5", 1500),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("250ms", 250),
            ("2h", 7_200_000),
            ("1:30", 90_000),
            ("1:02:03", 3_723_000),
            ("0", 0),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "m", "5x", "-1", "1:2:3:4", "inf", "nan", "1e9", "..", "1m30", "1h-1m", "+5"] {
            assert_eq!(parse_duration(text), Err(DurationError::Form), "{text}");
        }
        assert_eq!(parse_duration("99999999999999999999"), Err(DurationError::TooLong));
    }

    #[test]
    fn moments() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(parse_since("1970-01-02", now), Ok(UNIX_EPOCH + Duration::from_secs(86_400)));
        assert_eq!(parse_since("1970-01-01T00:00:05Z", now), Ok(UNIX_EPOCH + Duration::from_secs(5)));
        assert_eq!(parse_since("1h", now), Ok(UNIX_EPOCH + Duration::from_secs(996_400)));
        assert!(parse_since("yesterday", now).is_err());
    }

    #[test]
    fn shown() {
        assert_eq!(stamp_ns(1_795_352_934_123_999_999), "2026-11-22 13:08:54.123Z");
        assert_eq!(minute_ms(1_795_352_934_123), "2026-11-22 13:08Z");
        assert_eq!(minute_ms(0), "–");
        assert_eq!(position(Duration::from_secs(3723)), "1:02:03");
        assert_eq!(span(Duration::from_secs(8 * 3600)), "8h");
        assert_eq!(span(Duration::from_secs(45)), "45s");
    }
}
