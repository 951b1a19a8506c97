//! Figures that were committed, and how those of a new run stand to them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Below the root of the repository.
const FILE: &str = "bench/figures.json";
/// Instructions and memory may be so many times what was committed.
const WORSE: f64 = 1.1;
/// Processor time may be so many times that: it varies with what else the machine does.
const WORSE_CPU: f64 = 2.0;

/// What one run of a bench found.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Run {
    /// What the bench was told beyond its name.
    pub(super) arguments: Vec<String>,
    /// Release of the kernel, and the processors of the machine.
    pub(super) machine: String,
    pub(super) figures: BTreeMap<String, Figure>,
}

/// A figure of a run.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Figure {
    /// Instructions: less is better.
    Icount { value: f64 },
    /// Memory: less is better.
    Memory { value: f64 },
    /// Processor time, in percent of a core: less is better.
    Cpu { value: f64 },
    /// How often ours is another's of the same round: more is better.
    Ratio { median: f64, least: f64, most: f64 },
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icount { value } => write!(f, "{value:.0}"),
            Self::Memory { value } => write!(f, "{value:.1}"),
            Self::Cpu { value } => write!(f, "{value:.2}"),
            Self::Ratio {
                median,
                least,
                most,
            } => write!(f, "{median:.2} ({least:.2}–{most:.2})"),
        }
    }
}

impl Figure {
    /// Whether a figure measured now is as good as this one that was committed; `None` if they are of two kinds.
    fn is_kept_by(self, now: Self) -> Option<bool> {
        match (self, now) {
            (Self::Icount { value }, Self::Icount { value: now })
            | (Self::Memory { value }, Self::Memory { value: now }) => Some(now <= value * WORSE),
            (Self::Cpu { value }, Self::Cpu { value: now }) => Some(now <= value * WORSE_CPU),
            (Self::Ratio { least, .. }, Self::Ratio { median, .. }) => Some(median >= least),
            _ => None,
        }
    }

    /// To three digits behind the point: more is noise, and makes every record differ.
    fn rounded(self) -> Self {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        match self {
            Self::Icount { value } => Self::Icount {
                value: value.round(),
            },
            Self::Memory { value } => Self::Memory {
                value: round(value),
            },
            Self::Cpu { value } => Self::Cpu {
                value: round(value),
            },
            Self::Ratio {
                median,
                least,
                most,
            } => Self::Ratio {
                median: round(median),
                least: round(least),
                most: round(most),
            },
        }
    }
}

/// The committed runs, by the name of the bench.
#[derive(Debug, Default)]
pub(super) struct Committed {
    path: PathBuf,
    runs: BTreeMap<String, Run>,
}

impl Committed {
    /// Reads them; none if there is no file.
    ///
    /// # Errors
    ///
    /// When the file is none of ours.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        let runs = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("reading {FILE}"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {FILE}")),
        };
        Ok(Self { path, runs })
    }

    /// The runs of one bench, or of all.
    ///
    /// # Errors
    ///
    /// When nothing was committed.
    pub(super) fn runs<'a>(&'a self, only: Option<&'a str>) -> Result<Vec<(&'a str, &'a Run)>> {
        let runs = self.runs.iter().map(|(name, run)| (name.as_str(), run));
        let runs: Vec<_> = runs
            .filter(|(name, _)| only.is_none_or(|only| only == *name))
            .collect();
        ensure!(
            !runs.is_empty(),
            "{FILE} has no such figures: `cargo xtask bench NAME --record` writes them"
        );
        Ok(runs)
    }

    /// Writes a run in the place of the last of its bench.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(super) fn record(&mut self, bench: &str, run: Run) -> Result<()> {
        ensure!(
            !run.figures.is_empty(),
            "`{bench}` has no figures that a later run could be held against"
        );
        self.runs.insert(bench.to_owned(), run);
        let text = serde_json::to_string_pretty(&self.runs)? + "\n";
        fs::write(&self.path, text).with_context(|| format!("writing {FILE}"))
    }
}

impl Run {
    /// Holds another run against this committed one of `bench`.
    pub(super) fn compare(&self, bench: &str, run: &Run) -> Comparison {
        let row = |(name, committed): (&String, &Figure)| {
            let measured = run.figures.get(name).copied();
            let kept = measured.and_then(|now| committed.is_kept_by(now));
            Row {
                name: name.clone(),
                committed: *committed,
                measured,
                kept: kept.unwrap_or(false),
            }
        };
        Comparison {
            bench: bench.to_owned(),
            machine: self.machine.clone(),
            rows: self.figures.iter().map(row).collect(),
        }
    }
}

/// Reads the figures that a bench printed with `--json`.
///
/// # Errors
///
/// When it is not JSON or has no figures.
pub(super) fn figures(printed: &str) -> Result<BTreeMap<String, Figure>> {
    let printed: Value = serde_json::from_str(printed).context("what the bench printed")?;
    let figures = printed.get("figures").cloned();
    let figures = figures.context("this bench has no figures that are held against others")?;
    let figures: BTreeMap<String, Figure> = serde_json::from_value(figures)?;
    let rounded = figures
        .into_iter()
        .map(|(name, figure)| (name, figure.rounded()));
    Ok(rounded.collect())
}

