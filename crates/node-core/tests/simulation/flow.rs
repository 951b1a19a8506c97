//! Requests in one direction, each of which is replied to, and how long none was.

use std::time::Duration;

/// A flow between two nodes.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) interval: Duration,
    pub(crate) running: bool,
    pub(crate) requests: u64,
    pub(crate) replies: u64,
    last_reply: Duration,
    /// Silence before this is nobody's fault.
    excused: Duration,
    /// Longest time without a reply, excused times aside, and when it ended.
    pub(crate) longest: (Duration, Duration),
    /// When requests first went straight both ways.
    pub(crate) direct_after: Option<Duration>,
    began: Duration,
}

impl Flow {
    pub(crate) fn new(now: Duration, from: usize, to: usize, interval: Duration) -> Self {
        Self {
            from,
            to,
            interval,
            running: true,
            requests: 0,
            replies: 0,
            last_reply: now,
            excused: Duration::ZERO,
            longest: (Duration::ZERO, now),
            direct_after: None,
            began: now,
        }
    }

    /// It runs again after a rest.
    pub(crate) fn resume(&mut self, now: Duration) {
        self.running = true;
        self.last_reply = now;
    }

    /// No silence up to then counts; what was before still does.
    pub(crate) fn excuse(&mut self, now: Duration, until: Duration) {
        self.settle(now);
        self.excused = self.excused.max(until);
    }

    /// Takes a reply; `direct` says that both ways go straight.
    pub(crate) fn replied(&mut self, now: Duration, direct: bool) {
        self.replies += 1;
        self.settle(now);
        self.last_reply = now;
        if direct && self.direct_after.is_none() {
            self.direct_after = Some(now - self.began);
        }
    }

    /// Counts a silence that has not ended.
    pub(crate) fn settle(&mut self, now: Duration) {
        if self.running {
            let since = self.last_reply.max(self.excused);
            let silent = now.saturating_sub(since);
            self.longest = self.longest.max((silent, now));
        }
    }
}
