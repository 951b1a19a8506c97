//! The rules of disco.md §4–§6 one by one, in virtual time.

use super::*;
use crate::DEFAULT_MTU;

const A: &str = "192.0.2.1:41641";
const B: &str = "10.0.0.1:41641";
const HOME: RegionId = RegionId(7);

fn peer() -> NodePublic {
    NodePublic::from_bytes([1; 32])
}

fn disco() -> DiscoPublic {
    DiscoPublic::from_bytes([11; 32])
}

fn at(millis: u64) -> Now {
    Now(Duration::from_millis(millis))
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn config(endpoints: &[&str]) -> PeerPaths {
    PeerPaths {
        disco: Some(disco()),
        home: Some(HOME),
        endpoints: endpoints.iter().map(|a| address(a)).collect(),
    }
}

fn machine() -> Paths {
    let mut count = 0u64;
    Paths::new(NodePublic::from_bytes([9; 32]), move || {
        count += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&count.to_be_bytes());
        TxId(id)
    })
}

/// One peer with these endpoints, and our own endpoints fresh at zero.
fn with_peer(endpoints: &[&str]) -> Paths {
    let mut paths = machine();
    paths.own_endpoints(at(0), vec![address("198.51.100.1:1")]);
    paths.set_peer(at(0), peer(), config(endpoints));
    assert_eq!(paths.next_command(), None);
    paths
}

fn commands(paths: &mut Paths) -> Vec<Command> {
    std::iter::from_fn(|| paths.next_command()).collect()
}

fn pings(commands: &[Command]) -> Vec<(Via, TxId)> {
    let ping = |command: &Command| match command {
        Command::Send {
            via,
            message: Message::Ping { id, padding: 0, .. },
            ..
        } => Some((*via, *id)),
        _ => None,
    };
    commands.iter().filter_map(ping).collect()
}

fn calls(commands: &[Command]) -> usize {
    let call = |c: &&Command| {
        matches!(
            c,
            Command::Send {
                message: Message::CallMeMaybe { .. },
                ..
            }
        )
    };
    commands.iter().filter(call).count()
}

fn pong(paths: &mut Paths, now: Now, (via, id): (Via, TxId)) {
    let source = address("203.0.113.1:1");
    paths.message(now, via, disco(), Message::Pong { id, source });
}

/// A peer whose path to [`A`] was proved at 20 ms.
fn direct() -> Paths {
    let mut paths = with_peer(&[A]);
    paths.activity(at(0), peer(), at(0));
    let sent = pings(&commands(&mut paths));
    pong(&mut paths, at(20), sent[0]);
    assert_eq!(paths.route(&peer()), Some(Route::Direct(address(A))));
    commands(&mut paths);
    paths
}

/// Runs timers up to `until` while packets are sent all the time, and nothing answers.
fn run(paths: &mut Paths, until: Now) -> Vec<(Now, Command)> {
    let mut seen = Vec::new();
    while let Some(now) = paths.next_timeout().filter(|at| *at <= until) {
        paths.activity(now, peer(), now);
        paths.timeout(now);
        seen.extend(commands(paths).into_iter().map(|c| (now, c)));
    }
    seen
}

/// Runs timers until none is left.
fn run_idle(paths: &mut Paths) -> Vec<Command> {
    let mut seen = Vec::new();
    while let Some(now) = paths.next_timeout() {
        paths.timeout(now);
        seen.extend(commands(paths));
    }
    seen
}

#[test]
fn the_first_packet_pings_every_candidate_and_then_calls() {
    let mut paths = with_peer(&[A, B]);
    paths.activity(at(0), peer(), at(0));
    let sent = commands(&mut paths);
    assert_eq!(pings(&sent).len(), 2);
    // §5.3: pings leave before the CallMeMaybe.
    assert!(matches!(
        sent.last(),
        Some(Command::Send {
            via: Via::Derp(HOME, _),
            message: Message::CallMeMaybe { .. },
            ..
        })
    ));
}

