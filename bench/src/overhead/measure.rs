//! The guest's part: goes through the settings, round by round.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::applied::Applied;
use super::lab::{LAN_HOST, Lab};
use super::setting::{Forwarding, Junk, Setting};
use super::wireguard_go::WireguardGo;
use super::{Figure, Measured, NANOSECONDS, bulk, echo};

/// Bytes after the ICMP or UDP header: `ping`'s own default, and nearly a full packet.
const PAYLOADS: [u32; 2] = [56, 1200];
/// What `--only` calls all settings of either half.
const PATH: &str = "path";
const FORWARD: &str = "forward";
const BULK: &str = "bulk";
const JUNK: &str = "junk";
/// Port of the LAN host's server.
const ECHO_PORT: u16 = 7000;

/// Measures every setting whose name holds `only`.
///
/// # Errors
///
/// When something cannot be set up or a packet is lost.
pub(super) fn all(count: u32, rounds: usize, only: Option<&str>) -> Result<Measured> {
    let lab = Lab::new()?;
    let wanted =
        |half: &str, name: &str| only.is_none_or(|part| half == part || name.contains(part));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's name")?;

    lab.open_kernel().context("kernel WireGuard")?;
    let settings: Vec<Setting> = Setting::ON_KERNEL
        .into_iter()
        .filter(|setting| {
            // What junk is compared with.
            let beside = only == Some(JUNK) && *setting == Setting::Bare;
            beside || wanted(PATH, setting.name())
        })
        .collect();
    let mut path = path(&lab, &settings, count, rounds)?;
    let settings: Vec<Forwarding> = Forwarding::ALL
        .into_iter()
        .filter(|setting| wanted(FORWARD, setting.name()))
        .collect();
    let forward = forward(&lab, &settings, count, rounds)?;
    let bulk = match only.is_none_or(|part| part == BULK) {
        true => bulk::measure(&lab, count, rounds).context("bulk TCP")?,
        false => Vec::new(),
    };
    let settings: Vec<Junk> = Junk::ALL
        .into_iter()
        .filter(|setting| wanted(JUNK, setting.name()))
        .collect();
    let junk = junk(&lab, &settings, count, rounds)?;
    lab.close()?;

    if wanted(PATH, Setting::WireguardGo.name()) {
        let tunnel = WireguardGo::open(&lab)?;
        path.extend(self::path(&lab, &[Setting::WireguardGo], count, rounds)?);
        drop(tunnel);
    }
    Ok(Measured {
        kernel: kernel.trim().to_owned(),
        count,
        path,
        forward,
        bulk,
        junk,
    })
}

fn path(
    lab: &Lab,
    settings: &[Setting],
    count: u32,
    rounds: usize,
) -> Result<Vec<Figure<Setting>>> {
    measure(
        settings,
        count,
        rounds,
        |setting| setting.apply(lab).with_context(|| setting.name()),
        |_, payload| echo::ping(&lab.near.namespace, lab.far.address, payload, count),
    )
}

fn forward(
    lab: &Lab,
    settings: &[Forwarding],
    count: u32,
    rounds: usize,
) -> Result<Vec<Figure<Forwarding>>> {
    let server = (&lab.host, (LAN_HOST, ECHO_PORT).into());
    measure(
        settings,
        count,
        rounds,
        |setting| setting.apply(lab).with_context(|| setting.name()),
        |applied, payload| {
            let client = &lab.far.namespace;
            echo::udp(client, server, payload, count, || applied.learn())
        },
    )
}

fn junk(lab: &Lab, settings: &[Junk], count: u32, rounds: usize) -> Result<Vec<Figure<Junk>>> {
    measure(
        settings,
        count,
        rounds,
        |setting| setting.apply(lab).with_context(|| setting.name()),
        |_, payload| echo::throw(&lab.near.namespace, lab.far.endpoint(), payload, count),
    )
}

/// Rounds are the outer loop, so that what drifts shows as a difference between them.
fn measure<'a, S: Copy + std::fmt::Debug>(
    settings: &[S],
    count: u32,
    rounds: usize,
    apply: impl Fn(S) -> Result<Applied<'a>>,
    run: impl Fn(&mut Applied<'a>, u32) -> Result<Duration>,
) -> Result<Vec<Figure<S>>> {
    let mut figures: Vec<Figure<S>> = settings
        .iter()
        .flat_map(|setting| PAYLOADS.map(|payload| (*setting, payload)))
        .map(|(setting, payload)| Figure {
            setting,
            payload,
            rounds: Vec::new(),
        })
        .collect();
    for round in 0..rounds {
        for figures in figures.chunks_mut(PAYLOADS.len()) {
            let Some(Figure { setting, .. }) = figures.first() else {
                continue;
            };
            let setting = *setting;
            let mut applied = apply(setting)?;
            for figure in figures {
                let took =
                    run(&mut applied, figure.payload).with_context(|| format!("{setting:?}"))?;
                let instructions = took.as_secs_f64() * 1e9 / NANOSECONDS / f64::from(count);
                println!(
                    "=== round {round}: {setting:?}, {} bytes: {instructions:.0}",
                    figure.payload
                );
                figure.rounds.push(instructions);
            }
            applied.check(u64::from(count))?;
            applied.remove()?;
        }
    }
    Ok(figures)
}
