//! The shield of WireGuard's port on one underlay device.
//!
//! It is an object instance of its own, not part of the data plane's: it sits on other devices, of which
//! there may be several, comes and goes by its own setting, and in tests needs no overlay. What it does
//! not use of the object costs nothing, see `object::load_part`.

mod link;
mod maps;
mod native;
mod trial;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::tc::TcHandle};
use ebpf_abi::{
    Direction, GLOBAL_SHIELD, PROGRAM_SHIELD_TCX, Part, ShieldConfig, ShieldReason, ShieldSource,
};

pub use trial::{ShieldProgram, ShieldTrial};

use crate::{
    Attachment, DataplaneError,
    attach::{self, Hook, Place},
    memory, object,
    pins::{self, Pins},
};
use maps::ShieldMaps;

/// Where the shield runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ShieldKind {
    /// Behind the driver, by tcx or clsact: on every device, beside others' programs.
    Tcx(Attachment),
    /// In the driver, by XDP: what is dropped costs least. The driver has to be able to, and the device
    /// to have no other XDP program.
    Native,
}

impl ShieldKind {
    /// Behind the driver, in the way that the running kernel offers.
    #[must_use]
    pub fn tcx() -> Self {
        Self::Tcx(Attachment::of_this_kernel())
    }
}

impl fmt::Display for ShieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcx(attachment) => attachment.fmt(f),
            Self::Native => f.write_str("native"),
        }
    }
}

/// When there is a flood, and how many unknown initiations pass in one. Trusted ones always do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ShieldLimits {
    /// Initiations a second of which one more is a flood.
    pub flood: u32,
    /// Unknown initiations that pass in a flood, a second, all CPUs together.
    pub rate: u32,
    /// How many of these may come at once; 0 lets none pass.
    pub burst: u32,
}

impl Default for ShieldLimits {
    /// A handshake takes a CPU some 200 microseconds: up to 200 a second are 4 % of one, 50 are 1 %.
    fn default() -> Self {
        Self {
            flood: 200,
            rate: 50,
            burst: 100,
        }
    }
}

impl ShieldLimits {
    fn config(self, port: u16, link_header: u32) -> ShieldConfig {
        let interval = match (self.burst, self.rate) {
            (0, _) | (_, 0) => 0,
            (_, rate) => 1_000_000_000 / u64::from(rate),
        };
        ShieldConfig {
            port: port.into(),
            link_header,
            flood: self.flood.into(),
            interval,
            tolerance: interval * u64::from(self.burst.saturating_sub(1)),
        }
    }
}

/// Whose initiations pass in a flood.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Trusted {
    /// An address, with whatever port.
    Address(IpAddr),
    /// An address and UDP port.
    Endpoint(SocketAddr),
}

