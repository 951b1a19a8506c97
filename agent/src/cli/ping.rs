//! `tailrace ping`: asks a peer's agent, or sends ordinary pings through the tunnel.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::CliError;
use super::args::PingArgs;
use super::show::find;
use crate::localapi::{Client, PingResult, Status};

/// Time between two pings.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(client: &Client, args: &PingArgs) -> Result<ExitCode, CliError> {
    let ip = address(client, &args.peer).await?;
    let kind = if args.icmp { "ICMP" } else { "disco" };
    let path = format!("ping?ip={ip}&type={kind}&size={}", args.size);
    let until_direct = args.until_direct.unwrap_or(true) && !args.icmp;
    let mut answered = 0;
    let mut ticks = tokio::time::interval(INTERVAL);
    for _ in 0..args.count {
        ticks.tick().await;
        let result: PingResult = client.json(Method::POST, &path, Bytes::new()).await?;
        if args.json {
            let line = serde_json::to_string(&result).unwrap_or_default();
            println!("{line}");
        } else {
            println!("{}", line(&result));
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

fn line(result: &PingResult) -> String {
    if result.is_local_ip {
        return format!("{} is this node itself", result.ip);
    }
    if !result.err.is_empty() {
        return format!(
            "no answer from {} ({}): {}",
            result.node_name, result.ip, result.err
        );
    }
    let via = if !result.derp_region_code.is_empty() {
        format!(" via DERP({})", result.derp_region_code)
    } else if !result.endpoint.is_empty() {
        format!(" via {}", result.endpoint)
    } else {
        String::new()
    };
    let latency = milliseconds(result.latency_seconds);
    format!(
        "pong from {} ({}){via} in {latency}",
        result.node_name, result.node_ip
    )
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
            line(&result),
            "pong from b (100.64.0.2) via DERP(fra) in 12ms"
        );
    }

    #[test]
    fn silence_says_so() {
        let result = PingResult {
            node_name: "b".into(),
            err: "late".into(),
            ..PingResult::default()
        };
        assert!(line(&result).starts_with("no answer from b"));
    }
}
