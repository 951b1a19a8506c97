//! Connection tracking: dump, events, and the one change that offloaded TCP flows need.
//!
//! ```text
//! Watcher ──New, Updated, Destroyed──►  caller  ◄──dump── Conntrack
//!    └─────── Overrun: events were lost ──► dumps again
//! ```

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::netfilter::socket::Socket;
use crate::netfilter::wire::{ACK, Attribute, CREATE, DUMP, Frame, Writer};
use crate::{Error, Family};

const SUBSYSTEM: u16 = 1 << 8; // NFNL_SUBSYS_CTNETLINK
const NEW: u16 = SUBSYSTEM; // IPCTNL_MSG_CT_NEW
const GET: u16 = SUBSYSTEM | 1; // IPCTNL_MSG_CT_GET
const DELETE: u16 = SUBSYSTEM | 2; // IPCTNL_MSG_CT_DELETE
/// `NFNLGRP_CONNTRACK_NEW`, `_UPDATE`, `_DESTROY`.
const GROUPS: [u32; 3] = [1, 2, 3];
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

// enum ctattr_type
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
// enum ctattr_tuple
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
// enum ctattr_ip
const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;
// enum ctattr_l4proto
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const ICMP_ID: u16 = 4;
const ICMPV6_ID: u16 = 7;
// enum ctattr_protoinfo, ctattr_protoinfo_tcp
const INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const TCP_FLAGS_ORIGINAL: u16 = 4;
const TCP_FLAGS_REPLY: u16 = 5;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: sequence numbers outside the window are valid.
const BE_LIBERAL: u8 = 0x08;

// enum ip_conntrack_status
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const DYING: u32 = 1 << 9;

/// Queue for events: some 60 000 of them, what a burst may bring before we are scheduled.
const WATCH_BUFFER_LEN: usize = 16 << 20;
const BUFFER_LEN: usize = 1 << 20;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Tuple {
    /// IP protocol number.
    pub protocol: u8,
    /// Who sends; the identifier of an ICMP echo stands in the port, 0 where the protocol has none.
    pub src: SocketAddr,
    /// Who receives; port 0 where the protocol has none.
    pub dst: SocketAddr,
}

/// A tracked connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// The kernel's number of it: tells it from a later one with the same tuples.
    pub id: u32,
    /// Conntrack zone; 0 unless the host's rules say otherwise.
    pub zone: u16,
    /// Connection mark.
    pub mark: u32,
    /// `IPS_*` bits.
    pub status: u32,
    /// As the first packet came in, before any translation.
    pub original: Tuple,
    /// As answers come in: its source is the translated destination, its destination the translated source.
    pub reply: Tuple,
    /// `enum tcp_conntrack` (3 is established); `None` for other protocols and where the kernel left it out.
    pub tcp_state: Option<u8>,
    /// Time left; absent from the end of a flow.
    pub timeout: Option<Duration>,
}

impl Flow {
    /// True once traffic went both ways for real: such flows are not evicted early.
    #[must_use]
    pub fn is_assured(&self) -> bool {
        self.status & ASSURED != 0
    }

    /// True once a packet of the reply direction was seen.
    #[must_use]
    pub fn has_seen_reply(&self) -> bool {
        self.status & SEEN_REPLY != 0
    }

    /// True if it is being taken out of the table.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.status & DYING != 0
    }
}

/// What happened to a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// The first packet went through.
    New(Flow),
    /// State, status or mark changed.
    Updated(Flow),
    /// It timed out, was evicted, or was deleted.
    Destroyed(Flow),
}

/// Hears of every change to the flows of one network namespace.
///
/// The kernel makes events only for flows that began while somebody listened (`nf_conntrack_events`
/// = 2, its default): open this before the flows that matter begin.
#[derive(Debug)]
pub struct Watcher {
    socket: Socket,
    pending: VecDeque<Event>,
}

