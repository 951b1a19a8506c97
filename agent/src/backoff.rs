//! How long to wait before the next attempt: [`Backoff`], exponential with jitter.

use std::time::Duration;

/// First wait, before jitter.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait: the tailnet must heal within 15 s of a server or relay listening again.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from half a second to five, each wait between half of that and all of it, so that many
/// nodes do not return at the same moment.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the wait after one more failure. `random` is uniform in `0..1`.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let full = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// Starts again from the first wait. Call it for a connection that proved good, not on a mere connect.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds_and_no_further() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next(1.0)).collect();
        assert_eq!(waits[0], FIRST);
        assert!(waits.is_sorted());
        assert_eq!(waits[39], LONGEST);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.0), FIRST / 2);
    }

    #[test]
    fn a_good_message_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.next(0.5);
        }
        backoff.reset();
        assert!(backoff.next(1.0) <= FIRST);
    }
}