#[test]
fn stale_endpoints_are_learned_anew_before_they_are_offered() {
    let mut paths = with_peer(&[A]);
    paths.activity(at(28_000), peer(), at(28_000));
    let sent = commands(&mut paths);
    assert!(sent.contains(&Command::ReStun));
    assert_eq!(calls(&sent), 0);
    paths.own_endpoints(at(28_100), vec![address("198.51.100.1:2")]);
    assert_eq!(calls(&commands(&mut paths)), 1);
}

#[test]
fn a_path_is_used_after_its_pong_and_trusted_for_six_and_a_half_seconds() {
    let mut paths = direct();
    let seen = run(&mut paths, at(12_000));
    let routes: Vec<_> = seen
        .into_iter()
        .filter_map(|(now, c)| match c {
            Command::SetRoute { route, .. } => Some((now, route)),
            _ => None,
        })
        .collect();
    // §5.1 and §5.5: both ways once trust lapsed, the relay alone once the next ping is lost.
    let (direct, both) = (Route::Direct(address(A)), Route::Both(address(A)));
    let expected = [
        (at(3000), direct),
        (at(6000), direct),
        (at(6520), both),
        (at(8000), Route::Relayed),
    ];
    assert_eq!(routes[..4], expected);
}

#[test]
fn heartbeats_go_every_three_seconds_and_end_45_after_the_last_packet() {
    let mut paths = direct();
    let mut beats = 0;
    while let Some(now) = paths.next_timeout() {
        assert!(now < at(60_000), "a timer is left");
        paths.timeout(now);
        for ping in pings(&commands(&mut paths)) {
            beats += 1;
            pong(&mut paths, now, ping);
        }
    }
    assert_eq!(beats, 15);
    // §17: the next packet finds a synthetic endpoint that sends both ways.
    assert_eq!(paths.route(&peer()), Some(Route::Both(address(A))));
}

#[test]
fn sending_without_an_answer_brings_the_relay_back_within_a_second() {
    let mut paths = direct();
    paths.unanswered(at(100), peer());
    assert_eq!(pings(&commands(&mut paths)).len(), 1);
    let seen = run(&mut paths, at(1100));
    let both = Route::Both(address(A));
    assert!(seen.iter().any(|(_, c)| *c
        == Command::SetRoute {
            peer: peer(),
            route: both
        }));
    // The peer learns at once that it had better look at its own path.
    let seen: Vec<Command> = seen.into_iter().map(|(_, c)| c).collect();
    assert_eq!(calls(&seen), 1);
}

#[test]
fn a_ping_that_was_lost_before_the_last_answer_does_not_end_the_path() {
    let mut paths = with_peer(&[A]);
    paths.activity(at(0), peer(), at(0));
    let first = pings(&commands(&mut paths));
    paths.ping(at(5), peer(), 1, 0);
    pong(&mut paths, at(20), first[0]);
    commands(&mut paths);
    paths.unanswered(at(2000), peer());
    run(&mut paths, at(5500));
    assert_eq!(paths.route(&peer()), Some(Route::Both(address(A))));
    run(&mut paths, at(9000));
    assert_eq!(paths.route(&peer()), Some(Route::Relayed));
}

