//! Checks that the compiler does not make: dependency arrows, file openings, file lengths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::Workspace;

/// Which of our packages each package may depend on; nothing points upwards.
///
/// ```text
/// shells     agent  control  relay          (control embeds relay)
/// libraries  node-core  noise-io  dataplane  netlink  policy  tunnel
/// protocols  control-proto  derp-proto  disco-proto
/// data       keys  packet  ebpf-abi  settings
/// ```
const ARROWS: &[(&str, &[&str])] = &[
    ("keys", &[]),
    ("ebpf-abi", &[]),
    ("packet", &["ebpf-abi"]),
    ("ebpf", &["ebpf-abi", "packet"]),
    ("control-proto", &["keys"]),
    ("derp-proto", &["keys"]),
    ("disco-proto", &["keys"]),
    ("noise-io", &["control-proto", "keys"]),
    ("node-core", &["control-proto", "disco-proto", "keys"]),
    ("netlink", &["keys"]),
    ("settings", &[]),
    ("tunnel", &["keys"]),
    ("policy", &["control-proto", "packet"]),
    ("dataplane", &["ebpf-abi", "packet"]),
    ("relay", &["derp-proto", "disco-proto", "keys", "settings"]),
    (
        "control",
        &[
            "control-proto",
            "derp-proto",
            "keys",
            "noise-io",
            "policy",
            "relay",
            "settings",
        ],
    ),
    (
        "agent",
        &[
            "control-proto",
            "dataplane",
            "derp-proto",
            "disco-proto",
            "keys",
            "netlink",
            "node-core",
            "noise-io",
            "packet",
            "policy",
            "settings",
            "tunnel",
        ],
    ),
    ("testnet", &[]),
    ("xtask", &["testnet"]),
    ("netns-tests", &["testnet"]),
    (
        "fuzz",
        &[
            "control-proto",
            "derp-proto",
            "disco-proto",
            "keys",
            "packet",
            "policy",
            "tunnel",
        ],
    ),
];

/// Packages that may use all of ours: nobody depends on them.
const UNBOUND: &[&str] = &["bench"];

/// Dev-dependencies beyond [`ARROWS`]: what only tests use.
const TEST_ARROWS: &[(&str, &[&str])] = &[
    ("agent", &["control", "relay", "testnet"]),
    ("control", &["derp-proto", "testnet"]),
    ("relay", &["testnet"]),
    ("netlink", &["testnet"]),
    // The simulation's NATs are those of the lab.
    ("node-core", &["testnet"]),
    ("tunnel", &["testnet"]),
    ("dataplane", &["control-proto", "policy", "testnet"]),
];

/// Outside packages with owners: nobody else touches them.
const OWNERS: &[(&[&str], &[&str])] = &[
    // The user half of the ABI implements aya's `Pod` behind a feature.
    (&["aya", "aya-log", "aya-obj"], &["dataplane", "ebpf-abi"]),
    (&["aya-ebpf", "aya-log-ebpf"], &["ebpf"]),
    (
        &[
            "rtnetlink",
            "genetlink",
            "netlink-packet-core",
            "netlink-packet-route",
            "netlink-packet-generic",
            "netlink-packet-wireguard",
            "netlink-packet-netfilter",
            "netlink-sys",
            "wireguard-control",
        ],
        &["netlink"],
    ),
    (&["sqlx"], &["control"]),
    (&["jsonc-parser", "miette"], &["policy"]),
    // `bench` measures the stock one beside ours.
    (&["gotatun"], &["tunnel", "bench"]),
    (&["zbus"], &["agent"]),
    (&["snow"], &["control-proto"]),
    // Cores are driven from outside: no runtime in them.
    (
        &["tokio"],
        &[
            "agent",
            "control",
            "relay",
            "bench",
            "noise-io",
            "netlink",
            "dataplane",
        ],
    ),
    // One provider of cryptography: aws-lc-rs.
    (&["ring"], &[]),
];

/// Lines after which a file surely holds two nouns.
const MAX_LINES: usize = 800;
/// Folders that hold no sources of ours.
const FOREIGN: &[&str] = &["target", ".git", "node_modules"];

/// Checks everything and reports all that is wrong.
///
/// # Errors
///
/// When something is wrong; each line names the place.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut wrong = Vec::new();
    check_packages(&packages(&workspace.metadata(&["--no-deps"])?)?, &mut wrong);
    let mut files = Vec::new();
    sources(&workspace.root, &mut files)?;
    for file in &files {
        let text = fs::read_to_string(file)?;
        let name = file.strip_prefix(&workspace.root).unwrap_or(file);
        wrong.extend(check_source(name, &text));
    }
    if wrong.is_empty() {
        println!(
            "tidy: {} files, {} packages: all in order",
            files.len(),
            ARROWS.len()
        );
        return Ok(());
    }
    bail!("not tidy:\n  {}", wrong.join("\n  "))
}

