//! Reads what a filter looks at in an IP packet, for programs in the kernel and on the host alike.
//!
//! Nothing outside the length that the IP header states is taken for part of the packet, and a
//! packet whose transport header cannot be read whole is refused: what is judged here is what the
//! receiver will see (filter.md section 2).
//!
//! Written so that the kernel's verifier follows. Where variants of an enum leave fields out, the
//! compiler fills the gaps with whatever a register holds, and the verifier refuses arithmetic on
//! leftover pointers. So here every field has a value at all times, and failures leave by a number.
//! Where that does not matter [`Datagram`](crate::Datagram) says the same by enums.

use ebpf_abi::{Direction, DropReason};
use zerocopy::{FromBytes, FromZeros as _, Immutable, KnownLayout, Unaligned};

use crate::{
    Family, Flow, FragmentKey, Window,
    header::{Echo, Extension, FragmentHeader, Icmp, Ipv4, Ipv6, Ports, Tcp, Version, protocol},
};

/// Most IPv6 extension headers that are walked, the fragment header among them.
pub const MAX_EXTENSIONS: u32 = 4;
/// Most bytes of IPv6 extension headers that are walked.
pub const MAX_EXTENSION_BYTES: u32 = 128;
/// Least offset of a later fragment, in units of 8 bytes: no transport header reaches as far.
pub const MIN_LATER_OFFSET: u16 = 10;

/// Place among fragments: not fragmented.
pub const WHOLE: u8 = 0;
/// Place among fragments: the first of several.
pub const FIRST: u8 = 1;
/// Place among fragments: a later one, without a header.
pub const LATER: u8 = 2;

/// Kind: TCP, UDP or SCTP, and no request for a connection.
pub const PORTS: u8 = 0;
/// Kind: TCP with SYN and without ACK.
pub const OPENS: u8 = 1;
/// Kind: ICMP echo request.
pub const ECHO_REQUEST: u8 = 2;
/// Kind: ICMP echo reply.
pub const ECHO_REPLY: u8 = 3;
/// Kind: ICMP error; see [`Flat::quoted`].
pub const ERROR: u8 = 4;
/// Kind: other ICMP, and later fragments: what has no flow.
pub const NO_FLOW: u8 = 5;
/// Kind: another protocol, without ports.
pub const OTHER: u8 = 6;

/// A well-formed packet, as far as a filter looks at it.
#[derive(Clone, Copy, Debug, Eq, FromBytes, PartialEq)]
#[repr(C)]
pub struct Flat<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification of the fragmented packet, else 0.
    pub id: u32,
    /// Where the packet ends by its header's word. Bytes.
    pub end: u32,
    /// Where the transport header begins. Bytes.
    pub transport: u16,
    /// Where the packet that an error quotes begins, else 0. Bytes.
    pub quote: u16,
    /// Source port as [`Flow`] means it, else 0.
    pub src_port: u16,
    /// Destination port as [`Flow`] means it, else 0.
    pub dst_port: u16,
    /// IP protocol, after IPv6 extension headers.
    pub protocol: u8,
    /// [`WHOLE`], [`FIRST`] or [`LATER`].
    pub fragment: u8,
    /// [`PORTS`] to [`OTHER`].
    pub kind: u8,
    /// Zero.
    pad: u8,
}

/// The version of a packet: 4 or 6.
///
/// # Errors
///
/// [`DropReason::Truncated`] if it is shorter than any header, [`DropReason::NotIp`] for any other version.
#[inline(always)]
pub fn version<W: Window + ?Sized>(packet: &W) -> Result<u8, DropReason> {
    if (packet.len() as usize) < size_of::<Ipv4>() {
        return Err(DropReason::Truncated);
    }
    let version: &Version = packet.at(0).ok_or(DropReason::Truncated)?;
    match version.number() {
        number @ (4 | 6) => Ok(number),
        _ => Err(DropReason::NotIp),
    }
}

/// What the families read differently.
pub trait FlatFamily: Family + FromBytes {
    /// Reads the packet at `start` up to its transport header. `quoted`: its length is not looked at.
    ///
    /// # Errors
    ///
    /// As [`parse`](crate::parse).
    fn read<W: Window + ?Sized>(
        flat: &mut Flat<Self>,
        packet: &W,
        start: u32,
        quoted: bool,
    ) -> Result<(), DropReason>;
}

impl<A: FlatFamily> Flat<A> {
    /// Of no packet yet.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::new_without_default, reason = "nothing asks for a default")]
    pub fn new() -> Self {
        Self::new_zeroed()
    }

    /// Reads a packet; the version is not looked at.
    ///
    /// # Errors
    ///
    /// As [`parse`](crate::parse).
    #[inline(always)]
    pub fn parse<W: Window + ?Sized>(&mut self, packet: &W) -> Result<(), DropReason> {
        A::read(self, packet, 0, false)?;
        if self.fragment == LATER {
            self.kind = NO_FLOW;
            return Ok(());
        }
        self.transport(packet)
    }

