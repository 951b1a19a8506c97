//! The endless body of a map stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use control_proto::frame::keep_alive;
use control_proto::tailcfg::Compress;
use futures_util::stream;

use crate::engine::{Next, Session};
use crate::model::NodeId;
use crate::service::{Control, now};

/// Clients give up after 120 s without a frame (protocol digest 4.3).
const KEEP_ALIVE: Duration = Duration::from_secs(50);
/// Spreads the keepalives of nodes that connected together.
const KEEP_ALIVE_SPREAD_SECS: u64 = 10;

/// An open stream; dropped with the response, when the client hangs up or its connection dies.
struct MapStream {
    control: Arc<Control>,
    session: Arc<Session>,
    first: Option<Bytes>,
    keep_alive: Duration,
}

/// Opens the stream of a node; `None` if there is no such node (any more).
pub(super) fn open(control: &Arc<Control>, id: NodeId, compress: Compress) -> Option<Body> {
    let (session, snapshot) = control.engine().connect(id, compress)?;
    // From here on the session must be closed, whatever happens.
    let mut open = MapStream {
        control: Arc::clone(control),
        session,
        first: None,
        keep_alive: KEEP_ALIVE + Duration::from_secs(rand::random_range(0..KEEP_ALIVE_SPREAD_SECS)),
    };
    open.first = Some(snapshot.frame(compress, now())?);
    control.metrics().full_frames.inc();
    Some(Body::from_stream(stream::unfold(
        open,
        |mut open| async move {
            let frame = open.next().await?;
            let metrics = open.control.metrics();
            metrics.frames.inc();
            metrics.map_bytes.inc_by(frame.len() as u64);
            if let Some(waited) = open.session.waited() {
                metrics.change_seconds.observe(waited.as_secs_f64());
            }
            Some((Ok::<_, Infallible>(frame), open))
        },
    )))
}

impl MapStream {
    /// The next frame; asked for only when the connection has room for it, so that changes pile
    /// up in the session's queue, not in the connection.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        match tokio::time::timeout(self.keep_alive, self.session.next()).await {
            Err(_) => Some(Bytes::from_static(keep_alive(self.session.compress))),
            Ok(Next::Frame(frame)) => Some(frame),
            Ok(Next::Resync) => {
                self.control.metrics().resyncs.inc();
                self.control.metrics().full_frames.inc();
                let snapshot = self.control.engine().resync(&self.session)?;
                snapshot.frame(self.session.compress, now())
            }
            Ok(Next::End) => None,
        }
    }
}

impl Drop for MapStream {
    fn drop(&mut self) {
        self.control.disconnected(&self.session);
    }
}
