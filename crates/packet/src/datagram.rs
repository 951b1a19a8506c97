//! What a filter looks at in an IP packet: addresses, protocol, ports, and where it stands among
//! fragments. The form for programs of the host, made from [`Flat`].

use ebpf_abi::{Direction, DropReason};

use crate::{
    Flow, Window,
    flat::{self, Flat, FlatFamily},
};

/// A packet of either family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Packet {
    /// IPv4.
    V4(Datagram<[u8; 4]>),
    /// IPv6.
    V6(Datagram<[u8; 16]>),
}

/// A well-formed packet, as far as a filter looks at it. `A` is the address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Datagram<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// IP protocol, after IPv6 extension headers. Not to be trusted in later fragments of IPv6.
    pub protocol: u8,
    /// Its place among fragments.
    pub fragment: Fragment,
    /// What is known of the rest.
    pub content: Content,
}

/// A packet's place among fragments, with the identification.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first of several; it has the whole transport header.
    First(u32),
    /// A later one; it has no header.
    Later(u32),
}

/// What is known of a packet beyond its IP header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// TCP, UDP, SCTP.
    Ports {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// TCP with SYN and without ACK.
        opens: bool,
    },
    /// ICMP echo.
    Echo {
        /// Identifier.
        id: u16,
        /// A reply, not a request.
        reply: bool,
    },
    /// An ICMP error; see [`Datagram::quoted`].
    Error {
        /// Where the quoted packet begins, in bytes.
        at: u32,
        /// Where it ends at the latest: the end of this packet.
        end: u32,
    },
    /// ICMP that is neither.
    Icmp,
    /// Another protocol, without ports as far as the filter knows. TSMP is among them.
    Other,
    /// A later fragment: unknown.
    Later,
}

/// Reads a packet, which begins with its IP header.
///
/// # Errors
///
/// Why it is no packet that anybody could judge: [`DropReason::NotIp`] to
/// [`DropReason::BadProtocol`].
pub fn parse<W: Window + ?Sized>(packet: &W) -> Result<Packet, DropReason> {
    match flat::version(packet)? {
        4 => Datagram::parse(packet).map(Packet::V4),
        _ => Datagram::parse(packet).map(Packet::V6),
    }
}

impl<A: FlatFamily> Datagram<A> {
    /// Reads a packet of this family; the version is not looked at.
    ///
    /// # Errors
    ///
    /// As [`parse`].
    pub fn parse<W: Window + ?Sized>(packet: &W) -> Result<Self, DropReason> {
        let mut flat = Flat::new();
        flat.parse(packet)?;
        Ok(flat.into())
    }

    /// The flow of the packet that this ICMP error quotes, which its addressee had sent.
    ///
    /// `None` where this is no error, where the quote was not sent by the addressee, or is too
    /// short to tell. A quote holds at least the IP header and 8 bytes (RFC 792); its stated length
    /// is that of the whole packet and does not matter.
    pub fn quoted<W: Window + ?Sized>(&self, packet: &W) -> Option<Flow<A>> {
        let Content::Error { at, end } = self.content else {
            return None;
        };
        let mut error = Flat::new();
        error.dst = self.dst;
        error.quote = u16::try_from(at).ok()?;
        error.end = end;
        let mut flow = error.flow(Direction::Out);
        error.quoted(packet, &mut flow).then_some(flow)
    }
}

impl<A: FlatFamily> From<Flat<A>> for Datagram<A> {
    fn from(flat: Flat<A>) -> Self {
        let content = match flat.kind {
            flat::PORTS | flat::OPENS => Content::Ports {
                src: flat.src_port,
                dst: flat.dst_port,
                opens: flat.kind == flat::OPENS,
            },
            flat::ECHO_REQUEST => Content::Echo {
                id: flat.src_port,
                reply: false,
            },
            flat::ECHO_REPLY => Content::Echo {
                id: flat.dst_port,
                reply: true,
            },
            flat::ERROR => Content::Error {
                at: flat.quote.into(),
                end: flat.end,
            },
            flat::OTHER => Content::Other,
            _ if flat.fragment == flat::LATER => Content::Later,
            _ => Content::Icmp,
        };
        Self {
            src: flat.src,
            dst: flat.dst,
            protocol: flat.protocol,
            fragment: match flat.fragment {
                flat::FIRST => Fragment::First(flat.id),
                flat::LATER => Fragment::Later(flat.id),
                _ => Fragment::Whole,
            },
            content,
        }
    }
}

#[cfg(test)]
mod tests;
