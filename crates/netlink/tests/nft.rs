//! Tables and foreign chains in a namespace, with the `nft` tool as the judge.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use std::time::Duration;

use anyhow::{Result, ensure};
use netlink::nft::{
    Base, Chain, Expression as E, Hook, Kind, Layer, Nft, Port, Rule, Table, Touched, Watcher,
    state,
};
use netlink::{Error, Family};
use testnet::Namespace;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(10);
const MARK: u32 = 0x4_0000;
const MASK: u32 = 0xff_0000;

/// The same as [`table`], in the words of the tool.
const SAME: &str = "
table inet t {
    chain helper {
        iifname \"lo\" return
        ip saddr 100.115.92.0/23 return
        ip6 saddr fd7a:115c:a1e0::/48 counter drop
    }
    chain prerouting {
        type filter hook prerouting priority -150;
        ct mark & 0x00ff0000 == 0x00040000 meta mark set meta mark & 0xff00ffff | 0x00040000
        meta mark & 0x00ff0000 == 0x00040000 ct mark set ct mark & 0xff00ffff | 0x00040000
    }
    chain input {
        type filter hook input priority 300;
        meta l4proto udp udp dport 41700 counter drop
        meta l4proto udp udp dport 41641 @th,64,32 & 0xf8ffffff != 0 counter udp dport set 41700
    }
    chain forward {
        type filter hook forward priority 0;
        jump helper
        oifname \"wg0\" ct state established,related accept
        ct status dnat accept
        ip daddr 192.0.2.7 meta nfproto ipv4 accept
        meta nfproto ipv6 drop
    }
    chain output {
        type route hook output priority -300;
        meta l4proto udp udp sport 41700 counter udp sport set 41641
    }
    chain postrouting {
        type nat hook postrouting priority 100;
        meta mark & 0x00ff0000 == 0x00040000 masquerade
    }
}";

fn table() -> Table {
    let chain = |name: &str, base, rules: &[&[E]]| Chain {
        name: name.to_owned(),
        base,
        rules: rules.iter().map(|rule| Rule::new(*rule)).collect(),
    };
    let base = |kind, hook, priority| {
        Some(Base {
            kind,
            hook,
            priority,
        })
    };
    let marked = E::Mark {
        value: MARK,
        mask: MASK,
    };
    Table {
        name: "t".to_owned(),
        chains: vec![
            chain(
                "helper",
                None,
                &[
                    &[E::InputInterface("lo".to_owned()), E::Return],
                    &[E::Source("100.115.92.0/23".parse().unwrap()), E::Return],
                    &[
                        E::Source("fd7a:115c:a1e0::/48".parse().unwrap()),
                        E::Counter,
                        E::Drop,
                    ],
                ],
            ),
            chain(
                "prerouting",
                base(Kind::Filter, Hook::Prerouting, -150),
                &[
                    &[
                        E::ConnectionMark {
                            value: MARK,
                            mask: MASK,
                        },
                        E::SetMark {
                            value: MARK,
                            mask: MASK,
                        },
                    ],
                    &[
                        marked.clone(),
                        E::SetConnectionMark {
                            value: MARK,
                            mask: MASK,
                        },
                    ],
                ],
            ),
            chain(
                "input",
                base(Kind::Filter, Hook::Input, 300),
                &[
                    &[
                        E::TransportProtocol(17),
                        E::Port(Port::Destination, 41700),
                        E::Counter,
                        E::Drop,
                    ],
                    &[
                        E::TransportProtocol(17),
                        E::Port(Port::Destination, 41641),
                        E::TransportBits {
                            offset: 8,
                            mask: [0xf8, 0xff, 0xff, 0xff],
                        },
                        E::Counter,
                        E::SetUdpPort(Port::Destination, 41700),
                    ],
                ],
            ),
            chain(
                "forward",
                base(Kind::Filter, Hook::Forward, 0),
                &[
                    &[E::Jump("helper".to_owned())],
                    &[
                        E::OutputInterface("wg0".to_owned()),
                        E::ConnectionState(state::ESTABLISHED | state::RELATED),
                        E::Accept,
                    ],
                    &[E::DestinationTranslated, E::Accept],
                    &[
                        E::Destination("192.0.2.7/32".parse().unwrap()),
                        E::NetworkProtocol(Family::V4),
                        E::Accept,
                    ],
                    &[E::Source("::/0".parse().unwrap()), E::Drop],
                ],
            ),
            chain(
                "output",
                base(Kind::Route, Hook::Output, -300),
                &[&[
                    E::TransportProtocol(17),
                    E::Port(Port::Source, 41700),
                    E::Counter,
                    E::SetUdpPort(Port::Source, 41641),
                ]],
            ),
            chain(
                "postrouting",
                base(Kind::Nat, Hook::Postrouting, 100),
                &[&[marked, E::Masquerade]],
            ),
        ],
    }
}

fn inside<T: Send>(
    namespace: &Namespace,
    test: impl AsyncFnOnce() -> Result<T> + Send,
) -> Result<T> {
    namespace.enter(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test())
    })?
}

fn listing(namespace: &Namespace) -> Result<String> {
    namespace.exec(&["nft", "-s", "list", "ruleset"])
}

#[test]
fn the_tool_lists_a_table_as_its_own_of_the_same_words() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let (ours, theirs) = (Namespace::new("nfta")?, Namespace::new("nftb")?);
    theirs.nft(SAME)?;
    inside(&ours, async || {
        let mut nft = Nft::open()?;
        nft.replace(&table()).await?;
        nft.replace(&table()).await?;
        Ok(())
    })?;
    let (ours, theirs) = (listing(&ours)?, listing(&theirs)?);
    assert_eq!(ours, theirs, "\n{ours}\n{theirs}");
    Ok(())
}

