//! What a relay lets this node send: the token bucket of its ServerInfo (protocol/derp.md §4), sans-IO.

use std::time::Instant;

use derp_proto::{ServerInfo, kind, split_frame};

/// Tokens are bytes of whole frames; they come back at a steady rate, up to the burst.
#[derive(Debug)]
pub(super) struct Bucket {
    bytes_per_second: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// Takes the limit out of `info`; `None` if the relay sets none.
    #[expect(
        clippy::cast_precision_loss,
        reason = "rates beyond 2^53 bytes per second are none"
    )]
    pub(super) fn new(info: &ServerInfo, now: Instant) -> Option<Self> {
        if info.bytes_per_second == 0 || info.bytes_burst == 0 {
            return None;
        }
        let burst = info.bytes_burst as f64;
        Some(Self {
            bytes_per_second: info.bytes_per_second as f64,
            burst,
            tokens: burst,
            filled: now,
        })
    }

    /// Takes the packets beyond the limit out of `frames`, whole frames as they go to the relay;
    /// returns how many. Other frames stay.
    pub(super) fn limit(&mut self, frames: &mut Vec<u8>, now: Instant) -> u64 {
        let mut dropped = 0;
        let mut kept = 0;
        let mut at = 0;
        while let Ok(Some(raw)) = split_frame(&frames[at..]) {
            let (kind, len) = (raw.kind, raw.wire_len());
            if kind != kind::SEND_PACKET || self.allows(len, now) {
                frames.copy_within(at..at + len, kept);
                kept += len;
            } else {
                dropped += 1;
            }
            at += len;
        }
        frames.truncate(kept);
        dropped
    }

    #[expect(clippy::cast_precision_loss, reason = "a frame has at most a mebibyte")]
    fn allows(&mut self, len: usize, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.tokens = (self.tokens + elapsed * self.bytes_per_second).min(self.burst);
        let allowed = self.tokens >= len as f64;
        if allowed {
            self.tokens -= len as f64;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use derp_proto::{Frame, PACKET_HEADER_LEN};
    use keys::NodePublic;

    use super::*;

    fn info(bytes_per_second: u64, bytes_burst: u64) -> ServerInfo {
        ServerInfo {
            bytes_per_second,
            bytes_burst,
            ..ServerInfo::unlimited()
        }
    }

    /// Packets of 1000 bytes on the wire, numbered, behind a control frame.
    fn frames(count: u8) -> Vec<u8> {
        let mut out = Vec::new();
        Frame::Pong([7; 8]).encode(&mut out);
        for number in 0..count {
            Frame::SendPacket {
                destination: NodePublic::from_bytes([1; 32]),
                packet: &vec![number; 1000 - PACKET_HEADER_LEN],
            }
            .encode(&mut out);
        }
        out
    }

    fn numbers(mut frames: &[u8]) -> Vec<u8> {
        let mut numbers = Vec::new();
        while let Some(raw) = split_frame(frames).unwrap() {
            match Frame::parse(raw).unwrap() {
                Frame::SendPacket { packet, .. } => numbers.push(packet[0]),
                other => assert_eq!(other, Frame::Pong([7; 8])),
            }
            frames = &frames[raw.wire_len()..];
        }
        assert!(frames.is_empty());
        numbers
    }

    #[test]
    fn a_relay_without_both_numbers_sets_no_limit() {
        let now = Instant::now();
        for info in [ServerInfo::unlimited(), info(5, 0), info(0, 5)] {
            assert!(Bucket::new(&info, now).is_none(), "{info:?}");
        }
    }

    #[test]
    fn what_exceeds_the_burst_is_dropped_and_the_rate_brings_room_again() {
        let start = Instant::now();
        let mut bucket = Bucket::new(&info(2000, 3000), start).unwrap();

        let mut out = frames(5);
        assert_eq!(bucket.limit(&mut out, start), 2);
        assert_eq!(numbers(&out), [0, 1, 2]);

        let mut out = frames(5);
        assert_eq!(bucket.limit(&mut out, start + Duration::from_secs(1)), 3);
        assert_eq!(numbers(&out), [0, 1]);

        let mut out = frames(5);
        assert_eq!(bucket.limit(&mut out, start + Duration::from_secs(60)), 2);
        assert_eq!(numbers(&out), [0, 1, 2]);
    }

    #[test]
    fn a_control_frame_passes_an_empty_bucket() {
        let start = Instant::now();
        let mut bucket = Bucket::new(&info(1, 1), start).unwrap();
        let mut out = frames(1);
        assert_eq!(bucket.limit(&mut out, start), 1);
        assert_eq!(out, frames(0));
    }
}
