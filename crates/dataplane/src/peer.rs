//! A peer, as the programs know it.

use std::time::{Duration, SystemTime};

use ebpf_abi::{PEER_JAILED, PeerEntry, PeerIndex};
use rustix::time::{ClockId, clock_gettime};

/// A peer, as the programs know it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Under which its traffic is counted.
    pub index: PeerIndex,
    /// It may answer but not initiate.
    pub jailed: bool,
    /// When its key expires, since boot (see [`since_boot`]), in whole seconds, rounded up. From then
    /// on the filter lets nothing pass from it or to it.
    pub expires: Option<Duration>,
}

impl From<PeerIndex> for Peer {
    fn from(index: PeerIndex) -> Self {
        Self {
            index,
            jailed: false,
            expires: None,
        }
    }
}

impl Peer {
    pub(crate) fn entry(self) -> PeerEntry {
        // 0 is for never, and never a time at which a process could have run.
        let seconds = |expires: Duration| {
            let seconds = expires.as_nanos().div_ceil(1_000_000_000);
            u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
        };
        PeerEntry {
            index: self.index,
            flags: if self.jailed { PEER_JAILED } else { 0 },
            expires: self.expires.map_or(0, seconds),
        }
    }
}

/// Returns `at` by the clock of the programs: since boot, suspension included. What is before boot
/// is at boot. Ask again when the system's clock has been set.
#[must_use]
pub fn since_boot(at: SystemTime) -> Duration {
    let (now, boot) = (SystemTime::now(), boot_clock());
    match at.duration_since(now) {
        Ok(ahead) => boot.saturating_add(ahead),
        Err(past) => boot.saturating_sub(past.duration()),
    }
}

/// The clock of the programs: since boot, suspension included.
#[must_use]
pub fn boot_clock() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither part is ever negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_ahead_is_as_far_ahead_by_either_clock() {
        let ahead = Duration::from_secs(3600);
        let before = boot_clock();
        let at = since_boot(SystemTime::now() + ahead);
        let after = boot_clock();
        let slack = Duration::from_secs(1);
        assert!(before + ahead <= at + slack && at <= after + ahead + slack);
        assert_eq!(since_boot(SystemTime::UNIX_EPOCH), Duration::ZERO);
    }

    #[test]
    fn expiry_is_told_in_seconds_and_never_as_never() {
        let expires = |expires| {
            let peer = Peer {
                expires,
                ..Peer::from(PeerIndex(1))
            };
            peer.entry().expires
        };
        assert_eq!(expires(None), 0);
        assert_eq!(expires(Some(Duration::ZERO)), 1);
        assert_eq!(expires(Some(Duration::from_millis(7000))), 7);
        assert_eq!(expires(Some(Duration::from_millis(7001))), 8);
        assert_eq!(expires(Some(Duration::MAX)), u32::MAX);
    }
}
