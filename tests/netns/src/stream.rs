//! Numbered datagrams at a steady rate, both ways at once: which of them arrive, and when.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use testnet::tailnet::Node;
use testnet::{Namespace, time_scale};

/// Bytes in a datagram.
const SIZE: usize = 1000;
/// Datagrams in a second: with [`SIZE`], 4 Mbit/s. An emulated machine carries fewer.
fn rate() -> f64 {
    500.0 / time_scale()
}

/// How long after the last datagram the receiver still waits.
const GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);
/// How far a sender that the machine kept from running may be late before it gives up catching up: a
/// burst of more than the queues on its way hold would be lost by the test, not by the tunnel.
const LATE: Duration = Duration::from_millis(50);
/// Bytes a receiver may hold that the machine keeps from running: some seconds of the stream.
const ROOM: usize = 16 << 20;

/// What became of one direction's datagrams.
#[derive(Debug)]
pub struct Delivery {
    /// Datagrams that were sent.
    pub sent: usize,
    /// Datagrams that arrived, each counted once.
    pub arrived: usize,
    /// Longest time without an arrival while datagrams were sent, and when it began.
    pub silence: (Duration, Duration),
    /// When the first datagram was sent that did not arrive.
    pub first_lost: Option<Duration>,
}

impl Delivery {
    /// Datagrams that did not arrive.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.sent.saturating_sub(self.arrived)
    }
}

/// One end: where it is, and its address in the overlay.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The host.
    pub space: &'a Namespace,
    /// Its overlay address.
    pub address: IpAddr,
}

impl<'a> End<'a> {
    /// A node as an end.
    ///
    /// # Errors
    ///
    /// When it has no address.
    pub fn of(node: &'a Node) -> Result<Self> {
        Ok(Self {
            space: node.host().namespace(),
            address: node.ip("-4")?,
        })
    }
}

/// Sends 4 Mbit/s each way for `time`, and does `meanwhile`; returns what became of the datagrams, of `a` first.
///
/// # Errors
///
/// When a socket fails or `meanwhile` does.
pub fn both_ways(
    [a, b]: [End<'_>; 2],
    time: Duration,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<[Delivery; 2]> {
    let sockets = [a, b].map(|end| -> Result<UdpSocket> {
        let socket = end.space.enter(|| UdpSocket::bind((end.address, 0)))??;
        socket.set_read_timeout(Some(LOOK))?;
        set_socket_recv_buffer_size_force(&socket, ROOM)?;
        Ok(socket)
    });
    let [of_a, of_b] = sockets;
    let (of_a, of_b) = (of_a?, of_b?);
    of_a.connect(of_b.local_addr()?)?;
    of_b.connect(of_a.local_addr()?)?;
    let begin = Instant::now();
    thread::scope(|scope| {
        let (of_a, of_b) = (&of_a, &of_b);
        let senders = [of_a, of_b].map(|socket| scope.spawn(move || send(socket, begin, time)));
        let receivers =
            [of_b, of_a].map(|socket| scope.spawn(move || receive(socket, begin, time)));
        let did = meanwhile();
        let join = |outcome: thread::Result<Result<_>>| outcome.map_err(|_| anyhow!("panicked"))?;
        let [first, second] = senders.map(|sender| join(sender.join()));
        let sent = [first?, second?];
        let [first, second] = receivers.map(|receiver| receiver.join());
        did.context("meanwhile")?;
        let mut deliveries = Vec::new();
        for (sent, arrivals) in sent.into_iter().zip([first, second]) {
            let arrivals = arrivals.map_err(|_| anyhow!("panicked"))??;
            deliveries.push(delivery(&sent, &arrivals, time));
        }
        deliveries
            .try_into()
            .map_err(|_| anyhow!("not two directions"))
    })
}

/// Keeps the rate; a little late, it catches up. Returns when each datagram went out.
fn send(socket: &UdpSocket, begin: Instant, time: Duration) -> Result<Vec<Duration>> {
    let mut datagram = [0; SIZE];
    let mut sent = Vec::new();
    let mut due = Duration::ZERO;
    let step = Duration::from_secs_f64(1.0 / rate());
    while due < time {
        thread::sleep(due.saturating_sub(begin.elapsed()));
        let now = begin.elapsed();
        due = (due + step).max(now.saturating_sub(LATE));
        let number = u32::try_from(sent.len())?;
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        // An ICMP error of an earlier datagram, or a full queue: that datagram is lost, and counted so.
        let _ = socket.send(&datagram);
        sent.push(now);
    }
    Ok(sent)
}

fn receive(socket: &UdpSocket, begin: Instant, time: Duration) -> Result<Vec<(u32, Duration)>> {
    let mut arrivals = Vec::new();
    let mut datagram = [0; SIZE];
    let last = (time.as_secs_f64() * rate()) as usize;
    while arrivals.len() < last && begin.elapsed() < time + GRACE {
        let Ok(SIZE) = socket.recv(&mut datagram) else {
            continue;
        };
        let number = datagram.first_chunk().context("a short datagram")?;
        arrivals.push((u32::from_be_bytes(*number), begin.elapsed()));
    }
    Ok(arrivals)
}

fn delivery(sent: &[Duration], arrivals: &[(u32, Duration)], time: Duration) -> Delivery {
    let numbers: BTreeSet<u32> = arrivals.iter().map(|(number, _)| *number).collect();
    let times = arrivals.iter().map(|(_, at)| *at).filter(|at| *at < time);
    let ends: Vec<Duration> = times.clone().chain([time]).collect();
    let begins = [Duration::ZERO].into_iter().chain(times);
    let gaps = begins.zip(ends).map(|(begin, end)| (end - begin, begin));
    let silence = gaps.max().unwrap_or_default();
    let lost = |(number, _): &(u32, _)| !numbers.contains(number);
    let first_lost = (0..).zip(sent.iter().copied()).find(lost);
    Delivery {
        sent: sent.len(),
        arrived: numbers.len(),
        silence,
        first_lost: first_lost.map(|(_, at)| at),
    }
}
