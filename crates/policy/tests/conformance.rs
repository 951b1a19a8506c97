//! Recorded answers of Tailscale's own server, compared with ours: `cargo test -p policy --test
//! conformance`.
//!
//! The recordings are `shared/conformance/policy.jsonl.gz` beside the checkout, or the file (plain
//! or gzip) that `TAILRACE_POLICY_CASES` names; without them nothing is compared, and it says so.
//! Each case that differs is a line: what was told, what we say. Less than 98 % fail the run.

#[path = "conformance/answers.rs"]
mod answers;
#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/refusals.rs"]
mod refusals;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use case::Case;
use policy::file::Context;
use policy::{Network, Policy, check};

const VARIABLE: &str = "TAILRACE_POLICY_CASES";

/// Cases that are not compared, and why.
const SKIPPED: [(&str, &str); 2] = [
    (
        "policytest-allpass-grants-only-tag-src-ipv6-literal-dst",
        "recorded under other addresses: the IPv6 address in its policy was no node's",
    ),
    (
        "sshtest-malformed-dst-bare-ipv6",
        "recorded under other addresses: the IPv6 address in its test was no node's",
    ),
];

/// Of a hundred compared cases at least these must be the same.
const REQUIRED: usize = 98;

fn main() -> ExitCode {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let usual =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/policy.jsonl.gz");
    if named.is_none() && !usual.exists() {
        println!(
            "skipped: there is no {}; name the recordings in {VARIABLE}",
            usual.display()
        );
        return ExitCode::SUCCESS;
    }
    let path = named.unwrap_or(usual);
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) => {
            println!("cannot read {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };

    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let case: Case = match serde_json::from_str(line) {
            Ok(case) => case,
            Err(error) => {
                println!("not a case: {error}");
                failed += 1;
                continue;
            }
        };
        if let Some((id, reason)) = SKIPPED.iter().find(|(id, _)| *id == case.id) {
            println!("{id}: skipped, {reason}");
            skipped += 1;
            continue;
        }
        match judge(&case) {
            Ok(()) => passed += 1,
            Err(difference) => {
                println!("{}: {difference}", case.id);
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    let enough = passed * 100 >= REQUIRED * (passed + failed);
    if enough {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let bytes = std::fs::read(path)?;
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text)?;
    } else {
        bytes.as_slice().read_to_string(&mut text)?;
    }
    Ok(text)
}

/// The first difference.
fn judge(case: &Case) -> Result<(), String> {
    let context = Context {
        domains: vec![case::DOMAIN.to_owned()],
        known_groups: Vec::new(),
        ssh_check: true,
    };
    let parsed = match Policy::parse(&case.id, &case.policy, &context) {
        Ok(parsed) => parsed,
        Err(errors) => return refusals::compare(case, errors.cause(), &errors.list),
    };
    let mut network = Network::new(Arc::new(parsed.policy), case.users(), []);
    case.nodes(&network)
        .into_iter()
        .for_each(|node| network.put_node(node));
    for (route, router) in case.primaries() {
        network.set_primary(route, Some(router));
    }
    let failures = check::run_tests(&network);
    let cause = failures.first().map(|it| it.cause);
    refusals::compare(case, cause, &failures)?;
    if case.status == 200 {
        answers::compare(case, &network)
    } else {
        Ok(())
    }
}
