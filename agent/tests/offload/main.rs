//! Forwarding past the network stack with real packets: a peer on a tunnel, a gateway with the agent's
//! firewall, a host on its LAN.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod lab;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testnet::{Namespace, wait_until};

use lab::{LIMIT, Lab, PEER};

/// Bytes of a TCP transfer.
const BULK: usize = 48 << 20;
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

macro_rules! skip_without_bpf {
    ($name:literal) => {
        if let Some(reason) = bpf_unavailable() {
            println!("\nSKIP offload::{}: {reason}", $name);
            return Ok(());
        }
    };
}

fn bpf_unavailable() -> Option<String> {
    if !dataplane::is_embedded() {
        return Some("no eBPF object; run `cargo xtask build-ebpf`".to_owned());
    }
    dataplane::Trial::load()
        .err()
        .map(|error| error.to_string())
}

/// Sends [`BULK`] bytes from `from` to `to` in a connection that `from` opens, and as many back, once the
/// connection is offloaded.
fn transfer(lab: &Lab, from: &Namespace, to: (&Namespace, IpAddr)) -> Result<()> {
    let listener = to.0.enter(|| TcpListener::bind((to.1, 0)))??;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            receive(&mut stream)?;
            send(&mut stream)
        });
        let asked = from.enter(|| -> Result<()> {
            let mut stream = TcpStream::connect(address)?;
            lab.wait_for_flows(1)?;
            send(&mut stream)?;
            receive(&mut stream)
        })?;
        asked.context("the side that opens")?;
        let served = serving.join().ok().context("the listener panicked")?;
        served.context("the side that listens")
    })?;
    // FIN takes the stack in both directions: conntrack knows that it is over, and we from it.
    lab.wait_for_flows(0)
}

/// Nearly all packets of a transfer have gone past the stack since `before`, with data or acknowledging
/// them.
fn ensure_past(lab: &Lab, before: [u64; 2]) -> Result<()> {
    let packets = BULK as u64 / 1240;
    for (before, after) in before.into_iter().zip(lab.past()?) {
        let past = after - before;
        ensure!(
            past > packets * 9 / 10,
            "{past} of {packets}: {:?}",
            lab.counts()?
        );
    }
    Ok(())
}

fn pattern() -> Vec<u8> {
    (0..1 << 16).map(|at: u32| (at ^ at >> 7) as u8).collect()
}

fn send(stream: &mut TcpStream) -> Result<()> {
    let pattern = pattern();
    for _ in 0..BULK / pattern.len() {
        stream.write_all(&pattern)?;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream) -> Result<()> {
    let pattern = pattern();
    let mut buffer = vec![0; pattern.len()];
    stream.set_read_timeout(Some(LIMIT))?;
    for _ in 0..BULK / pattern.len() {
        stream.read_exact(&mut buffer)?;
        ensure!(buffer == pattern, "the data are not those that were sent");
    }
    Ok(())
}

/// A datagram socket of the peer, connected to one of the host that echoes.
struct Datagrams {
    near: UdpSocket,
    far: UdpSocket,
    /// Who the peer is for the host.
    alias: SocketAddr,
}

impl Datagrams {
    fn new(lab: &Lab, family: usize) -> Result<Self> {
        let address = lab.lan.addresses()[family];
        let far = lab.lan.host().enter(|| UdpSocket::bind((address, 0)))??;
        let near = lab.peer.enter(|| UdpSocket::bind((PEER[family], 0)))??;
        near.connect(far.local_addr()?)?;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        }
        near.send(b"first")?;
        let mut buffer = [0; 16];
        let (_, alias) = far.recv_from(&mut buffer).context("the first datagram")?;
        far.send_to(b"answer", alias)?;
        near.recv(&mut buffer).context("the first answer")?;
        Ok(Self { near, far, alias })
    }

    /// One datagram of so many bytes to the host, and back.
    fn round(&self, len: usize) -> Result<()> {
        let sent = vec![7; len];
        let mut buffer = vec![0; len + 1];
        self.near.send(&sent)?;
        let (got, from) = self.far.recv_from(&mut buffer).context("to the host")?;
        ensure!(
            from == self.alias,
            "from {from}, before from {}",
            self.alias
        );
        ensure!(buffer[..got] == sent, "{got} bytes of {len} to the host");
        self.far.send_to(&sent, from)?;
        let got = self.near.recv(&mut buffer).context("back to the peer")?;
        ensure!(buffer[..got] == sent, "{got} bytes of {len} back");
        Ok(())
    }
}

