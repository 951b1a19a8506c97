//! Where things are: the repository, cargo, the tool cache.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::program;

/// The programs that the netns tests, the demo and the interop tests run.
pub(crate) const DAEMONS: [(&str, &str); 3] = [
    ("agent", "tailrace"),
    ("control", "tailrace-control"),
    ("relay", "tailrace-relay"),
];

/// The repository and the folders around it.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Folder of the root manifest.
    pub(crate) root: PathBuf,
    /// Tools and kernels that outlive `cargo clean`: `$TAILRACE_CACHE`, else
    /// `$XDG_CACHE_HOME/tailrace`, else `~/.cache/tailrace`.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    /// Finds the repository that this program was built from.
    ///
    /// # Errors
    ///
    /// When neither a cache folder nor a home folder is known.
    pub(crate) fn find() -> Result<Workspace> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("xtask lies in the repository")?
            .to_owned();
        Ok(Workspace {
            root,
            cache: testnet::cache().context("no cache folder: set TAILRACE_CACHE or HOME")?,
        })
    }

    /// A cargo command in the repository.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }

    /// Builds the three daemons and returns their folder.
    ///
    /// `TAILRACE_BIN_DIR` names daemons built elsewhere, which are used as they are.
    ///
    /// # Errors
    ///
    /// When the build fails; cargo has said why.
    pub(crate) fn build_daemons(&self, release: bool) -> Result<PathBuf> {
        if let Some(folder) = env::var_os("TAILRACE_BIN_DIR") {
            return Ok(PathBuf::from(folder));
        }
        eprintln!("Building tailrace, tailrace-control and tailrace-relay");
        let mut command = self.cargo();
        command.arg("build").arg("--quiet");
        if release {
            command.arg("--release");
        }
        for (package, binary) in DAEMONS {
            command.args(["--package", package, "--bin", binary]);
        }
        program::run(&mut command)?;
        Ok(self
            .target()?
            .join(if release { "release" } else { "debug" }))
    }

    /// Cargo's target folder, wherever the user's configuration puts it.
    ///
    /// # Errors
    ///
    /// When cargo cannot say.
    pub(crate) fn target(&self) -> Result<PathBuf> {
        let metadata = self.metadata(&["--no-deps"])?;
        let folder = metadata
            .get("target_directory")
            .and_then(serde_json::Value::as_str);
        Ok(PathBuf::from(
            folder.context("cargo metadata names no target_directory")?,
        ))
    }

    /// `cargo metadata`.
    ///
    /// # Errors
    ///
    /// When cargo fails or prints no JSON.
    pub(crate) fn metadata(&self, options: &[&str]) -> Result<serde_json::Value> {
        let mut command = self.cargo();
        command
            .args(["metadata", "--format-version", "1"])
            .args(options);
        serde_json::from_str(&program::quiet(&mut command)?).context("cargo metadata is no JSON")
    }

    /// Folder of the kernels for the VM tests.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.cache.join("kernels")
    }
}

/// The path as text, for command lines.
///
/// # Errors
///
/// When it is not UTF-8.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
