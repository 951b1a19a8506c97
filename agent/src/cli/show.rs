//! `tailrace status` and `tailrace ip`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use bytes::Bytes;
use http::Method;
use node_core::DEFAULT_MTU;

use super::CliError;
use super::args::IpArgs;
use crate::localapi::{BackendState, Client, PeerStatus, Status, TailraceStatus};

/// Prints the status; the exit code is 1 while the node is not running, as upstream's.
pub(super) async fn status(client: &Client, json: bool) -> Result<ExitCode, CliError> {
    let text = client.request(Method::GET, "status", Bytes::new()).await?;
    if json {
        println!("{}", String::from_utf8_lossy(&text));
        return Ok(ExitCode::SUCCESS);
    }
    let status: Status = serde_json::from_slice(&text).map_err(|error| {
        CliError::Other(format!("the daemon's status is not understood: {error}"))
    })?;
    print!("{}", render(&status));
    let up = matches!(
        status.backend_state,
        BackendState::Running | BackendState::Starting
    );
    Ok(if up {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints the addresses of this node or of a peer.
pub(super) async fn ip(client: &Client, args: &IpArgs) -> Result<(), CliError> {
    let status: Status = client.json(Method::GET, "status", Bytes::new()).await?;
    let node = match &args.peer {
        None => &status.self_node,
        Some(peer) => find(&status, peer)?,
    };
    let addresses: Vec<&String> = node
        .tailscale_ips
        .iter()
        .flatten()
        .filter(|text| match text.parse::<IpAddr>() {
            Ok(address) => !(args.v4 && address.is_ipv6() || args.v6 && address.is_ipv4()),
            Err(_) => false,
        })
        .collect();
    if addresses.is_empty() {
        return Err(CliError::Other(match status.backend_state {
            BackendState::NeedsLogin | BackendState::NoState if args.peer.is_none() => {
                "this node has no address yet: join with `tailrace up --login-server URL`"
                    .to_owned()
            }
            _ => "no such address".to_owned(),
        }));
    }
    if args.json {
        println!("{}", serde_json::json!(addresses));
    } else {
        for address in addresses {
            println!("{address}");
        }
    }
    Ok(())
}

/// Finds a node, this one included, by name, full name, address, stable id or node key.
pub(super) fn find<'a>(status: &'a Status, wanted: &str) -> Result<&'a PeerStatus, CliError> {
    let full = |node: &PeerStatus| node.dns_name.trim_end_matches('.').to_ascii_lowercase();
    let name = wanted.trim_end_matches('.').to_ascii_lowercase();
    let nodes =
        || std::iter::once(&status.self_node).chain(status.peer.iter().flat_map(|p| p.values()));
    let exact = |node: &&PeerStatus| {
        node.tailscale_ips
            .iter()
            .flatten()
            .any(|address| address == wanted)
            || (!node.id.is_empty() && node.id == wanted)
            || node.public_key.to_string() == wanted
            || full(node) == name
            || full(node).split('.').next() == Some(name.as_str())
    };
    if let Some(node) = nodes().find(exact) {
        return Ok(node);
    }
    // The host's own word for itself need not be unique.
    let mut by_host = nodes().filter(|node| node.host_name.eq_ignore_ascii_case(wanted));
    match (by_host.next(), by_host.next()) {
        (Some(node), None) => Ok(node),
        (Some(_), Some(_)) => Err(CliError::Other(format!(
            "several nodes call themselves {wanted}: use an address from `tailrace status`"
        ))),
        _ => Err(CliError::Other(format!(
            "there is no node {wanted} in the network map: `tailrace status` lists them"
        ))),
    }
}

/// The table for people, with everything that is wrong above or below it.
fn render(status: &Status) -> String {
    let mut out = headline(status);
    if status.tailscale_ips.is_some() {
        let mut rows = vec![row(status, &status.self_node, true)];
        let mut peers: Vec<&PeerStatus> = status
            .peer
            .iter()
            .flat_map(|peers| peers.values())
            .collect();
        peers.sort_by_key(|peer| (peer.dns_name.as_str(), peer.public_key));
        rows.extend(peers.into_iter().map(|peer| row(status, peer, false)));
        out.push_str(&table(&rows));
        out.push('\n');
    }
    let ours = &status.tailrace;
    if !ours.engine.is_empty() {
        out.push_str(&engine_line(ours));
        out.push_str(&offloads_line(ours));
        out.push_str(&filter_line(ours));
        out.push_str(&shield_line(ours));
    }
    out.push_str(&routes_line(ours));
    out.push_str(&map_line(status));
    for warning in &status.health {
        out.push_str(&format!("# warning: {warning}\n"));
    }
    out
}

/// What stands above the table: what the node waits for, unless it runs.
fn headline(status: &Status) -> String {
    let expired = status.self_node.expired;
    let text = match status.backend_state {
        BackendState::NoState => "The daemon is starting.\n",
        BackendState::Stopped => "Down: bring it up with `tailrace up`.\n",
        BackendState::NeedsLogin if !status.auth_url.is_empty() => {
            return format!(
                "Not logged in; to log in, visit:\n\n\t{}\n\n",
                status.auth_url
            );
        }
        BackendState::NeedsLogin if expired => {
            "The node key expired: log in again with `tailrace up`.\n"
        }
        BackendState::NeedsLogin => "Not logged in: join with `tailrace up --login-server URL`.\n",
        BackendState::NeedsMachineAuth => "Waiting for an administrator to approve this device.\n",
        BackendState::Starting => "Starting.\n",
        BackendState::Running => "",
    };
    text.to_owned()
}

fn engine_line(ours: &TailraceStatus) -> String {
    let device = match ours.device.as_str() {
        "" => "no device",
        device => device,
    };
    format!(
        "# wireguard: {} on {device} ({})\n",
        ours.engine, ours.engine_reason
    )
}

/// What the shield has dropped, if it has.
fn shield_line(ours: &TailraceStatus) -> String {
    if !ours.shield_flooded && ours.shield_dropped == 0 {
        return String::new();
    }
    let flood = if ours.shield_flooded {
        "; a flood now"
    } else {
        ""
    };
    format!(
        "# shield: {}, {} handshakes of strangers dropped{flood}\n",
        ours.shield, ours.shield_dropped
    )
}

/// The routes that this node offers, and which of them count.
fn routes_line(ours: &TailraceStatus) -> String {
    if ours.advertised_routes.is_empty() {
        return String::new();
    }
    let approved = if ours.approved_routes.is_empty() {
        "none".to_owned()
    } else {
        ours.approved_routes.join(", ")
    };
    format!(
        "# routes: advertised {}; approved {approved}\n",
        ours.advertised_routes.join(", ")
    )
}

/// That the network map may be out of date.
fn map_line(status: &Status) -> String {
    let ours = &status.tailrace;
    if !ours.map_stale || status.backend_state == BackendState::Stopped {
        return String::new();
    }
    let age = ours
        .map_age_seconds
        .map_or_else(String::new, |age| format!(", {age} s old"));
    format!("# network map: cached{age}; the coordination server does not answer\n")
}

/// What the kernel splits and joins for the embedded engine, and why not the rest.
fn offloads_line(ours: &TailraceStatus) -> String {
    if ours.offloads.is_empty() {
        return String::new();
    }
    let (used, rest): (Vec<_>, Vec<_>) = ours.offloads.iter().partition(|one| one.in_use);
    let used: Vec<&str> = used.iter().map(|one| one.name.as_str()).collect();
    let used = if used.is_empty() {
        "none".to_owned()
    } else {
        used.join(", ")
    };
    let rest = rest.iter();
    let rest: String = rest
        .map(|one| format!("; not {} ({})", one.name, one.reason))
        .collect();
    // For one reason as a rule.
    let mut untried: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for one in ours.offloads.iter().filter(|one| !one.untried.is_empty()) {
        untried.entry(&one.untried).or_default().push(&one.name);
    }
    let untried = untried.iter();
    let untried: String = untried
        .map(|(why, names)| format!("; {} untried ({why})", names.join(", ")))
        .collect();
    format!("# offloads: {used}{rest}{untried}\n")
}

/// Where the packet filter is, and what it did.
fn filter_line(ours: &TailraceStatus) -> String {
    let place = match ours.filter.as_str() {
        "" => "none: nothing passes".to_owned(),
        "userspace" => format!("userspace ({})", ours.filter_reason),
        place => place.to_owned(),
    };
    let dropped: u64 = ours.drops.values().flat_map(|by| by.values()).sum();
    format!(
        "# filter: {place}, {} rules, {dropped} packets dropped\n",
        ours.filter_rules
    )
}

/// Address, name, owner, system, path, traffic.
fn row(status: &Status, node: &PeerStatus, is_self: bool) -> [String; 6] {
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let address = node
        .tailscale_ips
        .iter()
        .flatten()
        .next()
        .map_or("-", String::as_str);
    let name = match node.dns_name.split('.').next() {
        Some(label) if !label.is_empty() => label,
        _ => &node.host_name,
    };
    let owner = match &node.tags {
        Some(tags) if !tags.is_empty() => tags.join(","),
        _ => {
            let users = status.user.as_ref();
            let user = users.and_then(|users| users.get(&node.user_id.to_string()));
            let login = user
                .and_then(|user| user.get("LoginName"))
                .and_then(|name| name.as_str());
            login.unwrap_or("-").to_owned()
        }
    };
    let path = if is_self {
        "self".to_owned()
    } else if node.expired {
        "key expired".to_owned()
    } else if !node.cur_addr.is_empty() {
        // Said where it is more than every path carries.
        let mtu = node.mtu.filter(|mtu| *mtu > DEFAULT_MTU);
        let mtu = mtu.map_or_else(String::new, |mtu| format!(" (MTU {mtu})"));
        format!("direct {}{mtu}", node.cur_addr)
    } else if !node.online {
        "offline".to_owned()
    } else if node.relay.is_empty() {
        "no path".to_owned()
    } else {
        let activity = if node.active { "" } else { " (idle)" };
        format!("relay {}{activity}", node.relay)
    };
    let exit = match (node.exit_node, node.exit_node_option) {
        (true, _) => "; exit node",
        (false, true) if !is_self => "; offers exit node",
        _ => "",
    };
    let path = path + exit;
    let traffic = if is_self {
        "-".to_owned()
    } else {
        let packets = |count: u64| format!(" ({count} packets)");
        let (rx_packets, tx_packets) = node.overlay.map_or_else(Default::default, |counted| {
            (
                packets(counted.overlay_rx_packets),
                packets(counted.overlay_tx_packets),
            )
        });
        format!(
            "rx {}{rx_packets} tx {}{tx_packets}",
            bytes_text(node.rx_bytes),
            bytes_text(node.tx_bytes)
        )
    };
    [
        address.to_owned(),
        or_dash(name),
        owner,
        or_dash(&node.os),
        path,
        traffic,
    ]
}

fn table(rows: &[[String; 6]]) -> String {
    let mut widths = [0; 6];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Bytes in the largest unit of which there is at least one.
fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keys::NodePublic;

    use super::*;
    use crate::localapi::{OffloadStatus, OverlayTraffic};

    fn node(name: &str, address: &str) -> PeerStatus {
        PeerStatus {
            id: format!("n{name}"),
            host_name: format!("{name}-host"),
            dns_name: format!("{name}.tail.example."),
            tailscale_ips: Some(vec![address.to_owned()]),
            online: true,
            relay: "fra".into(),
            os: "linux".into(),
            user_id: 1,
            ..PeerStatus::default()
        }
    }

    fn status() -> Status {
        let peers = BTreeMap::from([
            (NodePublic::from_bytes([1; 32]), node("b", "100.64.0.2")),
            (
                NodePublic::from_bytes([2; 32]),
                PeerStatus {
                    online: false,
                    ..node("c", "100.64.0.3")
                },
            ),
        ]);
        let users = BTreeMap::from([(
            "1".to_owned(),
            serde_json::json!({"LoginName": "ada@example"}),
        )]);
        Status {
            backend_state: BackendState::Running,
            tailscale_ips: Some(vec!["100.64.0.1".into()]),
            self_node: node("a", "100.64.0.1"),
            peer: Some(peers),
            user: Some(users),
            ..Status::default()
        }
    }

    #[test]
    fn the_packets_of_a_peer_are_shown_where_they_are_counted() {
        let mut status = status();
        for peer in status.peer.iter_mut().flat_map(BTreeMap::values_mut) {
            peer.overlay = Some(OverlayTraffic {
                overlay_rx_packets: 7,
                overlay_tx_packets: 9,
                ..OverlayTraffic::default()
            });
        }
        let text = render(&status);
        assert!(
            text.contains("rx 0 B (7 packets) tx 0 B (9 packets)"),
            "{text}"
        );
    }

    #[test]
    fn packets_that_may_be_longer_than_usual_are_told_beside_the_path() {
        let mut status = status();
        let peers = status.peer.iter_mut().flat_map(BTreeMap::values_mut);
        for (peer, mtu) in peers.zip([1440, 1280]) {
            peer.cur_addr = format!("192.0.2.{}:41641", mtu % 100);
            peer.mtu = Some(mtu);
        }
        let text = render(&status);
        assert!(
            text.contains("direct 192.0.2.40:41641 (MTU 1440)  "),
            "{text}"
        );
        assert!(text.contains("direct 192.0.2.80:41641  "), "{text}");
    }

    #[test]
    fn offloads_are_shown_with_the_reason_of_those_that_are_off() {
        let mut status = status();
        status.tailrace.engine = "embedded".to_owned();
        assert!(!render(&status).contains("offloads"));
        let one = |name: &str, reason: &str| OffloadStatus {
            name: name.to_owned(),
            in_use: reason.is_empty(),
            reason: reason.to_owned(),
            untried: String::new(),
        };
        status.tailrace.offloads = vec![one("TCP", ""), one("UDP", "it lies"), one("UDP_GRO", "")];
        let text = render(&status);
        assert!(
            text.contains("\n# offloads: TCP, UDP_GRO; not UDP (it lies)\n"),
            "{text}"
        );
        status.tailrace.offloads = vec![one("TCP", "no")];
        let text = render(&status);
        assert!(text.contains("# offloads: none; not TCP (no)\n"), "{text}");
        status.tailrace.offloads = ["TCP", "UDP"].map(|name| one(name, "")).to_vec();
        for offload in &mut status.tailrace.offloads {
            offload.untried = "not permitted".to_owned();
        }
        let text = render(&status);
        let line = "# offloads: TCP, UDP; TCP, UDP untried (not permitted)\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn the_table_shows_address_name_owner_and_path() {
        let text = render(&status());
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("100.64.0.1  a  ada@example  linux  self"),
            "{text}"
        );
        assert!(lines[1].contains("relay fra (idle)"), "{text}");
        assert!(lines[2].contains("offline"), "{text}");
    }

    #[test]
    fn a_node_is_found_by_name_address_or_id() {
        let status = status();
        for wanted in [
            "b",
            "B",
            "b.tail.example",
            "b.tail.example.",
            "100.64.0.2",
            "nb",
            "b-host",
        ] {
            assert_eq!(find(&status, wanted).unwrap().id, "nb", "{wanted}");
        }
        assert!(
            find(&status, "nobody")
                .unwrap_err()
                .to_string()
                .contains("nobody")
        );
    }

    #[test]
    fn a_node_that_needs_a_login_says_where() {
        let status = Status {
            backend_state: BackendState::NeedsLogin,
            auth_url: "http://c/register/1".into(),
            ..Status::default()
        };
        assert!(render(&status).contains("http://c/register/1"));
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes_text(0), "0 B");
        assert_eq!(bytes_text(1023), "1023 B");
        assert_eq!(bytes_text(1536), "1.5 KiB");
    }
}
