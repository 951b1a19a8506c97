//! `tailrace top` in a real terminal, and as JSON.

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, Gateway, connected_pair, names, pair, refused, transfer};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testnet::tailnet::{Node, program};
use testnet::{Process, Terminal, skip_unless_available, wait_until};

/// Pings the peer fifty times a second until dropped.
fn traffic(from: &Node, to: &Node) -> Result<Process> {
    let address = to.ip("-4")?.to_string();
    let words = ["ping", "-n", "-q", "-i", "0.02", "-s", "1000", &address];
    from.host().namespace().spawn("ping", &words)
}

/// The cells of the row that begins with `name`.
fn row(screen: &str, name: &str) -> Option<Vec<String>> {
    let mut rows = screen.lines().map(|line| line.split_whitespace());
    let row = rows.find(|cells| cells.clone().next() == Some(name))?;
    Some(row.map(str::to_owned).collect())
}

/// Whether a cell is a rate above zero.
fn moves(cell: Option<&String>) -> bool {
    cell.is_some_and(|text| text != "0" && text != "-")
}

/// Starts `tailrace top` by typing it, with its exit code behind it.
fn start(terminal: &Terminal, node: &Node, flags: &str) -> Result<()> {
    let program = program("tailrace")?;
    let (program, socket) = (program.display(), node.socket());
    let socket = socket.display();
    // Short names: the line must not be broken where it is looked for.
    terminal.enter(&format!("alias t='{program} --socket {socket}'; clear"))?;
    terminal.wait_for("an empty screen", |text| text.trim() == "$")?;
    terminal.enter(&format!("t top {flags}; echo \"code $?\""))?;
    terminal.wait_for("the dashboard", |text| text.contains("[Peers 1]"))?;
    ensure!(
        terminal.variable("alternate_on")? == "1",
        "the shell's own screen"
    );
    Ok(())
}

/// Checks that the shell has its terminal back as it was: screen, cursor, echo.
fn is_restored(terminal: &Terminal, code: u8) -> Result<()> {
    let code = format!("code {code}");
    let shown = terminal.wait_for("the shell again", |text| text.contains(&code))?;
    ensure!(shown.contains("; echo"), "what was there is gone:\n{shown}");
    ensure!(
        !shown.contains("[Peers"),
        "the dashboard is still there:\n{shown}"
    );
    ensure!(
        terminal.variable("alternate_on")? == "0",
        "the alternate screen stays"
    );
    ensure!(
        terminal.variable("cursor_flag")? == "1",
        "the cursor stays hidden"
    );
    terminal.enter("stty -a")?;
    let modes = terminal.wait_for("the terminal's modes", |text| text.contains("echoctl"))?;
    for mode in ["icanon", "echo", "isig", "icrnl", "opost"] {
        let mut words = modes.split_whitespace();
        ensure!(words.any(|word| word == mode), "{mode} is off:\n{modes}");
    }
    Ok(())
}

#[test]
fn the_dashboard_shows_traffic_and_paths_and_does_what_keys_say() -> Result<()> {
    skip_unless_available!("ping", "tmux");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let _pings = traffic(alice, bob)?;
    let terminal = Terminal::open(alice.host().namespace())?;
    start(&terminal, alice, "--interval 0.5")?;

    let shown = terminal.wait_for("bob on a direct path with rates", |text| {
        let Some(cells) = row(text, "bob") else {
            return false;
        };
        let direct = cells
            .get(1)
            .is_some_and(|path| path.starts_with("203.0.113."));
        let measured = cells.get(2).is_some_and(|rtt| rtt.ends_with('s'));
        direct && measured && moves(cells.get(3)) && moves(cells.get(4))
    })?;
    println!("{shown}");
    ensure!(shown.lines().count() <= 24, "more than 24 rows:\n{shown}");
    names(
        &shown,
        &["tailrace alice", "q quit", "rx/s▼", "every 0.5 s"],
    )?;

    terminal.press("s")?;
    terminal.wait_for("another column's arrow", |text| text.contains("tx/s▼"))?;
    terminal.press("r")?;
    terminal.wait_for("it the other way", |text| text.contains("tx/s▲"))?;
    terminal.press("<")?;
    terminal.wait_for("the column before", |text| text.contains("rx/s▼"))?;

    for (typed, found) in [("nobody", false), ("bo", true)] {
        terminal.press("/")?;
        terminal.enter(typed)?;
        let prompt = format!("filter: {typed}  ");
        let is_right = |text: &str| text.contains(&prompt) && row(text, "bob").is_some() == found;
        terminal.wait_for("what the filter leaves", is_right)?;
        terminal.press("Escape")?;
        terminal.wait_for("bob again", |text| row(text, "bob").is_some())?;
    }

    // Bob's own pings are not answered any more, and counted.
    alice.cli(&["set", "--shields-up"])?;
    let _refused = traffic(bob, alice)?;
    terminal.press("Tab")?;
    terminal.wait_for("the routes", |text| text.contains("[Routes 0]"))?;
    terminal.press("Tab")?;
    let shown = terminal.wait_for("what is dropped", |text| {
        let cells = row(text, "filter").unwrap_or_default();
        cells.get(2).map(String::as_str) == Some("shields_up") && moves(cells.get(3))
    })?;
    println!("{shown}");

    terminal.press("h")?;
    terminal.wait_for("the help", |text| text.contains(" Keys "))?;
    terminal.press("h")?;
    terminal.wait_for("no help", |text| !text.contains(" Keys "))?;
    terminal.press("q")?;
    is_restored(&terminal, 0)
}

