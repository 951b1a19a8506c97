//! Outer datagrams that take no socket of ours: [`Relay`] out, [`Inlet`] in.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use gotatun::packet::Packet;

use crate::inbound::Inbound;
use crate::sys::SendScratch;
use crate::worker::Worker;

/// Carries datagrams to peers whose outer address is one of its own.
pub trait Relay: Send + Sync {
    /// Whether an outer address is one of its own: datagrams for it are handed to [`Self::send`].
    fn has(&self, address: SocketAddr) -> bool;

    /// Takes datagrams for one of its addresses, in the order they are to leave, on the thread that carries packets:
    /// what there is no room for is dropped at once. Returns where the socket has to send them too.
    fn send(&self, to: SocketAddr, datagrams: Datagrams<'_>) -> Option<SocketAddr>;
}

/// Datagrams that go to one address.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams<'a>(pub(crate) &'a [Packet]);

impl<'a> Datagrams<'a> {
    /// One after another.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.0.iter().map(|packet| &packet[..])
    }
}

/// The way into a device for datagrams that came by a [`Relay`]; clones lead to the same one. It leads nowhere while
/// the device carries no packets.
#[derive(Clone, Default)]
pub struct Inlet(Arc<Mutex<Option<Entry>>>);

/// What a thread of the device has, too.
struct Entry {
    worker: Arc<Worker>,
    inbound: Inbound,
    scratch: SendScratch,
}

impl Inlet {
    /// Takes datagrams as if they had come from `from`, on the caller's thread: when this returns, the host has what
    /// was in them. The order is kept.
    pub fn deliver(&self, from: SocketAddr, datagrams: impl Iterator<Item = BytesMut>) {
        let mut entry = self.lock();
        let Some(Entry {
            worker,
            inbound,
            scratch,
        }) = &mut *entry
        else {
            return;
        };
        inbound.begin();
        inbound.take(from, datagrams);
        worker.send(&mut inbound.replies, scratch);
        // Once the device is gone its owner learns so from the threads.
        let _ = worker.write(inbound);
    }

    /// Whether it leads anywhere.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Leads to the device of `worker` from now on.
    pub(crate) fn open(&self, worker: Arc<Worker>) {
        let inbound = worker.inbound();
        *self.lock() = Some(Entry {
            worker,
            inbound,
            scratch: SendScratch::default(),
        });
    }

    /// Leads nowhere from now on.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Entry>> {
        // What a panic left behind is at most a packet that is not written yet.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inlet").finish_non_exhaustive()
    }
}

/// Who carries datagrams beside the socket, both ways.
#[derive(Clone)]
pub struct Relaying {
    /// Takes what is sent.
    pub relay: Arc<dyn Relay>,
    /// Is given what arrives.
    pub inlet: Inlet,
}

impl fmt::Debug for Relaying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relaying").finish_non_exhaustive()
    }
}
