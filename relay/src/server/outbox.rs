//! What waits to be written to one client: bounded, oldest out first.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use std::time::Instant;

use bytes::{Buf as _, Bytes};
use derp_proto::split_frame;

use crate::metrics::QueueTimes;

/// Most disco bytes that wait for one client; some 500 messages.
const DISCO_LIMIT: usize = 64 << 10;

/// Most control frames (PeerGone, PeerPresent) that wait for one client.
const CONTROL_LIMIT: usize = 64 << 10;

/// What a run of packets is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Class {
    /// Path discovery: small, and first in line, so that a saturated relay can still be left.
    Disco,
    /// Everything else.
    Data,
}

/// What became of a run of packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pushed {
    /// It waits; so many older packets had to go.
    Queued {
        /// Packets that had waited longest.
        dropped: u64,
    },
    /// The connection is closing.
    Closed,
}

/// What the connection gets to write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Taken {
    /// There is something.
    Some,
    /// Somebody closed the connection.
    Closed,
}

/// The queues of one client, filled by other clients' tasks and emptied by its own.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    times: Option<QueueTimes>,
}

#[derive(Debug)]
struct State {
    control: VecDeque<Bytes>,
    disco: Lane,
    data: Lane,
    closed: bool,
    waker: Option<Waker>,
}

/// Whole frames, several to a slice, bounded by bytes.
#[derive(Debug)]
struct Lane {
    /// Each with when it came.
    runs: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    limit: usize,
}

impl Outbox {
    /// An empty outbox that holds at most `data_limit` bytes of data.
    pub(crate) fn new(data_limit: usize) -> Self {
        let lane = |limit| Lane {
            runs: VecDeque::new(),
            bytes: 0,
            limit,
        };
        Self {
            state: Mutex::new(State {
                control: VecDeque::new(),
                disco: lane(DISCO_LIMIT),
                data: lane(data_limit),
                closed: false,
                waker: None,
            }),
            times: None,
        }
    }

    /// With how long packets wait told to `times`.
    pub(crate) fn timed(self, times: QueueTimes) -> Self {
        Self {
            times: Some(times),
            ..self
        }
    }

    /// Adds whole frames of packets of one class, dropping the oldest where there is no room.
    pub(crate) fn push_packets(&self, class: Class, frames: Bytes) -> Pushed {
        let now = Instant::now();
        let mut state = self.lock();
        if state.closed {
            return Pushed::Closed;
        }
        let dropped = match class {
            Class::Disco => state.disco.push(now, frames),
            Class::Data => state.data.push(now, frames),
        };
        wake(state);
        Pushed::Queued { dropped }
    }

    /// Adds whole frames of the relay's own; a client that lets too many wait is closed.
    pub(crate) fn push_control(&self, frames: Bytes) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if state.control.len() < CONTROL_LIMIT {
            state.control.push_back(frames);
        } else {
            state.closed = true;
        }
        wake(state);
    }

    /// Makes the connection end.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        wake(state);
    }

    /// Moves up to about `max` bytes to `into`: control first, then disco, then data.
    ///
    /// Pending registers the task for the next push or close.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        into: &mut VecDeque<Bytes>,
        max: usize,
    ) -> Poll<Taken> {
        let mut state = self.lock();
        if state.closed {
            return Poll::Ready(Taken::Closed);
        }
        let State {
            control,
            disco,
            data,
            ..
        } = &mut *state;
        let (mut taken, mut now) = (0, None);
        let mut waited = |class, since: Instant| {
            if let Some(times) = &self.times {
                let now = *now.get_or_insert_with(Instant::now);
                times.observe(class, now.saturating_duration_since(since));
            }
        };
        while taken < max {
            let run = if let Some(run) = control.pop_front() {
                run
            } else if let Some((since, run)) = disco.pop() {
                waited(Class::Disco, since);
                run
            } else if let Some((since, run)) = data.pop() {
                waited(Class::Data, since);
                run
            } else {
                break;
            };
            taken += run.len();
            into.push_back(run);
        }
        if taken > 0 {
            return Poll::Ready(Taken::Some);
        }
        // Idle: give back what a burst made the queues grow to.
        control.shrink_to(0);
        disco.runs.shrink_to(0);
        data.runs.shrink_to(0);
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the connection's task, not holding the lock that it will want.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Lane {
    fn push(&mut self, now: Instant, frames: Bytes) -> u64 {
        let mut dropped = 0;
        self.bytes += frames.len();
        self.runs.push_back((now, frames));
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.runs.front_mut() else {
                break;
            };
            // Runs are made of whole frames, so this is always one of them.
            let len = match split_frame(oldest) {
                Ok(Some(frame)) => frame.wire_len(),
                Ok(None) | Err(_) => oldest.len(),
            };
            oldest.advance(len);
            self.bytes -= len;
            dropped += 1;
            if oldest.is_empty() {
                self.runs.pop_front();
            }
        }
        dropped
    }

    fn pop(&mut self) -> Option<(Instant, Bytes)> {
        let (since, run) = self.runs.pop_front()?;
        self.bytes -= run.len();
        Some((since, run))
    }
}

