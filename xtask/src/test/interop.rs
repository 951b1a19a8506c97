//! The official client library against our programs: a Go module in `tests/interop`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::cargo::watch;
use super::tally::Tally;
use crate::program::find;
use crate::setup;
use crate::workspace::Workspace;

/// Runs the module's tests where Go is installed.
///
/// # Errors
///
/// When Go cannot start.
pub(crate) fn run(
    workspace: &Workspace,
    daemons: &Path,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    let folder = workspace.root.join("tests/interop");
    if !folder.join("go.mod").is_file() {
        tally.skip("interop", "tests/interop holds no Go module");
        return Ok(());
    }
    if find("go").is_none() {
        tally.skip("interop", "Go is not installed");
        return Ok(());
    }
    if let Err(error) = setup::lab() {
        tally.skip("interop", &format!("{error:#}"));
        return Ok(());
    }
    println!("\nSuite interop: compiling and running (the first time takes minutes)");
    let mut command = Command::new("go");
    command
        .args(["test", "-v", "-count=1", "-timeout", "20m"])
        .args(filter.map(|text| format!("-run={text}")))
        .arg("./...")
        .current_dir(folder)
        .env("TAILRACE_BIN_DIR", daemons);
    let outcome = watch(&mut command)?;
    let failed = count(tally, &outcome.lines);
    if !outcome.success {
        println!("{}", outcome.lines.join("\n"));
        if failed == 0 {
            tally.failed += 1; // did not compile, or broke off
        }
    }
    Ok(())
}

/// Counts `--- PASS:` lines and their like (subtests are indented and not counted); returns the
/// number of failures.
fn count(tally: &mut Tally, lines: &[String]) -> usize {
    let mut failed = 0;
    let mut said = "";
    for line in lines {
        if line.starts_with("--- PASS: ") {
            tally.passed += 1;
        } else if line.starts_with("--- FAIL: ") {
            failed += 1;
        } else if let Some(rest) = line.strip_prefix("--- SKIP: ") {
            let name = rest.split(' ').next().unwrap_or(rest);
            // `t.Skip` prints `    file_test.go:12: reason` before.
            let reason = said
                .trim()
                .splitn(3, ':')
                .nth(2)
                .unwrap_or("no reason given")
                .trim();
            tally.skip(&format!("interop: {name}"), reason);
        }
        said = line;
    }
    tally.failed += failed;
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_results_are_counted_with_their_reasons() {
        let output = "\
=== RUN   TestJoin
--- PASS: TestJoin (1.00s)
=== RUN   TestRoot
    join_test.go:12: needs root
--- SKIP: TestRoot (0.00s)
=== RUN   TestBad
    --- FAIL: TestBad/sub (0.00s)
--- FAIL: TestBad (0.00s)
FAIL";
        let lines: Vec<String> = output.lines().map(str::to_owned).collect();
        let mut tally = Tally::default();
        assert_eq!(count(&mut tally, &lines), 1);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(tally.skips[0].reason, "needs root");
    }
}
