//! A UDP service that sends datagrams back, and says whom they seem to come from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::{Namespace, scaled};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// How often the service looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// A UDP service on all addresses of a host: each datagram is answered with its sender's address as
/// text, then filled up to its length. Dropped, it ends.
#[derive(Debug)]
pub struct Echo {
    port: u16,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Serves on `port` in `space`, over both families.
    ///
    /// # Errors
    ///
    /// When the port cannot be had.
    pub fn serve(space: &Namespace, port: u16) -> Result<Echo> {
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        // One socket a family: answers leave from where the datagram was sent to only if the
        // socket is bound to it, so each address has its own.
        for address in addresses(space)? {
            let socket = space.enter(|| UdpSocket::bind((address, port)))??;
            socket.set_read_timeout(Some(LOOK))?;
            let ended = Arc::clone(&ended);
            threads.push(thread::spawn(move || answer(&socket, &ended)));
        }
        Ok(Echo {
            port,
            ended,
            threads,
        })
    }

    /// Sends `len` bytes from `space` to the service at `address`; returns the sender's address as
    /// the service saw it.
    ///
    /// # Errors
    ///
    /// When no answer comes, or not the right one.
    pub fn call(&self, space: &Namespace, address: IpAddr, len: usize) -> Result<IpAddr> {
        self.flow(space, address)?.call(len)
    }

    /// A flow from `space` to the service at `address`, for several calls.
    ///
    /// # Errors
    ///
    /// When no socket can be had.
    pub fn flow(&self, space: &Namespace, address: IpAddr) -> Result<Flow> {
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = space.enter(|| UdpSocket::bind((any, 0)))??;
        socket.set_read_timeout(Some(scaled(ANSWER)))?;
        space.enter(|| socket.connect((address, self.port)))??;
        Ok(Flow { socket, address })
    }
}

/// A flow to an [`Echo`].
#[derive(Debug)]
pub struct Flow {
    socket: UdpSocket,
    address: IpAddr,
}

impl Flow {
    /// As [`Echo::call`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn call(&mut self, len: usize) -> Result<IpAddr> {
        self.socket.send(&vec![0; len])?;
        let mut answer = vec![0; len + 1];
        let got = self
            .socket
            .recv(&mut answer)
            .with_context(|| format!("no answer to {len} bytes from {}", self.address))?;
        ensure!(got == len, "{got} of {len} bytes came back");
        let text = String::from_utf8_lossy(&answer[..got]);
        let text = text.trim_matches(|c: char| c == '\0');
        text.parse()
            .with_context(|| format!("not an address: {text:?}"))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of the service shows as a missing answer.
            let _ = thread.join();
        }
    }
}

fn answer(socket: &UdpSocket, ended: &AtomicBool) {
    let mut datagram = vec![0; 1 << 16];
    while !ended.load(Ordering::Relaxed) {
        let (len, from) = match socket.recv_from(&mut datagram) {
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            // An ICMP error about an earlier answer.
            Err(_) => continue,
        };
        if let Err(error) = send_back(socket, from, len) {
            eprintln!("echo: {error}");
        }
    }
}

fn send_back(socket: &UdpSocket, from: SocketAddr, len: usize) -> io::Result<()> {
    let mut text = from.ip().to_canonical().to_string().into_bytes();
    text.resize(len, 0);
    socket.send_to(&text, from).map(drop)
}

/// The addresses of a host, but for link-local ones.
fn addresses(space: &Namespace) -> Result<Vec<IpAddr>> {
    let listed = space.ip("-o address show scope global")?;
    let address = |line: &str| {
        let prefix = line.split_whitespace().nth(3)?;
        prefix.split('/').next()?.parse().ok()
    };
    Ok(listed.lines().filter_map(address).collect())
}
