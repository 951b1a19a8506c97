//! UDP in batches: [`Udp`].

use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::packet::Packet;

use super::not_offered;
use crate::offloads::{Offload, Switches};

/// The kernel's limits for one send of several datagrams: 64 of them before 6.9, and what one datagram may hold.
const MAX_SEGMENTS: usize = 64;
const MAX_BYTES: usize = 65_507;
/// Of more messages in one call the kernel takes only the first.
const MAX_MESSAGES: usize = 1024;
/// Messages in one receive; each may hold 64 KiB of joined datagrams.
pub(crate) const RX_SLOTS: usize = 8;
const SLOT_LEN: usize = 65_536;
/// What the kernel may hold each way while a thread does not run.
const BUFFER_BYTES: libc::c_int = 8 << 20;

/// Room for one control message that holds an integer.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 64]);

/// A UDP socket on one port of both families.
#[derive(Debug)]
pub(crate) struct Udp {
    socket: UdpSocket,
    dual: bool,
    switches: Arc<Switches>,
}

impl Udp {
    /// Binds so many sockets to `port`, any if it is 0, and marks what they send. The kernel deals senders out to
    /// them; nobody else shares the port. A host without IPv6 gets IPv4 alone. An offload that the kernel turns out
    /// not to have is switched off, then or later.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; EADDRINUSE if anybody holds the port.
    pub(crate) fn bind(
        port: u16,
        mark: u32,
        sockets: usize,
        switches: &Arc<Switches>,
    ) -> io::Result<Vec<Udp>> {
        // The first one is alone, or there is none.
        let first = Udp::bind_one(port, mark, false, switches)?;
        let port = first.port()?;
        let mut all = vec![first];
        if sockets > 1 {
            all[0].share(true)?;
        }
        for _ in 1..sockets {
            all.push(Udp::bind_one(port, mark, true, switches)?);
        }
        for udp in all.iter().filter(|_| sockets > 1) {
            udp.share(false)?;
        }
        Ok(all)
    }

