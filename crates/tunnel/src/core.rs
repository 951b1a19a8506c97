//! What both directions share: peers, their sessions, counters. No sockets here.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use gotatun::noise::Tunn;
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::{Packet, WgKind};
use gotatun::x25519::{PublicKey, StaticSecret};
use keys::{NodePrivate, NodePublic};

use crate::allowed::AllowedIps;
use crate::batch::Batch;
use crate::filter::Filter;
use crate::offloads::Switches;
use crate::peer::{Peer, State};

/// Handshakes a second from one address before it has to show by a cookie that it is there.
const HANDSHAKES_PER_SECOND: u64 = 100;

/// Who we are.
pub(crate) struct Identity {
    pub(crate) secret: StaticSecret,
    pub(crate) public: PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(key: &NodePrivate) -> Identity {
        let secret = StaticSecret::from(*key.as_bytes());
        let public = PublicKey::from(&secret);
        Identity {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND)),
            secret,
            public,
        }
    }
}

/// What is configured; replaced as a whole.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) peers: HashMap<NodePublic, Arc<Peer>>,
    pub(crate) routes: AllowedIps<Arc<Peer>>,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) no_peer: AtomicU64,
    pub(crate) no_endpoint: AtomicU64,
    pub(crate) not_allowed: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) unsent: AtomicU64,
    pub(crate) unwritten: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) written: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

/// Everything but sockets and threads.
pub(crate) struct Core {
    table: RwLock<Arc<Table>>,
    /// Raised with each new table: whoever holds one looks here whether it is still the present one.
    generation: AtomicU64,
    /// Our session indices: whose they are.
    indices: RwLock<HashMap<u32, Arc<Peer>>>,
    index_table: IndexTable,
    /// Peers whose timers run.
    awake: Mutex<Vec<Arc<Peer>>>,
    pub(crate) filter: Arc<dyn Filter>,
    pub(crate) mtu: usize,
    pub(crate) switches: Arc<Switches>,
    pub(crate) counters: Counters,
}

impl Core {
    pub(crate) fn new(mtu: u16, filter: Arc<dyn Filter>, switches: Arc<Switches>) -> Core {
        Core {
            table: RwLock::default(),
            generation: AtomicU64::new(0),
            indices: RwLock::default(),
            index_table: IndexTable::from_os_rng(),
            awake: Mutex::default(),
            filter,
            mtu: mtu.into(),
            switches,
            counters: Counters::default(),
        }
    }

