//! Flows between the overlay and other devices, past the network stack.
//!
//! The stack decides about the first packets of a flow: conntrack, NAT, the host's firewall. Whoever
//! watches conntrack then says so here, once for each direction, and the programs do the rest:
//! `forward_in` on the overlay, `nic_in` on the devices of [`Forward::enable`]. What only the stack can
//! do still takes it: the ends of TCP connections, fragments, ICMP errors, what is too large or at the
//! end of its hop limit, and one packet of each direction every [`STACK_INTERVAL`].

mod nics;
mod routes;
mod table;

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, ProgramArray},
    programs::ProgramError,
};
use ebpf_abi::{
    Count, Direction, FORWARDED, FORWARDERS, Forwarded, OVERLAY_MTU, Origin, PROGRAM_FORWARD_IN,
    PROGRAM_FORWARD_OUT, forwarded_slot,
};

use crate::{
    Attachment, DataplaneError, object,
    pins::Pins,
    tables::{gone, reading, typed, writing},
};
use ipnet::IpNet;
use nics::Nics;
pub(crate) use nics::detach_everywhere;

pub use nics::{Layer, Nic};
use routes::RouteCounts;
use table::Table;

/// How packets of one direction of a flow come in.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OffloadKey {
    /// Where.
    pub origin: Origin,
    /// IP protocol: TCP, UDP, ICMP or ICMPv6.
    pub protocol: u8,
    /// Source. Of an echo, the side that asks has the identifier for a port and the other 0.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
}

/// One direction of a flow whose packets are to go past the stack.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offload {
    /// How they come in.
    pub key: OffloadKey,
    /// Source that they leave with.
    pub src: SocketAddr,
    /// Destination that they leave with.
    pub dst: SocketAddr,
    /// Number of the device on which they leave: to peers, the overlay's; from peers, the one that the
    /// routes must say, or 0 for any.
    pub out: u32,
    /// Bytes that a packet may have there; from peers, 0 leaves that to the routes.
    pub mtu: u16,
    /// How long conntrack remembers the flow without a packet, in whole seconds: after that the stack
    /// has to see it again.
    pub idle: Duration,
}

/// The forward table and what it takes, of one loaded object.
pub(crate) struct Forwarder {
    table: Table,
    programs: ProgramArray<MapData>,
    mtu: Array<MapData, u32>,
    counts: PerCpuArray<MapData, Count>,
    routes: RouteCounts,
    nics: Nics,
}

impl Forwarder {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            table: Table::take(ebpf)?,
            programs: typed(ebpf, &FORWARDERS)?,
            mtu: typed(ebpf, &OVERLAY_MTU)?,
            counts: typed(ebpf, &FORWARDED)?,
            routes: RouteCounts::take(ebpf)?,
            nics: Nics::default(),
        })
    }

    pub(crate) fn table(&mut self) -> &mut Table {
        &mut self.table
    }

    /// Has the overlay programs go on with those that forward.
    pub(crate) fn join(&mut self, ebpf: &mut Ebpf, mtu: u16) -> Result<(), DataplaneError> {
        self.mtu
            .set(0, u32::from(mtu), 0)
            .map_err(writing(&OVERLAY_MTU))?;
        for (direction, name) in [
            (Direction::In, PROGRAM_FORWARD_IN),
            (Direction::Out, PROGRAM_FORWARD_OUT),
        ] {
            let program = object::program(ebpf, name)?;
            let fd = program
                .fd()
                .map_err(|error: ProgramError| DataplaneError::loading(name, error))?;
            let set = self.programs.set(direction as u32, fd, 0);
            set.map_err(writing(&FORWARDERS))?;
        }
        Ok(())
    }

    fn part(&mut self) -> Result<(), DataplaneError> {
        for direction in Direction::ALL {
            let cleared = self.programs.clear_index(&(direction as u32));
            gone(cleared, &FORWARDERS)?;
        }
        Ok(())
    }

    pub(crate) fn route_counts(&self) -> Result<BTreeMap<IpNet, [Count; 2]>, DataplaneError> {
        self.routes.read()
    }

    pub(crate) fn counts(&self) -> Result<BTreeMap<(Origin, Forwarded), Count>, DataplaneError> {
        let mut counts = BTreeMap::new();
        for origin in Origin::ALL {
            for outcome in Forwarded::ALL {
                let slot = forwarded_slot(origin, outcome);
                let per_cpu = self.counts.get(&slot, 0).map_err(reading(&FORWARDED))?;
                let mut sum = Count::default();
                per_cpu.iter().for_each(|count| sum += *count);
                counts.insert((origin, outcome), sum);
            }
        }
        Ok(counts)
    }
}