    /// The flow of the packet that this error quotes, which its addressee had sent: whether there is
    /// one, then in `flow`. See [`Datagram::quoted`](crate::Datagram::quoted).
    #[inline(always)]
    pub fn quoted<W: Window + ?Sized>(&self, packet: &W, flow: &mut Flow<A>) -> bool {
        let mut quoted = Self::new();
        quoted.end = self.end;
        if A::read(&mut quoted, packet, self.quote.into(), true).is_err() {
            return false;
        }
        if quoted.src != self.dst || quoted.fragment == LATER {
            return false;
        }
        if let protocol::TCP | protocol::UDP | protocol::SCTP = quoted.protocol {
            let Some(ports) = read::<W, Ports>(packet, quoted.transport.into(), self.end) else {
                return false;
            };
            quoted.src_port = ports.src();
            quoted.dst_port = ports.dst();
        } else if quoted.transport(packet).is_err() {
            return false;
        }
        *flow = quoted.flow(Direction::Out);
        quoted.has_flow()
    }

    /// Whether the packet belongs to a flow.
    #[inline(always)]
    #[must_use]
    pub fn has_flow(&self) -> bool {
        self.kind != ERROR && self.kind != NO_FLOW
    }

    /// The flow that the packet belongs to, if [it has one](Self::has_flow).
    #[inline(always)]
    #[must_use]
    pub fn flow(&self, direction: Direction) -> Flow<A> {
        Flow::new(
            self.protocol,
            (self.src, self.src_port),
            (self.dst, self.dst_port),
            direction,
        )
    }

    /// The name that all fragments of the packet share, if it is one.
    #[inline(always)]
    #[must_use]
    pub fn fragment_key(&self) -> FragmentKey<A> {
        FragmentKey::new(self.src, self.dst, self.id, self.protocol)
    }

    /// Reads the transport header.
    #[inline(always)]
    fn transport<W: Window + ?Sized>(&mut self, packet: &W) -> Result<(), DropReason> {
        const CUT: Result<(), DropReason> = Err(DropReason::TransportCut);
        let (at, end) = (u32::from(self.transport), self.end);
        self.kind = OTHER;
        match self.protocol {
            protocol::TCP => {
                let Some(tcp) = read::<W, Tcp>(packet, at, end) else {
                    return CUT;
                };
                if at + 20 > end {
                    return CUT;
                }
                self.src_port = tcp.ports.src();
                self.dst_port = tcp.ports.dst();
                self.kind = if tcp.opens() { OPENS } else { PORTS };
            }
            protocol::UDP | protocol::SCTP => {
                let least = if self.protocol == protocol::UDP {
                    8
                } else {
                    12
                };
                let Some(ports) = read::<W, Ports>(packet, at, end) else {
                    return CUT;
                };
                if at + least > end {
                    return CUT;
                }
                self.src_port = ports.src();
                self.dst_port = ports.dst();
                self.kind = PORTS;
            }
            number if number == A::ICMP => {
                let Some(icmp) = read::<W, Icmp>(packet, at, end) else {
                    return CUT;
                };
                self.kind = NO_FLOW;
                let (request, reply) = (icmp.kind == A::ECHO_REQUEST, icmp.kind == A::ECHO_REPLY);
                let error = A::is_icmp_error(icmp.kind);
                if !request && !reply && !error {
                    return Ok(());
                }
                let Some(echo) = read::<W, Echo>(packet, at, end) else {
                    return CUT;
                };
                if error {
                    self.kind = ERROR;
                    self.quote = self.transport + size_of::<Echo>() as u16;
                } else if request {
                    self.kind = ECHO_REQUEST;
                    self.src_port = echo.id();
                } else {
                    self.kind = ECHO_REPLY;
                    self.dst_port = echo.id();
                }
            }
            protocol::IGMP if at + 8 > end => return CUT,
            protocol::TSMP if at + 7 > end => return CUT,
            _ => {}
        }
        Ok(())
    }

    #[inline(always)]
    fn check_protocol(&self) -> Result<(), DropReason> {
        if self.protocol == protocol::RESERVED
            || self.protocol == protocol::TSMP && self.fragment != WHOLE
        {
            return Err(DropReason::BadProtocol);
        }
        Ok(())
    }
}

