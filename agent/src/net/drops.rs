//! Reports of dropped packets, from wherever they are filtered to whoever asks: [`Reports`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use dataplane::{Direction, DropReason, Dropped, Drops, boot_clock};
use packet::{Content, Datagram, Packet};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tokio::sync::broadcast;

use crate::error_text::error_text;

/// Reports that wait for a slow asker; older ones are lost to it.
const WAITING: usize = 1024;
/// How soon the programs hear that nobody asks any more.
const LOOK: Duration = Duration::from_millis(250);
/// Answers on their way through the embedded tunnel.
const ANSWERS: usize = 64;

/// Where reports go; cheap to clone. Nobody needs to listen.
#[derive(Clone, Debug)]
pub struct Reports {
    all: broadcast::Sender<Dropped>,
    refused: broadcast::Sender<Dropped>,
    bell: Arc<Mutex<Option<Arc<Bell>>>>,
    answers: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            all: broadcast::channel(WAITING).0,
            refused: broadcast::channel(WAITING).0,
            bell: Arc::default(),
            answers: Arc::default(),
        }
    }
}

impl Reports {
    /// Reports from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Dropped> {
        let listener = self.all.subscribe();
        if let Some(bell) = &*self.bell() {
            bell.ring();
        }
        listener
    }

    /// Reports from now on of peers' requests for connections, which come unasked for too.
    pub(super) fn listen_to_refused(&self) -> broadcast::Receiver<Dropped> {
        self.refused.subscribe()
    }

    /// Of the thread that reads now, if there is one.
    fn bell(&self) -> MutexGuard<'_, Option<Arc<Bell>>> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody listens to all.
    pub(crate) fn is_wanted(&self) -> bool {
        self.all.receiver_count() > 0
    }

    /// Tells of a packet that this process dropped itself.
    pub(crate) fn tell(&self, direction: Direction, reason: DropReason, packet: &[u8]) {
        if self.is_wanted() || self.refused.receiver_count() > 0 {
            self.pass_on(describe(direction, reason, packet));
        }
    }

    fn pass_on(&self, dropped: Dropped) {
        // The last listener may have gone just now.
        if dropped.opens && dropped.direction == Direction::In {
            let _ = self.refused.send(dropped);
        }
        let _ = self.all.send(dropped);
    }

    /// Announces a packet that this process is about to send to a peer whose packet was dropped.
    pub(super) fn will_answer(&self, packet: &[u8]) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() == ANSWERS {
            answers.pop_front();
        }
        answers.push_back(packet.to_vec());
    }

    /// Whether a packet on its way to a peer was announced, and not seen since.
    pub(crate) fn is_answer(&self, packet: &[u8]) -> bool {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let at = answers.iter().position(|answer| answer == packet);
        at.and_then(|at| answers.remove(at)).is_some()
    }
}

/// The thread that reads the programs' reports; ends when dropped.
#[derive(Debug)]
pub(super) struct Reader {
    ended: Arc<AtomicBool>,
    bell: Arc<Bell>,
}

impl Reader {
    /// Begins to read, in place of an earlier one.
    ///
    /// # Errors
    ///
    /// When no thread or descriptor can be had.
    pub(super) fn start(drops: Drops, reports: Reports) -> io::Result<Self> {
        let reader = Self {
            ended: Arc::default(),
            bell: Arc::new(Bell::new()?),
        };
        *reports.bell() = Some(Arc::clone(&reader.bell));
        let (ended, bell) = (Arc::clone(&reader.ended), Arc::clone(&reader.bell));
        thread::Builder::new()
            .name("drops".to_owned())
            .spawn(move || {
                if let Err(error) = read(drops, &reports, &ended, &bell) {
                    let reason = error_text(&*error);
                    tracing::warn!(reason, "dropped packets are not reported any more");
                }
            })?;
        Ok(reader)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.bell.ring();
    }
}

/// Passes on what the programs report, and tells them whether somebody asks for all of it.
fn read(
    mut drops: Drops,
    reports: &Reports,
    ended: &AtomicBool,
    bell: &Bell,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut told = None;
    while !ended.load(Ordering::Relaxed) {
        let wanted = reports.is_wanted();
        if told != Some(wanted) {
            told = Some(wanted);
            drops.want_all(wanted)?;
        }
        match drops.try_next() {
            Some(dropped) => reports.pass_on(dropped),
            // Who does not ask any more does not ring.
            None => bell.wait(&drops, wanted.then_some(LOOK))?,
        }
    }
    Ok(())
}

/// Wakes the thread that reads: somebody asks, or it is to end.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Bell {
    fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    fn ring(&self) {
        // What could fail is that it rings very often already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Waits until `drops` has something or it rings, no longer than `timeout`.
    fn wait(&self, drops: &Drops, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(Timespec::try_from).transpose();
        let timeout = timeout.map_err(io::Error::other)?;
        let mut fds =
            [drops.as_fd(), self.0.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Whether it rang or not, it is silent now.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
        Ok(())
    }
}

/// What the programs would report of a packet.
fn describe(direction: Direction, reason: DropReason, packet: &[u8]) -> Dropped {
    let dropped = Dropped {
        at: boot_clock(),
        generation: 0,
        direction,
        reason,
        addresses: None,
        protocol: 0,
        opens: false,
        peer: None,
    };
    match packet::parse(packet) {
        Ok(Packet::V4(datagram)) => with(dropped, &datagram),
        Ok(Packet::V6(datagram)) => with(dropped, &datagram),
        Err(_) => dropped,
    }
}

fn with<A: Copy>(dropped: Dropped, datagram: &Datagram<A>) -> Dropped
where
    std::net::IpAddr: From<A>,
{
    let (src, dst, opens) = match datagram.content {
        Content::Ports { src, dst, opens } => (src, dst, opens),
        _ => (0, 0, false),
    };
    Dropped {
        addresses: Some([
            SocketAddr::new(datagram.src.into(), src),
            SocketAddr::new(datagram.dst.into(), dst),
        ]),
        protocol: datagram.protocol,
        opens: opens && datagram.protocol == packet::protocol::TCP,
        ..dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_dropped_here_is_described_as_the_programs_do() {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend([100, 64, 0, 2, 100, 64, 0, 1]);
        packet.extend([
            0x30, 0x39, 0, 22, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0,
        ]);
        let reports = Reports::default();
        reports.tell(Direction::In, DropReason::NoRule, &packet);
        let mut listener = reports.listen();
        reports.tell(Direction::In, DropReason::NoRule, &packet);
        let dropped = listener.try_recv().unwrap();
        let ends = ["100.64.0.2:12345", "100.64.0.1:22"].map(|end| end.parse().unwrap());
        assert_eq!(dropped.addresses, Some(ends));
        assert!(dropped.opens && dropped.protocol == 6);
        assert!(listener.try_recv().is_err());
    }

    #[test]
    fn an_answer_passes_once() {
        let reports = Reports::default();
        reports.will_answer(b"no");
        assert!(!reports.is_answer(b"yes"));
        assert!(reports.is_answer(b"no"));
        assert!(!reports.is_answer(b"no"));
    }
}
