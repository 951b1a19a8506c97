//! Figures as benches take them: of several rounds, and from counters of nftables.

use anyhow::{Context as _, Result};

/// The value in the middle.
///
/// # Panics
///
/// Without values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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
