//! Waiting on conditions, with deadlines that stretch on slow machines.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Time between two probes: short beside every deadline, long beside the cost of a probe.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Factor on every deadline, from `TAILRACE_TIME_SCALE` (1 where unset; emulated machines need more).
#[must_use]
pub fn time_scale() -> f64 {
    env::var("TAILRACE_TIME_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|scale: &f64| scale.is_finite() && *scale >= 1.0)
        .unwrap_or(1.0)
}

/// `duration` times [`time_scale`].
#[must_use]
pub fn scaled(duration: Duration) -> Duration {
    duration.mul_f64(time_scale())
}

/// Probes until `probe` succeeds and returns what it gave.
///
/// `deadline` is scaled by [`time_scale`].
///
/// # Errors
///
/// When the deadline passes: `what` was awaited, how long, and the last probe's error.
pub fn wait_until<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = scaled(deadline);
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= deadline => {
                return Err(error).with_context(|| {
                    format!("waited {:.1} s until {what}", deadline.as_secs_f64())
                });
            }
            Err(_) => thread::sleep(PROBE_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_and_the_purpose_are_reported() {
        let error = wait_until(Duration::ZERO, "pigs fly", || -> Result<()> {
            anyhow::bail!("no wings")
        })
        .expect_err("cannot succeed");

        let text = format!("{error:#}");
        assert!(
            text.contains("pigs fly") && text.contains("no wings"),
            "{text}"
        );
    }

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut left = 3;
        let value = wait_until(Duration::from_secs(5), "the count is down", || {
            left -= 1;
            anyhow::ensure!(left == 0, "{left} left");
            Ok(left)
        })
        .expect("comes true");
        assert_eq!(value, 0);
    }
}
