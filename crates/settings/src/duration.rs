//! Durations as operators write them.

use std::time::Duration;

/// Reads `500ms`, `90s`, `15m`, `24h`, `180d`, sums like `1d12h`, and bare numbers as seconds.
///
/// # Errors
///
/// A text that says what is expected; zero is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write 90s, 15m, 24h or 180d");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let count: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "" if total.is_zero() => 1000,
            "m" => 60 * 1000,
            "h" => 3600 * 1000,
            "d" => 86400 * 1000,
            _ => return Err(bad()),
        };
        rest = &rest[letters..];
        let part = count.checked_mul(unit_ms).map(Duration::from_millis);
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or_else(bad)?;
    }
    if total.is_zero() {
        Err(bad())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_add_up() {
        for (text, ms) in [
            ("500ms", 500),
            ("60s", 60_000),
            ("90", 90_000),
            ("2m", 120_000),
            ("24h", 86_400_000),
            ("1d12h", 129_600_000),
            (" 1m30s ", 90_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_examples() {
        for text in [
            "",
            "0s",
            "s",
            "5x",
            "-1s",
            "1h30",
            "99999999999999999999d",
            "1 h",
        ] {
            let problem = parse_duration(text).unwrap_err();
            assert!(problem.contains("15m"), "{text}: {problem}");
        }
    }
}
