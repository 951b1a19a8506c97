//! Files of the state folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keys::NodePrivate;
use settings::private_file;

const KEY_FILE: &str = "derp.key";

/// A file that could not be read, written or understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key file holds something else.
    #[error("{path} holds no private key ({source}): restore it, or delete it to get a new key")]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: keys::KeyTextError,
    },
}

/// Reads the relay's private key from `state_dir`, or makes one and keeps it there (0600).
///
/// The folder is made (0700) if it is not there.
///
/// # Errors
///
/// [`FileError`], which names the file.
pub fn load_or_create_key(state_dir: &Path) -> Result<NodePrivate, FileError> {
    let path = state_dir.join(KEY_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|source| FileError::Key { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = NodePrivate::generate();
            let mut text = key.to_text();
            text.push('\n');
            write_private(&path, text.as_bytes())?;
            Ok(key)
        }
        Err(source) => Err(FileError::Read { path, source }),
    }
}

/// Writes a [`private_file`], and makes its folder (0700) if it is not there.
///
/// # Errors
///
/// [`FileError::Write`], which names the file.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let write = || {
        if let Some(folder) = path.parent() {
            private_file::create_folder(folder)?;
        }
        private_file::write(path, content)
    };
    write().map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_stays_the_same_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");

        let first = load_or_create_key(&state).unwrap();
        let second = load_or_create_key(&state).unwrap();

        assert_eq!(first.public(), second.public());
        let mode = fs::metadata(state.join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_file_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(KEY_FILE), "privkey:12").unwrap();

        let error = load_or_create_key(folder.path()).unwrap_err();

        assert!(error.to_string().contains("derp.key"), "{error}");
        assert_eq!(
            fs::read(folder.path().join(KEY_FILE)).unwrap(),
            b"privkey:12"
        );
    }
}
