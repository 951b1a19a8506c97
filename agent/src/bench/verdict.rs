//! Which engine serves which use, from figures alone: [`Verdict`].

use serde::Serialize;

use super::figures::Round;

/// What differs by less than this factor is alike: the rounds of one engine differ as much.
const ALIKE: f64 = 1.15;

/// Who serves a use better.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Better {
    /// The kernel's WireGuard.
    Kernel,
    /// The embedded tunnel.
    Embedded,
    /// Neither.
    Alike,
}

/// Who serves which use better, and by which factor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    /// Backups, file shares, images: throughput of TCP.
    bulk: (Better, f64),
    /// Calls, games, DNS: packets that come alone.
    packets: (Better, f64),
    /// Whoever waits for an answer while something else fills the link.
    answers: (Better, f64),
    /// Small processors and batteries: CPU time for a GB.
    cpu: (Better, f64),
    /// Small devices: resident memory of the daemon.
    memory: (Better, f64),
}

impl Verdict {
    /// Judges by the medians of both.
    pub(super) fn of(kernel: &Round, embedded: &Round) -> Self {
        // Of the first two more is better, of the others less.
        Self {
            bulk: better(kernel.tcp_mbit, embedded.tcp_mbit),
            packets: better(kernel.small_kpps, embedded.small_kpps),
            answers: better(embedded.loaded_ms, kernel.loaded_ms),
            cpu: better(embedded.cpu_s_per_gb, kernel.cpu_s_per_gb),
            memory: better(embedded.resident_mib, kernel.resident_mib),
        }
    }

    /// The same in words, one use a line, and what to do.
    pub(super) fn words(&self) -> Vec<String> {
        let uses = [
            (
                "Bulk transfers (backups, file shares)",
                self.bulk,
                "the throughput",
            ),
            (
                "Packets that come alone (calls, games, DNS)",
                self.packets,
                "the packets",
            ),
            ("Answers while the link is busy", self.answers, "sooner"),
            ("CPU time for a GB", self.cpu, "less"),
            ("Memory of the daemon", self.memory, "less"),
        ];
        let line = |(name, (better, factor), what): (&str, (Better, f64), &str)| match better {
            Better::Alike => format!("{name}: both alike."),
            Better::Kernel => format!("{name}: the kernel's WireGuard, {factor:.1} × {what}."),
            Better::Embedded => format!("{name}: the embedded tunnel, {factor:.1} × {what}."),
        };
        let mut lines: Vec<String> = uses.map(line).into();
        lines.push(self.advice().to_owned());
        lines
    }

    fn advice(&self) -> &'static str {
        let gains = [self.bulk, self.packets, self.answers, self.cpu];
        let count = |who| gains.iter().filter(|(better, _)| *better == who).count();
        match (count(Better::Kernel), count(Better::Embedded)) {
            (_, 0) => {
                "The kernel's WireGuard, which `--wireguard auto` takes, serves every use here."
            }
            (0, _) => {
                "The embedded tunnel serves every use here, but ends with the daemon; \
                 `tailrace set --wireguard=embedded` changes over."
            }
            _ => {
                "`--wireguard auto` takes the kernel's; where the uses that the embedded tunnel is ahead in \
                 are yours, `tailrace set --wireguard=embedded` changes over."
            }
        }
    }
}

/// Who has the greater figure, and how many times the other's it is.
fn better(kernel: f64, embedded: f64) -> (Better, f64) {
    let (who, factor) = if kernel >= embedded {
        (Better::Kernel, kernel / embedded)
    } else {
        (Better::Embedded, embedded / kernel)
    };
    match factor.is_finite() && factor >= ALIKE {
        true => (who, factor),
        false => (Better::Alike, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As on a machine where the kernel's is ahead in everything but bulk.
    const KERNEL: Round = Round {
        tcp_mbit: 1_500.0,
        cpu_s_per_gb: 4.0,
        small_kpps: 400.0,
        idle_ms: 0.1,
        loaded_ms: 0.5,
        resident_mib: 10.0,
    };
    const EMBEDDED: Round = Round {
        tcp_mbit: 3_000.0,
        cpu_s_per_gb: 4.2,
        small_kpps: 200.0,
        idle_ms: 0.15,
        loaded_ms: 1.5,
        resident_mib: 20.0,
    };

    #[test]
    fn each_use_goes_to_whom_its_own_figures_favour() {
        let verdict = Verdict::of(&KERNEL, &EMBEDDED);
        assert_eq!(verdict.bulk, (Better::Embedded, 2.0));
        assert_eq!(verdict.packets, (Better::Kernel, 2.0));
        assert_eq!(verdict.answers, (Better::Kernel, 3.0));
        assert_eq!(verdict.cpu, (Better::Alike, 1.0));
        assert_eq!(verdict.memory, (Better::Kernel, 2.0));
        let words = verdict.words().join("\n");
        assert!(
            words.contains("Bulk transfers (backups, file shares): the embedded tunnel, 2.0 ×"),
            "{words}"
        );
        assert!(words.contains("CPU time for a GB: both alike."), "{words}");
        assert!(
            words.contains("tailrace set --wireguard=embedded"),
            "{words}"
        );
    }

    #[test]
    fn who_is_ahead_in_everything_serves_every_use() {
        let slow = Round {
            tcp_mbit: 700.0,
            ..EMBEDDED
        };
        let words = Verdict::of(&KERNEL, &slow).words();
        let last = words.last().unwrap();
        assert!(last.contains("auto` takes, serves every use"), "{last}");
        let fast = Round {
            small_kpps: 900.0,
            loaded_ms: 0.2,
            ..EMBEDDED
        };
        let words = Verdict::of(&KERNEL, &fast).words();
        let last = words.last().unwrap();
        assert!(
            last.contains("The embedded tunnel serves every use"),
            "{last}"
        );
        assert!(
            words[4].contains("the kernel's WireGuard, 2.0 × less"),
            "{words:?}"
        );
    }

    #[test]
    fn what_could_not_be_measured_favours_nobody() {
        let lost = Round {
            loaded_ms: f64::NAN,
            tcp_mbit: 0.0,
            ..KERNEL
        };
        let verdict = Verdict::of(&KERNEL, &lost);
        assert_eq!(verdict.answers.0, Better::Alike);
        assert_eq!(verdict.bulk.0, Better::Alike);
    }
}