#[cfg(test)]
mod tests {
    use derp_proto::Frame;
    use keys::NodePublic;

    use super::*;

    fn packet(number: u8) -> Bytes {
        let mut frame = Vec::new();
        Frame::RecvPacket {
            source: NodePublic::from_bytes([1; 32]),
            packet: &[number; 63],
        }
        .encode(&mut frame);
        frame.into()
    }

    fn take(outbox: &Outbox, max: usize) -> Vec<Bytes> {
        let mut into = VecDeque::new();
        let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut into, max);
        into.into()
    }

    #[test]
    fn the_oldest_packets_go_when_there_is_no_room() {
        let outbox = Outbox::new(300);
        let run: Bytes = [packet(0), packet(1), packet(2)].concat().into();
        assert_eq!(
            outbox.push_packets(Class::Data, run),
            Pushed::Queued { dropped: 0 }
        );

        let pushed = outbox.push_packets(Class::Data, packet(3));

        assert_eq!(pushed, Pushed::Queued { dropped: 1 });
        let expected = [packet(1), packet(2), packet(3)].concat();
        assert_eq!(take(&outbox, usize::MAX).concat(), expected);
    }

    #[test]
    fn how_long_packets_waited_is_told_by_class() {
        let metrics = crate::metrics::Metrics::new();
        let outbox = Outbox::new(1 << 20).timed(metrics.queue_times.clone());
        outbox.push_packets(Class::Data, packet(1));
        outbox.push_packets(Class::Data, packet(2));
        outbox.push_packets(Class::Disco, packet(3));
        outbox.push_control(packet(4));
        assert_eq!(take(&outbox, usize::MAX).len(), 4);
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        for (kind, count) in [("data", 2), ("disco", 1)] {
            let line = format!("tailrace_relay_queue_seconds_count{{kind=\"{kind}\"}} {count}");
            assert!(text.contains(&line), "{text}");
        }
    }

    #[test]
    fn disco_and_control_pass_waiting_data() {
        let outbox = Outbox::new(1 << 20);
        outbox.push_packets(Class::Data, packet(1));
        outbox.push_packets(Class::Disco, packet(2));
        outbox.push_control(packet(3));
        assert_eq!(take(&outbox, usize::MAX), [packet(3), packet(2), packet(1)]);
    }

    #[test]
    fn a_closed_outbox_takes_nothing() {
        let outbox = Outbox::new(1 << 20);
        outbox.close();
        assert_eq!(outbox.push_packets(Class::Data, packet(1)), Pushed::Closed);
        let mut context = Context::from_waker(Waker::noop());
        let taken = outbox.poll_take(&mut context, &mut VecDeque::new(), 1);
        assert_eq!(taken, Poll::Ready(Taken::Closed));
    }

    #[test]
    fn a_take_is_bounded() {
        let outbox = Outbox::new(1 << 20);
        for number in 0..10 {
            outbox.push_packets(Class::Data, packet(number));
        }
        assert_eq!(take(&outbox, 150).len(), 2);
    }
}
