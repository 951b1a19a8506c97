//! What went which way, look by look.

use super::*;
use crate::net::numbers::tests::desired;

const PEER: [u8; 32] = [7; 32];

fn counted(bytes: u64, relayed: u64, endpoint: Option<&str>) -> BTreeMap<NodePublic, Counted> {
    let rx = |bytes| Carried {
        rx: Count { packets: 0, bytes },
        tx: Count::default(),
    };
    let counted = Counted {
        wireguard: rx(bytes),
        relayed: rx(relayed),
        endpoint: endpoint.map(|endpoint| endpoint.parse().unwrap()),
    };
    BTreeMap::from([(NodePublic::from_bytes(PEER), counted)])
}

fn look(accounts: &mut Accounts, peers: &BTreeMap<NodePublic, Counted>) {
    accounts.look(peers, &BTreeMap::new(), &Numbers::default(), |_| None);
}

fn received(accounts: &Accounts, path: Path) -> u64 {
    accounts
        .direct()
        .get(&path)
        .map_or(0, |carried| carried.rx.bytes)
}

#[test]
fn what_relays_do_not_account_for_went_directly() {
    let mut accounts = Accounts::new(false);
    look(&mut accounts, &counted(1000, 1000, None));
    assert_eq!(accounts.direct().len(), 0);
    look(&mut accounts, &counted(5000, 1500, Some("192.0.2.1:1")));
    assert_eq!(received(&accounts, Path::DirectIpv4), 3500);
    look(&mut accounts, &counted(6000, 1500, Some("[2001:db8::1]:1")));
    assert_eq!(received(&accounts, Path::DirectIpv6), 1000);
    assert_eq!(received(&accounts, Path::DirectIpv4), 3500);
}

#[test]
fn a_path_that_came_and_went_between_two_looks_is_counted() {
    let mut accounts = Accounts::new(false);
    let peer = NodePublic::from_bytes(PEER);
    look(&mut accounts, &counted(0, 0, None));
    accounts.changed(peer, Route::Direct("192.0.2.1:1".parse().unwrap()));
    accounts.changed(peer, Route::Relayed);
    look(&mut accounts, &counted(900, 400, None));
    assert_eq!(received(&accounts, Path::DirectIpv4), 500);
    assert_eq!(accounts.changes().len(), 2);
}

#[test]
fn packets_under_way_make_no_direct_path() {
    let mut accounts = Accounts::new(false);
    // WireGuard had counted what the relay socket had not yet, and the other way round.
    look(&mut accounts, &counted(1000, 900, None));
    look(&mut accounts, &counted(2000, 2100, None));
    look(&mut accounts, &counted(3000, 3000, Some("192.0.2.1:1")));
    assert_eq!(received(&accounts, Path::DirectIpv4), 0);
}

#[test]
fn what_a_former_agent_counted_is_not_counted_again() {
    let mut accounts = Accounts::new(true);
    look(&mut accounts, &counted(1_000_000, 0, Some("192.0.2.1:1")));
    look(&mut accounts, &counted(1_000_500, 0, Some("192.0.2.1:1")));
    assert_eq!(received(&accounts, Path::DirectIpv4), 500);
}

#[test]
fn routes_are_counted_for_themselves_and_for_their_peer() {
    let peer = NodePublic::from_bytes(PEER);
    let net: IpNet = "10.2.0.0/16".parse().unwrap();
    let mut numbers = Numbers::default();
    numbers.assign(
        &desired(&[(PEER[0], &["10.1.0.0/16", "10.2.0.0/16"])]),
        |_| None,
    );
    let own = PeerIndex(3);
    let second = numbers.of(own, &peer, &net);
    let counters = |rx_bytes| PeerCounters {
        rx_bytes,
        ..PeerCounters::default()
    };
    let counts = BTreeMap::from([(own, counters(10)), (second, counters(500))]);
    let mut accounts = Accounts::new(false);
    accounts.look(&counted(0, 0, None), &counts, &numbers, |_| Some(own));
    assert_eq!(accounts.overlay(&peer).unwrap().rx.bytes, 510);
    assert_eq!(accounts.routes(&numbers)[&net].rx.bytes, 500);
    // The route goes away; the peer's counter does not fall.
    numbers.assign(&desired(&[(PEER[0], &[])]), |_| None);
    let counts = BTreeMap::from([(own, counters(20))]);
    accounts.look(&counted(0, 0, None), &counts, &numbers, |_| Some(own));
    assert_eq!(accounts.overlay(&peer).unwrap().rx.bytes, 520);
    assert!(accounts.routes(&numbers).is_empty());
}
