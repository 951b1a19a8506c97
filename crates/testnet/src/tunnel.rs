//! An overlay without encryption: a TUN device at each end, and what comes out of one goes into the other.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;
use crate::process::run;
use crate::tun::offloading_tun;

/// The largest buffer that a TUN device hands out: 64 KiB behind its `virtio_net_hdr`.
const BUFFER: usize = 10 + (1 << 16);

/// A tunnel between two namespaces; its devices go with it.
///
/// Buffers of several segments (GSO) and checksums still to be computed pass as they are, as through
/// a tunnel that makes full use of the kernel's offloads.
#[derive(Debug)]
pub struct Tunnel {
    /// Namespace and device of each end.
    ends: [(String, String); 2],
}

impl Tunnel {
    /// Makes the devices, without addresses and down, and a pump between them.
    ///
    /// # Errors
    ///
    /// As [`tun`](crate::tun).
    pub fn between(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<Tunnel> {
        let open =
            |(namespace, name): (&Namespace, &str)| namespace.enter(|| offloading_tun(name))?;
        let (from_a, from_b) = (open(a)?, open(b)?);
        let (to_a, to_b) = (from_a.try_clone()?, from_b.try_clone()?);
        for (from, to) in [(from_a, to_b), (from_b, to_a)] {
            thread::Builder::new()
                .name("pump".to_owned())
                .spawn(move || pump(from, to))
                .context("starting the pump")?;
        }
        let end =
            |(namespace, name): (&Namespace, &str)| (namespace.name().to_owned(), name.to_owned());
        Ok(Tunnel {
            ends: [end(a), end(b)],
        })
    }
}

/// Ends when the device that is read from is deleted.
fn pump(mut from: File, mut to: File) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(len) = from.read(&mut buffer) {
        // A device that is down, or gone, takes nothing: lost, as on any wire.
        let _ = to.write_all(&buffer[..len]);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        for (namespace, name) in &self.ends {
            let deleted = run(Command::new("ip").args(["-n", namespace, "link", "del", name]));
            if let Err(error) = deleted {
                eprintln!("testnet: tunnel {name} in {namespace}: {error:#}");
            }
        }
    }
}
