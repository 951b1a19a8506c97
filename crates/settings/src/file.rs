//! A TOML file into a typed value, with errors an operator can act on.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a settings file cannot be used. The message names the file, the line and the likely fix.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file is missing or unreadable.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("configuration file {path}, {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Line and cause, with a suggestion where there is one.
        problem: String,
    },
}

/// Reads the file at `path`.
///
/// # Errors
///
/// See [`FileError`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let text = std::fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text).map_err(|problem| FileError::Content {
        path: path.to_owned(),
        problem,
    })
}

/// Reads settings from the text of a file.
///
/// # Errors
///
/// One line: where, what, and the likely fix.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let cause = explain(error.message());
        let start = error.span().map(|span| span.start.min(text.len()));
        match start {
            Some(start) => {
                let line = 1 + text.as_bytes()[..start]
                    .iter()
                    .filter(|b| **b == b'\n')
                    .count();
                format!("line {line}: {cause}")
            }
            None => cause,
        }
    })
}

/// Turns "unknown field `prot`, expected one of …" into a suggestion.
fn explain(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), names.next()) {
        (true, Some(unknown)) => {
            let known: Vec<&str> = names.collect();
            match closest(unknown, &known) {
                Some(likely) => {
                    format!("unknown setting \"{unknown}\": did you mean \"{likely}\"?")
                }
                None => format!(
                    "unknown setting \"{unknown}\": known are {}",
                    known.join(", ")
                ),
            }
        }
        _ => message.lines().collect::<Vec<_>>().join(" "),
    }
}

/// The candidate within a third of its length in edits, if any.
fn closest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(edits, candidate)| *edits <= 1 + candidate.len() / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        device: Option<String>,
        port: Option<u16>,
    }

    #[test]
    fn a_misspelt_name_is_refused_with_line_and_suggestion() {
        let problem = parse::<Example>("device = \"t0\"\nprot = 1\n").unwrap_err();
        assert_eq!(
            problem,
            "line 2: unknown setting \"prot\": did you mean \"port\"?"
        );
    }

    #[test]
    fn an_unknown_name_without_a_likely_meaning_lists_what_is_known() {
        let problem = parse::<Example>("colour = \"blue\"\n").unwrap_err();
        assert!(problem.ends_with("known are device, port"), "{problem}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_its_line() {
        let problem = parse::<Example>("device = \"é\"\nport = \"many\"\n").unwrap_err();
        assert!(problem.starts_with("line 2: "), "{problem}");
        assert_eq!(problem.lines().count(), 1);
    }

    #[test]
    fn a_missing_file_is_named() {
        let problem = read::<Example>(Path::new("/nowhere/x.toml"))
            .unwrap_err()
            .to_string();
        assert!(problem.starts_with("cannot read the configuration file /nowhere/x.toml: "));
    }

    #[test]
    fn a_broken_file_is_named_with_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        std::fs::write(&path, "port = = 1\n").unwrap();
        let problem = read::<Example>(&path).unwrap_err().to_string();
        assert!(problem.contains("x.toml, line 1: "), "{problem}");
    }

    #[test]
    fn what_is_right_is_read() {
        let example: Example = parse("device = \"t0\"\nport = 7\n").unwrap();
        assert_eq!(
            (example.device.as_deref(), example.port),
            (Some("t0"), Some(7))
        );
    }
}
