//! Counting what test programs printed.

use std::fmt;

/// Printed by a test that ends early because the machine lacks something: `SKIP <name>: <reason>`.
const SKIP: &str = "SKIP ";

/// A test or suite that did not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    /// Test or suite.
    pub(crate) name: String,
    /// What the machine lacks.
    pub(crate) reason: String,
}

/// Results so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that ran and passed.
    pub(crate) passed: usize,
    /// Tests that failed, and suites that broke off.
    pub(crate) failed: usize,
    /// Tests and suites that did not run.
    pub(crate) skips: Vec<Skip>,
}

impl Tally {
    /// Counts the output of one run of cargo's test harness, of any number of programs.
    ///
    /// Returns whether a test failed.
    pub(crate) fn read<'a>(&mut self, suite: &str, lines: impl Iterator<Item = &'a str>) -> bool {
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for line in lines {
            let line = line.trim();
            if let Some(rest) = line.strip_prefix("test result: ") {
                passed += count(rest, "passed");
                failed += count(rest, "failed");
            } else if let Some((name, reason)) = line
                .strip_prefix(SKIP)
                .and_then(|rest| rest.split_once(": "))
            {
                self.skip(&format!("{suite}: {name}"), reason);
                skipped += 1;
            } else if let Some((name, reason)) = ignored(line) {
                self.skip(&format!("{suite}: {name}"), reason);
            }
        }
        // The harness takes a test that returned early for a pass.
        self.passed += passed.saturating_sub(skipped);
        self.failed += failed;
        failed > 0
    }

    /// Counts a test or suite that does not run here.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        self.skips.push(Skip {
            name: name.to_owned(),
            reason: reason.to_owned(),
        });
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            passed,
            failed,
            skips,
        } = self;
        write!(
            f,
            "{passed} passed, {failed} failed, {} skipped",
            skips.len()
        )
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`.
fn count(text: &str, word: &str) -> usize {
    let words: Vec<&str> = text.split([' ', ';']).collect();
    let before = words
        .iter()
        .position(|&candidate| candidate == word)
        .and_then(|at| at.checked_sub(1));
    before.and_then(|at| words[at].parse().ok()).unwrap_or(0)
}

/// Name and reason in `test name ... ignored, reason`.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    let reason = outcome.trim_start_matches([',', ' ']);
    Some((name, if reason.is_empty() { "ignored" } else { reason }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up() {
        let output = "\
running 2 tests
test a ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s";
        let mut tally = Tally::default();
        assert!(tally.read("unit", output.lines()));
        assert_eq!(tally.to_string(), "3 passed, 3 failed, 0 skipped");
    }

    #[test]
    fn a_skip_is_no_pass_and_keeps_its_reason() {
        let output = "\
SKIP relayed::pings: network namespaces need root
test slow ... ignored, needs an hour
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        let mut tally = Tally::default();
        assert!(!tally.read("netns", output.lines()));
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 2 skipped");
        assert_eq!(tally.skips[0].name, "netns: relayed::pings");
        assert_eq!(tally.skips[0].reason, "network namespaces need root");
        assert_eq!(tally.skips[1].reason, "needs an hour");
    }
}
