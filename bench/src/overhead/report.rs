//! The report: table or JSON, and how the figures stand to what was promised.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::bulk::{self, Tuning};
use super::setting::{Forwarding, Junk, Setting};
use super::{Figure, Measured};
use crate::figures::{Kept, KeptFigures};
use crate::plot::{Bars, Group};

/// Most that our whole path may cost, as a part of bare kernel WireGuard's cost and of wireguard-go's.
const TO_BARE: f64 = 1.04;
const TO_WIREGUARD_GO: f64 = 0.5;
/// Most that a round trip through our gateway may cost, as a part of what it costs with nft's masquerade,
/// and with flowtable and our filter beside it: level is what rounds of one setting differ by.
const TO_MASQUERADE: f64 = 1.0;
const TO_FLOWTABLE: f64 = 1.003;

/// Most that a junk datagram may cost after its device, as a part of what WireGuard does for a packet.
const JUNK_TO_PACKET: f64 = 0.1;

/// Prints what was measured.
///
/// # Errors
///
/// When the plot cannot be written.
pub(super) fn print(measured: &Measured, as_json: bool, plot: &Path) -> Result<()> {
    let payloads = payloads(measured);
    bars(measured, &payloads).write(plot)?;
    if as_json {
        println!("{}", to_json(measured, &payloads)?);
        return Ok(());
    }
    println!(
        "Linux {}, instructions per round trip, median of {} × {} round trips (± half of the rounds' spread)\n",
        measured.kernel,
        rounds(measured),
        measured.count
    );
    table(
        "ping, both ends alike",
        &measured.path,
        &payloads,
        Setting::Bare,
        Setting::name,
    );
    table(
        "UDP, client → router → LAN host",
        &measured.forward,
        &payloads,
        Forwarding::Kernel,
        Forwarding::name,
    );
    table(
        "one TCP stream, per KiB",
        &measured.bulk,
        &[bulk::UNIT],
        Tuning::Usual,
        Tuning::name,
    );
    table(
        "junk to WireGuard's port, per datagram",
        &measured.junk,
        &payloads,
        Junk::Ingress,
        Junk::name,
    );
    for budget in budgets(measured, &payloads) {
        println!("{budget}");
    }
    println!("\nPlot: {}", plot.display());
    Ok(())
}

/// The smallest payload, where what we add weighs most.
fn bars<'a>(measured: &Measured, payloads: &[u32]) -> Bars<'a> {
    let payload = payloads.first().copied().unwrap_or_default();
    let path = group(
        "between two nodes (ping, both ends alike)",
        (&measured.path, payload),
        Setting::Bare,
        Setting::name,
    );
    let forward = group(
        "through a gateway to its LAN (UDP)",
        (&measured.forward, payload),
        Forwarding::Kernel,
        Forwarding::name,
    );
    let bulk = group(
        "one TCP stream, per KiB, by how the overlay's device is set",
        (&measured.bulk, bulk::UNIT),
        Tuning::Usual,
        Tuning::name,
    );
    Bars {
        title: "Instructions per round trip on kernel WireGuard",
        groups: [path, forward, bulk]
            .into_iter()
            .filter(|group| !group.bars.is_empty())
            .collect(),
    }
}

fn group<'a, S: Copy + PartialEq>(
    title: &'a str,
    (figures, payload): (&[Figure<S>], u32),
    base: S,
    name: impl Fn(S) -> &'static str,
) -> Group<'a> {
    let base = median(figures, base, payload);
    let bar = |setting| {
        let found = median(figures, setting, payload)?;
        Some((
            name(setting),
            found,
            format!("{found:.0}{}", more(found, base)),
        ))
    };
    Group {
        name: title,
        bars: settings(figures).into_iter().filter_map(bar).collect(),
    }
}

/// The settings that were measured, in their order.
fn settings<S: Copy + PartialEq>(figures: &[Figure<S>]) -> Vec<S> {
    let mut settings: Vec<S> = Vec::new();
    for figure in figures {
        if !settings.contains(&figure.setting) {
            settings.push(figure.setting);
        }
    }
    settings
}

/// By how much it is more than `base`, with a blank before it.
fn more(found: f64, base: Option<f64>) -> String {
    base.map_or(String::new(), |base| {
        format!(" {:+.1} %", (found / base - 1.0) * 100.0)
    })
}