impl FlatFamily for [u8; 4] {
    #[inline(always)]
    fn read<W: Window + ?Sized>(
        flat: &mut Flat<Self>,
        packet: &W,
        start: u32,
        quoted: bool,
    ) -> Result<(), DropReason> {
        let limit = if quoted { flat.end } else { u32::MAX };
        let ip = read::<W, Ipv4>(packet, start, limit).ok_or(DropReason::Truncated)?;
        let len = ip.header_len();
        if (len as usize) < size_of::<Ipv4>() || quoted && ip.version() != 4 {
            return Err(DropReason::NotIp);
        }
        let at = start + len;
        if !quoted {
            flat.end = end(packet.len(), ip.total_len(), 0)?;
            if at > flat.end {
                return Err(DropReason::Truncated);
            }
        }
        flat.src = ip.src;
        flat.dst = ip.dst;
        flat.protocol = ip.protocol;
        let offset = ip.fragment_offset();
        if offset != 0 || ip.more_fragments() {
            flat.id = ip.id();
            flat.fragment = if offset == 0 { FIRST } else { LATER };
            if offset != 0 && offset < MIN_LATER_OFFSET {
                return Err(DropReason::FragmentTiny);
            }
        }
        // In IPv4 nothing stands under the number of the hop-by-hop options.
        if flat.protocol == protocol::HOP_BY_HOP {
            return Err(DropReason::BadProtocol);
        }
        flat.transport = at as u16;
        flat.check_protocol()
    }
}

impl FlatFamily for [u8; 16] {
    #[inline(always)]
    fn read<W: Window + ?Sized>(
        flat: &mut Flat<Self>,
        packet: &W,
        start: u32,
        quoted: bool,
    ) -> Result<(), DropReason> {
        let limit = if quoted { flat.end } else { u32::MAX };
        let ip = read::<W, Ipv6>(packet, start, limit).ok_or(DropReason::Truncated)?;
        if quoted && ip.version() != 6 {
            return Err(DropReason::NotIp);
        }
        if !quoted {
            flat.end = end(packet.len(), ip.total_len(), Ipv6::LEN)?;
        }
        flat.src = ip.src;
        flat.dst = ip.dst;
        flat.protocol = ip.next_header;
        let first = start + Ipv6::LEN;
        extensions(flat, packet, first)
    }
}

/// Walks IPv6 extension headers from `first`. None is farther from it than a `u16` can say.
#[inline(always)]
fn extensions<W: Window + ?Sized>(
    flat: &mut Flat<[u8; 16]>,
    packet: &W,
    first: u32,
) -> Result<(), DropReason> {
    let end = flat.end;
    let mut at = first;
    let mut fragment_seen = false;
    for _ in 0..=MAX_EXTENSIONS {
        match flat.protocol {
            protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                let header =
                    read::<W, Extension>(packet, at, end).ok_or(DropReason::TransportCut)?;
                // A route that goes on has another destination than the one that is judged; behind
                // options, a first fragment's transport header could be overwritten.
                if flat.protocol == protocol::ROUTING && header.segments_left != 0
                    || flat.fragment == FIRST
                {
                    return Err(DropReason::ExtensionHeader);
                }
                flat.protocol = header.next_header;
                at += header.len();
            }
            protocol::FRAGMENT => {
                let header =
                    read::<W, FragmentHeader>(packet, at, end).ok_or(DropReason::TransportCut)?;
                if fragment_seen {
                    return Err(DropReason::ExtensionHeader);
                }
                fragment_seen = true;
                flat.protocol = header.next_header;
                at += FragmentHeader::LEN;
                let offset = header.offset();
                if offset != 0 || header.more() {
                    flat.id = header.id();
                    flat.fragment = if offset == 0 { FIRST } else { LATER };
                }
                if offset != 0 {
                    if offset < MIN_LATER_OFFSET {
                        return Err(DropReason::FragmentTiny);
                    }
                    return Ok(());
                }
            }
            protocol::HOP_BY_HOP
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
            | protocol::EXPERIMENT_1
            | protocol::EXPERIMENT_2 => return Err(DropReason::ExtensionHeader),
            _ => {
                flat.transport = at as u16;
                return flat.check_protocol();
            }
        }
        if at > end {
            return Err(DropReason::TransportCut);
        }
        if at > first + MAX_EXTENSION_BYTES {
            return Err(DropReason::ExtensionHeader);
        }
    }
    Err(DropReason::ExtensionHeader)
}

/// Where a packet ends by its header's word, which is 0 (IPv4) or the header alone (IPv6) in
/// buffers longer than the field can say (BIG TCP).
#[inline(always)]
fn end(len: u32, stated: u32, zero: u32) -> Result<u32, DropReason> {
    const LONGEST: u32 = 0xffff;
    if stated == zero && len > zero + LONGEST {
        return Ok(len);
    }
    if stated > len {
        return Err(DropReason::Truncated);
    }
    Ok(stated)
}

/// Returns the `T` at `at` if it lies before `end`.
#[inline(always)]
fn read<W, T>(packet: &W, at: u32, end: u32) -> Option<&T>
where
    W: Window + ?Sized,
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    if at + size_of::<T>() as u32 > end {
        return None;
    }
    packet.at(at as usize)
}
