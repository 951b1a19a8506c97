//! The state folder: private, with the server's Noise key in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keys::MachinePrivate;
use settings::private_file;

const NOISE_KEY: &str = "noise.key";
const DATABASE: &str = "control.db";
const SOCKET: &str = "control.sock";
const REFUSED_POLICY: &str = "refused-policy.hujson";

/// A state folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or written.
    #[error("cannot write to the state folder {path}: {source}; choose another with --state-dir")]
    Unwritable {
        /// Which folder or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The key file is unreadable.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The key file holds something else. A new key would cut off every node, so none is made.
    #[error("{path} holds no private key: restore it from a backup")]
    BadKey {
        /// Which file.
        path: PathBuf,
    },
}

/// Path of the database in the folder.
#[must_use]
pub fn database(state_dir: &Path) -> PathBuf {
    state_dir.join(DATABASE)
}

/// Path of the admin socket in the folder.
#[must_use]
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join(SOCKET)
}

/// Writes the policy of the database where people can correct it. Returns its path.
///
/// # Errors
///
/// It cannot be written.
pub fn refused_policy(state_dir: &Path, text: &str) -> Result<PathBuf, StateError> {
    let path = state_dir.join(REFUSED_POLICY);
    match private_file::write(&path, text.as_bytes()) {
        Ok(()) => Ok(path),
        Err(source) => Err(StateError::Unwritable { path, source }),
    }
}

/// Makes the folder (0700) if it is not there, and makes sure that it can be written.
///
/// # Errors
///
/// It cannot.
pub fn prepare(state_dir: &Path) -> Result<(), StateError> {
    let unwritable = |source| StateError::Unwritable {
        path: state_dir.to_owned(),
        source,
    };
    private_file::create_folder(state_dir).map_err(unwritable)?;
    let probe = state_dir.join(".write-probe");
    fs::write(&probe, b"")
        .and_then(|()| fs::remove_file(&probe))
        .map_err(unwritable)
}

/// Reads the server's Noise key, or makes one (0600; a crash leaves the whole file or none).
///
/// # Errors
///
/// See [`StateError`].
pub fn noise_key(state_dir: &Path) -> Result<MachinePrivate, StateError> {
    let path = state_dir.join(NOISE_KEY);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| StateError::BadKey { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = MachinePrivate::generate();
            match private_file::write(&path, key.to_text().as_bytes()) {
                Ok(()) => Ok(key),
                Err(source) => Err(StateError::Unwritable { path, source }),
            }
        }
        Err(source) => Err(StateError::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_noise_key_stays_the_same_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        prepare(&state).unwrap();
        let first = noise_key(&state).unwrap();
        assert_eq!(first.public(), noise_key(&state).unwrap().public());
        let mode = fs::metadata(state.join(NOISE_KEY))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_noise_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NOISE_KEY), "rubbish").unwrap();
        let error = noise_key(folder.path()).unwrap_err().to_string();
        assert!(error.contains("noise.key"), "{error}");
        assert_eq!(fs::read(folder.path().join(NOISE_KEY)).unwrap(), b"rubbish");
    }
}
