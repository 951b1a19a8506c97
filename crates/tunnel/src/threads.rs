//! The threads that carry packets: [`Threads`].
//!
//! A worker carries both directions of a queue of the TUN device and a socket of its own: what it wrote, it reads the
//! answers to, and no thread has to be woken for them. While both directions are busy, or the underlay is slower than
//! what is to be sent, it hands the outgoing one over to a second thread, for as long as there is more than a batch to
//! send. More workers serve more peers at a time, not one peer faster.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::core::Core;
use crate::inbound::Inbound;
use crate::outbound::Outbound;
use crate::relay::{Inlet, Relaying};
use crate::signal::{Signal, Stop};
use crate::sys::{RX_SLOTS, RxRing, SendScratch, Tun, Udp};
use crate::vnet::VnetHeader;
use crate::worker::{Worker, is_gone};

/// How often timers run while there are any.
const TICK: Duration = Duration::from_millis(250);
/// After so many packets, or so many reads that gave none, the device is not read any further before they are sent.
const TX_BATCH: usize = 192;
/// So many packets received at a time, beside a full batch to send, are work for two threads. Acknowledgements of a
/// stream are far fewer.
const RX_BUSY: usize = 48;
/// So many batches are sent by the second thread before the first looks again whether it takes two.
const TURN: usize = 64;
/// Before what is broken is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Threads that carry packets until this is dropped.
pub(crate) struct Threads {
    sockets: Vec<Arc<Udp>>,
    stop: Arc<Stop>,
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
            stop: Arc::new(Stop::new()?),
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
            let (lend, lent) = channel();
            let (give_back, back) = channel();
            let returned = Arc::new(Signal::new()?);
            let helper = Helper {
                worker: Arc::clone(&worker),
                lent,
                give_back,
                returned: Arc::clone(&returned),
            };
            let carrier = Carrier {
                worker,
                lend,
                back,
                returned,
            };
            let handles = &mut threads.handles;
            handles.push(spawn("tunnel", move || carrier.run())?);
            handles.push(spawn("tunnel-out", move || helper.run())?);
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
        if let Err(error) = self.stop.tell() {
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

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// The device is no more: the thread that found so ends.
#[derive(Debug)]
struct Gone;

/// The direction from the TUN device to the underlay. One thread has it at a time, so packets stay in order.
struct Outgoing {
    outbound: Outbound,
    scratch: SendScratch,
    buffer: Vec<u8>,
    /// The device is not read until then.
    broken: Option<Instant>,
}

/// How it goes with what is to be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    /// Nothing is left.
    Dry,
    /// A full batch was sent, and there may be more.
    Full,
    /// A batch is not sent yet: the socket is full, so whoever sends it has to wait.
    Held,
}

impl Outgoing {
    fn new(core: &Arc<Core>) -> Outgoing {
        Outgoing {
            outbound: Outbound::new(Arc::clone(core)),
            scratch: SendScratch::default(),
            buffer: vec![0; VnetHeader::LEN + (1 << 16)],
            broken: None,
        }
    }

    /// Sends a batch of what the device has, unless that takes waiting.
    fn carry(&mut self, worker: &Worker) -> Result<Load, Gone> {
        let load = self.fill(worker)?;
        if !self.outbound.wire.is_empty() && !has_room(worker) {
            return Ok(Load::Held);
        }
        self.send(worker);
        Ok(load)
    }

    fn send(&mut self, worker: &Worker) {
        worker.send(&mut self.outbound.wire, &mut self.scratch);
    }

    /// Reads a batch.
    fn fill(&mut self, worker: &Worker) -> Result<Load, Gone> {
        if self.broken.is_some_and(|until| Instant::now() < until) {
            return Ok(Load::Dry);
        }
        self.broken = None;
        self.outbound.begin();
        let mut reads = 0;
        while self.outbound.wire.len().max(reads) < TX_BATCH {
            reads += 1;
            match worker.tun.read(&mut self.buffer) {
                Ok(len) => self.outbound.take(&mut self.buffer[..len]),
                Err(error) => {
                    self.note(&error)?;
                    return Ok(Load::Dry);
                }
            }
        }
        Ok(Load::Full)
    }

    /// Why nothing more was read.
    fn note(&mut self, error: &io::Error) -> Result<(), Gone> {
        if is_gone(error) {
            return Err(Gone);
        }
        if error.kind() != io::ErrorKind::WouldBlock {
            tracing::debug!(%error, "reading the TUN device");
            self.broken = Some(Instant::now() + PAUSE);
        }
        Ok(())
    }
}

/// Whether the socket takes a batch without waiting: it tells so while at most half of its room is used, and a batch
/// takes a twentieth.
fn has_room(worker: &Worker) -> bool {
    let mut files = [PollFd::new(&worker.udp, PollFlags::OUT)];
    // A socket that cannot tell is asked by sending.
    !matches!(poll(&mut files, Some(&Timespec::default())), Ok(0))
}

/// The direction from the underlay to the TUN device, and the timers, whose messages leave as answers do.
struct Incoming {
    inbound: Inbound,
    scratch: SendScratch,
    ring: RxRing,
    ticked: Instant,
}

/// What the socket had.
struct Received {
    /// What the kernel handed over at once, each one datagram or several joined.
    slots: usize,
    datagrams: usize,
}

impl Incoming {
    fn new(worker: &Worker) -> Incoming {
        Incoming {
            inbound: worker.inbound(),
            scratch: SendScratch::default(),
            ring: RxRing::new(),
            ticked: Instant::now(),
        }
    }

