//! Outbound packets: the receiver decides, but for a few.

use packet::build::SYN;

use super::*;

#[test]
fn no_rule_restricts_what_we_send() {
    for net in NETS {
        let mut filter = filter(&[]);
        filter.set_local(Local {
            shields_up: true,
            ..local()
        });
        for dst in [net.peer, net.foreign, net.us] {
            let ip = Ip::new(net.lan, dst);
            for packet in [
                ip.tcp(1, 2, SYN, b""),
                ip.udp(1, 2, b""),
                ip.echo_reply(1, 1, b""),
                ip.raw(47, b""),
            ] {
                assert_eq!(filter.outbound(&packet, NOW), OUTBOUND);
            }
        }
    }
}

#[test]
fn multicast_and_link_local_stay_here() {
    for (src, dst, verdict) in [
        ("100.64.0.1", "239.1.2.3", dropped(DropReason::Multicast)),
        ("100.64.0.1", "169.254.1.1", dropped(DropReason::LinkLocal)),
        ("100.64.0.1", "169.254.169.254", OUTBOUND),
        (
            "fd7a:115c:a1e0::1",
            "ff05::2",
            dropped(DropReason::Multicast),
        ),
        (
            "fd7a:115c:a1e0::1",
            "fe80::2",
            dropped(DropReason::LinkLocal),
        ),
        (
            "fd7a:115c:a1e0::1",
            "febf::2",
            dropped(DropReason::LinkLocal),
        ),
        ("fd7a:115c:a1e0::1", "fec0::2", OUTBOUND),
    ] {
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let packet = Ip::new(src, dst).udp(1, 2, b"");
        assert_eq!(filter(&[]).outbound(&packet, NOW), verdict, "{dst}");
    }
}

#[test]
fn tsmp_is_the_agents_alone() {
    for net in NETS {
        let packet = net.outbound().tsmp(&[0; 7]);
        assert_eq!(
            filter(&[]).outbound(&packet, NOW),
            dropped(DropReason::TsmpFromHost)
        );
    }
}

#[test]
fn what_cannot_be_judged_does_not_leave() {
    let mut filter = filter(&[]);
    assert_eq!(
        filter.outbound(&[0x45; 19], NOW),
        dropped(DropReason::Truncated)
    );
    assert_eq!(
        filter.outbound(&[0x15; 40], NOW),
        dropped(DropReason::NotIp)
    );
    let cut = Ip::new(NETS[0].us, NETS[0].peer).raw(17, &[0; 7]);
    assert_eq!(
        filter.outbound(&cut, NOW),
        dropped(DropReason::TransportCut)
    );
}
