//! How much is done for whom in a second: [`Rates`].

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Different askers in a second; those beyond wait for the next.
const MAX_ASKERS: usize = 4096;

/// So many for each in each second, and no more.
#[derive(Debug)]
pub(in crate::net) struct Rates<K> {
    most: u32,
    began: Option<Instant>,
    used: HashMap<K, u32>,
}

impl<K: Eq + Hash> Rates<K> {
    /// At most `most` in a second.
    pub(in crate::net) fn new(most: u32) -> Self {
        Self {
            most,
            began: None,
            used: HashMap::new(),
        }
    }

    /// Whether one more is due to `asker`, which it counts.
    pub(in crate::net) fn allows(&mut self, asker: K, now: Instant) -> bool {
        let fresh = |began: Instant| now.duration_since(began) < Duration::from_secs(1);
        if !self.began.is_some_and(fresh) {
            self.began = Some(now);
            self.used.clear();
        }
        if self.used.len() >= MAX_ASKERS && !self.used.contains_key(&asker) {
            return false;
        }
        let used = self.used.entry(asker).or_default();
        *used = used.saturating_add(1);
        *used <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_asker_has_its_own_share_of_each_second() {
        let (mut rates, start) = (Rates::new(64), Instant::now());
        let allowed = |rates: &mut Rates<u8>, asker, at| {
            (0..1000).filter(|_| rates.allows(asker, at)).count()
        };
        assert_eq!(allowed(&mut rates, 1, start), 64);
        assert_eq!(allowed(&mut rates, 2, start), 64);
        assert_eq!(allowed(&mut rates, 1, start), 0);
        assert_eq!(allowed(&mut rates, 1, start + Duration::from_secs(1)), 64);
    }

    #[test]
    fn a_crowd_is_bounded() {
        let (mut rates, now) = (Rates::new(1), Instant::now());
        let allowed = (0..10_000).filter(|asker| rates.allows(*asker, now));
        assert_eq!(allowed.count(), MAX_ASKERS);
    }
}
