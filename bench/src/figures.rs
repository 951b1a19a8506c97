//! Figures as benches take them: of several rounds, from counters of nftables, and to be held against others.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The value in the middle.
///
/// # Panics
///
/// Without values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median, the least and the most.
///
/// # Panics
///
/// Without values.
pub(crate) fn middle_and_ends(values: Vec<f64>) -> [f64; 3] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [median(values), least, most]
}

/// A figure that a later run can be held against (`cargo xtask bench --check`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Kept {
    /// Instructions: less is better.
    Icount { value: f64 },
    /// Memory: less is better.
    Memory { value: f64 },
    /// Processor time, in percent of a core: less is better.
    Cpu { value: f64 },
    /// How often ours is another's of the same round: more is better.
    Ratio { median: f64, least: f64, most: f64 },
}

/// By their names.
pub(crate) type KeptFigures = BTreeMap<String, Kept>;

impl Kept {
    /// Of the rounds' ratios.
    ///
    /// # Panics
    ///
    /// Without rounds.
    pub(crate) fn ratio(rounds: Vec<f64>) -> Self {
        let [median, least, most] = middle_and_ends(rounds);
        Self::Ratio {
            median,
            least,
            most,
        }
    }
}

/// The value below which so many of a hundred lie.
///
/// # Panics
///
/// Without values.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Packets that the first counter in a listing of `nft` has seen.
///
/// # Errors
///
/// Without a counter.
pub(crate) fn counted(listing: &str) -> Result<u64> {
    let after = listing.split("counter packets ").nth(1);
    let number = after.and_then(|text| text.split(' ').next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no counter in {listing}"))
}
