//! What the path machine costs at most: by what is active, and whatever it is told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use disco_proto::disco::{Message, TxId};
use keys::{DiscoPublic, NodePublic};
use node_core::RegionId;
use node_core::paths::{Command, MAX_CANDIDATES, Now, Paths, PeerPaths, Via};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Most pings of one peer on their way.
const MAX_PINGS: usize = 256;

fn bytes(kind: u8, number: u32) -> [u8; 32] {
    let mut bytes = [kind; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn node(number: u32) -> NodePublic {
    NodePublic::from_bytes(bytes(1, number))
}

fn disco(number: u32) -> DiscoPublic {
    DiscoPublic::from_bytes(bytes(2, number))
}

fn id(number: u64) -> TxId {
    let mut id = [0; 12];
    id[..8].copy_from_slice(&number.to_be_bytes());
    TxId(id)
}

fn machine() -> Paths {
    let mut count = 0;
    Paths::new(node(u32::MAX), move || {
        count += 1;
        id(count)
    })
}

#[test]
fn an_hour_with_ten_active_peers_of_a_thousand_costs_what_ten_cost() {
    const PEERS: u32 = 1000;
    const ACTIVE: u32 = 10;
    let mut paths = machine();
    paths.own_endpoints(Now::default(), vec!["198.51.100.1:1".parse().unwrap()]);
    for number in 0..PEERS {
        let [_, _, high, low] = number.to_be_bytes();
        let peer = PeerPaths {
            disco: Some(disco(number)),
            home: Some(RegionId(1)),
            endpoints: vec![SocketAddr::from(([192, 0, high, low], 41641))],
        };
        paths.set_peer(Now::default(), node(number), peer);
    }
    let (mut commands, mut wakes) = (0u64, 0u64);
    let mut pongs = BTreeMap::new();
    let mut count = 0u64;
    let mut report = Duration::ZERO;
    while report < SECOND * 3600 {
        let timer = paths.next_timeout().map_or(Duration::MAX, |at| at.0);
        let answer = pongs.keys().next();
        let answer = answer.map_or(Duration::MAX, |(at, _): &(Duration, u64)| *at);
        let next = report.min(timer).min(answer);
        if next == answer {
            let (_, (via, from, id)) = pongs.pop_first().unwrap();
            let source = SocketAddr::from(([198, 51, 100, 1], 1));
            paths.message(Now(next), via, from, Message::Pong { id, source });
        } else if next == timer {
            wakes += 1;
            paths.timeout(Now(next));
        } else {
            for number in 0..ACTIVE {
                paths.activity(Now(next), node(number), Now(next));
            }
            report += SECOND;
        }
        while let Some(command) = paths.next_command() {
            commands += 1;
            let Command::Send {
                via,
                disco: to,
                message,
            } = command
            else {
                continue;
            };
            let number = u32::from_be_bytes(*to.as_bytes().first_chunk().unwrap());
            assert!(number < ACTIVE, "a message to idle peer {number}");
            if let Message::Ping { id, .. } = message {
                count += 1;
                pongs.insert((next + ROUND_TRIP, count), (via, to, id));
            }
        }
        assert!(paths.load().timers <= ACTIVE as usize);
    }
    // A ping and a route each three seconds, and a round now and then.
    let seconds = 3600 * u64::from(ACTIVE);
    assert!(commands <= seconds, "{commands} commands");
    assert!(wakes <= seconds / 2, "{wakes} wake-ups");
}

/// What a shell may tell, sensible or not.
#[derive(Clone, Debug)]
enum Event {
    Wait(Duration),
    SetPeer(u32, Option<u32>, bool, Vec<SocketAddr>),
    RemovePeer(u32),
    Told(u32, u32),
    Message(Via, u32, Message),
    /// A pong to one of the latest pings.
    Answer(usize, SocketAddr),
    Activity(u32, Duration),
    Unanswered(u32),
    Adopt(u32, SocketAddr),
    OwnEndpoints(Vec<SocketAddr>),
    UnderlayChanged,
    Ping(u32, u64, u16),
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
        (0..4u8).prop_map(|last| IpAddr::from([192, 0, 2, last])),
        Just(IpAddr::from([127, 64, 0, 2])),
    ];
    (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn via() -> impl Strategy<Value = Via> {
    prop_oneof![
        address().prop_map(Via::Udp),
        (0..3u16, 0..5u32).prop_map(|(region, from)| Via::Derp(RegionId(region), node(from))),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (0..40u64, prop::option::of(0..5u32), any::<u16>()).prop_map(|(n, key, padding)| {
            let node = key.map(node);
            let id = id(n);
            Message::Ping { id, node, padding }
        }),
        (0..200u64, address()).prop_map(|(n, source)| Message::Pong { id: id(n), source }),
        prop::collection::vec(address(), 0..8)
            .prop_map(|endpoints| Message::CallMeMaybe { endpoints }),
        any::<u8>().prop_map(|first| Message::CallMeMaybe {
            endpoints: (1..=1000)
                .map(|port| SocketAddr::from(([192, 0, first, 9], port)))
                .collect(),
        }),
        (any::<u8>(), any::<u8>()).prop_map(|(kind, version)| Message::Unknown { kind, version }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let few = || prop::collection::vec(address(), 0..5);
    let pause = prop_oneof![
        4 => (0..10_000u64).prop_map(Duration::from_millis),
        1 => (0..1_000_000u64).prop_map(Duration::from_secs),
    ];
    prop_oneof![
        4 => pause.prop_map(Event::Wait),
        2 => (0..4u32, prop::option::of(0..4u32), any::<bool>(), few())
            .prop_map(|(n, d, home, e)| Event::SetPeer(n, d, home, e)),
        1 => (0..5u32).prop_map(Event::RemovePeer),
        1 => (0..5u32, 0..4u32).prop_map(|(n, d)| Event::Told(n, d)),
        6 => (via(), 0..5u32, message()).prop_map(|(v, d, m)| Event::Message(v, d, m)),
        4 => (0..20usize, address()).prop_map(|(back, from)| Event::Answer(back, from)),
        6 => (0..5u32, (0..100u64)).prop_map(|(n, s)| Event::Activity(n, Duration::from_secs(s))),
        2 => (0..5u32).prop_map(Event::Unanswered),
        1 => (0..5u32, address()).prop_map(|(n, a)| Event::Adopt(n, a)),
        1 => few().prop_map(Event::OwnEndpoints),
        1 => Just(Event::UnderlayChanged),
        1 => (0..5u32, 0..40u64, any::<u16>()).prop_map(|(n, p, s)| Event::Ping(n, p, s)),
    ]
}

/// Runs what is due up to `end`; at no instant anything is due twice.
fn run(paths: &mut Paths, end: Duration) {
    let mut steps = 0;
    while let Some(at) = paths.next_timeout().filter(|at| at.0 <= end) {
        paths.timeout(at);
        assert!(paths.next_timeout().is_none_or(|next| next > at));
        steps += 1;
        // Nobody is told to be active meanwhile, so that everybody falls idle.
        assert!(steps < 2000, "timers never end");
    }
}

fn tell(paths: &mut Paths, now: Duration, event: Event, sent: &[(DiscoPublic, TxId)]) {
    let now = Now(now);
    match event {
        Event::Wait(_) => {}
        Event::SetPeer(number, key, home, endpoints) => {
            let peer = PeerPaths {
                disco: key.map(disco),
                home: home.then_some(RegionId(1)),
                endpoints,
            };
            paths.set_peer(now, node(number), peer);
        }
        Event::RemovePeer(number) => paths.remove_peer(node(number)),
        Event::Told(number, key) => paths.disco_key_told(now, node(number), disco(key)),
        Event::Message(via, from, message) => paths.message(now, via, disco(from), message),
        Event::Answer(back, source) => {
            if let Some((from, id)) = sent.iter().rev().nth(back) {
                let pong = Message::Pong { id: *id, source };
                paths.message(now, Via::Udp(source), *from, pong);
            }
        }
        Event::Activity(number, ago) => {
            let at = Now(now.0.saturating_sub(ago));
            paths.activity(now, node(number), at);
        }
        Event::Unanswered(number) => paths.unanswered(now, node(number)),
        Event::Adopt(number, address) => paths.adopt(now, node(number), address),
        Event::OwnEndpoints(endpoints) => paths.own_endpoints(now, endpoints),
        Event::UnderlayChanged => paths.underlay_changed(now),
        Event::Ping(number, ping, size) => paths.ping(now, node(number), ping, size),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_is_bounded_and_comes_to_an_end(
        events in prop::collection::vec(event(), 1..150),
    ) {
        let mut paths = machine();
        let mut now = Duration::ZERO;
        let mut sent = Vec::new();
        for event in events {
            if let Event::Wait(pause) = event {
                now += pause;
                run(&mut paths, now);
            } else {
                tell(&mut paths, now, event, &sent);
            }
            let load = paths.load();
            prop_assert!(load.candidates <= MAX_CANDIDATES, "{load:?}");
            prop_assert!(load.pings <= MAX_PINGS, "{load:?}");
            prop_assert!(load.timers <= 4, "{load:?}");
            while let Some(command) = paths.next_command() {
                if let Command::Send { disco, message: Message::Ping { id, .. }, .. } = command {
                    sent.push((disco, id));
                }
            }
            // Not everybody calls on time: a timer may be late, but never in the way.
            if let Some(at) = paths.next_timeout() {
                prop_assert!(at.0 <= now + Duration::from_secs(60));
            }
        }
        // A minute after the last packet nothing is left to do.
        run(&mut paths, now + SECOND * 120);
        prop_assert_eq!(paths.next_timeout(), None);
    }
}
