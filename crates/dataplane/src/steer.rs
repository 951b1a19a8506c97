//! Steering of what is for tailnet addresses to sockets of this process, beside whoever else listens.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, SockMap},
    programs::{SkLookup, links::FdLink, sk_lookup::SkLookupLink},
};
use ebpf_abi::{
    GLOBAL_STEER_DEVICE, PROGRAM_STEER, Part, STEER_SLOTS, STEER_SOCKETS, STEER_TO, SteerKey,
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketType, netdevice::name_to_index, socket},
};

use crate::{
    DataplaneError,
    error::is_errno,
    memory, object,
    tables::{gone, typed, writing},
};

/// A transport protocol with sockets that can be steered to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// Connections, to a listening socket.
    Tcp,
    /// Datagrams, to an unconnected socket.
    Udp,
}

impl Transport {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// What comes in over the overlay device for certain addresses and ports goes to sockets of this process,
/// even if another listens there, on the unspecified address say. So do connections of the host itself
/// to its own tailnet addresses; what comes in elsewhere does not.
///
/// Dropped, nothing is steered any more. It is never pinned, as other programs are: the sockets end with
/// the process. A new overlay device, even of the same name, takes a new `Steer`.
///
/// A connection that is accepted has the address and port that it was made to. A UDP socket learns the
/// address by `IP_PKTINFO` and answers from its own port: where that is not the one steered, answers
/// have to be sent otherwise.
pub struct Steer {
    to: HashMap<MapData, SteerKey, u32>,
    sockets: SockMap<MapData>,
    slots: BTreeMap<(SocketAddr, Transport), u32>,
    _link: FdLink,
    /// The attached program.
    _ebpf: Ebpf,
}

impl Steer {
    /// Steers in the calling thread's network namespace, where `overlay` is. Nothing yet: [`add`](Self::add).
    ///
    /// # Errors
    ///
    /// As [`Counters::attach`](crate::Counters::attach).
    pub fn attach(overlay: &str) -> Result<Self, DataplaneError> {
        let device = device(overlay)?;
        memory::contained(|| {
            let global = (GLOBAL_STEER_DEVICE, &device);
            let mut ebpf = object::load_part(&Part::STEER, None, false, global)?;
            let program: &mut SkLookup = object::unloaded(&mut ebpf, PROGRAM_STEER)?;
            program
                .load()
                .map_err(|error| DataplaneError::loading(PROGRAM_STEER, error))?;
            let link = attach(program)?;
            let steer = Self {
                to: typed(&mut ebpf, &STEER_TO)?,
                sockets: typed(&mut ebpf, &STEER_SOCKETS)?,
                slots: BTreeMap::new(),
                _link: link,
                _ebpf: ebpf,
            };
            Ok(steer.closed())
        })
    }

    /// Steers what is for `address` to `socket` from now on, instead of another one it was steered to. The
    /// socket is bound to whatever it likes, of the same family: a TCP socket that listens, or a UDP one.
    /// When it is closed, the kernel chooses as if nothing were steered; [`remove`](Self::remove) it then.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::TableFull`] with 256 sockets, [`DataplaneError::Kernel`] if the kernel does not
    /// take the socket.
    pub fn add(
        &mut self,
        address: SocketAddr,
        transport: Transport,
        socket: &impl AsFd,
    ) -> Result<(), DataplaneError> {
        let name = (canonical(address), transport);
        let slot = match self.slots.get(&name) {
            Some(slot) => *slot,
            None => self.free_slot()?,
        };
        let fd = socket.as_fd().as_raw_fd();
        self.sockets
            .set(slot, &fd, 0)
            .map_err(writing(&STEER_SOCKETS))?;
        self.slots.insert(name, slot);
        self.to
            .insert(key(name), slot, 0)
            .map_err(writing(&STEER_TO))
    }

    /// Ends the steering of what is for `address`. It need not be steered.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn remove(
        &mut self,
        address: SocketAddr,
        transport: Transport,
    ) -> Result<(), DataplaneError> {
        let name = (canonical(address), transport);
        let Some(slot) = self.slots.get(&name).copied() else {
            return Ok(());
        };
        gone(self.to.remove(&key(name)), &STEER_TO)?;
        match self.sockets.clear_index(&slot) {
            // The kernel has done it, when the socket was closed.
            Err(error) if is_errno(&error, Errno::INVAL) => {}
            result => gone(result, &STEER_SOCKETS)?,
        }
        self.slots.remove(&name);
        Ok(())
    }

    fn free_slot(&self) -> Result<u32, DataplaneError> {
        let is_free = |slot: &u32| !self.slots.values().any(|taken| taken == slot);
        (0..STEER_SLOTS)
            .find(is_free)
            .ok_or(DataplaneError::TableFull {
                table: STEER_SOCKETS.name,
                limit: STEER_SLOTS,
            })
    }

    fn closed(mut self) -> Self {
        object::close_maps(&mut self._ebpf);
        self
    }
}

impl fmt::Debug for Steer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steer")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

fn device(overlay: &str) -> Result<u32, DataplaneError> {
    let index = socket(AddressFamily::INET, SocketType::DGRAM, None)
        .and_then(|socket| name_to_index(&socket, overlay));
    index.map_err(|errno| match errno {
        Errno::NODEV => DataplaneError::NoInterface(overlay.to_owned()),
        errno => DataplaneError::new(
            format!("looking for {overlay}"),
            std::io::Error::from(errno),
        ),
    })
}

fn attach(program: &mut SkLookup) -> Result<FdLink, DataplaneError> {
    let operation = || format!("attaching {PROGRAM_STEER} to the network namespace");
    let namespace = File::open("/proc/thread-self/ns/net")
        .map_err(|error| DataplaneError::new(operation(), error))?;
    let link: SkLookupLink = program
        .attach(namespace)
        .and_then(|id| program.take_link(id))
        .map_err(|error| DataplaneError::new(operation(), error))?;
    Ok(link.into())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn key((address, transport): (SocketAddr, Transport)) -> SteerKey {
    let mut octets = [0; 16];
    let version = match address.ip() {
        IpAddr::V4(address) => {
            octets[..4].copy_from_slice(&address.octets());
            4
        }
        IpAddr::V6(address) => {
            octets = address.octets();
            6
        }
    };
    SteerKey {
        address: octets,
        port: address.port(),
        protocol: transport.number(),
        version,
    }
}