#[test]
fn an_answered_suspicion_leaves_the_path_alone() {
    let mut paths = direct();
    paths.unanswered(at(100), peer());
    let sent = pings(&commands(&mut paths));
    pong(&mut paths, at(120), sent[0]);
    let seen = run(&mut paths, at(2900));
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn a_pong_counts_once_and_only_for_the_key_that_was_asked() {
    let mut paths = with_peer(&[A]);
    paths.activity(at(0), peer(), at(0));
    let sent = pings(&commands(&mut paths));
    let source = address(A);
    let other = DiscoPublic::from_bytes([12; 32]);
    let id = sent[0].1;
    paths.message(at(1), sent[0].0, other, Message::Pong { id, source });
    pong(&mut paths, at(1), (sent[0].0, TxId([7; 12])));
    assert_eq!(paths.route(&peer()), Some(Route::Relayed));
    pong(&mut paths, at(2), sent[0]);
    pong(&mut paths, at(3), sent[0]);
    let ignored = paths.ignored();
    assert_eq!((ignored.unknown_sender, ignored.unmatched_pong), (1, 2));
}

#[test]
fn an_idle_peer_answers_pings_and_sends_none() {
    let mut paths = with_peer(&[A]);
    let id = TxId([5; 12]);
    let ping = Message::Ping {
        id,
        node: Some(peer()),
        padding: 0,
    };
    paths.message(at(0), Via::Udp(address(B)), disco(), ping);
    let sent = commands(&mut paths);
    let pong = Message::Pong {
        id,
        source: address(B),
    };
    let answer = Command::Send {
        via: Via::Udp(address(B)),
        disco: disco(),
        message: pong,
    };
    assert_eq!(sent, [answer]);
    assert_eq!(pings(&run_idle(&mut paths)), []);
}

#[test]
fn a_peer_that_pings_us_is_counted_while_it_does() {
    let mut paths = with_peer(&[A]);
    let ping = Message::Ping {
        id: TxId([5; 12]),
        node: Some(peer()),
        padding: 0,
    };
    paths.message(at(0), Via::Udp(address(B)), disco(), ping);
    assert_eq!(paths.active().collect::<Vec<_>>(), [peer()]);
    commands(&mut paths);
    // Its packets may have moved the endpoint, to where nobody sees what goes there.
    let relayed = Command::SetRoute {
        peer: peer(),
        route: Route::Relayed,
    };
    assert_eq!(run_idle(&mut paths), [relayed]);
    assert_eq!(paths.active().count(), 0);
}

#[test]
fn a_repeated_ping_is_answered_once_on_each_way_and_proves_nothing_new() {
    let mut paths = with_peer(&[A]);
    let ping = Message::Ping {
        id: TxId([5; 12]),
        node: Some(peer()),
        padding: 0,
    };
    let mut answers = |now, via| {
        paths.message(now, via, disco(), ping.clone());
        (commands(&mut paths).len(), paths.next_timeout())
    };
    let (straight, relayed) = (Via::Udp(address(B)), Via::Derp(HOME, peer()));
    let until = Some(at(45_000));
    assert_eq!(answers(at(0), straight), (1, until));
    assert_eq!(answers(at(10), relayed), (1, until));
    assert_eq!(answers(at(20_000), straight), (0, until));
    assert_eq!(answers(at(20_010), relayed), (1, until));
    assert_eq!(paths.ignored().repeated_ping, 1);
}

#[test]
fn an_address_that_the_peer_leaves_out_is_trusted_only_if_it_answers_once_more() {
    let mut paths = direct();
    paths.set_peer(at(30), peer(), config(&[B]));
    assert_eq!(paths.route(&peer()), Some(Route::Both(address(A))));
    commands(&mut paths);
    paths.ping(at(40), peer(), 1, 0);
    let sent = pings(&commands(&mut paths));
    // Nor does an address count any more from which the answer comes too late.
    let elsewhere = sent.iter().find(|(via, _)| *via == Via::Udp(address(B)));
    paths.set_peer(at(50), peer(), config(&[]));
    pong(&mut paths, at(60), *elsewhere.unwrap());
    assert_eq!(paths.route(&peer()), Some(Route::Both(address(A))));
    paths.activity(at(70), peer(), at(70));
    let beat = run(&mut paths, at(3_000)).into_iter().map(|(_, c)| c);
    let sent = pings(&beat.collect::<Vec<_>>());
    pong(&mut paths, at(3_020), sent[0]);
    assert_eq!(paths.route(&peer()), Some(Route::Direct(address(A))));
}

#[test]
fn a_slow_path_has_the_time_to_answer_a_suspicion() {
    let mut paths = with_peer(&[A]);
    paths.activity(at(0), peer(), at(0));
    let sent = pings(&commands(&mut paths));
    pong(&mut paths, at(1_500), sent[0]);
    commands(&mut paths);
    paths.unanswered(at(1_600), peer());
    let sent = pings(&commands(&mut paths));
    run(&mut paths, at(3_099));
    assert_eq!(paths.route(&peer()), Some(Route::Direct(address(A))));
    pong(&mut paths, at(3_100), sent[0]);
    run(&mut paths, at(5_900));
    assert_eq!(paths.route(&peer()), Some(Route::Direct(address(A))));
}

#[test]
fn the_detours_of_a_peer_that_is_gone_end() {
    let mut paths = direct();
    run(&mut paths, at(6_600));
    paths.remove_peer(peer());
    let ended = Command::Detour {
        peer: peer(),
        sources: Sources::default(),
    };
    assert_eq!(commands(&mut paths), [ended]);
}

#[test]
fn where_a_peer_answers_from_or_says_it_is_is_its_own_and_where_its_pings_are_repeated_is_not() {
    let mut paths = with_peer(&[A, B]);
    paths.activity(at(0), peer(), at(0));
    let sent = pings(&commands(&mut paths));
    let to_a = sent.iter().find(|(via, _)| *via == Via::Udp(address(A)));
    let (_, id) = *to_a.unwrap();
    let heard = |paths: &mut Paths, from: &str, message| {
        paths.message(at(20), Via::Udp(address(from)), disco(), message);
    };
    let ping = |number| Message::Ping {
        id: TxId([number; 12]),
        node: None,
        padding: 0,
    };
    let source = address("203.0.113.1:1");
    // Its NAT gives what answers another port.
    heard(&mut paths, "192.0.2.1:7", Message::Pong { id, source });
    heard(&mut paths, B, ping(1));
    heard(&mut paths, "203.0.113.66:1", ping(2));
    assert_eq!(paths.route(&peer()), Some(Route::Direct(address(A))));
    let told = run(&mut paths, at(3_100)).into_iter();
    let mut told = told.filter_map(|(_, command)| match command {
        Command::Detour { sources, .. } => Some(sources),
        _ => None,
    });
    let expected = Sources {
        unproved: vec![address(B), address("203.0.113.66:1")],
        own: [address("192.0.2.1:7"), address(B)].into(),
    };
    assert_eq!(told.next_back(), Some(expected));
}

#[test]
fn an_active_peer_without_a_path_pings_back_where_it_was_pinged_from() {
    let mut paths = with_peer(&[A]);
    paths.activity(at(0), peer(), at(0));
    commands(&mut paths);
    let ping = Message::Ping {
        id: TxId([5; 12]),
        node: None,
        padding: 0,
    };
    paths.message(at(9), Via::Udp(address(B)), disco(), ping);
    let sent = pings(&commands(&mut paths));
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].0, Via::Udp(address(B)));
}

