//! The threads that carry packets, one for each direction: [`Threads`].

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::batch::Batch;
use crate::core::{Core, count};
use crate::inbound::Inbound;
use crate::outbound::Outbound;
use crate::sys::{RX_SLOTS, RxRing, SendScratch, Tun, Udp};
use crate::vnet::VnetHeader;

/// How often timers run while there are any.
const TICK: Duration = Duration::from_millis(250);
/// After so many packets the device is not read any further before they are sent.
const TX_BATCH: usize = 98;
/// Before what is broken is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// What the threads share.
struct Shared {
    core: Arc<Core>,
    tun: Arc<Tun>,
    udp: Udp,
    /// Readable once the threads are to end.
    stop: OwnedFd,
}

/// Threads that carry packets until this is dropped.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn start(core: &Arc<Core>, tun: &Arc<Tun>, udp: Udp) -> io::Result<Threads> {
        let shared = Arc::new(Shared {
            core: Arc::clone(core),
            tun: Arc::clone(tun),
            udp,
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let mut threads = Threads {
            shared: Arc::clone(&shared),
            handles: Vec::new(),
        };
        for (name, run) in [
            ("tunnel-out", send as fn(&Shared)),
            ("tunnel-in", receive as fn(&Shared)),
        ] {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(name.to_owned());
            threads.handles.push(builder.spawn(move || run(&shared))?);
        }
        Ok(threads)
    }

    pub(crate) fn udp(&self) -> &Udp {
        &self.shared.udp
    }

    pub(crate) fn are_running(&self) -> bool {
        !self.handles.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
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

impl Shared {
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

    /// Sends a batch and empties it.
    fn send(&self, batch: &mut Batch, scratch: &mut SendScratch) {
        if !batch.is_empty() {
            let lost = self.udp.send(&batch.packets, &batch.runs, scratch);
            if lost > 0 {
                count(&self.core.counters.unsent, lost);
            }
            batch.clear();
        }
    }
}

/// TUN to UDP.
fn send(shared: &Shared) {
    let mut outbound = Outbound::new(Arc::clone(&shared.core));
    let mut scratch = SendScratch::default();
    let mut buffer = vec![0; VnetHeader::LEN + (1 << 16)];
    loop {
        outbound.begin();
        let mut error = None;
        while outbound.wire.len() < TX_BATCH {
            match shared.tun.read(&mut buffer) {
                Ok(len) => outbound.take(&mut buffer[..len]),
                Err(failure) => {
                    error = Some(failure);
                    break;
                }
            }
        }
        shared.send(&mut outbound.wire, &mut scratch);
        let woken = match error {
            None => continue,
            Some(error) if error.kind() == io::ErrorKind::WouldBlock => {
                shared.wait(Some(shared.tun.as_fd()), None)
            }
            Some(error) if is_gone(&error) => return,
            Some(error) => {
                tracing::debug!(%error, "reading the TUN device");
                shared.wait(None, Some(PAUSE))
            }
        };
        if woken == Woken::Stop {
            return;
        }
    }
}

/// UDP to TUN, and the timers.
fn receive(shared: &Shared) {
    let core = &shared.core;
    let mut inbound = Inbound::new(Arc::clone(core), shared.tun.udp_offload);
    let mut scratch = SendScratch::default();
    let mut ring = RxRing::new();
    let mut ticked = Instant::now();
    loop {
        let got = match shared.udp.receive(&mut ring) {
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
            shared.send(&mut inbound.replies, &mut scratch);
            if !write(shared, &mut inbound) {
                return;
            }
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            core.tick(&mut inbound.replies);
            shared.send(&mut inbound.replies, &mut scratch);
        }
        // A full batch: there is more.
        if got < RX_SLOTS {
            // Woken peers wait for a tick; who is woken by a packet to send wakes nobody here.
            if shared.wait(Some(shared.udp.as_fd()), Some(TICK)) == Woken::Stop {
                return;
            }
        }
    }
}

/// Writes what was received; false once the device is gone.
fn write(shared: &Shared, inbound: &mut Inbound) -> bool {
    let counters = &shared.core.counters;
    let mut gone = false;
    let mut written = 0;
    inbound.joiner.flush(|parts, packets| {
        written += 1;
        if let Err(error) = shared.tun.write(parts) {
            // Down: the packets are lost, the device is not.
            gone |= is_gone(&error);
            count(&counters.unwritten, packets as usize);
        }
    });
    count(&counters.written, written);
    !gone
}

/// The device was deleted.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}