    /// Writes to the device what the socket has, up to about as much as is sent at a time: single datagrams of many
    /// peers fill the slots often, and the directions shall not differ in what they get.
    fn carry(&mut self, worker: &Worker) -> Result<Received, Gone> {
        let (mut slots, mut datagrams) = (0, 0);
        while datagrams.max(slots) < TX_BATCH {
            let got = match worker.udp.receive(&mut self.ring) {
                Ok(got) => got,
                Err(error) => {
                    // An ICMP answer to something that was sent.
                    tracing::trace!(%error, "the tunnel's socket reports");
                    0
                }
            };
            if got == 0 {
                break;
            }
            slots += got;
            self.inbound.begin();
            for number in 0..got {
                if let Some((from, these)) = self.ring.take(number) {
                    self.inbound.take(from, these.inspect(|_| datagrams += 1));
                }
            }
            self.answer(worker);
            if !worker.write(&mut self.inbound) {
                return Err(Gone);
            }
            if got < RX_SLOTS {
                break;
            }
        }
        Ok(Received { slots, datagrams })
    }

    /// Runs the timers if they are this worker's and due.
    fn tick(&mut self, worker: &Worker) {
        if worker.first && self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            worker.core.tick(&mut self.inbound.replies);
            self.answer(worker);
        }
    }

    fn answer(&mut self, worker: &Worker) {
        worker.send(&mut self.inbound.replies, &mut self.scratch);
    }
}

/// The thread of a worker: from UDP to the TUN device, the timers, and the other direction while it has it.
struct Carrier {
    worker: Arc<Worker>,
    /// To the helper, and from it.
    lend: Sender<Outgoing>,
    back: Receiver<Outgoing>,
    /// Readable once something came back.
    returned: Arc<Signal>,
}

impl Carrier {
    fn run(self) {
        // `Gone` and the end of the helper are told by the threads having ended.
        let _ = self.carry();
    }

    fn carry(&self) -> Result<(), Gone> {
        let worker = &*self.worker;
        let mut outgoing = Some(Outgoing::new(&worker.core));
        let mut incoming = Incoming::new(worker);
        loop {
            if outgoing.is_none() {
                outgoing = self.take_back()?;
            }
            if worker.stop.is_told() {
                return Ok(());
            }
            let load = match &mut outgoing {
                Some(outgoing) => outgoing.carry(worker)?,
                None => Load::Dry,
            };
            let Received { slots, datagrams } = incoming.carry(worker)?;
            incoming.tick(worker);
            if load == Load::Held || load == Load::Full && datagrams >= RX_BUSY {
                if let Some(outgoing) = outgoing.take() {
                    self.lend.send(outgoing).map_err(|_| Gone)?;
                }
            } else if load == Load::Dry && slots == 0 {
                self.wait(outgoing.as_ref());
            }
        }
    }

    /// What the helper gave back, if it did.
    fn take_back(&self) -> Result<Option<Outgoing>, Gone> {
        match self.back.try_recv() {
            Ok(outgoing) => Ok(Some(outgoing)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Gone),
        }
    }

    /// Waits until there is something to carry, or the timers are due.
    fn wait(&self, outgoing: Option<&Outgoing>) {
        let worker = &*self.worker;
        let broken = outgoing.and_then(|outgoing| outgoing.broken);
        let out = match outgoing {
            None => self.returned.as_fd(),
            Some(_) if broken.is_some() => worker.stop.as_fd(),
            Some(_) => worker.tun.as_fd(),
        };
        let mut files = [
            PollFd::new(&worker.stop, PollFlags::IN),
            PollFd::from_borrowed_fd(worker.udp.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(out, PollFlags::IN),
        ];
        let timeouts = [worker.first.then_some(TICK), broken.map(|_| PAUSE)];
        let timeout = timeouts.into_iter().flatten().min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Interrupted, or broken, it finds nothing and comes back.
        let _ = poll(&mut files, timeout.as_ref());
        // Before the next look at what came back: it may tell of what was taken long since.
        if outgoing.is_none() && !files[2].revents().is_empty() {
            self.returned.lower();
        }
    }
}

/// The second thread of a worker, which sleeps but while it takes two.
struct Helper {
    worker: Arc<Worker>,
    lent: Receiver<Outgoing>,
    give_back: Sender<Outgoing>,
    returned: Arc<Signal>,
}

impl Helper {
    fn run(self) {
        while let Ok(mut outgoing) = self.lent.recv() {
            let worker = &self.worker;
            // What was held, first.
            outgoing.send(worker);
            for _ in 0..TURN {
                if worker.stop.is_told() {
                    return;
                }
                let Ok(load) = outgoing.fill(worker) else {
                    return;
                };
                outgoing.send(worker);
                if load == Load::Dry {
                    break;
                }
            }
            // Without the other thread there is nobody to give it to.
            if self.give_back.send(outgoing).is_err() {
                return;
            }
            if let Err(error) = self.returned.raise() {
                tracing::error!(%error, "the tunnel's threads cannot wake each other");
                return;
            }
        }
    }
}
