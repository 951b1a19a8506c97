//! Debian's cloud kernels for the VM tests, in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::debian::Release;
use crate::program::quiet;
use crate::workspace::{Workspace, text};

/// Debian release that carries a kernel series; anything else is looked for in sid.
const RELEASES: &[(&str, &str)] = &[("6.1", "bookworm"), ("6.12", "trixie")];
/// The release with the newest kernel.
const NEWEST: &str = "sid";
/// The package that depends on the newest image of a release.
const META: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// What it is asked for by: `6.12`.
    pub(crate) name: String,
    /// What `uname -r` says.
    pub(crate) version: String,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// Folder above `lib/modules`.
    pub(crate) tree: PathBuf,
}

/// The kernels in the cache.
///
/// # Errors
///
/// When the cache cannot be read.
pub(crate) fn cached(workspace: &Workspace) -> Result<Vec<Kernel>> {
    let folder = workspace.kernels();
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut kernels = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .map(str::to_owned);
        if let Some(name) = name
            && let Ok(kernel) = open(&name, &path)
        {
            kernels.push(kernel);
        }
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kernels)
}

/// Fetches the kernel called `name` (`6.1`, `6.12`, `sid`), or takes it from the cache.
///
/// # Errors
///
/// When it cannot be downloaded, or the release carries another series.
pub(crate) fn fetch(workspace: &Workspace, name: &str) -> Result<Kernel> {
    let folder = workspace.kernels().join(name);
    if let Ok(kernel) = open(name, &folder) {
        return Ok(kernel);
    }
    ensure!(
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.'),
        "{name:?} is no kernel: say 6.1, 6.12 or sid"
    );
    let suite = RELEASES
        .iter()
        .find(|(series, _)| *series == name)
        .map_or(NEWEST, |(_, suite)| suite);
    let release = Release::fetch(&workspace.cache.join("apt").join(suite), suite)?;
    let packages = image_packages(&release)?;

    // Unpacked aside and renamed when whole, so that an interrupted run leaves no half kernel.
    let partial = workspace.kernels().join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    release.unpack(&packages, &partial)?;
    // Packages put modules under /usr; `depmod` and `modprobe` look for /lib below their base.
    let modules = partial.join("usr/lib/modules");
    if modules.exists() {
        fs::create_dir_all(partial.join("lib"))?;
        fs::rename(&modules, partial.join("lib/modules"))?;
    }
    let kernel = open(name, &partial)?;
    if name != NEWEST {
        let series = format!("{name}.");
        if !kernel.version.starts_with(&series) {
            bail!(
                "Debian {suite} carries {}, not {name}: ask for sid",
                kernel.version
            );
        }
    }
    quiet(Command::new("depmod").args(["-b", text(&partial)?, &kernel.version]))?;
    fs::rename(&partial, &folder)?;
    eprintln!("Kernel {} is in {}", kernel.version, folder.display());
    open(name, &folder)
}

/// The packages that hold image and modules: what [`META`] depends on, one level or two deep.
fn image_packages(release: &Release) -> Result<Vec<String>> {
    let mut packages = Vec::new();
    for image in release.dependencies(META)? {
        if !image.starts_with("linux-image-") {
            continue;
        }
        // Since 2026 the image package of sid is empty and its parts are packages of their own.
        for part in release.dependencies(&image)? {
            let is_part = ["linux-binary-", "linux-modules-", "linux-base-"]
                .iter()
                .any(|prefix| part.starts_with(prefix));
            if is_part {
                packages.push(part);
            }
        }
        packages.push(image);
    }
    ensure!(!packages.is_empty(), "{META} depends on no kernel image");
    Ok(packages)
}

/// Finds the parts of an unpacked kernel.
fn open(name: &str, folder: &Path) -> Result<Kernel> {
    let modules = folder.join("lib/modules");
    let entry = fs::read_dir(&modules)
        .with_context(|| format!("no modules in {}", folder.display()))?
        .next()
        .with_context(|| format!("no modules in {}", modules.display()))??;
    let version = entry.file_name().to_string_lossy().into_owned();
    let images = [
        folder.join("boot").join(format!("vmlinuz-{version}")),
        entry.path().join("vmlinuz"),
    ];
    let image = images.into_iter().find(|path| path.is_file());
    let image = image.with_context(|| format!("no vmlinuz in {}", folder.display()))?;
    Ok(Kernel {
        name: name.to_owned(),
        version,
        image,
        tree: folder.to_owned(),
    })
}