    /// Lets other sockets have the same port, or none from now on.
    fn share(&self, shared: bool) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, shared.into())
    }

    fn bind_one(port: u16, mark: u32, shared: bool, switches: &Arc<Switches>) -> io::Result<Udp> {
        let new = |socket, dual| Udp {
            socket,
            dual,
            switches: Arc::clone(switches),
        };
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        // SAFETY: takes numbers, returns a descriptor or -1.
        let open = |family| match unsafe { libc::socket(family, flags, 0) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the descriptor is new, and nobody else's.
            fd => Ok(UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) })),
        };
        let v6 = open(libc::AF_INET6).and_then(|socket| {
            let udp = new(socket, true);
            udp.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
            udp.share(shared)?;
            let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, port).into();
            rustix::net::bind(&udp.socket, &any)
                .map(|()| udp)
                .map_err(io::Error::from)
        });
        let udp = match v6 {
            Err(error) if no_such_family(&error) => {
                let udp = new(open(libc::AF_INET)?, false);
                udp.share(shared)?;
                let any: SocketAddr = (Ipv4Addr::UNSPECIFIED, port).into();
                rustix::net::bind(&udp.socket, &any)?;
                udp
            }
            other => other?,
        };
        udp.set_mark(mark)?;
        // Less room works as well.
        for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            if let Err(error) = udp.set(libc::SOL_SOCKET, option, BUFFER_BYTES) {
                tracing::debug!(%error, option, "the tunnel's socket goes without an option");
            }
        }
        if switches.is_on(Offload::UdpGro)
            && let Err(error) = udp.set(libc::SOL_UDP, libc::UDP_GRO, 1)
        {
            switches.turn_off(Offload::UdpGro, not_offered(&error));
        }
        Ok(udp)
    }

    /// The port it is bound to.
    pub(crate) fn port(&self) -> io::Result<u16> {
        self.socket.local_addr().map(|address| address.port())
    }

    /// Sets the mark of what is sent from now on.
    ///
    /// # Errors
    ///
    /// EPERM without CAP_NET_ADMIN.
    pub(crate) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_MARK, mark as libc::c_int)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of_val(&value) as libc::socklen_t;
        let value = ptr::from_ref(&value).cast();
        // SAFETY: the kernel reads one integer, which lives through the call.
        let result =
            unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, option, value, len) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Sends `packets` in order to where `runs` say, joined to as few messages as their lengths allow. Returns how
    /// many the kernel refused: those are lost, as on any network.
    pub(crate) fn send(
        &self,
        packets: &[Packet],
        runs: &[Run],
        scratch: &mut SendScratch,
    ) -> usize {
        let gso = self.switches.is_on(Offload::UdpSegment);
        self.send_joined(packets, runs, gso, scratch)
    }

    fn send_joined(
        &self,
        packets: &[Packet],
        runs: &[Run],
        gso: bool,
        scratch: &mut SendScratch,
    ) -> usize {
        scratch.fill(packets, runs, gso, self.dual);
        let mut lost = 0;
        let mut at = 0;
        while at < scratch.messages.len() {
            let error = match self.post(packets, scratch, at) {
                Ok(sent) => {
                    at += sent;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let (first, count, to) = scratch.groups[at];
            at += 1;
            if count == 1 {
                tracing::trace!(%error, %to, "a packet of the tunnel not sent");
                lost += 1;
                continue;
            }
            // A driver that cannot compute checksums says EIO; all else is about this path alone, such as an MTU
            // that has single packets fragmented.
            if error.raw_os_error() == Some(libc::EIO)
                && (self.switches).turn_off(
                    Offload::UdpSegment,
                    format!("the way to {to} does not take it"),
                )
            {
                tracing::warn!(%to, "the way out takes no super-packets of UDP; packets leave one by one from now on");
            }
            let run = Run { to, count };
            let again = &packets[first..first + count];
            lost += self.send_joined(again, &[run], false, &mut SendScratch::default());
        }
        lost
    }

    /// Sends packets as one message, which they have to fit; unlike [`Self::send`] not one by one where the kernel
    /// refuses that.
    ///
    /// # Errors
    ///
    /// Why it does.
    pub(crate) fn send_whole(&self, packets: &[Packet], to: SocketAddr) -> io::Result<()> {
        let mut scratch = SendScratch::default();
        let count = packets.len();
        scratch.fill(packets, &[Run { to, count }], true, self.dual);
        self.post(packets, &mut scratch, 0).map(drop)
    }

    /// Sends the messages from number `at` on that `scratch` was filled with from `_packets`; returns how many left.
    fn post(&self, _packets: &[Packet], scratch: &mut SendScratch, at: usize) -> io::Result<usize> {
        let rest = &mut scratch.messages[at..];
        let count = rest.len().min(MAX_MESSAGES) as libc::c_uint;
        let fd = self.socket.as_raw_fd();
        // SAFETY: every pointer in the messages is to memory of `scratch` or of the packets, which live on.
        let sent = unsafe { libc::sendmmsg(fd, rest.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives what is there into `ring`, without waiting; returns the number of messages.
    ///
    /// # Errors
    ///
    /// Whatever the system answered, but for there being nothing.
    pub(crate) fn receive(&self, ring: &mut RxRing) -> io::Result<usize> {
        ring.prepare();
        let RxRing { messages, .. } = ring;
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: every pointer in the messages is to memory of `ring`, set just now.
        let got = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                RX_SLOTS as libc::c_uint,
                flags as _,
                ptr::null_mut(),
            )
        };
        match usize::try_from(got) {
            Ok(got) => Ok(got),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error => Err(error),
            },
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A host without IPv6, or one where it is switched off.
fn no_such_family(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// So many packets, one after another, for one address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) to: SocketAddr,
    pub(crate) count: usize,
}

/// How many packets from the front can be one message: equal lengths, only the last may be shorter.
fn group_len(packets: &[Packet]) -> usize {
    let segment = packets[0].len();
    let mut total = segment;
    for (count, packet) in packets.iter().enumerate().skip(1) {
        let len = packet.len();
        if len > segment || count == MAX_SEGMENTS || total + len > MAX_BYTES {
            return count;
        }
        if len < segment {
            return count + 1;
        }
        total += len;
    }
    packets.len()
}

/// Memory for [`Udp::send`], kept between calls.
#[derive(Default)]
pub(crate) struct SendScratch {
    names: Vec<(libc::sockaddr_storage, libc::socklen_t)>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
    messages: Vec<libc::mmsghdr>,
    /// Of each message the first packet, their number, and where they go.
    groups: Vec<(usize, usize, SocketAddr)>,
}

// SAFETY: the pointers inside are followed only within the call that wrote them.
unsafe impl Send for SendScratch {}

impl SendScratch {
    fn fill(&mut self, packets: &[Packet], runs: &[Run], gso: bool, dual: bool) {
        self.vectors.clear();
        self.vectors
            .extend(packets.iter().map(|packet| libc::iovec {
                iov_base: packet.as_ptr().cast_mut().cast(),
                iov_len: packet.len(),
            }));
        self.groups.clear();
        let mut at = 0;
        for run in runs {
            let end = (at + run.count).min(packets.len());
            while at < end {
                let count = if gso { group_len(&packets[at..end]) } else { 1 };
                self.groups.push((at, count, run.to));
                at += count;
            }
        }
        self.names.clear();
        self.names
            .extend(self.groups.iter().map(|(_, _, to)| name(*to, dual)));
        self.controls.clear();
        self.controls.resize(self.groups.len(), Control([0; 64]));
        self.messages.clear();
        for (number, (first, count, _)) in self.groups.iter().enumerate() {
            // SAFETY: all zeros are a valid `mmsghdr`.
            let mut message: libc::mmsghdr = unsafe { zeroed() };
            let header = &mut message.msg_hdr;
            let (name, name_len) = &mut self.names[number];
            header.msg_name = ptr::from_mut(name).cast();
            header.msg_namelen = *name_len;
            header.msg_iov = self.vectors[*first..].as_mut_ptr();
            header.msg_iovlen = *count as _;
            if *count > 1 {
                let control = &mut self.controls[number].0;
                header.msg_control = control.as_mut_ptr().cast();
                // SAFETY: the control buffer is aligned, and long enough for one message of two bytes.
                unsafe {
                    header.msg_controllen = libc::CMSG_SPACE(2) as _;
                    let cmsg = &mut *libc::CMSG_FIRSTHDR(header);
                    cmsg.cmsg_level = libc::SOL_UDP;
                    cmsg.cmsg_type = libc::UDP_SEGMENT;
                    cmsg.cmsg_len = libc::CMSG_LEN(2) as _;
                    let data = libc::CMSG_DATA(cmsg).cast::<u16>();
                    data.write_unaligned(packets[*first].len() as u16);
                }
            }
            self.messages.push(message);
        }
    }
}

/// An address as the socket wants it: IPv4 in IPv6 where the socket is of both families.
fn name(to: SocketAddr, dual: bool) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeros are a valid `sockaddr_storage`.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let v6 = |address: Ipv6Addr, scope: u32| libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: to.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr {
            s6_addr: address.octets(),
        },
        sin6_scope_id: scope,
    };
    let storage_at = ptr::from_mut(&mut storage);
    let len = match to {
        SocketAddr::V4(v4) if !dual => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is large and aligned enough for every kind of address.
            unsafe { storage_at.cast::<libc::sockaddr_in>().write(name) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V4(v4) => {
            let name = v6(v4.ip().to_ipv6_mapped(), 0);
            // SAFETY: as above.
            unsafe { storage_at.cast::<libc::sockaddr_in6>().write(name) };
            size_of::<libc::sockaddr_in6>()
        }
        SocketAddr::V6(address) => {
            let name = v6(*address.ip(), address.scope_id());
            // SAFETY: as above.
            unsafe { storage_at.cast::<libc::sockaddr_in6>().write(name) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

/// Memory for [`Udp::receive`].
pub(crate) struct RxRing {
    slots: Vec<BytesMut>,
    vectors: [libc::iovec; RX_SLOTS],
    messages: [libc::mmsghdr; RX_SLOTS],
    names: [libc::sockaddr_storage; RX_SLOTS],
    controls: [Control; RX_SLOTS],
}

// SAFETY: the pointers inside are written anew before each call that follows them.
unsafe impl Send for RxRing {}

impl RxRing {
    pub(crate) fn new() -> RxRing {
        RxRing {
            slots: (0..RX_SLOTS).map(|_| BytesMut::zeroed(SLOT_LEN)).collect(),
            // SAFETY: all zeros are valid for these structs of C.
            vectors: unsafe { zeroed() },
            // SAFETY: as above.
            messages: unsafe { zeroed() },
            // SAFETY: as above.
            names: unsafe { zeroed() },
            controls: [Control([0; 64]); RX_SLOTS],
        }
    }

    fn prepare(&mut self) {
        for number in 0..RX_SLOTS {
            let slot = &mut self.slots[number];
            slot.clear();
            // Not to be had back while a packet of it lives on, queued for a handshake.
            if !slot.try_reclaim(SLOT_LEN) {
                *slot = BytesMut::zeroed(SLOT_LEN);
                slot.clear();
            }
            self.vectors[number] = libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: SLOT_LEN,
            };
            let header = &mut self.messages[number].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[number]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = ptr::from_mut(&mut self.vectors[number]);
            header.msg_iovlen = 1;
            header.msg_control = self.controls[number].0.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
    }

    /// Takes the datagrams of message `number`, which the last [`Udp::receive`] must have filled; `None` if its
    /// sender's address is of no family we know.
    pub(crate) fn take(
        &mut self,
        number: usize,
    ) -> Option<(SocketAddr, impl Iterator<Item = BytesMut> + use<>)> {
        let message = &self.messages[number];
        let len = (message.msg_len as usize).min(SLOT_LEN);
        let mut segment = len;
        // SAFETY: the kernel wrote the control messages; UDP_GRO's holds an int.
        unsafe {
            let mut cmsg = libc::CMSG_FIRSTHDR(&raw const message.msg_hdr);
            while let Some(header) = cmsg.as_ref() {
                if header.cmsg_level == libc::SOL_UDP && header.cmsg_type == libc::UDP_GRO {
                    let size = libc::CMSG_DATA(cmsg).cast::<libc::c_int>();
                    segment = usize::try_from(size.read_unaligned()).unwrap_or(len);
                }
                cmsg = libc::CMSG_NXTHDR(&raw const message.msg_hdr, cmsg);
            }
        }
        let from = address(&self.names[number])?;
        let slot = &mut self.slots[number];
        // SAFETY: there is room for SLOT_LEN bytes, and all were written when the slot was made.
        unsafe { slot.set_len(len) };
        let mut rest = slot.split();
        let datagrams = std::iter::from_fn(move || {
            let next = rest.split_to(segment.min(rest.len()));
            (!next.is_empty()).then_some(next)
        });
        Some((from, datagrams))
    }
}

/// The sender's address as the kernel wrote it; IPv4 in IPv6 is IPv4.
fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let at = ptr::from_ref(storage);
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: of this family the kernel writes a `sockaddr_in`, which is smaller.
            let name = unsafe { at.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: of this family the kernel writes a `sockaddr_in6`, which is smaller.
            let name = unsafe { at.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(match ip.to_ipv4_mapped() {
                Some(ip) => SocketAddrV4::new(ip, port).into(),
                None => SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(port: u16) -> io::Result<Udp> {
        Udp::bind(port, 0, 1, &Arc::default()).map(|mut all| all.remove(0))
    }

    /// Sends packets of these lengths, each filled with its number, and returns those that arrive.
    fn through(from: &Udp, to: SocketAddr, at: &Udp, lens: &[usize]) -> Vec<(SocketAddr, Vec<u8>)> {
        let packets: Vec<Packet> = lens
            .iter()
            .enumerate()
            .map(|(number, len)| Packet::from_bytes(BytesMut::from(&vec![number as u8; *len][..])))
            .collect();
        let count = packets.len();
        let lost = from.send(&packets, &[Run { to, count }], &mut SendScratch::default());
        assert_eq!(lost, 0);
        let mut ring = RxRing::new();
        let mut arrived = Vec::new();
        // On loopback what was sent is there.
        while arrived.len() < count {
            let got = at.receive(&mut ring).unwrap();
            assert!(got > 0, "{} of {count} arrived", arrived.len());
            for number in 0..got {
                let (from, datagrams) = ring.take(number).unwrap();
                arrived.extend(datagrams.map(|datagram| (from, datagram.to_vec())));
            }
        }
        arrived
    }

    #[test]
    fn batches_arrive_whole_in_order_and_by_their_sender() {
        let (a, b) = (bind(0).unwrap(), bind(0).unwrap());
        // Trains of more than one message, lone packets, a short one within.
        let mut lens = vec![1312; 150];
        lens.extend([400, 1312, 1312, 60, 60, 1400]);
        lens.extend(vec![92; 70]);
        for host in ["127.0.0.1", "[::1]"] {
            let address = |udp: &Udp| -> SocketAddr {
                format!("{host}:{}", udp.port().unwrap()).parse().unwrap()
            };
            let arrived = through(&a, address(&b), &b, &lens);
            for (number, (from, datagram)) in arrived.iter().enumerate() {
                assert_eq!(*from, address(&a));
                assert_eq!(datagram[..], vec![number as u8; lens[number]][..]);
            }
        }
    }

    #[test]
    fn a_port_is_taken_once_in_both_families() {
        for sockets in [1, 3] {
            let first = Udp::bind(0, 0, sockets, &Arc::default()).unwrap();
            let port = first[0].port().unwrap();
            assert_eq!(first.len(), sockets);
            for again in [1, 2] {
                let error = Udp::bind(port, 0, again, &Arc::default()).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            }
            drop(first);
            assert_eq!(bind(port).unwrap().port().unwrap(), port);
        }
    }

    #[test]
    fn what_is_too_long_is_lost_and_the_rest_is_not() {
        let (a, b) = (bind(0).unwrap(), bind(0).unwrap());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port().unwrap()));
        let packet = |len: usize| Packet::from_bytes(BytesMut::zeroed(len));
        let packets = [packet(100), packet(65_536), packet(50)];
        let runs = [Run { to, count: 3 }];
        assert_eq!(a.send(&packets, &runs, &mut SendScratch::default()), 1);
        let mut ring = RxRing::new();
        let got = b.receive(&mut ring).unwrap();
        let lens: Vec<usize> = (0..got)
            .filter_map(|number| ring.take(number))
            .flat_map(|(_, datagrams)| datagrams.map(|datagram| datagram.len()))
            .collect();
        assert_eq!(lens, [100, 50]);
    }
}
