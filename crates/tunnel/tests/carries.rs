//! Real devices between network namespaces: ours at both ends, and stock gotatun at one.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::BytesMut;
use keys::{NodePrivate, NodePublic};
use testnet::{Namespace, scaled, veth, wait_until};
use tokio::runtime::Runtime;
use tunnel::{
    Config, Datagrams, Device, Direction, Filter, Inlet, Offload, Relay, Relaying, Verdict,
};

const MTU: u16 = 1280;
const PORT: u16 = 51820;
const PATIENCE: Duration = Duration::from_secs(20);
/// What is said of an offload that fails.
const LIE: &str = "it lies";
/// Bytes of each transfer: thousands of super-packets.
const AMOUNT: usize = 40 << 20;

struct Open;

impl Filter for Open {
    fn admits(&self, _: Direction, _: &[u8]) -> bool {
        true
    }
}

/// Which WireGuard an end runs; it ends when dropped.
enum Engine {
    Ours(Device),
    Stock(#[expect(dead_code, reason = "holds the device")] Stock),
}

type Stock = (
    gotatun::device::Device<gotatun::device::DefaultDeviceTransports>,
    Runtime,
);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Ours,
    /// Ours where none of these works.
    Without(&'static [Offload]),
    Stock,
}

/// What carries the tunnel's datagrams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Underlay {
    V4,
    V6,
    /// A relay in this process; it works with ours only.
    Relay,
}

/// Hands what is sent to the other end's device, on a thread of its own.
struct Line(mpsc::SyncSender<Vec<BytesMut>>);

impl Line {
    fn new(to: Inlet, from: SocketAddr) -> Line {
        let (sender, receiver) = mpsc::sync_channel::<Vec<BytesMut>>(4096);
        thread::spawn(move || {
            for datagrams in receiver {
                to.deliver(from, datagrams.into_iter());
            }
        });
        Line(sender)
    }
}

impl Relay for Line {
    fn has(&self, address: SocketAddr) -> bool {
        address.ip().is_loopback()
    }

    fn send(&self, _: SocketAddr, datagrams: Datagrams<'_>) -> Option<SocketAddr> {
        // What finds no room is lost, as on any network.
        let _ = self
            .0
            .try_send(datagrams.iter().map(BytesMut::from).collect());
        None
    }
}

/// One end: a host with an underlay of both families, and a tunnel.
struct End {
    space: Namespace,
    key: NodePrivate,
    number: u8,
    inlet: Inlet,
    engine: Option<Engine>,
}

impl End {
    fn new(label: &str, number: u8) -> Result<End> {
        Ok(End {
            space: Namespace::new(label)?,
            key: NodePrivate::generate(),
            number,
            inlet: Inlet::default(),
            engine: None,
        })
    }

