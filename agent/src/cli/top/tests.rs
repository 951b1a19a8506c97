//! The model in virtual time, what keys do to it, and what is drawn of it.

use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::action;
use super::draw::{Theme, draw};
use super::model::{Action, Column, Liveliness, Model, Pane};
use crate::localapi::{
    BackendState, DropSample, ForwardedSample, NodeSample, PeerSample, RouteSample, Sample,
};

const PLAIN: Theme = Theme { colour: false };

fn peer(name: &str, last: u8) -> PeerSample {
    PeerSample {
        id: format!("n{last}"),
        name: name.into(),
        address: format!("100.64.0.{last}"),
        online: true,
        relay: "fra".into(),
        ..PeerSample::default()
    }
}

/// What the daemon would tell at `seconds`, by when `busy` has sent us 2 MiB a second since zero.
fn sample(seconds: f64) -> Sample {
    let sent = |rate: f64| (seconds * rate) as u64;
    let busy = PeerSample {
        active: true,
        cur_addr: "203.0.113.7:41641".into(),
        latency_seconds: Some(0.0123),
        handshake_age_seconds: Some(65),
        rx_bytes: sent(2.0 * 1024.0 * 1024.0),
        tx_bytes: sent(10.0 * 1024.0),
        ..peer("busy", 2)
    };
    let exit = PeerSample {
        active: true,
        exit_node: true,
        cur_addr: "[2001:db8:1:2:3:4:5:6]:41641".into(),
        latency_seconds: Some(0.15),
        handshake_age_seconds: Some(3),
        rx_bytes: 700,
        tx_bytes: sent(300.0),
        ..peer("gate", 3)
    };
    let gone = PeerSample {
        online: false,
        rx_bytes: 5 << 30,
        handshake_age_seconds: Some(200_000),
        ..peer("attic", 5)
    };
    let expired = PeerSample {
        expired: true,
        ..peer("old-laptop", 6)
    };
    let through = |prefix: &str, via: &str, rx_bytes| RouteSample {
        prefix: prefix.into(),
        via: via.into(),
        via_id: via.into(),
        rx_bytes,
        tx_bytes: rx_bytes,
    };
    let drop = |place: &str, direction: &str, reason: &str, why: &str, packets| DropSample {
        place: place.into(),
        direction: direction.into(),
        reason: reason.into(),
        why: why.into(),
        packets,
    };
    Sample {
        node: NodeSample {
            time: "2026-11-30T00:00:00Z".into(),
            clock_seconds: seconds,
            backend_state: BackendState::Running,
            name: "alice".into(),
            addresses: vec!["100.64.0.1".into()],
            engine: "kernel".into(),
            device: "tailrace0".into(),
            filter: "ebpf".into(),
            home_relay: "fra".into(),
            health: Vec::new(),
        },
        peers: vec![
            expired,
            gone,
            peer("idle-but-with-a-long-name", 4),
            exit,
            busy,
        ],
        routes: vec![
            through("0.0.0.0/0", "gate", Some(sent(3_000.0))),
            through("10.77.1.0/24", "busy", Some(0)),
            through("192.168.0.0/16", "", None),
        ],
        forwarded: ForwardedSample {
            rx_bytes: sent(4096.0),
            tx_bytes: 0,
        },
        drops: vec![
            drop("port", "in", "stun", "STUN that nobody asked for", 3),
            drop("filter", "in", "no_rule", "no rule admits it", sent(4.0)),
        ],
    }
}

/// Two samples, two seconds apart.
fn model() -> Model {
    let mut model = Model::new(sample(10.0), Duration::from_secs(1));
    model.sampled(sample(12.0));
    model
}

fn names(model: &Model) -> Vec<&str> {
    let peers = model.peers().into_iter();
    peers.map(|(_, peer)| peer.of.name.as_str()).collect()
}

fn press(model: &mut Model, actions: &[Action]) {
    for action in actions {
        assert!(model.act(*action), "{action:?} ended it");
    }
}

fn drawn(model: &mut Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model, PLAIN)).unwrap();
    let cells = terminal.backend().buffer().content();
    let rows = cells.chunks(usize::from(width));
    let rows = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
    let rows: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
    rows.join("\n").trim_end().to_owned()
}

