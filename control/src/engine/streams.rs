//! Map streams: opened, superseded, resumed after an overflow, closed.

use std::sync::Arc;

use control_proto::tailcfg::{Compress, PeerChange};
use time::OffsetDateTime;

use super::delta::Parts;
use super::{Engine, Session, Snapshot, render};
use crate::model::NodeId;

/// A node lost its last stream and has some time to come back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Absence {
    node: NodeId,
    number: u64,
}

impl Engine {
    /// Opens a node's stream, superseding its older one, and takes the first frame's snapshot.
    #[must_use]
    pub fn connect(
        &self,
        id: NodeId,
        compress: Compress,
        now: OffsetDateTime,
    ) -> Option<(Arc<Session>, Snapshot)> {
        let mut state = self.state();
        state.sessions_opened += 1;
        let removals = state.removals_forgotten + state.removals.len() as u64;
        let session = Arc::new(Session::new(id, state.sessions_opened, removals, compress));
        let member = state.members.get_mut(&id)?;
        if let Some(older) = member.session.replace(Arc::clone(&session)) {
            older.end();
        }
        if !member.online {
            member.online = true;
            member.rendered(&self.settings, now);
            let patch = PeerChange {
                node_id: id,
                online: Some(true),
                disco_key: member.node.disco.filter(|_| member.disco_untold),
                ..PeerChange::default()
            };
            member.disco_untold = false;
            state.announce(
                id,
                Parts {
                    patches: [(id, patch)].into(),
                    ..Parts::default()
                },
            );
        }
        let snapshot = state.snapshot(&self.settings, id)?;
        Some((session, snapshot))
    }

    /// What a node would be told now, for a one-shot request.
    #[must_use]
    pub fn snapshot(&self, id: NodeId) -> Option<Snapshot> {
        self.state().snapshot(&self.settings, id)
    }

    /// A fresh full frame for a stream that fell behind; `None` if it has to reconnect.
    #[must_use]
    pub fn resync(&self, session: &Session) -> Option<Snapshot> {
        let state = self.state();
        let current = state.members.get(&session.node)?.session.as_ref()?;
        if current.number != session.number {
            return None;
        }
        let mut snapshot = state.snapshot(&self.settings, session.node)?;
        if snapshot.is_lonely() {
            // An empty list of peers clears nothing: name those that are gone (pitfall 24).
            let skip = session
                .removals_seen
                .checked_sub(state.removals_forgotten)?;
            let skip = usize::try_from(skip).ok()?;
            snapshot.removed = state.removals.iter().skip(skip).copied().collect();
        }
        Some(snapshot)
    }

    /// Closes a stream. If the node has none now, returns its absence: hand that to
    /// [`Engine::end_grace`] when the grace period is over.
    #[must_use]
    pub fn disconnect(&self, session: &Session, now: OffsetDateTime) -> Option<Absence> {
        let mut state = self.state();
        let member = state.members.get_mut(&session.node)?;
        if member
            .session
            .as_ref()
            .is_some_and(|current| current.number == session.number)
        {
            member.session = None;
        }
        // A stream that was ended on re-keying is gone from here already.
        if member.session.is_some() || !member.online {
            return None;
        }
        member.node.last_seen = Some(now);
        member.absent_since = now;
        member.absences += 1;
        let absence = Absence {
            node: session.node,
            number: member.absences,
        };
        state.unsaved.insert(session.node);
        Some(absence)
    }

    /// The grace period is over: unless the node has been back since, viewers are told that it is
    /// offline.
    pub fn end_grace(&self, absence: Absence, now: OffsetDateTime) {
        let mut state = self.state();
        let id = absence.node;
        let Some(member) = state.members.get_mut(&id) else {
            return;
        };
        if !member.online || member.session.is_some() || member.absences != absence.number {
            return;
        }
        member.online = false;
        member.rendered(&self.settings, now);
        let patch = PeerChange {
            node_id: id,
            online: Some(false),
            last_seen: member.node.last_seen.map(render::timestamp),
            ..PeerChange::default()
        };
        state.announce(
            id,
            Parts {
                patches: [(id, patch)].into(),
                ..Parts::default()
            },
        );
    }

    /// Ends all streams, for a clean shutdown.
    pub fn end_sessions(&self) {
        for member in self.state().members.values() {
            if let Some(session) = &member.session {
                session.end();
            }
        }
    }
}
