//! The flow of an ordinary packet, read in a few words.
//!
//! Ordinary are TCP, UDP and echoes, whole, with no IP options or extension headers, of the length that
//! the IP header states. For such a packet this finds the flow that [`Flat`](crate::flat::Flat) does, for any
//! other nothing: then the long way has to be taken, which also says what is wrong with it.

use ebpf_abi::Direction;
use zerocopy::transmute;

use crate::{
    Flow, Window,
    flat::FlatFamily,
    header::{Icmp, Tcp, protocol},
};

/// Address families of ordinary packets.
pub trait Quick: Sized {
    /// The flow of an ordinary packet of this family, whose version has been looked at.
    fn flow<W: Window + ?Sized>(packet: &W, direction: Direction) -> Option<Flow<Self>>;

    /// Whether an ordinary packet of protocol `number` asks for what has to be granted: a connection, an
    /// echo. `None` if that is out of reach.
    fn opens<W: Window + ?Sized>(packet: &W, number: u8) -> Option<bool>;
}

impl Quick for [u8; 4] {
    #[inline(always)]
    fn flow<W: Window + ?Sized>(packet: &W, direction: Direction) -> Option<Flow<Self>> {
        // Little endian: the first byte on the wire is the lowest.
        let words: [u32; 7] = packet.words()?.map(u32::from_le);
        let is_plain = words[0] & 0xff == 0x45;
        let is_whole = words[1] & 0xff3f_0000 == 0;
        let number = (words[2] >> 8) as u8;
        let total = u32::from(((words[0] >> 16) as u16).swap_bytes());
        let (least, ports) = transport::<Self>(number, words[5], words[6])?;
        if !is_plain || !is_whole || total > packet.len() || total < 20 + least {
            return None;
        }
        let (src, dst) = (words[3], words[4]);
        let key = match direction {
            Direction::In => [dst, src, ports.rotate_left(16), number.into()],
            Direction::Out => [src, dst, ports, number.into()],
        };
        Some(transmute!(key.map(u32::to_le)))
    }

    #[inline(always)]
    fn opens<W: Window + ?Sized>(packet: &W, number: u8) -> Option<bool> {
        opens::<Self, W>(packet, 20, number)
    }
}

impl Quick for [u8; 16] {
    #[inline(always)]
    fn flow<W: Window + ?Sized>(packet: &W, direction: Direction) -> Option<Flow<Self>> {
        let words: [u32; 12] = packet.words()?.map(u32::from_le);
        let number = (words[1] >> 16) as u8;
        let payload = u32::from((words[1] as u16).swap_bytes());
        let [_, _, a, b, c, d, e, f, g, h, first, second] = words;
        let (least, ports) = transport::<Self>(number, first, second)?;
        if 40 + payload > packet.len() || payload < least {
            return None;
        }
        let key = match direction {
            Direction::In => [e, f, g, h, a, b, c, d, ports.rotate_left(16), number.into()],
            Direction::Out => [a, b, c, d, e, f, g, h, ports, number.into()],
        };
        Some(transmute!(key.map(u32::to_le)))
    }

    #[inline(always)]
    fn opens<W: Window + ?Sized>(packet: &W, number: u8) -> Option<bool> {
        opens::<Self, W>(packet, 40, number)
    }
}

/// Of protocols that are ordinary: the fewest bytes of their header, and its ports; `first` and `second`
/// are its first words. Of an echo, the side that asks has the identifier for a port and the other 0.
#[inline(always)]
fn transport<A: FlatFamily>(number: u8, first: u32, second: u32) -> Option<(u32, u32)> {
    if number == protocol::TCP {
        return Some((20, first));
    }
    if number == protocol::UDP {
        return Some((8, first));
    }
    let kind = first as u8;
    if number != A::ICMP {
        None
    } else if kind == A::ECHO_REQUEST {
        Some((8, second & 0xffff))
    } else if kind == A::ECHO_REPLY {
        Some((8, second << 16))
    } else {
        None
    }
}

#[inline(always)]
fn opens<A: FlatFamily, W: Window + ?Sized>(packet: &W, at: usize, number: u8) -> Option<bool> {
    match number {
        protocol::TCP => packet.at(at).map(Tcp::opens),
        protocol::UDP => Some(false),
        _ => packet
            .at(at)
            .map(|icmp: &Icmp| icmp.kind == A::ECHO_REQUEST),
    }
}
