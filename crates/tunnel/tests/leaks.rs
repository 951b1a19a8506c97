//! Peers that come and go under mixed traffic: what a device holds does not grow.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use keys::{NodePrivate, NodePublic};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use testnet::{Namespace, scaled, veth, wait_until};
use tunnel::{Config, Device, Direction, Filter};

const MTU: u16 = 1280;
const PORTS: [u16; 2] = [51820, 51821];
const PATIENCE: Duration = Duration::from_secs(20);
/// Hosts with a peer; the first ones stay as they are.
const HOSTS: u8 = 6;
const STAYING: u8 = 2;
/// Peers that nobody is behind, of which one is replaced in each turn.
const SILENT: u8 = 50;
/// So many turns between two changes of the port.
const TURNS_A_PORT: usize = 20;
/// What memory may differ by: what allocators keep.
const SLACK: u64 = 12 << 20;
/// Bytes of one exchange over TCP, each way.
const EXCHANGE: usize = 512 << 10;

struct Open;

impl Filter for Open {
    fn admits(&self, _: Direction, _: &[u8]) -> bool {
        true
    }
}

fn device(space: &Namespace, key: &NodePrivate, port: u16) -> Result<Device> {
    let mut device = space.enter(|| {
        let mut device =
            Device::create(Config::new("wg0", MTU, tunnel::verdicts()), Arc::new(Open))?;
        device.bind(port, 0)?;
        io::Result::Ok(device)
    })??;
    device.update().set_key(key);
    Ok(device)
}

fn up(space: &Namespace, address: IpAddr) -> Result<()> {
    space.ip(&format!("address add {address}/32 dev wg0"))?;
    space.ip(&format!("link set wg0 up mtu {MTU}"))?;
    space.ip("route add 10.9.0.0/16 dev wg0")?;
    Ok(())
}

/// A host on a cable of its own, with the peer that it is at present.
struct Host {
    number: u8,
    space: Namespace,
    peer: Option<(NodePublic, Device)>,
}

impl Host {
    fn new(near: &Namespace, number: u8) -> Result<Host> {
        let space = Namespace::new("far")?;
        let cable = format!("cable{number}");
        veth((near, &cable), (&space, "cable"))?;
        near.ip(&format!("address add 10.8.{number}.1/24 dev {cable}"))?;
        space.ip(&format!("address add 10.8.{number}.2/24 dev cable"))?;
        Ok(Host {
            number,
            space,
            peer: None,
        })
    }

    fn inner(&self) -> IpAddr {
        [10, 9, 1, self.number].into()
    }

    /// Leaves, and comes as somebody else.
    fn replace(&mut self, near: &mut Device, us: &NodePublic, port: u16) -> Result<()> {
        if let Some((old, device)) = self.peer.take() {
            drop(device);
            near.update().remove_peer(&old);
        }
        let key = NodePrivate::generate();
        let mut device = device(&self.space, &key, PORTS[0])?;
        up(&self.space, self.inner())?;
        let mut update = device.update();
        update.add_peer(*us, Some(([10, 8, self.number, 1], port).into()));
        update.add_allowed_ips(us, [US.into()]);
        drop(update);
        let mut update = near.update();
        update.add_peer(
            key.public(),
            Some(([10, 8, self.number, 2], PORTS[0]).into()),
        );
        update.add_allowed_ips(&key.public(), [self.inner().into()]);
        drop(update);
        self.peer = Some((key.public(), device));
        Ok(())
    }
}

const US: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));

/// What the process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn now() -> Result<Held> {
        let status = fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.trim().strip_suffix(" kB"));
        Ok(Held {
            bytes: kib.context("no VmRSS")?.parse::<u64>()? << 10,
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            threads: fs::read_dir("/proc/self/task")?.count(),
        })
    }
}

/// Traffic that goes on until it is stopped.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    exchanges: AtomicU64,
}

