//! What the threads of one queue share: [`Worker`].

use std::io;
use std::sync::Arc;

use gotatun::packet::Packet;

use crate::batch::Batch;
use crate::core::{Core, count};
use crate::inbound::Inbound;
use crate::offloads::Offload;
use crate::relay::{Datagrams, Relaying};
use crate::signal::Stop;
use crate::sys::{Run, SendScratch, Tun, Udp};
use crate::write::write;

/// A queue of the TUN device, a socket, and how batches leave by them.
pub(crate) struct Worker {
    pub(crate) core: Arc<Core>,
    pub(crate) tun: Arc<Tun>,
    pub(crate) udp: Arc<Udp>,
    pub(crate) relaying: Option<Relaying>,
    pub(crate) stop: Arc<Stop>,
    /// It runs the timers.
    pub(crate) first: bool,
}

impl Worker {
    /// What takes datagrams for this worker's device.
    pub(crate) fn inbound(&self) -> Inbound {
        Inbound::new(Arc::clone(&self.core))
    }

    /// Sends a batch and empties it.
    pub(crate) fn send(&self, batch: &mut Batch, scratch: &mut SendScratch) {
        if batch.is_empty() {
            return;
        }
        let mut lost = 0;
        let mut packets = &batch.packets[..];
        for runs in batch.runs.chunk_by(|a, b| self.relays(a) == self.relays(b)) {
            let count = runs.iter().map(|run| run.count).sum();
            let (these, rest) = packets.split_at(count);
            packets = rest;
            match self.relaying.as_ref().filter(|_| self.relays(&runs[0])) {
                Some(relaying) => lost += self.relay(relaying, these, runs, scratch),
                None => lost += self.udp.send(these, runs, scratch),
            }
        }
        if lost > 0 {
            count(&self.core.counters.unsent, lost);
        }
        batch.clear();
    }

    /// Whether packets take the relay.
    fn relays(&self, run: &Run) -> bool {
        let relaying = self.relaying.as_ref();
        relaying.is_some_and(|relaying| relaying.relay.has(run.to))
    }

    /// Hands packets to the relay; returns how many copies the kernel refused to send beside.
    fn relay(
        &self,
        relaying: &Relaying,
        mut packets: &[Packet],
        runs: &[Run],
        scratch: &mut SendScratch,
    ) -> usize {
        let mut lost = 0;
        for &Run { to, count } in runs {
            let (these, rest) = packets.split_at(count);
            packets = rest;
            if let Some(to) = relaying.relay.send(to, Datagrams(these)) {
                lost += self.udp.send(these, &[Run { to, count }], scratch);
            }
        }
        lost
    }

    /// Writes what was received; false once the device is gone.
    pub(crate) fn write(&self, inbound: &mut Inbound) -> bool {
        let counters = &self.core.counters;
        let mut gone = false;
        let mut writes = 0;
        inbound.joiner.flush(|parts, packets| {
            let written = write(parts, packets, |parts| {
                writes += 1;
                self.tun.write(parts)
            });
            let Some(error) = written.error else { return };
            if let Some(offload) = written.refused {
                self.refused(offload, &error);
            }
            // Down: the packets are lost, the device is not.
            gone |= is_gone(&error);
            count(&counters.unwritten, written.lost);
        });
        count(&counters.written, writes);
        !gone
    }

    /// The device takes packets of a kind only one by one.
    fn refused(&self, offload: Offload, error: &io::Error) {
        let why = format!("the kernel refused a super-packet that was written: {error}");
        if self.core.switches.turn_off(offload, why) {
            tracing::warn!(%error, %offload, "the TUN device takes no super-packets of this kind, whatever it says; packets go one by one from now on");
            let on = |offload| self.core.switches.is_on(offload);
            if let Err(error) = self
                .tun
                .set_offloads(on(Offload::TunTcp), on(Offload::TunUdp))
            {
                tracing::warn!(%error, "the TUN device still hands over super-packets");
            }
        }
    }
}

/// The device was deleted.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}
