//! Attachments: programs on the overlay device, by tcx link or clsact filter.

use std::{fmt, fs, io, mem, path::Path};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, Link as _, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};
use ebpf_abi::Direction;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketType, netdevice::name_to_index, socket},
};

use crate::{DataplaneError, error::is_errno, object, pins, pins::Pins};

/// Priority and handle by which our clsact filters are found again after a restart: without a
/// link there is nothing to pin. Filters of lower priority numbers run before ours.
const CLSACT_PRIORITY: u16 = 100;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x7261);

/// How programs are attached to the overlay device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Attachment {
    /// A tcx link, Linux 6.6 or newer: pinned, and replaced atomically.
    Tcx,
    /// A filter on the clsact qdisc, by netlink: stays with the device.
    Clsact,
}

impl Attachment {
    /// What the running kernel offers.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        if KernelVersion::current().is_ok_and(|found| found >= KernelVersion::new(6, 6, 0)) {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// One attached program. Dropping it detaches the program unless it is to outlive the process.
pub(crate) enum Hook {
    /// Attached for as long as this descriptor or its pin exists.
    Tcx(#[expect(dead_code, reason = "held open: closing it detaches")] FdLink),
    /// Attached until the filter is removed; detaches when dropped.
    Clsact(#[expect(dead_code, reason = "held: dropping it detaches")] SchedClassifierLink),
    /// Attached until the filter is removed.
    ClsactKept,
}

/// Where a program is attached, and how it is found again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) ifname: &'a str,
    pub(crate) program: &'static str,
    pub(crate) direction: Direction,
    /// Before all others, or after them.
    pub(crate) first: bool,
    /// Of the clsact filter.
    pub(crate) handle: TcHandle,
}

impl<'a> Place<'a> {
    /// On the overlay device.
    fn overlay(ifname: &'a str, direction: Direction) -> Self {
        Self {
            ifname,
            program: direction.program(),
            direction,
            // First to see what arrives, last to see what leaves: others' verdicts do not hide traffic.
            first: direction == Direction::In,
            handle: CLSACT_HANDLE,
        }
    }

    fn attach_type(&self) -> TcAttachType {
        attach_type(self.direction)
    }

    fn failed(&self, error: impl std::error::Error + Send + Sync + 'static) -> DataplaneError {
        if is_errno(&error, Errno::NODEV) || is_errno(&error, Errno::NXIO) {
            return DataplaneError::NoInterface(self.ifname.to_owned());
        }
        let operation = format!("attaching {} to {}", self.program, self.ifname);
        DataplaneError::new(operation, error)
    }
}

/// Loads the program of `direction` and attaches it to `ifname`, replacing what an earlier
/// process of ours left there.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    ifname: &str,
    direction: Direction,
    kind: Attachment,
    pins: Option<&Pins>,
) -> Result<Hook, DataplaneError> {
    let pin = pins.map(|pins| pins.link(direction));
    attach_at(
        ebpf,
        Place::overlay(ifname, direction),
        kind,
        pin.as_deref(),
    )
}

/// Loads the program of `place` and attaches it there, replacing what an earlier process of ours left.
/// With `pin` it outlives the process.
pub(crate) fn attach_at(
    ebpf: &mut Ebpf,
    place: Place<'_>,
    kind: Attachment,
    pin: Option<&Path>,
) -> Result<Hook, DataplaneError> {
    let program = object::program(ebpf, place.program)?;
    match kind {
        Attachment::Tcx => tcx(program, place, pin).map(Hook::Tcx),
        Attachment::Clsact => {
            let link = clsact(program, place)?;
            if pin.is_none() {
                return Ok(Hook::Clsact(link));
            }
            // Its drop would remove the filter, which has to outlive the process.
            mem::forget(link);
            Ok(Hook::ClsactKept)
        }
    }
}

/// Detaches whatever an earlier process of ours left on `ifname`, which need not exist any more.
pub(crate) fn detach(ifname: &str, pins: Option<&Pins>) -> Result<(), DataplaneError> {
    for direction in Direction::ALL {
        if let Some(pins) = pins {
            pins::remove_file(&pins.link(direction))?;
        }
        match tc::qdisc_detach_program(ifname, attach_type(direction), direction.program()) {
            Ok(()) => {}
            Err(error) if nothing_there(&error) => {}
            Err(error) => {
                let operation = format!("removing the clsact filter from {ifname}");
                return Err(DataplaneError::new(operation, error));
            }
        }
    }
    Ok(())
}

/// Removes the clsact filter of `place`, which may be gone, or its device.
pub(crate) fn detach_filter(place: Place<'_>) -> Result<(), DataplaneError> {
    let (kind, handle) = (place.attach_type(), place.handle);
    let found = SchedClassifierLink::attached(place.ifname, kind, CLSACT_PRIORITY, handle, None);
    let removed = match found {
        Ok(link) => link.detach(),
        Err(error) => Err(TcError::IoError(error).into()),
    };
    match removed {
        Err(error) if nothing_there(&error) => Ok(()),
        result => result.map_err(|error| {
            let operation = format!("removing the clsact filter from {}", place.ifname);
            DataplaneError::new(operation, error)
        }),
    }
}

/// No such filter; no clsact qdisc (EINVAL); no such device, on two layers.
fn nothing_there(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound)
        || [Errno::NOENT, Errno::INVAL, Errno::NODEV, Errno::NXIO]
            .into_iter()
            .any(|code| is_errno(error, code))
}

