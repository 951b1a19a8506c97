//! The tunnel as its owner sees it: [`Device`].

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};

use crate::allowed::AllowedIps;
use crate::core::{Core, Identity, Table};
use crate::filter::Filter;
use crate::offloads::{OffloadState, Switches, Verdicts};
use crate::peer::{Peer, PeerStats};
use crate::relay::Relaying;
use crate::sys::{Tun, Udp};
use crate::threads::Threads;

/// One flow of packets is one worker's, and each core beyond some is idle or another's.
const MAX_WORKERS: NonZeroUsize = NonZeroUsize::new(4).expect("not zero");

/// A WireGuard device on a TUN device of its own, carried by threads of its own. It ends when dropped.
pub struct Device {
    core: Arc<Core>,
    queues: Vec<Arc<Tun>>,
    threads: Option<Threads>,
    relaying: Option<Relaying>,
    identity: Option<Arc<Identity>>,
    peers: HashMap<NodePublic, Arc<Peer>>,
    owners: HashMap<IpNet, NodePublic>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("peers", &self.peers.len())
            .field("carries", &self.threads.is_some())
            .finish_non_exhaustive()
    }
}

/// How a device is made.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Name of the TUN device.
    pub name: &'a str,
    /// Packets are padded to no more than this, in bytes; the device's own MTU is its owner's to set.
    pub mtu: u16,
    /// Threads, each with a queue of the device, a socket, and one that helps it.
    pub workers: NonZeroUsize,
    /// What is known of the kernel's offloads: what fails is not used.
    pub verdicts: &'a Verdicts,
}

impl Config<'_> {
    /// As many workers as processors, and no more than help.
    #[must_use]
    pub fn new<'a>(name: &'a str, mtu: u16, verdicts: &'a Verdicts) -> Config<'a> {
        let workers = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Config {
            name,
            mtu,
            workers: workers.min(MAX_WORKERS),
            verdicts,
        }
    }
}

impl Device {
    /// Creates the TUN device, down and without addresses; nothing is carried before [`Self::bind`]. Every packet
    /// passes `filter`.
    ///
    /// # Errors
    ///
    /// EBUSY if another process holds the device, EPERM without CAP_NET_ADMIN, ENOENT without `/dev/net/tun`,
    /// EINVAL if the name is that of another kind of device.
    pub fn create(config: Config<'_>, filter: Arc<dyn Filter>) -> io::Result<Device> {
        let switches = Arc::new(Switches::new(config.verdicts));
        let queues = Tun::create(config.name, config.workers.get(), &switches)?;
        Ok(Device {
            core: Arc::new(Core::new(config.mtu, filter, switches)),
            queues: queues.into_iter().map(Arc::new).collect(),
            threads: None,
            relaying: None,
            identity: None,
            peers: HashMap::new(),
            owners: HashMap::new(),
        })
    }

    /// Has the datagrams of relayed peers take this way, from the next [`Self::bind`] on.
    pub fn set_relaying(&mut self, relaying: Relaying) {
        self.relaying = Some(relaying);
    }

    /// Listens on `port` of both families, any if it is 0, and carries packets from now on; what is sent bears
    /// `mark`. Again, it changes to another port. Returns the port.
    ///
    /// # Errors
    ///
    /// Whatever the system answered, EADDRINUSE above all; then nothing is carried.
    pub fn bind(&mut self, port: u16, mark: u32) -> io::Result<u16> {
        self.threads = None;
        let sockets = Udp::bind(port, mark, self.queues.len(), &self.core.switches)?;
        let relaying = self.relaying.as_ref();
        let threads = Threads::start(&self.core, &self.queues, sockets, relaying)?;
        let threads = self.threads.insert(threads);
        threads.sockets()[0].port()
    }

