//! One map stream: the bounded queue between the engine and the connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use control_proto::tailcfg::Compress;
use tokio::sync::Notify;

use super::delta::{Delta, Parts};
use super::wire;
use crate::model::{NodeId, UserId};

/// Changes that wait for a slow reader; beyond it the viewer gets a fresh full frame instead.
pub const QUEUE_LIMIT: usize = 256;

/// A viewer's open map stream.
#[derive(Debug)]
pub struct Session {
    /// Who reads it.
    pub node: NodeId,
    /// Distinguishes the streams of one node.
    pub(super) number: u64,
    /// Deletions up to this place in the engine's list are of no interest to this stream.
    pub(super) removals_seen: u64,
    /// Does the viewer want zstd?
    pub compress: Compress,
    mailbox: Mutex<Mailbox>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Mailbox {
    queue: VecDeque<Arc<Delta>>,
    /// The viewer's own node as it is now; only the newest matters.
    own: Option<Own>,
    overflowed: bool,
    ended: bool,
}

/// A node as it is told about itself.
#[derive(Debug)]
pub(super) struct Own {
    /// Rendered.
    pub(super) node: Bytes,
    /// Its owner, whom the node need not know yet, with the rendered profile.
    pub(super) owner: (UserId, Bytes),
}

/// What to do next for a stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// Send this frame.
    Frame(Bytes),
    /// The queue overflowed: send a fresh full frame.
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
    pub(super) fn new(node: NodeId, number: u64, removals_seen: u64, compress: Compress) -> Self {
        Self {
            node,
            number,
            removals_seen,
            compress,
            mailbox: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Queues a change; a full queue turns into one pending full frame.
    pub(super) fn push(&self, delta: &Arc<Delta>) {
        {
            let mut mailbox = self.mailbox();
            if mailbox.ended || mailbox.overflowed {
                return;
            }
            if mailbox.queue.len() >= QUEUE_LIMIT {
                mailbox.queue = VecDeque::new();
                mailbox.own = None;
                mailbox.overflowed = true;
            } else {
                mailbox.queue.push_back(Arc::clone(delta));
            }
        }
        self.wake.notify_one();
    }

    /// Queues the viewer's own node.
    pub(super) fn push_own(&self, own: Own) {
        {
            let mut mailbox = self.mailbox();
            if mailbox.ended {
                return;
            }
            mailbox.own = Some(own);
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
                mailbox.overflowed = false;
                return Some(Next::Resync);
            }
            if mailbox.queue.is_empty() && mailbox.own.is_none() {
                return mailbox.ended.then_some(Next::End);
            }
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
            out.raw("Node", &own.node);
            parts.profiles.extend([own.owner]);
        }
        parts.render(&mut out);
        Some(out.frame(self.compress).into())
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
