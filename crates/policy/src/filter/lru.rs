//! A table of fixed capacity that forgets what was used least recently.

use std::collections::HashMap;
use std::hash::Hash;

/// End of the list.
const NONE: usize = usize::MAX;

/// A table of fixed capacity. Entries stand in a list by use: the first was used last.
#[derive(Clone, Debug)]
pub(crate) struct Lru<K, V> {
    capacity: usize,
    slots: HashMap<K, usize>,
    entries: Vec<Entry<K, V>>,
    first: usize,
    last: usize,
}

#[derive(Clone, Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    previous: usize,
    next: usize,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    /// An empty table of `capacity` entries, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            slots: HashMap::new(),
            entries: Vec::new(),
            first: NONE,
            last: NONE,
        }
    }

    /// The value, without counting as a use.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        let slot = *self.slots.get(key)?;
        Some(&self.entries[slot].value)
    }

    /// The value, which becomes the one used last.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let slot = *self.slots.get(key)?;
        self.unlink(slot);
        self.link(slot);
        Some(&mut self.entries[slot].value)
    }

    /// Sets the value, in the place of the one used least recently if the table is full.
    pub(crate) fn put(&mut self, key: K, value: V) {
        if let Some(present) = self.get_mut(&key) {
            *present = value;
            return;
        }
        let entry = Entry {
            key,
            value,
            previous: NONE,
            next: NONE,
        };
        let slot = if self.entries.len() < self.capacity {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let slot = self.last;
            self.unlink(slot);
            self.slots.remove(&self.entries[slot].key);
            self.entries[slot] = entry;
            slot
        };
        self.slots.insert(key, slot);
        self.link(slot);
    }

    /// Takes the entry out of the list.
    fn unlink(&mut self, slot: usize) {
        let Entry { previous, next, .. } = self.entries[slot];
        match previous {
            NONE => self.first = next,
            previous => self.entries[previous].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => self.entries[next].previous = previous,
        }
    }

    /// Puts the entry first in the list.
    fn link(&mut self, slot: usize) {
        self.entries[slot].previous = NONE;
        self.entries[slot].next = self.first;
        match self.first {
            NONE => self.last = slot,
            first => self.entries[first].previous = slot,
        }
        self.first = slot;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_table_agrees_with_a_plain_list(
            capacity in 1usize..6,
            steps in prop::collection::vec((0u8..3, 0u8..10, any::<u16>()), 0..60),
        ) {
            let mut lru = Lru::new(capacity);
            let mut list: Vec<(u8, u16)> = Vec::new();
            for (step, key, value) in steps {
                let place = list.iter().position(|entry| entry.0 == key);
                match step {
                    0 => {
                        place.map(|place| list.remove(place));
                        list.insert(0, (key, value));
                        list.truncate(capacity);
                        lru.put(key, value);
                    }
                    1 => {
                        let expected = place.map(|place| list.remove(place));
                        prop_assert_eq!(lru.get_mut(&key).copied(), expected.map(|entry| entry.1));
                        list.splice(0..0, expected);
                    }
                    _ => {
                        let expected = place.map(|place| list[place].1);
                        prop_assert_eq!(lru.peek(&key).copied(), expected);
                    }
                }
            }
        }
    }
}
