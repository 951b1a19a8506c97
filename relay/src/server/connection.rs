//! One client's connection: a task that reads frames, forwards packets and empties its outbox.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use derp_proto::{
    Frame, HEADER_LEN, KEY_LEN, MAX_BODY_LEN, MAX_PACKET_LEN, PACKET_HEADER_LEN, PeerGoneReason,
    RawFrame, is_disco, kind, rewrite_send_to_recv, split_frame,
};
use keys::NodePublic;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::Server;
use super::outbox::{Class, Pushed, Taken};
use super::registry::{Client, Delivered, peer_gone};

/// Room for one read. Large, so that a busy client costs few reads; freed while it is idle.
const READ_CHUNK: usize = 64 << 10;

/// Most bytes of one run: about a TLS record, so that a full queue loses little at a time.
const MAX_RUN: usize = 16 << 10;

/// Shorter runs are copied out of their chunk: a slice keeps the whole chunk in memory.
const MIN_SHARED_RUN: usize = 8 << 10;

/// Most bytes taken from the outbox for one round of writing.
const WRITE_BATCH: usize = 64 << 10;

/// Most slices of one vectored write.
const MAX_SLICES: usize = 64;

/// Longest Ping that is read; only its first eight bytes count.
const MAX_PING_LEN: usize = 1000;

/// Longest body of other frames that have a fixed layout: room for later versions to add fields.
const MAX_SMALL_LEN: usize = 1000;

/// PeerGone(not here) frames that may follow each other at once; then one a second.
const NOT_HERE_BURST: u32 = 3;

/// Time in which a mesh server must take something.
const MESH_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Receivers remembered per sender before the list is cleaned of those who left.
const DELIVERED_SOFT_LIMIT: usize = 1024;

/// How a client's connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// The client closed it.
    #[error("closed by the client")]
    ByClient,
    /// It was kicked, or the server is closing.
    #[error("closed by the relay")]
    ByRelay,
    /// It broke.
    #[error("broken: {0}")]
    Broken(io::Error),
    /// The client sent what it must not.
    #[error("the client sent a frame of type 0x{kind:02x} with a body of {len} bytes")]
    BadFrame {
        /// Frame type.
        kind: u8,
        /// Announced body length in bytes.
        len: usize,
    },
    /// The client took nothing for too long.
    #[error("the client took no data for too long")]
    Stuck,
}

/// A client's connection; leaves the registry when dropped.
pub(super) struct Connection<T> {
    server: Server,
    client: Arc<Client>,
    io: T,
    /// Read and not yet dealt with. Has no room while the client is idle.
    incoming: BytesMut,
    /// Bytes of an unknown frame still to come.
    skip: usize,
    /// Taken from the outbox and not yet written.
    outgoing: VecDeque<Bytes>,
    needs_flush: bool,
    /// The pong that is due; a client that pings faster than it reads gets fewer.
    pong: Option<[u8; 8]>,
    delivered: Delivered,
    not_here: NotHereLimit,
    home: bool,
    timer: Pin<Box<Sleep>>,
    keepalive: Duration,
    keepalive_at: Instant,
    write_timeout: Duration,
    /// Since when nothing could be written.
    blocked_since: Option<Instant>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    /// Enters the client into the registry; `greeting` is the first that it will be sent.
    pub(super) fn new(
        server: Server,
        client: Arc<Client>,
        io: T,
        incoming: BytesMut,
        greeting: Bytes,
    ) -> Self {
        let config = &server.0.config;
        let keepalive = config.keepalive + Duration::from_millis(rand::random_range(0..5000));
        let keepalive_at = Instant::now() + keepalive;
        let write_timeout = match client.traits.mesh {
            true => MESH_WRITE_TIMEOUT,
            false => config.write_timeout,
        };
        server.0.registry.insert(&client);
        Self {
            client,
            io,
            incoming,
            skip: 0,
            outgoing: VecDeque::from([greeting]),
            needs_flush: false,
            pong: None,
            delivered: Delivered::new(),
            not_here: NotHereLimit::new(),
            home: false,
            timer: Box::pin(tokio::time::sleep_until(keepalive_at)),
            keepalive,
            keepalive_at,
            write_timeout,
            blocked_since: None,
            server,
        }
    }

    /// Runs until the connection ends.
    pub(super) async fn run(mut self) -> Ended {
        // The handshake may have read more than its own frames.
        if let Err(ended) = self.handle_incoming() {
            return ended;
        }
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Ready when the connection ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        match self.poll_io(cx) {
            Ok(()) => Poll::Pending,
            Err(ended) => Poll::Ready(ended),
        }
    }

