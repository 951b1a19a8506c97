//! One relay region: the task that connects, reconnects, reads and writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use derp_proto::{BadFrame, Frame, FrameTooLong, split_frame};
use keys::{NodePrivate, NodePublic};
use node_core::RegionId;
use node_core::derp::Region;
use rand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::client::{self, Connection};
use super::manager::{Notice, Shared};
use super::queue::Queue;

/// Silence after which the relay counts as gone; it sends a keepalive every 60–65 s (derp.md §5).
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// A region that is not home is left after this long without a packet to send (disco.md §12).
const IDLE: Duration = Duration::from_secs(60);
/// First and longest pause between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Room for one read; holds some fifty full packets.
const READ_BUFFER_LEN: usize = 64 << 10;

/// The connection of one region, as others see it.
#[derive(Debug)]
pub(crate) struct Link {
    region: RegionId,
    pub(super) queue: Queue,
    connected: AtomicBool,
    state: Mutex<LinkState>,
    task: OnceLock<AbortHandle>,
}

#[derive(Debug, Default)]
struct LinkState {
    heard: Option<Instant>,
    sent: Option<Instant>,
    problem: Option<String>,
}

impl Link {
    /// Queues a packet for a peer; the oldest waiting packet goes if there are too many.
    pub(crate) fn send(&self, peer: NodePublic, packet: &[u8]) {
        self.queue.push_packet(peer, packet);
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
pub(super) fn start(region: Region, key: NodePrivate, shared: Arc<Shared>) -> Arc<Link> {
    let link = Arc::new(Link {
        region: region.id,
        queue: Queue::default(),
        connected: AtomicBool::new(false),
        state: Mutex::default(),
        task: OnceLock::new(),
    });
    let task = tokio::spawn(run(link.clone(), region, key, shared));
    // Set once, right here.
    let _ = link.task.set(task.abort_handle());
    link
}

/// Why a connection ended.
enum End {
    /// Nothing was sent for a while and this is not the home.
    Idle,
    /// The relay restarts and asks to come back after this long.
    Restarting(Duration),
    /// Anything else.
    Failed(String),
}

async fn run(link: Arc<Link>, region: Region, key: NodePrivate, shared: Arc<Shared>) {
    let mut backoff = BACKOFF.0;
    loop {
        let mut pause = jittered(backoff);
        match client::connect(&region, &key).await {
            Ok(connection) => {
                let began = Instant::now();
                let end = serve_connected(&link, connection, &shared).await;
                match end {
                    End::Idle => pause = Duration::ZERO,
                    End::Restarting(after) => {
                        pause = jittered(after.min(BACKOFF.1));
                        lost(&link, &shared, "the relay restarts".to_owned());
                    }
                    End::Failed(reason) => lost(&link, &shared, reason),
                }
                // A relay that throws us out at once is not tried in a tight loop.
                if began.elapsed() > BACKOFF.1 {
                    backoff = BACKOFF.0;
                }
            }
            Err(error) => lost(&link, &shared, chain(&error)),
        }
        // What waits for a region that is not home goes: whoever still sends makes us dial again.
        if !shared.is_home(region.id) {
            link.queue.clear_packets();
        }
        sleep(pause).await;
        if shared.retire(region.id, &link) {
            tracing::debug!(region = region.code, "relay connection closed, not needed");
            return;
        }
        backoff = (backoff * 2).min(BACKOFF.1);
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
    }
    link.queue.clear_control();
    link.queue
        .push_control(Frame::NotePreferred(shared.is_home(link.region)));
    link.connected.store(true, Ordering::Release);
    shared.notify(Notice::Connected(link.region));

    let (reader, writer) = tokio::io::split(connection.stream);
    let end = tokio::select! {
        end = read(link, shared, reader, connection.received) => end,
        end = write(link, writer) => end,
        () = idle(link, shared) => End::Idle,
    };
    link.connected.store(false, Ordering::Release);
    shared.forget_routes(link.region);
    shared.notify(Notice::Health(link.region, None));
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

async fn write(link: &Link, mut writer: impl AsyncWrite + Unpin) -> End {
    let mut out = Vec::new();
    loop {
        link.queue.take(&mut out).await;
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
        let mut consumed = 0;
        let handled = loop {
            match next_frame(&received[consumed..]) {
                Ok(Some((frame, len))) => {
                    consumed += len;
                    if let Some(end) = handle(link, shared, &mut delivery, frame).await {
                        break Err(end);
                    }
                }
                Ok(None) => break Ok(()),
                Err(reason) => break Err(End::Failed(reason)),
            }
        };
        delivery.flush().await;
        if let Err(end) = handled {
            return end;
        }
        received.advance(consumed);
        received.reserve(READ_BUFFER_LEN);
        match timeout(READ_TIMEOUT, reader.read_buf(&mut received)).await {
            Ok(Ok(0)) => return End::Failed("the relay closed the connection".to_owned()),
            Ok(Ok(_)) => link.lock().heard = Some(Instant::now()),
            Ok(Err(error)) => return End::Failed(error.to_string()),
            Err(_) => return End::Failed("the relay fell silent".to_owned()),
        }
    }
}

fn next_frame(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>, String> {
    let Some(raw) = split_frame(input).map_err(|error: FrameTooLong| error.to_string())? else {
        return Ok(None);
    };
    let frame = Frame::parse(raw).map_err(|error: BadFrame| error.to_string())?;
    Ok(Some((frame, raw.wire_len())))
}

async fn handle(
    link: &Link,
    shared: &Shared,
    delivery: &mut crate::relayed::Delivery,
    frame: Frame<'_>,
) -> Option<End> {
    match frame {
        Frame::RecvPacket { source, packet } => {
            let handled = delivery.handle(source, packet).await;
            if handled.away_from_home {
                shared.learn_route(source, link.region);
            }
            if let Some(reply) = handled.reply {
                link.send(source, &reply);
            }
        }
        Frame::Ping(data) => link.queue.push_control(Frame::Pong(data)),
        Frame::PeerGone { key, .. } => shared.forget_route(&key, link.region),
        Frame::Health(text) => {
            let text = (!text.is_empty()).then(|| text.to_owned());
            link.lock().problem.clone_from(&text);
            shared.notify(Notice::Health(link.region, text));
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

/// Half to all of `pause`, at random: nodes that lost a relay together do not return together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// The error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
