//! Tries the kernel's offloads before anything relies on them: [`verdicts`].
//!
//! ```text
//! join.rs ──► near ─┐                              UDP_SEGMENT ──► lo ──► UDP_GRO
//!                   ├─ forwarded ─► far ──► split.rs
//! UDP_SEGMENT ──────┘
//! ```
//!
//! Kernels have refused super-packets that they offer to take, and cut others wrong. So a thread moves to a network
//! namespace of its own, with two TUN devices between which the kernel forwards, and sends through what the tunnel
//! would: what comes out has to be the packets that were joined. Drivers of real devices are beyond this.

mod difference;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use gotatun::packet::Packet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::core::addresses;
use crate::join::{Joiner, UDP_SEGMENTS};
use crate::offloads::{Offload, Switches, Verdict, Verdicts};
use crate::packets::{Flow, UDP_PORT, tcp, udp};
use crate::split::split;
use crate::sys::{RxRing, Space, Tun, Udp};
use crate::vnet::VnetHeader;

/// What does not come by then does not come. Only a kernel that fails is waited for: forwarding takes no time.
const PATIENCE: Duration = Duration::from_millis(500);
/// A TUN device, our addresses on it, and the host behind it.
struct Side {
    device: &'static str,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    host_v4: Ipv4Addr,
    host_v6: Ipv6Addr,
}

/// Addresses of documentation (RFC 5737, RFC 3849), which nothing outside sees.
const NEAR: Side = Side {
    device: "near",
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1),
    host_v4: Ipv4Addr::new(192, 0, 2, 2),
    host_v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2),
};
const FAR: Side = Side {
    device: "far",
    v4: Ipv4Addr::new(198, 51, 100, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1),
    host_v4: Ipv4Addr::new(198, 51, 100, 2),
    host_v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2),
};
const PORT: u16 = 40_000;
/// What the kernel does with a super-packet.
const CUTS: &str = "cuts";
const HANDS_ON: &str = "hands on";
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// What the packets of a super-packet hold, in bytes. Kernels have failed on some shapes only: those with a shorter
/// packet at the end, those without one, and short ones.
const SHAPES: [&[usize]; 4] = [
    &[500, 500, 500, 300],
    &[500; 4],
    &[23; 2],
    &[200; UDP_SEGMENTS as usize],
];

/// What this kernel's offloads have shown, tried at the first call: that takes some milliseconds, and some seconds if
/// the kernel fails. Nothing of it is seen outside. It wants CAP_SYS_ADMIN: whoever gives that up calls it before.
pub fn verdicts() -> &'static Verdicts {
    static VERDICTS: OnceLock<Verdicts> = OnceLock::new();
    VERDICTS.get_or_init(|| {
        let begin = Instant::now();
        let verdicts = tried();
        for offload in Offload::ALL {
            match verdicts.of(offload) {
                Verdict::Works | Verdict::Missing(_) => {}
                Verdict::Fails(why) => {
                    tracing::warn!(%offload, why, "this kernel does not do with super-packets what it says; the offload is off");
                }
                Verdict::Untested(why) => {
                    tracing::info!(%offload, why, "an offload is used untried");
                }
            }
        }
        tracing::debug!(took = ?begin.elapsed(), ?verdicts, "the kernel's offloads");
        verdicts
    })
}

fn tried() -> Verdicts {
    let run = || Trial::set_up().map(|mut trial| trial.run());
    let thread = thread::Builder::new().name("tunnel-trial".to_owned());
    let verdicts = match thread.spawn(run).map(JoinHandle::join) {
        Ok(Ok(verdicts)) => verdicts,
        Ok(Err(_)) => Err("the trial panicked".to_owned()),
        Err(error) => Err(because("starting a thread")(error)),
    };
    verdicts.unwrap_or_else(|why| Verdicts::untested(&why))
}

/// Why there is no trial.
fn because(doing: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{doing}: {error}")
}

/// What a kernel says that was asked for nothing unusual any more: a lack of memory is not its last word.
fn refused(error: &io::Error) -> Verdict {
    let why = format!("a super-packet is refused: {error}");
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::ENOBUFS) => Verdict::Untested(why),
        _ => Verdict::Fails(why),
    }
}

