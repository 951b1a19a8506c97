//! The file of `serve --policy`, watched.
//!
//! It is looked at several times a second, through all symbolic links: that sees a file that is
//! written, replaced by a rename, or swapped behind a link (a Kubernetes ConfigMap), on any file
//! system, which no kernel watch does. What is looked at is device, inode, size and times, so
//! nothing is read as long as nothing changed.

use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// More than any policy may have; what is longer is not read on.
const MAX_BYTES: u64 = 32 << 20;

/// The file, and which state of it was read last.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    read: Option<Stamp>,
    /// Seen once and not read yet: it is read when it is the same the next time, since a program
    /// may be in the middle of writing or replacing it.
    unsettled: Option<Option<Stamp>>,
}

/// Tells states of a file apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says no.
    #[error("cannot read the policy file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It holds something else.
    #[error("the policy file {0} is not UTF-8 text")]
    NotText(PathBuf),
    /// Reading it might never end.
    #[error("the policy file {0} is not a regular file")]
    NotAFile(PathBuf),
    /// It is no policy for sure.
    #[error("the policy file {0} has more than 32 MiB, far more than a policy may have")]
    TooLong(PathBuf),
}

impl PolicyFile {
    /// Not read yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: None,
            unsettled: None,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub fn read(&mut self) -> Result<String, ReadError> {
        // First: what is written from here on is another state, and read again.
        self.read = self.stamp();
        self.unsettled = None;
        read_policy(&self.path)
    }

    /// Looks whether the file is another than the one that was read, and has been the same since
    /// the last look.
    pub fn changed(&mut self) -> bool {
        let stamp = self.stamp();
        if stamp == self.read {
            self.unsettled = None;
            return false;
        }
        let settled = self.unsettled == Some(stamp);
        self.unsettled = Some(stamp);
        settled
    }

    fn stamp(&self) -> Option<Stamp> {
        // What cannot be looked at cannot be read either, and reading says why.
        let it = std::fs::metadata(&self.path).ok()?;
        Some(Stamp {
            file: (it.dev(), it.ino()),
            size: it.size(),
            modified: (it.mtime(), it.mtime_nsec()),
            changed: (it.ctime(), it.ctime_nsec()),
        })
    }
}

/// Reads a regular file.
///
/// # Errors
///
/// See [`ReadError`].
pub fn read_policy(path: &Path) -> Result<String, ReadError> {
    let failed = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    // Opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(ReadError::NotAFile(path.to_owned()));
    }
    read_text(path, std::fs::File::open(path).map_err(failed)?)
}

/// Reads a policy from `source`, called `path`.
///
/// # Errors
///
/// See [`ReadError`].
pub fn read_text(path: &Path, source: impl io::Read) -> Result<String, ReadError> {
    let failed = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let mut limited = source.take(MAX_BYTES + 1);
    limited.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ReadError::TooLong(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| ReadError::NotText(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A watched file that holds `{}` and was read.
    fn watched(path: &Path) -> PolicyFile {
        let mut file = PolicyFile::new(path.to_owned());
        assert_eq!(file.read().unwrap(), "{}");
        assert!(!file.changed() && !file.changed(), "nothing happened");
        file
    }

    fn settles(file: &mut PolicyFile) -> bool {
        let at_once = file.changed();
        assert!(!at_once, "it may be half written");
        file.changed()
    }

    #[test]
    fn a_file_that_is_written_or_replaced_is_seen_once_it_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy");
        fs::write(&path, "{}").unwrap();
        let mut file = watched(&path);
        fs::write(&path, "{ }").unwrap();
        assert!(settles(&mut file));
        assert_eq!(file.read().unwrap(), "{ }");
        assert!(!file.changed());

        let aside = folder.path().join("aside");
        fs::write(&aside, "[ ]").unwrap();
        fs::rename(&aside, &path).unwrap();
        assert!(settles(&mut file), "same length, perhaps the same second");
        assert_eq!(file.read().unwrap(), "[ ]");
    }

    #[test]
    fn a_link_that_is_swapped_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("v1", "{}"), ("v2", "{ }")] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("policy"), text).unwrap();
        }
        std::os::unix::fs::symlink(at("v1"), at("data")).unwrap();
        std::os::unix::fs::symlink(at("data").join("policy"), at("policy")).unwrap();
        let mut file = watched(&at("policy"));
        std::os::unix::fs::symlink(at("v2"), at("data.new")).unwrap();
        fs::rename(at("data.new"), at("data")).unwrap();
        assert!(settles(&mut file));
        assert_eq!(file.read().unwrap(), "{ }");
    }

    #[test]
    fn a_file_that_vanishes_for_a_moment_is_not_missed_and_one_that_stays_away_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy");
        let aside = folder.path().join("aside");
        fs::write(&path, "{}").unwrap();
        let mut file = watched(&path);
        fs::rename(&path, &aside).unwrap();
        assert!(!file.changed());
        fs::rename(&aside, &path).unwrap();
        // A rename changes the time of the inode: it is read again, to the same effect.
        if settles(&mut file) {
            assert_eq!(file.read().unwrap(), "{}");
        }
        fs::remove_file(&path).unwrap();
        assert!(settles(&mut file));
        let error = file.read().unwrap_err().to_string();
        assert!(error.contains("cannot read the policy file"), "{error}");
        assert!(!file.changed(), "it is said once");
    }

    #[test]
    fn a_pipe_is_refused_at_once_and_an_endless_source_after_the_limit() {
        let refused = read_policy(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(refused, ReadError::NotAFile(_)), "{refused}");
        let endless = read_text(Path::new("-"), io::repeat(b' ')).unwrap_err();
        assert!(matches!(endless, ReadError::TooLong(_)), "{endless}");
    }

    #[test]
    fn what_is_no_text_or_no_file_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy");
        fs::write(&path, [0xff]).unwrap();
        for bad in [path.as_path(), folder.path()] {
            let error = read_policy(bad).unwrap_err().to_string();
            assert!(error.contains(bad.to_str().unwrap()), "{error}");
        }
    }
}
