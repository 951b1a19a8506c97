//! Reader of the programs' logs, for objects built with `cargo xtask build-ebpf --log`.

use std::{
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::Log;
use rustix::event::{PollFd, PollFlags, poll};

/// A thread that hands the programs' records to the `log` crate until it is dropped.
#[derive(Debug)]
pub(crate) struct LogReader {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl LogReader {
    /// Starts reading, if the object logs. Call it before the programs are loaded, and keep the
    /// reader: it owns the map that their relocations point to.
    pub(crate) fn start(ebpf: &mut Ebpf) -> Option<Self> {
        let logger = match EbpfLogger::init(ebpf) {
            Ok(logger) => logger,
            Err(error) => {
                tracing::debug!(%error, "the eBPF object does not log");
                return None;
            }
        };
        let started = UnixStream::pair().and_then(|(stop, stopped)| {
            let thread = thread::Builder::new()
                .name("ebpf-log".to_owned())
                .spawn(move || read(logger, &stopped))?;
            Ok((stop, thread))
        });
        match started {
            Ok((stop, thread)) => Some(Self {
                stop: Some(stop),
                thread: Some(thread),
            }),
            Err(error) => {
                tracing::warn!(%error, "the eBPF programs' logs are not read");
                None
            }
        }
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        drop(self.stop.take()); // the thread sees its end closed
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::warn!("the reader of the eBPF programs' logs panicked");
        }
    }
}

fn read(mut logger: EbpfLogger<&'static dyn Log>, stopped: &UnixStream) {
    loop {
        let mut waiting = [
            PollFd::new(&logger, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "the eBPF programs' logs are no longer read");
                return;
            }
        }
        let stop = !waiting[1].revents().is_empty();
        logger.flush();
        if stop {
            return;
        }
    }
}
