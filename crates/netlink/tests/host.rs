//! Addresses, routes, rules and links against a real kernel, in a network namespace of their own.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod namespace;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use namespace::in_namespace;
use netlink::routes::{Routes, Target};
use netlink::{Error, Family, Netlink, addresses, links, routes, rules};
use tokio::time::timeout;

/// Interface number of `lo` in every fresh namespace.
const LO: u32 = 1;

#[test]
fn applying_addresses_twice_changes_nothing() {
    in_namespace("applying_addresses_twice_changes_nothing", async || {
        let netlink = Netlink::open().unwrap();
        up(&netlink).await;
        let desired = nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
        let before = addresses::dump(&netlink, LO).await.unwrap();
        let desired: BTreeSet<IpNet> = desired.union(&before).copied().collect();

        for change in addresses::plan(&desired, &before) {
            addresses::apply(&netlink, LO, change).await.unwrap();
            addresses::apply(&netlink, LO, change).await.unwrap();
        }

        let after = addresses::dump(&netlink, LO).await.unwrap();
        assert_eq!(after, desired);
        assert_eq!(addresses::plan(&desired, &after), []);
        for change in addresses::plan(&before, &after) {
            addresses::apply(&netlink, LO, change).await.unwrap();
            addresses::apply(&netlink, LO, change).await.unwrap();
        }
        assert_eq!(addresses::dump(&netlink, LO).await.unwrap(), before);
    });
}

#[test]
fn applying_routes_twice_changes_nothing() {
    in_namespace("applying_routes_twice_changes_nothing", async || {
        let netlink = Netlink::open().unwrap();
        up(&netlink).await;
        let desired: Routes = ["100.64.0.2/32", "10.1.0.0/16", "fd7a:115c:a1e0::2/128"]
            .map(|text| (text.parse().unwrap(), Target::Interface(None)))
            .into_iter()
            .chain([
                ("192.168.0.0/24".parse().unwrap(), Target::Throw),
                ("fd01::/64".parse().unwrap(), Target::Throw),
                ("::/0".parse().unwrap(), Target::Unreachable),
            ])
            .collect();
        let before = routes::dump(&netlink, routes::TABLE, LO).await.unwrap();
        assert!(before.is_empty());
        assert!(routes::is_empty(&netlink, routes::TABLE).await.unwrap());

        for change in routes::plan(&desired, &before) {
            routes::apply(&netlink, routes::TABLE, LO, change)
                .await
                .unwrap();
            routes::apply(&netlink, routes::TABLE, LO, change)
                .await
                .unwrap();
        }

        let after = routes::dump(&netlink, routes::TABLE, LO).await.unwrap();
        assert_eq!(after, desired);
        assert!(!routes::is_empty(&netlink, routes::TABLE).await.unwrap());
        for change in routes::plan(&before, &after) {
            routes::apply(&netlink, routes::TABLE, LO, change)
                .await
                .unwrap();
            routes::apply(&netlink, routes::TABLE, LO, change)
                .await
                .unwrap();
        }
        assert!(routes::is_empty(&netlink, routes::TABLE).await.unwrap());
    });
}

#[test]
fn routes_to_nowhere_go_when_their_interface_is_gone_and_foreign_ones_stay() {
    in_namespace("orphaned_routes", async || {
        let netlink = Netlink::open().unwrap();
        up(&netlink).await;
        let gone = 4711;
        for (index, text) in [
            (gone, "10.1.0.0/16"),
            (gone, "fd01::/64"),
            (LO, "10.2.0.0/16"),
        ] {
            let change = routes::Change::Add(text.parse().unwrap(), Target::Throw);
            routes::apply(&netlink, routes::TABLE, index, change)
                .await
                .unwrap();
        }

        routes::remove_orphans(&netlink, routes::TABLE)
            .await
            .unwrap();

        let left = routes::dump(&netlink, routes::TABLE, gone).await.unwrap();
        assert_eq!(left, Routes::new());
        let left = routes::dump(&netlink, routes::TABLE, LO).await.unwrap();
        assert_eq!(left.len(), 1);
    });
}

