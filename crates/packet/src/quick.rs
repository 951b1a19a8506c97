//! The flow of an ordinary packet, read in a few words.
//!
//! Ordinary are TCP and UDP, whole, with no IP options or extension headers, of the length that the IP
//! header states. For such a packet this finds the flow that [`Flat`](crate::flat::Flat) does, for any
//! other nothing: then the long way has to be taken, which also says what is wrong with it.

use ebpf_abi::Direction;
use zerocopy::transmute;

use crate::{
    Flow, Window,
    header::{Tcp, protocol},
};

/// Address families of ordinary packets.
pub trait Quick: Sized {
    /// The flow of an ordinary packet of this family, whose version has been looked at.
    fn flow<W: Window + ?Sized>(packet: &W, direction: Direction) -> Option<Flow<Self>>;

    /// Whether an ordinary TCP packet asks for a connection; `None` if its flags are out of reach.
    fn opens<W: Window + ?Sized>(packet: &W) -> Option<bool>;
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
        if !is_plain || !is_whole || total > packet.len() || total < 20 + least(number)? {
            return None;
        }
        let (src, dst, ports) = (words[3], words[4], words[5]);
        let key = match direction {
            Direction::In => [dst, src, ports.rotate_left(16), number.into()],
            Direction::Out => [src, dst, ports, number.into()],
        };
        Some(transmute!(key.map(u32::to_le)))
    }

    #[inline(always)]
    fn opens<W: Window + ?Sized>(packet: &W) -> Option<bool> {
        packet.at(20).map(Tcp::opens)
    }
}

impl Quick for [u8; 16] {
    #[inline(always)]
    fn flow<W: Window + ?Sized>(packet: &W, direction: Direction) -> Option<Flow<Self>> {
        let words: [u32; 11] = packet.words()?.map(u32::from_le);
        let number = (words[1] >> 16) as u8;
        let payload = u32::from((words[1] as u16).swap_bytes());
        if 40 + payload > packet.len() || payload < least(number)? {
            return None;
        }
        let [_, _, a, b, c, d, e, f, g, h, ports] = words;
        let key = match direction {
            Direction::In => [e, f, g, h, a, b, c, d, ports.rotate_left(16), number.into()],
            Direction::Out => [a, b, c, d, e, f, g, h, ports, number.into()],
        };
        Some(transmute!(key.map(u32::to_le)))
    }

    #[inline(always)]
    fn opens<W: Window + ?Sized>(packet: &W) -> Option<bool> {
        packet.at(40).map(Tcp::opens)
    }
}

/// Bytes of the transport header, of protocols that are ordinary.
#[inline(always)]
fn least(number: u8) -> Option<u32> {
    match number {
        protocol::TCP => Some(20),
        protocol::UDP => Some(8),
        _ => None,
    }
}
