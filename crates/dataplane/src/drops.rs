//! Dropped packets, one by one, as the programs report them.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, RingBuf},
};
use ebpf_abi::{
    DROPS, DROPS_LOST, DROPS_WANTED, Direction, DropEvent, DropReason, NOBODY, PeerIndex,
};

use crate::{
    DataplaneError,
    tables::{reading, typed, writing},
};

/// A packet that the filter dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dropped {
    /// When, since boot, suspension included; exact to the kernel's tick.
    pub at: Duration,
    /// Number of the rules that judged it: higher with every change of rules or peers.
    pub generation: u64,
    /// Where it was going.
    pub direction: Direction,
    /// Why it was dropped.
    pub reason: DropReason,
    /// Source and destination, each with its port if the protocol has ports and they could be read, else
    /// with 0. `None` for what is no IP packet.
    pub addresses: Option<[SocketAddr; 2]>,
    /// IP protocol number; 0 if it could not be read.
    pub protocol: u8,
    /// It asked for a TCP connection.
    pub opens: bool,
    /// The peer at the other end.
    pub peer: Option<PeerIndex>,
}

impl Dropped {
    /// Reads what a program wrote; `None` if it was none of ours.
    fn read(bytes: &[u8]) -> Option<Self> {
        let event = DropEvent::from_bytes(bytes)?;
        let mut reasons = DropReason::ALL.into_iter();
        let mut directions = Direction::ALL.into_iter();
        let address = |octets: [u8; 16]| match (event.version, octets) {
            (4, [a, b, c, d, ..]) => Some(IpAddr::from([a, b, c, d])),
            (6, octets) => Some(IpAddr::from(octets)),
            _ => None,
        };
        let end = |octets, port| Some(SocketAddr::new(address(octets)?, port));
        let src = end(event.src, event.src_port);
        let dst = end(event.dst, event.dst_port);
        Some(Self {
            at: Duration::from_nanos(event.time),
            generation: event.generation,
            direction: directions.find(|direction| *direction as u8 == event.direction)?,
            reason: reasons.find(|reason| *reason as u8 == event.reason)?,
            addresses: src.zip(dst).map(<[SocketAddr; 2]>::from),
            protocol: event.protocol,
            opens: event.opens != 0,
            peer: (event.peer != NOBODY).then_some(event.peer),
        })
    }

    /// Why no rule let the packet pass, in a few words for people.
    #[must_use]
    pub fn why(&self) -> &'static str {
        why_dropped(self.reason)
    }
}

/// Why a packet is dropped for this reason, in a few words for people.
#[must_use]
pub fn why_dropped(reason: DropReason) -> &'static str {
    match reason {
        DropReason::NoRule => "no rule admits it",
        DropReason::NoFlow => "no connection of ours, and no rule admits it",
        DropReason::ShieldsUp => "shields are up: peers may answer, not initiate",
        DropReason::Jailed => "the peer is jailed: it may answer, not initiate",
        DropReason::NotLocal => "the destination is neither ours nor behind us",
        DropReason::EchoReply => "an echo reply that nobody here asked for",
        DropReason::IcmpError => "an ICMP error about no flow of ours",
        DropReason::Fragment => "a fragment of a packet whose first was not accepted",
        DropReason::KeyExpired => "our own key has expired: log in again",
        DropReason::PeerExpired => "the peer's key has expired",
        DropReason::NoPolicy => "no policy has been put in force yet",
        DropReason::TsmpFromHost => "only the agent may send TSMP",
        DropReason::Multicast => "multicast is not carried",
        DropReason::LinkLocal => "link-local addresses are not carried",
        DropReason::NotIp
        | DropReason::Truncated
        | DropReason::TransportCut
        | DropReason::FragmentTiny
        | DropReason::ExtensionHeader
        | DropReason::BadProtocol => "malformed, or of a form that is not judged",
    }
}

/// Reports of dropped packets, for one reader at a time.
///
/// Requests for IPv4 TCP connections from peers are always reported, up to
/// [`SYNS_A_SECOND`](ebpf_abi::SYNS_A_SECOND) for each CPU; everything only after
/// [`want_all`](Self::want_all). For an event loop: the descriptor is readable when
/// [`try_next`](Self::try_next) has something.
pub struct Drops {
    ring: RingBuf<MapData>,
    wanted: Array<MapData, u32>,
    lost: PerCpuArray<MapData, u64>,
}

impl Drops {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            ring: typed(ebpf, &DROPS)?,
            wanted: typed(ebpf, &DROPS_WANTED)?,
            lost: typed(ebpf, &DROPS_LOST)?,
        })
    }

    /// Says whether every dropped packet is to be reported. It stays so until told otherwise, also
    /// across processes.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn want_all(&mut self, all: bool) -> Result<(), DataplaneError> {
        self.wanted
            .set(0, u32::from(all), 0)
            .map_err(writing(&DROPS_WANTED))
    }

    /// How many reports were lost since the programs were loaded first, for want of somebody who reads.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn lost(&self) -> Result<u64, DataplaneError> {
        let per_cpu = self.lost.get(&0, 0).map_err(reading(&DROPS_LOST))?;
        Ok(per_cpu.iter().sum())
    }

    /// The next report, if there is one.
    pub fn try_next(&mut self) -> Option<Dropped> {
        while let Some(item) = self.ring.next() {
            if let Some(dropped) = Dropped::read(&item) {
                return Some(dropped);
            }
        }
        None
    }
}

impl AsRawFd for Drops {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsFd for Drops {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl std::fmt::Debug for Drops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drops").finish_non_exhaustive()
    }
}
