//! Bulk TCP whose every byte is checked.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use testnet::{Namespace, scaled};

/// A connection on which nothing moves for so long is broken.
const STALL: Duration = Duration::from_secs(20);

/// Sends `len` bytes over TCP from one host to `address` of the other and compares all of them.
///
/// # Errors
///
/// When the connection fails or stalls, or a byte differs.
pub fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, len: usize) -> Result<()> {
    let (sender, ready) = channel();
    thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            to.enter(move || -> Result<()> {
                let listener = TcpListener::bind((address, 0))?;
                sender.send(listener.local_addr()?)?;
                let (stream, _) = listener.accept()?;
                receive(stream, len)
            })?
        });
        let sent = from.enter(move || -> Result<()> {
            let server = ready
                .recv_timeout(scaled(STALL))
                .context("nobody listens")?;
            let stream = TcpStream::connect_timeout(&server, scaled(STALL))?;
            send(stream, len)
        });
        let sent = sent.and_then(|inner| inner);
        let received = match &sent {
            Ok(()) => receiver
                .join()
                .map_err(|_| anyhow!("the receiver panicked"))?,
            // Nobody will connect: wake the listener's thread by not waiting for it.
            Err(_) => return sent.context("sending failed"),
        };
        received.context("receiving failed")
    })
}

fn send(mut stream: TcpStream, len: usize) -> Result<()> {
    stream.set_write_timeout(Some(scaled(STALL)))?;
    stream.set_read_timeout(Some(scaled(STALL)))?;
    let mut pattern = Pattern::new();
    let mut left = len;
    let mut chunk = [0; 16 * 1024];
    while left > 0 {
        let part = left.min(chunk.len());
        pattern.fill(&mut chunk[..part]);
        stream.write_all(&chunk[..part])?;
        left -= part;
    }
    stream.shutdown(Shutdown::Write)?;
    // The receiver closes once it has checked everything.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    Ok(())
}

fn receive(mut stream: TcpStream, len: usize) -> Result<()> {
    stream.set_read_timeout(Some(scaled(STALL)))?;
    let mut pattern = Pattern::new();
    let mut at = 0;
    let (mut chunk, mut expected) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        let part = stream
            .read(&mut chunk)
            .with_context(|| format!("after {at} bytes"))?;
        if part == 0 {
            ensure!(at == len, "{at} of {len} bytes arrived");
            return Ok(());
        }
        pattern.fill(&mut expected[..part]);
        ensure!(chunk[..part] == expected[..part], "damage after byte {at}");
        at += part;
    }
}

/// Bytes without a short period: what is lost, doubled or out of order shows.
struct Pattern(u64);

impl Pattern {
    fn new() -> Pattern {
        Pattern(0x9e37_79b9_7f4a_7c15)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            // xorshift64 (Marsaglia 2003).
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *byte = (self.0 >> 32) as u8;
        }
    }
}
