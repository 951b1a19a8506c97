//! The documentation's pictures: `tailrace top` as SVG, Prometheus' graphs as PNG.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testnet::tailnet::{Node, program};
use testnet::{Folder, Namespace, Process, Prometheus, Terminal, wait_until};

use super::lab::{Demo, step};
use super::{Stop, svg};

/// Pictures of Prometheus' graphs: file and expression.
const GRAPHS: [(&str, &str); 4] = [
    (
        "metrics-peers.png",
        r#"sum by (peer) (rate(tailrace_peer_bytes_total{instance="alice"}[5s])) * 8"#,
    ),
    (
        "metrics-paths.png",
        r#"sum by (path) (rate(tailrace_path_bytes_total{instance="alice"}[5s])) * 8"#,
    ),
    (
        "metrics-drops.png",
        "sum by (reason) (rate(tailrace_filter_dropped_packets_total[5s])) > 0",
    ),
    (
        "metrics-sessions.png",
        r#"sum by (__name__) ({__name__=~"tailrace_control_(nodes|nodes_online|map_streams)"})"#,
    ),
];
/// What lasts: so many samples, of one a second, among those of the last so many seconds.
const SAMPLES: [u32; 2] = [10, 15];
/// Time within which something has lasted.
const LASTED: Duration = Duration::from_secs(90);
/// Seconds of throughput that the picture of `tailrace top` shows.
const HISTORY: usize = 25;
/// Time within which a page is there, and then the browser's end.
const PAGE: Duration = Duration::from_secs(30);
/// What the page holds once a graph is drawn: the first entry of its legend.
const DRAWN: &str = r#"<li class="line">"#;

/// Has a router let no UDP through.
const BLOCK: &str = "table inet block {
    chain forward { type filter hook forward priority -10; policy accept
        meta l4proto udp drop
    }
}
";