impl Watcher {
    /// Subscribes in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without `CAP_NET_ADMIN`; [`Error::Failed`] if the kernel gives no socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            socket: Socket::open(&GROUPS, WATCH_BUFFER_LEN)?,
            pending: VecDeque::new(),
        })
    }

    /// Waits for the next event. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Overrun`] if events came faster than they were read and some are lost: dump again;
    /// the watcher goes on. [`Error::Failed`] if the socket failed.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let datagram = self.socket.receive("IPCTNL_MSG_CT_NEW").await?;
            self.pending.extend(Frame::all(datagram).filter_map(event));
        }
    }
}

/// Asks for flows and changes them, in one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] if the kernel gives no socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            socket: Socket::open(&[], BUFFER_LEN)?,
        })
    }

    /// Returns the flows of a family, of all zones. One may be missing or doubled if it changed
    /// while the table was walked.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without `CAP_NET_ADMIN`, [`Error::Failed`] with whatever the kernel answered.
    pub async fn dump(&mut self, family: Family) -> Result<Vec<Flow>, Error> {
        let family = match family {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        };
        let request = |writer: &mut Writer, sequence| {
            writer.message(GET, DUMP, sequence, (family, 0), |_| {});
        };
        let operation = "IPCTNL_MSG_CT_GET";
        self.socket
            .dump(operation, "", request, |frame| flow(frame.attributes()))
            .await
    }

    /// Has the kernel tell its watchers of a TCP or UDP flow as it is, by an [`Event::Updated`]. Of a flow
    /// that makes no events they do not hear: neither now nor when it ends.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`]; [`Error::is_gone`] tells that the flow has ended.
    pub async fn announce(&mut self, flow: &Flow) -> Result<(), Error> {
        // A change of nothing is a change.
        self.change(flow, |_| {}).await
    }

    /// Has the kernel accept any sequence number of a TCP flow, in both directions: for flows some of
    /// whose segments it does not see. Doing it twice changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`]; [`Error::is_gone`] tells that the flow has ended.
    pub async fn make_liberal(&mut self, flow: &Flow) -> Result<(), Error> {
        self.change(flow, |message| {
            message.nest(PROTOCOL_INFO, |inner| {
                inner.nest(INFO_TCP, |tcp| {
                    // struct nf_ct_tcp_flags: which bits, out of which.
                    tcp.put(TCP_FLAGS_ORIGINAL, &[BE_LIBERAL, BE_LIBERAL]);
                    tcp.put(TCP_FLAGS_REPLY, &[BE_LIBERAL, BE_LIBERAL]);
                });
            });
        })
        .await
    }

    async fn change(&mut self, flow: &Flow, what: impl FnOnce(&mut Writer)) -> Result<(), Error> {
        let family = match flow.original.src {
            SocketAddr::V4(_) => AF_INET,
            SocketAddr::V6(_) => AF_INET6,
        };
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        writer.message(NEW, ACK, sequence, (family, 0), |message| {
            message.nest(TUPLE_ORIGINAL, |inner| put_tuple(inner, &flow.original));
            if flow.zone != 0 {
                message.put(ZONE, &flow.zone.to_be_bytes());
            }
            what(message);
        });
        let subject = format!("{} → {}", flow.original.src, flow.original.dst);
        self.socket
            .execute("IPCTNL_MSG_CT_NEW", &subject, &writer, sequence..=sequence)
            .await
    }
}

fn event(frame: Frame<'_>) -> Option<Event> {
    let flow = flow(frame.attributes())?;
    match frame.kind {
        // The kernel's own way to tell the two apart.
        NEW if frame.flags & CREATE != 0 => Some(Event::New(flow)),
        NEW => Some(Event::Updated(flow)),
        DELETE => Some(Event::Destroyed(flow)),
        _ => None,
    }
}

