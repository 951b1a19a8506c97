//! Replays every committed corpus, whole and damaged.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{fs, path::PathBuf};

use fuzz::TARGETS;

/// Longest input of which every truncation is tried, in bytes.
const MAX_TRUNCATED_LEN: usize = 2048;

#[test]
fn every_corpus_replays_whole_truncated_and_with_flipped_bits() {
    for (name, target) in TARGETS {
        for input in corpus(name) {
            target(&input);
            let step = input.len().div_ceil(MAX_TRUNCATED_LEN).max(1);
            for len in (0..input.len()).step_by(step) {
                target(&input[..len]);
                let mut flipped = input.clone();
                flipped[len] ^= 1 << (len % 8);
                target(&flipped);
            }
        }
    }
}

#[test]
fn every_corpus_folder_has_a_target() {
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(
            TARGETS.iter().any(|(target, _)| name == *target),
            "{name:?} has no target"
        );
    }
}

#[test]
fn every_target_is_known_to_cargo_fuzz() {
    let manifest =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("libfuzzer/Cargo.toml"))
            .unwrap();
    for (name, _) in TARGETS {
        assert!(
            manifest.contains(&format!("\"{name}\"")),
            "libfuzzer/Cargo.toml lacks {name}"
        );
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The files of a corpus; there must be some.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = root().join(name);
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("no corpus in {}: {error}", folder.display()));
    let files: Vec<_> = entries
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!files.is_empty(), "the corpus of {name} is empty");
    files
}
