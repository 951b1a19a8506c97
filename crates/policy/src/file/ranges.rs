//! Sets of numbers as ranges: what IP sets are evaluated with. Every operation takes logarithmic
//! time, so that a file full of additions and removals does not take quadratic time.

use std::collections::BTreeMap;

/// Disjoint ranges that do not touch: first number to last number.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Ranges(BTreeMap<u128, u128>);

impl Ranges {
    /// Adds `first..=last`.
    pub(super) fn add(&mut self, mut first: u128, mut last: u128) {
        if let Some((begin, end)) = self.before(first)
            && end.saturating_add(1) >= first
        {
            (first, last) = (begin, last.max(end));
        }
        while let Some((begin, end)) = self.0.range(first..=last.saturating_add(1)).next() {
            let (begin, end) = (*begin, *end);
            last = last.max(end);
            self.0.remove(&begin);
        }
        self.0.insert(first, last);
    }

    /// Removes `first..=last`.
    pub(super) fn remove(&mut self, first: u128, last: u128) {
        if let Some((begin, end)) = self.before(first)
            && end >= first
        {
            self.0.insert(begin, first - 1);
            self.keep_behind(last, end);
        }
        while let Some((begin, end)) = self.0.range(first..=last).next() {
            let (begin, end) = (*begin, *end);
            self.0.remove(&begin);
            self.keep_behind(last, end);
        }
    }

    /// The ranges, sorted.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u128, u128)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// The last range that begins before `number`.
    fn before(&self, number: u128) -> Option<(u128, u128)> {
        self.0
            .range(..number)
            .next_back()
            .map(|(first, last)| (*first, *last))
    }

    /// Restores what a range that ended at `end` has behind `last`.
    fn keep_behind(&mut self, last: u128, end: u128) {
        if end > last {
            self.0.insert(last + 1, end);
        }
    }
}
