//! `tailrace debug`: looks into a running daemon, and meddles with it.

use bytes::Bytes;
use http::Method;

use super::CliError;
use super::args::{DebugCommand, EndpointArgs, JsonArgs};
use super::ping::address;
use crate::localapi::{Client, DroppedPacket, RuleHits};

pub(super) async fn run(client: &Client, command: DebugCommand) -> Result<(), CliError> {
    match command {
        DebugCommand::Drops(JsonArgs { json }) => drops(client, json).await,
        DebugCommand::Endpoint(args) => endpoint(client, &args).await,
        DebugCommand::Rules(JsonArgs { json }) => rules(client, json).await,
    }
}

async fn endpoint(client: &Client, args: &EndpointArgs) -> Result<(), CliError> {
    let ip = address(client, &args.peer).await?;
    // Brackets of IPv6 may not stand in a query.
    let endpoint = args.endpoint.replace('[', "%5B").replace(']', "%5D");
    let path = format!("debug-endpoint?ip={ip}&endpoint={endpoint}");
    client.request(Method::POST, &path, Bytes::new()).await?;
    Ok(())
}

/// Prints a line for each dropped packet until the daemon ends or we are ended.
async fn drops(client: &Client, json: bool) -> Result<(), CliError> {
    let mut lines = client.lines::<DroppedPacket>("debug-drops").await?;
    eprintln!("Waiting for packets that the filter drops; Ctrl-C ends.");
    while let Some(dropped) = lines.next().await? {
        if json {
            println!("{}", serde_json::to_string(&dropped).unwrap_or_default());
        } else {
            println!("{}", line(&dropped));
        }
    }
    Ok(())
}

fn line(dropped: &DroppedPacket) -> String {
    let protocol = match dropped.protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("protocol {other}"),
    };
    let end = |end: &Option<String>| end.clone().unwrap_or_else(|| "?".to_owned());
    format!(
        "{} {:<3} {} {} > {} peer {}: {} ({})",
        dropped.time,
        dropped.direction,
        protocol,
        end(&dropped.src),
        end(&dropped.dst),
        dropped.peer.as_deref().unwrap_or("-"),
        dropped.reason,
        dropped.why,
    )
}

async fn rules(client: &Client, json: bool) -> Result<(), CliError> {
    let rules: Vec<RuleHits> = client
        .json(Method::GET, "debug-rules", Bytes::new())
        .await?;
    if json {
        println!("{}", serde_json::to_string(&rules).unwrap_or_default());
        return Ok(());
    }
    println!("{:>5} {:>12} {:>14}  rule", "", "packets", "bytes");
    for rule in rules {
        let protocols = match rule.protocols.as_slice() {
            [] => String::new(),
            numbers => format!(" protocols {numbers:?}"),
        };
        println!(
            "{:>5} {:>12} {:>14}  {} > {}{protocols}",
            rule.rule,
            rule.packets,
            rule.bytes,
            rule.sources.join(","),
            rule.destinations.join(","),
        );
    }
    Ok(())
}
