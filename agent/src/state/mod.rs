//! The state folder: keys, preferences and the last network map, one file each, 0600, replaced atomically.
//!
//! | File | Holds | If damaged |
//! |---|---|---|
//! | `identity.json` | machine, node and disco keys, keys of known servers | the daemon refuses to start |
//! | `prefs.json` | [`Prefs`](crate::prefs::Prefs) | the daemon refuses to start |
//! | `netmap.json` | the last network map | ignored with a warning, fetched again |
//! | `lock` | nothing; held while a daemon runs | |

mod identity;
mod netmap;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keys::DiscoPrivate;
use serde::Serialize;
use serde::de::DeserializeOwned;
use settings::private_file;

use crate::blocking::in_place;
use crate::prefs::Prefs;

pub use identity::Identity;
pub use netmap::{CachedMap, CachedMapRef};

const IDENTITY: &str = "identity.json";
const PREFS: &str = "prefs.json";
const NETMAP: &str = "netmap.json";
const LOCK: &str = "lock";
const PROBE: &str = "probe.new";

/// A state folder that this process holds exclusively.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// Why state could not be read or written. The message names the file and the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another daemon holds the folder.
    #[error(
        "another daemon already uses the state folder {0}: stop it, or give this one its own --state-dir"
    )]
    InUse(PathBuf),
    /// A file or folder cannot be used.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A file holds what we did not write.
    #[error("{path} is damaged ({problem}): {fix}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it stopped making sense.
        problem: String,
        /// What to do.
        fix: &'static str,
    },
}

