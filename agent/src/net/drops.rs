//! Reports of dropped packets, from wherever they are filtered to whoever asks: [`Reports`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use dataplane::{Direction, DropReason, Dropped, Drops, boot_clock};
use packet::{Content, Datagram, Packet};
use tokio::sync::broadcast;

use crate::error_text::error_text;

/// Reports that wait for a slow asker; older ones are lost to it.
const WAITING: usize = 1024;
/// Answers on their way through the embedded tunnel.
const ANSWERS: usize = 64;
/// How soon the programs hear that somebody asks, or nobody any more.
const LOOK: Duration = Duration::from_millis(250);

/// Where reports go; cheap to clone. Nobody needs to listen.
#[derive(Clone, Debug)]
pub struct Reports {
    all: broadcast::Sender<Dropped>,
    refused: broadcast::Sender<Dropped>,
    answers: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            all: broadcast::channel(WAITING).0,
            refused: broadcast::channel(WAITING).0,
            answers: Arc::default(),
        }
    }
}

impl Reports {
    /// Reports from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Dropped> {
        self.all.subscribe()
    }

    /// Reports from now on of peers' requests for connections, which come unasked for too.
    pub(super) fn listen_to_refused(&self) -> broadcast::Receiver<Dropped> {
        self.refused.subscribe()
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
pub(super) struct Reader(Arc<AtomicBool>);

impl Reader {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// When no thread can be had.
    pub(super) fn start(drops: Drops, reports: Reports) -> std::io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let reader = Self(Arc::clone(&ended));
        thread::Builder::new()
            .name("drops".to_owned())
            .spawn(move || read(drops, &reports, &ended))?;
        Ok(reader)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn read(mut drops: Drops, reports: &Reports, ended: &AtomicBool) {
    let mut wanted = None;
    while !ended.load(Ordering::Relaxed) {
        let wants = reports.is_wanted();
        let result = if wanted == Some(wants) {
            Ok(())
        } else {
            wanted = Some(wants);
            drops.want_all(wants)
        };
        match result.and_then(|()| drops.next_within(LOOK)) {
            Ok(Some(dropped)) => reports.pass_on(dropped),
            Ok(None) => {}
            Err(error) => {
                let reason = error_text(&error);
                tracing::warn!(reason, "dropped packets are not reported any more");
                return;
            }
        }
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