/// What came out is not what went in.
fn wrong(does: &str, what: &str) -> Verdict {
    Verdict::Fails(format!(
        "a super-packet that the kernel {does} comes out wrong: {what}"
    ))
}

/// Two hosts, and the kernel between them.
struct Trial {
    near: Tun,
    far: Tun,
    /// From the near host to the far one, in every family that is forwarded.
    flows: Vec<Flow>,
    buffer: Vec<u8>,
}

impl Trial {
    /// Moves the thread to a namespace of its own.
    fn set_up() -> Result<Trial, String> {
        let space = Space::enter().map_err(because("making a network namespace"))?;
        let forward = |of: &str| fs::write(format!("/proc/sys/net/{of}"), "1");
        let v4 = forward("ipv4/ip_forward");
        let tun = |side: &Side| {
            let tun = Tun::open(side.device, false)?;
            tun.leave_to_namespace()?;
            space.set_v4(side.device, side.v4)?;
            space.up(side.device)?;
            Ok(tun)
        };
        let near = tun(&NEAR).map_err(because("making a TUN device"))?;
        let far = tun(&FAR).map_err(because("making a TUN device"))?;
        space.up("lo").map_err(because("starting lo"))?;
        let v6 = forward("ipv6/conf/all/forwarding")
            .and_then(|()| space.add_v6(NEAR.device, NEAR.v6))
            .and_then(|()| space.add_v6(FAR.device, FAR.v6));
        let mut flows = Vec::new();
        for (forwards, from, to) in [
            (v4, NEAR.host_v4.into(), FAR.host_v4.into()),
            (v6, NEAR.host_v6.into(), FAR.host_v6.into()),
        ] {
            match forwards {
                Ok(()) => flows.push(Flow {
                    from,
                    to,
                    port: PORT,
                }),
                // The sockets can be tried without.
                Err(error) => tracing::debug!(%error, %from, "offloads are tried without"),
            }
        }
        Ok(Trial {
            near,
            far,
            flows,
            buffer: vec![0; VnetHeader::LEN + (1 << 16)],
        })
    }

    fn run(&mut self) -> Verdicts {
        // Where single packets do not pass super-packets prove nothing.
        let flows = std::mem::take(&mut self.flows);
        for flow in flows {
            let single = |make: Make| self.carry(&train(make, flow, &[100]), HANDS_ON);
            if [Make::Tcp, Make::Udp].map(single).iter().all(Result::is_ok) {
                self.flows.push(flow);
            }
        }
        Verdicts::each(|offload| {
            let tried = match offload {
                Offload::TunTcp => self.tun(Make::Tcp, &[(false, false), (true, false)]),
                Offload::TunUdp => {
                    self.tun(Make::Udp, &[(true, true), (true, false), (false, false)])
                }
                Offload::UdpSegment => self.segment(),
                Offload::UdpGro => gro(),
            };
            tried.err().unwrap_or(Verdict::Works)
        })
    }

    /// Has the kernel carry super-packets to a device with each of these offloads: it cuts them itself, or hands
    /// them on.
    fn tun(&mut self, make: Make, offloads: &[(bool, bool)]) -> Result<(), Verdict> {
        if self.flows.is_empty() {
            let why = "the kernel forwards no packet in a network namespace";
            return Err(Verdict::Untested(why.to_owned()));
        }
        for (tcp, udp) in offloads {
            self.offer(*tcp, *udp)?;
            let hands_on = match make {
                Make::Tcp => *tcp,
                Make::Udp => *udp,
            };
            let does = if hands_on { HANDS_ON } else { CUTS };
            for flow in self.flows.clone() {
                for shape in SHAPES {
                    self.carry(&train(make, flow, shape), does)?;
                }
            }
        }
        Ok(())
    }

    /// Sets what the far device takes joined.
    fn offer(&self, tcp: bool, udp: bool) -> Result<(), Verdict> {
        let set = self.far.set_offloads(tcp, udp);
        set.map_err(|error| Verdict::Missing(because("this kernel does not offer it")(error)))
    }

