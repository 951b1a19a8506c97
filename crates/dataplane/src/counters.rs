//! Traffic counters of one overlay device.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use aya::Ebpf;
use ebpf_abi::{Count, Direction, DropReason, PeerCounters, PeerIndex, Reason};
use ipnet::IpNet;

use crate::{
    Attachment, Census, DataplaneError,
    attach::{self, Hook},
    filter::RuleTables,
    forward, memory,
    object::{self, Features},
    peer::Peer,
    pins::Pins,
    tables::Tables,
};

/// The counting programs on one overlay device, and their maps.
///
/// Dropped, it leaves a pinned data plane counting and takes an unpinned one away;
/// [`remove`](Self::remove) takes either away.
pub struct Counters {
    ifname: String,
    kind: Attachment,
    pin_dir: Option<PathBuf>,
    tables: Tables,
    hooks: [Hook; 2],
    /// Programs and maps that are not in use yet.
    ebpf: Ebpf,
    census: Census,
    #[cfg(feature = "ebpf-log")]
    _log: Option<crate::log::LogReader>,
}

impl Counters {
    /// Loads the programs and attaches them to `ifname`, a layer 3 device (WireGuard, TUN) in the
    /// calling thread's network namespace.
    ///
    /// With `pin_dir`, a folder on a BPF file system (see [`pin_folder`](crate::pin_folder)), maps
    /// and attachments outlive the process. Another `attach` with the same folder takes the maps
    /// over with all they hold and replaces the programs atomically. Maps of another ABI version
    /// are replaced by empty ones.
    ///
    /// Blocks for some milliseconds while the kernel verifies the programs.
    ///
    /// # Errors
    ///
    /// A [`DataplaneError`] that says what to do. Nothing stays behind that was not there before.
    pub fn attach(ifname: &str, pin_dir: Option<&Path>) -> Result<Self, DataplaneError> {
        Self::attach_as(ifname, pin_dir, Attachment::of_this_kernel())
    }

    /// Like [`attach`](Self::attach), but in a given way: tests run the clsact path on any kernel.
    ///
    /// # Errors
    ///
    /// As `attach`; also if this kernel does not know `kind`.
    pub fn attach_as(
        ifname: &str,
        pin_dir: Option<&Path>,
        kind: Attachment,
    ) -> Result<Self, DataplaneError> {
        Self::attach_with(ifname, pin_dir, kind, Features::default()).map(|(counters, _)| counters)
    }

    /// Attaches programs that have `features`; returns the rule tables beside.
    pub(crate) fn attach_with(
        ifname: &str,
        pin_dir: Option<&Path>,
        kind: Attachment,
        features: Features,
    ) -> Result<(Self, RuleTables), DataplaneError> {
        let adopted = pin_dir.is_some_and(Path::exists);
        let pins = pin_dir.map(Pins::open).transpose()?;
        let attached =
            memory::contained(|| Self::load(ifname, pins.as_ref(), pin_dir, kind, features));
        if let (Err(_), Some(pins), false) = (&attached, &pins, adopted)
            && let Err(error) = attach::detach(ifname, Some(pins)).and_then(|()| pins.remove())
        {
            tracing::warn!(%error, "tidying up after a failed attachment");
        }
        attached
    }

    fn load(
        ifname: &str,
        pins: Option<&Pins>,
        pin_dir: Option<&Path>,
        kind: Attachment,
        features: Features,
    ) -> Result<(Self, RuleTables), DataplaneError> {
        let mut ebpf = object::load(pins, features)?;
        #[cfg(feature = "ebpf-log")]
        let log = crate::log::LogReader::start(&mut ebpf);
        // Both must pass the verifier before either replaces a program that works.
        for direction in Direction::ALL {
            object::program(&mut ebpf, direction.program())?;
        }
        let hooks = [
            attach::attach(&mut ebpf, ifname, Direction::In, kind, pins)?,
            attach::attach(&mut ebpf, ifname, Direction::Out, kind, pins)?,
        ];
        let census = Census::new(&ebpf);
        let tables = Tables::take(&mut ebpf)?;
        let rules = RuleTables::take(&mut ebpf, census.inner())?;
        if let Some(pins) = pins {
            pins.remove_other_versions()?;
        }
        let pinned = pins.is_some();
        tracing::debug!(ifname, %kind, pinned, ?features, "attached the eBPF programs");
        let counters = Self {
            ifname: ifname.to_owned(),
            kind,
            pin_dir: pin_dir.map(Path::to_owned),
            tables,
            hooks,
            ebpf,
            census,
            #[cfg(feature = "ebpf-log")]
            _log: log,
        };
        Ok((counters, rules))
    }