/// A package of ours and what its manifest names.
#[derive(Debug)]
struct Package {
    name: String,
    /// Normal and build dependencies.
    dependencies: BTreeSet<String>,
    /// Dev-dependencies.
    for_tests: BTreeSet<String>,
}

fn packages(metadata: &Value) -> Result<Vec<Package>> {
    let list = metadata
        .get("packages")
        .and_then(Value::as_array)
        .context("no packages")?;
    list.iter()
        .map(|package| {
            let text = |value: &Value, key: &str| {
                value.get(key).and_then(Value::as_str).map(str::to_owned)
            };
            let name = text(package, "name").context("a package without a name")?;
            let mut dependencies = BTreeSet::new();
            let mut for_tests = BTreeSet::new();
            let entries = package.get("dependencies").and_then(Value::as_array);
            for entry in entries.into_iter().flatten() {
                let dependency = text(entry, "name").context("a dependency without a name")?;
                let dev = entry.get("kind").and_then(Value::as_str) == Some("dev");
                if dev {
                    &mut for_tests
                } else {
                    &mut dependencies
                }
                .insert(dependency);
            }
            Ok(Package {
                name,
                dependencies,
                for_tests,
            })
        })
        .collect()
}

fn check_packages(packages: &[Package], wrong: &mut Vec<String>) {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let test_arrows: BTreeMap<&str, &[&str]> = TEST_ARROWS.iter().copied().collect();
    let ours: BTreeSet<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    for package in packages {
        let name = package.name.as_str();
        for (outside, owners) in OWNERS {
            for dependency in package.dependencies.iter().chain(&package.for_tests) {
                // A runtime in tests of a core does no harm; a second owner of a kernel seam does.
                let harmless = dependency == "tokio" && !package.dependencies.contains("tokio");
                if outside.contains(&dependency.as_str()) && !owners.contains(&name) && !harmless {
                    wrong.push(format!(
                        "{name} -> {dependency}: belongs to {}",
                        owners.join(", ")
                    ));
                }
            }
        }
        if UNBOUND.contains(&name) {
            continue;
        }
        let Some(allowed) = arrows.get(name) else {
            wrong.push(format!(
                "{name}: not in xtask's table of arrows (xtask/src/tidy.rs)"
            ));
            continue;
        };
        let extra = test_arrows.get(name).copied().unwrap_or_default();
        for dependency in package
            .dependencies
            .iter()
            .filter(|name| ours.contains(name.as_str()))
        {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} -> {dependency}: no such arrow"));
            }
        }
        for dependency in package
            .for_tests
            .iter()
            .filter(|name| ours.contains(name.as_str()))
        {
            let known = [*allowed, extra].concat();
            if !known.contains(&dependency.as_str()) && dependency != name {
                wrong.push(format!("{name} -> {dependency} (tests): no such arrow"));
            }
        }
    }
}

/// Collects the `.rs` files below `folder`.
fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if !FOREIGN.iter().any(|foreign| name == *foreign) {
                sources(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn check_source(name: &Path, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if !text.starts_with("//!") {
        wrong.push(format!("{}:1: does not open with `//!`", name.display()));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        wrong.push(format!(
            "{}:{lines}: longer than {MAX_LINES} lines",
            name.display()
        ));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str], for_tests: &[&str]) -> Package {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Package {
            name: name.to_owned(),
            dependencies: set(dependencies),
            for_tests: set(for_tests),
        }
    }

    #[test]
    fn an_arrow_upwards_is_named() {
        let mut wrong = Vec::new();
        let packages = [
            package("keys", &["agent"], &[]),
            package("agent", &["keys"], &[]),
        ];
        check_packages(&packages, &mut wrong);
        assert_eq!(wrong, ["keys -> agent: no such arrow"]);
    }

    #[test]
    fn a_kernel_seam_has_one_owner_even_in_tests() {
        let mut wrong = Vec::new();
        check_packages(&[package("agent", &["rtnetlink"], &["aya"])], &mut wrong);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
    }

    #[test]
    fn a_core_may_have_a_runtime_in_its_tests_only() {
        let mut wrong = Vec::new();
        check_packages(&[package("derp-proto", &[], &["tokio"])], &mut wrong);
        assert!(wrong.is_empty(), "{wrong:?}");
        check_packages(&[package("derp-proto", &["tokio"], &[])], &mut wrong);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
    }

    #[test]
    fn a_file_opens_with_its_purpose() {
        assert!(check_source(Path::new("a.rs"), "//! A.\n").is_empty());
        let wrong = check_source(Path::new("a.rs"), "use std::fs;\n");
        assert_eq!(wrong, ["a.rs:1: does not open with `//!`"]);
    }
}
