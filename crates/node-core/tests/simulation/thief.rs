//! Somebody on the way who repeats what he saw, from wherever he likes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::SECOND;
use crate::net::Flight;
use crate::random::Random;

/// Sources that he remembers, to send in their names.
const REMEMBERED: usize = 16;
/// He keeps what he repeats for up to so long, in milliseconds.
const KEPT_MS: u32 = 30_000;
/// Addresses of his own.
const OWN: u16 = 40;

/// He reads nothing and makes up nothing: all is sealed.
#[derive(Debug, Default)]
pub(crate) struct Thief {
    /// Of a thousand datagrams, so many are repeated.
    pub(crate) repeats: u32,
    sources: VecDeque<SocketAddr>,
}

impl Thief {
    /// How much longer things may take: one more heartbeat, until it is clear whose an address is that he sends from.
    pub(crate) fn patience(&self) -> Duration {
        SECOND * if self.repeats == 0 { 0 } else { 3 }
    }

    /// Sees a datagram on the internet; returns its repetition, and in how long.
    pub(crate) fn sees(
        &mut self,
        random: &mut Random,
        mut flight: Flight,
    ) -> Option<(Duration, Flight)> {
        if self.repeats == 0 {
            return None;
        }
        if !self.sources.contains(&flight.from) {
            self.sources.push_back(flight.from);
            if self.sources.len() > REMEMBERED {
                self.sources.pop_front();
            }
        }
        if !random.per_mille(self.repeats) {
            return None;
        }
        flight.from = match random.below(3) {
            0 => SocketAddr::from((
                [198, 51, 100, 66],
                1 + u16::try_from(random.below(OWN.into())).unwrap(),
            )),
            1 => flight.from,
            _ => self.sources[random.index(self.sources.len())],
        };
        Some((random.millis(0, KEPT_MS), flight))
    }
}