#[test]
fn a_ping_that_found_the_peers_nat_closed_is_repeated_once_it_is_open() {
    let mut paths = with_peer(&[A]);
    paths.activity(at(0), peer(), at(0));
    assert_eq!(pings(&commands(&mut paths)).len(), 1);
    for number in [1, 2] {
        let ping = Message::Ping {
            id: TxId([number; 12]),
            node: None,
            padding: 0,
        };
        let now = at(40 * u64::from(number));
        paths.message(now, Via::Udp(address(A)), disco(), ping);
    }
    assert_eq!(pings(&commands(&mut paths)).len(), 1);
}

#[test]
fn a_call_is_answered_with_pings_and_never_with_a_call() {
    let mut paths = with_peer(&[]);
    let call = Message::CallMeMaybe {
        endpoints: vec![address(A), address("[fe80::1]:1")],
    };
    paths.message(at(0), Via::Udp(address(A)), disco(), call.clone());
    assert_eq!(paths.ignored().misplaced, 1);
    paths.message(at(0), Via::Derp(HOME, peer()), disco(), call);
    let sent = commands(&mut paths);
    assert_eq!((pings(&sent).len(), calls(&sent)), (1, 0));
}

#[test]
fn a_peer_that_calls_again_and_again_is_called_back_at_our_own_pace() {
    let mut paths = with_peer(&[]);
    paths.activity(at(0), peer(), at(0));
    let mut called = calls(&commands(&mut paths));
    // Just before each heartbeat, which then finds everything pinged already.
    for second in (2..30).step_by(3) {
        let now = at(second * 1000);
        let call = Message::CallMeMaybe {
            endpoints: vec![address(A)],
        };
        paths.own_endpoints(now, vec![address("198.51.100.1:1")]);
        paths.message(now, Via::Derp(HOME, peer()), disco(), call);
        commands(&mut paths);
        let beats = run(&mut paths, at(second * 1000 + 1500));
        called += beats
            .iter()
            .map(|(_, c)| calls(std::slice::from_ref(c)))
            .sum::<usize>();
    }
    assert_eq!(called, 6);
}

