//! The live table: path, rates and latency of every peer, once a second.

use std::io::{Write, stdout};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use testnet::Process;
use testnet::tailnet::{Node, Tailnet};

use super::Stop;
use super::figures::{name, path, ping};
use super::lab::Demo;
use super::topology;

/// Time between two rows of a peer.
const PERIOD: Duration = Duration::from_secs(1);

/// What is known of one node's only peer at one moment.
struct Sample {
    at: Instant,
    received: u64,
    sent: u64,
}

/// Shows the table until `stop`: redrawn on a terminal, appended elsewhere.
///
/// # Errors
///
/// When the traffic cannot be started.
pub(super) fn show(demo: &Demo, stop: &Stop, on_terminal: bool) -> Result<()> {
    let tailnet = &demo.tailnet;
    let _traffic = traffic(tailnet)?;
    let screen = if on_terminal {
        Some(Screen::open(topology::draw(demo)?))
    } else {
        None
    };
    let mut before: Vec<Option<Sample>> = tailnet.nodes.iter().map(|_| None).collect();
    if screen.is_none() {
        println!("{}", heading());
    }
    while !stop.is_set() {
        let mut rows = Vec::new();
        for (node, before) in tailnet.nodes.iter().zip(&mut before) {
            for other in tailnet
                .nodes
                .iter()
                .filter(|other| !std::ptr::eq(*other, node))
            {
                rows.push(row(node, other, before));
            }
        }
        if stop.is_set() {
            break; // commands were interrupted with us
        }
        match &screen {
            Some(screen) => screen.draw(&rows),
            None => println!("{}", rows.join("\n")),
        }
        wait(stop);
    }
    Ok(())
}

/// Paced TCP from the first node to the second, so that there is something to see.
fn traffic(tailnet: &Tailnet) -> Result<Vec<Process>> {
    let [alice, bob] = tailnet.nodes.as_slice() else {
        anyhow::bail!("two nodes")
    };
    let address = bob.ip("-4")?.to_string();
    let server = bob
        .host()
        .namespace()
        .spawn("iperf3 -s", &["iperf3", "-s", "-B", &address])?;
    // Again and again: the first try may come before the server listens.
    let script = format!("while :; do iperf3 -c {address} -b 20M -t 3600 || sleep 0.2; done");
    let client = alice
        .host()
        .namespace()
        .spawn("traffic", &["sh", "-c", &script])?;
    Ok(vec![server, client])
}

fn heading() -> String {
    format!(
        "{:<8} {:<8} {:<24} {:>14} {:>14} {:>10}",
        "node", "peer", "path", "received", "sent", "ping"
    )
}

/// One line of the table; what cannot be learnt now shows as a dash.
fn row(node: &Node, other: &Node, before: &mut Option<Sample>) -> String {
    let (own, peer_name) = (name(node), name(other));
    let Ok(peer) = node.peer(&peer_name) else {
        return format!("{own:<8} {peer_name:<8} the daemon does not answer");
    };
    let at = Instant::now();
    let sample = match (peer.number("RxBytes"), peer.number("TxBytes")) {
        (Ok(received), Ok(sent)) => Some(Sample { at, received, sent }),
        _ => None,
    };
    let (received, sent) = match (&sample, &before) {
        (Some(now), Some(then)) => {
            let seconds = now.at.duration_since(then.at).as_secs_f64();
            let rate = |now: u64, then: u64| {
                format!(
                    "{:.2} Mbit/s",
                    now.saturating_sub(then) as f64 * 8e-6 / seconds
                )
            };
            (rate(now.received, then.received), rate(now.sent, then.sent))
        }
        _ => ("–".to_owned(), "–".to_owned()),
    };
    *before = sample;
    let path = path(&peer).unwrap_or_else(|_| "–".to_owned());
    let latency = other.ip("-4").and_then(|address| ping(node, address, 1));
    let latency = latency.map_or_else(|_| "lost".to_owned(), |ms| format!("{ms:.2} ms"));
    format!("{own:<8} {peer_name:<8} {path:<24} {received:>14} {sent:>14} {latency:>10}")
}

fn wait(stop: &Stop) {
    let start = Instant::now();
    while start.elapsed() < PERIOD && !stop.is_set() {
        thread::sleep(Duration::from_millis(50));
    }
}

/// The terminal's alternate screen; the old one comes back on drop.
struct Screen {
    topology: String,
}

impl Screen {
    fn open(topology: String) -> Screen {
        write("\x1b[?1049h\x1b[?25l\x1b[2J");
        Screen { topology }
    }

    fn draw(&self, rows: &[String]) {
        let mut text = String::from("\x1b[H");
        let topology = self.topology.lines().map(str::to_owned);
        let table = std::iter::once(heading()).chain(rows.iter().cloned());
        let foot = [String::new(), "Ctrl-C ends".to_owned()];
        for line in topology.chain([String::new()]).chain(table).chain(foot) {
            // Erase to the end of the line: the last frame may have been longer.
            text.push_str(&line);
            text.push_str("\x1b[K\r\n");
        }
        text.push_str("\x1b[J");
        write(&text);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write("\x1b[?25h\x1b[?1049l");
    }
}

/// Writes to the terminal; one that is gone is no reason to leave the lab behind.
fn write(text: &str) {
    let mut out = stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
