//! What of conntrack is offloaded, and what is not.

use std::net::SocketAddr;
use std::time::Duration;

use dataplane::{Offload, Origin};
use netlink::conntrack::{Event, Flow, Tuple};

use super::{Command, Core, Places};

const OVERLAY: u32 = 9;
const LAN: u32 = 3;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const ESTABLISHED: u8 = 3;

const PEER: &str = "100.64.0.2:40001";
const ALIAS: &str = "10.77.0.1:61234";
const HOST: &str = "10.77.0.2:443";

fn places() -> Places {
    Places {
        overlay: OVERLAY,
        mtu: 1280,
        routes: vec![
            net("100.64.0.0/10"),
            net("10.88.0.0/24"),
            net("10.77.9.0/24"),
        ],
        served: vec![net("10.77.0.0/16")],
        addresses: [
            ("100.64.0.1".parse().unwrap(), OVERLAY),
            ("10.77.0.1".parse().unwrap(), LAN),
        ]
        .into(),
        ..Places::default()
    }
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A flow in full swing, from `from` to `to`, to whom it comes from `alias`.
fn flow(protocol: u8, from: &str, alias: &str, to: &str) -> Flow {
    Flow {
        id: 1,
        zone: 0,
        mark: 0,
        status: SEEN_REPLY | ASSURED,
        original: Tuple {
            protocol,
            src: at(from),
            dst: at(to),
        },
        reply: Tuple {
            protocol,
            src: at(to),
            dst: at(alias),
        },
        tcp_state: (protocol == TCP).then_some(ESTABLISHED),
        timeout: None,
    }
}

/// The entries that the flow gets, with a core of its own.
fn entries(places: Places, flow: &Flow) -> Option<[Offload; 2]> {
    match Core::new(places).handle(&Event::Updated(*flow)).as_slice() {
        [] => None,
        [Command::Offload(_, entries)] => Some(**entries),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_masqueraded_flow_leaves_by_the_device_that_has_its_new_address() {
    let [out, back] = entries(places(), &flow(TCP, PEER, ALIAS, HOST)).unwrap();

    assert_eq!(out.key.origin, Origin::Overlay);
    assert_eq!((out.key.src, out.key.dst), (at(PEER), at(HOST)));
    assert_eq!((out.src, out.dst, out.out), (at(ALIAS), at(HOST), LAN));
    assert_eq!(back.key.origin, Origin::Lan);
    assert_eq!((back.key.src, back.key.dst), (at(HOST), at(ALIAS)));
    assert_eq!((back.src, back.dst), (at(HOST), at(PEER)));
    assert_eq!((back.out, back.mtu), (OVERLAY, 1280));
}

#[test]
fn without_translation_the_routes_say_the_device() {
    let [out, back] = entries(places(), &flow(UDP, PEER, PEER, HOST)).unwrap();
    assert_eq!((out.src, out.dst, out.out), (at(PEER), at(HOST), 0));
    assert_eq!((back.key.dst, back.dst), (at(PEER), at(PEER)));
}

#[test]
fn networks_at_both_ends_may_begin_flows() {
    let [out, back] = entries(places(), &flow(TCP, HOST, HOST, "10.88.0.5:80")).unwrap();
    assert_eq!((out.key.origin, out.out), (Origin::Lan, OVERLAY));
    assert_eq!((back.key.origin, back.out), (Origin::Overlay, 0));
    assert_eq!((back.src, back.dst), (at("10.88.0.5:80"), at(HOST)));
}

#[test]
fn a_translated_destination_is_where_the_flow_goes() {
    let mut flow = flow(TCP, PEER, PEER, "10.77.0.1:8080");
    flow.reply.src = at(HOST);
    let [out, back] = entries(places(), &flow).unwrap();
    assert_eq!((out.key.dst, out.dst), (at("10.77.0.1:8080"), at(HOST)));
    assert_eq!((back.key.src, back.src), (at(HOST), at("10.77.0.1:8080")));
}

#[test]
fn an_echo_has_its_identifier_on_the_side_that_asks() {
    let mut flow = flow(ICMP, "100.64.0.2:77", "10.77.0.1:99", "10.77.0.2:0");
    // As conntrack tells it: the identifier is in the source of both.
    flow.reply.src = at("10.77.0.2:99");
    flow.reply.dst = at("10.77.0.1:0");
    let [out, back] = entries(places(), &flow).unwrap();
    assert_eq!((out.key.src.port(), out.key.dst.port()), (77, 0));
    assert_eq!((out.src.port(), out.dst.port()), (99, 0));
    assert_eq!((back.key.src.port(), back.key.dst.port()), (0, 99));
    assert_eq!((back.src.port(), back.dst.port()), (0, 77));
}

#[test]
fn an_exit_node_forwards_to_everywhere_but_the_overlay_and_itself() {
    let exit = || Places {
        served: vec![net("0.0.0.0/0")],
        ..places()
    };
    let to = |destination| entries(exit(), &flow(TCP, PEER, ALIAS, destination));
    assert!(to("198.51.100.1:443").is_some());
    assert!(to("100.64.0.3:443").is_none(), "to another peer");
    assert!(to("100.64.0.1:22").is_none(), "to this host");
    assert!(to("10.77.0.1:22").is_none(), "to this host on the LAN");
}

#[test]
fn who_uses_an_exit_node_itself_still_forwards_to_its_networks() {
    let mut places = places();
    places.routes.push(net("0.0.0.0/0"));
    assert!(entries(places.clone(), &flow(TCP, PEER, ALIAS, HOST)).is_some());
    let elsewhere = flow(TCP, PEER, ALIAS, "198.51.100.1:443");
    assert!(entries(places.clone(), &elsewhere).is_none());

    // A network of this host that is not approved: kept out of the overlay, and not forwarded.
    let outward = flow(TCP, HOST, HOST, "192.168.1.9:80");
    assert!(entries(places.clone(), &outward).is_some());
    places.kept_out.push(net("192.168.1.0/24"));
    assert!(entries(places, &outward).is_none());
}

#[test]
fn what_is_not_served_or_not_ours_to_judge_takes_the_stack() {
    let no = |flow: Flow| assert_eq!(entries(places(), &flow), None, "{flow:?}");
    no(flow(TCP, "192.0.2.1:1000", "192.0.2.1:1000", HOST));
    no(flow(TCP, PEER, PEER, "192.0.2.1:443"));
    no(flow(TCP, PEER, PEER, "10.77.9.1:443")); // another peer serves this part
    no(flow(TCP, PEER, "203.0.113.9:5000", HOST)); // no device has the address
    no(flow(132, PEER, PEER, HOST));
    no(Flow {
        zone: 5,
        ..flow(TCP, PEER, ALIAS, HOST)
    });
}

#[test]
fn flows_go_past_the_stack_only_while_they_are_established() {
    let tcp = flow(TCP, PEER, ALIAS, HOST);
    let udp = flow(UDP, PEER, ALIAS, HOST);
    let idle = |flow: &Flow| entries(places(), flow).map(|[out, _]| out.idle.as_secs());
    assert_eq!(idle(&tcp), Some(432_000 - 6));
    for state in [None, Some(0), Some(1), Some(2), Some(4), Some(7), Some(8)] {
        let flow = Flow {
            tcp_state: state,
            ..tcp
        };
        assert_eq!(idle(&flow), None, "{state:?}");
    }
    let with_status = |flow: Flow, status| Flow { status, ..flow };
    assert_eq!(idle(&with_status(tcp, SEEN_REPLY)), None);
    assert_eq!(idle(&udp), Some(120 - 6));
    assert_eq!(idle(&with_status(udp, SEEN_REPLY)), Some(30 - 6));
    assert_eq!(idle(&with_status(udp, 0)), None);
    assert_eq!(idle(&with_status(udp, SEEN_REPLY | ASSURED | 1 << 9)), None);

    let mut hasty = places();
    hasty.timeouts.udp_stream = Duration::from_secs(10);
    assert_eq!(entries(hasty, &udp), None, "too short to be kept alive");
}

#[test]
fn a_flow_is_written_once_and_removed_when_it_ends() {
    let tcp = flow(TCP, PEER, ALIAS, HOST);
    let mut core = Core::new(places());
    assert_eq!(core.handle(&Event::New(tcp)).len(), 1);
    assert!(core.handle(&Event::Updated(tcp)).is_empty());
    assert_eq!(core.len(), 1);

    let closing = Flow {
        tcp_state: Some(4),
        ..tcp
    };
    let removed = core.handle(&Event::Updated(closing));
    assert!(matches!(removed.as_slice(), [Command::Remove(a), Command::Remove(b)] if a != b));
    assert!(core.is_empty());
    assert!(core.handle(&Event::Destroyed(closing)).is_empty());
}

#[test]
fn the_late_end_of_an_earlier_flow_does_not_end_the_present_one() {
    let earlier = flow(UDP, PEER, ALIAS, HOST);
    let present = Flow { id: 2, ..earlier };
    let mut core = Core::new(places());
    core.handle(&Event::Updated(earlier));
    assert_eq!(core.handle(&Event::Updated(present)).len(), 1);
    assert!(core.handle(&Event::Destroyed(earlier)).is_empty());
    assert_eq!(core.handle(&Event::Destroyed(present)).len(), 2);
}

#[test]
fn a_flow_that_is_translated_otherwise_leaves_no_entry_behind() {
    let before = flow(UDP, PEER, ALIAS, HOST);
    let after = Flow {
        id: 2,
        ..flow(UDP, PEER, "10.77.0.1:61235", HOST)
    };
    let mut core = Core::new(places());
    core.handle(&Event::Updated(before));
    let commands = core.handle(&Event::Updated(after));
    let [Command::Remove(gone), Command::Offload(..)] = commands.as_slice() else {
        panic!("{commands:?}");
    };
    assert_eq!((gone.origin, gone.dst), (Origin::Lan, at(ALIAS)));
}

#[test]
fn a_look_at_everything_asks_for_what_lacks_and_removes_what_is_over() {
    let kept = flow(TCP, PEER, ALIAS, HOST);
    let lacking = flow(UDP, PEER, ALIAS, HOST);
    let over = flow(TCP, "100.64.0.7:1", "100.64.0.7:1", HOST);
    let table: Vec<Offload> = [&kept, &over]
        .into_iter()
        .flat_map(|flow| entries(places(), flow).unwrap())
        .collect();
    let mut core = Core::new(places());

    let commands = core.resync(&[kept, lacking], &table);

    let removed = |command: &&Command| matches!(command, Command::Remove(key) if key.src == at("100.64.0.7:1") || key.dst == at("100.64.0.7:1"));
    assert_eq!(commands.iter().filter(removed).count(), 2, "{commands:?}");
    let asked =
        |command: &&Command| matches!(command, Command::Announce(flow) if **flow == lacking);
    assert_eq!(commands.iter().filter(asked).count(), 1, "{commands:?}");
    assert_eq!(commands.len(), 3, "{commands:?}");
    assert_eq!(core.len(), 1);

    // It makes events, so that its end will be told too.
    assert_eq!(core.handle(&Event::Updated(lacking)).len(), 1);
    assert_eq!(core.len(), 2);
}

#[test]
fn beyond_the_bound_flows_take_the_stack() {
    let mut core = Core::new(places());
    for number in 0..40_000_u32 {
        let peer = format!("100.64.{}.{}:1", 1 + number / 250, 1 + number % 250);
        core.handle(&Event::Updated(flow(UDP, &peer, &peer, HOST)));
    }
    assert_eq!(core.len(), 30_000);
}