    /// Sets the mark of what is sent from now on.
    ///
    /// # Errors
    ///
    /// EPERM without CAP_NET_ADMIN.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        let mut sockets = self.threads.iter().flat_map(Threads::sockets);
        sockets.try_for_each(|udp| udp.set_mark(mark))
    }

    /// True while packets are carried: false before [`Self::bind`], and once the TUN device was deleted.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.threads.as_ref().is_some_and(Threads::are_running)
    }

    /// Begins to change what is configured; it counts when the [`Update`] is dropped.
    pub fn update(&mut self) -> Update<'_> {
        Update {
            device: self,
            republish: false,
        }
    }

    /// What the kernel splits and joins for us, and why not the rest. Of the socket's own it is known once
    /// packets are carried.
    #[must_use]
    pub fn offloads(&self) -> [OffloadState; 4] {
        self.core.switches.states()
    }

    /// What was counted of every peer.
    pub fn peers(&self) -> impl Iterator<Item = (NodePublic, PeerStats)> {
        self.peers.iter().map(|(key, peer)| (*key, peer.stats()))
    }

    /// Every network, and whose it is.
    pub fn allowed_ips(&self) -> impl Iterator<Item = (IpNet, NodePublic)> {
        self.owners.iter().map(|(ip, owner)| (*ip, *owner))
    }

    /// What was counted of the device.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.core.counters;
        Counters {
            sent: read(&counters.sent),
            read: read(&counters.read),
            received: read(&counters.received),
            written: read(&counters.written),
            no_peer: read(&counters.no_peer),
            no_endpoint: read(&counters.no_endpoint),
            not_allowed: read(&counters.not_allowed),
            malformed: read(&counters.malformed),
            unknown: read(&counters.unknown),
            refused: read(&counters.refused),
            unsent: read(&counters.unsent),
            unwritten: read(&counters.unwritten),
        }
    }
}

/// Counts since the device was created.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Packets to peers.
    pub sent: u64,
    /// Reads of the TUN device that gave them: fewer, the more packets are in one.
    pub read: u64,
    /// Packets from peers.
    pub received: u64,
    /// Writes to the TUN device that they took.
    pub written: u64,
    /// Packets from the host to an address that no peer has.
    pub no_peer: u64,
    /// Packets to peers without an outer address.
    pub no_endpoint: u64,
    /// Packets from peers with a source that is not theirs.
    pub not_allowed: u64,
    /// What is no packet, or no WireGuard message.
    pub malformed: u64,
    /// Messages of no session or peer.
    pub unknown: u64,
    /// Messages of a peer that prove wrong: damaged, replayed, or too old.
    pub refused: u64,
    /// Packets that the kernel did not send.
    pub unsent: u64,
    /// Packets that the TUN device did not take: it is down, or refuses them.
    pub unwritten: u64,
}

/// Changes to a [`Device`], which count all at once when this is dropped.
#[derive(Debug)]
pub struct Update<'a> {
    device: &'a mut Device,
    /// More than outer addresses changed: the table that the threads hold is out of date.
    republish: bool,
}

impl Update<'_> {
    /// Says who we are; sessions end if that is somebody else.
    pub fn set_key(&mut self, key: &NodePrivate) {
        self.republish = true;
        let device = &mut *self.device;
        device.identity = Some(Arc::new(Identity::new(key)));
        for peer in device.peers.values() {
            device.core.forget(&mut peer.lock());
        }
    }

    /// Adds a peer, in place of one with the same key.
    pub fn add_peer(&mut self, key: NodePublic, endpoint: Option<SocketAddr>) {
        self.republish = true;
        let peer = Arc::new(Peer::new(key, endpoint));
        if let Some(old) = self.device.peers.insert(key, peer) {
            self.device.core.remove(&old);
        }
    }

    /// Removes a peer, its networks and sessions.
    pub fn remove_peer(&mut self, key: &NodePublic) {
        self.republish = true;
        self.device.owners.retain(|_, owner| owner != key);
        if let Some(peer) = self.device.peers.remove(key) {
            self.device.core.remove(&peer);
        }
    }

    /// Gives networks to a peer that there is, those of others too.
    pub fn add_allowed_ips(&mut self, key: &NodePublic, ips: impl IntoIterator<Item = IpNet>) {
        if self.device.peers.contains_key(key) {
            let ips = ips.into_iter().map(|ip| (ip.trunc(), *key));
            self.device.owners.extend(ips);
            self.republish = true;
        }
    }

    /// Takes all networks from a peer.
    pub fn clear_allowed_ips(&mut self, key: &NodePublic) {
        self.republish = true;
        self.device.owners.retain(|_, owner| owner != key);
    }

    /// Sets the outer address of a peer that there is.
    pub fn set_endpoint(&mut self, key: &NodePublic, endpoint: SocketAddr) {
        if let Some(peer) = self.device.peers.get(key) {
            peer.lock().endpoint = Some(endpoint);
        }
    }
}

impl Drop for Update<'_> {
    fn drop(&mut self) {
        if !self.republish {
            return;
        }
        let device = &*self.device;
        let mut routes = AllowedIps::default();
        for (net, owner) in &device.owners {
            if let Some(peer) = device.peers.get(owner) {
                routes.insert(*net, Arc::clone(peer));
            }
        }
        device.core.publish(Table {
            identity: device.identity.clone(),
            peers: device.peers.clone(),
            routes,
        });
    }
}