#[test]
fn a_call_puts_a_trusted_path_to_the_proof() {
    let mut paths = direct();
    let call = Message::CallMeMaybe {
        endpoints: vec![address(B)],
    };
    paths.message(at(30), Via::Derp(HOME, peer()), disco(), call);
    let sent = pings(&commands(&mut paths));
    let to: Vec<Via> = sent.iter().map(|(via, _)| *via).collect();
    assert_eq!(to, [Via::Udp(address(A)), Via::Udp(address(B))]);
    let both = Command::SetRoute {
        peer: peer(),
        route: Route::Both(address(A)),
    };
    let seen = run(&mut paths, at(1_030));
    assert!(seen.iter().any(|(_, c)| *c == both), "{seen:?}");
}

#[test]
fn our_own_synthetic_endpoints_are_no_candidates() {
    let mut paths = with_peer(&["127.64.0.2:41641", "127.127.9.9:1"]);
    paths.activity(at(0), peer(), at(0));
    assert_eq!(pings(&commands(&mut paths)), []);
}

#[test]
fn a_new_disco_key_forgets_the_path_and_resets_the_session_unless_told_inside() {
    let mut paths = direct();
    paths.disco_key_told(at(30), peer(), DiscoPublic::from_bytes([12; 32]));
    assert_eq!(paths.route(&peer()), Some(Route::Relayed));
    assert!(!commands(&mut paths).contains(&Command::ResetSession(peer())));

    let mut paths = direct();
    let newer = PeerPaths {
        disco: Some(DiscoPublic::from_bytes([12; 32])),
        ..config(&[A])
    };
    paths.set_peer(at(30), peer(), newer);
    assert_eq!(paths.route(&peer()), Some(Route::Relayed));
    assert!(commands(&mut paths).contains(&Command::ResetSession(peer())));
    assert!(!paths.knows(&disco()));
}

#[test]
fn each_heartbeat_sets_the_endpoint_again_that_wireguard_may_have_moved() {
    let mut paths = direct();
    let set = |(_, command): &(Now, Command)| match command {
        Command::SetRoute { route, .. } => Some(*route),
        _ => None,
    };
    let seen = run(&mut paths, at(3_000));
    let route = Route::Direct(address(A));
    assert_eq!(seen.iter().filter_map(set).collect::<Vec<_>>(), [route]);
}

#[test]
fn what_is_sent_to_an_idle_peer_takes_the_endpoint_where_it_is_seen() {
    let mut paths = direct();
    let mut last = None;
    while let Some(now) = paths.next_timeout() {
        paths.timeout(now);
        for command in commands(&mut paths) {
            if let Command::Send {
                via,
                message: Message::Ping { id, .. },
                ..
            } = command
            {
                pong(&mut paths, now, (via, id));
            }
            last = Some(now);
        }
    }
    assert_eq!(paths.route(&peer()), Some(Route::Both(address(A))));
    assert!(last <= Some(at(51_000)), "{last:?}");
    assert_eq!(paths.active().count(), 0);
}

#[test]
fn the_path_of_a_former_process_is_used_and_proved_anew() {
    let mut paths = with_peer(&[]);
    paths.adopt(at(0), peer(), address(A));
    assert_eq!(paths.route(&peer()), Some(Route::Direct(address(A))));
    let sent = pings(&commands(&mut paths));
    assert_eq!(sent[0].0, Via::Udp(address(A)));
    run(&mut paths, at(7_000));
    assert_eq!(paths.route(&peer()), Some(Route::Both(address(A))));
}

