//! Pairs of clients that send and receive, and count.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use bytes::{Buf as _, BytesMut};
use derp_proto::{Frame, KEY_LEN, PACKET_HEADER_LEN, kind, split_frame};
use keys::NodePublic;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::client::{self, Client};

/// A window that does not move for this long has lost its packets.
const LOST_AFTER: Duration = Duration::from_millis(50);

/// Running pairs.
pub(super) struct Load {
    tasks: JoinSet<anyhow::Result<()>>,
    pairs: Vec<Arc<Pair>>,
}

/// Packets of all pairs since the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    pub(super) sent: u64,
    pub(super) received: u64,
}

#[derive(Default)]
struct Pair {
    sent: AtomicU64,
    received: AtomicU64,
    /// One more than the number of the newest packet received.
    newest: AtomicU64,
    moved: Notify,
}

impl Load {
    /// Connects `pairs` pairs and lets them run.
    pub(super) async fn start(
        address: SocketAddr,
        pairs: usize,
        packet: usize,
        window: u64,
    ) -> anyhow::Result<Self> {
        let mut load = Self {
            tasks: JoinSet::new(),
            pairs: Vec::new(),
        };
        for _ in 0..pairs {
            let (from, to) = (
                client::connect(address).await?,
                client::connect(address).await?,
            );
            let pair = Arc::new(Pair::default());
            load.pairs.push(Arc::clone(&pair));
            let destination = to.key;
            let (reader, writer) = tokio::io::split(from.io);
            load.tasks.spawn(drain(reader));
            load.tasks
                .spawn(send(writer, destination, packet, window, Arc::clone(&pair)));
            load.tasks.spawn(receive(to, pair));
        }
        Ok(load)
    }

    pub(super) fn totals(&self) -> Totals {
        let sum = |of: fn(&Pair) -> &AtomicU64| {
            self.pairs
                .iter()
                .map(|pair| of(pair).load(Ordering::Relaxed))
                .sum()
        };
        Totals {
            sent: sum(|pair| &pair.sent),
            received: sum(|pair| &pair.received),
        }
    }

    /// Ends all pairs; an error if one had ended by itself.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(ended) = self.tasks.try_join_next() {
            ended??;
            bail!("a connection ended during the measurement");
        }
        self.tasks.shutdown().await;
        Ok(())
    }
}

async fn send(
    mut io: WriteHalf<TlsStream<TcpStream>>,
    destination: NodePublic,
    packet: usize,
    window: u64,
    pair: Arc<Pair>,
) -> anyhow::Result<()> {
    let filling = vec![0x5A; packet];
    let mut frame = Vec::new();
    Frame::SendPacket {
        destination,
        packet: &filling,
    }
    .encode(&mut frame);
    let payload = PACKET_HEADER_LEN;
    for number in 0_u64.. {
        let mut lost = 0;
        while window > 0 && number - pair.newest.load(Ordering::Relaxed).max(lost) >= window {
            if timeout(LOST_AFTER, pair.moved.notified()).await.is_err() {
                lost = number;
            }
        }
        frame[payload..payload + 8].copy_from_slice(&number.to_be_bytes());
        io.write_all(&frame).await?;
        io.flush().await?;
        pair.sent.store(number + 1, Ordering::Relaxed);
    }
    Ok(())
}

async fn receive(client: Client, pair: Arc<Pair>) -> anyhow::Result<()> {
    let Client {
        mut io, mut buffer, ..
    } = client;
    loop {
        let mut count = 0;
        while let Some(raw) = split_frame(&buffer)? {
            if raw.kind == kind::RECV_PACKET
                && let Some(number) = raw.body[KEY_LEN..].first_chunk()
            {
                count += 1;
                let newest = u64::from_be_bytes(*number) + 1;
                pair.newest.fetch_max(newest, Ordering::Relaxed);
            }
            let len = raw.wire_len();
            buffer.advance(len);
        }
        if count > 0 {
            pair.received.fetch_add(count, Ordering::Relaxed);
            pair.moved.notify_one();
        }
        buffer.reserve(64 << 10);
        if io.read_buf(&mut buffer).await? == 0 {
            bail!("the server closed a receiver");
        }
    }
}

/// Senders get keepalives only; unread they would stop nothing, but let us see the end.
async fn drain(mut io: ReadHalf<TlsStream<TcpStream>>) -> anyhow::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        if io.read_buf(&mut buffer).await? == 0 {
            bail!("the server closed a sender");
        }
        while let Some(raw) = split_frame(&buffer)? {
            if let Frame::Health(text) = Frame::parse(raw)? {
                bail!("the server is unwell: {text}");
            }
            let len = raw.wire_len();
            buffer.advance(len);
        }
    }
}