/// Makes traffic, has a path and a session break and heal, and takes the pictures into `folder`.
///
/// # Errors
///
/// When something does not happen as it should, or a picture cannot be taken.
pub(super) fn take(demo: &Demo, prometheus: &Prometheus, folder: &Path, stop: &Stop) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let [alice, bob] = demo.tailnet.nodes.as_slice() else {
        anyhow::bail!("two nodes")
    };
    let seen = |what: &str, condition: &str| {
        stop.check()?;
        step(what, || lasts(prometheus, condition))
    };
    let begin = Instant::now();
    seen("Prometheus knows the lab at rest", "min(up) == 1")?;
    let _traffic = traffic(demo)?;
    let peer = |name: &str| {
        format!(r#"rate(tailrace_peer_bytes_total{{instance="alice",peer="{name}"}}[5s]) > 0"#)
    };
    for name in ["bob", "gate", "exit"] {
        seen(&format!("traffic between alice and {name}"), &peer(name))?;
    }
    stop.check()?;
    top(alice, folder)?;

    let path = |path: &str| {
        format!(r#"tailrace_peer_path{{instance="alice",peer="bob",path=~"{path}"}} == 1"#)
    };
    let router = bob.host().nat().context("bob has no router")?.namespace();
    router.nft(BLOCK)?;
    seen(
        "bob's router lets no UDP through: the relay carries it",
        &path("relay"),
    )?;
    router.exec(&["nft", "delete", "table", "inet", "block"])?;
    seen("it does again: the path is direct", &path("direct.*"))?;

    let online = "tailrace_control_nodes_online == tailrace_control_nodes";
    demo.gate.cli(&["down"])?;
    seen(
        "tailrace down on the gate: control misses it",
        &online.replace("==", "<"),
    )?;
    demo.gate.cli(&["up"])?;
    seen("tailrace up: it is back", online)?;

    for (name, expression) in GRAPHS {
        stop.check()?;
        photograph(
            &prometheus.graph(expression, begin.elapsed()),
            &folder.join(name),
        )
        .with_context(|| format!("the picture of {expression}"))?;
    }
    Ok(())
}

/// Waits until Prometheus has seen `condition` hold for most of some seconds until now.
fn lasts(prometheus: &Prometheus, condition: &str) -> Result<()> {
    let [samples, seconds] = SAMPLES;
    let query = format!("count_over_time(({condition})[{seconds}s:1s]) >= {samples}");
    wait_until(LASTED, condition, || {
        ensure!(!prometheus.query(&query)?.is_empty(), "not yet");
        Ok(())
    })
}

/// Paced TCP in waves from and to alice, and packets that are dropped.
fn traffic(demo: &Demo) -> Result<Vec<Process>> {
    let [alice, bob] = demo.tailnet.nodes.as_slice() else {
        anyhow::bail!("two nodes")
    };
    alice.cli(&["set", "--exit-node=exit"])?;
    let mut all = Vec::new();
    let (office, outside) = (&demo.office.lan, &demo.outside.lan);
    for (space, address, waves) in [
        (
            bob.host().namespace(),
            bob.ip("-4")?,
            ["-b 20M -t 12", "-b 10M -t 8 -R"],
        ),
        (
            office.host(),
            office.addresses()[0],
            ["-b 4M -t 9", "-b 2M -t 7 -R"],
        ),
        (
            outside.host(),
            outside.outside()[0],
            ["-b 12M -t 10 -R", "-b 3M -t 6"],
        ),
    ] {
        let server = ["iperf3", "-s", "-B", &address.to_string()];
        all.push(space.spawn("iperf3 -s", &server)?);
        let waves = waves.map(|wave| format!("timeout --foreground 20 iperf3 -c {address} {wave}"));
        all.push(endless(alice.host().namespace(), &waves.join("; "))?);
    }
    // No rule lets bob reach the gate itself; multicast has no place in a tailnet.
    let pings = format!("ping -c 60 -i 0.1 -W 3 {}", demo.gate.ip("-4")?);
    all.push(endless(bob.host().namespace(), &pings)?);
    let multicast = "ping -c 20 -i 0.25 -W 6 -I tailrace0 224.0.0.251";
    all.push(endless(alice.host().namespace(), multicast)?);
    Ok(all)
}

/// Runs a line of shell again and again: the first try of a client may come before its server listens.
fn endless(space: &Namespace, line: &str) -> Result<Process> {
    let words = ["sh", "-c", &format!("while :; do {line}; sleep 0.2; done")];
    space.spawn(line, &words)
}

/// Pictures of `tailrace top` on alice in a terminal: its peers, its routes.
fn top(alice: &Node, folder: &Path) -> Result<()> {
    let terminal = Terminal::open(alice.host().namespace())?;
    let (program, socket) = (program("tailrace")?, alice.socket());
    let (program, socket) = (program.display(), socket.display());
    terminal.enter(&format!("NO_COLOR= '{program}' --socket '{socket}' top"))?;
    let pictures = [
        ("top-peers.svg", "peers", ["bob", "exit", "gate"].as_slice()),
        (
            "top-routes.svg",
            "routes",
            ["0.0.0.0/0", "10.77.1.0/24"].as_slice(),
        ),
    ];
    for (name, what, rows) in pictures {
        let shown = step(
            &format!("tailrace top shows {what} and their rates"),
            || {
                wait_until(LASTED, "all of them move", || {
                    let shown = terminal.styled()?;
                    let text = svg::plain(&shown);
                    ensure!(moves(&text, rows), "it shows:\n{text}");
                    Ok(shown)
                })
            },
        )?;
        let title =
            format!("tailrace top in a terminal: the {what} of a node, with their throughput");
        let size = (Terminal::COLUMNS, Terminal::ROWS);
        keep(&folder.join(name), svg::draw(&title, &shown, size))?;
        terminal.press("Tab")?;
    }
    Ok(())
}

/// Whether rows that begin so are there with nothing that is zero or unknown, below some history.
fn moves(text: &str, rows: &[&str]) -> bool {
    let bars = text
        .chars()
        .filter(|character| ('▁'..='█').contains(character));
    let complete = |name: &&str| {
        let row = text.lines().find(|line| line.starts_with(*name));
        row.is_some_and(|row| {
            row.split_whitespace()
                .all(|cell| cell != "0" && cell != "-")
        })
    };
    bars.count() >= HISTORY && rows.iter().all(complete)
}

/// Takes a picture of one of Prometheus' pages once its graph is drawn.
fn photograph(url: &str, file: &Path) -> Result<()> {
    let folder = Folder::new("browser")?;
    let (picture, data) = (
        folder.path().join("picture.png"),
        folder.path().join("data"),
    );
    let mut command = Command::new("chromium-headless-shell");
    // Time in the page flies while it waits for nobody: it is over when all is loaded and drawn.
    command
        .args([
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1280,826",
        ])
        .args(["--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", data.display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(url)
        .env("HOME", folder.path());
    let mut browser = Process::spawn("chromium-headless-shell", command)?;
    browser.wait_for_line(DRAWN, PAGE)?;
    let status = browser.wait(PAGE)?;
    ensure!(status.success(), "chromium-headless-shell: {status}");
    keep(file, fs::read(&picture)?)
}

/// Writes a picture and says so.
fn keep(file: &Path, picture: impl AsRef<[u8]>) -> Result<()> {
    fs::write(file, picture).with_context(|| format!("cannot write {}", file.display()))?;
    println!("  wrote  {}", file.display());
    Ok(())
}
