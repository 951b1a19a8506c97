//! The standard library's source, from which the BPF target's `core` is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::Release;
use crate::program::{find, quiet, run};
use crate::workspace::Workspace;

/// Debian release that carries our compiler's source package.
const SUITE: &str = "trixie-backports";

/// Installs rust-src into the compiler's sysroot: by rustup, else from Debian.
///
/// # Errors
///
/// When neither works; says what each of them answered.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let sysroot = sysroot(workspace)?;
    let source = sysroot.join("lib/rustlib/src/rust");
    if source.join("library/core/Cargo.toml").is_file() {
        return Ok(());
    }
    let version = version(workspace)?;
    eprintln!("Installing rust-src of Rust {version}");
    let by_rustup = rustup(workspace, &version);
    let Err(rustup_error) = by_rustup else {
        return Ok(());
    };
    eprintln!("rustup could not ({rustup_error:#}); trying Debian's package");
    debian(workspace, &version, &source).with_context(|| {
        format!(
            "rust-src is missing: `rustup component add rust-src --toolchain {version}` failed \
             ({rustup_error:#}), and so did Debian's package"
        )
    })
}

/// The folder that the compiler lives in.
///
/// # Errors
///
/// When rustc does not run.
pub(crate) fn sysroot(workspace: &Workspace) -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--print", "sysroot"])
        .current_dir(&workspace.root);
    Ok(PathBuf::from(quiet(&mut rustc)?.trim()))
}

/// The compiler's version: `1.95.0`.
fn version(workspace: &Workspace) -> Result<String> {
    let text = quiet(
        Command::new("rustc")
            .arg("--version")
            .current_dir(&workspace.root),
    )?;
    let version = text
        .split(' ')
        .nth(1)
        .context("rustc --version names no version")?;
    Ok(version.to_owned())
}

fn rustup(workspace: &Workspace, version: &str) -> Result<()> {
    if find("rustup").is_none() {
        bail!("rustup is not installed");
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src", "--toolchain", version]);
    run(rustup.current_dir(&workspace.root))
}

fn debian(workspace: &Workspace, version: &str, source: &Path) -> Result<()> {
    let release = Release::fetch(&workspace.cache.join("apt").join(SUITE), SUITE)?;
    let own = |candidate: &String| candidate.starts_with(version);
    let candidate = release.versions("rust-src")?.into_iter().find(own);
    let candidate = candidate
        .with_context(|| format!("Debian {SUITE} has no rust-src of version {version}"))?;
    let tree = workspace.cache.join("rust-src").join(version);
    release.unpack(&[format!("rust-src={candidate}")], &tree)?;
    let unpacked = tree.join(format!("usr/src/rustc-{version}"));
    let parent = source.parent().context("the source folder has a parent")?;
    fs::create_dir_all(parent)?;
    std::os::unix::fs::symlink(&unpacked, source)
        .with_context(|| format!("cannot link {} into the toolchain", unpacked.display()))
}
