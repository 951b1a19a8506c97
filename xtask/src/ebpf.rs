//! `build-ebpf`: compiles the eBPF programs into `target/ebpf/tailrace.o`.
//!
//! The recipe needs no nightly compiler: the pinned stable one with `RUSTC_BOOTSTRAP=1` builds
//! `core` for the BPF target from its `rust-src`, and bpf-linker is linked against the very LLVM
//! that this compiler carries. `setup` installs both.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use object::build::elf;
use object::elf::SHT_STRTAB;

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "bpf-linker";

/// Builds the object and returns its path, `<root>/target/ebpf/tailrace.o`.
///
/// `root` is the repository, `tools` the folder whose `bin` holds bpf-linker. An unchanged object
/// keeps its time, so that nothing which embeds it is built again.
pub(crate) fn build(root: &Path, tools: &Path) -> Result<PathBuf> {
    build_with(root, tools, false)
}

/// As [`build`]; with `log`, the programs log each packet through aya-log (debugging only: such
/// an object is several times slower, and is read by a `dataplane` with feature `ebpf-log`).
pub(crate) fn build_with(root: &Path, tools: &Path, log: bool) -> Result<PathBuf> {
    let linker = tools.join("bin").join(LINKER);
    ensure!(
        linker.is_file(),
        "{} is missing: run `cargo xtask setup`",
        linker.display()
    );
    let sysroot = sysroot(root)?;
    let sources = sysroot.join("lib/rustlib/src/rust/library/core");
    ensure!(
        sources.is_dir(),
        "the compiler's rust-src component is missing ({}): run `cargo xtask setup`",
        sources.display()
    );

    // A folder of its own: this build never waits for the workspace's, which may be what started
    // it, nor the other way round.
    let target_dir = root.join("target/ebpf-build");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--package", "ebpf", "--release"])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        // One module, so that everything is inlined; line numbers and types for the verifier's log.
        .args(["--config", "profile.release.lto=true"])
        .args(["--config", "profile.release.codegen-units=1"])
        .args(["--config", "profile.release.debug=2"])
        .args(["--config", "profile.release.strip=false"])
        .args(["--config", "profile.release.panic='abort'"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        // Flags meant for the host, and coverage or sanitizers with them, have no place here.
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, &sysroot));
    if log {
        cargo.args(["--features", "log"]);
    }
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "building the eBPF programs failed");

    let built = target_dir.join(TARGET).join("release/ebpf");
    let object = root.join("target/ebpf/tailrace.o");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let stripped = without_dwarf(&bytes).context("taking the debugging sections out")?;
    install(&stripped, &object)?;
    Ok(object)
}

/// Flags of the compiler, in cargo's encoding. Type information goes into the object, the paths of
/// this machine do not, so that the same sources make the same object anywhere.
fn flags(root: &Path, sysroot: &Path) -> OsString {
    let home = env::var_os("HOME").unwrap_or_default();
    let registry = env::var_os("CARGO_HOME").map_or(Path::new(&home).join(".cargo"), PathBuf::from);
    let mut flags = OsString::from("-Clink-arg=--btf");
    for (path, name) in [(root, "."), (sysroot, "rust"), (&registry, "cargo")] {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(path);
        flags.push("=");
        flags.push(name);
    }
    flags
}

/// The object without the sections of DWARF, nine tenths of it: the linker makes BTF of them, which stays and is what
/// the verifier's log quotes. Every agent has all of the object in memory.
fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut elf = elf::Builder::read(object)?;
    // LLVM keeps names of sections and symbols in one; the writer wants two.
    let names = elf.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = elf::SectionData::SectionString;
    for section in &mut elf.sections {
        section.delete |= section.name.starts_with(b".debug_");
    }
    elf.delete_orphans();
    for section in &mut elf.sections {
        // Of what is gone, or what the linker has done already: nothing but programs is relocated by a loader.
        let done = [&b".rel.debug_"[..], b".rel.BTF"];
        section.delete |= done.iter().any(|name| section.name.starts_with(name));
    }
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(stripped)
}

/// Writes `object` in one step, if it differs.
fn install(bytes: &[u8], object: &Path) -> Result<()> {
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let Some(folder) = object.parent() else {
        bail!("{} has no folder", object.display());
    };
    let partial = object.with_extension("o.partial");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&partial, bytes))
        .and_then(|()| fs::rename(&partial, object))
        .with_context(|| format!("writing {}", object.display()))
}

fn sysroot(root: &Path) -> Result<PathBuf> {
    let output = Command::new("rustc")
        .current_dir(root)
        .args(["--print", "sysroot"])
        .output()
        .context("starting rustc")?;
    ensure!(output.status.success(), "`rustc --print sysroot` failed");
    let path = String::from_utf8(output.stdout).context("the sysroot's path is not UTF-8")?;
    Ok(PathBuf::from(path.trim()))
}