    /// Returns when both directions and the timer wait for something.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        loop {
            // Writing first: it empties queues that reading fills.
            self.poll_write(cx)?;
            match self.poll_read(cx)? {
                // A pong may be due now.
                Poll::Ready(()) => {}
                Poll::Pending => break,
            }
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            self.handle_timeout()?;
            self.poll_write(cx)?;
        }
        Ok(())
    }

    fn handle_timeout(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        if let Some(since) = self.blocked_since
            && now >= since + self.write_timeout
        {
            self.server.0.metrics.write_timeouts.inc();
            return Err(Ended::Stuck);
        }
        if now >= self.keepalive_at {
            self.keepalive_at = now + self.keepalive;
            if self.outgoing.is_empty() {
                let mut frame = BytesMut::new();
                Frame::KeepAlive.encode(&mut frame);
                self.outgoing.push_back(frame.freeze());
            }
        }
        let next = self.blocked_since.map(|since| since + self.write_timeout);
        let next = next.map_or(self.keepalive_at, |at| at.min(self.keepalive_at));
        self.timer.as_mut().reset(next);
        Ok(())
    }

    /// Writes until there is nothing left or the client takes no more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        loop {
            if self.outgoing.is_empty() && !self.refill(cx)? {
                break;
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut count = 0;
            for (slice, run) in slices.iter_mut().zip(&self.outgoing) {
                *slice = IoSlice::new(run);
                count += 1;
            }
            let written = Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]);
            match written.map_err(Ended::Broken)? {
                Poll::Ready(0) => return Err(Ended::ByClient),
                Poll::Ready(written) => {
                    advance(&mut self.outgoing, written);
                    self.blocked_since = None;
                    self.needs_flush = true;
                }
                Poll::Pending => {
                    self.note_blocked();
                    return Ok(());
                }
            }
        }
        if self.needs_flush {
            match Pin::new(&mut self.io)
                .poll_flush(cx)
                .map_err(Ended::Broken)?
            {
                Poll::Ready(()) => {
                    self.needs_flush = false;
                    self.blocked_since = None;
                }
                Poll::Pending => self.note_blocked(),
            }
        }
        Ok(())
    }

    /// Takes the next batch from the outbox; false if there is none.
    fn refill(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        if let Some(data) = self.pong.take() {
            let mut frame = BytesMut::new();
            Frame::Pong(data).encode(&mut frame);
            self.outgoing.push_back(frame.freeze());
        }
        let taken = self
            .client
            .outbox
            .poll_take(cx, &mut self.outgoing, WRITE_BATCH);
        match taken {
            Poll::Ready(Taken::Closed) => return Err(Ended::ByRelay),
            Poll::Ready(Taken::Some) => {}
            Poll::Pending if self.outgoing.is_empty() => self.outgoing = VecDeque::new(),
            Poll::Pending => {}
        }
        Ok(!self.outgoing.is_empty())
    }

    /// Sees to it that the timer fires in time. It is touched at most once per write timeout.
    fn note_blocked(&mut self) {
        if self.blocked_since.is_none() {
            let now = Instant::now();
            self.blocked_since = Some(now);
            let due = now + self.write_timeout;
            if due < self.timer.deadline() {
                self.timer.as_mut().reset(due);
            }
        }
    }

    /// Reads once and deals with it.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Ended> {
        self.incoming
            .reserve(READ_CHUNK.saturating_sub(self.incoming.len()));
        let read = read_into(&mut self.io, cx, &mut self.incoming);
        let Poll::Ready(read) = read.map_err(Ended::Broken)? else {
            if self.incoming.is_empty() {
                self.incoming = BytesMut::new();
            }
            return Ok(Poll::Pending);
        };
        if read == 0 {
            return Err(Ended::ByClient);
        }
        self.handle_incoming()?;
        Ok(Poll::Ready(()))
    }

    /// Deals with all whole frames that were read.
    fn handle_incoming(&mut self) -> Result<(), Ended> {
        loop {
            if self.skip > 0 {
                let now = self.skip.min(self.incoming.len());
                self.incoming.advance(now);
                self.skip -= now;
                if self.skip > 0 {
                    return Ok(());
                }
            }
            let Some(&[kind, a, b, c, d]) = self.incoming.first_chunk::<HEADER_LEN>() else {
                return Ok(());
            };
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            match fate(kind, len)? {
                Fate::Skip => self.skip = HEADER_LEN + len,
                Fate::Read if self.incoming.len() < HEADER_LEN + len => return Ok(()),
                Fate::Read if kind == kind::SEND_PACKET => self.forward_run(),
                Fate::Read => {
                    let frame = self.incoming.split_to(HEADER_LEN + len);
                    self.handle_frame(&frame)?;
                }
            }
        }
    }

    /// Forwards the SendPacket frames at the front that have the same destination and class.
    fn forward_run(&mut self) {
        let source = self.client.key;
        let mut run: Option<Run> = None;
        let mut rest = &mut self.incoming[..];
        while let Ok(Some(RawFrame { kind, body })) = split_frame(rest) {
            if kind != kind::SEND_PACKET || fate(kind, body.len()).is_err() {
                break;
            }
            let wire_len = HEADER_LEN + body.len();
            let Some((key, packet)) = body.split_first_chunk::<KEY_LEN>() else {
                break;
            };
            let class = class_of(packet);
            match &mut run {
                None => {
                    run = Some(Run {
                        destination: NodePublic::from_bytes(*key),
                        class,
                        packets: 1,
                        wire_len,
                    });
                }
                Some(run)
                    if run.destination.as_bytes() == key
                        && run.class == class
                        && run.wire_len + wire_len <= MAX_RUN =>
                {
                    run.packets += 1;
                    run.wire_len += wire_len;
                }
                Some(_) => break,
            }
            let (frame, after) = rest.split_at_mut(wire_len);
            rewrite_send_to_recv(frame, &source);
            rest = after;
        }
        let Some(run) = run else { return };
        let frames = if run.wire_len < MIN_SHARED_RUN {
            let copy = Bytes::copy_from_slice(&self.incoming[..run.wire_len]);
            self.incoming.advance(run.wire_len);
            copy
        } else {
            self.incoming.split_to(run.wire_len).freeze()
        };
        let metrics = &self.server.0.metrics;
        metrics.packets_received.inc_by(run.packets);
        metrics.bytes_received.inc_by(run.payload_len());
        if run.class == Class::Disco {
            metrics.disco_received.inc_by(run.packets);
        }
        self.server.0.registry.note_activity(&self.client);
        self.deliver(&run, frames);
    }

    fn deliver(&mut self, run: &Run, frames: Bytes) {
        let server = &self.server.0;
        let Some(receiver) = server.registry.find(&run.destination) else {
            server.metrics.dropped_unknown.inc_by(run.packets);
            if run.class == Class::Disco && self.not_here.allows(Instant::now()) {
                server.metrics.gone_not_here.inc();
                let frame = peer_gone(run.destination, PeerGoneReason::NotHere);
                self.client.outbox.push_control(frame);
            }
            return;
        };
        self.hand_over(run, &receiver, frames);
        self.note_delivered(&receiver);
    }

    /// Puts packets into the receiver's outbox and counts what becomes of them.
    fn hand_over(&self, run: &Run, receiver: &Client, frames: Bytes) {
        let metrics = &self.server.0.metrics;
        match receiver.outbox.push_packets(run.class, frames) {
            Pushed::Closed => metrics.dropped_gone.inc_by(run.packets),
            Pushed::Queued { dropped } => {
                metrics.packets_sent.inc_by(run.packets);
                metrics.bytes_sent.inc_by(run.payload_len());
                if dropped > 0 {
                    match run.class {
                        Class::Disco => metrics.dropped_queue_disco.inc_by(dropped),
                        Class::Data => metrics.dropped_queue_data.inc_by(dropped),
                    }
                }
            }
        }
    }

    /// Remembers who must hear when this client is gone.
    fn note_delivered(&mut self, receiver: &Client) {
        if self.delivered.insert(receiver.key, receiver.id) == Some(receiver.id) {
            return;
        }
        let registry = &self.server.0.registry;
        if self.delivered.len() > DELIVERED_SOFT_LIMIT.max(2 * registry.len()) {
            self.delivered
                .retain(|key, id| registry.is_connected(key, *id));
        }
    }

    fn handle_frame(&mut self, frame: &[u8]) -> Result<(), Ended> {
        let bad = || Ended::BadFrame {
            kind: frame[0],
            len: frame.len() - HEADER_LEN,
        };
        let raw = split_frame(frame).ok().flatten().ok_or_else(bad)?;
        let server = &self.server.0;
        match Frame::parse(raw).map_err(|_| bad())? {
            Frame::Ping(data) => {
                server.metrics.pings.inc();
                self.pong.get_or_insert(data);
            }
            Frame::NotePreferred(home) if home != self.home => {
                self.home = home;
                server.metrics.home.add(if home { 1 } else { -1 });
            }
            Frame::WatchConns if self.client.traits.mesh => server.registry.watch(&self.client),
            Frame::ClosePeer(key) if self.client.traits.mesh => {
                server.registry.kick(&key);
            }
            Frame::ForwardPacket {
                source,
                destination,
                packet,
            } if self.client.traits.mesh => {
                server.metrics.forwarded.inc();
                let mut frame = BytesMut::with_capacity(PACKET_HEADER_LEN + packet.len());
                Frame::RecvPacket { source, packet }.encode(&mut frame);
                let run = Run {
                    destination,
                    class: class_of(packet),
                    packets: 1,
                    wire_len: frame.len(),
                };
                match server.registry.find(&destination) {
                    // Not `deliver`: the mesh tells about the source's end, this connection's does not.
                    Some(receiver) => self.hand_over(&run, &receiver, frame.freeze()),
                    None => server.metrics.dropped_unknown.inc(),
                }
            }
            // The mesh's frames from anybody else.
            Frame::WatchConns | Frame::ClosePeer(_) | Frame::ForwardPacket { .. } => {
                return Err(bad());
            }
            // A client answers no pings that were not sent, and the rest is a server's to send.
            _ => {}
        }
        Ok(())
    }
}

