//! Model test: whatever happens, viewers that read their frames hold the map that a newcomer gets.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use control_proto::frame;
use control_proto::netmap::{MapSession, NetMap};
use control_proto::tailcfg::{Compress, DerpMap, Hostinfo, MapResponse, NetInfo};
use keys::{DiscoPublic, MachinePublic, NodePublic};
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

use super::{Absence, Engine, MapSettings, Next, QUEUE_LIMIT, Report, Session, Snapshot, render};
use crate::address::Addresses;
use crate::model::{ChangeNumber, Node, NodeId, User, UserId};
use crate::store::Loaded;

const COMPRESS: Compress = Compress::None;
/// Places for nodes; a deleted one is taken by another node.
const PLACES: usize = 5;

#[derive(Clone, Debug)]
enum Action {
    Join(usize),
    Delete(usize),
    Rename(usize, u8),
    Tag(usize),
    Give(usize, bool),
    Rekey(usize),
    ExpireIn(usize, i64),
    Endpoints(usize, u16),
    /// More changes than a queue holds.
    Flood(usize),
    Disco(usize, u8),
    Home(usize, i32),
    Os(usize, u8),
    Connect(usize),
    HangUp(usize),
    EndGrace,
    Wait(i64),
    /// The viewer takes at most one thing.
    Read(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let place = || 0..PLACES;
    prop_oneof![
        2 => place().prop_map(Action::Join),
        1 => place().prop_map(Action::Delete),
        1 => (place(), any::<u8>()).prop_map(|(at, n)| Action::Rename(at, n)),
        1 => place().prop_map(Action::Tag),
        1 => (place(), any::<bool>()).prop_map(|(at, second)| Action::Give(at, second)),
        1 => place().prop_map(Action::Rekey),
        1 => (place(), -5_i64..50).prop_map(|(at, s)| Action::ExpireIn(at, s)),
        2 => (place(), 1_u16..9).prop_map(|(at, port)| Action::Endpoints(at, port)),
        1 => place().prop_map(Action::Flood),
        1 => (place(), 1_u8..9).prop_map(|(at, n)| Action::Disco(at, n)),
        1 => (place(), 900..904).prop_map(|(at, n)| Action::Home(at, n)),
        1 => (place(), any::<u8>()).prop_map(|(at, n)| Action::Os(at, n)),
        4 => place().prop_map(Action::Connect),
        1 => place().prop_map(Action::HangUp),
        1 => Just(Action::EndGrace),
        1 => (0_i64..30).prop_map(Action::Wait),
        4 => place().prop_map(Action::Read),
    ]
}

/// A client: its stream, what it was sent and did not apply yet, its map.
struct Viewer {
    session: Arc<Session>,
    first: Option<Snapshot>,
    resync: bool,
    map: MapSession,
}

struct World {
    engine: Engine,
    now: OffsetDateTime,
    number: i64,
    nodes: [Option<NodeId>; PLACES],
    viewers: [Option<Viewer>; PLACES],
    absences: VecDeque<Absence>,
}

impl World {
    fn new() -> Self {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let settings = MapSettings::new("tailnet.internal", &DerpMap::default());
        let engine = Engine::new(settings, Loaded::default(), now);
        for id in 1..=2 {
            let user = User {
                id: UserId(id),
                name: format!("user{id}"),
                created: now,
            };
            engine.put_user(ChangeNumber(id), user);
        }
        Self {
            engine,
            now,
            number: 2,
            nodes: [None; PLACES],
            viewers: [const { None }; PLACES],
            absences: VecDeque::new(),
        }
    }

    fn next(&mut self) -> i64 {
        self.number += 1;
        self.number
    }

    fn put(&mut self, node: Node) {
        let number = ChangeNumber(self.next());
        self.engine.put_node(number, node, self.now);
    }

