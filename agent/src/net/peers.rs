//! The peers as the packet path looks them up: by key, by synthetic address, by overlay address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::Instant;

use keys::{DiscoPublic, NodePublic};
use node_core::RegionId;

use super::traffic::{Regions, RelayTally};

/// Between two words about packets to one peer, in milliseconds.
const TELL_EVERY: u64 = 1_000;

/// Where the clock of [`Peer::is_worth_telling`] starts.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Node key.
    pub(crate) key: NodePublic,
    /// Synthetic address by which WireGuard knows it.
    pub(crate) address: Ipv4Addr,
    /// Home region.
    pub(crate) home: Option<RegionId>,
    /// Disco key.
    pub(crate) disco: Option<DiscoPublic>,
    /// What went through relays.
    pub(crate) relayed: Arc<RelayTally>,
    /// Overlay addresses that are its alone.
    overlay: Vec<IpAddr>,
    /// When it was last worth telling of packets to it, in milliseconds; 0 for never.
    told: AtomicU64,
}

impl Peer {
    /// Describes a peer.
    pub(crate) fn new(
        key: NodePublic,
        address: Ipv4Addr,
        home: Option<RegionId>,
        disco: Option<DiscoPublic>,
    ) -> Self {
        Self {
            key,
            address,
            home,
            disco,
            relayed: Arc::default(),
            overlay: Vec::new(),
            told: AtomicU64::new(0),
        }
    }

    /// With these overlay addresses.
    pub(crate) fn with_overlay(self, overlay: Vec<IpAddr>) -> Self {
        Self { overlay, ..self }
    }

    /// Says whether it is news that something was sent to the peer: at most once a second.
    pub(crate) fn is_worth_telling(&self) -> bool {
        let now = START.elapsed().as_millis() as u64 + 1;
        let told = self.told.load(Ordering::Relaxed);
        let is_news = told == 0 || now.saturating_sub(told) >= TELL_EVERY;
        if is_news {
            self.told.store(now, Ordering::Relaxed);
        }
        is_news
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.key, self.address, self.home, self.disco)
            == (other.key, other.address, other.home, other.disco)
            && self.overlay == other.overlay
    }
}

/// All peers at one moment.
#[derive(Debug, Default)]
pub(crate) struct Table {
    by_key: HashMap<NodePublic, Arc<Peer>>,
    by_address: HashMap<Ipv4Addr, Arc<Peer>>,
    by_overlay: HashMap<IpAddr, Arc<Peer>>,
}

impl Table {
    /// Looks a peer up by node key.
    pub(crate) fn by_key(&self, key: &NodePublic) -> Option<&Arc<Peer>> {
        self.by_key.get(key)
    }

    /// Looks a peer up by synthetic address.
    pub(crate) fn by_address(&self, address: Ipv4Addr) -> Option<&Arc<Peer>> {
        self.by_address.get(&address)
    }

    /// Looks a peer up by one of its own overlay addresses.
    pub(crate) fn by_overlay(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.by_overlay.get(&address)
    }
}

/// The current [`Table`], shared between those who replace it and those who read it per batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    table: Arc<RwLock<Arc<Table>>>,
    /// What went through relays, by region.
    pub(crate) regions: Regions,
}

impl Peers {
    /// Returns the table as it is now.
    pub(crate) fn snapshot(&self) -> Arc<Table> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the table; peers that did not change stay as they are.
    pub(crate) fn replace(&self, peers: impl Iterator<Item = Peer>) {
        let old = self.snapshot();
        let mut table = Table::default();
        for peer in peers {
            let peer = match old.by_key(&peer.key) {
                Some(same) if same.is_same(&peer) => same.clone(),
                Some(changed) => Arc::new(Peer {
                    relayed: changed.relayed.clone(),
                    ..peer
                }),
                _ => Arc::new(peer),
            };
            table.by_address.insert(peer.address, peer.clone());
            let overlay = peer.overlay.iter();
            table
                .by_overlay
                .extend(overlay.map(|ip| (*ip, peer.clone())));
            table.by_key.insert(peer.key, peer);
        }
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }
}
