//! nftables: a table of ours replaced as a whole, marked rules in chains of others, and a watch on both.
//!
//! ```text
//! Table ──replace──► kernel ──snapshot──► Snapshot ── equal to a later one: nobody touched it
//!                      └──Watcher──► Touched { family, table } by anybody but us
//! ```

mod decode;
mod encode;
mod ruleset;
mod shell;

use ipnet::IpNet;

use crate::Family;

pub use ruleset::{Condition, HostChain, HostRule, HostVerdict, Names};
pub use shell::{Foreign, Nft, Snapshot, Touched, Watcher};

/// Which packets the chains of a table see.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Layer {
    /// IPv4 and IPv6.
    Inet,
    /// One family: the tables of iptables-nft are such.
    Ip(Family),
}

/// A table of family `inet` with everything in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its chains; one that is jumped to stands before those that jump.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    /// Its name, unique in the table.
    pub name: String,
    /// Where packets enter; `None` if other chains jump here.
    pub base: Option<Base>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// Where a chain hangs in the path of packets. Its policy is to accept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Base {
    /// What the chain is for.
    pub kind: Kind,
    /// The place.
    pub hook: Hook,
    /// Order among the chains of that place, lower first.
    pub priority: i32,
}

/// What a chain is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Filtering and mangling.
    Filter,
    /// Address translation: asked once a connection.
    Nat,
    /// Mangling that routes anew when the mark changes.
    Route,
}

/// The place of a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
}

/// A rule: expressions from left to right; a match that fails ends it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// Matches and statements.
    pub expressions: Vec<Expression>,
    /// What listings show behind it.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without comment.
    #[must_use]
    pub fn new(expressions: impl Into<Vec<Expression>>) -> Self {
        Self {
            expressions: expressions.into(),
            comment: None,
        }
    }
}

/// A transport port of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Port {
    /// That of the sender.
    Source,
    /// That of the receiver.
    Destination,
}

/// States of a connection, as bits (`NF_CT_STATE_BIT`).
pub mod state {
    /// Not part of any connection.
    pub const INVALID: u32 = 1;
    /// Of a connection that has seen both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to another connection: an ICMP error, say.
    pub const RELATED: u32 = 4;
    /// Begins a connection.
    pub const NEW: u32 = 8;
}

/// One match or statement.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Expression {
    /// Came in through this interface.
    InputInterface(String),
    /// Came in by an interface of this hardware type (`ARPHRD_*` of `linux/if_arp.h`).
    InputType(u16),
    /// Goes out through this interface.
    OutputInterface(String),
    /// Has this packet mark under the mask.
    Mark {
        /// Wanted bits.
        value: u32,
        /// Compared bits.
        mask: u32,
    },
    /// Belongs to a connection with this mark under the mask.
    ConnectionMark {
        /// Wanted bits.
        value: u32,
        /// Compared bits.
        mask: u32,
    },
    /// Belongs to a connection in one of these states, bits of [`state`].
    ConnectionState(u32),
    /// Belongs to a connection whose destination this host replaced, as it does for published ports.
    DestinationTranslated,
    /// Is of this family.
    NetworkProtocol(Family),
    /// Is of this transport protocol.
    TransportProtocol(u8),
    /// Has this port. Stands behind a [`Self::TransportProtocol`] that has ports.
    Port(Port, u16),
    /// Some of these bits of the transport header, counted from its first byte, are set.
    TransportBits {
        /// First byte.
        offset: u32,
        /// Looked-at bits of four bytes.
        mask: [u8; 4],
    },
    /// The transport header and what follows hold these bytes, at most 16.
    TransportBytes {
        /// First byte, counted from that of the header.
        offset: u32,
        /// What is there.
        bytes: &'static [u8],
    },
    /// Comes from the prefix; says the family too.
    Source(IpNet),
    /// Goes to the prefix; says the family too.
    Destination(IpNet),
    /// Counts packets and bytes.
    Counter,
    /// Sets the masked bits of the packet mark and leaves the others.
    SetMark {
        /// New bits.
        value: u32,
        /// Changed bits.
        mask: u32,
    },
    /// Sets the masked bits of the connection's mark and leaves the others.
    SetConnectionMark {
        /// New bits.
        value: u32,
        /// Changed bits.
        mask: u32,
    },
    /// Writes a port into a UDP header and keeps its checksum right.
    SetUdpPort(Port, u16),
    /// Gives the connection the address of the interface it leaves through.
    Masquerade,
    /// Ends the chain in favour of the packet.
    Accept,
    /// Ends the packet.
    Drop,
    /// Ends the chain.
    Return,
    /// Goes through another chain of the table.
    Jump(String),
}
