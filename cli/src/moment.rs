//! Moments on the command line: UTC times as RFC 3339 writes them, to the microsecond.

const DAY_SECONDS: u64 = 86_400;

/// Microseconds since 1970 of a time like `2026-11-28T16:58:59Z` or `2026-11-28 16:58:59.250Z`; a plain number is taken as such.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_err(|_| format!("{text} is too large"));
    }
    parse_rfc3339(text).ok_or_else(|| {
        format!("{text:?} is no UTC time like 2026-11-28T16:58:59Z, nor microseconds since 1970")
    })
}

fn parse_rfc3339(text: &str) -> Option<u64> {
    let text = text.strip_suffix(['Z', 'z'])?;
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1970..=9999).contains(&year)
        || !(1..=month_days).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    if fraction.is_empty() || fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let micros: u64 = format!("{fraction:0<6}").parse().ok()?;
    let seconds = days(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut found = [0; 3];
    for (number, digits) in found.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

/// Days from 1970-01-01 to a date, counted in years that begin in March, so that the leap day is the last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

/// A time as [`parse`] reads it.
pub(crate) fn show(micros: u64) -> String {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (mut left, time) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
    let mut year = 1970;
    // At most some thousand rounds: later years are not shown as dates.
    loop {
        let length = days(year + 1, 1, 1) - days(year, 1, 1);
        if left < length || year == 9999 {
            break;
        }
        left -= length;
        year += 1;
    }
    let month = (1..=12).rev().find(|month| days(year, *month, 1) - days(year, 1, 1) <= left).unwrap_or(1);
    let day = left - (days(year, month, 1) - days(year, 1, 1)) + 1;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_shown() {
        for (text, micros) in [
            ("1970-01-01T00:00:00.000000Z", 0),
            ("2000-02-29T12:00:00.000000Z", 951_825_600_000_000),
            ("2026-11-28T16:58:59.250000Z", 1_795_885_139_250_000),
            ("2100-03-01T00:00:00.000001Z", 4_107_542_400_000_001),
        ] {
            assert_eq!(parse(text), Ok(micros), "{text}");
            assert_eq!(show(micros), text);
        }
        assert_eq!(parse("2026-11-28 16:58:59.25Z"), Ok(1_795_885_139_250_000));
        assert_eq!(parse("1795885139250000"), Ok(1_795_885_139_250_000));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "now",
            "2026-11-28",
            "2026-11-28T16:58:59",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-1-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.Z",
            "1969-12-31T23:59:59Z",
            "99999999999999999999",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
