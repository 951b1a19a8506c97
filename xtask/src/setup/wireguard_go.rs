//! Debian's package of wireguard-go, in the cache; nothing is installed on this host.

use anyhow::{Result, ensure};

use super::debian::Release;
use crate::vm::Executable;
use crate::workspace::Workspace;

const PACKAGE: &str = "wireguard-go";
/// The release of the kernel that the bench boots.
const SUITE: &str = "trixie";

/// Fetches it, or takes it from the cache.
///
/// # Errors
///
/// When it cannot be downloaded.
pub(super) fn fetch(workspace: &Workspace) -> Result<Executable> {
    let tree = workspace.cache.join(PACKAGE);
    let path = tree.join("usr/bin").join(PACKAGE);
    if !path.is_file() {
        let release = Release::fetch(&workspace.cache.join("apt").join(SUITE), SUITE)?;
        release.unpack(&[PACKAGE.to_owned()], &tree)?;
        ensure!(path.is_file(), "Debian's {PACKAGE} holds no {PACKAGE}");
    }
    Ok(Executable {
        name: PACKAGE.to_owned(),
        path,
    })
}