/// The lab, and its two families by their place in lists of addresses.
fn in_labs(test: impl Fn(&mut Lab, usize) -> Result<()>) -> Result<()> {
    for masquerade in [true, false] {
        let mut lab = Lab::new(masquerade, false)?;
        for family in [0, 1] {
            test(&mut lab, family)
                .with_context(|| format!("masquerade {masquerade}, {}", PEER[family]))?;
        }
    }
    Ok(())
}

#[test]
fn the_bulk_of_tcp_goes_past_the_stack_and_its_end_takes_it() -> Result<()> {
    skip_without_bpf!("the_bulk_of_tcp_goes_past_the_stack_and_its_end_takes_it");
    in_labs(|lab, family| {
        let before = lab.past()?;
        let host = lab.lan.addresses()[family];
        transfer(lab, &lab.peer, (lab.lan.host(), host))?;
        ensure_past(lab, before)
    })
}

#[test]
fn a_network_behind_the_gateway_opens_connections_to_peers() -> Result<()> {
    skip_without_bpf!("a_network_behind_the_gateway_opens_connections_to_peers");
    let lab = Lab::new(false, false)?;
    for address in PEER {
        let before = lab.past()?;
        transfer(&lab, lab.lan.host(), (&lab.peer, address))?;
        ensure_past(&lab, before)?;
    }
    Ok(())
}

#[test]
fn an_exit_node_forwards_beyond_its_own_networks() -> Result<()> {
    skip_without_bpf!("an_exit_node_forwards_beyond_its_own_networks");
    let lab = Lab::new(true, true)?;
    for address in lab.lan.outside() {
        let before = lab.past()?;
        transfer(&lab, &lab.peer, (lab.lan.host(), address))?;
        ensure_past(&lab, before)?;
    }
    Ok(())
}

#[test]
fn datagrams_and_echoes_go_past_the_stack() -> Result<()> {
    skip_without_bpf!("datagrams_and_echoes_go_past_the_stack");
    in_labs(|lab, family| {
        let datagrams = Datagrams::new(lab, family)?;
        lab.wait_for_flows(1)?;
        let before = lab.past()?;
        for len in (0..1200).step_by(13) {
            datagrams.round(len)?;
        }
        let after = lab.past()?;
        for (before, after) in before.into_iter().zip(after) {
            ensure!(after - before > 80, "{} of 93", after - before);
        }
        let host = lab.lan.addresses()[family].to_string();
        let before = lab.past()?;
        testnet::run(
            lab.peer
                .command("ping")
                .args(["-c", "40", "-i", "0.02", "-W", "1", &host]),
        )?;
        let after = lab.past()?;
        for (before, after) in before.into_iter().zip(after) {
            ensure!(after - before > 30, "{} of 40 echoes", after - before);
        }
        lab.gateway.exec(&["conntrack", "-D", "-p", "udp"])?;
        lab.gateway.output(&["conntrack", "-D", "-p", "icmp"])?;
        lab.gateway
            .output(&["conntrack", "-D", "-f", "ipv6", "-p", "icmpv6"])?;
        lab.gateway
            .output(&["conntrack", "-D", "-f", "ipv6", "-p", "udp"])?;
        lab.wait_for_flows(0)
    })
}

#[test]
fn fragments_arrive_and_the_path_mtu_is_found() -> Result<()> {
    skip_without_bpf!("fragments_arrive_and_the_path_mtu_is_found");
    in_labs(|lab, family| {
        let datagrams = Datagrams::new(lab, family)?;
        lab.wait_for_flows(1 + family)?;
        // From the peer in fragments, and to it.
        wait_until(LIMIT, "fragments arrive", || datagrams.round(4000))?;
        // Fits the LAN, but not the overlay: the host is told, and then sends fragments.
        wait_until(LIMIT, "the host knows the path's MTU", || {
            datagrams.round(1400)
        })?;
        let to = datagrams.alias.ip().to_string();
        let route = lab.lan.host().exec(&["ip", "route", "get", &to])?;
        ensure!(route.contains("mtu 1280"), "{route}");
        // Nothing of this has ended the flow.
        let before = lab.past()?;
        datagrams.round(100)?;
        let after = lab.past()?;
        ensure!(
            after[0] + after[1] > before[0] + before[1],
            "{:?}",
            lab.counts()
        );
        Ok(())
    })
}

