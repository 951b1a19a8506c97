//! The agent's Prometheus endpoint: what [`Snapshot`] holds at the moment of the scrape.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use dataplane::{Count, Forwarded, Origin};
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, GaugeVec, IntCounterVec, IntGauge, Opts, TextEncoder};

use crate::engine::{Handle, Snapshot};
use crate::localapi::BackendState;
use crate::net;
use crate::net::filter::direction_name;

/// Media type of the text format.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;
/// Peers with series of their own, the busiest ones; the rest is summed up as `other`.
const MAX_PEERS: usize = 256;
/// How long a scraper may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Binds the endpoint.
///
/// # Errors
///
/// What the system answered.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves `GET /metrics` until dropped.
pub async fn serve(listener: TcpListener, engine: Handle) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the metrics are not served");
            return;
        }
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the metrics address");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let engine = engine.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, engine.clone()));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "metrics connection ended");
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    engine: Handle,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = Full::new(Bytes::from_static(b"the metrics are at /metrics\n"));
        return Ok(response);
    }
    match engine.snapshot().await {
        Ok(snapshot) => {
            *response.body_mut() = Full::new(Bytes::from(render(&snapshot)));
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static(CONTENT_TYPE),
            );
        }
        Err(_) => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
    }
    Ok(response)
}

/// Writes the metrics of a snapshot in the text format.
#[must_use]
pub fn render(snapshot: &Snapshot) -> String {
    let mut text = Vec::new();
    let families = SnapshotCollector(snapshot).collect();
    match TextEncoder::new().encode(&families, &mut text) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("# {error}\n"),
    }
}

/// One scrape: nothing is counted here, so nothing can go stale.
struct SnapshotCollector<'a>(&'a Snapshot);

impl Collector for SnapshotCollector<'_> {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.families().unwrap_or_else(|error| {
            tracing::error!(%error, "metrics cannot be built");
            Vec::new()
        })
    }
}

impl SnapshotCollector<'_> {
    fn families(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let mut families = Vec::new();
        let snapshot = self.0;

        let state = GaugeVec::new(
            Opts::new("tailrace_state", "1 for the state this node is in."),
            &["state"],
        )?;
        for known in [
            BackendState::NoState,
            BackendState::NeedsLogin,
            BackendState::NeedsMachineAuth,
            BackendState::Stopped,
            BackendState::Starting,
            BackendState::Running,
        ] {
            let value = if known == snapshot.state { 1.0 } else { 0.0 };
            state.with_label_values(&[known.as_str()]).set(value);
        }
        families.extend(state.collect());

        let gauge = |name: &str, help: &str, value: i64| -> prometheus::Result<Vec<MetricFamily>> {
            let gauge = IntGauge::new(name, help)?;
            gauge.set(value);
            Ok(gauge.collect())
        };
        families.extend(gauge(
            "tailrace_control_connected",
            "1 while the coordination server answers.",
            i64::from(snapshot.control_connected),
        )?);
        families.extend(gauge(
            "tailrace_health_warnings",
            "Health warnings now; `tailrace status` shows their text.",
            i64::try_from(snapshot.health.len()).unwrap_or(i64::MAX),
        )?);
        if let Some(age) = snapshot.map_age {
            families.extend(gauge(
                "tailrace_map_age_seconds",
                "Time since the network map was last known to be right.",
                i64::try_from(age.as_secs()).unwrap_or(i64::MAX),
            )?);
        }
        families.extend(gauge(
            "tailrace_map_stale",
            "1 while the network map is the cached one of an earlier run.",
            i64::from(snapshot.map_stale),
        )?);
        if let Some(net) = &snapshot.net {
            families.extend(self.net_families(net)?);
        }
        Ok(families)
    }

    fn net_families(&self, net: &net::NetStatus) -> prometheus::Result<Vec<MetricFamily>> {
        let mut families = Vec::new();
        let engine = GaugeVec::new(
            Opts::new("tailrace_engine", "1 for the WireGuard in use."),
            &["engine", "device"],
        )?;
        engine
            .with_label_values(&[net.engine.as_str(), &net.device])
            .set(1.0);
        families.extend(engine.collect());

        families.extend(filter_families(&net.filter)?);
        families.extend(forward_families(&net.forwarded)?);
        families.extend(shield_families(&net.shield)?);
        families.extend(junk_family(&net.junk, net.port_mapping.ignored)?);
        let mapped = IntGauge::new(
            "tailrace_port_mapped",
            "1 while the router maps a port to this node.",
        )?;
        mapped.set(i64::from(net.port_mapping.external.is_some()));
        families.extend(mapped.collect());

        let relays = GaugeVec::new(
            Opts::new(
                "tailrace_derp_connected",
                "1 while the relay region is connected.",
            ),
            &["region"],
        )?;
        for relay in &net.relays {
            let value = if relay.connected { 1.0 } else { 0.0 };
            relays.with_label_values(&[&relay.code]).set(value);
        }
        families.extend(relays.collect());

        let peer_counter = |name: &str, help: &str| {
            IntCounterVec::new(Opts::new(name, help), &["peer", "direction"])
        };
        let bytes = peer_counter(
            "tailrace_peer_bytes_total",
            "Bytes exchanged with a peer, as WireGuard counts them.",
        )?;
        let packets = peer_counter(
            "tailrace_peer_packets_total",
            "Overlay packets exchanged with a peer, as the eBPF programs count them.",
        )?;
        let overlay_bytes = peer_counter(
            "tailrace_peer_overlay_bytes_total",
            "IP bytes of those packets, without the tunnel's own.",
        )?;
        let mut peers: Vec<_> = net.peers.iter().collect();
        peers.sort_by_key(|(key, peer)| (u64::MAX - (peer.rx_bytes + peer.tx_bytes), **key));
        for (rank, (key, peer)) in peers.into_iter().enumerate() {
            let name = match self.0.peer_name(key) {
                Some(name) if rank < MAX_PEERS => name,
                _ => "other".to_owned(),
            };
            bytes
                .with_label_values(&[name.as_str(), "rx"])
                .inc_by(peer.rx_bytes);
            bytes
                .with_label_values(&[name.as_str(), "tx"])
                .inc_by(peer.tx_bytes);
            if let Some(counted) = peer.overlay {
                for (direction, count, ip_bytes) in [
                    ("rx", counted.rx_packets, counted.rx_bytes),
                    ("tx", counted.tx_packets, counted.tx_bytes),
                ] {
                    let labels = [name.as_str(), direction];
                    packets.with_label_values(&labels).inc_by(count);
                    overlay_bytes.with_label_values(&labels).inc_by(ip_bytes);
                }
            }
        }
        families.extend(bytes.collect());
        families.extend(packets.collect());
        families.extend(overlay_bytes.collect());
        families.retain(|family| !family.get_metric().is_empty());
        Ok(families)
    }
}

