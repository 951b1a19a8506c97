//! Pings and iperf3 between two nodes, parsed.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testnet::tailnet::{Node, Tailnet};
use testnet::wait_until;

/// Echo requests per check.
const PINGS: u32 = 5;
/// Seconds of bulk TCP per direction.
const SECONDS: u32 = 3;

/// Pings over both families and runs iperf3, in both directions; prints the figures.
///
/// # Errors
///
/// When a ping is lost or iperf3 carries nothing.
pub(super) fn verify(tailnet: &Tailnet) -> Result<()> {
    let [alice, bob] = tailnet.nodes.as_slice() else {
        anyhow::bail!("two nodes")
    };
    for (from, to) in [(alice, bob), (bob, alice)] {
        let (source, target) = (name(from), name(to));
        for family in ["-4", "-6"] {
            let address = to.ip(family)?;
            let latency = ping(from, address, PINGS)
                .with_context(|| format!("{source} pings {target} at {address}"))?;
            println!(
                "  {source} → {target}  ping {address}: {PINGS} of {PINGS}, {latency:.2} ms on average"
            );
        }
        let rate = iperf3(from, to).with_context(|| format!("iperf3 from {source} to {target}"))?;
        let peer = from.peer(&target)?;
        let path = path(&peer)?;
        println!(
            "  {source} → {target}  iperf3, {SECONDS} s of TCP: {:.1} Mbit/s, {path}",
            rate / 1e6
        );
    }
    Ok(())
}

/// Name of a node's host.
pub(super) fn name(node: &Node) -> String {
    let space = node.host().namespace().name();
    space
        .split_once('-')
        .map_or(space, |(_, name)| name)
        .to_owned()
}

/// How packets to `peer` travel.
///
/// # Errors
///
/// When status does not say.
pub(super) fn path(peer: &testnet::tailnet::Peer) -> Result<String> {
    Ok(match peer.text("CurAddr")? {
        "" => format!("relayed by {}", peer.text("Relay")?),
        endpoint => format!("direct to {endpoint}"),
    })
}

/// Average round trip in milliseconds of `count` echoes, all of which must return.
///
/// # Errors
///
/// When one is lost.
pub(super) fn ping(from: &Node, address: IpAddr, count: u32) -> Result<f64> {
    let (count, address) = (count.to_string(), address.to_string());
    let words = [
        "ping", "-n", "-q", "-c", &count, "-i", "0.2", "-W", "2", &address,
    ];
    let report = from.host().namespace().exec(&words)?;
    ensure!(
        report.contains(" 0% packet loss"),
        "packets were lost: {report}"
    );
    // rtt min/avg/max/mdev = 1.103/1.412/1.820/0.246 ms
    let average = report
        .rsplit_once("= ")
        .and_then(|(_, times)| times.split('/').nth(1));
    average
        .context("no times in ping's report")?
        .parse()
        .context("ping's average")
}

/// Bits per second that arrived over one TCP stream.
fn iperf3(from: &Node, to: &Node) -> Result<f64> {
    let address = to.ip("-4")?.to_string();
    let space = to.host().namespace();
    let _server = space.spawn("iperf3 -s", &["iperf3", "-s", "-1", "-B", &address])?;
    let seconds = SECONDS.to_string();
    let words = ["iperf3", "-c", &address, "-t", &seconds, "-J"];
    // The server needs a moment to listen; a refused client does not use it up, and says so in its
    // report only.
    let rate = wait_until(Duration::from_secs(10), "iperf3 runs", || {
        let report = from.host().namespace().exec(&words)?;
        let report: Value = serde_json::from_str(&report).context("iperf3's report is no JSON")?;
        let rate = report
            .pointer("/end/sum_received/bits_per_second")
            .and_then(Value::as_f64);
        rate.with_context(|| format!("no rate in {report}"))
    })?;
    ensure!(rate > 0.0, "nothing arrived");
    Ok(rate)
}
