//! Flows through a masquerading router of namespaces, as we read them and as `conntrack` prints them.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod segment;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netlink::conntrack::{Conntrack, Event, Flow, Watcher};
use netlink::{Error, Family};
use testnet::{Namespace, veth, wait_until};
use tokio::time::timeout;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ESTABLISHED: u8 = 3;
const PORT: u16 = 7000;
const SERVERS: [&str; 2] = ["10.2.0.2", "fd00:2::2"];
const LIMIT: Duration = Duration::from_secs(10);

/// client ── router, masquerading ── server
struct Network {
    client: Namespace,
    router: Namespace,
    server: Namespace,
}

impl Network {
    fn new() -> Result<Self> {
        let client = Namespace::new("ctc")?;
        let router = Namespace::new("ctr")?;
        let server = Namespace::new("cts")?;
        veth((&client, "eth0"), (&router, "in"))?;
        veth((&router, "out"), (&server, "eth0"))?;
        for (host, device, net) in [
            (&client, "eth0", "10.1.0.2/24"),
            (&client, "eth0", "fd00:1::2/64"),
            (&router, "in", "10.1.0.1/24"),
            (&router, "in", "fd00:1::1/64"),
            (&router, "out", "10.2.0.1/24"),
            (&router, "out", "fd00:2::1/64"),
            (&server, "eth0", "10.2.0.2/24"),
            (&server, "eth0", "fd00:2::2/64"),
        ] {
            host.ip(&format!("address add {net} dev {device}"))?;
        }
        client.ip("route add default via 10.1.0.1")?;
        client.ip("route add default via fd00:1::1")?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        router.nft(
            "table inet t {
                counter invalid { }
                counter established { }
                chain forward {
                    type filter hook forward priority 0;
                    tcp dport 7000 ct state invalid counter name invalid
                    tcp dport 7000 ct state established counter name established
                }
                chain postrouting {
                    type nat hook postrouting priority srcnat;
                    oifname out masquerade
                }
            }",
        )?;
        Ok(Self {
            client,
            router,
            server,
        })
    }

    /// Runs a future inside the router.
    fn route<T: Send>(&self, test: impl AsyncFnOnce() -> T + Send) -> Result<T> {
        self.router.enter(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(test())
        })
    }

    /// Opens a TCP connection and sends a byte each way.
    fn connect(&self, server: &str) -> Result<(TcpStream, TcpStream)> {
        let address: SocketAddr = (server.parse::<std::net::IpAddr>()?, PORT).into();
        let listener = self.server.enter(|| TcpListener::bind(address))??;
        let mut client = self
            .client
            .enter(|| TcpStream::connect_timeout(&address, LIMIT))??;
        let (mut accepted, _) = listener.accept()?;
        let mut byte = [0];
        client.write_all(b"a")?;
        accepted.read_exact(&mut byte)?;
        accepted.write_all(b"b")?;
        client.read_exact(&mut byte)?;
        Ok((client, accepted))
    }

    /// Sends a datagram each way.
    fn exchange(&self, server: &str) -> Result<UdpSocket> {
        let address: SocketAddr = (server.parse::<std::net::IpAddr>()?, PORT).into();
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let echo = self.server.enter(|| UdpSocket::bind(address))??;
        let socket = self.client.enter(|| UdpSocket::bind(any))??;
        echo.set_read_timeout(Some(LIMIT))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send_to(b"a", address)?;
        let mut buffer = [0; 8];
        let (_, from) = echo.recv_from(&mut buffer)?;
        echo.send_to(b"b", from)?;
        socket.recv_from(&mut buffer)?;
        Ok(socket)
    }

    fn counter(&self, name: &str) -> Result<u64> {
        let text = self
            .router
            .exec(&["nft", "list", "counter", "inet", "t", name])?;
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        Ok(words.nth(1).unwrap_or_default().parse()?)
    }

    /// The flows of the router in our words, as `conntrack` prints them.
    fn oracle(&self, family: Family) -> Result<BTreeSet<String>> {
        let family = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let text = self
            .router
            .exec(&["conntrack", "-L", "-f", family, "-o", "id"])?;
        Ok(text.lines().map(normal).collect())
    }
}

/// Keeps what both sides know of a line of `conntrack -L`.
fn normal(line: &str) -> String {
    let number = line.split_whitespace().nth(1).unwrap_or_default();
    let words = line.split_whitespace().filter(|word| {
        ["src=", "dst=", "sport=", "dport=", "id=", "mark="]
            .iter()
            .any(|key| word.starts_with(key))
            || ["[ASSURED]", "ESTABLISHED"].contains(word)
    });
    let mut words: Vec<_> = words.collect();
    words.sort_unstable();
    // An ICMP line has its own `id=` in each direction beside that of the flow.
    words.dedup();
    format!("{number} {}", words.join(" "))
}

