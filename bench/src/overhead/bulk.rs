//! Bulk TCP between both ends, by how the overlay's device is set.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::lab::{self, Lab};
use super::setting::Setting;
use super::{Figure, NANOSECONDS};

/// What a figure is of, in bytes.
pub(super) const UNIT: u32 = 1024;
/// Units before the clock starts: the window is open, the session up.
const WARM_UP: u32 = 512;

/// How the overlay's device is set: how long its packets may be, and what the kernel does to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tuning {
    /// Packets that every path carries, and the device as the kernel makes it.
    Usual,
    /// Packets arrive by a kernel thread of the peer's, not in softirqs.
    Threaded,
    /// What has arrived waits for more to be joined with.
    Patient,
    /// What arrives is not joined.
    Unjoined,
    /// What leaves is cut up before it reaches the device.
    Uncut,
    /// Packets that fill those of Ethernet.
    Ethernet,
    /// Packets that fill those of 9000 bytes.
    Jumbo,
}

impl Tuning {
    pub(super) const ALL: [Self; 7] = [
        Self::Usual,
        Self::Threaded,
        Self::Patient,
        Self::Unjoined,
        Self::Uncut,
        Self::Ethernet,
        Self::Jumbo,
    ];

    /// As the table calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Usual => "overlay MTU 1280",
            Self::Threaded => "+ threaded NAPI",
            Self::Patient => "+ GRO that waits 20 µs",
            Self::Unjoined => "+ without GRO",
            Self::Uncut => "+ without GSO",
            Self::Ethernet => "overlay MTU 1440 (path of 1500)",
            Self::Jumbo => "overlay MTU 8928 (path of 9000)",
        }
    }

    /// MTU of the overlay, and of the underlay.
    pub(super) fn mtus(self) -> (u16, u16) {
        match self {
            Self::Ethernet => (1440, 1500),
            Self::Jumbo => (8928, 9000),
            _ => (lab::MTU, 1500),
        }
    }

    /// What `ip link set` says of super-packets: the longest to join, in bytes, and the packets of one to cut up.
    fn super_packets(self) -> (u32, u32) {
        match self {
            Self::Unjoined => (1, 65_535),
            Self::Uncut => (65_536, 1),
            _ => (65_536, 65_535),
        }
    }

    /// Files of the device in sysfs, and what they hold: `threaded`, `gro_flush_timeout` in nanoseconds, and polls
    /// that find nothing before the device is taken for idle.
    fn files(self) -> [(&'static str, u32); 3] {
        let patient = self == Self::Patient;
        [
            ("threaded", (self == Self::Threaded).into()),
            ("gro_flush_timeout", if patient { 20_000 } else { 0 }),
            ("napi_defer_hard_irqs", if patient { 2 } else { 0 }),
        ]
    }
}

/// Instructions for [`UNIT`] bytes of one stream, with what the agent puts on the tunnel; `units` are sent in each of
/// `rounds`.
///
/// # Errors
///
/// When an MTU cannot be set, or the connection breaks.
pub(super) fn measure(lab: &Lab, units: u32, rounds: usize) -> Result<Vec<Figure<Tuning>>> {
    let mut figures: Vec<Figure<Tuning>> = Tuning::ALL
        .map(|setting| Figure {
            setting,
            payload: UNIT,
            rounds: Vec::new(),
        })
        .into();
    for round in 0..rounds {
        for figure in &mut figures {
            set(lab, figure.setting)?;
            let applied = Setting::Ours.apply(lab)?;
            let took = stream(lab, units).with_context(|| figure.setting.name())?;
            let instructions = took.as_secs_f64() * 1e9 / NANOSECONDS / f64::from(units);
            println!("=== round {round}: {:?}: {instructions:.0}", figure.setting);
            figure.rounds.push(instructions);
            applied.remove()?;
        }
    }
    set(lab, Tuning::Usual)?;
    Ok(figures)
}

fn set(lab: &Lab, tuning: Tuning) -> Result<()> {
    let (overlay, underlay) = tuning.mtus();
    let (joined, cut) = tuning.super_packets();
    for end in lab.ends() {
        let (space, device) = (&end.namespace, end.device);
        space.ip(&format!("link set wan mtu {underlay}"))?;
        space.ip(&format!(
            "link set {device} mtu {overlay} gro_max_size {joined} gso_max_segs {cut}"
        ))?;
        for (file, value) in tuning.files() {
            end.set(file, value)?;
        }
    }
    Ok(())
}

/// Time that `units` take from the nearer end to the farther one, until the last is acknowledged by its reader.
fn stream(lab: &Lab, units: u32) -> Result<Duration> {
    let address = lab.far.address;
    thread::scope(|scope| {
        let (ready, listening) = channel();
        let server = scope.spawn(move || {
            lab.far.namespace.enter(move || -> Result<()> {
                let listener = TcpListener::bind((address, 0))?;
                ready.send(listener.local_addr()?)?;
                let (mut stream, _) = listener.accept()?;
                for units in [WARM_UP, units] {
                    read(&mut stream, units)?;
                    stream.write_all(&[0])?;
                }
                Ok(())
            })?
        });
        let server_at: SocketAddr = listening.recv().context("the reader does not listen")?;
        let took = lab.near.namespace.enter(|| -> Result<Duration> {
            let mut stream = TcpStream::connect(server_at)?;
            write(&mut stream, WARM_UP)?;
            let begun = Instant::now();
            write(&mut stream, units)?;
            Ok(begun.elapsed())
        })?;
        let served = server.join().map_err(|_| anyhow!("the reader panicked"))?;
        served.and(took)
    })
}

fn read(stream: &mut TcpStream, units: u32) -> Result<()> {
    let mut left = u64::from(units) * u64::from(UNIT);
    let mut buffer = vec![0; 128 << 10];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left)?);
        let length = stream.read(&mut buffer[..most])?;
        anyhow::ensure!(length > 0, "the stream ended early");
        left -= length as u64;
    }
    Ok(())
}

/// Sends, and waits until the reader has it.
fn write(stream: &mut TcpStream, units: u32) -> Result<()> {
    let piece = vec![0x5a; 64 << 10];
    let mut left = u64::from(units) * u64::from(UNIT);
    while left > 0 {
        let length = piece.len().min(usize::try_from(left)?);
        stream.write_all(&piece[..length])?;
        left -= length as u64;
    }
    stream.read_exact(&mut [0])?;
    Ok(())
}
