//! What a machine's kernel holds, to compare before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use testnet::Namespace;

/// Commands that show the kernel's network state, without what packets count.
const VIEWS: &[&[&str]] = &[
    &["ip", "-o", "link"],
    &["ip", "-o", "address"],
    &["ip", "-4", "rule"],
    &["ip", "-6", "rule"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["nft", "-s", "list", "ruleset"],
];

/// Links, addresses, rules, routes, nftables and pinned BPF objects of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelState(BTreeMap<String, String>);

impl KernelState {
    /// Reads the state of `namespace`.
    ///
    /// # Errors
    ///
    /// When a command fails.
    pub fn of(namespace: &Namespace) -> Result<KernelState> {
        let mut views = BTreeMap::new();
        for view in VIEWS {
            views.insert(view.join(" "), without_mtus(&namespace.exec(view)?));
        }
        let pins = namespace.enter(|| pins(Path::new("/sys/fs/bpf")))?;
        views.insert("/sys/fs/bpf".to_owned(), pins.join("\n"));
        Ok(KernelState(views))
    }

    /// The views in which `self` and `other` differ, both versions of each.
    #[must_use]
    pub fn difference(&self, other: &KernelState) -> String {
        let mut text = String::new();
        for (view, before) in &self.0 {
            let after = other.0.get(view).map_or("", String::as_str);
            if before != after {
                text.push_str(&format!(
                    "# {view}\n--- before\n{before}\n--- after\n{after}\n"
                ));
            }
        }
        text
    }
}

/// `text` without the MTUs in it: how long packets may be follows paths, which change meanwhile.
fn without_mtus(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once(" mtu ") {
        kept.push_str(before);
        rest = behind.trim_start_matches(|digit: char| digit.is_ascii_digit());
    }
    kept + rest
}

/// Every path below `folder`.
fn pins(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        paths.push(path.display().to_string());
        if path.is_dir() {
            paths.extend(pins(&path));
        }
    }
    paths.sort();
    paths
}