#[test]
fn errors_reach_the_peer() -> Result<()> {
    skip_without_bpf!("errors_reach_the_peer");
    in_labs(|lab, family| {
        let Datagrams { near, far, .. } = Datagrams::new(lab, family)?;
        lab.wait_for_flows(1)?;
        drop(far);
        wait_until(LIMIT, "the peer hears that nobody listens", || {
            match near.send(b"anybody?").and_then(|_| near.recv(&mut [0; 8])) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => bail!("{other:?}"),
            }
        })?;
        let host = lab.lan.addresses()[family].to_string();
        let output = lab
            .peer
            .output(&["ping", "-c", "1", "-W", "2", "-t", "1", &host])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let gateway = ["100.64.0.1", "fd7a:115c:a1e0::1"][family];
        ensure!(text.contains(gateway), "the gateway does not show: {text}");
        lab.gateway.output(&["conntrack", "-F"])?;
        lab.wait_for_flows(0)
    })
}

#[test]
fn conntrack_remembers_a_flow_that_goes_past_it() -> Result<()> {
    skip_without_bpf!("conntrack_remembers_a_flow_that_goes_past_it");
    let timeout = Duration::from_secs(14);
    let gateway_set = |lab: &Lab| {
        let set = |name, value| lab.gateway.sysctl(&format!("net/netfilter/{name}"), value);
        set("nf_conntrack_udp_timeout_stream", "14")?;
        set("nf_conntrack_udp_timeout", "14")
    };
    let mut lab = Lab::new(true, false)?;
    gateway_set(&lab)?;
    let datagrams = Datagrams::new(&lab, 0)?;
    lab.wait_for_flows(1)?;
    let begin = Instant::now();
    let before = lab.past()?;
    let mut rounds = 0_u64;
    while begin.elapsed() < timeout + Duration::from_secs(4) {
        // Any other translation would show in the host's view of the peer.
        datagrams.round(64)?;
        rounds += 1;
        // The agent is not needed for it.
        lab.kill_agent();
    }
    let after = lab.past()?;
    ensure!(
        after[0] - before[0] > rounds * 9 / 10,
        "{after:?}, {rounds} rounds"
    );
    let flows = lab.gateway.exec(&["conntrack", "-L", "-p", "udp"])?;
    ensure!(flows.contains("100.64.0.2"), "{flows}");
    Ok(())
}

#[test]
fn a_rule_that_goes_cuts_a_flow_at_once() -> Result<()> {
    skip_without_bpf!("a_rule_that_goes_cuts_a_flow_at_once");
    let lab = Lab::new(true, false)?;
    let datagrams = Datagrams::new(&lab, 0)?;
    lab.wait_for_flows(1)?;
    datagrams.round(64)?;
    let mut none = lab::rules(&["10.77.1.0/24".parse()?]);
    none.rules.clear();
    lab.plane.blocking_lock().0.set_rules(&none)?;
    datagrams.near.send(b"cut")?;
    let heard = datagrams.far.recv_from(&mut [0; 8]);
    ensure!(heard.is_err(), "{heard:?}");
    Ok(())
}

#[test]
fn a_route_that_goes_elsewhere_takes_the_flow_along() -> Result<()> {
    skip_without_bpf!("a_route_that_goes_elsewhere_takes_the_flow_along");
    let lab = Lab::new(false, false)?;
    let datagrams = Datagrams::new(&lab, 0)?;
    lab.wait_for_flows(1)?;
    datagrams.round(64)?;
    let host = lab.lan.addresses()[0];
    lab.gateway.ip(&format!("route add blackhole {host}"))?;
    datagrams.near.send(b"astray")?;
    let heard = datagrams.far.recv_from(&mut [0; 8]);
    ensure!(heard.is_err(), "{heard:?}");
    lab.gateway.ip(&format!("route del blackhole {host}"))?;
    datagrams.round(64)?;
    Ok(())
}