    fn edit(&mut self, at: usize, change: impl FnOnce(&mut Node)) {
        let Some(id) = self.nodes[at] else { return };
        let mut node = self.engine.node(id).unwrap().node;
        change(&mut node);
        self.put(node);
    }

    fn report(&self, at: usize, report: Report) {
        if let Some(id) = self.nodes[at] {
            let report = Report {
                capver: 117,
                ..report
            };
            self.engine.report(id, report, self.now);
        }
    }

    fn hostinfo(&self, at: usize, change: impl FnOnce(&mut Hostinfo)) {
        if let Some(id) = self.nodes[at] {
            let mut hostinfo = self.engine.node(id).unwrap().node.hostinfo;
            change(&mut hostinfo);
            let hostinfo = Some(hostinfo);
            self.report(
                at,
                Report {
                    hostinfo,
                    ..Report::default()
                },
            );
        }
    }

    fn endpoints(&self, at: usize, port: u16) {
        let endpoints = Some(vec![SocketAddr::from(([192, 0, 2, 1], port))]);
        self.report(
            at,
            Report {
                endpoints,
                ..Report::default()
            },
        );
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Join(at) => {
                if self.nodes[at].is_none() {
                    let id = self.next();
                    let node = node(id, self.now);
                    self.nodes[at] = Some(node.id);
                    self.put(node);
                }
            }
            Action::Delete(at) => {
                if let Some(id) = self.nodes[at].take() {
                    let number = ChangeNumber(self.next());
                    self.engine.remove_node(number, id, self.now);
                    self.hang_up(at);
                }
            }
            Action::Rename(at, n) => self.edit(at, |node| node.name = format!("name{n}")),
            Action::Tag(at) => self.edit(at, |node| node.tags = vec!["tag:x".to_owned()]),
            Action::Give(at, second) => self.edit(at, |node| {
                node.tags.clear();
                node.user = UserId(1 + i64::from(second));
            }),
            Action::Rekey(at) => {
                let key = key(self.next());
                self.edit(at, |node| node.key = key);
            }
            Action::ExpireIn(at, seconds) => {
                let at_time = self.now + Duration::seconds(seconds);
                self.edit(at, |node| node.expires = Some(at_time));
            }
            Action::Endpoints(at, port) => self.endpoints(at, port),
            Action::Flood(at) => {
                for port in 0..=QUEUE_LIMIT {
                    self.endpoints(at, 1000 + u16::try_from(port).unwrap());
                }
            }
            Action::Disco(at, n) => self.report(
                at,
                Report {
                    disco: Some(DiscoPublic::from_bytes([n; 32])),
                    ..Report::default()
                },
            ),
            Action::Home(at, region) => self.hostinfo(at, |host| {
                host.net_info = Some(NetInfo {
                    preferred_derp: region,
                    ..NetInfo::default()
                });
            }),
            Action::Os(at, n) => self.hostinfo(at, |host| host.os = format!("os{n}")),
            Action::Connect(at) => {
                let Some(id) = self.nodes[at] else { return };
                let key = self.engine.node(id).unwrap().node.key;
                // Whether a node was seen later than before, clients tell by the second.
                self.now += Duration::SECOND;
                // The older stream's end comes after it was superseded.
                let older = self.viewers[at].take();
                let (session, first) = self.engine.connect(id, COMPRESS, self.now).unwrap();
                self.viewers[at] = Some(Viewer {
                    session,
                    first: Some(first),
                    resync: false,
                    map: MapSession::new(key),
                });
                if let Some(older) = older {
                    assert_eq!(self.engine.disconnect(&older.session, self.now), None);
                }
            }
            Action::HangUp(at) => self.hang_up(at),
            Action::EndGrace => {
                if let Some(absence) = self.absences.pop_front() {
                    self.engine.end_grace(absence, self.now);
                }
            }
            Action::Wait(seconds) => {
                self.now += Duration::seconds(seconds);
                // Of no interest here: the relay's business.
                let _keys = self.engine.announce_expired(self.now);
            }
            Action::Read(at) => {
                self.read(at);
            }
        }
    }