    /// Sends packets from the near host as the tunnel writes them, and compares what the far one gets. `does` is
    /// what the kernel does with them.
    fn carry(&mut self, packets: &[Vec<u8>], does: &str) -> Result<(), Verdict> {
        let mut joiner = Joiner::default();
        joiner.join(true, true);
        for packet in packets {
            joiner.push(Packet::from_bytes(BytesMut::from(&packet[..])));
        }
        let mut written = Ok(());
        joiner.flush(|parts, _| {
            if written.is_ok() {
                written = self.near.write(parts);
            }
        });
        written.map_err(|error| refused(&error))?;
        self.compare(packets, does)
    }

    /// Has a socket send datagrams as one message, which the kernel cuts for a device that does not.
    fn segment(&mut self) -> Result<(), Verdict> {
        self.offer(true, false)?;
        let socket = socket(&Arc::default())?;
        let port = socket
            .port()
            .map_err(|error| untested("a socket", &error))?;
        let to = IpAddr::from(FAR.host_v4);
        let from = FAR.v4.into();
        let flow = Flow { from, to, port };
        for shape in [&[100][..]].into_iter().chain(SHAPES) {
            let payloads = payloads(shape);
            let sent = socket.send_whole(&packets(&payloads), (to, UDP_PORT).into());
            let packets: Vec<_> = payloads.iter().map(|payload| udp(flow, payload)).collect();
            let compared = sent
                .map_err(|error| refused(&error))
                .and_then(|()| self.compare(&packets, CUTS));
            doubted(shape, compared)?;
        }
        Ok(())
    }

    fn compare(&mut self, sent: &[Vec<u8>], does: &str) -> Result<(), Verdict> {
        let wanted = sent.first().and_then(|packet| flow_of(packet));
        let mut got = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.far.read(&mut self.buffer) {
                Ok(len) => take(&mut self.buffer[..len], wanted, &mut got)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if got.len() >= sent.len() || !readable(&self.far, deadline) {
                        break;
                    }
                }
                Err(error) => return Err(untested("reading the TUN device", &error)),
            }
        }
        match difference::of_packets(sent, &got) {
            None => Ok(()),
            Some(what) => Err(wrong(does, &what)),
        }
    }
}

/// Receives in joined form what is sent so, over `lo`.
fn gro() -> Result<(), Verdict> {
    let switches = Arc::default();
    let (from, to) = (socket(&switches)?, socket(&switches)?);
    if !switches.is_on(Offload::UdpGro) {
        return Err(Verdict::Missing("this kernel does not offer it".to_owned()));
    }
    let port = to.port().map_err(|error| untested("a socket", &error))?;
    let mut ring = RxRing::new();
    for shape in [&[100][..]].into_iter().chain(SHAPES) {
        let payloads = payloads(shape);
        let sent = from.send_whole(&packets(&payloads), (Ipv4Addr::LOCALHOST, port).into());
        sent.map_err(|error| untested("sending what is to be received", &error))?;
        let mut got: Vec<Vec<u8>> = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while got.len() < payloads.len() && readable(&to, deadline) {
            let count = to.receive(&mut ring);
            let count = count.map_err(|error| untested("receiving", &error))?;
            for number in 0..count {
                let datagrams = ring.take(number).into_iter().flat_map(|(_, all)| all);
                got.extend(datagrams.map(|datagram| datagram.to_vec()));
            }
        }
        let compared = match difference::of_datagrams(&payloads, &got) {
            None => Ok(()),
            Some(what) => Err(wrong(HANDS_ON, &what)),
        };
        doubted(shape, compared)?;
    }
    Ok(())
}

/// If single packets fail already, super-packets prove nothing.
fn doubted(shape: &[usize], compared: Result<(), Verdict>) -> Result<(), Verdict> {
    match compared {
        Err(Verdict::Fails(_)) if shape.len() == 1 => {
            let why = "no packet passes in a network namespace";
            Err(Verdict::Untested(why.to_owned()))
        }
        other => other,
    }
}

fn untested(what: &'static str, error: &io::Error) -> Verdict {
    Verdict::Untested(format!("{what}: {error}"))
}

fn socket(switches: &Arc<Switches>) -> Result<Udp, Verdict> {
    let bound = Udp::bind(0, 0, 1, switches).map_err(|error| untested("a socket", &error))?;
    let mut bound = bound.into_iter();
    bound
        .next()
        .ok_or_else(|| Verdict::Untested("no socket".to_owned()))
}