/// The forwarding side of a [`Dataplane`](crate::Dataplane).
///
/// Pinned, it goes on without the process: known flows stay past the stack, new ones take it.
pub struct Forward<'a> {
    pub(crate) forwarder: &'a mut Forwarder,
    pub(crate) ebpf: &'a mut Ebpf,
    pub(crate) ifname: &'a str,
    pub(crate) kind: Attachment,
    pub(crate) pin_dir: Option<&'a Path>,
}

impl Forward<'_> {
    /// Has packets of known flows pass the stack by, between the overlay device, which carries packets
    /// of `mtu` bytes, and `nics`, and no others. TCP is told to keep to that size in both directions.
    /// Call it again when any of that changes, and when devices come and go; those that are not there
    /// are left out.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses a program or an attachment; what was done until
    /// then stays.
    pub fn enable(&mut self, mtu: u16, nics: &[Nic]) -> Result<(), DataplaneError> {
        let pins = self.pin_dir.map(Pins::at);
        let Forwarder { nics: attached, .. } = self.forwarder;
        attached.set(self.ebpf, self.ifname, self.kind, pins.as_ref(), nics)?;
        self.forwarder.join(self.ebpf, mtu)
    }

    /// Counts packets of flows for each of `routes`, the served ones, of which the longest that holds the end
    /// behind this host counts. The first 63 are counted, each from zero if the list is another than before.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn count_routes(&mut self, routes: &[IpNet]) -> Result<(), DataplaneError> {
        let Forwarder {
            routes: counts,
            table,
            ..
        } = self.forwarder;
        if counts.set(routes)? {
            table.renumber(|offload| counts.of(offload))?;
        }
        Ok(())
    }

    /// Names of the devices other than the overlay's whose packets may go past the stack.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.forwarder.nics.names()
    }

    /// Has every packet take the stack again, and forgets all flows. Again is fine.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    pub fn disable(&mut self) -> Result<(), DataplaneError> {
        self.forwarder.part()?;
        let pins = self.pin_dir.map(Pins::at);
        let Forwarder { nics, table, .. } = self.forwarder;
        nics.set(self.ebpf, self.ifname, self.kind, pins.as_ref(), &[])?;
        table.clear()
    }

    /// Has packets of one direction of a flow go past the stack, one of which has just taken it. Call it
    /// for both directions; an entry of the same key is replaced.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::TableFull`] beyond 65 536 entries of a family.
    /// [`DataplaneError::MixedFamilies`] for addresses of both.
    pub fn offload(&mut self, offload: &Offload) -> Result<(), DataplaneError> {
        let route = self.forwarder.routes.of(offload);
        self.forwarder.table.insert(offload, route)
    }

    /// Has packets of one direction of a flow take the stack again; nothing being there is fine.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn remove(&mut self, key: &OffloadKey) -> Result<(), DataplaneError> {
        self.forwarder.table.remove(key)
    }

    /// Reads the whole table, without flows that the programs found to have ended.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn dump(&self) -> Result<Vec<Offload>, DataplaneError> {
        self.forwarder.table.dump()
    }

    /// Has packets of all flows take the stack again.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn clear(&mut self) -> Result<(), DataplaneError> {
        self.forwarder.table.clear()
    }

    /// Reads what became of the packets of known flows, by where they came in.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn counts(&self) -> Result<BTreeMap<(Origin, Forwarded), Count>, DataplaneError> {
        self.forwarder.counts()
    }
}

impl std::fmt::Debug for Forward<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forward")
            .field("ifname", &self.ifname)
            .field("nics", &self.forwarder.nics)
            .finish_non_exhaustive()
    }
}
