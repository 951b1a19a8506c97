//! The time by which mappings end: a router does not sleep when this host does.

use std::time::{Duration, Instant};

use dataplane::boot_clock;

/// Tells instants that go on while the host is suspended: not to be mixed with [`Instant::now`].
#[derive(Clone, Copy, Debug)]
pub(super) struct BootTime {
    began: Instant,
    boot: Duration,
}

impl Default for BootTime {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            boot: boot_clock(),
        }
    }
}

impl BootTime {
    pub(super) fn now(&self) -> Instant {
        self.at(boot_clock())
    }

    fn at(&self, boot: Duration) -> Instant {
        self.began + boot.saturating_sub(self.boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_while_the_host_sleeps() {
        let time = BootTime::default();
        let asleep = Duration::from_secs(8 * 3600);
        let woken = time.at(boot_clock() + asleep);
        assert!(woken.duration_since(Instant::now()) > asleep - Duration::from_secs(60));
        assert!(time.now() >= time.began);
    }
}
