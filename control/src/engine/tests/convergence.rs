//! Model test: whatever happens, viewers that read their frames hold the map that a newcomer gets,
//! and after each frame they see whom the policy shows them, nobody else.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use control_proto::frame;
use control_proto::netmap::{MapSession, NetMap};
use control_proto::tailcfg::{Compress, DerpMap, Hostinfo, MapResponse, NetInfo};
use ipnet::IpNet;
use keys::{DiscoPublic, MachinePublic, NodePublic};
use policy::Policy;
use policy::file::Context;
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

use crate::address::Addresses;
use crate::engine::{
    Absence, Engine, MapSettings, Next, QUEUE_LIMIT, Report, Session, Snapshot, render,
};
use crate::model::{ChangeNumber, Node, NodeId, Role, User, UserId};
use crate::store::Loaded;

const COMPRESS: Compress = Compress::None;
/// Places for nodes; a deleted one is taken by another node.
const PLACES: usize = 5;

/// Every kind of answer that a policy has.
const POLICIES: [&str; 9] = [
    "{}",
    r#"{"acls": []}"#,
    r#"{"tagOwners": {"tag:x": []},
        "acls": [{"action": "accept", "src": ["user0@tailnet.internal"], "dst": ["tag:x:80", "10.0.0.0/24:*"]}]}"#,
    r#"{"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]},
                   {"src": ["autogroup:admin"], "dst": ["*"], "ip": ["22"]}]}"#,
    r#"{"tagOwners": {"tag:x": []}, "groups": {"group:g": ["user1@tailnet.internal"]},
        "grants": [{"src": ["*"], "dst": ["10.0.0.0/24"], "ip": ["*"], "via": ["tag:x"]},
                   {"src": ["group:g"], "dst": ["tag:x"], "app": {"example.com/cap/a": [{"b": 1}]}}]}"#,
    r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["autogroup:internet:*"]}],
        "nodeAttrs": [{"target": ["autogroup:member"], "attr": ["suggest-exit-node"]}]}"#,
    r#"{"tagOwners": {"tag:x": []}, "randomizeClientPort": true,
        "nodeAttrs": [{"target": ["tag:x"], "attr": ["disable-ipv4"]}],
        "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:x"], "users": ["root"]}]}"#,
    r#"{"postures": {"posture:odd": ["node:os IN ['os1', 'os3', 'os5', 'os7']"]},
        "grants": [{"src": ["*"], "dst": ["*"], "ip": ["443"], "srcPosture": ["posture:odd"]}]}"#,
    r#"{"derpMap": {"Regions": {"901": {"RegionID": 901, "RegionCode": "x", "RegionName": "x",
        "Nodes": [{"Name": "a", "RegionID": 901, "HostName": "derp.example.com"}]}}}}"#,
];

/// What routers offer.
const ROUTES: [&[&str]; 4] = [
    &[],
    &["10.0.0.0/24"],
    &["10.0.0.0/24", "192.0.2.0/24"],
    &["0.0.0.0/0", "::/0"],
];

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
    Policy(usize),
    Role(i64, Role),
    Approve(usize, usize),
    Advertise(usize, usize),
    Connect(usize),
    HangUp(usize),
    EndGrace,
    Wait(i64),
    /// The viewer takes at most one thing.
    Read(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let place = || 0..PLACES;
    let routes = || 0..ROUTES.len();
    let role = prop_oneof![Just(Role::Member), Just(Role::Admin)];
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
        1 => (place(), 0_u8..9).prop_map(|(at, n)| Action::Os(at, n)),
        4 => (0..POLICIES.len()).prop_map(Action::Policy),
        1 => (0_i64..2, role).prop_map(|(user, role)| Action::Role(user, role)),
        2 => (place(), routes()).prop_map(|(at, n)| Action::Approve(at, n)),
        2 => (place(), routes()).prop_map(|(at, n)| Action::Advertise(at, n)),
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
        for id in 0..2 {
            engine.put_user(ChangeNumber(id + 1), user(id, Role::Member));
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
            self.engine.report(id, report);
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
            Action::Policy(at) => {
                let number = ChangeNumber(self.next());
                let parsed = Policy::parse("policy", POLICIES[at], &Context::default());
                let policy = Arc::new(parsed.unwrap().policy);
                let prepared = self.engine.prepare_policy(policy);
                self.engine.put_policy(number, prepared);
            }
            Action::Role(number, role) => {
                let change = ChangeNumber(self.next());
                self.engine.put_user(change, user(number, role));
            }
            Action::Approve(at, n) => {
                self.edit(at, |node| {
                    node.approved_routes = routes(n).into_iter().collect()
                });
            }
            Action::Advertise(at, n) => self.hostinfo(at, |host| host.routable_ips = routes(n)),
            Action::Connect(at) => {
                let Some(id) = self.nodes[at] else { return };
                let key = self.engine.node(id).unwrap().node.key;
                // Whether a node was seen later than before, clients tell by the second.
                self.now += Duration::SECOND;
                // The older stream's end comes after it was superseded.
                let older = self.viewers[at].take();
                let (session, first) = self.engine.connect(id, COMPRESS).unwrap();
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
                    self.engine.end_grace(absence);
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
        let is_first = viewer.first.is_some();
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
                if !is_first {
                    self.assert_lawful(at);
                }
            }
            None => self.hang_up(at),
        }
        true
    }

    /// A viewer that has read all there was sees whom the policy shows it, and filters as it says.
    fn assert_lawful(&self, at: usize) {
        let Some(viewer) = &self.viewers[at] else {
            return;
        };
        let id = viewer.session.node;
        let is_current = self
            .engine
            .state()
            .stream(id)
            .is_some_and(|stream| Arc::ptr_eq(&stream.session, &viewer.session));
        if !is_current {
            return;
        }
        let map = viewer.map.map().unwrap();
        let (peers, filter) = self
            .engine
            .with_network(|network| (network.peers(id), network.filter(id)));
        assert_eq!(Vec::from_iter(map.peers.keys().copied()), peers);
        assert_eq!(map.packet_filters["base"], filter.rules());
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

fn user(number: i64, role: Role) -> User {
    User {
        id: UserId(1 + number),
        name: format!("user{number}"),
        role,
        groups: BTreeSet::new(),
        created: OffsetDateTime::UNIX_EPOCH,
    }
}

fn routes(at: usize) -> Vec<IpNet> {
    ROUTES[at]
        .iter()
        .map(|route| route.parse().unwrap())
        .collect()
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
        approved_routes: BTreeSet::new(),
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