#[test]
fn peers_stand_by_rate_the_idle_below_and_the_offline_last() {
    let mut model = model();
    let idle = "idle-but-with-a-long-name";
    assert_eq!(names(&model), ["busy", "gate", idle, "attic", "old-laptop"]);
    let lively: Vec<Liveliness> = model.peers().iter().map(|(live, _)| *live).collect();
    use Liveliness::{Active, Idle, Offline};
    assert_eq!(lively, [Active, Active, Idle, Offline, Offline]);
    // The groups stay whatever the order.
    press(&mut model, &[Action::Reverse]);
    assert_eq!(names(&model), ["gate", "busy", idle, "attic", "old-laptop"]);
}

#[test]
fn every_column_can_be_sorted_by_and_comes_round_again() {
    let mut model = model();
    let first = model.view().column;
    let mut seen = Vec::new();
    for _ in Pane::Peers.columns() {
        seen.push(model.view().column);
        press(&mut model, &[Action::NextColumn]);
        assert_eq!(names(&model).len(), 5);
    }
    assert_eq!(model.view().column, first);
    assert!(
        Pane::Peers
            .columns()
            .iter()
            .all(|column| seen.contains(column))
    );
    press(&mut model, &[Action::PreviousColumn]);
    assert_eq!(model.view().column, Column::Latency);
    assert_eq!(names(&model)[..2], ["busy", "gate"]);
    for pane in [Pane::Routes, Pane::Drops] {
        press(&mut model, &[Action::Pane(pane)]);
        for _ in pane.columns() {
            press(&mut model, &[Action::NextColumn, Action::Reverse]);
            assert_eq!((model.routes().len(), model.drops().len()), (3, 2));
        }
    }
}

#[test]
fn a_filter_narrows_what_is_shown_and_esc_clears_it_before_it_ends() {
    let mut model = model();
    press(
        &mut model,
        &[Action::Filter, Action::Type('G'), Action::Type('a')],
    );
    assert_eq!(names(&model), ["gate"]);
    press(&mut model, &[Action::Erase, Action::Accept]);
    assert_eq!(names(&model), ["gate", "idle-but-with-a-long-name"]);
    press(&mut model, &[Action::Back]);
    assert_eq!(names(&model).len(), 5);
    assert!(!model.act(Action::Back));
    press(&mut model, &[Action::Help, Action::Back]);
    assert!(!model.help);
    press(&mut model, &[Action::Help]);
    assert!(!model.act(Action::Quit));
}

#[test]
fn scrolling_ends_with_the_last_row_at_the_lower_edge() {
    let mut model = model();
    model.set_page(2);
    press(&mut model, &[Action::Pages(1)]);
    assert_eq!(model.view().offset, 2);
    press(&mut model, &[Action::Bottom]);
    assert_eq!(model.view().offset, 3);
    press(&mut model, &[Action::Rows(1)]);
    assert_eq!(model.view().offset, 3);
    press(&mut model, &[Action::Rows(-1)]);
    assert_eq!(model.view().offset, 2);
    press(&mut model, &[Action::Top]);
    // Fewer peers than before.
    press(&mut model, &[Action::Bottom]);
    model.sampled(Sample {
        peers: vec![peer("one", 1)],
        ..sample(13.0)
    });
    model.set_page(2);
    assert_eq!(model.view().offset, 0);
}

#[test]
fn a_daemon_that_is_gone_leaves_what_was_known() {
    let mut model = model();
    model.failed("no daemon".to_owned());
    assert!(drawn(&mut model, 80, 24).contains("no daemon"));
    assert_eq!(names(&model).len(), 5);
    model.sampled(sample(20.0));
    assert_eq!(model.trouble, None);
    assert_eq!(model.history.len(), 2);
}

#[test]
fn the_peers_fit_into_80_columns() {
    let expected = "\
tailrace alice 100.64.0.1 │ kernel on tailrace0 │ filter ebpf │ home fra
rx  2.0M/s  tx   10K/s  drops  4.0/s  █
[Peers 5] Routes 3  Drops 2                                            every 1 s
name                path                      rtt  rx/s▼   tx/s    rx    tx   hs
busy                203.0.113.7:41641      12.3ms   2.0M    10K   24M  120K   1m
gate (exit)         [2001:db8:1:2:…]:41641  150ms      0    300   700  3.5K   3s
idle-but-with-a-lo… relay fra                   -      0      0     0     0    -
attic               offline                     -      0      0  5.0G     0   2d
old-laptop          key expired                 -      0      0     0     0    -

q quit  ↑↓ scroll  Tab pane  s < > sort  r reverse  / filter  h help";
    let drawn = drawn(&mut model(), 80, 11);
    assert_eq!(drawn, expected, "\n{drawn}");
}

