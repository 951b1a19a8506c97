//! Map streams: opened, superseded, resumed after an overflow, closed.

use std::sync::Arc;

use control_proto::tailcfg::{Compress, PeerChange};
use time::{Duration, OffsetDateTime};

use super::announce::Told;
use super::{Engine, News, Session, Snapshot, Stream, render};
use crate::model::NodeId;

/// How long the nodes of the database have to come back after a start of the server, before their
/// routes move to others. Clients try again every 30 s at least (protocol digest 4.3).
pub(super) const PATIENCE: Duration = Duration::seconds(45);

/// A node lost its last stream and has some time to come back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Absence {
    node: NodeId,
    number: u64,
}

impl Engine {
    /// Opens a node's stream, superseding its older one, and takes the first frame's snapshot.
    #[must_use]
    pub fn connect(&self, id: NodeId, compress: Compress) -> Option<(Arc<Session>, Snapshot)> {
        let mut state = self.state();
        state.sessions_opened += 1;
        let session = Arc::new(Session::new(id, state.sessions_opened, compress));
        let member = state.members.get_mut(&id)?;
        if let Some(older) = member.stream.take() {
            older.session.end();
        }
        if !member.online {
            member.online = true;
            member.awaited = false;
            let patch = PeerChange {
                node_id: id,
                online: Some(true),
                disco_key: member.node.disco.filter(|_| member.disco_untold),
                ..PeerChange::default()
            };
            member.disco_untold = false;
            state.changed(&self.settings, id, &News::Patch(patch));
        }
        let snapshot = state.snapshot(&self.settings, id)?;
        let member = state.members.get_mut(&id)?;
        member.stream = Some(Stream {
            session: Arc::clone(&session),
            told: Told {
                filter: Arc::clone(&snapshot.filter),
                ssh: Arc::clone(&snapshot.ssh),
                own: snapshot.own.clone(),
                owner: render::owner(&member.node),
            },
        });
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
        let mut state = self.state();
        let current = state.stream(session.node)?;
        if current.session.number != session.number {
            return None;
        }
        let mut snapshot = state.snapshot(&self.settings, session.node)?;
        let gone = session.caught_up();
        if snapshot.is_lonely() {
            // An empty list of peers clears nothing: name those that are gone (pitfall 24).
            snapshot.removed = gone.listed;
            if gone.others {
                let others = state.members.keys().copied();
                snapshot
                    .removed
                    .extend(others.filter(|id| *id != session.node));
            }
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
            .stream
            .as_ref()
            .is_some_and(|current| current.session.number == session.number)
        {
            member.stream = None;
        }
        // A stream that was ended on re-keying is gone from here already.
        if member.stream.is_some() || !member.online {
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
    pub fn end_grace(&self, absence: Absence) {
        let mut state = self.state();
        let id = absence.node;
        let Some(member) = state.members.get_mut(&id) else {
            return;
        };
        if !member.online || member.stream.is_some() || member.absences != absence.number {
            return;
        }
        member.online = false;
        let patch = PeerChange {
            node_id: id,
            online: Some(false),
            last_seen: member.node.last_seen.map(render::timestamp),
            ..PeerChange::default()
        };
        state.changed(&self.settings, id, &News::Patch(patch));
    }

    /// Once the nodes had time to come back after a start of the server, moves the routes of those
    /// that did not.
    pub fn stop_awaiting(&self, now: OffsetDateTime) {
        let mut state = self.state();
        if state.awaits_until.is_none_or(|until| now < until) {
            return;
        }
        state.awaits_until = None;
        let awaited = state.members.values().filter(|member| member.awaited);
        let awaited: Vec<NodeId> = awaited.map(|member| member.node.id).collect();
        for id in awaited {
            if let Some(member) = state.members.get_mut(&id) {
                member.awaited = false;
            }
            state.changed(&self.settings, id, &News::Nothing);
        }
    }

    /// Ends all streams, for a clean shutdown.
    pub fn end_sessions(&self) {
        for member in self.state().members.values() {
            if let Some(stream) = &member.stream {
                stream.session.end();
            }
        }
    }
}