impl Traffic {
    /// Calls `job` again and again.
    fn repeat(&self, mut job: impl FnMut(u64) -> Result<()>) -> Result<()> {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            job(number)?;
        }
        Ok(())
    }

    /// Bulk both ways at a time, in a new connection each time.
    fn bulk(&self, near: &Namespace, host: &Host) -> Result<()> {
        let at = (host.inner(), 0);
        let listener = host.space.enter(|| TcpListener::bind(at))??;
        let to = listener.local_addr()?;
        set_socket_timeout(&listener, Timeout::Recv, Some(scaled(PATIENCE)))?;
        self.repeat(|_| {
            let there = near.enter(|| TcpStream::connect_timeout(&to, scaled(PATIENCE)))??;
            let (back, _) = listener.accept()?;
            exchange(&there, &back)?;
            self.exchanges.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Datagrams of many sizes, in bursts, to whoever is there and to those who never are.
    fn datagrams(&self, near: &Namespace) -> Result<()> {
        let socket = near.enter(|| UdpSocket::bind((US, 0)))??;
        let payload = [7; 4000];
        self.repeat(|number| {
            for burst in 0..40 {
                let (net, host) = match burst {
                    0 => (2, number as u8 % SILENT),
                    at => (1, STAYING + at % (HOSTS - STAYING)),
                };
                // What waits for those that never answer is not to outweigh all else.
                let most = if net == 2 { 200 } else { payload.len() };
                let len = (number * 131 + u64::from(burst) * 997) as usize % most;
                let to = SocketAddr::from(([10, 9, net, host], 9));
                // ICMP says that nobody listens; a device is not there for a moment.
                let _ = socket.send_to(&payload[..len], to);
            }
            thread::sleep(Duration::from_millis(2));
            Ok(())
        })
    }

    /// Datagrams that look like WireGuard's, from the address of a peer.
    fn junk(&self, host: &Host) -> Result<()> {
        let socket = host.space.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        self.repeat(|number| {
            let len = [148, 92, 64, 32, 1200, 3][number as usize % 6];
            let mut datagram = vec![number as u8; len];
            datagram[..3].copy_from_slice(&[1 + number as u8 % 4, 0, 0]);
            for port in PORTS {
                let to = SocketAddr::from(([10, 8, host.number, 1], port));
                let _ = socket.send_to(&datagram, to);
            }
            thread::sleep(Duration::from_millis(1));
            Ok(())
        })
    }
}

/// Sends each way and waits until all is there.
fn exchange(a: &TcpStream, b: &TcpStream) -> Result<()> {
    thread::scope(|scope| {
        let ways = [(a, b), (b, a)].map(|(mut from, to)| {
            let sender = scope.spawn(move || {
                from.write_all(&vec![0x5a; EXCHANGE])?;
                from.shutdown(Shutdown::Write)
            });
            let receiver = scope.spawn(move || {
                to.set_read_timeout(Some(scaled(PATIENCE)))?;
                io::copy(&mut to.take(EXCHANGE as u64 + 1), &mut io::sink())
            });
            (sender, receiver)
        });
        for (sender, receiver) in ways {
            let failed = |_| anyhow!("a side of a connection panicked");
            sender.join().map_err(failed)??;
            let arrived = receiver.join().map_err(failed)??;
            ensure!(arrived == EXCHANGE as u64, "{arrived} bytes of {EXCHANGE}");
        }
        Ok(())
    })
}

/// `TUNNEL_SECONDS` makes it longer.
#[test]
fn what_a_device_holds_does_not_grow_while_peers_come_and_go() -> Result<()> {
    let seconds = std::env::var("TUNNEL_SECONDS").ok();
    let seconds: f64 = seconds.map_or(Ok(5.0), |text| text.parse())?;
    let near = Namespace::new("near")?;
    let hosts = (0..HOSTS).map(|number| Host::new(&near, number));
    let mut hosts = hosts.collect::<Result<Vec<_>>>()?;
    let key = NodePrivate::generate();
    let us = key.public();
    let mut ours = device(&near, &key, PORTS[0])?;
    up(&near, US)?;
    for host in &mut hosts {
        host.replace(&mut ours, &us, PORTS[0])?;
        carries(&near, host)?;
    }
    let mut silent: Vec<_> = (0..SILENT).map(|_| NodePrivate::generate()).collect();
    let begin = Instant::now();
    let before = Held::now()?;
    let traffic = Traffic::default();
    let (staying, moving) = hosts.split_at_mut(STAYING.into());
    let staying = &*staying;
    let held = thread::scope(|scope| {
        let (near, traffic) = (&near, &traffic);
        let mut jobs = Vec::new();
        for host in staying {
            jobs.push(scope.spawn(|| traffic.bulk(near, host)));
        }
        jobs.push(scope.spawn(|| traffic.datagrams(near)));
        jobs.push(scope.spawn(|| traffic.junk(&staying[0])));
        let mut turns = || -> Result<Vec<Held>> {
            let mut held = Vec::new();
            let mut port = PORTS[0];
            while begin.elapsed().as_secs_f64() < seconds {
                let turn = held.len();
                let at = turn % silent.len();
                let gone = std::mem::replace(&mut silent[at], NodePrivate::generate()).public();
                let come = silent[at].public();
                let mut update = ours.update();
                update.remove_peer(&gone);
                update.add_peer(come, Some(([10, 8, 0, 99], PORTS[0]).into()));
                update.add_allowed_ips(&come, [IpAddr::from([10, 9, 2, at as u8]).into()]);
                drop(update);
                if turn % TURNS_A_PORT == TURNS_A_PORT - 1 {
                    port = PORTS[turn / TURNS_A_PORT % 2];
                    near.enter(|| ours.bind(port, 0))??;
                    // They learn the port from what comes from there.
                    for host in staying {
                        carries(near, host)?;
                    }
                }
                let moving_at = turn % moving.len();
                let host = &mut moving[moving_at];
                host.replace(&mut ours, &us, port)?;
                carries(near, host)?;
                held.push(Held::now()?);
            }
            Ok(held)
        };
        let held = turns();
        traffic.stop.store(true, Ordering::Relaxed);
        for job in jobs {
            job.join().map_err(|_| anyhow!("a job panicked"))??;
        }
        held
    })?;
    let after = wait_until(PATIENCE, "descriptors and threads are as before", || {
        let after = Held::now()?;
        ensure!(
            after.descriptors == before.descriptors && after.threads == before.threads,
            "{after:?}, before {before:?}"
        );
        Ok(after)
    })?;
    let exchanges = traffic.exchanges.load(Ordering::Relaxed);
    // By the middle allocators have what they need for good.
    let (first, second) = held.split_at(held.len() / 2);
    let most = |part: &[Held]| part.iter().map(|held| held.bytes).max().context("no turn");
    let (settled, last) = (most(first)?, most(second)?);
    println!(
        "{} peers came and went in {seconds} s, {exchanges} exchanges over TCP; at most {} KiB, then {} KiB; at the end {after:?}",
        held.len(),
        settled >> 10,
        last >> 10,
    );
    println!("{:?}", ours.counters());
    ensure!(exchanges > 0, "nothing was exchanged");
    ensure!(
        last <= settled + SLACK,
        "memory grew from {settled} to {last} bytes"
    );
    Ok(())
}

fn carries(near: &Namespace, host: &Host) -> Result<()> {
    let to = host.inner().to_string();
    wait_until(PATIENCE, "a peer that came is reached", || {
        near.exec(&["ping", "-n", "-c", "1", "-W", "1", &to])
            .map(drop)
    })
}
