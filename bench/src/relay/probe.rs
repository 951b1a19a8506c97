//! Round trips between two clients of a server, while others load it.

use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use bytes::Buf as _;
use derp_proto::{Frame, kind, split_frame};
use keys::NodePublic;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::client::{self, Client};

/// Between two packets.
const EVERY: Duration = Duration::from_millis(5);
/// A packet that has not come back by then is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// Measures on a thread of its own, which the load's clients do not hold up.
pub(super) struct Probe(JoinHandle<Result<Vec<f64>>>);

impl Probe {
    /// Begins to measure, for this long.
    pub(super) fn start(address: SocketAddr, time: Duration) -> Probe {
        Probe(thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(measure(address, time))
        }))
    }

    /// Waits for the end; returns all round trips in milliseconds, in order of length.
    pub(super) fn finish(self) -> Result<Vec<f64>> {
        let times = self.0.join().map_err(|_| anyhow!("the probe panicked"))?;
        let mut times = times?;
        ensure!(!times.is_empty(), "no packet of the probe came back");
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

async fn measure(address: SocketAddr, time: Duration) -> Result<Vec<f64>> {
    let mut here = client::connect(address).await?;
    let mut there = client::connect(address).await?;
    let (near, far) = (here.key, there.key);
    let echo = async move {
        loop {
            let packet = receive(&mut there).await?;
            send(&mut there, near, &packet).await?;
        }
    };
    let ping = async {
        let (begin, mut times) = (Instant::now(), Vec::new());
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0_u64.. {
            ticks.tick().await;
            if begin.elapsed() >= time {
                break;
            }
            let sent = Instant::now();
            // As long as a WireGuard keepalive, and recognised when it comes back.
            let mut packet = [0; 32];
            packet[..8].copy_from_slice(&number.to_be_bytes());
            send(&mut here, far, &packet).await?;
            let back = async {
                while receive(&mut here).await? != packet {}
                anyhow::Ok(())
            };
            if let Ok(came) = timeout(LOST_AFTER, back).await {
                came?;
                times.push(sent.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(times)
    };
    tokio::select! {
        ended = echo => ended,
        times = ping => times,
    }
}

async fn send(client: &mut Client, destination: NodePublic, packet: &[u8]) -> Result<()> {
    let mut frame = Vec::new();
    Frame::SendPacket {
        destination,
        packet,
    }
    .encode(&mut frame);
    client.io.write_all(&frame).await?;
    Ok(client.io.flush().await?)
}

/// The next packet, without the key of who sent it.
async fn receive(client: &mut Client) -> Result<Vec<u8>> {
    loop {
        while let Some(raw) = split_frame(&client.buffer)? {
            let (kind, len) = (raw.kind, raw.wire_len());
            let packet = match Frame::parse(raw) {
                Ok(Frame::RecvPacket { packet, .. }) => packet.to_vec(),
                _ => Vec::new(),
            };
            client.buffer.advance(len);
            if kind == kind::RECV_PACKET {
                return Ok(packet);
            }
        }
        if client.io.read_buf(&mut client.buffer).await? == 0 {
            bail!("the server closed the probe");
        }
    }
}
