//! One peer: [`Peer`].

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gotatun::noise::Tunn;
use keys::NodePublic;

/// Session indices of one peer that are told apart: its eight sessions, and what it tries in the 90 seconds
/// after which a handshake is given up.
const MAX_INDICES: usize = 32;

/// What was counted of a peer, and how it is reached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerStats {
    /// Outer address in use.
    pub endpoint: Option<SocketAddr>,
    /// WireGuard bytes received.
    pub rx_bytes: u64,
    /// WireGuard bytes sent.
    pub tx_bytes: u64,
    /// When a session was last made.
    pub last_handshake: Option<SystemTime>,
}

/// A peer. Its sessions cost memory from the first packet on, so one that nobody talks to has none.
pub(crate) struct Peer {
    pub(crate) key: NodePublic,
    state: Mutex<State>,
    /// Its timers run.
    awake: AtomicBool,
}

/// What both directions need; `Tunn` wants to be alone for each.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) tunn: Option<Box<Tunn>>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) last_handshake: Option<SystemTime>,
    /// The newest of our session indices, oldest first.
    pub(crate) indices: VecDeque<u32>,
    /// It was removed: nothing may be made for it any more.
    pub(crate) removed: bool,
}

impl Peer {
    pub(crate) fn new(key: NodePublic, endpoint: Option<SocketAddr>) -> Peer {
        let state = State {
            endpoint,
            ..State::default()
        };
        Peer {
            key,
            state: Mutex::new(state),
            awake: AtomicBool::new(false),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic left half done is a session at most, which the next handshake replaces.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the timers run; true if they did not.
    pub(crate) fn wake(&self) -> bool {
        !self.awake.load(Ordering::Relaxed) && !self.awake.swap(true, Ordering::Relaxed)
    }

    /// The timers have nothing to do until it is woken.
    pub(crate) fn rest(&self) {
        self.awake.store(false, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> PeerStats {
        let state = self.lock();
        let mut stats = PeerStats {
            endpoint: state.endpoint,
            last_handshake: state.last_handshake,
            ..PeerStats::default()
        };
        if let Some(tunn) = &state.tunn {
            let (_, tx, rx, ..) = tunn.stats();
            stats.tx_bytes = tx as u64;
            stats.rx_bytes = rx as u64;
        }
        stats
    }
}

impl State {
    /// Notes that a session was made just now.
    pub(crate) fn shook_hands(&mut self) {
        self.last_handshake = Some(SystemTime::now());
    }

    /// Notes a session index of ours; returns one that is not told apart any more.
    pub(crate) fn note_index(&mut self, index: u32) -> Option<u32> {
        self.indices.push_back(index);
        if self.indices.len() <= MAX_INDICES {
            return None;
        }
        self.indices.pop_front()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
