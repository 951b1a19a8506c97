//! Packages of any Debian release, downloaded beside the system's own package lists.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::program::{find, quiet};

/// Debian's own key ring; the host's other keys serve where it is absent.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package lists of one release, in a folder of ours.
#[derive(Debug)]
pub(crate) struct Release {
    folder: PathBuf,
}

impl Release {
    /// Fetches the lists of `suite` into `folder`, which is made anew.
    ///
    /// # Errors
    ///
    /// Without apt-get, a mirror or the network.
    pub(crate) fn fetch(folder: &Path, suite: &str) -> Result<Release> {
        if find("apt-get").is_none() || find("dpkg").is_none() {
            bail!(
                "Debian's {suite} is read through apt-get and dpkg, which are not installed here"
            );
        }
        let mirror = mirror()?;
        eprintln!("Reading the package lists of Debian {suite} at {mirror}");
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        let signed = if Path::new(KEYRING).is_file() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        fs::write(
            folder.join("sources.list"),
            format!("deb {signed}{mirror} {suite} main\n"),
        )?;
        let release = Release {
            folder: folder.to_owned(),
        };
        quiet(release.apt("apt-get").args(["-qq", "update"]))
            .with_context(|| format!("cannot read Debian {suite} from {mirror}"))?;
        Ok(release)
    }

    /// Names of the packages that `package` depends on directly.
    ///
    /// # Errors
    ///
    /// When the release has no such package.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = quiet(
            self.apt("apt-cache")
                .args(["depends", "--important", package]),
        )?;
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads `packages` (`name` or `name=version`) and unpacks them into `tree`.
    ///
    /// # Errors
    ///
    /// When one cannot be downloaded or unpacked.
    pub(crate) fn unpack(&self, packages: &[String], tree: &Path) -> Result<()> {
        eprintln!("Downloading {}", packages.join(", "));
        fs::create_dir_all(tree)?;
        let folder = self.folder.join("download");
        fs::create_dir_all(&folder)?;
        quiet(
            self.apt("apt-get")
                .arg("-qq")
                .arg("download")
                .args(packages)
                .current_dir(&folder),
        )?;
        let mut found = 0;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                quiet(Command::new("dpkg").arg("-x").arg(&path).arg(tree))?;
                found += 1;
            }
        }
        ensure!(
            found >= packages.len(),
            "apt-get downloaded {found} of {}",
            packages.len()
        );
        Ok(())
    }

    /// Versions of `package` in this release.
    ///
    /// # Errors
    ///
    /// When apt-cache fails.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = quiet(self.apt("apt-cache").args(["madison", package]))?;
        let versions = text.lines().filter_map(|line| line.split('|').nth(1));
        Ok(versions.map(|version| version.trim().to_owned()).collect())
    }

    /// An apt program that sees this release only.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &Path| {
            let mut word = OsString::from(format!("-o{name}="));
            word.push(value);
            command.arg(word);
        };
        option("Dir::State::lists", &self.folder.join("lists"));
        option("Dir::Etc::sourcelist", &self.folder.join("sources.list"));
        option("Dir::Etc::sourceparts", Path::new("/dev/null"));
        option("Dir::Cache", &self.folder.join("cache"));
        // The download folder belongs to us, not to apt's own user.
        command.arg("-oAPT::Sandbox::User=root");
        command
    }
}

/// The Debian mirror: `TAILRACE_DEBIAN_MIRROR`, else the one this host is configured with.
fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var("TAILRACE_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let targets = quiet(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let own = targets
        .lines()
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    own.map(str::to_owned).context(
        "this host's apt sources name no Debian mirror: \
         set TAILRACE_DEBIAN_MIRROR=<URL that ends in /debian>",
    )
}