/// Payload sizes, the smallest first.
fn payloads(measured: &Measured) -> Vec<u32> {
    let path = measured.path.iter().map(|figure| figure.payload);
    let path = path.chain(measured.junk.iter().map(|figure| figure.payload));
    let mut payloads: Vec<u32> = path
        .chain(measured.forward.iter().map(|figure| figure.payload))
        .collect();
    payloads.sort_unstable();
    payloads.dedup();
    payloads
}

fn rounds(measured: &Measured) -> usize {
    let path = measured.path.iter().map(|figure| figure.rounds.len());
    let path = path.chain(measured.bulk.iter().map(|figure| figure.rounds.len()));
    let forward = measured.forward.iter().map(|figure| figure.rounds.len());
    path.chain(forward).max().unwrap_or_default()
}

/// Median of the rounds of a setting, if it was measured.
fn median<S: PartialEq>(figures: &[Figure<S>], setting: S, payload: u32) -> Option<f64> {
    let figure = figures
        .iter()
        .find(|figure| figure.setting == setting && figure.payload == payload)?;
    let sorted = sorted(&figure.rounds);
    sorted.get(sorted.len() / 2).copied()
}

fn sorted(rounds: &[f64]) -> Vec<f64> {
    let mut rounds = rounds.to_vec();
    rounds.sort_by(f64::total_cmp);
    rounds
}

/// How far the rounds of the settings that repeat lie apart, as a part of their median.
fn spread<S>(figure: &Figure<S>) -> f64 {
    let sorted = sorted(&figure.rounds);
    match (sorted.first(), sorted.last(), sorted.get(sorted.len() / 2)) {
        (Some(least), Some(most), Some(median)) => (most - least) / median,
        _ => 0.0,
    }
}

fn table<S: Copy + PartialEq>(
    title: &str,
    figures: &[Figure<S>],
    payloads: &[u32],
    base: S,
    name: impl Fn(S) -> &'static str,
) {
    if figures.is_empty() {
        return;
    }
    print!("{title:<40}");
    for payload in payloads {
        print!(" {:>26}", format!("{payload} bytes"));
    }
    println!();
    for setting in settings(figures) {
        print!("{:<40}", name(setting));
        for payload in payloads {
            let cell = figures
                .iter()
                .find(|figure| figure.setting == setting && figure.payload == *payload)
                .and_then(|figure| {
                    let found = median(figures, setting, *payload)?;
                    let more = more(found, median(figures, base, *payload));
                    let spread = spread(figure) * 100.0;
                    Some(format!("{found:.0}{more} (±{:.2} %)", spread / 2.0))
                });
            print!(" {:>26}", cell.unwrap_or_default());
        }
        println!();
    }
    println!();
}

/// What each part adds at one payload size.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Parts {
    demux: f64,
    /// Of `demux`, what chains cost that have no rule.
    hooks: f64,
    /// The agent's table without `demux`.
    firewall: f64,
    counters: f64,
    acl: f64,
}

fn parts(measured: &Measured, payload: u32) -> Option<Parts> {
    let found = |setting| median(&measured.path, setting, payload);
    let bare = found(Setting::Bare)?;
    let (counting, demux) = (found(Setting::Counters)?, found(Setting::Demux)?);
    Some(Parts {
        demux: demux - bare,
        hooks: found(Setting::Hooks)? - bare,
        firewall: found(Setting::Firewall)? - demux,
        counters: counting - bare,
        // The filter counts as well.
        acl: found(Setting::Acl1000)? - counting,
    })
}

