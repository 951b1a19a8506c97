//! Who judges the packets that the tunnel carries: [`Filter`].

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From a peer to the host.
    In,
    /// From the host to a peer.
    Out,
}

/// Judges every packet between TUN and WireGuard, on the thread that carries it.
pub trait Filter: Send + Sync {
    /// Whether a packet may pass; it begins with its IP header.
    fn admits(&self, direction: Direction, packet: &[u8]) -> bool;
}
