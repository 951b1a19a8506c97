//! All figures and what they say, for people and for programs: [`Report`].

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::figures::{COLUMNS, Round, medians};
use super::verdict::Verdict;

/// What `tailrace bench host` found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Release of the kernel.
    kernel: String,
    /// Processors that it may use.
    processors: usize,
    /// Seconds that were asked for.
    seconds: f64,
    /// Why the kernel's WireGuard is not among the engines.
    without_kernel: Option<String>,
    engines: Engines,
    /// Who serves which use; nobody to compare with without the kernel's.
    verdict: Option<Verdict>,
    /// The same in words.
    says: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Engines {
    kernel: Option<Measured>,
    embedded: Option<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    medians: Round,
    rounds: Vec<Round>,
}

impl Measured {
    fn of(rounds: Vec<Round>) -> Option<Self> {
        (!rounds.is_empty()).then(|| Self {
            medians: medians(&rounds),
            rounds,
        })
    }
}

impl Report {
    pub(super) fn new(
        time: Duration,
        without_kernel: Option<String>,
        kernel: Vec<Round>,
        embedded: Vec<Round>,
    ) -> Self {
        let (kernel, embedded) = (Measured::of(kernel), Measured::of(embedded));
        let verdict = match (&kernel, &embedded) {
            (Some(kernel), Some(embedded)) => Some(Verdict::of(&kernel.medians, &embedded.medians)),
            _ => None,
        };
        let alone = || {
            let reason = without_kernel.as_deref().unwrap_or_default();
            vec![format!(
                "The embedded tunnel serves every use here: {reason}."
            )]
        };
        let system = rustix::system::uname();
        Self {
            kernel: system.release().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            seconds: time.as_secs_f64(),
            says: verdict.as_ref().map_or_else(alone, Verdict::words),
            without_kernel,
            engines: Engines { kernel, embedded },
            verdict,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Linux {}, {} processors; two namespaces of this host, medians (least–most)\n",
            self.kernel, self.processors
        )?;
        let Engines { kernel, embedded } = &self.engines;
        let engines = [("kernel", kernel), ("embedded", embedded)];
        let engines = engines
            .into_iter()
            .filter_map(|(name, found)| Some((name, found.as_ref()?)));
        let engines: Vec<_> = engines.collect();
        write!(f, "{:<24}", "")?;
        for (name, _) in &engines {
            write!(f, "{name:>28}")?;
        }
        writeln!(f)?;
        for (title, get) in COLUMNS {
            write!(f, "{title:<24}")?;
            for (_, measured) in &engines {
                let all = measured.rounds.iter().map(get);
                let least = all.clone().fold(f64::INFINITY, f64::min);
                let most = all.fold(0.0, f64::max);
                let middle = get(&measured.medians);
                let cell = format!("{} ({}–{})", short(middle), short(least), short(most));
                write!(f, "{cell:>28}")?;
            }
            writeln!(f)?;
        }
        for line in &self.says {
            write!(f, "\n{line}")?;
        }
        writeln!(f)
    }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(tcp_mbit: f64) -> Vec<Round> {
        let round = |factor: f64| Round {
            tcp_mbit: tcp_mbit * factor,
            cpu_s_per_gb: 4.0,
            small_kpps: 300.0,
            idle_ms: 0.1,
            loaded_ms: 0.5,
            resident_mib: 12.25,
        };
        vec![round(0.5), round(1.0), round(2.0)]
    }

    #[test]
    fn a_table_has_every_figure_of_both_and_what_they_say() {
        let report = Report::new(
            Duration::from_secs(60),
            None,
            rounds(1000.0),
            rounds(2000.0),
        );
        let text = report.to_string();
        for (title, _) in COLUMNS {
            assert!(text.contains(title), "{text}");
        }
        assert!(
            text.contains("1000 (500–2000)") && text.contains("2000 (1000–4000)"),
            "{text}"
        );
        assert!(
            text.contains("file shares): the embedded tunnel, 2.0 × the throughput."),
            "{text}"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["verdict"]["bulk"][0], "embedded");
        assert_eq!(
            json["engines"]["kernel"]["rounds"]
                .as_array()
                .unwrap()
                .len(),
            3
        );
    }

    #[test]
    fn without_the_kernels_the_other_is_told_alone() {
        let reason = "this kernel has no WireGuard".to_owned();
        let report = Report::new(
            Duration::from_secs(1),
            Some(reason),
            Vec::new(),
            rounds(9.0),
        );
        let text = report.to_string();
        assert!(
            text.contains("serves every use here: this kernel has no WireGuard."),
            "{text}"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["engines"]["kernel"].is_null() && json["verdict"].is_null());
    }
}
