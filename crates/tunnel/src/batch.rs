//! Packets on their way to the underlay: [`Batch`].

use std::net::SocketAddr;

use gotatun::packet::Packet;

use crate::sys::Run;

/// Outer packets, and where each goes, in the order they leave.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) packets: Vec<Packet>,
    pub(crate) runs: Vec<Run>,
}

impl Batch {
    pub(crate) fn push(&mut self, to: SocketAddr, packet: Packet) {
        self.packets.push(packet);
        match self.runs.last_mut() {
            Some(run) if run.to == to => run.count += 1,
            _ => self.runs.push(Run { to, count: 1 }),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.packets.clear();
        self.runs.clear();
    }
}
