//! One relay region: the task that connects, reconnects, reads and writes.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use derp_proto::{Frame, FrameTooLong, HEADER_LEN, RawFrame, split_frame};
use futures_util::FutureExt as _;
use keys::{NodePrivate, NodePublic};
use node_core::RegionId;
use node_core::derp::Region;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::bucket::Bucket;
use super::client::{self, Connection};
use super::held;
use super::manager::{Notice, Shared};
use super::queue::Queue;
use crate::backoff::{self, Backoff};
use crate::error_text::error_text;

/// Silence after which the relay counts as gone; it sends a keepalive every 60–65 s (derp.md §5).
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// A region that is not home is left after this long without a packet to send (disco.md §12).
const IDLE: Duration = Duration::from_secs(60);
/// A connection that may have died with the host's way out has this long to show that it has not.
const SURVIVAL: Duration = Duration::from_secs(3);
/// A relay that restarts is waited for this long at most, whatever it asks for.
const MAX_RESTART: Duration = Duration::from_secs(60);
/// Room for one read; holds some fifty full packets.
const READ_BUFFER_LEN: usize = 64 << 10;

/// The connection of one region, as others see it.
#[derive(Debug)]
pub(crate) struct Link {
    region: RegionId,
    pub(super) queue: Queue,
    connected: AtomicBool,
    state: Mutex<LinkState>,
    /// The host's side of the underlay is another.
    moved: Notify,
    task: OnceLock<AbortHandle>,
}

#[derive(Debug, Default)]
struct LinkState {
    heard: Option<Instant>,
    sent: Option<Instant>,
    problem: Option<String>,
    /// Where the connection goes out from.
    local: Option<IpAddr>,
    /// Nothing gets out from there any more.
    orphaned: bool,
}