#[test]
fn the_terminal_is_given_back_whatever_ends_the_dashboard() -> Result<()> {
    skip_unless_available!("ping", "tmux");
    let tailnet = connected_pair()?;
    let [alice, _] = pair(&tailnet.nodes)?;
    let terminal = Terminal::open(alice.host().namespace())?;
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        start(&terminal, alice, "")?;
        let pid = i32::try_from(terminal.foreground()?)?;
        kill_process(Pid::from_raw(pid).context("no process")?, signal)?;
        is_restored(&terminal, code)?;
    }
    for key in ["C-c", "Escape"] {
        start(&terminal, alice, "")?;
        terminal.press(key)?;
        is_restored(&terminal, 0)?;
    }
    Ok(())
}

#[test]
fn the_dashboard_outlives_the_daemon_and_says_so() -> Result<()> {
    skip_unless_available!("ping", "tmux");
    let mut tailnet = connected_pair()?;
    let alice = tailnet.nodes.first_mut().context("no node")?;
    let terminal = Terminal::open(alice.host().namespace())?;
    start(&terminal, alice, "--interval 0.2")?;
    alice.terminate()?;
    let gone = "no tailrace daemon answers";
    terminal.wait_for("that the daemon is gone", |text| text.contains(gone))?;
    alice.start_again()?;
    terminal.wait_for("the daemon again", |text| {
        !text.contains(gone) && row(text, "bob").is_some()
    })?;
    terminal.press("q")?;
    is_restored(&terminal, 0)
}

#[test]
fn without_a_terminal_there_is_json_and_an_error_that_says_so() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    refused(&alice.try_cli(&["top"])?, &["terminal", "--json"])?;
    for interval in ["0.1", "61", "soon"] {
        let output = alice.try_cli(&["top", "--json", "--interval", interval])?;
        ensure!(
            !output.status.success(),
            "--interval {interval} is accepted"
        );
    }
    let _pings = traffic(alice, bob)?;
    let json = wait_until(CONNECT, "bob's figures", || {
        let text = alice.cli(&["top", "--json", "--interval", "0.5"])?;
        let json: Value = serde_json::from_str(&text)?;
        let bob = &json["Peers"][0];
        ensure!(bob["Name"] == "bob", "{text}");
        let direct = bob["CurAddr"]
            .as_str()
            .is_some_and(|at| at.starts_with("203.0.113."));
        ensure!(
            direct && bob["LatencySeconds"].as_f64() > Some(0.0),
            "{text}"
        );
        for rate in ["RxBytesPerSecond", "TxBytesPerSecond"] {
            // Fifty pings a second of 1028 bytes, and what WireGuard adds.
            let range = 20_000.0..200_000.0;
            ensure!(
                bob[rate].as_f64().is_some_and(|rate| range.contains(&rate)),
                "{text}"
            );
            ensure!(json["Total"][rate] == bob[rate], "{text}");
        }
        Ok(json)
    })?;
    ensure!(json["BackendState"] == "Running", "{json}");
    ensure!(json["IntervalSeconds"].as_f64() >= Some(0.4), "{json}");
    Ok(())
}

#[test]
fn traffic_of_a_route_is_told_apart_from_its_peers_own() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(&["--advertise-routes=10.77.1.0/24", "--enable-ip-forward"])?;
    let address = site
        .lan
        .addresses()
        .into_iter()
        .find(|address| address.is_ipv4());
    let address = address.context("the LAN has no IPv4 address")?;
    site.alice.reach(address, CONNECT)?;
    let sample = |node: &Node| -> Result<Value> {
        let text = node.cli(&["top", "--json", "--interval", "0.2"])?;
        serde_json::from_str(&text).with_context(|| text.clone())
    };
    let before = sample(&site.alice)?;
    transfer(site.node(), site.lan.host(), address, 8 << 20)?;
    let after = sample(&site.alice)?;
    let route = |sample: &Value| -> Result<Value> {
        let mut routes = sample["Routes"].as_array().into_iter().flatten();
        let route = routes.find(|route| route["Prefix"] == "10.77.1.0/24");
        Ok(route
            .with_context(|| format!("no route in {sample}"))?
            .clone())
    };
    let (before, route_after) = (route(&before)?, route(&after)?);
    ensure!(route_after["Via"] == "gate", "{route_after}");
    let status = site.alice.status()?;
    if status["Tailrace"]["Filter"] == "ebpf" || status["tailrace"]["Filter"] == "ebpf" {
        let number = |value: &Value| value["TxBytes"].as_u64().context("not counted");
        let sent = number(&route_after)? - number(&before)?;
        ensure!(sent >= 8 << 20, "{sent} bytes counted of 8 MiB");
        // Its own pings and the route's: the packets of the peer are those of both.
        let peer = site
            .alice
            .peer("gate")?
            .number("/Tailrace/OverlayTxBytes")?;
        ensure!(peer > sent, "the peer has sent {peer}, its route {sent}");
    } else {
        println!("counted by nobody: {}", status["Tailrace"]["FilterReason"]);
        ensure!(route_after["TxBytes"].is_null(), "{route_after}");
    }
    let served = route(&sample(&site.gate)?)?;
    ensure!(served["Via"] == "", "{served}");
    Ok(())
}