#[test]
fn the_routes_tell_the_exit_node_and_what_is_served() {
    let mut model = model();
    press(&mut model, &[Action::NextPane]);
    let expected = "\
tailrace alice 100.64.0.1 │ kernel on tailrace0 │ filter ebpf │ home fra
rx  2.0M/s  tx   10K/s  drops  4.0/s  █
 Peers 5 [Routes 3] Drops 2                                            every 1 s
route                          via                      rx/s▼   tx/s    rx    tx
0.0.0.0/0                      gate (exit)               2.9K   2.9K   35K   35K
10.77.1.0/24                   busy                         0      0     0     0
192.168.0.0/16                 this node                    -      -     -     -
known flows                    forwarded here            4.0K      0   48K     0

q quit  ↑↓ scroll  Tab pane  s < > sort  r reverse  / filter  h help";
    let drawn = drawn(&mut model, 80, 10);
    assert_eq!(drawn, expected, "\n{drawn}");
}

#[test]
fn the_drops_tell_where_and_why() {
    let mut model = model();
    press(&mut model, &[Action::PreviousPane]);
    let expected = "\
tailrace alice 100.64.0.1 │ kernel on tailrace0 │ filter ebpf │ home fra
rx  2.0M/s  tx   10K/s  drops  4.0/s  █
 Peers 5  Routes 3 [Drops 2]                                           every 1 s
where      dir  reason           pkt/s▼  packets why
filter     in   no_rule             4.0       48 no rule admits it
port       in   stun                  0        3 STUN that nobody asked for



q quit  ↑↓ scroll  Tab pane  s < > sort  r reverse  / filter  h help";
    let drawn = drawn(&mut model, 80, 10);
    assert_eq!(drawn, expected, "\n{drawn}");
}

#[test]
fn the_help_covers_the_table() {
    let mut model = model();
    press(&mut model, &[Action::Help]);
    let text = drawn(&mut model, 80, 24);
    for part in ["Keys", "q Ctrl-C        quit", "tailrace alice"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn no_size_and_no_state_is_too_much() {
    let empty = || Model::new(Sample::default(), Duration::from_millis(200));
    let hostile = || {
        let mut first = sample(0.0);
        for peer in &mut first.peers {
            peer.name = "\u{1b}[31m漢字\u{200d}👨‍👩‍👧".repeat(9);
            peer.cur_addr = ":".repeat(99);
            peer.latency_seconds = Some(f64::MAX);
            peer.rx_bytes = u64::MAX;
            peer.handshake_age_seconds = Some(u64::MAX);
        }
        let mut model = Model::new(first, Duration::from_secs(60));
        model.sampled(sample(0.001));
        model
    };
    for make in [&empty as &dyn Fn() -> Model, &model, &hostile] {
        for (width, height) in [
            (1, 1),
            (2, 3),
            (5, 2),
            (17, 7),
            (40, 5),
            (80, 24),
            (300, 90),
        ] {
            let mut model = make();
            for action in [Action::NextPane, Action::Help, Action::Help, Action::Filter] {
                for _ in Pane::ALL {
                    press(&mut model, &[action, Action::Rows(7)]);
                    let text = drawn(&mut model, width, height);
                    assert!(!text.contains('\u{1b}'), "{text:?}");
                }
            }
        }
    }
}

#[test]
fn colours_are_used_only_where_they_may_be() {
    let colours = |colour| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let mut model = model();
        terminal
            .draw(|frame| draw(frame, &mut model, Theme { colour }))
            .unwrap();
        let cells = terminal.backend().buffer().content().iter();
        cells
            .filter(|cell| cell.fg != ratatui::style::Color::Reset)
            .count()
    };
    assert!(colours(true) > 0);
    assert_eq!(colours(false), 0);
}

#[test]
fn keys_are_letters_while_a_filter_is_typed_and_ctrl_c_always_ends() {
    let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
    let q = key(KeyCode::Char('q'), KeyModifiers::NONE);
    assert_eq!(action(&q, false), Some(Action::Quit));
    assert_eq!(action(&q, true), Some(Action::Type('q')));
    for typing in [false, true] {
        let interrupt = key(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(action(&interrupt, typing), Some(Action::Quit));
    }
    assert_eq!(action(&key(KeyCode::F(1), KeyModifiers::NONE), false), None);
    assert_eq!(action(&Event::FocusGained, false), None);
}