    /// Replaces what is configured.
    pub(crate) fn publish(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&table)
    }

    /// Makes `table` the present one if it is not.
    pub(crate) fn refresh(&self, table: &mut View) {
        let generation = self.generation.load(Ordering::Acquire);
        if table.generation != generation {
            *table = View {
                generation,
                table: self.table(),
            };
        }
    }

    /// Whose session index this is.
    pub(crate) fn by_index(&self, index: u32) -> Option<Arc<Peer>> {
        let indices = self.indices.read().unwrap_or_else(PoisonError::into_inner);
        indices.get(&index).cloned()
    }

    /// The sessions of a peer, made when first asked for; `None` if it was removed or nobody said who we are.
    pub(crate) fn session<'a>(
        &self,
        identity: Option<&Identity>,
        peer: &Arc<Peer>,
        state: &'a mut State,
    ) -> Option<&'a mut Tunn> {
        let wakes = peer.wake();
        if state.removed {
            return None;
        }
        if state.tunn.is_none() {
            let identity = identity?;
            let tunn = Tunn::new(
                identity.secret.clone(),
                PublicKey::from(*peer.key.as_bytes()),
                None,
                None,
                self.index_table.clone(),
                Arc::clone(&identity.limiter),
            );
            state.tunn = Some(Box::new(tunn));
        }
        let tunn = state.tunn.as_deref_mut()?;
        if wakes {
            // Its clock stood still. What is due after such a time is nothing but the end of what was.
            let _ = tunn.update_timers();
            self.awake().push(Arc::clone(peer));
        }
        Some(tunn)
    }

    /// Notes what a message to a peer begins, before it leaves: the answer names it.
    pub(crate) fn note(&self, peer: &Arc<Peer>, state: &mut State, message: &WgKind) {
        let index = match message {
            WgKind::HandshakeInit(message) => message.sender_idx.get(),
            WgKind::HandshakeResp(message) => message.sender_idx.get(),
            WgKind::CookieReply(_) | WgKind::Data(_) => return,
        };
        let old = state.note_index(index);
        let mut indices = self.indices.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = old {
            indices.remove(&old);
        }
        indices.insert(index, Arc::clone(peer));
    }

    /// Ends a peer: what was under way for it leads nowhere.
    pub(crate) fn remove(&self, peer: &Peer) {
        let mut state = peer.lock();
        state.removed = true;
        self.forget(&mut state);
    }

    /// Drops the sessions of a peer.
    pub(crate) fn forget(&self, state: &mut State) {
        state.tunn = None;
        let mut indices = self.indices.write().unwrap_or_else(PoisonError::into_inner);
        for index in state.indices.drain(..) {
            indices.remove(&index);
        }
    }

    /// Runs the timers of all peers that have any, and puts what is due into `out`. Call it every 250 ms or so.
    pub(crate) fn tick(&self, out: &mut Batch) {
        if let Some(identity) = &self.table().identity {
            identity.limiter.try_reset_count();
        }
        let awake = std::mem::take(&mut *self.awake());
        let ticking = awake.into_iter().filter(|peer| self.tick_peer(peer, out));
        let ticking: Vec<_> = ticking.collect();
        self.awake().extend(ticking);
    }

    /// True if the timers of the peer have to go on.
    fn tick_peer(&self, peer: &Arc<Peer>, out: &mut Batch) -> bool {
        let mut state = peer.lock();
        let due = match state.tunn.as_mut().map(|tunn| tunn.update_timers()) {
            None | Some(Err(WireGuardError::ConnectionExpired)) => {
                peer.rest();
                return false;
            }
            Some(Ok(due)) => due,
            Some(Err(error)) => {
                tracing::debug!(?error, peer = %peer.key, "the tunnel's timers");
                None
            }
        };
        if let Some((message, endpoint)) = due.zip(state.endpoint) {
            self.note(peer, &mut state, &message);
            self.count_sent(&message);
            out.push(endpoint, Packet::from(message));
        }
        true
    }

    /// Counts a packet of a peer that the tunnel sends by itself: a keepalive, or one that waited for a session.
    pub(crate) fn count_sent(&self, message: &WgKind) {
        if matches!(message, WgKind::Data(_)) {
            count(&self.counters.sent, 1);
        }
    }

    fn awake(&self) -> MutexGuard<'_, Vec<Arc<Peer>>> {
        self.awake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A table that is held while it is the present one.
pub(crate) struct View {
    generation: u64,
    pub(crate) table: Arc<Table>,
}

impl View {
    pub(crate) fn new(core: &Core) -> View {
        // Older than any: the first refresh replaces it.
        let mut view = View {
            generation: u64::MAX,
            table: Arc::default(),
        };
        core.refresh(&mut view);
        view
    }
}

/// Where an IP packet comes from and goes to; `None` if it is none.
pub(crate) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let (source, rest) = packet.get(12..)?.split_first_chunk::<4>()?;
            let destination = rest.first_chunk::<4>()?;
            Some((
                Ipv4Addr::from(*source).into(),
                Ipv4Addr::from(*destination).into(),
            ))
        }
        6 => {
            let (source, rest) = packet.get(8..)?.split_first_chunk::<16>()?;
            let destination = rest.first_chunk::<16>()?;
            Some((
                Ipv6Addr::from(*source).into(),
                Ipv6Addr::from(*destination).into(),
            ))
        }
        _ => None,
    }
}
