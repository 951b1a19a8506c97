//! `POST ping`: signs of life of four kinds.

use std::time::Duration;

use super::query::Query;
use super::server::{Failure, address};
use super::{PingResult, peerapi};
use crate::engine::Handle;
use crate::error_text::error_text;
use crate::icmp;

/// Longest ping, as a disco message with its headers; IP's and UDP's come on top.
const MAX_PING_SIZE: u16 = 8_000;
/// How long a ping waits for its pong.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Pings as the query says. No answer is a result, not a failure.
pub(super) async fn ping(query: &Query, engine: &Handle) -> Result<PingResult, Failure> {
    let ip = address(query)?;
    match query.get("type") {
        Some("disco") => Ok(engine.ping(ip, size(query)?, PING_TIMEOUT).await?),
        Some("TSMP") => Ok(engine.ping_inside(ip, PING_TIMEOUT).await?),
        Some("ICMP") => {
            let mut result = engine.ping_target(ip).await?;
            if result.is_local_ip {
                return Ok(result);
            }
            let sent = tokio::task::spawn_blocking(move || icmp::ping(ip, 0, PING_TIMEOUT)).await;
            match sent {
                Ok(Ok(Some(latency))) => result.latency_seconds = latency.as_secs_f64(),
                Ok(Ok(None)) => result.err = format!("no echo reply within {PING_TIMEOUT:?}"),
                Ok(Err(error)) => result.err = format!("cannot send an echo request: {error}"),
                Err(error) => result.err = error.to_string(),
            }
            Ok(result)
        }
        Some("peerapi") => {
            let mut result = engine.ping_target(ip).await?;
            if result.is_local_ip {
                return Ok(result);
            }
            let Some(server) = engine.peer_api(ip).await? else {
                result.err = format!(
                    "{} announces no PeerAPI: nodes that run tailrace do not serve one yet; use \
                     --tsmp, or neither",
                    result.node_name
                );
                return Ok(result);
            };
            match peerapi::ping(server, PING_TIMEOUT).await {
                Ok(latency) => {
                    result.latency_seconds = latency.as_secs_f64();
                    result.peer_api_url = peerapi::url(server);
                }
                Err(error) => result.err = error_text(&error),
            }
            Ok(result)
        }
        Some(other) => Err(Failure::bad_request(format!(
            "ping type {other:?} is not supported; use disco, TSMP, ICMP or peerapi"
        ))),
        None => Err(Failure::bad_request("type is missing")),
    }
}

fn size(query: &Query) -> Result<u16, Failure> {
    let text = match query.get("size") {
        None | Some("") => return Ok(0),
        Some(text) => text,
    };
    let size = text.parse().ok().filter(|size| *size <= MAX_PING_SIZE);
    size.ok_or_else(|| {
        Failure::bad_request(format!(
            "size {text:?} is not a number of bytes up to {MAX_PING_SIZE}"
        ))
    })
}