impl StateDir {
    /// Opens the folder, makes it if it is missing (0700), and locks it for this process.
    ///
    /// # Errors
    ///
    /// [`StateError::InUse`] if another daemon runs on it, [`StateError::Io`] if it cannot be made.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io {
                operation,
                path,
                source,
            }
        };
        private_file::create_folder(path).map_err(io("make the state folder", path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(StateError::Io {
                operation: "lock",
                path: lock_path,
                source,
            }),
        }
    }

    /// Returns the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether files can be replaced in the folder.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        let probe = self.path.join(PROBE);
        std::fs::write(&probe, []).is_ok() && std::fs::remove_file(&probe).is_ok()
    }

    /// Reads the keys of this node; makes and stores new ones if there are none yet.
    ///
    /// # Errors
    ///
    /// [`StateError::Damaged`] rather than new keys if the file cannot be understood.
    pub fn identity(&self) -> Result<Identity, StateError> {
        let fix = "restore it from a backup, or remove it to join again as a new node";
        let Some(stored) = self.read::<identity::Stored>(IDENTITY, fix)? else {
            let identity = Identity::generate();
            self.save_identity(&identity)?;
            return Ok(identity);
        };
        Identity::try_from(stored).map_err(|problem| StateError::Damaged {
            path: self.path.join(IDENTITY),
            problem,
            fix,
        })
    }

    /// Stores the keys of this node.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`].
    pub fn save_identity(&self, identity: &Identity) -> Result<(), StateError> {
        self.write(IDENTITY, &identity::Stored::from(identity))
    }

    /// Takes another disco key: by it peers see that this process has none of the sessions of the one before,
    /// and drop theirs at once instead of after fifteen seconds without an answer.
    ///
    /// # Errors
    ///
    /// As [`StateDir::identity`].
    pub fn renew_disco(&self) -> Result<(), StateError> {
        let mut identity = self.identity()?;
        identity.disco = DiscoPrivate::generate();
        self.save_identity(&identity)
    }

    /// Reads the preferences; the defaults if none are stored.
    ///
    /// # Errors
    ///
    /// [`StateError::Damaged`] if the file cannot be understood.
    pub fn prefs(&self) -> Result<Prefs, StateError> {
        let fix = "correct it, or remove it and run `tailrace up` again";
        Ok(self.read(PREFS, fix)?.unwrap_or_default())
    }

    /// Stores the preferences.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`].
    pub fn save_prefs(&self, prefs: &Prefs) -> Result<(), StateError> {
        self.write(PREFS, prefs)
    }

    /// Reads the last network map, if one is stored.
    ///
    /// # Errors
    ///
    /// [`StateError::Damaged`] if the file cannot be understood; the map can be done without.
    pub fn netmap(&self) -> Result<Option<CachedMap>, StateError> {
        self.read(NETMAP, "it is fetched again from the coordination server")
    }

    /// Stores a network map.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`].
    pub fn save_netmap(&self, map: &CachedMapRef<'_>) -> Result<(), StateError> {
        self.write(NETMAP, map)
    }

    /// Forgets the stored network map; fine if there is none.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`].
    pub fn remove_netmap(&self) -> Result<(), StateError> {
        let path = self.path.join(NETMAP);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Io {
                operation: "remove",
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    fn read<T: DeserializeOwned>(
        &self,
        name: &str,
        fix: &'static str,
    ) -> Result<Option<T>, StateError> {
        let path = self.path.join(name);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StateError::Io {
                    operation: "read",
                    path,
                    source,
                });
            }
        };
        // As lenient as on the wire: the cached map is what came over it.
        match control_proto::json::from_slice(&text) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(StateError::Damaged {
                path,
                problem: error.to_string(),
                fix,
            }),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let path = self.path.join(name);
        let written = in_place(|| {
            private_file::write_with(&path, |file| Ok(serde_json::to_writer(file, value)?))
        });
        written.map_err(|source| StateError::Io {
            operation: "write",
            path,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        (folder, state)
    }

    #[test]
    fn keys_are_made_once_and_kept() {
        let (_folder, state) = open();
        let first = state.identity().unwrap();
        let again = state.identity().unwrap();
        assert_eq!(first.machine.public(), again.machine.public());
        assert_eq!(first.node.public(), again.node.public());
        assert_eq!(first.disco.public(), again.disco.public());
        assert_eq!(first.log_id, again.log_id);
    }

    #[test]
    fn a_process_without_sessions_takes_another_disco_key_and_nothing_else() {
        let (_folder, state) = open();
        let first = state.identity().unwrap();
        state.renew_disco().unwrap();
        let again = state.identity().unwrap();
        assert_ne!(first.disco.public(), again.disco.public());
        assert_eq!(first.node.public(), again.node.public());
    }

    #[test]
    fn only_the_owner_reads_the_files() {
        let (_folder, state) = open();
        state.identity().unwrap();
        state.save_prefs(&Prefs::default()).unwrap();
        for name in [IDENTITY, PREFS] {
            let mode = std::fs::metadata(state.path().join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_damaged_key_file_is_never_replaced() {
        let (_folder, state) = open();
        state.identity().unwrap();
        let path = state.path().join(IDENTITY);
        let whole = std::fs::read_to_string(&path).unwrap();
        for damaged in [
            "",
            "{",
            &whole[..whole.len() / 2],
            &whole.replace("privkey:", "privkey:z"),
        ] {
            std::fs::write(&path, damaged).unwrap();
            let error = state.identity().unwrap_err().to_string();
            assert!(error.contains("identity.json is damaged"), "{error}");
            assert!(error.contains("backup"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn an_error_about_a_damaged_key_does_not_show_the_key() {
        let (_folder, state) = open();
        let identity = state.identity().unwrap();
        let path = state.path().join(IDENTITY);
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, whole.replace("privkey:", "privkey;")).unwrap();
        let secret = hex::encode(identity.machine.as_bytes());
        assert!(!state.identity().unwrap_err().to_string().contains(&secret));
    }

    #[test]
    fn a_second_daemon_on_the_same_folder_is_refused() {
        let (_folder, state) = open();
        let error = StateDir::open(state.path()).unwrap_err();
        assert!(matches!(&error, StateError::InUse(_)), "{error}");
        let path = state.path().to_owned();
        drop(state);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_half_written_file_of_a_crash_does_not_matter() {
        let (_folder, state) = open();
        let prefs = Prefs {
            hostname: "kept".into(),
            ..Prefs::default()
        };
        state.save_prefs(&prefs).unwrap();
        std::fs::write(state.path().join("prefs.json.new"), "{\"Hostn").unwrap();
        assert_eq!(state.prefs().unwrap(), prefs);
        state.save_prefs(&Prefs::default()).unwrap();
        assert_eq!(state.prefs().unwrap(), Prefs::default());
    }
}