/// Sentences that set the figures beside what was promised.
fn budgets(measured: &Measured, payloads: &[u32]) -> Vec<String> {
    let mut lines = Vec::new();
    for payload in payloads {
        let found = |setting| median(&measured.path, setting, *payload);
        let Some(ours) = found(Setting::Ours) else {
            continue;
        };
        for (other, limit) in [
            (Setting::Bare, TO_BARE),
            (Setting::WireguardGo, TO_WIREGUARD_GO),
        ] {
            let line = budget("ours", ours, (other.name(), found(other)), limit);
            lines.extend(line.map(|line| format!("{payload} bytes: {line}")));
        }
        if let Some(Parts {
            demux,
            hooks,
            firewall,
            counters,
            acl,
        }) = parts(measured, *payload)
        {
            lines.push(format!(
                "{payload} bytes: demux adds {demux:.0} (chains without rules {hooks:.0}), \
                 counters {counters:.0}, ACL {acl:.0}; \
                 the rest of the agent's table {firewall:.0}"
            ));
        }
    }
    for payload in payloads {
        let cost = junk(measured, *payload);
        let packet = median(&measured.path, Setting::Bare, *payload).map(|trip| trip / 2.0);
        let line = cost.and_then(|cost| {
            budget(
                "a junk datagram",
                cost,
                ("a packet through kernel WireGuard", packet),
                JUNK_TO_PACKET,
            )
        });
        lines.extend(line.map(|line| format!("{payload} bytes: {line}")));
    }
    for payload in payloads {
        let found = |setting| median(&measured.forward, setting, *payload);
        let Some(ours) = found(Forwarding::Offload) else {
            continue;
        };
        for (other, limit) in [
            (Forwarding::Masquerade, TO_MASQUERADE),
            (Forwarding::FlowtableAcl, TO_FLOWTABLE),
        ] {
            let line = budget("our forwarding", ours, (other.name(), found(other)), limit);
            lines.extend(line.map(|line| format!("{payload} bytes: {line}")));
        }
    }
    lines
}

/// What a junk datagram costs from its device on.
fn junk(measured: &Measured, payload: u32) -> Option<f64> {
    let found = |setting| median(&measured.junk, setting, payload);
    Some(found(Junk::Demux)? - found(Junk::Ingress)?)
}

/// How `ours` stands to something else, if that was measured.
fn budget(who: &str, ours: f64, (other, costs): (&str, Option<f64>), limit: f64) -> Option<String> {
    let ratio = ours / costs?;
    let verdict = if ratio <= limit { "kept" } else { "MISSED" };
    Some(format!(
        "{who} is {ratio:.3} × {other}; budget {limit}: {verdict}"
    ))
}

/// One object; the figures on top are those of the smallest payload, where what we add weighs most.
fn to_json(measured: &Measured, payloads: &[u32]) -> Result<Value> {
    let smallest = payloads.first().copied().unwrap_or_default();
    let mut object = sizes(measured, smallest);
    let by_payload: Map<String, Value> = payloads
        .iter()
        .map(|payload| {
            (
                payload.to_string(),
                Value::Object(sizes(measured, *payload)),
            )
        })
        .collect();
    let path = measured.path.iter().filter(|figure| {
        // Its threads are scheduled one way or another.
        figure.setting != Setting::WireguardGo
    });
    let spread = path
        .map(spread)
        .chain(measured.forward.iter().map(spread))
        .fold(0.0, f64::max);
    object.insert("bench".to_owned(), json!("overhead"));
    object.insert(
        "unit".to_owned(),
        json!("instructions per round trip; parts: what each adds"),
    );
    object.insert("kernel".to_owned(), json!(measured.kernel));
    let bulk: Map<String, Value> = settings(&measured.bulk)
        .into_iter()
        .filter_map(|tuning| {
            let found = median(&measured.bulk, tuning, bulk::UNIT)?;
            Some((tuning.name().to_owned(), json!(found.round())))
        })
        .collect();
    object.insert("bulk_per_kib".to_owned(), Value::Object(bulk));
    object.insert("count".to_owned(), json!(measured.count));
    object.insert("rounds".to_owned(), json!(rounds(measured)));
    object.insert("spread".to_owned(), json!(spread));
    object.insert("payload".to_owned(), json!(smallest));
    object.insert("by_payload".to_owned(), Value::Object(by_payload));
    let mut figures = kept("path", &measured.path, Setting::name);
    figures.append(&mut kept("forward", &measured.forward, Forwarding::name));
    figures.append(&mut kept("junk", &measured.junk, Junk::name));
    object.insert("figures".to_owned(), json!(figures));
    Ok(Value::Object(object))
}

/// What later runs are held against.
fn kept<S: Copy + PartialEq>(
    kind: &str,
    figures: &[Figure<S>],
    name: impl Fn(S) -> &'static str,
) -> KeptFigures {
    let figures = figures.iter().filter_map(|figure| {
        let value = median(figures, figure.setting, figure.payload)?;
        let name = format!("{kind}, {} bytes: {}", figure.payload, name(figure.setting));
        Some((name, Kept::Icount { value }))
    });
    figures.collect()
}

