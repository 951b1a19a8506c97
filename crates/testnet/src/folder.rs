//! A temporary folder that goes with its guard.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// Prefix of everything that this crate names: `tr<pid>-…`.
pub(crate) const PREFIX: &str = "tr";

/// An empty folder under the system's temporary folder; removed with its contents on drop.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes `<tmp>/tr<pid>-<label>.<n>`.
    ///
    /// # Errors
    ///
    /// When the file system refuses.
    pub fn new(label: &str) -> Result<Folder> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{label}.{number}", process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Folder(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("testnet: {} stays: {error}", self.0.display());
        }
    }
}