    fn inner(&self) -> [IpAddr; 2] {
        let number = self.number;
        [
            [10, 9, 0, number].into(),
            [0xfd09, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
        ]
    }

    fn outer(&self, underlay: Underlay) -> SocketAddr {
        let number = self.number;
        let address: IpAddr = match underlay {
            Underlay::V4 => [10, 8, 0, number].into(),
            Underlay::V6 => [0xfd08, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
            Underlay::Relay => [127, 64, 0, number].into(),
        };
        (address, PORT).into()
    }

    /// Makes the device, with `other` as its peer.
    fn start(&mut self, kind: Kind, other: &End, underlay: Underlay) -> Result<()> {
        let peer = (other.key.public(), other.outer(underlay), other.inner());
        let key = self.key.clone();
        let relaying = (underlay == Underlay::Relay).then(|| Relaying {
            relay: Arc::new(Line::new(other.inlet.clone(), self.outer(underlay))),
            inlet: self.inlet.clone(),
        });
        let engine = self.space.enter(move || match kind {
            Kind::Ours => ours(&key, peer, relaying, &[]).map(Engine::Ours),
            Kind::Without(fail) => ours(&key, peer, relaying, fail).map(Engine::Ours),
            Kind::Stock => stock(&key, peer).map(Engine::Stock),
        })??;
        self.engine = Some(engine);
        let [v4, v6] = self.inner();
        self.space.ip(&format!("address add {v4}/24 dev wg0"))?;
        self.space
            .ip(&format!("address add {v6}/64 dev wg0 nodad"))?;
        // Room for what the host sends while the machine lets the tunnel's thread wait.
        self.space
            .ip(&format!("link set wg0 up mtu {MTU} txqueuelen 10000"))?;
        Ok(())
    }
}

type PeerOf = (NodePublic, SocketAddr, [IpAddr; 2]);

fn ours(
    key: &NodePrivate,
    (peer, endpoint, inner): PeerOf,
    relaying: Option<Relaying>,
    fail: &[Offload],
) -> Result<Device> {
    let verdicts = fail
        .iter()
        .fold(tunnel::verdicts().clone(), |verdicts, offload| {
            verdicts.with(*offload, Verdict::Fails(LIE.to_owned()))
        });
    // More than one worker, whatever the machine has: nothing may depend on there being one.
    let config = Config {
        workers: NonZeroUsize::new(3).context("zero")?,
        ..Config::new("wg0", MTU, &verdicts)
    };
    let mut device = Device::create(config, Arc::new(Open))?;
    if let Some(relaying) = relaying {
        device.set_relaying(relaying);
    }
    let mut update = device.update();
    update.set_key(key);
    update.add_peer(peer, Some(endpoint));
    update.add_allowed_ips(&peer, inner.map(Into::into));
    drop(update);
    device.bind(PORT, 0)?;
    Ok(device)
}

fn stock(key: &NodePrivate, (peer, endpoint, inner): PeerOf) -> Result<Stock> {
    // Its threads are of this namespace.
    let runtime = Runtime::new()?;
    let mut new = gotatun::device::Peer::new((*peer.as_bytes()).into())
        .with_allowed_ips(inner.map(Into::into));
    new.endpoint = Some(endpoint);
    let entered = runtime.enter();
    let device = gotatun::device::build()
        .with_default_udp()
        .create_tun("wg0")?
        .with_private_key((*key.as_bytes()).into())
        .with_listen_port(PORT)
        .with_peer(new)
        .build();
    drop(entered);
    let device = runtime.block_on(device)?;
    Ok((device, runtime))
}

/// Two ends whose tunnel runs over this, and carries.
fn pair(kinds: [Kind; 2], underlay: Underlay) -> Result<[End; 2]> {
    let (mut a, mut b) = (End::new("a", 1)?, End::new("b", 2)?);
    veth((&a.space, "cable"), (&b.space, "cable"))?;
    for end in [&a, &b] {
        let number = end.number;
        end.space
            .ip(&format!("address add 10.8.0.{number}/24 dev cable"))?;
        end.space
            .ip(&format!("address add fd08::{number}/64 dev cable nodad"))?;
    }
    a.start(kinds[0], &b, underlay)?;
    b.start(kinds[1], &a, underlay)?;
    let to = b.inner()[0].to_string();
    wait_until(PATIENCE, "the tunnel carries", || {
        a.space
            .exec(&["ping", "-n", "-c", "1", "-W", "1", &to])
            .map(drop)
    })?;
    Ok([a, b])
}

/// A stream of bytes that repeats itself in no packet's distance.
struct Stream(u64);

impl Stream {
    fn fill(&mut self, chunk: &mut [u8]) {
        for word in chunk.chunks_mut(8) {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            word.copy_from_slice(&self.0.to_be_bytes()[..word.len()]);
        }
    }
}

/// Sends [`AMOUNT`] from one end to the other and compares every byte.
fn transfer(from: &End, to: &End, family: usize) -> Result<()> {
    let address = (to.inner()[family], 0);
    let listener = to.space.enter(|| TcpListener::bind(address))??;
    let address = listener.local_addr()?;
    let mut sending = from.space.enter(|| TcpStream::connect(address))??;
    let sender = thread::spawn(move || -> Result<()> {
        let (mut stream, mut chunk) = (Stream(1), vec![0; 64 << 10]);
        for _ in 0..AMOUNT / chunk.len() {
            stream.fill(&mut chunk);
            sending.write_all(&chunk)?;
        }
        sending.shutdown(Shutdown::Write)?;
        Ok(())
    });
    let (mut receiving, _) = listener.accept()?;
    receiving.set_read_timeout(Some(scaled(PATIENCE)))?;
    let (mut stream, mut expected, mut got) = (Stream(1), vec![0; 64 << 10], vec![0; 64 << 10]);
    for number in 0..AMOUNT / got.len() {
        stream.fill(&mut expected);
        receiving.read_exact(&mut got)?;
        ensure!(got == expected, "chunk {number} differs");
    }
    ensure!(receiving.read(&mut got)? == 0, "more than was sent");
    sender.join().map_err(|_| anyhow!("the sender panicked"))?
}

/// Data there, back, and both ways at once, inside over both families.
fn carries(kinds: [Kind; 2], underlay: Underlay) -> Result<()> {
    let [a, b] = &pair(kinds, underlay)?;
    let there = |family| transfer(a, b, family).with_context(|| format!("there, family {family}"));
    let back = |family| transfer(b, a, family).with_context(|| format!("back, family {family}"));
    for family in 0..2 {
        there(family)?;
        back(family)?;
        thread::scope(|scope| {
            let other = scope.spawn(|| back(family));
            there(family).and(other.join().map_err(|_| anyhow!("it panicked"))?)
        })
        .context("both ways at once")?;
    }
    Ok(())
}

#[test]
fn data_arrives_whole_between_two_of_ours() -> Result<()> {
    carries([Kind::Ours, Kind::Ours], Underlay::V4)?;
    carries([Kind::Ours, Kind::Ours], Underlay::V6)
}

#[test]
fn data_arrives_whole_with_stock_gotatun_at_the_other_end() -> Result<()> {
    carries([Kind::Ours, Kind::Stock], Underlay::V4)?;
    carries([Kind::Stock, Kind::Ours], Underlay::V6)
}

#[test]
fn data_arrives_whole_over_a_relay_in_the_process() -> Result<()> {
    carries([Kind::Ours, Kind::Ours], Underlay::Relay)
}

#[test]
fn data_arrives_whole_without_offloads() -> Result<()> {
    let kinds = |fail| [Kind::Without(fail), Kind::Ours];
    carries(kinds(&Offload::ALL), Underlay::V4)?;
    carries(kinds(&[Offload::TunTcp, Offload::UdpSegment]), Underlay::V6)
}

#[test]
fn a_device_says_which_offloads_it_does_without() -> Result<()> {
    let fail = &[Offload::TunUdp, Offload::UdpSegment];
    let [a, b] = pair([Kind::Without(fail), Kind::Ours], Underlay::V4)?;
    for (end, fail) in [(&a, &fail[..]), (&b, &[])] {
        let Some(Engine::Ours(device)) = &end.engine else {
            return Err(anyhow!("it is not ours"));
        };
        for state in device.offloads() {
            let lie = fail.contains(&state.offload).then(|| LIE.to_owned());
            let expected = lie.or_else(|| match tunnel::verdicts().of(state.offload) {
                Verdict::Missing(why) => Some(why.clone()),
                _ => None,
            });
            ensure!(state.off == expected, "{state:?}");
        }
    }
    Ok(())
}

/// Datagrams in a second and flow, and flows.
const RATE: f64 = 4000.0;
const FLOWS: usize = 3;

#[test]
fn datagrams_of_a_flow_stay_in_order_and_none_is_lost() -> Result<()> {
    in_order(Underlay::V4)
}

#[test]
fn nor_is_one_over_a_relay_in_the_process() -> Result<()> {
    in_order(Underlay::Relay)
}

/// `TUNNEL_SECONDS` makes it longer: sessions are made anew every 120.
fn in_order(underlay: Underlay) -> Result<()> {
    let seconds = std::env::var("TUNNEL_SECONDS").ok();
    let seconds: f64 = seconds.map_or(Ok(5.0), |text| text.parse())?;
    let [a, b] = pair([Kind::Ours, Kind::Ours], underlay)?;
    let mut threads = Vec::new();
    for flow in 0..FLOWS {
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (from_at, to_at) = ((from.inner()[flow % 2], 0), (to.inner()[flow % 2], 0));
            let sending = from.space.enter(|| UdpSocket::bind(from_at))??;
            let receiving = to.space.enter(|| UdpSocket::bind(to_at))??;
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiving, 16 << 20)?;
            sending.connect(receiving.local_addr()?)?;
            // Of one size, of different ones, and large.
            let size = move |number: u64| match flow {
                0 => 200,
                1 => 100 + (number * 37 % 900) as usize,
                _ => 1200,
            };
            let sender = thread::spawn(move || send(&sending, seconds, size));
            threads.push((flow, sender, thread::spawn(move || receive(&receiving))));
        }
    }
    for (flow, sender, receiver) in threads {
        let sent = sender.join().map_err(|_| anyhow!("a sender panicked"))??;
        let arrived = receiver
            .join()
            .map_err(|_| anyhow!("a receiver panicked"))??;
        println!("flow {flow}: {sent} sent, {arrived} arrived in order");
        ensure!(
            sent == arrived,
            "flow {flow}: {sent} sent, {arrived} arrived in order"
        );
    }
    Ok(())
}