impl From<IpAddr> for Trusted {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

impl From<SocketAddr> for Trusted {
    fn from(endpoint: SocketAddr) -> Self {
        Self::Endpoint(endpoint)
    }
}

impl From<Trusted> for ShieldSource {
    fn from(trusted: Trusted) -> Self {
        let (address, port) = match trusted {
            Trusted::Address(address) => (address, 0),
            Trusted::Endpoint(endpoint) => (endpoint.ip(), endpoint.port()),
        };
        match address.to_canonical() {
            IpAddr::V4(address) => Self::v4(address.octets(), port.to_be_bytes()),
            IpAddr::V6(address) => Self::v6(address.octets(), port.to_be_bytes()),
        }
    }
}

/// The shield of one UDP port on one device.
///
/// Dropped, it leaves a pinned shield at work and takes an unpinned one away; [`remove`](Self::remove)
/// takes either away.
pub struct Shield {
    ifname: String,
    kind: ShieldKind,
    port: u16,
    /// Of this shield alone.
    folder: Option<PathBuf>,
    maps: ShieldMaps,
    hook: Hook,
    /// The attached program.
    _ebpf: Ebpf,
}

impl Shield {
    /// Attaches the shield of UDP port `port` to `ifname`, an underlay device in the calling thread's
    /// network namespace. Shields of other ports, of another agent say, may be there too
    /// ([`ShieldKind::Tcx`]).
    ///
    /// `pins` is the folder of all shields of this node, such as
    /// [`pin_folder`](crate::pin_folder)`("tailrace0.shield", ...)`. With it the shield outlives the
    /// process, and another `attach` takes it over with what it trusts and has counted.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::XdpTaken`] and [`DataplaneError::NoNativeXdp`] for [`ShieldKind::Native`], and
    /// as [`Counters::attach`](crate::Counters::attach). An earlier shield of the port is still there then.
    pub fn attach(
        ifname: &str,
        kind: ShieldKind,
        port: u16,
        limits: ShieldLimits,
        pins: Option<&Path>,
    ) -> Result<Self, DataplaneError> {
        let config = limits.config(port, link::header(ifname)?);
        let folder = pins.map(|root| root.join(folder_name(ifname, port)));
        let existed = folder.as_deref().is_some_and(Path::exists);
        let pins = folder
            .as_deref()
            .map(|folder| Pins::open_for(folder, Part::SHIELD.maps))
            .transpose()?;
        let attached = memory::contained(|| {
            let mut ebpf = load(config, pins.as_ref(), false)?;
            let hook = hook(&mut ebpf, ifname, port, kind, pins.as_ref())?;
            let maps = ShieldMaps::take(&mut ebpf)?;
            object::close_maps(&mut ebpf);
            Ok((ebpf, maps, hook))
        });
        let (ebpf, maps, hook) = attached.inspect_err(|_: &DataplaneError| {
            if let (Some(pins), false) = (&pins, existed)
                && let Err(error) = pins.remove()
            {
                tracing::warn!(%error, "tidying up after a failed attachment");
            }
        })?;
        if let Some(pins) = &pins {
            pins.remove_other_versions()?;
        }
        Ok(Self {
            ifname: ifname.to_owned(),
            kind,
            port,
            folder,
            maps,
            hook,
            _ebpf: ebpf,
        })
    }

    /// The device it is attached to.
    #[must_use]
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// How it is attached.
    #[must_use]
    pub fn kind(&self) -> ShieldKind {
        self.kind
    }

    /// Makes `trusted` the sources whose initiations pass in a flood: what is configured, and what has
    /// proved by disco to be a peer. Changes only what differs.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::TableFull`] above 65 536 sources; those that fitted are trusted.
    pub fn set_trusted(&mut self, trusted: &[Trusted]) -> Result<(), DataplaneError> {
        self.maps.set_trusted(trusted)
    }

    /// Initiations to the port since the shield is there, by what became of them.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn counts(&self) -> Result<BTreeMap<ShieldReason, u64>, DataplaneError> {
        self.maps.counts()
    }

    /// Whether there is a flood now.
    ///
    /// # Errors
    ///
    /// As [`counts`](Self::counts).
    pub fn is_flooded(&self) -> Result<bool, DataplaneError> {
        self.maps.is_flooded()
    }