/// A new run beside the committed one.
#[derive(Debug)]
pub(super) struct Comparison {
    bench: String,
    machine: String,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    committed: Figure,
    measured: Option<Figure>,
    kept: bool,
}

impl Comparison {
    /// Names of the figures that are worse, or missing.
    pub(super) fn worse(&self) -> impl Iterator<Item = String> + '_ {
        let worse = self.rows.iter().filter(|row| !row.kept);
        worse.map(|row| format!("{}: {}", self.bench, row.name))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (committed: {})", self.bench, self.machine)?;
        writeln!(
            f,
            "  {:<58} {:>22} {:>22}",
            "figure", "committed", "measured"
        )?;
        for row in &self.rows {
            let measured = row
                .measured
                .map_or("missing".to_owned(), |now| now.to_string());
            let committed = row.committed.to_string();
            let verdict = if row.kept { "" } else { "  WORSE" };
            writeln!(
                f,
                "  {:<58} {committed:>22} {measured:>22}{verdict}",
                row.name
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(figures: &[(&str, Figure)]) -> Run {
        let figures = figures
            .iter()
            .map(|(name, figure)| ((*name).to_owned(), *figure));
        Run {
            arguments: Vec::new(),
            machine: "Linux, 2 processors".to_owned(),
            figures: figures.collect(),
        }
    }

    const RATIO: Figure = Figure::Ratio {
        median: 6.9,
        least: 6.3,
        most: 7.3,
    };

    fn ratio(median: f64) -> Figure {
        Figure::Ratio {
            median,
            least: 0.0,
            most: 9.0,
        }
    }

    #[test]
    fn a_tenth_more_memory_or_instructions_is_kept_and_more_is_not() {
        let before = Figure::Memory { value: 100.0 };
        assert_eq!(
            before.is_kept_by(Figure::Memory { value: 110.0 }),
            Some(true)
        );
        assert_eq!(
            before.is_kept_by(Figure::Memory { value: 110.2 }),
            Some(false)
        );
        let before = Figure::Icount { value: 80_000.0 };
        assert_eq!(
            before.is_kept_by(Figure::Icount { value: 60_000.0 }),
            Some(true)
        );
        assert_eq!(
            before.is_kept_by(Figure::Icount { value: 90_000.0 }),
            Some(false)
        );
        assert_eq!(before.is_kept_by(Figure::Memory { value: 1.0 }), None);
    }

    #[test]
    fn twice_the_processor_time_is_kept_and_more_is_not() {
        let before = Figure::Cpu { value: 0.4 };
        for (now, kept) in [(0.8, true), (0.81, false), (0.1, true)] {
            assert_eq!(before.is_kept_by(Figure::Cpu { value: now }), Some(kept));
        }
        assert_eq!(before.is_kept_by(Figure::Memory { value: 0.4 }), None);
    }

    #[test]
    fn a_median_ratio_has_to_lie_in_the_range_of_the_committed_rounds_or_above() {
        assert_eq!(RATIO.is_kept_by(ratio(6.3)), Some(true));
        assert_eq!(RATIO.is_kept_by(ratio(6.29)), Some(false));
        assert_eq!(RATIO.is_kept_by(ratio(20.0)), Some(true));
    }

    #[test]
    fn what_is_worse_or_was_not_measured_is_named() {
        let memory = |value| Figure::Memory { value };
        let committed = run(&[("a", memory(10.0)), ("b", RATIO), ("c", memory(1.0))]);
        let now = run(&[("a", memory(12.0)), ("b", ratio(7.0))]);
        let compared = committed.compare("x", &now);
        assert_eq!(compared.worse().collect::<Vec<_>>(), ["x: a", "x: c"]);
        let text = compared.to_string();
        assert!(
            text.contains("6.90 (6.30–7.30)") && text.contains("missing"),
            "{text}"
        );
        assert_eq!(text.matches("WORSE").count(), 2);
    }

    #[test]
    fn what_was_recorded_is_read_back_and_of_one_bench_only() {
        let folder = testnet::Folder::new("kept").unwrap();
        fs::create_dir(folder.path().join("bench")).unwrap();
        let mut committed = Committed::read(folder.path()).unwrap();
        assert!(committed.runs(None).is_err());
        assert!(committed.record("x", run(&[])).is_err());
        let figures = run(&[("a", RATIO)]);
        for bench in ["x", "y"] {
            committed.record(bench, figures.clone()).unwrap();
        }
        let read = Committed::read(folder.path()).unwrap();
        assert_eq!(read.runs(None).unwrap().len(), 2);
        assert_eq!(read.runs(Some("x")).unwrap(), [("x", &figures)]);
        assert!(read.runs(Some("z")).is_err());
    }

    #[test]
    fn a_bench_s_figures_are_read_from_what_it_prints() {
        let printed = r#"{"rounds": {}, "figures": {
            "TCP": {"kind": "ratio", "median": 6.91234, "least": 6.0, "most": 7.0},
            "resident": {"kind": "memory", "value": 8.04321}
        }}"#;
        let figures = figures(printed).unwrap();
        assert_eq!(figures["resident"], Figure::Memory { value: 8.043 });
        assert_eq!(figures["TCP"].to_string(), "6.91 (6.00–7.00)");
        assert!(super::figures("{}").is_err());
    }
}