/// Sends numbered datagrams, then a few that say how many there were.
fn send(socket: &UdpSocket, seconds: f64, size: impl Fn(u64) -> usize) -> Result<u64> {
    let begin = Instant::now();
    let mut number = 0u64;
    let mut datagram = [0; 1200];
    while begin.elapsed().as_secs_f64() < seconds {
        // As many as are due by now: they leave as a burst.
        while (number as f64) < begin.elapsed().as_secs_f64() * RATE {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            socket.send(&datagram[..size(number)])?;
            number += 1;
        }
        thread::sleep(Duration::from_millis(3));
    }
    datagram[..8].copy_from_slice(&u64::MAX.to_be_bytes());
    for _ in 0..5 {
        socket.send(&datagram[..100])?;
    }
    Ok(number)
}

/// Counts datagrams that come in order; one that is out of it is an error.
fn receive(socket: &UdpSocket) -> Result<u64> {
    socket.set_read_timeout(Some(scaled(PATIENCE)))?;
    let mut datagram = [0; 2048];
    let mut arrived = 0;
    let mut next = 0;
    loop {
        let len = socket.recv(&mut datagram)?;
        let number = datagram[..len].first_chunk().context("a short datagram")?;
        let number = u64::from_be_bytes(*number);
        if number == u64::MAX {
            return Ok(arrived);
        }
        ensure!(number >= next, "{number} after {}", next - 1);
        next = number + 1;
        arrived += 1;
    }
}
