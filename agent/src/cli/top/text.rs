//! Figures in few columns.

use std::time::Duration;

/// Bytes, or bytes a second, in at most five columns: `0`, `1023`, `1.5K`, `120M`. K, M, G are powers of 1024.
pub(super) fn bytes(count: f64) -> String {
    const UNITS: [&str; 6] = ["", "K", "M", "G", "T", "P"];
    let mut value = count.max(0.0).round();
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    // As it will be printed: 9.96 would be 10.0, a column more.
    let decimals = usize::from(unit > 0 && value < 9.95);
    format!("{value:.decimals$}{}", UNITS[unit])
}

/// How often something happened, in at most six columns: `0`, `99999`, `120k`. Powers of 1000.
pub(super) fn count(number: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut value = number.max(0.0).round();
    let mut unit = 0;
    while value >= 100_000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.0}{}", UNITS[unit])
}

/// How often something happens in a second: with a fraction where that is less than ten times.
pub(super) fn per_second(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 {
        format!("{rate:.1}")
    } else {
        count(rate)
    }
}

/// A round trip in at most six columns: `0.4ms`, `123ms`, `1.2s`.
pub(super) fn latency(seconds: f64) -> String {
    let milliseconds = seconds * 1e3;
    if milliseconds < 99.95 {
        format!("{milliseconds:.1}ms")
    } else if milliseconds < 999.5 {
        format!("{milliseconds:.0}ms")
    } else {
        format!("{seconds:.1}s")
    }
}

/// How long ago, in at most four columns: `59s`, `59m`, `23h`, `999d`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The interval as a person would type it: `1 s`, `0.5 s`.
pub(super) fn interval(interval: Duration) -> String {
    format!("{} s", interval.as_secs_f64())
}

/// The text in at most `width` columns: cut, with an ellipsis at its end.
pub(super) fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain((width > 0).then_some('…')).collect()
}

/// An endpoint in at most `width` columns: what is cut is the end of the address, not the port.
pub(super) fn endpoint(endpoint: &str, width: usize) -> String {
    let Some((address, port)) = endpoint.rsplit_once(':') else {
        return fit(endpoint, width);
    };
    let bracket = if address.ends_with(']') { "]" } else { "" };
    let room = width.saturating_sub(port.len() + 1 + bracket.len());
    let address = address.trim_end_matches(']');
    if address.chars().count() <= room {
        return endpoint.to_owned();
    }
    format!("{}{bracket}:{port}", fit(address, room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_five_columns_at_most() {
        for (count, text) in [
            (0.0, "0"),
            (0.4, "0"),
            (1023.0, "1023"),
            (1024.0, "1.0K"),
            (1536.0, "1.5K"),
            (10.0 * 1024.0, "10K"),
            (9.97 * 1024.0, "10K"),
            (1023.9 * 1024.0, "1024K"),
            (120.0 * 1024.0 * 1024.0, "120M"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
        let mut count = 1.0;
        while count < 1e18 {
            assert!(bytes(count).len() <= 5, "{count}: {}", bytes(count));
            count *= 1.37;
        }
    }

    #[test]
    fn what_happens_seldom_is_told_with_a_fraction_and_what_happened_is_whole() {
        let texts = [0.0, 0.5, 9.0, 12.0, 2048.0].map(per_second);
        assert_eq!(texts, ["0", "0.5", "9.0", "12", "2048"]);
        let texts = [0.0, 1.0, 99_999.0, 100_000.0, 1e8, 1e15].map(count);
        assert_eq!(texts, ["0", "1", "99999", "100k", "100M", "1000T"]);
    }

    #[test]
    fn times_are_short() {
        let latencies = [0.000_4, 0.0123, 0.099_97, 0.123, 0.9996, 12.0].map(latency);
        assert_eq!(
            latencies,
            ["0.4ms", "12.3ms", "100ms", "123ms", "1.0s", "12.0s"]
        );
        let ages = [0, 59, 60, 3_599, 3_600, 86_400, 864_000].map(age);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "1d", "10d"]);
    }

    #[test]
    fn what_is_cut_says_so_and_keeps_the_port() {
        assert_eq!(fit("a-long-name", 6), "a-lon…");
        assert_eq!(fit("short", 6), "short");
        assert_eq!(fit("x", 0), "");
        assert_eq!(endpoint("203.0.113.7:41641", 21), "203.0.113.7:41641");
        let v6 = "[2001:db8:1:2:3:4:5:6]:41641";
        assert_eq!(endpoint(v6, 28), v6);
        assert_eq!(endpoint(v6, 20), "[2001:db8:1:…]:41641");
        assert_eq!(endpoint("", 3), "");
    }
}