#[test]
fn a_table_is_intact_until_somebody_touches_it() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let host = Namespace::new("nftc")?;
    host.nft("table inet other { chain c { }; }")?;
    inside(&host, async || {
        let mut nft = Nft::open()?;
        let mut watcher = Watcher::open(&nft)?;
        ensure!(nft.snapshot("t").await?.is_none());
        let touches = [
            "delete chain inet t output",
            "flush chain inet t input",
            "add rule inet t forward accept",
            "add table inet t { flags dormant; }",
            "chain inet t input { policy drop; }",
            "flush ruleset",
        ];
        for touch in touches {
            nft.replace(&table()).await?;
            let fresh = nft.snapshot("t").await?;
            ensure!(fresh.is_some() && nft.snapshot("t").await? == fresh);
            host.nft("add rule inet other c accept")?;
            ensure!(
                nft.snapshot("t").await? == fresh,
                "another table is not ours"
            );

            host.nft(touch)?;
            ensure!(nft.snapshot("t").await? != fresh, "{touch}");
            // Neither what we did, nor nothing: the other table first, then ours.
            let mut heard = Vec::new();
            while heard
                .last()
                .is_none_or(|touched: &Touched| touched.table != "t")
            {
                heard.push(timeout(LIMIT, watcher.next()).await??);
            }
            ensure!(heard[0].table == "other" && heard[0].layer == Layer::Inet);
            while let Ok(more) = timeout(Duration::from_millis(10), watcher.next()).await {
                more?; // the rest of a flush
            }
            host.nft("add table inet other; add chain inet other c")?;
            while timeout(LIMIT, watcher.next()).await??.table != "other" {}
        }
        nft.replace(&table()).await?;
        nft.delete("t").await?;
        nft.delete("t").await?;
        ensure!(nft.snapshot("t").await?.is_none());
        Ok(())
    })
}

#[test]
fn a_refused_table_leaves_the_old_one() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let host = Namespace::new("nftd")?;
    inside(&host, async || {
        let mut nft = Nft::open()?;
        nft.replace(&table()).await?;
        let before = nft.snapshot("t").await?;
        let mut broken = table();
        broken.chains[3].rules[0].expressions = vec![E::Jump("nowhere".to_owned())];
        let error = nft.replace(&broken).await.unwrap_err();
        ensure!(
            matches!(error, Error::Failed { .. }) && error.is_gone(),
            "{error:?}"
        );
        ensure!(nft.snapshot("t").await? == before);
        Ok(())
    })
}

#[test]
fn marked_rules_come_and_go_at_the_top_of_foreign_chains() -> Result<()> {
    testnet::skip_unless_available!("iptables-nft");
    let host = Namespace::new("nfte")?;
    host.exec(&["iptables-nft", "-P", "FORWARD", "DROP"])?;
    host.exec(&["iptables-nft", "-A", "FORWARD", "-i", "eth0", "-j", "DROP"])?;
    let save = || host.exec(&["iptables-nft", "-S", "FORWARD"]);
    let before = save()?;
    let layer = Layer::Ip(Family::V4);
    let rules = ["one", "two"].map(|name| {
        let rule = Rule {
            expressions: vec![E::InputInterface(name.to_owned()), E::Counter, E::Accept],
            comment: Some("ours".to_owned()),
        };
        ("FORWARD", rule)
    });
    inside(&host, async || {
        let mut nft = Nft::open()?;
        ensure!(nft.chains(layer, "filter").await? == ["FORWARD"]);
        nft.exchange(layer, "filter", &[], &rules).await?;
        let marked = nft.marked(layer, "filter", "ours").await?;
        ensure!(marked.len() == 2 && marked[0].chain == "FORWARD");
        ensure!(nft.marked(layer, "filter", "others").await?.is_empty());

        let during = save()?;
        let lines: Vec<_> = during.lines().collect();
        ensure!(lines[0] == "-P FORWARD DROP", "{during}");
        for (line, name) in lines[1..3].iter().zip(["one", "two"]) {
            ensure!(line.contains(&format!("-i {name} ")) && line.ends_with("-j ACCEPT"));
            ensure!(
                line.contains("--comment") && line.contains("ours"),
                "{during}"
            );
        }
        nft.exchange(layer, "filter", &marked, &[]).await?;
        Ok(())
    })?;
    assert_eq!(save()?, before);
    Ok(())
}

#[test]
fn five_thousand_rules_are_one_transaction() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let host = Namespace::new("nftf")?;
    inside(&host, async || {
        let mut large = table();
        large.chains[3].rules = (0..5000_u32)
            .map(|number| {
                let address = std::net::Ipv6Addr::from(u128::from(number) << 64);
                let net = ipnet::Ipv6Net::new_assert(address, 64).into();
                let to = E::OutputInterface("wg0".to_owned());
                Rule::new([to, E::Source(net), E::Accept])
            })
            .collect();
        let mut nft = Nft::open()?;
        nft.replace(&large).await?;
        let mut broken = large.clone();
        broken.chains[3].rules[7].expressions = vec![E::Jump("nowhere".to_owned())];
        ensure!(nft.replace(&broken).await.unwrap_err().is_gone());
        nft.replace(&large).await?;
        Ok(())
    })?;
    let listed = listing(&host)?;
    assert_eq!(listed.matches("oifname \"wg0\" ip6 saddr").count(), 5000);
    Ok(())
}
