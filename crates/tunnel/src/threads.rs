//! The threads that carry packets: [`Threads`].
//!
//! Two make a worker, one for each direction, with a queue of the TUN device and a socket of their own. More workers
//! serve more peers at a time, not one peer faster: its sessions want one thread at a time.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gotatun::packet::Packet;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::batch::Batch;
use crate::core::{Core, count};
use crate::inbound::Inbound;
use crate::offloads::Offload;
use crate::outbound::Outbound;
use crate::relay::{Datagrams, Inlet, Relaying};
use crate::sys::{RX_SLOTS, Run, RxRing, SendScratch, Tun, Udp};
use crate::vnet::VnetHeader;
use crate::write::write;

/// How often timers run while there are any.
const TICK: Duration = Duration::from_millis(250);
/// After so many packets the device is not read any further before they are sent.
const TX_BATCH: usize = 98;
/// Before what is broken is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// What the threads of one worker share.
pub(crate) struct Worker {
    core: Arc<Core>,
    tun: Arc<Tun>,
    udp: Arc<Udp>,
    relaying: Option<Relaying>,
    /// Readable once the threads are to end.
    stop: Arc<OwnedFd>,
    /// It runs the timers.
    first: bool,
}

/// Threads that carry packets until this is dropped.
pub(crate) struct Threads {
    sockets: Vec<Arc<Udp>>,
    stop: Arc<OwnedFd>,
    handles: Vec<JoinHandle<()>>,
    /// Leads to the first worker.
    inlet: Option<Inlet>,
}

impl Threads {
    /// Starts a worker for each queue of the device, which has as many sockets; relayed peers' datagrams take the
    /// way of `relaying`.
    pub(crate) fn start(
        core: &Arc<Core>,
        queues: &[Arc<Tun>],
        sockets: Vec<Udp>,
        relaying: Option<&Relaying>,
    ) -> io::Result<Threads> {
        let mut threads = Threads {
            sockets: sockets.into_iter().map(Arc::new).collect(),
            stop: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            handles: Vec::new(),
            inlet: relaying.map(|relaying| relaying.inlet.clone()),
        };
        for (number, (tun, udp)) in queues.iter().zip(&threads.sockets).enumerate() {
            let worker = Arc::new(Worker {
                core: Arc::clone(core),
                tun: Arc::clone(tun),
                udp: Arc::clone(udp),
                relaying: relaying.cloned(),
                stop: Arc::clone(&threads.stop),
                first: number == 0,
            });
            if let Some(inlet) = threads.inlet.as_ref().filter(|_| worker.first) {
                inlet.open(Arc::clone(&worker));
            }
            for (name, run) in [
                ("tunnel-out", send as fn(&Worker)),
                ("tunnel-in", receive as fn(&Worker)),
            ] {
                let worker = Arc::clone(&worker);
                let builder = thread::Builder::new().name(name.to_owned());
                threads.handles.push(builder.spawn(move || run(&worker))?);
            }
        }
        Ok(threads)
    }

    /// The sockets, of which there is one at least.
    pub(crate) fn sockets(&self) -> &[Arc<Udp>] {
        &self.sockets
    }

    pub(crate) fn are_running(&self) -> bool {
        !self.handles.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(inlet) = &self.inlet {
            inlet.close();
        }
        if let Err(error) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the tunnel's threads cannot be told to end");
            return;
        }
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                tracing::error!("a thread of the tunnel panicked");
            }
        }
    }
}

/// What a wait ended with.
#[derive(Debug, Eq, PartialEq)]
enum Woken {
    /// There is something, or something is wrong, or the time is over.
    Go,
    Stop,
}

impl Worker {
    /// Waits until `file` has something, or is broken, for `timeout` at most.
    fn wait(&self, file: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> Woken {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut files = [
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::from_borrowed_fd(file.unwrap_or(self.stop.as_fd()), PollFlags::IN),
        ];
        // Interrupted, it finds nothing and comes back.
        match poll(&mut files, timeout.as_ref()) {
            Ok(1..) if !files[0].revents().is_empty() => Woken::Stop,
            _ => Woken::Go,
        }
    }

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
            writes += 1;
            let written = write(parts, packets, |parts| self.tun.write(parts));
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
            tracing::warn!(%error, %offload, "the TUN device takes no super-packets of this kind, whatever it says; packets are written one by one from now on");
        }
    }
}

/// TUN to UDP.
fn send(worker: &Worker) {
    let mut outbound = Outbound::new(Arc::clone(&worker.core));
    let mut scratch = SendScratch::default();
    let mut buffer = vec![0; VnetHeader::LEN + (1 << 16)];
    loop {
        outbound.begin();
        let mut error = None;
        while outbound.wire.len() < TX_BATCH {
            match worker.tun.read(&mut buffer) {
                Ok(len) => outbound.take(&mut buffer[..len]),
                Err(failure) => {
                    error = Some(failure);
                    break;
                }
            }
        }
        worker.send(&mut outbound.wire, &mut scratch);
        let woken = match error {
            None => continue,
            Some(error) if error.kind() == io::ErrorKind::WouldBlock => {
                worker.wait(Some(worker.tun.as_fd()), None)
            }
            Some(error) if is_gone(&error) => return,
            Some(error) => {
                tracing::debug!(%error, "reading the TUN device");
                worker.wait(None, Some(PAUSE))
            }
        };
        if woken == Woken::Stop {
            return;
        }
    }
}

/// UDP to TUN, and the timers.
fn receive(worker: &Worker) {
    let core = &worker.core;
    let mut inbound = worker.inbound();
    let mut scratch = SendScratch::default();
    let mut ring = RxRing::new();
    let mut ticked = Instant::now();
    loop {
        let got = match worker.udp.receive(&mut ring) {
            Ok(got) => got,
            Err(error) => {
                // An ICMP answer to something that was sent.
                tracing::trace!(%error, "the tunnel's socket reports");
                0
            }
        };
        if got > 0 {
            inbound.begin();
            for number in 0..got {
                if let Some((from, datagrams)) = ring.take(number) {
                    inbound.take(from, datagrams);
                }
            }
            worker.send(&mut inbound.replies, &mut scratch);
            if !worker.write(&mut inbound) {
                return;
            }
        }
        if worker.first && ticked.elapsed() >= TICK {
            ticked = Instant::now();
            core.tick(&mut inbound.replies);
            worker.send(&mut inbound.replies, &mut scratch);
        }
        // A full batch: there is more.
        if got < RX_SLOTS {
            let timeout = worker.first.then_some(TICK);
            if worker.wait(Some(worker.udp.as_fd()), timeout) == Woken::Stop {
                return;
            }
        }
    }
}

/// The device was deleted.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}