fn flow<'a>(attributes: impl Iterator<Item = Attribute<'a>>) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    let (mut id, mut zone, mut mark, mut status) = (0, 0, 0, 0);
    let (mut tcp_state, mut timeout) = (None, None);
    for attribute in attributes {
        match attribute.kind {
            TUPLE_ORIGINAL => original = tuple(&attribute),
            TUPLE_REPLY => reply = tuple(&attribute),
            STATUS => status = attribute.u32()?,
            MARK => mark = attribute.u32()?,
            ID => id = attribute.u32()?,
            ZONE => zone = attribute.u16()?,
            TIMEOUT => timeout = Some(Duration::from_secs(attribute.u32()?.into())),
            PROTOCOL_INFO => {
                tcp_state = attribute
                    .inner()
                    .filter(|info| info.kind == INFO_TCP)
                    .flat_map(|info| info.inner())
                    .find(|part| part.kind == TCP_STATE)
                    .and_then(|part| part.u8());
            }
            _ => {}
        }
    }
    Some(Flow {
        id,
        zone,
        mark,
        status,
        original: original?,
        reply: reply?,
        tcp_state,
        timeout,
    })
}

fn tuple(attribute: &Attribute<'_>) -> Option<Tuple> {
    let (mut src, mut dst) = (None, None);
    let (mut protocol, mut src_port, mut dst_port) = (None, 0, 0);
    for part in attribute.inner() {
        for field in part.inner() {
            match (part.kind, field.kind) {
                (TUPLE_IP, V4_SOURCE) => src = v4(&field),
                (TUPLE_IP, V4_DESTINATION) => dst = v4(&field),
                (TUPLE_IP, V6_SOURCE) => src = v6(&field),
                (TUPLE_IP, V6_DESTINATION) => dst = v6(&field),
                (TUPLE_PROTOCOL, PROTOCOL_NUMBER) => protocol = field.u8(),
                (TUPLE_PROTOCOL, SOURCE_PORT | ICMP_ID | ICMPV6_ID) => src_port = field.u16()?,
                (TUPLE_PROTOCOL, DESTINATION_PORT) => dst_port = field.u16()?,
                _ => {}
            }
        }
    }
    Some(Tuple {
        protocol: protocol?,
        src: SocketAddr::new(src?, src_port),
        dst: SocketAddr::new(dst?, dst_port),
    })
}

fn put_tuple(writer: &mut Writer, tuple: &Tuple) {
    writer.nest(TUPLE_IP, |ip| match (tuple.src.ip(), tuple.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ip.put(V4_SOURCE, &src.octets());
            ip.put(V4_DESTINATION, &dst.octets());
        }
        (src, dst) => {
            ip.put(V6_SOURCE, &as_v6(src).octets());
            ip.put(V6_DESTINATION, &as_v6(dst).octets());
        }
    });
    writer.nest(TUPLE_PROTOCOL, |part| {
        part.put(PROTOCOL_NUMBER, &[tuple.protocol]);
        part.put(SOURCE_PORT, &tuple.src.port().to_be_bytes());
        part.put(DESTINATION_PORT, &tuple.dst.port().to_be_bytes());
    });
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn v4(field: &Attribute<'_>) -> Option<IpAddr> {
    let octets: [u8; 4] = field.array()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6(field: &Attribute<'_>) -> Option<IpAddr> {
    let octets: [u8; 16] = field.array()?;
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuples_of_both_families_read_back() {
        for (src, dst) in [
            ("192.0.2.1:4242", "198.51.100.2:443"),
            ("[2001:db8::1]:4242", "[2001:db8::2]:443"),
        ] {
            let tuple = Tuple {
                protocol: 6,
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
            };
            let mut writer = Writer::default();
            writer.message(NEW, CREATE, 0, (0, 0), |message| {
                message.nest(TUPLE_ORIGINAL, |inner| put_tuple(inner, &tuple));
                message.nest(TUPLE_REPLY, |inner| put_tuple(inner, &tuple));
                message.put_u32(STATUS, SEEN_REPLY | ASSURED);
                message.put(ZONE, &7_u16.to_be_bytes());
            });
            let frame = Frame::all(writer.as_bytes()).next().unwrap();
            let Some(Event::New(flow)) = event(frame) else {
                panic!("not a new flow: {frame:?}")
            };
            assert_eq!((flow.original, flow.reply, flow.zone), (tuple, tuple, 7));
            assert!(flow.is_assured() && flow.has_seen_reply() && !flow.is_dying());
        }
    }
}
