//! Quantities as people write them: sizes as dd reads them, durations with a unit.
//!
//! Whole numbers only: `1.5G` is refused rather than rounded. Nothing overflows: what does not fit is refused.

use std::time::Duration;

use super::Unfit;

/// The longest duration taken, a year: timers beyond are mistakes, and sums with a clock reading stay in range.
const MAX_SECONDS: u64 = 366 * 24 * 3600;

/// Units of size as in dd(1): a letter alone or with `iB` is a power of 1024, with `B` a power of 1000. Lower case
/// letters as in tmpfs's `size=`.
const SIZE_UNITS: [(&str, u64); 19] = [
    ("", 1),
    ("B", 1),
    ("K", 1 << 10),
    ("k", 1 << 10),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("KB", 1000),
    ("M", 1 << 20),
    ("m", 1 << 20),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("G", 1 << 30),
    ("g", 1 << 30),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("T", 1 << 40),
    ("t", 1 << 40),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
];

/// Units of rate beside those of size: tc(8)'s, which are of bits and powers of 1000.
const BIT_UNITS: [(&str, u64); 3] = [("kbit", 125), ("mbit", 125_000), ("gbit", 125_000_000)];

/// The slowest rate taken: a peer would take a slower one for dead.
const LEAST_RATE: u64 = 64 << 10;

const TIME_UNITS_MS: [(&str, u64); 9] = [
    ("", 1000),
    ("ms", 1),
    ("s", 1000),
    ("sec", 1000),
    ("m", 60_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("hour", 3_600_000),
    ("d", 86_400_000),
];

/// Bytes: `65536`, `512K`, `64M`, `64MiB`, `1G`, `1GB`.
pub fn parse_size(text: &str) -> Result<u64, Unfit> {
    parse(text, &SIZE_UNITS).ok_or_else(|| Unfit {
        value: text.to_owned(),
        what: "size",
        expected: "bytes, or a whole number with K, M, G, T (powers of 1024) or KB, MB, GB, TB (of 1000)",
        example: "64M",
    })
}

/// Bytes a second: `500K`, `10M`, `12500000`, `100mbit`.
pub fn parse_rate(text: &str) -> Result<u64, Unfit> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    parse(text, &BIT_UNITS).or_else(|| parse(text, &SIZE_UNITS)).filter(|rate| *rate >= LEAST_RATE).ok_or_else(|| {
        Unfit {
            value: text.to_owned(),
            what: "rate",
            expected: "bytes a second, or a whole number with K, M, G or kbit, mbit, gbit, 64K at the least",
            example: "10M or 100mbit",
        }
    })
}

/// A time: `30` and `30s` are seconds; `500ms`, `2min`, `1h`. Zero is refused: nothing here can be waited for so shortly.
pub fn parse_duration(text: &str) -> Result<Duration, Unfit> {
    parse(text, &TIME_UNITS_MS)
        .filter(|ms| (1..=MAX_SECONDS * 1000).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| Unfit {
            value: text.to_owned(),
            what: "time",
            expected: "seconds, or a whole number with ms, s, min, h or d, more than nothing and at most a year",
            example: "30s",
        })
}

/// Bytes as people read them, in the units that `parse_size` takes: `1.4 GiB`.
pub fn show_size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_bytes_a_second_as_rsync_and_curl_have_them_or_bits_as_tc() {
        for (text, rate) in [("65536", 65536), ("500K", 500 << 10), ("10M/s", 10 << 20), ("100mbit", 12_500_000)] {
            assert_eq!(parse_rate(text).unwrap(), rate, "{text}");
        }
        for text in ["", "0", "63K", "fast", "100Mbit", "1.5M", "-1", "99999999999999999999", "200000000000gbit"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_dd_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("512K", 512 << 10),
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("64MB", 64_000_000),
            ("1G", 1 << 30),
            ("2kB", 2000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "+1", "1.5G", "1 M", " 1", "64X", "1b", "99999999999999999999", "99999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_seconds_unless_they_name_a_unit() {
        for (text, ms) in [("5", 5000), ("5s", 5000), ("2min", 120_000), ("250ms", 250), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "0s", "s", "-1", "1y", "367d", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_the_value_what_was_expected_and_an_example() {
        let message = parse_size("64X").unwrap_err().to_string();
        assert!(message.starts_with(r#""64X" is no size: expected bytes"#), "{message}");
        assert!(message.ends_with("for example 64M"), "{message}");
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_keeps_them_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn a_number_with_each_unit_is_that_many_of_it(number in 0u64..1 << 20, unit in 0..SIZE_UNITS.len()) {
            let (name, factor) = SIZE_UNITS[unit];
            prop_assert_eq!(parse_size(&format!("{number}{name}")), Ok(number * factor));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = (parse_size(&text), parse_duration(&text));
        }
    }
}
