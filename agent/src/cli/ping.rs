//! `tailrace ping`: asks a peer's agent, beside the tunnel or inside it, or the peer's host itself.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::CliError;
use super::args::PingArgs;
use super::show::find;
use crate::localapi::{Client, PingResult, Status};

/// The kind of ping that goes beside the tunnel, and may show a path.
const DISCO: &str = "disco";
/// Time between two pings.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(client: &Client, args: &PingArgs) -> Result<ExitCode, CliError> {
    let ip = address(client, &args.peer).await?;
    let kind = kind(args);
    let path = format!("ping?ip={ip}&type={kind}&size={}", args.size);
    let until_direct = args.until_direct.unwrap_or(true) && kind == DISCO;
    let mut answered = 0;
    let mut ticks = tokio::time::interval(INTERVAL);
    for _ in 0..args.count {
        ticks.tick().await;
        let result: PingResult = client.json(Method::POST, &path, Bytes::new()).await?;
        if args.json {
            let line = serde_json::to_string(&result).unwrap_or_default();
            println!("{line}");
        } else {
            println!("{}", line(kind, &result));
        }
        if result.is_local_ip {
            return Ok(ExitCode::FAILURE);
        }
        answered += u32::from(result.err.is_empty());
        if until_direct && !result.endpoint.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if until_direct && answered > 0 {
        eprintln!("no direct path found");
        if args.until_direct == Some(true) {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(if answered > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The address of a peer that is called by name, address or id.
///
/// # Errors
///
/// When there is no such peer, or it has no address.
pub(super) async fn address(client: &Client, peer: &str) -> Result<String, CliError> {
    let status: Status = client.json(Method::GET, "status", Bytes::new()).await?;
    // An address may belong to a subnet behind a peer: then the daemon knows better than the list.
    match find(&status, peer) {
        Ok(node) => {
            let addresses = node.tailscale_ips.as_deref().unwrap_or_default();
            let wanted = addresses.iter().find(|address| **address == peer);
            wanted
                .or(addresses.first())
                .cloned()
                .ok_or_else(|| CliError::Other(format!("{peer} has no address in the tailnet")))
        }
        Err(_) if peer.parse::<std::net::IpAddr>().is_ok() => Ok(peer.to_owned()),
        Err(error) => Err(error),
    }
}

/// The kind of ping, in the daemon's words.
fn kind(args: &PingArgs) -> &'static str {
    match (args.tsmp, args.icmp, args.peerapi) {
        (true, _, _) => "TSMP",
        (_, true, _) => "ICMP",
        (_, _, true) => "peerapi",
        _ => DISCO,
    }
}

fn line(kind: &str, result: &PingResult) -> String {
    if result.is_local_ip {
        return format!("{} is this node itself", result.ip);
    }
    if !result.err.is_empty() {
        return format!(
            "no answer from {} ({}): {}",
            result.node_name, result.ip, result.err
        );
    }
    let latency = milliseconds(result.latency_seconds);
    let PingResult {
        node_name: name,
        node_ip: ip,
        ..
    } = result;
    if !result.peer_api_url.is_empty() {
        let url = &result.peer_api_url;
        return format!("hit peerapi of {name} ({ip}) at {url} in {latency}");
    }
    let via = if !result.derp_region_code.is_empty() {
        format!("DERP({})", result.derp_region_code)
    } else if !result.endpoint.is_empty() {
        result.endpoint.clone()
    } else {
        kind.to_owned()
    };
    let port = match result.peer_api_port {
        0 => String::new(),
        port => format!(", {port}"),
    };
    format!("pong from {name} ({ip}{port}) via {via} in {latency}")
}

/// Whole milliseconds from ten up, tenths below.
fn milliseconds(seconds: f64) -> String {
    let millis = seconds * 1_000.0;
    if millis < 10.0 {
        format!("{millis:.1}ms")
    } else {
        format!("{millis:.0}ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relayed_pong_names_the_region() {
        let result = PingResult {
            ip: "100.64.0.2".into(),
            node_ip: "100.64.0.2".into(),
            node_name: "b".into(),
            latency_seconds: 0.0123,
            derp_region_code: "fra".into(),
            ..PingResult::default()
        };
        assert_eq!(
            line(DISCO, &result),
            "pong from b (100.64.0.2) via DERP(fra) in 12ms"
        );
    }

    #[test]
    fn a_pong_out_of_the_tunnel_names_its_kind() {
        let result = PingResult {
            node_ip: "100.64.0.2".into(),
            node_name: "b".into(),
            latency_seconds: 0.0012,
            ..PingResult::default()
        };
        assert_eq!(
            line("ICMP", &result),
            "pong from b (100.64.0.2) via ICMP in 1.2ms"
        );
        let serving = PingResult {
            peer_api_port: 4444,
            ..result.clone()
        };
        assert_eq!(
            line("TSMP", &serving),
            "pong from b (100.64.0.2, 4444) via TSMP in 1.2ms"
        );
        let hit = PingResult {
            peer_api_url: "http://100.64.0.2:4444".into(),
            ..result
        };
        assert_eq!(
            line("peerapi", &hit),
            "hit peerapi of b (100.64.0.2) at http://100.64.0.2:4444 in 1.2ms"
        );
    }

    #[test]
    fn silence_says_so() {
        let result = PingResult {
            node_name: "b".into(),
            err: "late".into(),
            ..PingResult::default()
        };
        assert!(line(DISCO, &result).starts_with("no answer from b"));
    }
}
