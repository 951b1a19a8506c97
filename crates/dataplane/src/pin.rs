//! Pinning of the source of relayed packets, on `lo`.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::tc::TcHandle,
};
use ebpf_abi::{Direction, GLOBAL_PIN, PIN_SOURCES, PROGRAM_PIN, Part, PinPorts, PinnedSource};

use crate::{
    Attachment, DataplaneError,
    attach::{self, Hook, Place},
    memory, object,
    tables::{gone, typed, write},
};

const LOOPBACK: &str = "lo";

/// Gives the packets that the agent relays into WireGuard, from a peer's own address in 127.64.0.0/10,
/// the source of the endpoint that the agent has chosen for the peer. WireGuard takes the source of what
/// it authenticates for the peer's endpoint: so it stays where it is.
///
/// IPv4 endpoints only: a packet to 127.0.0.1 cannot come from an IPv6 address. For those the agent has
/// to send by a raw socket, to `::1`.
///
/// Dropped, it takes the program away. It does not outlive the process, which is what relays.
pub struct Pinning {
    sources: HashMap<MapData, [u8; 4], PinnedSource>,
    pinned: BTreeMap<Ipv4Addr, SocketAddrV4>,
    _hook: Hook,
    /// The attached program.
    _ebpf: Ebpf,
}

impl Pinning {
    /// Attaches the program to `lo` of the calling thread's network namespace, for packets from port
    /// `relay` to WireGuard's port `wireguard`. Nothing is pinned yet: [`set`](Self::set). What a killed
    /// process has left is replaced.
    ///
    /// # Errors
    ///
    /// As [`Counters::attach`](crate::Counters::attach).
    pub fn attach(wireguard: u16, relay: u16) -> Result<Self, DataplaneError> {
        Self::attach_as(wireguard, relay, Attachment::of_this_kernel())
    }

    /// Like [`attach`](Self::attach), but in a given way: tests run the clsact path on any kernel.
    ///
    /// # Errors
    ///
    /// As `attach`; also if this kernel does not know `kind`.
    pub fn attach_as(wireguard: u16, relay: u16, kind: Attachment) -> Result<Self, DataplaneError> {
        memory::contained(|| {
            let global = (GLOBAL_PIN, &PinPorts { wireguard, relay });
            let mut ebpf = object::load_part(&Part::PIN, None, false, global)?;
            let hook = attach::attach_at(&mut ebpf, place(wireguard), kind, None)?;
            let sources = typed(&mut ebpf, &PIN_SOURCES)?;
            object::close_maps(&mut ebpf);
            Ok(Self {
                sources,
                pinned: BTreeMap::new(),
                _hook: hook,
                _ebpf: ebpf,
            })
        })
    }

    /// Sets the source that packets from `relayed`, a peer's address in 127.64.0.0/10, get from now on;
    /// `None` leaves them as they are.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::TableFull`] with 65 536 peers, [`DataplaneError::Kernel`] if the kernel refuses
    /// to write the map.
    pub fn set(
        &mut self,
        relayed: Ipv4Addr,
        source: Option<SocketAddrV4>,
    ) -> Result<(), DataplaneError> {
        if self.pinned.get(&relayed) == source.as_ref() {
            return Ok(());
        }
        let Some(source) = source else {
            gone(self.sources.remove(&relayed.octets()), &PIN_SOURCES)?;
            self.pinned.remove(&relayed);
            return Ok(());
        };
        let value = PinnedSource {
            address: source.ip().octets(),
            port: source.port().to_be_bytes(),
            padding: [0; 2],
        };
        write(&PIN_SOURCES, || {
            self.sources.insert(relayed.octets(), value, 0)
        })?;
        self.pinned.insert(relayed, source);
        Ok(())
    }

    /// Removes what a killed process has left on `lo`; only below Linux 6.6 is there anything.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses.
    pub fn remove_leftovers(wireguard: u16) -> Result<(), DataplaneError> {
        attach::detach_filter(place(wireguard))
    }
}

impl fmt::Debug for Pinning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinning")
            .field("pinned", &self.pinned)
            .finish_non_exhaustive()
    }
}

fn place(wireguard: u16) -> Place<'static> {
    Place {
        ifname: LOOPBACK,
        program: PROGRAM_PIN,
        direction: Direction::In,
        first: true,
        handle: TcHandle::new(2, wireguard),
    }
}
