//! bpf-linker, linked against the LLVM that the compiler itself ships.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::rust_src::sysroot;
use crate::program::{quiet, run};
use crate::workspace::{Workspace, text};

/// The version that speaks our compiler's LLVM.
const VERSION: &str = "0.13.0";
/// LLVM's major version in Rust 1.95.
const LLVM_FEATURE: &str = "llvm-22";

/// Installs bpf-linker into the cache unless it is there; returns the folder above its `bin`.
///
/// # Errors
///
/// When cargo cannot build it.
pub(crate) fn install(workspace: &Workspace) -> Result<PathBuf> {
    let tools = workspace.cache.join("tools");
    let linker = tools.join("bin/bpf-linker");
    if works(&linker) {
        return Ok(tools);
    }
    eprintln!("Building bpf-linker {VERSION} (about a minute, once)");
    let sysroot = sysroot(workspace)?;
    let libraries = sysroot.join("lib");
    let prefix = workspace.cache.join("llvm");
    link_llvm(&libraries, &prefix.join("lib"))?;
    // Outside the repository, whose settings are not the tool's; the compiler stays ours.
    let mut cargo = workspace.cargo();
    cargo
        .current_dir(&workspace.cache)
        .env("LLVM_PREFIX", &prefix)
        .env(
            "RUSTFLAGS",
            format!("-C link-arg=-Wl,-rpath,{}", text(&libraries)?),
        )
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
        ])
        .args(["--no-default-features", "--features", LLVM_FEATURE])
        .arg("--root")
        .arg(&tools);
    run(&mut cargo)?;
    ensure!(works(&linker), "bpf-linker was built but does not run");
    Ok(tools)
}

/// Whether it runs, and so finds its LLVM, and is of our version.
fn works(linker: &Path) -> bool {
    let text = quiet(Command::new(linker).arg("--version"));
    text.is_ok_and(|text| text.trim() == format!("bpf-linker {VERSION}"))
}

/// Gives the compiler's LLVM the name that a linker looks for.
fn link_llvm(libraries: &Path, folder: &Path) -> Result<()> {
    let llvm = fs::read_dir(libraries)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("libLLVM.so."))
        })
        .with_context(|| {
            format!(
                "the compiler ships no libLLVM.so in {}",
                libraries.display()
            )
        })?;
    fs::create_dir_all(folder)?;
    let link = folder.join("libLLVM.so");
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink(llvm, link)?;
    Ok(())
}
