//! Tests of the map engine, and what they share.

use std::net::SocketAddr;

use control_proto::frame;
use control_proto::tailcfg::{Compress, DerpMap, Hostinfo, MapResponse};
use keys::MachinePublic;
use policy::file::Context;

use super::*;
use crate::address::Addresses;
use crate::model::Role;

mod access;
mod convergence;
mod routes;
mod streams;

pub(super) const COMPRESS: Compress = Compress::Zstd;

pub(super) fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

/// An engine with the users ann (1), who owns the tailnet, and bob (2).
pub(super) fn engine() -> Engine {
    let engine = Engine::new(
        MapSettings::new("tailnet.internal", &DerpMap::default()),
        Loaded::default(),
        start(),
    );
    for (id, name, role) in [(1, "ann", Role::Owner), (2, "bob", Role::Member)] {
        engine.put_user(ChangeNumber(id), user(id, name, role));
    }
    engine
}

pub(super) fn user(id: i64, name: &str, role: Role) -> User {
    User {
        id: UserId(id),
        name: name.to_owned(),
        role,
        groups: BTreeSet::new(),
        created: start(),
    }
}

pub(super) fn node(id: i64) -> Node {
    Node {
        id: NodeId(id),
        stable_id: format!("n{id}"),
        user: UserId(1),
        machine: MachinePublic::from_bytes([id as u8; 32]),
        key: NodePublic::from_bytes([id as u8; 32]),
        disco: None,
        name: format!("node{id}"),
        renamed: false,
        addresses: Addresses::at(id as u32).unwrap(),
        tags: Vec::new(),
        approved_routes: BTreeSet::new(),
        ephemeral: false,
        capver: 117,
        hostinfo: Hostinfo::default(),
        home_derp: 900,
        endpoints: Vec::new(),
        created: start(),
        expires: None,
        last_seen: None,
    }
}

pub(super) fn add(engine: &Engine, id: i64) {
    engine.put_node(ChangeNumber(id + 1), node(id), start());
}

pub(super) fn connect(engine: &Engine, id: i64) -> (Arc<Session>, MapResponse) {
    let (session, snapshot) = engine.connect(NodeId(id), COMPRESS).unwrap();
    (session, decode(&snapshot.frame(COMPRESS, start()).unwrap()))
}

pub(super) fn endpoints(engine: &Engine, id: i64, port: u16) {
    let report = Report {
        capver: 117,
        endpoints: Some(vec![SocketAddr::from(([192, 0, 2, 1], port))]),
        ..Report::default()
    };
    engine.report(NodeId(id), report);
}

pub(super) fn decode(framed: &[u8]) -> MapResponse {
    frame::decode(&framed[4..], COMPRESS).unwrap()
}

pub(super) fn take(session: &Session) -> MapResponse {
    match session.take() {
        Some(Next::Frame(frame)) => decode(&frame),
        other => panic!("expected a frame, found {other:?}"),
    }
}

/// Puts a node in, or changes it from how the engine has it.
pub(super) fn edit(engine: &Engine, id: i64, change: impl FnOnce(&mut Node)) {
    let mut node = match engine.node(NodeId(id)) {
        Some(view) => view.node,
        None => node(id),
    };
    change(&mut node);
    engine.put_node(ChangeNumber(100), node, start());
}

pub(super) fn tag(engine: &Engine, id: i64, tag: &str) {
    edit(engine, id, |node| node.tags = vec![tag.to_owned()]);
}

pub(super) fn give(engine: &Engine, id: i64, user: i64) {
    edit(engine, id, |node| node.user = UserId(user));
}

/// Puts a policy in force.
pub(super) fn enforce(engine: &Engine, text: &str) {
    let parsed = Policy::parse("policy", text, &Context::default());
    let policy = parsed.unwrap_or_else(|error| panic!("{error}")).policy;
    let prepared = engine.prepare_policy(Arc::new(policy));
    engine.put_policy(ChangeNumber(100), prepared);
}

/// A stream whose first frame was read.
pub(super) fn viewer(engine: &Engine, id: i64) -> Arc<Session> {
    connect(engine, id).0
}

/// Streams of these nodes, with nothing left to read.
pub(super) fn viewers<const N: usize>(engine: &Engine, ids: [i64; N]) -> [Arc<Session>; N] {
    let viewers = ids.map(|id| viewer(engine, id));
    for viewer in &viewers {
        while viewer.take().is_some() {}
    }
    viewers
}

/// Which members the one frame has that waits for this viewer, with the nodes they are about;
/// empty: nothing waits.
pub(super) fn told(session: &Session) -> String {
    match session.take() {
        None => String::new(),
        Some(Next::Frame(frame)) => {
            let frame = decode(&frame);
            assert!(session.take().is_none(), "a change is one frame");
            summary(&frame)
        }
        Some(other) => format!("{other:?}"),
    }
}

pub(super) fn summary(frame: &MapResponse) -> String {
    let ids = |name: &str, ids: Vec<i64>| {
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        (!ids.is_empty()).then(|| format!("{name} {}", ids.join(",")))
    };
    let flag = |name: &str, is_there: bool| is_there.then(|| name.to_owned());
    let parts = [
        flag("derp", frame.derp_map.is_some()),
        flag("node", frame.node.is_some()),
        flag("filter", !frame.packet_filters.is_absent()),
        ids(
            "users",
            frame.user_profiles.iter().map(|user| user.id.0).collect(),
        ),
        ids(
            "removed",
            frame.peers_removed.iter().map(|id| id.0).collect(),
        ),
        ids(
            "changed",
            frame.peers_changed.iter().map(|peer| peer.id.0).collect(),
        ),
        ids(
            "patched",
            frame
                .peers_changed_patch
                .iter()
                .map(|patch| patch.node_id.0)
                .collect(),
        ),
        flag("ssh", frame.ssh_policy.is_some()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.join(" ")
}
