//! Steering to sockets of our own, beside a daemon that holds the same ports on every address.

mod common;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dataplane::{DataplaneError, Steer, Transport};
use testnet::{Namespace, veth, wait_until};

const PORT: u16 = 2222;
const TIMEOUT: Duration = Duration::from_secs(5);

/// A node whose overlay device is a cable to its peer, a cable to a neighbour on the underlay, and a
/// daemon that listens everywhere.
struct Lab {
    node: Namespace,
    peer: Namespace,
    neighbour: Namespace,
}

/// The node on the tailnet, and on the underlay, by family.
const TAILNET: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 64, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x11, 0, 0, 0, 0, 0, 1)),
];
const UNDERLAY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

impl Lab {
    fn new() -> Result<Self> {
        let lab = Self {
            node: Namespace::new("node")?,
            peer: Namespace::new("peer")?,
            neighbour: Namespace::new("neighbour")?,
        };
        veth((&lab.node, "overlay0"), (&lab.peer, "overlay0"))?;
        veth((&lab.node, "eth0"), (&lab.neighbour, "eth0"))?;
        for (namespace, device, v4, v6) in [
            (&lab.node, "overlay0", "100.64.0.1/24", "fd7a:11::1/64"),
            (&lab.peer, "overlay0", "100.64.0.2/24", "fd7a:11::2/64"),
            (&lab.node, "eth0", "192.0.2.1/24", "2001:db8::1/64"),
            (&lab.neighbour, "eth0", "192.0.2.2/24", "2001:db8::2/64"),
        ] {
            namespace.ip(&format!("addr add {v4} dev {device}"))?;
            namespace.ip(&format!("addr add {v6} dev {device} nodad"))?;
        }
        // The neighbour routes the tailnet at us.
        lab.neighbour.ip("route add 100.64.0.0/10 via 192.0.2.1")?;
        lab.neighbour
            .ip("-6 route add fd7a:11::/48 via 2001:db8::1")?;
        Ok(lab)
    }
}

/// A listener that says its name, and to which address it was asked, until the test ends.
fn tcp(listener: TcpListener, name: &'static str) -> Result<TcpListener> {
    let kept = listener.try_clone()?;
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let Ok(local) = stream.local_addr() else {
                return;
            };
            let local = SocketAddr::new(local.ip().to_canonical(), local.port());
            // Who asked has gone: nothing to say.
            let _gone = write!(stream, "{name} {local}");
        }
    });
    Ok(kept)
}

/// Who answers at `address`, asked from `namespace`.
fn asked(namespace: &Namespace, address: SocketAddr) -> Result<String> {
    namespace.enter(|| {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .with_context(|| format!("from {address}"))?;
        Ok(answer)
    })?
}

