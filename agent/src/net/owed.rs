//! What was to be done and failed; it is tried until it works: [`Owed`].

use std::collections::BTreeSet;

use keys::NodePublic;

/// What is still to be done.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Peers that restarted, and whose sessions have to go.
    restarts: BTreeSet<NodePublic>,
    /// Peers may be missing whose sessions went.
    peers: bool,
    /// The host's netfilter may not know all detours.
    netfilter: bool,
}

impl Owed {
    /// Has a peer that restarted begin anew.
    pub(super) fn restart(&mut self, peer: NodePublic) {
        self.restarts.insert(peer);
    }

    /// The peers that restarted, to be taken out of the tunnel. From now on they may be missing, even if not all go.
    pub(super) fn removals(&mut self) -> Vec<NodePublic> {
        self.peers |= !self.restarts.is_empty();
        self.restarts.iter().copied().collect()
    }

    /// They are all out of it.
    pub(super) fn removed(&mut self) {
        self.restarts.clear();
    }

    /// All peers are there that should be.
    pub(super) fn applied(&mut self) {
        self.peers = false;
    }

    /// Detours have changed.
    pub(super) fn detour(&mut self) {
        self.netfilter = true;
    }

    /// The host's netfilter knows them.
    pub(super) fn detoured(&mut self) {
        self.netfilter = false;
    }

    /// Whether sessions have to go, or peers to be put back.
    pub(super) fn peers(&self) -> bool {
        self.peers || !self.restarts.is_empty()
    }

    /// Whether the host's netfilter has to be told of detours.
    pub(super) fn netfilter(&self) -> bool {
        self.netfilter
    }

    /// Forgets peers that are gone.
    pub(super) fn retain(&mut self, present: &BTreeSet<NodePublic>) {
        self.restarts.retain(|peer| present.contains(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodePublic = NodePublic::from_bytes([2; 32]);

    #[test]
    fn a_restarted_peer_is_owed_until_it_is_out_and_back_again() {
        let mut owed = Owed::default();
        assert!(!owed.peers());
        owed.restart(PEER);
        assert_eq!(owed.removals(), [PEER]);
        // It could not be removed, but all others are there.
        owed.applied();
        assert!(owed.peers());
        assert_eq!(owed.removals(), [PEER]);
        // It is out, and could not be put back.
        owed.removed();
        assert!(owed.peers());
        assert_eq!(owed.removals(), []);
        assert!(owed.peers());
        owed.applied();
        assert!(!owed.peers());
    }

    #[test]
    fn a_peer_that_is_gone_is_owed_nothing() {
        let mut owed = Owed::default();
        owed.restart(PEER);
        owed.retain(&BTreeSet::new());
        assert!(!owed.peers());
    }
}