/// Packets that this node forwards for others, of flows that the programs know.
fn forward_families(
    forwarded: &BTreeMap<(Origin, Forwarded), Count>,
) -> prometheus::Result<Vec<MetricFamily>> {
    let counter =
        |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["from", "outcome"]);
    let packets = counter(
        "tailrace_forwarded_packets_total",
        "Packets of known forwarded flows, by where they came in and what became of them.",
    )?;
    let bytes = counter(
        "tailrace_forwarded_bytes_total",
        "IP bytes of those packets.",
    )?;
    for ((origin, outcome), count) in forwarded {
        if count.packets > 0 {
            let from = match origin {
                Origin::Overlay => "peer",
                Origin::Lan => "lan",
            };
            let labels = [from, outcome.name()];
            packets.with_label_values(&labels).inc_by(count.packets);
            bytes.with_label_values(&labels).inc_by(count.bytes);
        }
    }
    Ok([packets.collect(), bytes.collect()].concat())
}

/// Datagrams to WireGuard's port that led to nothing, and such from a port mapper.
fn junk_family(junk: &net::Junk, port_mapping: u64) -> prometheus::Result<Vec<MetricFamily>> {
    let counter = IntCounterVec::new(
        Opts::new(
            "tailrace_junk_datagrams_total",
            "Datagrams that are not WireGuard's and led to nothing.",
        ),
        &["reason"],
    )?;
    let net::Junk {
        foreign,
        stun,
        unknown_sender,
        overrun,
    } = *junk;
    for (reason, count) in [
        ("foreign", foreign),
        ("stun", stun),
        ("unknown_sender", unknown_sender),
        ("overrun", overrun),
        ("port_mapping", port_mapping),
    ] {
        counter.with_label_values(&[reason]).inc_by(count);
    }
    Ok(counter.collect())
}

/// The shields of the WireGuard port.
fn shield_families(shield: &net::ShieldStatus) -> prometheus::Result<Vec<MetricFamily>> {
    let flooded = IntGauge::new(
        "tailrace_shield_flooded",
        "1 while more handshakes come than peers begin.",
    )?;
    flooded.set(i64::from(shield.flooded));
    let initiations = IntCounterVec::new(
        Opts::new(
            "tailrace_shield_initiations_total",
            "WireGuard handshake initiations from the underlay, by what became of them.",
        ),
        &["verdict"],
    )?;
    for (reason, count) in &shield.initiations {
        initiations
            .with_label_values(&[reason.name()])
            .inc_by(*count);
    }
    let families = [flooded.collect(), initiations.collect()].concat();
    Ok(if shield.devices.is_empty() {
        Vec::new()
    } else {
        families
    })
}

/// The packet filter: where it is, what it dropped.
fn filter_families(filter: &net::FilterStatus) -> prometheus::Result<Vec<MetricFamily>> {
    let place = GaugeVec::new(
        Opts::new("tailrace_filter", "1 for where packets are filtered."),
        &["place"],
    )?;
    for (known, here) in [
        ("ebpf", filter.place == net::FilterPlace::Ebpf),
        (
            "userspace",
            matches!(filter.place, net::FilterPlace::Userspace(_)),
        ),
    ] {
        place
            .with_label_values(&[known])
            .set(if here { 1.0 } else { 0.0 });
    }
    let rules = IntGauge::new("tailrace_filter_rules", "Rules that admit packets.")?;
    rules.set(i64::try_from(filter.rules).unwrap_or(i64::MAX));
    let drops = IntCounterVec::new(
        Opts::new(
            "tailrace_filter_dropped_packets_total",
            "Packets that the filter dropped, as this host sees their direction.",
        ),
        &["direction", "reason"],
    )?;
    for ((direction, reason), count) in &filter.drops {
        drops
            .with_label_values(&[direction_name(*direction), reason.name()])
            .inc_by(count.packets);
    }
    Ok([place.collect(), rules.collect(), drops.collect()].concat())
}