#[test]
fn another_network_puts_every_peer_back_on_the_relay() {
    let mut paths = direct();
    paths.underlay_changed(at(30));
    let sent = commands(&mut paths);
    assert_eq!(sent.first(), Some(&Command::ReStun));
    assert_eq!(paths.route(&peer()), Some(Route::Relayed));
    assert_eq!(pings(&sent).len(), 1);
}

#[test]
fn a_ping_that_was_asked_for_is_answered_or_expires() {
    let mut paths = direct();
    paths.ping(at(30), peer(), 42, 0);
    let sent = pings(&commands(&mut paths));
    pong(&mut paths, at(40), sent[0]);
    assert!(
        commands(&mut paths)
            .iter()
            .any(|c| matches!(c, Command::PingAnswered { ping: 42, .. }))
    );

    paths.ping(at(50), peer(), 43, 0);
    let seen = run(&mut paths, at(10_100));
    let expired = Command::PingExpired {
        ping: 43,
        peer: peer(),
    };
    assert!(seen.contains(&(at(10_050), expired)));
}

#[test]
fn a_round_trip_is_told_while_its_path_is_in_use_and_was_measured() {
    let latency = |paths: &Paths, now| paths.latencies(now).next().map(|(_, latency)| latency);
    let paths = direct();
    assert_eq!(latency(&paths, at(20)), Some(Duration::from_millis(20)));
    // Trust is over, and nothing came over the relay.
    assert_eq!(latency(&paths, at(7000)), None);

    let mut paths = with_peer(&[]);
    paths.ping(at(0), peer(), 1, 0);
    let relayed = pings(&commands(&mut paths))[0];
    let (via, id) = relayed;
    let source = address("127.3.3.40:7");
    paths.message(at(30), via, disco(), Message::Pong { id, source });
    assert_eq!(latency(&paths, at(30)), Some(Duration::from_millis(30)));
    assert_eq!(latency(&paths, at(61_000)), None);

    // What a former process measured is not known.
    let mut paths = with_peer(&[A]);
    paths.adopt(at(0), peer(), address(A));
    assert_eq!(latency(&paths, at(0)), None);
}

#[test]
fn nobody_waits_for_a_ping_to_a_peer_that_is_gone() {
    let mut paths = direct();
    paths.ping(at(30), peer(), 42, 0);
    commands(&mut paths);
    paths.remove_peer(peer());
    let expired = Command::PingExpired {
        ping: 42,
        peer: peer(),
    };
    assert_eq!(commands(&mut paths), [expired]);
    assert_eq!(paths.next_timeout(), None);
}

#[test]
fn memory_and_pings_stay_bounded_whatever_a_peer_sends() {
    let mut paths = with_peer(&[A]);
    for round in 0..50u16 {
        let endpoints = (1..=200u16).map(|n| SocketAddr::from(([192, 0, 2, 9], round * 200 + n)));
        let call = Message::CallMeMaybe {
            endpoints: endpoints.collect(),
        };
        paths.message(at(u64::from(round)), Via::Derp(HOME, peer()), disco(), call);
    }
    assert!(pings(&commands(&mut paths)).len() <= 256);
}

/// Padding that makes a ping fill an IPv4 packet of 1400 or 1500 bytes.
const FILLS_1400: u16 = 1400 - 28 - 124;
const FILLS_1500: u16 = 1500 - 28 - 124;

/// Pings with padding: which, and how much.
fn long_pings(commands: &[Command]) -> Vec<(TxId, u16)> {
    let ping = |command: &Command| match command {
        Command::Send {
            message: Message::Ping { id, padding, .. },
            ..
        } => (*padding > 0).then_some((*id, *padding)),
        _ => None,
    };
    commands.iter().filter_map(ping).collect()
}