impl<T> Drop for Connection<T> {
    fn drop(&mut self) {
        let server = &self.server.0;
        if self.home {
            server.metrics.home.dec();
        }
        server
            .registry
            .remove(&self.client, std::mem::take(&mut self.delivered));
    }
}

/// Packets to forward as they stand in the stream.
struct Run {
    destination: NodePublic,
    class: Class,
    packets: u64,
    wire_len: usize,
}

impl Run {
    fn payload_len(&self) -> u64 {
        self.wire_len as u64 - self.packets * PACKET_HEADER_LEN as u64
    }
}

fn class_of(packet: &[u8]) -> Class {
    match is_disco(packet) {
        true => Class::Disco,
        false => Class::Data,
    }
}

/// What to do with a frame of which the header was read.
enum Fate {
    /// Wait for its body and deal with it.
    Read,
    /// Pass over its body as it comes.
    Skip,
}

/// Bounds every body before any of it is kept.
fn fate(kind: u8, len: usize) -> Result<Fate, Ended> {
    let (least, most) = match kind {
        kind::SEND_PACKET => (KEY_LEN, KEY_LEN + MAX_PACKET_LEN),
        kind::FORWARD_PACKET => (2 * KEY_LEN, 2 * KEY_LEN + MAX_PACKET_LEN),
        kind::NOTE_PREFERRED => (1, 1),
        kind::WATCH_CONNS => (0, 0),
        kind::CLOSE_PEER => (KEY_LEN, MAX_SMALL_LEN),
        kind::PING => (8, MAX_PING_LEN),
        _ if len <= MAX_BODY_LEN => return Ok(Fate::Skip),
        _ => (0, MAX_BODY_LEN),
    };
    match (least..=most).contains(&len) {
        true => Ok(Fate::Read),
        false => Err(Ended::BadFrame { kind, len }),
    }
}

/// One read into the free room of `buffer`.
fn read_into<T: AsyncRead + Unpin>(
    io: &mut T,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    let read = std::pin::pin!(io.read_buf(buffer));
    read.poll(cx)
}

/// Drops the first `count` bytes.
fn advance(runs: &mut VecDeque<Bytes>, mut count: usize) {
    while let Some(first) = runs.front_mut() {
        if count < first.len() {
            first.advance(count);
            return;
        }
        count -= first.len();
        runs.pop_front();
    }
}

/// At most a burst of PeerGone(not here), then one a second.
struct NotHereLimit {
    left: u32,
    since: Instant,
}

impl NotHereLimit {
    fn new() -> Self {
        Self {
            left: NOT_HERE_BURST,
            since: Instant::now(),
        }
    }

    fn allows(&mut self, now: Instant) -> bool {
        let earned = u32::try_from((now - self.since).as_secs()).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(NOT_HERE_BURST);
            self.since += Duration::from_secs(earned.into());
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}