#[test]
fn applying_rules_twice_changes_nothing() {
    in_namespace("applying_rules_twice_changes_nothing", async || {
        let netlink = Netlink::open().unwrap();
        let desired = rules::standard(&Family::BOTH);
        let before = rules::dump(&netlink, &desired).await.unwrap();
        assert!(before.is_empty());

        for change in rules::plan(&desired, &before) {
            rules::apply(&netlink, change).await.unwrap();
            rules::apply(&netlink, change).await.unwrap();
        }

        let after = rules::dump(&netlink, &desired).await.unwrap();
        assert_eq!(after, desired);
        for change in rules::plan(&BTreeSet::new(), &after) {
            rules::apply(&netlink, change).await.unwrap();
            rules::apply(&netlink, change).await.unwrap();
        }
        assert!(rules::dump(&netlink, &desired).await.unwrap().is_empty());
    });
}

#[test]
fn an_absent_interface_is_none_and_deleting_it_is_fine() {
    in_namespace(
        "an_absent_interface_is_none_and_deleting_it_is_fine",
        async || {
            let netlink = Netlink::open().unwrap();
            assert_eq!(links::get(&netlink, "absent0").await.unwrap(), None);
            links::delete(&netlink, "absent0").await.unwrap();
        },
    );
}

#[test]
fn a_kernel_without_wireguard_says_so() {
    in_namespace("a_kernel_without_wireguard_says_so", async || {
        let netlink = Netlink::open().unwrap();
        match links::create_wireguard(&netlink, "wg0").await {
            Ok(()) => {
                let link = links::get(&netlink, "wg0").await.unwrap().unwrap();
                assert_eq!(link.kind, links::Kind::WireGuard);
            }
            Err(error) => {
                assert!(matches!(error, Error::NoWireGuard { .. }), "{error:?}");
                assert!(error.errno().is_some());
            }
        }
    });
}

#[test]
fn another_default_route_is_told_and_is_the_way_out() {
    in_namespace(
        "another_default_route_is_told_and_is_the_way_out",
        async || {
            let netlink = Netlink::open().unwrap();
            up(&netlink).await;
            let outside = "192.0.2.1".parse().unwrap();
            assert_eq!(routes::way_to(&netlink, outside).await.unwrap(), None);
            for words in [
                "link add near type veth peer name far",
                "link set near up",
                "link set far up",
                "addr add 10.9.0.2/24 dev near",
                "route add default via 10.9.0.1",
            ] {
                ip(words);
            }
            let way = routes::way_to(&netlink, outside).await.unwrap().unwrap();
            assert_eq!(way.gateway, Some("10.9.0.1".parse().unwrap()));
            assert_eq!(way.source, Some("10.9.0.2".parse().unwrap()));
            let link = links::get(&netlink, "near").await.unwrap().unwrap();
            assert_eq!(way.interface, link.index);

            // A route that swallows what nobody should send is no way, and no failure.
            ip("route add blackhole 192.0.2.0/24");
            assert_eq!(routes::way_to(&netlink, outside).await.unwrap(), None);
            ip("route del blackhole 192.0.2.0/24");

            let mut watcher = links::Watcher::open().unwrap();
            ip("route replace default via 10.9.0.7");
            let heard = timeout(Duration::from_secs(10), watcher.changed());
            assert!(heard.await.expect("told in time"));
            let way = routes::way_to(&netlink, outside).await.unwrap().unwrap();
            assert_eq!(way.gateway, Some("10.9.0.7".parse().unwrap()));
        },
    );
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

async fn up(netlink: &Netlink) {
    let lo = links::get(netlink, "lo").await.unwrap().unwrap();
    assert_eq!(lo.index, LO);
    links::ensure_up(netlink, &lo, lo.mtu).await.unwrap();
    let lo = links::get(netlink, "lo").await.unwrap().unwrap();
    assert!(lo.up);
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
