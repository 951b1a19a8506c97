//! Fragments: later ones follow an accepted first one, or nothing.

use packet::build::{ACK, SYN, fragments};

use super::*;

const FRAGMENT: Verdict = Verdict::Accept(AcceptReason::Fragment);
const AGE: u64 = 30 * SECOND;

fn orphan() -> Verdict {
    dropped(DropReason::Fragment)
}

#[test]
fn later_fragments_follow_an_accepted_first_one() {
    for net in NETS {
        let mut filter = filter(&[net.allow(53, 53, &[])]);
        let admitted = fragments(&net.inbound().udp(40_000, 53, &[0; 300]), 104, 7);
        let refused = fragments(&net.inbound().udp(40_000, 54, &[0; 300]), 104, 8);
        assert_eq!(filter.inbound(&admitted[0], NOW), ACL);
        assert_eq!(filter.inbound(&admitted[1], NOW), FRAGMENT);
        assert_eq!(filter.inbound(&admitted[2], NOW), FRAGMENT);
        assert_eq!(
            filter.inbound(&refused[0], NOW),
            dropped(DropReason::NoRule)
        );
        assert_eq!(filter.inbound(&refused[1], NOW), orphan());
    }
}

#[test]
fn fragments_of_anything_accepted_pass() {
    for net in NETS {
        let mut filter = filter(&[net.allow(22, 22, &[])]);
        let (ip, out) = (net.inbound(), net.outbound());
        let sent = out.udp(40_000, 53, &[0; 400]);
        filter.outbound(&sent, NOW);
        filter.outbound(&out.echo_request(9, 1, b""), NOW);
        for (id, packet) in (1..).zip([
            ip.udp(53, 40_000, &[0; 200]),
            ip.echo_reply(9, 1, &[0; 200]),
            ip.echo_request(9, 1, &[0; 200]),
            ip.tcp(40_000, 22, ACK, &[0; 200]),
            ip.unreachable(&sent, 200),
        ]) {
            let parts = fragments(&packet, 104, id);
            let first = filter.inbound(&parts[0], NOW);
            assert!(matches!(first, Verdict::Accept(_)), "{id}: {first:?}");
            assert_eq!(filter.inbound(&parts[1], NOW), FRAGMENT);
        }
    }
}

#[test]
fn a_first_fragment_vouches_for_its_own_packet_only() {
    for net in NETS {
        let mut filter = filter(&[rule(&["*"], &[("*", 53, 53)], &[])]);
        let parts = |ip: Ip, id| fragments(&ip.udp(40_000, 53, &[0; 200]), 104, id);
        filter.inbound(&parts(net.inbound(), 7)[0], NOW);
        for strange in [
            parts(net.inbound(), 8),
            parts(Ip::new(net.other, net.us), 7),
            parts(Ip::new(net.peer, net.lan), 7),
        ] {
            assert_eq!(filter.inbound(&strange[1], NOW), orphan());
        }
        assert_eq!(filter.inbound(&parts(net.inbound(), 7)[1], NOW), FRAGMENT);
    }
}

#[test]
fn ipv4_fragments_of_another_protocol_are_of_another_packet() {
    let net = NETS[0];
    let mut filter = filter(&[net.allow(0, 65535, &[])]);
    filter.inbound(
        &fragments(&net.inbound().udp(1, 2, &[0; 200]), 104, 7)[0],
        NOW,
    );
    let tcp = &fragments(&net.inbound().tcp(1, 2, ACK, &[0; 200]), 104, 7)[1];
    assert_eq!(filter.inbound(tcp, NOW), orphan());
}

#[test]
fn ipv6_fragments_are_one_packets_whatever_protocol_the_later_ones_claim() {
    let net = NETS[1];
    let mut filter = filter(&[net.allow(0, 65535, &[])]);
    let parts = fragments(&net.inbound().udp(1, 2, &[0; 200]), 104, 7);
    filter.inbound(&parts[0], NOW);
    let mut later = parts[1].clone();
    later[40] = 6;
    assert_eq!(filter.inbound(&later, NOW), FRAGMENT);
}

#[test]
fn later_fragments_have_thirty_seconds() {
    for net in NETS {
        let mut filter = filter(&[net.allow(53, 53, &[])]);
        let parts = fragments(&net.inbound().udp(40_000, 53, &[0; 300]), 104, 7);
        filter.inbound(&parts[0], NOW);
        assert_eq!(filter.inbound(&parts[1], NOW + AGE - 1), FRAGMENT);
        // They do not prolong their own time; the first one sent again does.
        assert_eq!(filter.inbound(&parts[2], NOW + AGE), orphan());
        filter.inbound(&parts[0], NOW + AGE);
        assert_eq!(filter.inbound(&parts[2], NOW + AGE + 1), FRAGMENT);
    }
}

#[test]
fn a_change_of_policy_holds_for_fragments_of_packets_under_way() {
    for net in NETS {
        let rules = [net.allow(53, 53, &[])];
        let mut filter = filter(&rules);
        let parts = fragments(&net.inbound().udp(40_000, 53, &[0; 300]), 104, 7);
        filter.inbound(&parts[0], NOW);
        filter.set_rules(parsed(&rules));
        assert_eq!(filter.inbound(&parts[1], NOW), orphan());
    }
}

#[test]
fn a_first_fragment_needs_its_whole_header() {
    for net in NETS {
        let mut filter = filter(&[net.allow(0, 65535, &[])]);
        // 16 of the 20 bytes of a TCP header, whose flags stand in the rest of them.
        let first = &fragments(&net.inbound().tcp(40_000, 22, SYN, &[0; 200]), 16, 7)[0];
        assert_eq!(
            filter.inbound(first, NOW),
            dropped(DropReason::TransportCut)
        );
    }
}

#[test]
fn tsmp_comes_in_one_piece() {
    for net in NETS {
        let parts = fragments(&net.inbound().tsmp(&[0; 200]), 104, 7);
        let mut filter = filter(&[]);
        assert_eq!(
            filter.inbound(&parts[0], NOW),
            dropped(DropReason::BadProtocol)
        );
        assert!(matches!(filter.inbound(&parts[1], NOW), Verdict::Drop(_)));
    }
}

#[test]
fn our_own_fragments_leave_and_the_first_opens() {
    for net in NETS {
        let mut filter = filter(&[]);
        let parts = fragments(&net.outbound().udp(40_000, 53, &[0; 300]), 104, 7);
        let reply = net.inbound().udp(53, 40_000, b"");
        assert_eq!(filter.outbound(&parts[1], NOW), OUTBOUND);
        assert_eq!(filter.inbound(&reply, NOW), dropped(DropReason::NoRule));
        assert_eq!(filter.outbound(&parts[0], NOW), OUTBOUND);
        assert_eq!(filter.inbound(&reply, NOW), OPENED);
        // What leaves vouches for nothing that comes.
        let back = fragments(&net.inbound().udp(53, 40_001, &[0; 300]), 104, 7);
        assert_eq!(filter.inbound(&back[1], NOW), orphan());
    }
}