impl Link {
    /// Queues packets for a peer; the oldest that wait go if there are too many.
    pub(super) fn send<'a>(&self, peer: NodePublic, packets: impl IntoIterator<Item = &'a [u8]>) {
        self.queue.push_packets(peer, packets);
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    pub(super) fn last_heard(&self) -> Option<Instant> {
        self.lock().heard
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// True if the connection goes out from one of `ours`, or from this host to itself, or if there is none.
    pub(super) fn is_from(&self, ours: &BTreeSet<IpAddr>) -> bool {
        let local = self.lock().local;
        local.is_none_or(|local| local.is_loopback() || ours.contains(&local))
    }

    /// See [`Manager::handle_move`](super::Manager::handle_move).
    pub(super) fn handle_move(&self, sources: &BTreeSet<IpAddr>) {
        let orphaned = !self.is_from(sources);
        self.lock().orphaned = orphaned;
        self.moved.notify_one();
    }

    /// Ends the task; what waits is lost.
    pub(super) fn stop(&self) {
        self.connected.store(false, Ordering::Release);
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the task of a region.
pub(super) fn start(
    region: Region,
    key: NodePrivate,
    shared: Arc<Shared>,
    runtime: &Handle,
) -> Arc<Link> {
    let link = Arc::new(Link {
        region: region.id,
        queue: Queue::default(),
        connected: AtomicBool::new(false),
        state: Mutex::default(),
        moved: Notify::new(),
        task: OnceLock::new(),
    });
    let task = runtime.spawn(run(link.clone(), region, key, shared));
    // Set once, right here.
    let _ = link.task.set(task.abort_handle());
    link
}

/// Why a connection ended.
enum End {
    /// Nothing was sent for a while and this is not the home.
    Idle,
    /// The connection has died with the host's way out.
    Moved,
    /// The relay restarts and asks to come back after this long.
    Restarting(Duration),
    /// Anything else.
    Failed(String),
}

async fn run(link: Arc<Link>, region: Region, key: NodePrivate, shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    loop {
        let connected = tokio::select! {
            connected = client::connect(&region, &key) => connected,
            () = link.moved.notified() => {
                backoff.reset();
                continue;
            }
        };
        let (end, lasted) = match connected {
            Ok(connection) => {
                let began = Instant::now();
                let end = serve_connected(&link, connection, &shared).await;
                (end, began.elapsed())
            }
            Err(error) => (End::Failed(error_text(&error)), Duration::ZERO),
        };
        let pause = pause(&end, lasted, &mut backoff, rand::random());
        match end {
            End::Idle | End::Moved => {}
            End::Restarting(_) => lost(&link, &shared, "the relay restarts".to_owned()),
            End::Failed(reason) => lost(&link, &shared, reason),
        }
        // What has waited for long for a region that is not home goes: whoever still sends makes us dial again.
        if !shared.is_home(region.id) && !link.queue.is_fresh(held::LONGEST) {
            link.queue.clear_packets();
        }
        tokio::select! {
            () = sleep(pause) => {}
            // There may be a way now.
            () = link.moved.notified() => backoff.reset(),
        }
        if shared.retire(region.id, &link) {
            tracing::debug!(region = region.code, "relay connection closed, not needed");
            return;
        }
    }
}

/// How long to wait before the next attempt, after a connection that `lasted`; `random` is uniform in
/// `0..1`.
fn pause(end: &End, lasted: Duration, backoff: &mut Backoff, random: f64) -> Duration {
    // A relay that throws us out at once is not tried in a tight loop.
    if lasted > backoff::LONGEST {
        backoff.reset();
    }
    match end {
        End::Idle | End::Moved => Duration::ZERO,
        End::Restarting(after) => *after.min(&MAX_RESTART) + backoff.next(random),
        End::Failed(_) => backoff.next(random),
    }
}

fn lost(link: &Link, shared: &Shared, reason: String) {
    tracing::debug!(region = link.region.0, reason, "no relay connection");
    link.lock().problem = Some(reason);
    shared.notify(Notice::Lost(link.region));
}

async fn serve_connected(link: &Arc<Link>, connection: Connection, shared: &Arc<Shared>) -> End {
    tracing::debug!(region = link.region.0, "relay connected");
    {
        let mut state = link.lock();
        state.problem = None;
        state.heard = Some(Instant::now());
        state.sent = Some(Instant::now());
        state.local = Some(connection.local);
        state.orphaned = false;
    }
    link.queue.clear_control();
    link.queue
        .push_control(Frame::NotePreferred(shared.is_home(link.region)));
    link.connected.store(true, Ordering::Release);
    shared.notify(Notice::Connected(link.region));

    let bucket = Bucket::new(&connection.info, Instant::now());
    let (reader, writer) = tokio::io::split(connection.stream);
    let end = tokio::select! {
        end = read(link, shared, reader, connection.received) => end,
        end = write(link, writer, bucket) => end,
        () = idle(link, shared) => End::Idle,
        () = outlived(link) => End::Moved,
    };
    link.lock().local = None;
    link.connected.store(false, Ordering::Release);
    shared.forget_routes(link.region);
    shared.notify(Notice::Health(link.region));
    end
}

/// Ends once the region is not home and nothing was sent for a while.
async fn idle(link: &Link, shared: &Shared) {
    loop {
        sleep(IDLE / 4).await;
        let sent = link.lock().sent;
        let is_idle = sent.is_none_or(|sent| sent.elapsed() >= IDLE);
        if is_idle && !shared.is_home(link.region) {
            return;
        }
    }
}

/// Ends once the host's way out is another and the connection did not survive that.
async fn outlived(link: &Link) {
    loop {
        link.moved.notified().await;
        if link.lock().orphaned {
            return;
        }
        let asked = Instant::now();
        link.queue.push_control(Frame::Ping(rand::random()));
        sleep(SURVIVAL).await;
        if link.last_heard().is_none_or(|heard| heard < asked) {
            return;
        }
    }
}

async fn write(
    link: &Link,
    mut writer: impl AsyncWrite + Unpin,
    mut bucket: Option<Bucket>,
) -> End {
    let mut out = Vec::new();
    loop {
        link.queue.take(&mut out).await;
        if let Some(bucket) = &mut bucket {
            let dropped = bucket.limit(&mut out, Instant::now());
            link.queue.note_dropped(dropped);
        }
        let written = async {
            writer.write_all(&out).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            return End::Failed(error.to_string());
        }
        out.clear();
        link.lock().sent = Some(Instant::now());
    }
}

async fn read(
    link: &Arc<Link>,
    shared: &Arc<Shared>,
    mut reader: impl AsyncRead + Unpin,
    mut received: BytesMut,
) -> End {
    let mut delivery = shared.inbound.delivery(link.region);
    loop {
        let handled = loop {
            match take_frame(&mut received) {
                Ok(Some((kind, body))) => {
                    if let Some(end) = handle(link, shared, &mut delivery, kind, body).await {
                        break Err(end);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(End::Failed(error.to_string())),
            }
        };
        delivery.flush().await;
        if let Err(end) = handled {
            return end;
        }
        match timeout(READ_TIMEOUT, read_some(&mut reader, &mut received)).await {
            Ok(Ok(0)) => return End::Failed("the relay closed the connection".to_owned()),
            Ok(Ok(_)) => link.lock().heard = Some(Instant::now()),
            Ok(Err(error)) => return End::Failed(error.to_string()),
            Err(_) => return End::Failed("the relay fell silent".to_owned()),
        }
    }
}

/// Waits until something has come, and reads what there is, as far as there is room; 0 at the end.
async fn read_some(
    reader: &mut (impl AsyncRead + Unpin),
    into: &mut BytesMut,
) -> io::Result<usize> {
    into.reserve(READ_BUFFER_LEN);
    let mut total = reader.read_buf(into).await?;
    // TLS hands out a record at a time: one batch of many costs the tunnel less.
    while total > 0 && into.len() < into.capacity() {
        match reader.read_buf(into).now_or_never() {
            Some(Ok(more)) if more > 0 => total += more,
            // What is wrong comes up again.
            _ => break,
        }
    }
    Ok(total)
}

/// Takes the first frame out of `input`, if it is whole: its type and its body.
fn take_frame(input: &mut BytesMut) -> Result<Option<(u8, BytesMut)>, FrameTooLong> {
    let Some(raw) = split_frame(input)? else {
        return Ok(None);
    };
    let (kind, len) = (raw.kind, raw.wire_len());
    let mut body = input.split_to(len);
    body.advance(HEADER_LEN);
    Ok(Some((kind, body)))
}

async fn handle(
    link: &Link,
    shared: &Shared,
    delivery: &mut crate::relayed::Delivery,
    kind: u8,
    mut body: BytesMut,
) -> Option<End> {
    let frame = match Frame::parse(RawFrame { kind, body: &body }) {
        Ok(frame) => frame,
        Err(error) => return Some(End::Failed(error.to_string())),
    };
    match frame {
        Frame::RecvPacket { source, packet } => {
            let packet = body.split_off(body.len() - packet.len());
            let elsewhere = delivery.handle(source, packet).await;
            if elsewhere {
                shared.learn_route(source, link.region);
            }
        }
        Frame::Ping(data) => link.queue.push_control(Frame::Pong(data)),
        Frame::PeerGone { key, .. } => shared.forget_route(&key, link.region),
        Frame::Health(text) => {
            link.lock().problem = (!text.is_empty()).then(|| text.to_owned());
            shared.notify(Notice::Health(link.region));
        }
        Frame::Restarting {
            reconnect_in_ms, ..
        } => {
            let after = Duration::from_millis(reconnect_in_ms.into());
            return Some(End::Restarting(after));
        }
        _ => {}
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> End {
        End::Failed("broken".to_owned())
    }

    #[test]
    fn a_relay_that_was_good_is_dialled_again_soon() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            pause(&failed(), Duration::ZERO, &mut backoff, 1.0);
        }
        let first = Backoff::default().next(1.0);
        let hour = Duration::from_secs(3600);
        assert_eq!(pause(&failed(), hour, &mut backoff, 1.0), first);
    }

    #[test]
    fn a_relay_that_throws_us_out_at_once_is_tried_ever_more_rarely() {
        let mut backoff = Backoff::default();
        let blink = Duration::from_millis(20);
        let pauses: Vec<Duration> = (0..8)
            .map(|_| pause(&failed(), blink, &mut backoff, 1.0))
            .collect();
        assert!(pauses.is_sorted() && pauses[0] < pauses[7], "{pauses:?}");
        assert_eq!(pauses[7], backoff::LONGEST);
    }

    #[test]
    fn a_relay_that_restarts_is_left_alone_for_as_long_as_it_asks() {
        for random in [0.0, 0.5, 1.0] {
            let after = Duration::from_secs(20);
            let mut backoff = Backoff::default();
            let waited = pause(&End::Restarting(after), after, &mut backoff, random);
            let jitter = waited.checked_sub(after).unwrap();
            assert!(!jitter.is_zero() && jitter <= Duration::from_secs(1));
        }
        let ages = Duration::from_millis(u32::MAX.into());
        let mut backoff = Backoff::default();
        let waited = pause(&End::Restarting(ages), ages, &mut backoff, 1.0);
        assert!(waited <= MAX_RESTART + backoff::LONGEST, "{waited:?}");
    }

    #[test]
    fn an_idle_connection_may_come_back_at_once() {
        let mut backoff = Backoff::default();
        assert_eq!(pause(&End::Idle, IDLE, &mut backoff, 1.0), Duration::ZERO);
    }
}