    /// How the programs are attached.
    #[must_use]
    pub fn kind(&self) -> Attachment {
        self.kind
    }

    /// Makes `peers` the whole truth about which prefix belongs to which peer; the longest prefix
    /// wins, host bits are ignored, and of two equal prefixes the later entry counts.
    ///
    /// Only differences touch the kernel. Counters of peers that stay go on; a peer index that
    /// keeps none of its prefixes is taken for another peer and starts at zero.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::TableFull`] beyond 65 536 prefixes per family or peers. What was applied
    /// until then stays, and the next call goes on from there.
    pub fn set_peers<P: Copy + Into<Peer>>(
        &mut self,
        peers: &[(IpNet, P)],
    ) -> Result<(), DataplaneError> {
        self.replace_peers(peers).map(|_| ())
    }

    /// As [`set_peers`](Self::set_peers). Returns whether anything changed.
    pub(crate) fn replace_peers<P: Copy + Into<Peer>>(
        &mut self,
        peers: &[(IpNet, P)],
    ) -> Result<bool, DataplaneError> {
        self.tables.set_peers(peers)
    }

    /// Reads the counters of every peer, summed over the CPUs: two system calls' time per peer.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn read(&self) -> Result<BTreeMap<PeerIndex, PeerCounters>, DataplaneError> {
        self.tables.read()
    }

    /// Reads the counters of one peer, summed over the CPUs; `None` if it has none.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_of(&self, peer: PeerIndex) -> Result<Option<PeerCounters>, DataplaneError> {
        self.tables.read_of(peer)
    }

    /// Reads the totals by direction and reason. Every packet that passed the device is counted
    /// under exactly one reason.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn totals(&self) -> Result<BTreeMap<(Direction, Reason), Count>, DataplaneError> {
        self.tables.totals()
    }

    pub(crate) fn census(&self) -> Census {
        self.census.clone()
    }

    /// What forwarding is built on: programs that are not in use yet, and where the others are.
    pub(crate) fn parts(&mut self) -> (&mut Ebpf, &str, Attachment, Option<&Path>) {
        let pins = self.pin_dir.as_deref();
        (&mut self.ebpf, &self.ifname, self.kind, pins)
    }

    /// Reads what the filter dropped, by direction and reason.
    pub(crate) fn drops(&self) -> Result<BTreeMap<(Direction, DropReason), Count>, DataplaneError> {
        self.tables.drops()
    }

    /// Detaches the programs and removes every pin. The kernel lets go of unpinned attachments
    /// some milliseconds later.
    ///
    /// Where clsact was used, its empty qdisc stays until the device goes: it may be in use by
    /// others.
    ///
    /// # Errors
    ///
    /// The first step that failed; [`remove_leftovers`](Self::remove_leftovers) can be called to
    /// try again.
    pub fn remove(self) -> Result<(), DataplaneError> {
        let Self {
            ifname,
            pin_dir,
            hooks,
            ..
        } = self;
        drop(hooks);
        Self::remove_leftovers(&ifname, pin_dir.as_deref())
    }

    /// Removes what an earlier process left on `ifname` and in `pin_dir`, without loading anything.
    /// Nothing being there is fine.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    pub fn remove_leftovers(ifname: &str, pin_dir: Option<&Path>) -> Result<(), DataplaneError> {
        let pins = pin_dir.map(Pins::at);
        forward::detach_everywhere(ifname)?;
        attach::detach(ifname, pins.as_ref())?;
        pins.map_or(Ok(()), |pins| pins.remove())
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters")
            .field("ifname", &self.ifname)
            .field("kind", &self.kind)
            .field("pin_dir", &self.pin_dir)
            .finish_non_exhaustive()
    }
}
