//! Round trips: ICMP by `ping -f`, and UDP by a client and a server of our own.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use testnet::{Namespace, scaled};

/// Round trips before the clock starts: caches and flow tables are filled, sessions are up.
const WARM_UP: u32 = 200;
const DEADLINE: Duration = Duration::from_secs(5);
/// Ends the server.
const END: &[u8] = b"end";

/// Time of `count` round trips of `payload` bytes after the ICMP header, as `ping` itself tells it:
/// from the first packet to the last answer.
///
/// # Errors
///
/// When a packet is lost.
pub(super) fn ping(from: &Namespace, to: Ipv4Addr, payload: u32, count: u32) -> Result<Duration> {
    let flood = |count: u32| {
        let (payload, count) = (payload.to_string(), count.to_string());
        let to = to.to_string();
        from.exec(&["ping", "-q", "-f", "-c", &count, "-s", &payload, &to])
    };
    flood(WARM_UP)?;
    let text = flood(count)?;
    let milliseconds = time(&text).with_context(|| format!("ping lost packets: {text}"))?;
    Ok(Duration::from_millis(milliseconds))
}

/// The time in ping's summary, if nothing was lost.
fn time(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("transmitted"))?;
    let (_, after) = line.split_once(" 0% packet loss, time ")?;
    after.strip_suffix("ms")?.parse().ok()
}

/// Time of `count` round trips of UDP datagrams of `payload` bytes; `warm` is called once the flow is
/// known everywhere.
///
/// # Errors
///
/// When a datagram is lost.
pub(super) fn udp(
    client: &Namespace,
    (server, address): (&Namespace, SocketAddr),
    payload: u32,
    count: u32,
    warm: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    thread::scope(|scope| {
        let (ready, listening) = channel();
        let server = scope.spawn(move || server.enter(|| serve(address, &ready))?);
        listening.recv().context("the server does not listen")?;
        // It stays in the namespace in which it was made.
        let socket = client.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        let took = ask(&socket, address, payload, count, warm)?;
        let served = server.join().map_err(|_| anyhow!("the server panicked"))?;
        served?;
        Ok(took)
    })
}

/// Time of sending `count` datagrams of `payload` bytes that nobody wants. On one processor each has
/// come to its end before the next one leaves.
///
/// # Errors
///
/// When one cannot be sent.
pub(super) fn throw(
    from: &Namespace,
    to: SocketAddr,
    payload: u32,
    count: u32,
) -> Result<Duration> {
    let socket = from.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let datagram = vec![0xa5; usize::try_from(payload)?];
    let throw = |count: u32| (0..count).try_for_each(|_| socket.send_to(&datagram, to).map(drop));
    throw(WARM_UP)?;
    let begin = Instant::now();
    throw(count)?;
    Ok(begin.elapsed())
}

fn serve(address: SocketAddr, ready: &Sender<()>) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(scaled(DEADLINE)))?;
    ready.send(()).context("the client is gone")?;
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).context("no datagram came")?;
        if &buffer[..length] == END {
            return Ok(());
        }
        socket.send_to(&buffer[..length], peer)?;
    }
}

fn ask(
    socket: &UdpSocket,
    address: SocketAddr,
    payload: u32,
    count: u32,
    warm: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    socket.connect(address)?;
    socket.set_read_timeout(Some(scaled(DEADLINE)))?;
    let datagram = vec![0; usize::try_from(payload)?];
    let mut buffer = [0; 2048];
    let mut round_trips = |count: u32| -> Result<()> {
        for number in 0..count {
            socket.send(&datagram)?;
            let length = socket.recv(&mut buffer).map_err(|error| {
                let late = [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind());
                let what = if late { "was lost" } else { "failed" };
                anyhow!(error).context(format!("round trip {number} {what}"))
            })?;
            ensure!(length == datagram.len(), "{length} bytes came back");
        }
        Ok(())
    };
    round_trips(WARM_UP)?;
    warm()?;
    let begin = Instant::now();
    round_trips(count)?;
    let took = begin.elapsed();
    socket.send(END)?;
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_without_loss_tells_its_time() {
        let text = "PING 100.64.0.2 (100.64.0.2) 56(84) bytes of data.\n\n\
            --- 100.64.0.2 ping statistics ---\n\
            2000 packets transmitted, 2000 received, 0% packet loss, time 653ms\n\
            rtt min/avg/max/mdev = 0.3/0.3/0.4/0.0 ms, ipg/ewma 0.326/0.327 ms\n";
        assert_eq!(time(text), Some(653));
        let lossy = text.replace("2000 received, 0%", "1998 received, 0.1%");
        assert_eq!(time(&lossy), None);
    }
}