/// Runs timers up to `until`, with traffic, on a path that answers pings with up to so much padding; returns all
/// changes of MTU, and pings with padding.
fn run_on_path(paths: &mut Paths, until: Now, longest: u16) -> (Vec<u16>, Vec<u16>) {
    let (mut mtus, mut long) = (Vec::new(), Vec::new());
    while let Some(now) = paths.next_timeout().filter(|at| *at <= until) {
        paths.activity(now, peer(), now);
        paths.timeout(now);
        let mut left = commands(paths);
        while !left.is_empty() {
            for command in std::mem::take(&mut left) {
                match command {
                    Command::SetMtu { mtu, .. } => mtus.push(mtu),
                    Command::Send {
                        via: via @ Via::Udp(_),
                        message: Message::Ping { id, padding, .. },
                        ..
                    } => {
                        long.extend((padding > 0).then_some(padding));
                        if padding <= longest {
                            let source = address("198.51.100.1:1");
                            paths.message(now, via, disco(), Message::Pong { id, source });
                        }
                    }
                    _ => {}
                }
            }
            left = commands(paths);
        }
    }
    (mtus, long)
}

/// The peer pings us with so much padding.
fn long_ping(paths: &mut Paths, now: Now, padding: u16) {
    let ping = Message::Ping {
        id: TxId([now.0.as_millis() as u8; 12]),
        node: Some(peer()),
        padding,
    };
    paths.message(now, Via::Udp(address(A)), disco(), ping);
}

#[test]
fn packets_are_as_long_as_both_sides_have_shown_and_for_as_long_as_they_do() {
    let mut paths = direct();
    let (mtus, long) = run_on_path(&mut paths, at(10_000), FILLS_1500);
    // Ours arrive, but nobody knows whether the peer would take more than pings.
    assert_eq!((mtus, long.len()), (Vec::new(), 4));
    long_ping(&mut paths, at(10_001), FILLS_1400);
    let longer = Command::SetMtu {
        peer: peer(),
        mtu: 1328,
    };
    assert!(commands(&mut paths).contains(&longer));
    long_ping(&mut paths, at(10_002), FILLS_1500);
    let longer = Command::SetMtu {
        peer: peer(),
        mtu: 1440,
    };
    assert!(commands(&mut paths).contains(&longer));
    // Each minute it is tried again; the peer's word ends two and a half after its last.
    let (mtus, long) = run_on_path(&mut paths, at(200_000), FILLS_1500);
    assert_eq!((mtus, long.len()), (vec![DEFAULT_MTU], 12));
}

#[test]
fn a_long_ping_of_the_peer_is_followed_by_ours_once() {
    let mut paths = direct();
    long_ping(&mut paths, at(30), FILLS_1400);
    let sent = long_pings(&commands(&mut paths));
    assert_eq!(sent.len(), 1);
    let (id, padding) = sent[0];
    assert_eq!(padding, FILLS_1400);
    long_ping(&mut paths, at(40), FILLS_1400);
    assert_eq!(long_pings(&commands(&mut paths)), []);
    let source = address("198.51.100.1:1");
    let pong = Message::Pong { id, source };
    paths.message(at(50), Via::Udp(address(A)), disco(), pong);
    let longer = Command::SetMtu {
        peer: peer(),
        mtu: 1328,
    };
    assert_eq!(commands(&mut paths), [longer]);
    // Another length than those that are tried shows nothing, nor one that comes over a relay.
    long_ping(&mut paths, at(60), FILLS_1500 + 1);
    assert_eq!(long_pings(&commands(&mut paths)), []);
}

#[test]
fn a_path_that_loses_long_pings_is_trusted_as_before() {
    let mut paths = direct();
    let (mtus, long) = run_on_path(&mut paths, at(300_000), 0);
    assert_eq!((mtus, long.len()), (Vec::new(), 20));
    assert_eq!(paths.route(&peer()), Some(Route::Direct(address(A))));
}

#[test]
fn another_network_begins_with_short_packets() {
    let mut paths = direct();
    long_ping(&mut paths, at(30), FILLS_1400);
    run_on_path(&mut paths, at(10_000), FILLS_1400);
    commands(&mut paths);
    paths.underlay_changed(at(10_001));
    let shorter = Command::SetMtu {
        peer: peer(),
        mtu: DEFAULT_MTU,
    };
    assert!(commands(&mut paths).contains(&shorter));
}
