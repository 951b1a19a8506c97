//! Pins: where the maps and attachments of a device outlive the process.
//!
//! ```text
//! <bpffs>/tailrace/<device>-<network namespace>/
//!     link_in link_out        attachments (tcx only), of any ABI version
//!     nic_2 ...               attachments to other devices, by number (tcx only)
//!     abi-1/PEERS_V4 ...      maps, in a folder named after their ABI version
//! ```

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use ebpf_abi::{ABI_VERSION, Direction, MAPS, MapSpec};
use rustix::{
    fs::statfs,
    mount::{MountFlags, mount},
};

use crate::DataplaneError;

/// `BPF_FS_MAGIC` in `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Beginning of the names of pinned attachments to other devices.
const NIC: &str = "nic_";
/// Where systemd mounts the host's BPF file system.
const HOST_BPFFS: &str = "/sys/fs/bpf";

/// Returns the folder in which [`Counters::attach`](crate::Counters::attach) should pin what
/// belongs to `device` of the calling thread's network namespace. The folder need not exist yet.
///
/// It lies on the host's BPF file system, `/sys/fs/bpf`. Where none is mounted there (containers,
/// `ip netns exec`), this mounts one at `own_dir/bpf`, never on a path that is not ours; it stays
/// mounted, since it is what outlives the process.
///
/// # Errors
///
/// [`DataplaneError::Mount`] if there is no BPF file system and mounting one was refused: the
/// counters then work, but do not outlive the process (attach without a pin folder).
pub fn pin_folder(device: &str, own_dir: &Path) -> Result<PathBuf, DataplaneError> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")
        .map_err(|error| DataplaneError::new("reading the network namespace's number", error))?
        .ino();
    // The file system refuses dots in names; interfaces do not.
    let device = device.replace('.', "_");
    let root = bpffs_root(own_dir)?;
    Ok(root.join("tailrace").join(format!("{device}-{namespace}")))
}

fn bpffs_root(own_dir: &Path) -> Result<PathBuf, DataplaneError> {
    if is_bpffs(Path::new(HOST_BPFFS)) {
        return Ok(HOST_BPFFS.into());
    }
    let path = own_dir.join("bpf");
    if is_bpffs(&path) {
        return Ok(path);
    }
    fs::create_dir_all(&path)
        .and_then(|()| Ok(mount("bpf", &path, "bpf", MountFlags::empty(), None)?))
        .map_err(|source| DataplaneError::Mount {
            path: path.clone(),
            source,
        })?;
    tracing::info!(path = %path.display(), "mounted a BPF file system");
    Ok(path)
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type as u64 == BPF_FS_MAGIC)
}

/// The pin folder of one device.
#[derive(Debug)]
pub(crate) struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Names the pins in `folder` without touching them.
    pub(crate) fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Creates the folder and makes sure that the maps pinned there, if any, are of our layout.
    pub(crate) fn open(folder: &Path) -> Result<Self, DataplaneError> {
        Self::open_for(folder, &MAPS)
    }

    /// As [`open`](Self::open), for maps that are pinned in a folder of their own.
    pub(crate) fn open_for(folder: &Path, specs: &[MapSpec]) -> Result<Self, DataplaneError> {
        let pins = Self::at(folder);
        let maps = pins.maps();
        let operation = || format!("creating {}", maps.display());
        let existing = folder
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(Path::new("/"));
        if !is_bpffs(existing) {
            return Err(DataplaneError::NoBpffs {
                path: folder.to_owned(),
            });
        }
        fs::create_dir_all(&maps).map_err(|error| DataplaneError::new(operation(), error))?;
        for spec in specs {
            pins.discard_if_foreign(spec)?;
        }
        Ok(pins)
    }

    /// Pin of a map.
    pub(crate) fn map(&self, spec: &MapSpec) -> PathBuf {
        self.maps().join(spec.name)
    }

    /// Pin of the attachment in `direction`.
    pub(crate) fn link(&self, direction: Direction) -> PathBuf {
        self.folder.join(match direction {
            Direction::In => "link_in",
            Direction::Out => "link_out",
        })
    }

    /// Pin of the attachment to the device of this number.
    pub(crate) fn nic(&self, index: u32) -> PathBuf {
        self.folder.join(format!("{NIC}{index}"))
    }

    /// Every pin of an attachment to another device, by the device's number.
    pub(crate) fn nics(&self) -> Result<Vec<(u32, PathBuf)>, DataplaneError> {
        let nic = |path: PathBuf| {
            let index = path.file_name()?.to_str()?.strip_prefix(NIC)?.parse();
            Some((index.ok()?, path))
        };
        Ok(read_dir(&self.folder)?
            .into_iter()
            .filter_map(nic)
            .collect())
    }

    /// Removes the maps of other ABI versions, once no attached program uses them.
    pub(crate) fn remove_other_versions(&self) -> Result<(), DataplaneError> {
        let keep = self.maps();
        for entry in read_dir(&self.folder)? {
            if entry != keep && entry.is_dir() {
                tracing::info!(path = %entry.display(), "removing the maps of another ABI version");
                remove_dir_all(&entry)?;
            }
        }
        Ok(())
    }

    /// Removes every pin and the folder, and the `tailrace` folder above it if nobody else uses it.
    pub(crate) fn remove(&self) -> Result<(), DataplaneError> {
        remove_dir_all(&self.folder)?;
        if let Some(parent) = self.folder.parent()
            && parent.file_name().is_some_and(|name| name == "tailrace")
        {
            // Another device's pins keep it; so does whatever else we must not touch.
            if let Err(error) = fs::remove_dir(parent) {
                tracing::debug!(path = %parent.display(), %error, "the folder stays");
            }
        }
        Ok(())
    }

    fn maps(&self) -> PathBuf {
        self.folder.join(format!("abi-{ABI_VERSION}"))
    }

    fn discard_if_foreign(&self, spec: &MapSpec) -> Result<(), DataplaneError> {
        let path = self.map(spec);
        if !path.exists() {
            return Ok(());
        }
        let found = MapInfo::from_pin(&path);
        if found.as_ref().is_ok_and(|found| matches_spec(found, spec)) {
            return Ok(());
        }
        tracing::warn!(path = %path.display(), ?found, "replacing a pinned map of another layout");
        remove_file(&path)
    }
}

fn matches_spec(found: &MapInfo, spec: &MapSpec) -> bool {
    found
        .map_type()
        .is_ok_and(|kind| kind as u32 == spec.map_type)
        && found.key_size() == spec.key_size
        && found.value_size() == spec.value_size
        && found.max_entries() == spec.max_entries
        && found.map_flags() & spec.flags == spec.flags
}

/// Removes a pin; it may be gone already.
pub(crate) fn remove_file(path: &Path) -> Result<(), DataplaneError> {
    absent_is_fine(fs::remove_file(path), path)
}

fn remove_dir_all(path: &Path) -> Result<(), DataplaneError> {
    absent_is_fine(fs::remove_dir_all(path), path)
}

fn absent_is_fine(result: io::Result<()>, path: &Path) -> Result<(), DataplaneError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result
            .map_err(|error| DataplaneError::new(format!("removing {}", path.display()), error)),
    }
}

fn read_dir(path: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|error| DataplaneError::new(format!("reading {}", path.display()), error))
}