    /// Takes the shield away, with its pins.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    pub fn remove(self) -> Result<(), DataplaneError> {
        let Self {
            ifname,
            port,
            folder,
            hook,
            ..
        } = self;
        drop(hook);
        detach(&ifname, port, folder.as_deref())
    }

    /// Removes all shields that have pins in `pins`, the folder given to [`attach`](Self::attach), and
    /// the folder. Nothing being there is fine.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    pub fn remove_all(pins: &Path) -> Result<(), DataplaneError> {
        Self::remove_others(pins, |_, _| false)?;
        Pins::at(pins).remove()
    }

    /// Removes the shields that have pins in `pins` and that `wanted` does not know by their interface
    /// and port: of devices that are gone or have another name now, of an earlier port.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    pub fn remove_others(
        pins: &Path,
        wanted: impl Fn(&str, u16) -> bool,
    ) -> Result<(), DataplaneError> {
        let entries = match fs::read_dir(pins) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries,
        };
        let folders: Vec<PathBuf> = entries
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(|error| DataplaneError::new(format!("reading {}", pins.display()), error))?;
        for folder in folders {
            let name = folder.file_name().and_then(|name| name.to_str());
            if let Some((ifname, port)) = name.and_then(named_by)
                && !wanted(&ifname, port)
            {
                detach(&ifname, port, Some(&folder))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Shield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shield")
            .field("ifname", &self.ifname)
            .field("kind", &self.kind)
            .field("port", &self.port)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

fn load(
    config: ShieldConfig,
    pins: Option<&Pins>,
    virtual_time: bool,
) -> Result<Ebpf, DataplaneError> {
    object::load_part(&Part::SHIELD, pins, virtual_time, (GLOBAL_SHIELD, &config))
}

/// Attaches the program and takes away what is there of another kind.
fn hook(
    ebpf: &mut Ebpf,
    ifname: &str,
    port: u16,
    kind: ShieldKind,
    pins: Option<&Pins>,
) -> Result<Hook, DataplaneError> {
    let pin = pins.map(|pins| pins.link(Direction::In));
    let place = place(ifname, port);
    match kind {
        ShieldKind::Tcx(attachment) => {
            let hook = attach::attach_at(ebpf, place, attachment, pin.as_deref())?;
            match (attachment, pin) {
                (Attachment::Tcx, _) => attach::detach_filter(place)?,
                (Attachment::Clsact, Some(pin)) => pins::remove_file(&pin)?,
                (Attachment::Clsact, None) => {}
            }
            Ok(hook)
        }
        ShieldKind::Native => {
            let link = native::attach(ebpf, ifname, pin.as_deref())?;
            attach::detach_filter(place)?;
            Ok(Hook::Tcx(link))
        }
    }
}

fn detach(ifname: &str, port: u16, folder: Option<&Path>) -> Result<(), DataplaneError> {
    attach::detach_filter(place(ifname, port))?;
    folder.map_or(Ok(()), |folder| Pins::at(folder).remove())
}

fn place(ifname: &str, port: u16) -> Place<'_> {
    Place {
        ifname,
        program: PROGRAM_SHIELD_TCX,
        direction: Direction::In,
        first: true,
        handle: TcHandle::new(1, port),
    }
}

/// The name of a shield's folder. BPF file systems refuse dots, which interfaces may have; these have no
/// colons.
fn folder_name(ifname: &str, port: u16) -> String {
    format!("{}@{port}", ifname.replace('.', ":"))
}

/// The interface and port that a folder is named after.
fn named_by(folder: &str) -> Option<(String, u16)> {
    let (ifname, port) = folder.rsplit_once('@')?;
    Some((ifname.replace(':', "."), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_tells_interface_and_port() {
        for (ifname, port) in [("eth0", 41_641), ("eth0.7", 1), ("a@b", 65_535)] {
            let name = folder_name(ifname, port);
            assert!(!name.contains('.'), "{name}");
            assert_eq!(named_by(&name), Some((ifname.to_owned(), port)));
        }
        assert_eq!(named_by("abi-3"), None);
    }

    #[test]
    fn a_bucket_is_told_in_nanoseconds() {
        let limits = |rate, burst| ShieldLimits {
            flood: 5,
            rate,
            burst,
        };
        let config = limits(10, 3).config(41_641, 14);
        assert_eq!(
            (config.interval, config.tolerance),
            (100_000_000, 200_000_000)
        );
        assert_eq!(limits(10, 0).config(1, 0).interval, 0);
        assert_eq!(limits(0, 10).config(1, 0).interval, 0);
    }

    #[test]
    fn an_ipv4_address_is_trusted_in_either_guise() {
        let plain: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:7".parse().unwrap();
        let source = ShieldSource::from(Trusted::from(plain));
        assert_eq!(source, Trusted::from(mapped).into());
        assert_eq!(source, ShieldSource::v4([192, 0, 2, 1], [0, 7]));
    }
}
