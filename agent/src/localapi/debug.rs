//! `debug-drops` and `debug-rules`: what the packet filter drops, and which rules admit what.

use std::convert::Infallible;
use std::time::SystemTime;

use bytes::Bytes;
use control_proto::Timestamp;
use dataplane::Dropped;
use futures_util::{Stream, stream};
use hyper::body::Frame;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::types::{DroppedPacket, RuleHits};
use crate::engine::{Handle, Refusal, Snapshot};
use crate::net::filter::direction_name;

/// One line of JSON for each dropped packet, until the asker goes.
pub(super) async fn drops(
    engine: &Handle,
) -> Result<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + use<>, Refusal> {
    let snapshot = engine.snapshot().await?;
    let reports = engine.drop_reports().await?.listen();
    Ok(stream::unfold(
        (reports, snapshot),
        |(mut reports, snapshot)| async move {
            let dropped = next(&mut reports).await?;
            let mut line = serde_json::to_vec(&report(&dropped, &snapshot)).ok()?;
            line.push(b'\n');
            Some((Ok(Frame::data(Bytes::from(line))), (reports, snapshot)))
        },
    ))
}

/// Every rule of the network map with what it has admitted.
pub(super) async fn rules(engine: &Handle) -> Result<Vec<RuleHits>, Refusal> {
    let snapshot = engine.snapshot().await?;
    let hits = engine.rule_hits().await?;
    let rules = snapshot.map.iter().flat_map(|map| map.packet_filter());
    Ok((0..)
        .zip(rules)
        .map(|(number, rule)| {
            let count = hits.get(&number).copied().unwrap_or_default();
            RuleHits {
                rule: number,
                sources: rule.src_ips.clone(),
                destinations: rule
                    .dst_ports
                    .iter()
                    .map(|to| match (to.ports.first, to.ports.last) {
                        (0, u16::MAX) => format!("{}:*", to.ip),
                        (first, last) if first == last => format!("{}:{first}", to.ip),
                        (first, last) => format!("{}:{first}-{last}", to.ip),
                    })
                    .collect(),
                protocols: rule.ip_proto.clone(),
                packets: count.packets,
                bytes: count.bytes,
            }
        })
        .collect())
}

async fn next(reports: &mut Receiver<Dropped>) -> Option<Dropped> {
    loop {
        match reports.recv().await {
            Ok(dropped) => return Some(dropped),
            // The asker was too slow for some.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

fn report(dropped: &Dropped, snapshot: &Snapshot) -> DroppedPacket {
    let age = dataplane::boot_clock().saturating_sub(dropped.at);
    let at = SystemTime::now()
        .checked_sub(age)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let theirs = dropped.addresses.map(|[src, dst]| match dropped.direction {
        dataplane::Direction::In => src,
        dataplane::Direction::Out => dst,
    });
    let peer = theirs.and_then(|end| snapshot.node_by_ip(end.ip()));
    DroppedPacket {
        time: Timestamp::from(at).to_string(),
        direction: direction_name(dropped.direction).to_owned(),
        reason: dropped.reason.name().to_owned(),
        why: dropped.why().to_owned(),
        protocol: dropped.protocol,
        src: dropped.addresses.map(|[src, _]| src.to_string()),
        dst: dropped.addresses.map(|[_, dst]| dst.to_string()),
        peer: peer.map(|peer| peer.label().to_owned()),
    }
}