/// Waits until there is something, or the time is over; false if it is.
fn readable(file: &impl AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else {
            return false;
        };
        let mut files = [PollFd::new(file, PollFlags::IN)];
        match poll(&mut files, Some(&timeout)) {
            Ok(1..) => return true,
            Err(rustix::io::Errno::INTR) if !left.is_zero() => {}
            _ => return false,
        }
    }
}

/// The packets that a read of the device stands for, if they are of the flow that is wanted: the kernel looks for
/// routers and neighbours too.
fn take(read: &mut [u8], wanted: Option<FlowOf>, got: &mut Vec<Vec<u8>>) -> Result<(), Verdict> {
    let Some((vnet, packet)) = read.split_first_chunk_mut::<{ VnetHeader::LEN }>() else {
        return Ok(());
    };
    if flow_of(packet) != wanted {
        return Ok(());
    }
    let taken = VnetHeader::parse(vnet).and_then(|vnet| {
        let all = split(vnet, packet, |headers, payload| {
            got.push([headers, payload].concat());
        });
        all.ok()
    });
    taken.ok_or_else(|| {
        let why = "the kernel hands on a super-packet that contradicts its header";
        Verdict::Fails(why.to_owned())
    })
}

type FlowOf = (IpAddr, IpAddr, [u8; 4]);

/// Addresses and ports.
fn flow_of(packet: &[u8]) -> Option<FlowOf> {
    let (from, to) = addresses(packet)?;
    let l4 = if from.is_ipv4() { 20 } else { 40 };
    Some((from, to, *packet.get(l4..)?.first_chunk()?))
}

/// Of which packets.
#[derive(Clone, Copy, Debug)]
enum Make {
    Tcp,
    Udp,
}

/// Packets that can be one super-packet.
fn train(make: Make, flow: Flow, shape: &[usize]) -> Vec<Vec<u8>> {
    let mut sequence = 1;
    let last = shape.len() - 1;
    let payloads = payloads(shape);
    let packets = payloads.iter().enumerate().map(|(number, payload)| {
        let Make::Tcp = make else {
            return udp(flow, payload);
        };
        let flags = if number == last { ACK | PSH } else { ACK };
        let packet = tcp(flow, flags, sequence, payload);
        sequence += payload.len() as u32;
        packet
    });
    packets.collect()
}

/// Bytes of these lengths, of which no two are alike.
fn payloads(shape: &[usize]) -> Vec<Vec<u8>> {
    let byte = |number: usize, at: usize| (number * 7 + at * 31 + (at >> 8) * 13) as u8;
    let payload = |(number, len): (usize, &usize)| (0..*len).map(|at| byte(number, at)).collect();
    shape.iter().enumerate().map(payload).collect()
}

fn packets(payloads: &[Vec<u8>]) -> Vec<Packet> {
    let packet = |payload: &Vec<u8>| Packet::from_bytes(BytesMut::from(&payload[..]));
    payloads.iter().map(packet).collect()
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;
    use crate::testing::{V4, V6};

    #[test]
    fn without_permission_nothing_is_known_and_all_is_used() {
        // Of this thread alone, and of those that it starts.
        let thread = thread::spawn(|| {
            let mut own = capabilities(None).unwrap();
            own.effective.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, own).unwrap();
            tried()
        });
        let verdicts = thread.join().unwrap();
        let why = "making a network namespace: Operation not permitted (os error 1)";
        assert_eq!(verdicts, Verdicts::untested(why));
        let mut states = Switches::new(&verdicts).states().into_iter();
        assert!(states.all(|state| state.off.is_none()));
    }

    #[test]
    fn what_is_sent_is_one_super_packet_each_time() {
        for flow in [V4, V6] {
            for make in [Make::Tcp, Make::Udp] {
                for shape in SHAPES {
                    let mut joiner = Joiner::default();
                    joiner.join(true, true);
                    for packet in train(make, flow, shape) {
                        joiner.push(Packet::from_bytes(BytesMut::from(&packet[..])));
                    }
                    let mut counts = Vec::new();
                    joiner.flush(|_, count| counts.push(count as usize));
                    assert_eq!(counts, [shape.len()], "{make:?} {shape:?}");
                }
            }
        }
    }
}
