//! nfnetlink, what conntrack and nftables are spoken to with: sockets and messages.

pub(crate) mod socket;
pub(crate) mod wire;
