//! TSMP rejects: a peer whose request for a connection the filter dropped is told so, through the tunnel
//! (protocol/disco.md §14, protocol/filter.md §11), and need not wait for a time-out to know.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::{Direction, DropReason, Dropped};
use disco_proto::tsmp::{Message, Reason, Reject};
use packet::protocol;

use tokio::sync::broadcast::error::RecvError;

use super::Reports;
use super::tsmp::{Rates, Tsmp};

/// Rejects in a second: as many as one CPU's programs report.
const A_SECOND: u32 = 64;
/// At most one line in the log for so long.
const QUIET: Duration = Duration::from_secs(60);

/// Answers what `reports` tells of connections that were refused. Ends with the reports.
pub(super) async fn run(tsmp: Tsmp, reports: Reports) {
    let mut refused = reports.listen_to_refused();
    let mut rate = Rates::new(A_SECOND);
    let mut complained: Option<Instant> = None;
    loop {
        let dropped = match refused.recv().await {
            Ok(dropped) => dropped,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let now = Instant::now();
        let Some((from, to, reject)) = reject(&dropped).filter(|_| rate.allows((), now)) else {
            continue;
        };
        if let Err(error) = tsmp.send(from, to, &Message::Reject(reject))
            && complained.is_none_or(|at| now.duration_since(at) >= QUIET)
        {
            complained = Some(now);
            tracing::warn!(%error, "a peer is not told that it was refused");
        }
    }
}

/// What to tell the sender of a dropped packet, and from where to where: something only for IPv4 TCP that asks
/// for a connection, as the official client does. Pure.
fn reject(dropped: &Dropped) -> Option<(IpAddr, IpAddr, Reject)> {
    let Some([SocketAddr::V4(source), SocketAddr::V4(destination)]) = dropped.addresses else {
        return None;
    };
    let asks = dropped.opens && dropped.protocol == protocol::TCP;
    if !asks || dropped.direction != Direction::In {
        return None;
    }
    let reject = Reject {
        protocol: protocol::TCP,
        reason: match dropped.reason {
            DropReason::ShieldsUp | DropReason::Jailed => Reason::ShieldsUp,
            _ => Reason::Filter,
        },
        source_port: source.port(),
        destination_port: destination.port(),
        maybe_broken: false,
    };
    let (from, to) = (*destination.ip(), *source.ip());
    Some((from.into(), to.into(), reject))
}

#[cfg(test)]
mod tests {
    use dataplane::boot_clock;

    use super::*;

    fn dropped(source: &str, destination: &str, reason: DropReason) -> Dropped {
        Dropped {
            at: boot_clock(),
            generation: 1,
            direction: Direction::In,
            reason,
            addresses: Some([source, destination].map(|end| end.parse().unwrap())),
            protocol: protocol::TCP,
            opens: true,
            peer: None,
        }
    }

    #[test]
    fn a_refused_connection_is_answered_from_its_destination() {
        let told = dropped("100.64.0.2:40000", "100.64.0.1:22", DropReason::NoRule);
        let (from, to, told) = reject(&told).unwrap();
        assert_eq!(from, IpAddr::from([100, 64, 0, 1]));
        assert_eq!(to, IpAddr::from([100, 64, 0, 2]));
        let bytes = Message::Reject(told).encode();
        assert_eq!(bytes, [b'!', 6, b'A', 0x9c, 0x40, 0, 22]);
        let told = dropped("100.64.0.2:40000", "100.64.0.1:22", DropReason::ShieldsUp);
        assert_eq!(reject(&told).unwrap().2.reason, Reason::ShieldsUp);
    }

    #[test]
    fn nothing_else_is_answered() {
        let told = dropped("100.64.0.2:1", "100.64.0.1:22", DropReason::NoRule);
        let cases = [
            dropped("[fd7a::2]:1", "[fd7a::1]:22", DropReason::NoRule),
            Dropped {
                direction: Direction::Out,
                ..told
            },
            Dropped {
                opens: false,
                ..told
            },
            Dropped {
                protocol: 17,
                ..told
            },
        ];
        for told in cases {
            assert_eq!(reject(&told), None, "{told:?}");
        }
    }
}
