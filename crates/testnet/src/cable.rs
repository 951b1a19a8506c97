//! A long cable: what goes in comes out at the other end a while later, or gets lost, and can be watched on its way.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::namespace::Namespace;
use crate::tun::tap;

/// The longest Ethernet frame.
const FRAME: usize = 1514;
/// How often a pump looks whether the cable is still there.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// How frames fare on a cable.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    /// How long each is on its way.
    pub delay: Duration,
    /// How many of a thousand get lost.
    pub loss: u32,
    /// Which: with the same seed, the same ones.
    pub seed: u64,
}

/// Says which frames get lost: numbers of xorshift64*, so that a seed means the same everywhere.
#[derive(Debug)]
struct Loss {
    state: u64,
    per_mille: u64,
}

impl Loss {
    fn new(line: Line) -> Loss {
        let seed = line.seed.wrapping_add(1);
        Loss {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            per_mille: line.loss.into(),
        }
    }

    /// Whether the next frame does.
    fn takes(&mut self) -> bool {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (number * 1000) >> 32 < self.per_mille
    }
}

/// What somebody waits for, and whom to tell.
type Watcher = (Box<dyn Fn(&[u8]) -> bool + Send>, Sender<Instant>);

/// Who is told of frames that pass; shared by all cables of a lab.
#[derive(Clone, Default)]
pub(crate) struct Watchers(Arc<Mutex<Vec<Watcher>>>);

impl std::fmt::Debug for Watchers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watchers")
    }
}

impl Watchers {
    /// Tells when frames enter a cable that `likes` says yes to.
    pub(crate) fn watch(
        &self,
        likes: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Receiver<Instant> {
        let (sender, receiver) = channel();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((Box::new(likes), sender));
        receiver
    }

    fn tell(&self, frame: &[u8]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Who does not listen any more need not be asked again.
        all.retain(|(likes, sender)| !likes(frame) || sender.send(Instant::now()).is_ok());
    }
}

/// A cable between two namespaces: a TAP device at each end. It ends when dropped.
#[derive(Debug)]
pub(crate) struct Cable {
    cut: Arc<AtomicBool>,
}

impl Cable {
    /// Lays it; both ends are up, without addresses. Each way frames fare as `line` says.
    ///
    /// # Errors
    ///
    /// As [`tun`](crate::tun()).
    pub(crate) fn lay(
        a: (&Namespace, &str),
        b: (&Namespace, &str),
        line: Line,
        watchers: &Watchers,
    ) -> Result<Cable> {
        let open = |(namespace, name): (&Namespace, &str)| -> Result<File> {
            let file = namespace.enter(|| tap(name))??;
            namespace.ip(&format!("link set {name} up"))?;
            Ok(file)
        };
        let (of_a, of_b) = (open(a)?, open(b)?);
        let cable = Cable {
            cut: Arc::default(),
        };
        for (way, [from, to]) in [(0, [&of_a, &of_b]), (1, [&of_b, &of_a])] {
            let (from, to) = (from.try_clone()?, to.try_clone()?);
            let seed = line.seed.wrapping_add(way);
            let line = Line { seed, ..line };
            let (enter, leave) = channel();
            let (cut, watchers) = (cable.cut.clone(), watchers.clone());
            let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
            spawn("cable-in")
                .spawn(move || pump(from, &enter, line, &watchers, &cut))
                .context("starting a pump")?;
            spawn("cable-out")
                .spawn(move || deliver(to, &leave))
                .context("starting a pump")?;
        }
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

/// Ends when the cable is cut, or its device gone; what is under way is lost then.
fn pump(
    mut from: File,
    to: &Sender<(Instant, Vec<u8>)>,
    line: Line,
    watchers: &Watchers,
    cut: &AtomicBool,
) {
    let mut frame = [0; FRAME];
    let mut loss = Loss::new(line);
    while !cut.load(Ordering::Relaxed) {
        match from.read(&mut frame) {
            Ok(len) => {
                watchers.tell(&frame[..len]);
                if loss.takes() {
                    continue;
                }
                let due = Instant::now() + line.delay;
                if to.send((due, frame[..len].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let fd = from.as_fd();
                // Ended by a signal it is tried again, and a device that is gone fails the next read.
                let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&LOOK));
            }
            Err(_) => return,
        }
    }
}

fn deliver(mut to: File, from: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, frame)) = from.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A device that is down, or gone, takes nothing: lost, as on any wire.
        let _ = to.write_all(&frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_loses_the_same_frames_again_and_as_many_as_was_asked_for() {
        let lost = |loss, seed| -> Vec<usize> {
            let delay = Duration::ZERO;
            let mut loss = Loss::new(Line { delay, loss, seed });
            (0..10_000).filter(|_| loss.takes()).collect()
        };
        assert_eq!(lost(20, 1), lost(20, 1));
        assert_ne!(lost(20, 1), lost(20, 2));
        assert!((150..250).contains(&lost(20, 1).len()));
        assert_eq!(lost(0, 1), Vec::<usize>::new());
        assert_eq!(lost(1000, 1).len(), 10_000);
    }
}
