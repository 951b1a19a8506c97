//! Every broken file in `broken/` is refused, with the message in the text file beside it.
//!
//! `UPDATE_EXPECT=1 cargo test -p policy --test broken` writes the messages anew; read the diff.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::path::{Path, PathBuf};

use policy::file::Context;
use policy::{Diagnostics, Policy};

#[test]
fn every_broken_file_is_refused_with_its_message() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let files = broken_files();
    assert!(files.len() >= 30, "only {} broken files", files.len());
    let mut differ = Vec::new();
    for path in files {
        let told = message(&path);
        let beside = path.with_extension("txt");
        if update {
            fs::write(&beside, &told).unwrap();
        }
        let expected = fs::read_to_string(&beside)
            .unwrap_or_else(|error| panic!("{} has no message: {error}", path.display()));
        if told != expected {
            differ.push(format!(
                "{}:\n{told}\nexpected:\n{expected}",
                path.display()
            ));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn no_message_is_without_its_file() {
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        assert!(
            path.with_extension("hujson").exists(),
            "{} belongs to no file",
            path.display()
        );
    }
}

/// The causes, one a line, and the excerpts.
fn message(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let context = Context {
        domains: vec!["example.com".to_owned()],
        known_groups: Vec::new(),
        ssh_check: true,
    };
    let refused: Diagnostics = match Policy::parse("policy.hujson", &text, &context) {
        Ok(_) => panic!("{} is accepted", path.display()),
        Err(refused) => refused,
    };
    let mut told = String::new();
    for diagnostic in &refused.list {
        let cause = serde_json::to_string(&diagnostic.cause).unwrap();
        let (line, column) = refused.position(diagnostic.span.start);
        told.push_str(&format!("{line}:{column} {}\n", cause.trim_matches('"')));
    }
    format!("{told}\n{}", refused.render())
}

fn broken_files() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|it| it == "hujson"))
        .collect();
    files.sort();
    files
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken")
}
