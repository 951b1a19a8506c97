//! What was measured: [`Round`], and the middle of several.

use serde::Serialize;

/// What one engine did in one round.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Round {
    /// Payload in one stream of TCP, Mbit/s.
    pub(super) tcp_mbit: f64,
    /// CPU seconds of the whole host for a GB of that: both ends, and sending and receiving.
    pub(super) cpu_s_per_gb: f64,
    /// Thousands of small packets a second that came out, when more than it can carry went in.
    pub(super) small_kpps: f64,
    /// Round trip without other traffic, milliseconds: median.
    pub(super) idle_ms: f64,
    /// Round trip beside a stream of TCP, milliseconds: median.
    pub(super) loaded_ms: f64,
    /// Resident memory of the process at an end after all that, MiB.
    pub(super) resident_mib: f64,
}

/// One figure: its heading, and where it stands.
pub(super) type Column = (&'static str, fn(&Round) -> f64);

/// All figures, as tables show them.
pub(super) const COLUMNS: [Column; 6] = [
    ("TCP, 1 stream, Mbit/s", |round| round.tcp_mbit),
    ("CPU s a GB, both ends", |round| round.cpu_s_per_gb),
    ("64-byte packets, kpps", |round| round.small_kpps),
    ("ping, idle, ms", |round| round.idle_ms),
    ("ping, beside TCP, ms", |round| round.loaded_ms),
    ("process, MiB", |round| round.resident_mib),
];

/// Of each figure the middle one.
pub(super) fn medians(rounds: &[Round]) -> Round {
    let middle = |get: fn(&Round) -> f64| middle(&rounds.iter().map(get).collect::<Vec<_>>());
    Round {
        tcp_mbit: middle(|round| round.tcp_mbit),
        cpu_s_per_gb: middle(|round| round.cpu_s_per_gb),
        small_kpps: middle(|round| round.small_kpps),
        idle_ms: middle(|round| round.idle_ms),
        loaded_ms: middle(|round| round.loaded_ms),
        resident_mib: middle(|round| round.resident_mib),
    }
}

/// The value in the middle; not a number if there is none.
pub(super) fn middle(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
