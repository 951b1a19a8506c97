//! Whose WireGuard packets pass the agent on their way in: [`Detours`].

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

/// How long packets are still handed over that the firewall's rules brought here before they changed: they
/// wait in the socket, and the rules change after the table does.
const LINGER: Duration = Duration::from_secs(5);

/// Peers' addresses without proof: what WireGuard there sends is handed over as if a relay had brought it.
#[derive(Debug, Default)]
pub(super) struct Detours(HashMap<SocketAddr, Detour>);

#[derive(Debug)]
struct Detour {
    /// Synthetic address of the peer.
    peer: Ipv4Addr,
    ended: Option<Instant>,
}

impl Detours {
    /// Makes `wanted` the addresses, each with its peer's synthetic one. Where a detour ends because another
    /// peer is at its address, `owner` tells that one's: what is under way is of that peer.
    pub(super) fn set(
        &mut self,
        wanted: impl Iterator<Item = (SocketAddr, Ipv4Addr)>,
        owner: impl Fn(SocketAddr) -> Option<Ipv4Addr>,
        now: Instant,
    ) {
        self.0.retain(|source, detour| {
            detour.peer = owner(*source).unwrap_or(detour.peer);
            now < *detour.ended.get_or_insert(now) + LINGER
        });
        let wanted = wanted.map(|(source, peer)| (source, Detour { peer, ended: None }));
        self.0.extend(wanted);
    }

    /// Whose packets come from `source`.
    pub(super) fn of(&self, source: SocketAddr) -> Option<Ipv4Addr> {
        self.0.get(&source).map(|detour| detour.peer)
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    #[test]
    fn what_is_under_way_when_a_detour_ends_still_arrives() {
        let source = SocketAddr::from(([203, 0, 113, 1], 41641));
        let peer = Ipv4Addr::new(127, 64, 0, 1);
        let begin = Instant::now();
        let mut detours = Detours::default();
        assert_eq!(detours.of(source), None);
        let nobody = |_| None;
        detours.set(iter::once((source, peer)), nobody, begin);
        // For as long as it is wanted, however often the others change.
        let later = begin + 3 * LINGER;
        detours.set(iter::once((source, peer)), nobody, later);
        detours.set(iter::empty(), nobody, later);
        assert_eq!(detours.of(source), Some(peer));
        detours.set(iter::empty(), nobody, later + LINGER / 2);
        assert_eq!(detours.of(source), Some(peer));
        detours.set(iter::empty(), nobody, later + LINGER);
        assert_eq!(detours.of(source), None);
    }

    #[test]
    fn what_is_under_way_is_of_the_peer_that_turns_out_to_be_there() {
        let source = SocketAddr::from(([203, 0, 113, 1], 41641));
        let [claimant, owner] = [1, 2].map(|last| Ipv4Addr::new(127, 64, 0, last));
        let begin = Instant::now();
        let mut detours = Detours::default();
        detours.set(iter::once((source, claimant)), |_| None, begin);
        detours.set(iter::empty(), |_| Some(owner), begin);
        assert_eq!(detours.of(source), Some(owner));
    }
}