    fn hang_up(&mut self, at: usize) {
        if let Some(viewer) = self.viewers[at].take() {
            let absence = self.engine.disconnect(&viewer.session, self.now);
            self.absences.extend(absence);
        }
    }

    /// Lets a viewer take and apply one frame; `false` if there is nothing for it.
    fn read(&mut self, at: usize) -> bool {
        let Some(viewer) = &mut self.viewers[at] else {
            return false;
        };
        let frame = if let Some(first) = viewer.first.take() {
            first.frame(COMPRESS, self.now)
        } else if std::mem::take(&mut viewer.resync) {
            let full = self.engine.resync(&viewer.session);
            full.and_then(|full| full.frame(COMPRESS, self.now))
        } else {
            match viewer.session.take() {
                None => return false,
                Some(Next::Frame(frame)) => Some(frame),
                Some(Next::Resync) => {
                    viewer.resync = true;
                    return true;
                }
                Some(Next::End) => None,
            }
        };
        match frame {
            Some(frame) => {
                let now = render::timestamp(self.now);
                viewer.map.apply(decode(&frame), now).unwrap();
            }
            None => self.hang_up(at),
        }
        true
    }

    /// Every viewer reads all there is; each must then know what a newcomer would be told.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.act(Action::Wait(0));
        for at in 0..PLACES {
            while self.read(at) {}
        }
        for viewer in self.viewers.iter().flatten() {
            let view = self.engine.node(viewer.session.node).unwrap();
            let mut fresh = MapSession::new(view.node.key);
            let full = self.engine.snapshot(viewer.session.node).unwrap();
            let full = decode(&full.frame(COMPRESS, self.now).unwrap());
            fresh.apply(full, render::timestamp(self.now)).unwrap();
            let mut expected = comparable(fresh.map().unwrap());
            let mut found = comparable(viewer.map.map().unwrap());
            // Owners that have no nodes left are not taken back, and do no harm.
            found
                .user_profiles
                .retain(|id, _| expected.user_profiles.contains_key(id));
            // Nobody tells a node what it told of itself.
            expected.node.hostinfo = Hostinfo::default();
            found.node.hostinfo = Hostinfo::default();
            prop_assert_eq!(found, expected);
        }
        Ok(())
    }
}

/// Leaves out what has no meaning and is not taken back (4.4): when a peer that is online was
/// last seen, and the disco key of one that is offline, which viewers believe when it is back.
fn comparable(map: &NetMap) -> NetMap {
    let mut map = map.clone();
    for peer in map.peers.values_mut() {
        if peer.online == Some(true) {
            peer.last_seen = None;
        } else {
            peer.disco_key = DiscoPublic::default();
        }
    }
    map
}

fn decode(framed: &[u8]) -> MapResponse {
    frame::decode(&framed[4..], COMPRESS).unwrap()
}

fn key(number: i64) -> NodePublic {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

fn node(id: i64, now: OffsetDateTime) -> Node {
    Node {
        id: NodeId(id),
        stable_id: format!("n{id}"),
        user: UserId(1),
        machine: MachinePublic::from_bytes([1; 32]),
        key: key(id),
        disco: None,
        name: format!("node{id}"),
        renamed: false,
        addresses: Addresses::at(u32::try_from(id).unwrap()).unwrap(),
        tags: Vec::new(),
        ephemeral: false,
        capver: 117,
        hostinfo: Hostinfo::default(),
        home_derp: 900,
        endpoints: Vec::new(),
        created: now,
        expires: None,
        last_seen: None,
    }
}

proptest! {
    #[test]
    fn viewers_converge_to_what_a_newcomer_is_told(
        actions in prop::collection::vec(action(), 1..120),
    ) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        world.settle()?;
    }
}