/// The figures of one payload size.
fn sizes(measured: &Measured, payload: u32) -> Map<String, Value> {
    let whole = |found: Option<f64>| found.map_or(Value::Null, |found| json!(found.round()));
    let path = |setting| whole(median(&measured.path, setting, payload));
    let forward: Map<String, Value> = measured
        .forward
        .iter()
        .filter(|figure| figure.payload == payload)
        .filter_map(|figure| {
            let key = serde_json::to_value(figure.setting).ok()?;
            let value = whole(median(&measured.forward, figure.setting, payload));
            Some((key.as_str()?.to_owned(), value))
        })
        .collect();
    let parts = parts(measured, payload).map_or(Value::Null, |parts| {
        json!({
            "demux": parts.demux.round(),
            "hooks": parts.hooks.round(),
            "acl": parts.acl.round(),
            "counters": parts.counters.round(),
            "firewall": parts.firewall.round(),
        })
    });
    [
        ("bare", path(Setting::Bare)),
        ("ours", path(Setting::Ours)),
        ("wireguard_go", path(Setting::WireguardGo)),
        ("parts", parts),
        ("junk", whole(junk(measured, payload))),
        ("acl_10_rules", path(Setting::Acl10)),
        ("acl_1000_rules", path(Setting::Acl1000)),
        ("agent", path(Setting::Agent)),
        ("forward", Value::Object(forward)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(setting: Setting, rounds: &[f64]) -> Figure<Setting> {
        Figure {
            setting,
            payload: 56,
            rounds: rounds.to_vec(),
        }
    }

    fn measured(ours: f64) -> Measured {
        Measured {
            kernel: "6.12".to_owned(),
            count: 1000,
            path: vec![
                figure(Setting::Bare, &[999.0, 1001.0, 1000.0]),
                figure(Setting::Hooks, &[1008.0]),
                figure(Setting::Demux, &[1010.0]),
                figure(Setting::Firewall, &[1030.0]),
                figure(Setting::Counters, &[1005.0]),
                figure(Setting::Acl1000, &[1020.0]),
                figure(Setting::Ours, &[ours]),
                figure(Setting::WireguardGo, &[3000.0]),
            ],
            forward: Vec::new(),
            bulk: Vec::new(),
            junk: Vec::new(),
        }
    }

    fn forwarded(setting: Forwarding, rounds: &[f64]) -> Figure<Forwarding> {
        Figure {
            setting,
            payload: 56,
            rounds: rounds.to_vec(),
        }
    }

    #[test]
    fn the_median_of_the_rounds_counts_and_parts_are_what_each_adds() {
        let object = to_json(&measured(1030.0), &[56]).unwrap();
        assert_eq!(object["bare"], 1000.0);
        assert_eq!(object["ours"], 1030.0);
        assert_eq!(object["wireguard_go"], 3000.0);
        let parts = json!({
            "demux": 10.0, "hooks": 8.0, "acl": 15.0, "counters": 5.0, "firewall": 20.0
        });
        assert_eq!(object["parts"], parts);
    }

    #[test]
    fn a_missed_budget_stands_beside_what_each_part_costs() {
        let lines = budgets(&measured(1050.0), &[56]);
        assert!(lines[0].ends_with("1.050 × kernel WireGuard; budget 1.04: MISSED"));
        assert!(lines[1].ends_with("budget 0.5: kept"), "{lines:?}");
        assert!(lines[2].contains("demux adds 10 (chains without rules 8), counters 5"));
    }

    #[test]
    fn a_gateway_is_held_against_masquerade_and_against_flowtable_and_filter() {
        let mut measured = measured(1030.0);
        measured.path.clear();
        measured.forward = vec![
            forwarded(Forwarding::Masquerade, &[1100.0]),
            forwarded(Forwarding::FlowtableAcl, &[1000.0]),
            forwarded(Forwarding::Offload, &[1010.0]),
        ];
        let lines = budgets(&measured, &[56]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("our forwarding is 0.918 × nft masquerade; budget 1: kept"));
        assert!(lines[1].ends_with("budget 1.003: MISSED"), "{lines:?}");
    }

    #[test]
    fn what_was_not_measured_is_null() {
        let mut measured = measured(1030.0);
        measured.path.pop();
        let object = to_json(&measured, &[56]).unwrap();
        assert!(object["wireguard_go"].is_null());
        assert_eq!(budgets(&measured, &[56]).len(), 2);
    }
}
