//! How many connections each user may have at once: [`Slots`].
//!
//! Everybody may connect, and some requests last for ever. So one user's connections never keep another's
//! out, and nobody's keep those out who may change things.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections of one writer.
const PER_WRITER: usize = 64;
/// Connections of any other user.
const PER_READER: usize = 16;
/// Connections of all other users together: some have many user ids.
const ALL_READERS: usize = 128;

/// Counts connections by user id.
#[derive(Debug)]
pub(super) struct Slots {
    writers: BTreeSet<u32>,
    taken: Mutex<BTreeMap<u32, usize>>,
}

/// The right to one connection; given back on drop.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    uid: u32,
}

impl Slots {
    /// `writers` are the user ids that may change things.
    pub(super) fn new(writers: BTreeSet<u32>) -> Arc<Self> {
        Arc::new(Self {
            writers,
            taken: Mutex::default(),
        })
    }

    /// Whether this user may change things.
    pub(super) fn is_writer(&self, uid: u32) -> bool {
        self.writers.contains(&uid)
    }

    /// Takes a slot; `None` if this user has too many.
    pub(super) fn take(self: &Arc<Self>, uid: u32) -> Option<Slot> {
        let mut taken = self.lock();
        let own = taken.get(&uid).copied().unwrap_or_default();
        let free = if self.is_writer(uid) {
            own < PER_WRITER
        } else {
            let readers = taken.iter().filter(|(uid, _)| !self.is_writer(**uid));
            own < PER_READER && readers.map(|(_, count)| count).sum::<usize>() < ALL_READERS
        };
        free.then(|| {
            taken.insert(uid, own + 1);
            Slot {
                slots: Arc::clone(self),
                uid,
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        if let Some(count) = taken.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many slots as the user gets.
    fn exhaust(slots: &Arc<Slots>, uid: u32) -> Vec<Slot> {
        std::iter::from_fn(|| slots.take(uid)).collect()
    }

    #[test]
    fn one_user_cannot_keep_another_out() {
        let slots = Slots::new(BTreeSet::from([0]));
        let greedy = exhaust(&slots, 1000);
        assert_eq!(greedy.len(), PER_READER);
        assert!(slots.take(1001).is_some());
        assert!(slots.take(0).is_some());
    }

    #[test]
    fn many_user_ids_cannot_keep_a_writer_out() {
        let slots = Slots::new(BTreeSet::from([0]));
        let greedy: Vec<Slot> = (1000..1100).flat_map(|uid| exhaust(&slots, uid)).collect();
        assert_eq!(greedy.len(), ALL_READERS);
        assert_eq!(exhaust(&slots, 0).len(), PER_WRITER);
    }

    #[test]
    fn a_closed_connection_makes_room() {
        let slots = Slots::new(BTreeSet::new());
        let mut taken = exhaust(&slots, 1000);
        assert!(slots.take(1000).is_none());
        taken.pop();
        assert!(slots.take(1000).is_some());
        drop(taken);
        assert!(slots.lock().is_empty());
    }
}
