//! Bytes as text and back: escapes for what is not printable text, hexadecimal, and numbers as people read them.
//!
//! I1. `unescape(escape(bytes)) == bytes`, for any bytes.
//! I2. Escaped text has no control characters: it stays on its line and commands no terminal.

use std::fmt::Write as _;
use std::time::Duration;

/// Printable UTF-8 as it stands; `\\`, `\n`, `\r`, `\t`; every other byte as `\xNN`.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => push_bytes(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => out.push(c),
            }
        }
        push_bytes(&mut out, chunk.invalid());
    }
    out
}

fn push_bytes(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "\\x{byte:02x}");
    }
}

/// Readable text of the engine, which has its own escapes: stays on its line, and is otherwise as it is.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// What [`escape`] wrote. An unknown or unfinished escape is an error.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at + 1..];
        let used = match escape.as_bytes().first() {
            Some(b'\\') => push_one(&mut out, b'\\'),
            Some(b'n') => push_one(&mut out, b'\n'),
            Some(b'r') => push_one(&mut out, b'\r'),
            Some(b't') => push_one(&mut out, b'\t'),
            Some(b'x') => {
                let digits = escape
                    .get(1..3)
                    .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                    .ok_or("\\x wants two hexadecimal digits")?;
                out.extend(unhex(digits)?);
                3
            }
            Some(_) => {
                let what = escape.chars().next().unwrap_or_default();
                return Err(format!("\\{what} is no escape (\\\\ \\n \\r \\t \\xNN are)"));
            }
            None => return Err("a backslash at the end (a backslash itself is \\\\)".into()),
        };
        rest = &escape[used..];
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

fn push_one(out: &mut Vec<u8>, byte: u8) -> usize {
    out.push(byte);
    1
}

/// Hexadecimal digits, two a byte, lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Bytes from hexadecimal digits; blanks between them are skipped.
pub(crate) fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let mut digits = Vec::with_capacity(text.len());
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        match c.to_digit(16) {
            Some(digit) => digits.push(digit as u8),
            None => return Err(format!("{c:?} is no hexadecimal digit")),
        }
    }
    if !digits.len().is_multiple_of(2) {
        return Err("an odd number of hexadecimal digits".into());
    }
    Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// `34924` as `34,924`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `n` and the noun, in the plural unless it is one.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = match noun.strip_suffix('y') {
        _ if number == 1 => noun.to_owned(),
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ => format!("{noun}s"),
    };
    format!("{} {plural}", grouped(number))
}

/// Bytes in binary units, three digits or so.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 999.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// A time with the unit that fits it.
pub(crate) fn duration(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    if seconds >= 1.0 {
        format!("{seconds:.2} s")
    } else if seconds >= 0.001 {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{:.0} us", seconds * 1e6)
    }
}

/// A time in milliseconds, for JSON.
pub(crate) fn millis(elapsed: Duration) -> f64 {
    (elapsed.as_secs_f64() * 1e6).round() / 1e3
}

/// `4096`, `64K`, `8M`, `1G`: bytes in binary units.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[number.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => return Err(format!("{unit:?} is no unit (K, M, G, T are)")),
    };
    let number: u64 =
        number.trim().parse().map_err(|_| format!("{text:?} is no size (4096, 64K, 8M are)"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

/// `250ms`, `3s`, `2.5`, `1m`: a time, in seconds where no unit is given.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &lower[number.len()..] {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        unit => return Err(format!("{unit:?} is no unit of time (ms, s, m are)")),
    };
    let number: f64 = number.trim().parse().map_err(|_| format!("{text:?} is no time (250ms, 3s are)"))?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| format!("{text:?} is no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_it_stands_and_bytes_as_escapes() {
        assert_eq!(escape("zażółć 漢字".as_bytes()), "zażółć 漢字");
        assert_eq!(escape(b"a\\b\n\t\0\x1b[2J\xff\xc5"), "a\\\\b\\n\\t\\x00\\x1b[2J\\xff\\xc5");
        assert_eq!(escape("\u{85}".as_bytes()), "\\xc2\\x85");
    }

    #[test]
    fn readable_text_keeps_its_own_escapes() {
        assert_eq!(printable("\"a\\x00\"\n\u{1b}[2J"), "\"a\\x00\"\\u{a}\\u{1b}[2J");
    }

    #[test]
    fn every_pair_of_bytes_survives_escaping() {
        for first in 0..=255_u8 {
            for second in 0..=255_u8 {
                let bytes = [first, second, b'x'];
                let text = escape(&bytes);
                assert!(!text.chars().any(char::is_control), "{text:?}");
                assert_eq!(unescape(&text).as_deref(), Ok(&bytes[..]), "{text:?}");
            }
        }
    }

    #[test]
    fn a_bad_escape_is_an_error_and_never_a_panic() {
        for text in ["\\", "a\\q", "\\x", "\\x4", "\\x  ", "\\x 4", "\\xzz", "\\x4é", "\\é", "\\xé"] {
            assert!(unescape(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn hexadecimal_goes_both_ways_and_refuses_the_rest() {
        assert_eq!(hex(&[0, 0x4a, 0xff]), "004aff");
        assert_eq!(unhex("004A ff"), Ok(vec![0, 0x4a, 0xff]));
        assert!(unhex("0").is_err());
        assert!(unhex("0g").is_err());
        assert!(unhex("é1").is_err());
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(count(1, "row"), "1 row");
        assert_eq!(count(0, "row"), "0 rows");
        assert_eq!(count(2, "entry"), "2 entries");
        assert_eq!(count(2, "key"), "2 keys");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(duration(Duration::from_micros(12)), "12 us");
        assert_eq!(duration(Duration::from_micros(1234)), "1.2 ms");
        assert_eq!(duration(Duration::from_millis(2500)), "2.50 s");
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("64K"), Ok(64 << 10));
        assert_eq!(parse_bytes("8MiB"), Ok(8 << 20));
        assert!(parse_bytes("8X").is_err());
        assert!(parse_bytes("K").is_err());
        assert!(parse_bytes("99999999999T").is_err());
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2.5"), Ok(Duration::from_millis(2500)));
        assert!(parse_duration("-1s").is_err());
        assert!(parse_duration("1h").is_err());
        assert!(parse_duration("nan").is_err());
    }
}
