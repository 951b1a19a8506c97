//! Frames waiting to be written to one relay: bounded, drops the oldest, hands all out at once.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use derp_proto::{Frame, PACKET_HEADER_LEN};
use keys::NodePublic;
use tokio::sync::Notify;

/// Most packets that wait.
const MAX_PACKETS: usize = 256;
/// Most bytes of packets that wait.
const MAX_BYTES: usize = 512 << 10;
/// Most bytes of control frames (pongs, home notes) that wait.
const MAX_CONTROL_BYTES: usize = 4 << 10;

/// A write queue that many tasks fill and one drains.
///
/// Packets are encoded as they come, so that the writer hands one buffer to TLS.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    control: Vec<u8>,
    bytes: Vec<u8>,
    /// Where the oldest packet's frame begins in `bytes`.
    start: usize,
    /// Length of each packet's frame, oldest first.
    frames: VecDeque<usize>,
    /// When a packet last came.
    pushed: Option<Instant>,
    dropped: u64,
}

impl Pending {
    fn push(&mut self, destination: NodePublic, packet: &[u8]) {
        let len = PACKET_HEADER_LEN + packet.len();
        while self.frames.len() >= MAX_PACKETS
            || (self.bytes.len() - self.start + len > MAX_BYTES && !self.frames.is_empty())
        {
            let oldest = self.frames.pop_front().unwrap_or(0);
            self.start += oldest;
            self.dropped += 1;
        }
        if self.start > MAX_BYTES {
            let start = std::mem::take(&mut self.start);
            self.bytes.drain(..start);
        }
        let frame = Frame::SendPacket {
            destination,
            packet,
        };
        frame.encode(&mut self.bytes);
        self.frames.push_back(len);
    }
}

impl Queue {
    /// Appends packets for one peer; drops the oldest ones if there is no room.
    pub(super) fn push_packets<'a>(
        &self,
        destination: NodePublic,
        packets: impl IntoIterator<Item = &'a [u8]>,
    ) {
        let mut pending = self.lock();
        pending.pushed = Some(Instant::now());
        for packet in packets {
            pending.push(destination, packet);
        }
        drop(pending);
        self.wake.notify_one();
    }

    /// Appends a control frame; drops it if too many wait already.
    pub(super) fn push_control(&self, frame: Frame<'_>) {
        let mut pending = self.lock();
        if pending.control.len() < MAX_CONTROL_BYTES {
            frame.encode(&mut pending.control);
        }
        drop(pending);
        self.wake.notify_one();
    }

    /// Waits for frames and moves all of them into `out`, which must be empty.
    pub(super) async fn take(&self, out: &mut Vec<u8>) {
        loop {
            // Register before looking, or a push in between is slept over.
            let woken = self.wake.notified();
            if self.try_take(out) {
                return;
            }
            woken.await;
        }
    }

    /// True if nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        let pending = self.lock();
        pending.frames.is_empty() && pending.control.is_empty()
    }

    /// True if a packet came within the last `time`.
    pub(super) fn is_fresh(&self, time: Duration) -> bool {
        self.lock().pushed.is_some_and(|at| at.elapsed() < time)
    }

    /// Drops the packets that wait.
    pub(super) fn clear_packets(&self) {
        let mut pending = self.lock();
        pending.dropped += pending.frames.len() as u64;
        pending.bytes.clear();
        pending.frames.clear();
        pending.start = 0;
    }

    /// Forgets the control frames that wait: they were meant for a connection that is gone.
    pub(super) fn clear_control(&self) {
        self.lock().control.clear();
    }

    /// Counts packets that were taken and then not sent.
    pub(super) fn note_dropped(&self, count: u64) {
        self.lock().dropped += count;
    }

    /// Packets dropped so far because the relay was too slow, not there, or allows no more.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn try_take(&self, out: &mut Vec<u8>) -> bool {
        let mut pending = self.lock();
        if pending.frames.is_empty() && pending.control.is_empty() {
            return false;
        }
        out.append(&mut pending.control);
        if out.is_empty() && pending.start == 0 {
            std::mem::swap(out, &mut pending.bytes);
        } else {
            let start = pending.start;
            out.extend_from_slice(&pending.bytes[start..]);
            pending.bytes.clear();
        }
        pending.start = 0;
        pending.frames.clear();
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use derp_proto::{RawFrame, split_frame};

    fn frames(mut bytes: &[u8]) -> Vec<u8> {
        let mut firsts = Vec::new();
        while let Some(raw) = split_frame(bytes).unwrap() {
            match Frame::parse(raw).unwrap() {
                Frame::SendPacket { packet, .. } => firsts.push(packet[0]),
                _ => firsts.push(0xff),
            }
            bytes = &bytes[RawFrame::wire_len(&raw)..];
        }
        assert!(bytes.is_empty());
        firsts
    }

    #[tokio::test]
    async fn frames_leave_in_one_buffer_control_first() {
        let queue = Queue::default();
        let peer = NodePublic::from_bytes([1; 32]);
        queue.push_packets(peer, [&[1; 100][..]]);
        queue.push_packets(peer, [&[2; 50][..]]);
        queue.push_control(Frame::Pong([0; 8]));

        let mut out = Vec::new();
        queue.take(&mut out).await;

        assert_eq!(frames(&out), [0xff, 1, 2]);
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn the_oldest_packets_are_dropped() {
        let queue = Queue::default();
        let peer = NodePublic::from_bytes([1; 32]);
        for number in 0..(MAX_PACKETS + 3) {
            queue.push_packets(peer, [&[number as u8; 1000][..]]);
        }

        let mut out = Vec::new();
        queue.take(&mut out).await;

        let left = frames(&out);
        assert_eq!(left.len(), MAX_PACKETS);
        assert_eq!(left[0], 3);
        assert_eq!(queue.dropped(), 3);
    }

    #[test]
    fn a_queue_that_nobody_drains_stays_bounded() {
        let queue = Queue::default();
        let peer = NodePublic::from_bytes([1; 32]);
        for _ in 0..5_000 {
            queue.push_packets(peer, [&[0; 8_000][..]]);
        }
        let pending = queue.lock();
        assert!(pending.bytes.len() - pending.start <= MAX_BYTES);
        assert!(pending.bytes.capacity() <= 4 * MAX_BYTES);
    }
}
