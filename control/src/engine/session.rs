//! One map stream: the bounded queue between the engine and the connection.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use control_proto::tailcfg::Compress;
use tokio::sync::Notify;

use super::delta::{Delta, Parts};
use super::wire;
use crate::model::NodeId;

/// Changes that wait for a slow reader; beyond it the viewer gets a fresh full frame instead.
pub const QUEUE_LIMIT: usize = 256;
/// Peers that a viewer that is behind may have lost; beyond it its stream is closed.
const GONE_LIMIT: usize = 1 << 16;

/// A viewer's open map stream.
#[derive(Debug)]
pub struct Session {
    /// Who reads it.
    pub node: NodeId,
    /// Distinguishes the streams of one node.
    pub(super) number: u64,
    /// Does the viewer want zstd?
    pub compress: Compress,
    mailbox: Mutex<Mailbox>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Mailbox {
    queue: VecDeque<Arc<Delta>>,
    /// The viewer's own node as it is now, rendered; only the newest matters.
    own: Option<Bytes>,
    overflowed: bool,
    gone: Gone,
    ended: bool,
    /// When the oldest change came of which the viewer has not been told.
    since: Option<Instant>,
    /// How long it waited, once it left.
    waited: Option<Duration>,
}

/// Peers that the viewer may know of and has lost since the overflow.
#[derive(Debug, Default)]
pub(super) struct Gone {
    pub(super) listed: BTreeSet<NodeId>,
    /// And anybody else whom it does not see now.
    pub(super) others: bool,
}

/// What to do next for a stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// Send this frame.
    Frame(Bytes),
    /// The queue overflowed: send a fresh full frame, see [`super::Engine::resync`].
    Resync,
    /// Close: superseded, re-keyed or deleted.
    End,
}

impl From<Option<Bytes>> for Next {
    /// A frame that could not be made ends the stream: the node reconnects and starts anew.
    fn from(frame: Option<Bytes>) -> Self {
        frame.map_or(Next::End, Next::Frame)
    }
}

impl Session {
    pub(super) fn new(node: NodeId, number: u64, compress: Compress) -> Self {
        Self {
            node,
            number,
            compress,
            mailbox: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Queues a change and the viewer's own node, which leave in one frame; a full queue turns
    /// into one pending full frame.
    pub(super) fn push(&self, delta: Option<&Arc<Delta>>, own: Option<Bytes>) {
        {
            let mut mailbox = self.mailbox();
            if mailbox.ended {
                return;
            }
            mailbox.since.get_or_insert_with(Instant::now);
            if let Some(delta) = delta {
                if mailbox.queue.len() >= QUEUE_LIMIT {
                    mailbox.overflow();
                }
                if mailbox.overflowed {
                    mailbox.lose(&delta.parts.removed);
                } else {
                    mailbox.queue.push_back(Arc::clone(delta));
                }
            }
            if own.is_some() && !mailbox.overflowed {
                mailbox.own = own;
            }
        }
        self.wake.notify_one();
    }

    /// Has the viewer get a fresh full frame: so much changed for it that a list of it would be
    /// longer.
    pub(super) fn start_over(&self) {
        {
            let mut mailbox = self.mailbox();
            if mailbox.ended {
                return;
            }
            mailbox.since.get_or_insert_with(Instant::now);
            mailbox.overflow();
            mailbox.gone.others = true;
        }
        self.wake.notify_one();
    }

    /// Ends the overflow: what happened until now is in the full frame. Returns the peers that the
    /// viewer has lost since it began.
    pub(super) fn caught_up(&self) -> Gone {
        let mut mailbox = self.mailbox();
        mailbox.overflowed = false;
        mailbox.leave();
        std::mem::take(&mut mailbox.gone)
    }

    /// Ends the stream with a last word on the viewer itself.
    pub(super) fn end_with(&self, own: Bytes) {
        {
            let mut mailbox = self.mailbox();
            if !mailbox.ended {
                mailbox.own = Some(own);
                mailbox.ended = true;
            }
        }
        self.wake.notify_one();
    }

    /// Ends the stream once what is queued has been sent.
    pub(super) fn end(&self) {
        self.mailbox().ended = true;
        self.wake.notify_one();
    }

    /// Waits for something to do. A lone change leaves as its shared frame; what piled up behind
    /// a frame under way leaves as one.
    pub async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.wake.notified().await;
        }
    }

    /// What there is to do now, if anything.
    #[must_use]
    pub fn take(&self) -> Option<Next> {
        let (queue, own) = {
            let mut mailbox = self.mailbox();
            // What ends needs no full frame, only the last word on the viewer itself.
            if mailbox.overflowed && !mailbox.ended {
                return Some(Next::Resync);
            }
            if mailbox.queue.is_empty() && mailbox.own.is_none() {
                return mailbox.ended.then_some(Next::End);
            }
            mailbox.leave();
            (std::mem::take(&mut mailbox.queue), mailbox.own.take())
        };
        if own.is_none() && queue.len() == 1 {
            return queue.front().map(|delta| delta.frame(self.compress).into());
        }
        let mut parts = Parts::default();
        for delta in &queue {
            parts.absorb(&delta.parts);
        }
        let mut out = wire::Writer::new();
        if let Some(own) = own {
            out.raw("Node", &own);
        }
        parts.render(&mut out);
        Some(out.frame(self.compress).into())
    }

    /// How long the oldest change waited of those that left last; once for each time.
    #[must_use]
    pub fn waited(&self) -> Option<Duration> {
        self.mailbox().waited.take()
    }

    /// Changes waiting now.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.mailbox().queue.len()
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailbox {
    /// What waits, leaves.
    fn leave(&mut self) {
        self.waited = self.since.take().map(|since| since.elapsed());
    }

    /// Drops what is queued in favour of a full frame.
    fn overflow(&mut self) {
        for delta in std::mem::take(&mut self.queue) {
            self.lose(&delta.parts.removed);
        }
        self.own = None;
        self.overflowed = true;
    }

    fn lose(&mut self, removed: &BTreeSet<NodeId>) {
        self.gone.listed.extend(removed);
        if self.gone.listed.len() > GONE_LIMIT {
            self.ended = true;
        }
    }
}
