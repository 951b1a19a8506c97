//! What threads that sleep in `poll` are woken by: [`Signal`], [`Stop`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Readable from when it is raised until it is lowered.
#[derive(Debug)]
pub(crate) struct Signal(OwnedFd);

impl Signal {
    pub(crate) fn new() -> io::Result<Signal> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Signal(eventfd(0, flags)?))
    }

    pub(crate) fn raise(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1u64.to_ne_bytes())?;
        Ok(())
    }

    pub(crate) fn lower(&self) {
        // Fails only if it was low already.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells threads to end: those that sleep, and those that have too much to do to sleep.
#[derive(Debug)]
pub(crate) struct Stop {
    told: AtomicBool,
    signal: Signal,
}

impl Stop {
    pub(crate) fn new() -> io::Result<Stop> {
        Ok(Stop {
            told: AtomicBool::new(false),
            signal: Signal::new()?,
        })
    }

    pub(crate) fn tell(&self) -> io::Result<()> {
        self.told.store(true, Ordering::Relaxed);
        self.signal.raise()
    }

    pub(crate) fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}