/// The line that `conntrack -L -o id` should print for `flow`, of which [`normal`] keeps a part.
fn line(flow: &Flow) -> String {
    let tuples = [flow.original, flow.reply].map(|tuple| {
        let (src, dst) = (tuple.src, tuple.dst);
        let ports = match tuple.protocol {
            TCP | UDP => format!("sport={} dport={}", src.port(), dst.port()),
            _ => format!("id={}", src.port()),
        };
        format!("src={} dst={} {ports}", src.ip(), dst.ip())
    });
    let established = (flow.tcp_state == Some(ESTABLISHED)).then_some("ESTABLISHED");
    let assured = flow.is_assured().then_some("[ASSURED]");
    format!(
        "x {} {} {} mark={} id={} {} {}",
        flow.original.protocol,
        tuples[0],
        tuples[1],
        flow.mark,
        flow.id,
        established.unwrap_or_default(),
        assured.unwrap_or_default(),
    )
}

#[test]
fn flows_of_every_kind_are_dumped_as_the_tool_shows_them() -> Result<()> {
    testnet::skip_unless_available!("nft");
    testnet::skip_unless_available!("conntrack");
    testnet::skip_unless_available!("ping");
    let network = Network::new()?;
    let mut held = Vec::new();
    for server in SERVERS {
        held.push((network.connect(server)?, network.exchange(server)?));
        network.client.exec(&["ping", "-c1", "-W5", server])?;
    }

    for family in Family::BOTH {
        // A line may lose its flow, or ICMP's timeout may pass, between the two looks.
        wait_until(LIMIT, "both see the same", || {
            let ours = network.route(async || Conntrack::open()?.dump(family).await)??;
            let theirs = network.oracle(family)?;
            let lines: BTreeSet<_> = ours.iter().map(|flow| normal(&line(flow))).collect();
            ensure!(lines == theirs, "{lines:#?}\n{theirs:#?}");
            for protocol in [TCP, UDP, if family == Family::V4 { 1 } else { 58 }] {
                let flow = ours.iter().find(|flow| flow.original.protocol == protocol);
                let Some(flow) = flow else {
                    anyhow::bail!("no flow of protocol {protocol} in {ours:#?}");
                };
                ensure!(flow.has_seen_reply() && !flow.is_dying());
                ensure!(flow.timeout.is_some_and(|left| !left.is_zero()));
                // Masqueraded: answers go to the router, not to the client.
                ensure!(flow.reply.dst.ip() != flow.original.src.ip(), "{flow:?}");
                ensure!(flow.reply.src.ip() == flow.original.dst.ip(), "{flow:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_watcher_hears_of_beginning_change_and_end() -> Result<()> {
    testnet::skip_unless_available!("nft");
    testnet::skip_unless_available!("conntrack");
    let network = Network::new()?;
    network.route(async || -> Result<()> {
        for server in SERVERS {
            let mut watcher = Watcher::open()?;
            let held = network.connect(server)?;
            let mut begun = None;
            loop {
                let event = timeout(LIMIT, watcher.next()).await??;
                match event {
                    Event::New(flow) if flow.original.dst.port() == PORT => begun = Some(flow),
                    Event::Updated(flow) if flow.tcp_state == Some(ESTABLISHED) => {
                        ensure!(begun.is_some_and(|begun| begun.id == flow.id));
                        ensure!(flow.original.dst.port() == PORT);
                        break;
                    }
                    _ => {}
                }
            }
            let begun = begun.unwrap();
            ensure!(!begun.has_seen_reply() && begun.tcp_state != Some(ESTABLISHED));
            network
                .router
                .exec(&["conntrack", "-D", "-p", "tcp", "-d", server])?;
            loop {
                if let Event::Destroyed(flow) = timeout(LIMIT, watcher.next()).await?? {
                    ensure!(flow.id == begun.id && flow.original == begun.original);
                    break;
                }
            }
            drop(held);
        }
        Ok(())
    })?
}

#[test]
fn a_liberal_flow_takes_segments_that_are_invalid_otherwise() -> Result<()> {
    testnet::skip_unless_available!("nft");
    testnet::skip_unless_available!("conntrack");
    let network = Network::new()?;
    let tap = network.client.enter(segment::Tap::open)??;
    let (client, _accepted) = network.connect(SERVERS[0])?;
    let place = tap.place_after(PORT, b"b")?;
    let (SocketAddr::V4(src), SocketAddr::V4(dst)) = (client.local_addr()?, client.peer_addr()?)
    else {
        anyhow::bail!("not IPv4");
    };
    let stray = || {
        network
            .client
            .enter(|| segment::send_stray(src, dst, place))
    };

    stray()??;
    wait_until(LIMIT, "the stray segment is invalid", || {
        ensure!(network.counter("invalid")? == 1);
        Ok(())
    })?;
    let before = network.counter("established")?;

    let flow = network.route(async || -> Result<Flow> {
        let mut conntrack = Conntrack::open()?;
        let flows = conntrack.dump(Family::V4).await?;
        let flow = flows.into_iter().find(|flow| flow.original.protocol == TCP);
        let flow = flow.unwrap();
        conntrack.make_liberal(&flow).await?;
        conntrack.make_liberal(&flow).await?;
        Ok(flow)
    })??;
    stray()??;
    wait_until(LIMIT, "the stray segment passes", || {
        ensure!(network.counter("established")? > before);
        Ok(())
    })?;
    assert_eq!(network.counter("invalid")?, 1);

    network.router.exec(&["conntrack", "-D", "-p", "tcp"])?;
    let gone = network
        .route(async || Conntrack::open()?.make_liberal(&flow).await)?
        .unwrap_err();
    assert!(
        gone.is_gone() && matches!(gone, Error::Failed { .. }),
        "{gone:?}"
    );
    Ok(())
}

#[test]
fn a_flow_that_began_unheard_makes_no_events() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let network = Network::new()?;
    let _unheard = network.exchange(SERVERS[0])?;
    network.route(async || -> Result<()> {
        let mut conntrack = Conntrack::open()?;
        let unheard = conntrack.dump(Family::V4).await?;
        ensure!(unheard.len() == 1, "{unheard:?}");
        let mut watcher = Watcher::open()?;
        let _heard = network.exchange(SERVERS[0])?;
        let flows = conntrack.dump(Family::V4).await?;
        let heard = flows.iter().find(|flow| flow.id != unheard[0].id).unwrap();
        conntrack.announce(&unheard[0]).await?;
        conntrack.announce(heard).await?;
        // The last of its own events, the one that was asked for, and nothing of the other before it.
        loop {
            match timeout(LIMIT, watcher.next()).await?? {
                Event::Updated(flow) if flow.id == heard.id && flow.has_seen_reply() => break,
                Event::New(flow) | Event::Updated(flow) | Event::Destroyed(flow) => {
                    ensure!(flow.id == heard.id, "{flow:?}");
                }
            }
        }
        let asked = conntrack.announce(heard).await;
        let told = timeout(LIMIT, watcher.next()).await??;
        ensure!(
            matches!(told, Event::Updated(flow) if flow.id == heard.id),
            "{told:?}"
        );
        Ok(asked?)
    })?
}

#[test]
fn ten_thousand_flows_are_heard_of_and_dumped() -> Result<()> {
    const FLOWS: u16 = 10_000;
    testnet::skip_unless_available!("nft");
    let network = Network::new()?;
    network.route(async || -> Result<()> {
        let mut watcher = Watcher::open()?;
        let socket = network.client.enter(|| UdpSocket::bind("10.1.0.2:0"))??;
        // By port: of 10 000 of the kernel's numbers, which are hashes, two are alike once in 90 runs.
        let mut unheard: BTreeSet<u16> = (20_001..=20_000 + FLOWS).collect();
        let deadline = Instant::now() + 6 * LIMIT;
        while !unheard.is_empty() {
            ensure!(Instant::now() < deadline, "{} unheard", unheard.len());
            for &port in &unheard {
                // Nobody listens there: the answers that say so may come up as errors here.
                while socket.send_to(b"a", (SERVERS[0], port)).is_err() {}
            }
            // A busy host drops packets between namespaces; those are sent again.
            while !unheard.is_empty()
                && let Ok(event) = timeout(Duration::from_secs(1), watcher.next()).await
            {
                if let Event::New(flow) = event? {
                    unheard.remove(&flow.original.dst.port());
                }
            }
        }
        let start = Instant::now();
        let flows = Conntrack::open()?.dump(Family::V4).await?;
        println!("{} flows dumped in {:?}", flows.len(), start.elapsed());
        let dumped: BTreeSet<u16> = flows.iter().map(|flow| flow.original.dst.port()).collect();
        ensure!(
            dumped.len() == usize::from(FLOWS),
            "{} dumped",
            dumped.len()
        );
        Ok(())
    })?
}
