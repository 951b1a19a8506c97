//! A router's clock, by which it tells that it has forgotten its mappings.

use std::time::Instant;

/// Seconds by which the clocks may differ.
const SLACK: u64 = 2;

/// What the router's clock last said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock(Option<(Instant, u32)>);

impl Clock {
    /// Takes a new reading, in seconds since the router began; true if it has begun anew since the last.
    /// The clocks may run apart by an eighth (RFC 6886 §3.6, and stricter than RFC 6887 §8.5 demands). A router
    /// that tells 0 time after time has no clock.
    pub(super) fn set(&mut self, now: Instant, epoch: u32) -> bool {
        let last = self.0.replace((now, epoch));
        last.is_some_and(|(at, before)| {
            let stands = before == 0 && epoch == 0;
            let passed = now.saturating_duration_since(at).as_secs();
            !stands && u64::from(epoch) + SLACK < u64::from(before) + passed * 7 / 8
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_router_that_went_on_has_not_restarted() {
        let (mut clock, start) = (Clock::default(), Instant::now());
        assert!(!clock.set(start, 1000));
        assert!(!clock.set(start + Duration::from_secs(80), 1080));
        // It may be slow, by an eighth.
        assert!(!clock.set(start + Duration::from_secs(160), 1150));
    }

    #[test]
    fn a_clock_that_stands_behind_where_it_should_be_began_anew() {
        let (mut clock, start) = (Clock::default(), Instant::now());
        clock.set(start, 1000);
        assert!(clock.set(start + Duration::from_secs(80), 3));
        // Though it is ahead of its last reading by now.
        assert!(clock.set(start + Duration::from_secs(7280), 2000));
    }

    #[test]
    fn a_router_without_a_clock_never_restarts() {
        let (mut clock, start) = (Clock::default(), Instant::now());
        for minutes in 0..100 {
            assert!(!clock.set(start + Duration::from_secs(60 * minutes), 0));
        }
        // One that has a clock may say so once.
        assert!(!clock.set(start + Duration::from_secs(6000), 6000));
        assert!(clock.set(start + Duration::from_secs(6060), 0));
    }
}