fn loopback(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

#[test]
fn connections_over_the_overlay_reach_our_listener_and_all_others_the_daemon() -> Result<()> {
    skip_without_bpf!();
    let lab = Lab::new()?;
    let node = |address: IpAddr| SocketAddr::new(address, PORT);
    let mut steer = lab.node.enter(|| Steer::attach("overlay0"))??;
    lab.node
        .enter(|| tcp(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?, "daemon"))??;
    for (tailnet, underlay) in TAILNET.into_iter().zip(UNDERLAY) {
        let (ours, theirs) = (
            format!("ours {}", node(tailnet)),
            format!("daemon {}", node(tailnet)),
        );
        assert_eq!(asked(&lab.peer, node(tailnet))?, theirs);

        let listener = lab
            .node
            .enter(|| tcp(TcpListener::bind((loopback(tailnet), 0))?, "ours"))??;
        steer.add(node(tailnet), Transport::Tcp, &listener)?;
        assert_eq!(asked(&lab.peer, node(tailnet))?, ours);
        assert_eq!(
            asked(&lab.node, node(tailnet))?,
            ours,
            "from the host itself"
        );
        // The underlay is not steered, whatever is routed there.
        assert_eq!(asked(&lab.neighbour, node(tailnet))?, theirs);
        let on_underlay = format!("daemon {}", node(underlay));
        assert_eq!(asked(&lab.neighbour, node(underlay))?, on_underlay);
        let on_loopback = node(loopback(tailnet));
        assert_eq!(
            asked(&lab.node, on_loopback)?,
            format!("daemon {on_loopback}")
        );

        steer.remove(node(tailnet), Transport::Tcp)?;
        assert_eq!(asked(&lab.peer, node(tailnet))?, theirs);
        steer.remove(node(tailnet), Transport::Tcp)?;
        steer.add(node(tailnet), Transport::Tcp, &listener)?;
        assert_eq!(asked(&lab.peer, node(tailnet))?, ours);
    }
    drop(steer);
    for tailnet in TAILNET {
        let theirs = format!("daemon {}", node(tailnet));
        // A command that another test starts holds its copy of the link until it executes.
        wait_until(TIMEOUT, "the daemon has its port back", || {
            let answer = asked(&lab.peer, node(tailnet))?;
            ensure!(answer == theirs, "{answer}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_listener_that_is_closed_or_replaced_leaves_no_hole() -> Result<()> {
    skip_without_bpf!();
    let lab = Lab::new()?;
    let address = SocketAddr::new(TAILNET[0], PORT);
    let listen = |name| -> Result<TcpListener> {
        lab.node
            .enter(|| tcp(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, name))?
    };
    let mut steer = lab.node.enter(|| Steer::attach("overlay0"))??;
    let daemon = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT));
    lab.node.enter(|| tcp(daemon()?, "daemon"))??;

    // Held by nobody else, so that to drop it closes it.
    let alone = lab
        .node
        .enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    steer.add(address, Transport::Tcp, &alone)?;
    drop(alone);
    assert_eq!(asked(&lab.peer, address)?, format!("daemon {address}"));

    let first = listen("first")?;
    steer.add(address, Transport::Tcp, &first)?;
    assert_eq!(asked(&lab.peer, address)?, format!("first {address}"));
    let second = listen("second")?;
    steer.add(address, Transport::Tcp, &second)?;
    assert_eq!(asked(&lab.peer, address)?, format!("second {address}"));

    let alone = lab
        .node
        .enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    steer.add(address, Transport::Tcp, &alone)?;
    drop(alone);
    steer.remove(address, Transport::Tcp)?;
    assert_eq!(asked(&lab.peer, address)?, format!("daemon {address}"));
    Ok(())
}

/// Sends a datagram from `namespace`. Which of the sockets has it?
fn arrives(namespace: &Namespace, to: SocketAddr, sockets: [&UdpSocket; 2]) -> Result<usize> {
    namespace.enter(|| -> Result<()> {
        let socket = UdpSocket::bind(SocketAddr::new(
            match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            },
            0,
        ))?;
        socket.send_to(b"hello", to)?;
        Ok(())
    })??;
    testnet::wait_until(TIMEOUT, "the datagram arrives", || {
        for (number, socket) in sockets.into_iter().enumerate() {
            match socket.recv(&mut [0; 8]) {
                Ok(_) => return Ok(number),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("none has it")
    })
}

#[test]
fn datagrams_are_steered_like_connections() -> Result<()> {
    skip_without_bpf!();
    let lab = Lab::new()?;
    let bind = |address: IpAddr, port| -> Result<UdpSocket> {
        lab.node.enter(|| {
            let socket = UdpSocket::bind((address, port))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?
    };
    let daemon = bind(Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    let mut steer = lab.node.enter(|| Steer::attach("overlay0"))??;
    for (tailnet, underlay) in TAILNET.into_iter().zip(UNDERLAY) {
        let ours = bind(loopback(tailnet), 0)?;
        let both = [&daemon, &ours];
        let to = SocketAddr::new(tailnet, PORT);
        assert_eq!(arrives(&lab.peer, to, both)?, 0);
        steer.add(to, Transport::Udp, &ours)?;
        assert_eq!(arrives(&lab.peer, to, both)?, 1);
        assert_eq!(arrives(&lab.node, to, both)?, 1);
        assert_eq!(arrives(&lab.neighbour, to, both)?, 0);
        let other = SocketAddr::new(underlay, PORT);
        assert_eq!(arrives(&lab.neighbour, other, both)?, 0);
        steer.remove(to, Transport::Udp)?;
        assert_eq!(arrives(&lab.peer, to, both)?, 0);
    }
    Ok(())
}

#[test]
fn steering_without_an_overlay_device_says_so() -> Result<()> {
    skip_without_bpf!();
    let node = Namespace::new("node")?;
    let error = node
        .enter(|| Steer::attach("overlay0").map(drop))?
        .unwrap_err();
    ensure!(matches!(error, DataplaneError::NoInterface(_)), "{error:?}");
    Ok(())
}