fn tcx(
    program: &mut SchedClassifier,
    place: Place<'_>,
    pin: Option<&Path>,
) -> Result<FdLink, DataplaneError> {
    let failed = |error: ProgramError| place.failed(error);
    let as_link = |error: LinkError| place.failed(error);

    let pinned: Option<SchedClassifierLink> = match pin {
        Some(pin) => pinned_on(pin, place.ifname)?,
        None => None,
    };
    if let Some(link) = pinned {
        let id = program.attach_to_link(link).map_err(failed)?;
        return program
            .take_link(id)
            .map_err(failed)?
            .try_into()
            .map_err(as_link);
    }

    let order = if place.first {
        LinkOrder::first()
    } else {
        LinkOrder::last()
    };
    let options = TcAttachOptions::TcxOrder(order);
    let id = program
        .attach_with_options(place.ifname, place.attach_type(), options)
        .map_err(failed)?;
    let link: FdLink = program
        .take_link(id)
        .map_err(failed)?
        .try_into()
        .map_err(as_link)?;
    match pin {
        None => Ok(link),
        Some(pin) => keep(link, pin),
    }
}

/// Pins `link`, which then outlives the process.
pub(crate) fn keep(link: FdLink, pin: &Path) -> Result<FdLink, DataplaneError> {
    link.pin(pin)
        .map(FdLink::from)
        .map_err(|error| DataplaneError::new(format!("pinning {}", pin.display()), error))
}

/// Opens the link pinned at `pin` if it is of this kind and attached to this very interface. The pin of
/// another, or of one whose device is gone, perhaps replaced by another of its name, is removed.
pub(crate) fn pinned_on<L: TryFrom<FdLink, Error = LinkError>>(
    pin: &Path,
    ifname: &str,
) -> Result<Option<L>, DataplaneError> {
    if !pin.exists() {
        return Ok(None);
    }
    let on_interface = || -> Result<L, Box<dyn std::error::Error>> {
        let link = FdLink::from(PinnedLink::from_pin(pin)?);
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let interface = name_to_index(&socket, ifname)?;
        if interface_of(link.info()?.id())? != Some(interface) {
            return Err("it is attached elsewhere".into());
        }
        Ok(link.try_into()?)
    };
    match on_interface() {
        Ok(link) => Ok(Some(link)),
        Err(reason) => {
            tracing::info!(path = %pin.display(), %reason, "replacing a pinned attachment");
            pins::remove_file(pin)?;
            Ok(None)
        }
    }
}

/// Returns the number of the interface that an open tcx link is attached to; 0 once that is gone.
///
/// The kernel tells it in the descriptor's `fdinfo`. To ask the interface for its programs would
/// take CAP_SYS_ADMIN, which the agent gives up.
fn interface_of(link: u32) -> io::Result<Option<u32>> {
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // Descriptors of other threads come and go meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        if fdinfo(&text, "link_id") == Some(link) {
            return Ok(fdinfo(&text, "ifindex"));
        }
    }
    Ok(None)
}

/// A number in `/proc/self/fdinfo/N`: lines of `name:`, a tab and the value.
fn fdinfo(text: &str, name: &str) -> Option<u32> {
    let value = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(':')?
            .trim()
            .parse()
            .ok()
    };
    text.lines().find_map(value)
}

fn clsact(
    program: &mut SchedClassifier,
    place: Place<'_>,
) -> Result<SchedClassifierLink, DataplaneError> {
    let failed = |error: ProgramError| place.failed(error);
    match tc::qdisc_add_clsact(place.ifname) {
        Ok(()) => {}
        Err(error) if is_errno(&error, Errno::EXIST) => {}
        Err(error) => return Err(place.failed(error)),
    }

    let (kind, handle) = (place.attach_type(), place.handle);
    let leftover = SchedClassifierLink::attached(place.ifname, kind, CLSACT_PRIORITY, handle, None)
        .map_err(|error| place.failed(error))?;
    let id = match program.attach_to_link(leftover) {
        Ok(id) => id,
        Err(error) if is_errno(&error, Errno::NOENT) => {
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: CLSACT_PRIORITY,
                handle,
                classid: None,
            });
            program
                .attach_with_options(place.ifname, kind, options)
                .map_err(failed)?
        }
        Err(error) => return Err(failed(error)),
    };
    program.take_link(id).map_err(failed)
}

fn attach_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::In => TcAttachType::Ingress,
        Direction::Out => TcAttachType::Egress,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_about_a_link_are_understood() {
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nlink_type:\ttcx\nlink_id:\t7\n\
                    prog_tag:\t0123456789abcdef\nprog_id:\t31\nifindex:\t5\nattach_type:\t46 (tcx_ingress)\n";
        assert_eq!(fdinfo(text, "link_id"), Some(7));
        assert_eq!(fdinfo(text, "ifindex"), Some(5));
        assert_eq!(fdinfo("pos:\t0\n", "link_id"), None);
    }
}
