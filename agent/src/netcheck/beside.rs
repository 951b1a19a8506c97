//! What a check does beside STUN: HTTPS and ICMP where UDP does not get through, and the look for a captive portal.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use netlink::rules::UNDERLAY_MARK;
use node_core::derp::{Address, Node, Region};
use node_core::{DerpMap, RegionId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::Report;
use crate::derp::{host_header, open_tls};
use crate::icmp;
use crate::underlay::connect_tcp;

/// Time for one HTTPS probe.
const HTTPS_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for an ICMP echo.
const ICMP_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for one question about a captive portal, and how many are asked at once.
const PORTAL_TIMEOUT: Duration = Duration::from_secs(3);
const PORTAL_QUESTIONS: usize = 5;
/// Longest answer to an HTTP probe that is read.
const MAX_RESPONSE_LEN: usize = 4 << 10;
const MAX_HEADERS: usize = 64;

/// Measures the first node of each region by HTTPS and by ICMP, and puts what is found into `report`.
pub(super) async fn measure(regions: &[&Region], report: &mut Report) {
    let (https, icmp) = tokio::join!(measure_https(regions), measure_icmp(regions));
    report.v4 = https;
    report.icmp_v4 = Some(!icmp.is_empty());
    // Nearer the truth: no program has to answer.
    report.v4.extend(icmp);
}

async fn measure_icmp(regions: &[&Region]) -> BTreeMap<RegionId, Duration> {
    let probes = regions.iter().map(async |region| {
        let address = region.nodes.iter().find_map(fixed_v4)?;
        let echo = move || icmp::ping(IpAddr::V4(address), UNDERLAY_MARK, ICMP_TIMEOUT);
        match tokio::task::spawn_blocking(echo).await {
            Ok(Ok(latency)) => latency.map(|latency| (region.id, latency)),
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "no ICMP");
                None
            }
            Err(error) => {
                tracing::debug!(%error, "an ICMP probe ended early");
                None
            }
        }
    });
    join_all(probes).await.into_iter().flatten().collect()
}

fn fixed_v4(node: &Node) -> Option<Ipv4Addr> {
    match node.ipv4 {
        Address::Fixed(address) => Some(address),
        Address::Disabled | Address::Resolve => None,
    }
}

/// Whether somebody else answers for the relays that serve plain HTTP; `None` if none of them was reached.
pub(super) async fn find_portal(map: &DerpMap) -> Option<bool> {
    let nodes = map.regions.values().flat_map(|region| &region.nodes);
    let asked = nodes.filter(|node| node.http).filter_map(|node| {
        let address = SocketAddr::from((fixed_v4(node)?, 80));
        Some(async move {
            let asked = timeout(PORTAL_TIMEOUT, is_clean(address, &node.host)).await;
            match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(clean) => Some(clean),
                Err(error) => {
                    tracing::debug!(node = node.name, %error, "not asked about a captive portal");
                    None
                }
            }
        })
    });
    let answers = join_all(asked.take(PORTAL_QUESTIONS)).await;
    let answers: Vec<bool> = answers.into_iter().flatten().collect();
    (!answers.is_empty()).then(|| answers.contains(&false))
}

/// Asks for nothing with a word that only a relay gives back.
async fn is_clean(address: SocketAddr, host: &str) -> io::Result<bool> {
    let mut stream = connect_tcp(address).await?;
    let request = format!(
        "GET /generate_204 HTTP/1.1\r\nHost: {}\r\nX-Tailscale-Challenge: ts_{host}\r\nConnection: close\r\n\r\n",
        address.ip()
    );
    stream.write_all(request.as_bytes()).await?;
    let response = read_until(&mut stream, b"\r\n\r\n").await?;
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    // What is no HTTP is no relay's either.
    let whole = matches!(parsed.parse(&response), Ok(httparse::Status::Complete(_)));
    let expected = format!("response ts_{host}");
    let is_echo = |header: &httparse::Header<'_>| {
        header.name.eq_ignore_ascii_case("X-Tailscale-Response")
            && header.value.eq_ignore_ascii_case(expected.as_bytes())
    };
    Ok(whole && parsed.code == Some(204) && parsed.headers.iter().any(is_echo))
}

/// Reads until `mark` has come, or the end, or more than an answer may have.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), mark: &[u8]) -> io::Result<Vec<u8>> {
    let mut response = Vec::new();
    let done = |response: &[u8]| response.windows(mark.len()).any(|window| window == mark);
    while !done(&response) && response.len() < MAX_RESPONSE_LEN {
        if stream.read_buf(&mut response).await? == 0 {
            break;
        }
    }
    Ok(response)
}

/// Measures the first DERP node of each region by an HTTPS request, connection set-up not counted.
async fn measure_https(regions: &[&Region]) -> BTreeMap<RegionId, Duration> {
    let probes = regions.iter().map(async |region| {
        let latency = timeout(HTTPS_TIMEOUT, probe_https(region)).await.ok()??;
        Some((region.id, latency))
    });
    join_all(probes).await.into_iter().flatten().collect()
}

async fn probe_https(region: &Region) -> Option<Duration> {
    let node = region.nodes.iter().find(|node| !node.stun_only)?;
    match try_probe_https(node).await {
        Ok(latency) => Some(latency),
        Err(error) => {
            tracing::debug!(node = node.name, %error, "HTTPS probe failed");
            None
        }
    }
}

async fn try_probe_https(node: &Node) -> io::Result<Duration> {
    let mut stream = open_tls(node).await.map_err(io::Error::other)?;
    let request = format!(
        "GET /derp/latency-check HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        host_header(node)
    );
    let start = Instant::now();
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let response = read_until(&mut stream, b"\r\n").await?;
    let latency = start.elapsed();
    if response.starts_with(b"HTTP/1.1 200") {
        Ok(latency)
    } else {
        Err(io::Error::other("the relay did not answer 200"))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `answer`.
    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn only_the_word_itself_with_nothing_is_a_relays_answer() {
        for (answer, clean) in [
            (
                "HTTP/1.1 204 No Content\r\nX-Tailscale-Response: response ts_derp.example\r\n\r\n",
                true,
            ),
            (
                "HTTP/1.1 204 No Content\r\nx-tailscale-response: response ts_other\r\n\r\n",
                false,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", false),
            (
                "HTTP/1.1 200 OK\r\nX-Tailscale-Response: response ts_derp.example\r\n\r\nPay",
                false,
            ),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://pay.example/\r\n\r\n",
                false,
            ),
            ("", false),
        ] {
            let address = answering(answer).await;
            assert_eq!(
                is_clean(address, "derp.example").await.unwrap(),
                clean,
                "{answer}"
            );
        }
    }
}
