//! The shield in a device's driver.

use std::path::Path;

use aya::{
    Ebpf,
    programs::{ProgramError, Xdp, XdpMode, links::FdLink, xdp::XdpLink},
};
use ebpf_abi::PROGRAM_SHIELD_XDP;
use rustix::io::Errno;

use crate::{DataplaneError, attach, error::is_errno, object};

/// Returns the program, loaded.
pub(super) fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, DataplaneError> {
    let program: &mut Xdp = object::unloaded(ebpf, PROGRAM_SHIELD_XDP)?;
    if program.fd().is_err() {
        program
            .load()
            .map_err(|error| DataplaneError::loading(PROGRAM_SHIELD_XDP, error))?;
    }
    Ok(program)
}

/// Attaches the program, in place of the one pinned at `pin`.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    ifname: &str,
    pin: Option<&Path>,
) -> Result<FdLink, DataplaneError> {
    let program = program(ebpf)?;
    let old: Option<XdpLink> = match pin {
        Some(pin) => attach::pinned_on(pin, ifname)?,
        None => None,
    };
    let is_new = old.is_none();
    let link = match old {
        Some(link) => program.attach_to_link(link),
        None => program.attach(ifname, XdpMode::Driver),
    }
    .and_then(|id| program.take_link(id))
    .map_err(|error| refused(ifname, error))?;
    let link = FdLink::try_from(link).map_err(|error| unsupported(ifname, error))?;
    match pin {
        Some(pin) if is_new => attach::keep(link, pin),
        _ => Ok(link),
    }
}

fn refused(ifname: &str, error: ProgramError) -> DataplaneError {
    if matches!(error, ProgramError::UnknownInterface { .. }) {
        return DataplaneError::NoInterface(ifname.to_owned());
    }
    if [Errno::BUSY, Errno::EXIST]
        .into_iter()
        .any(|code| is_errno(&error, code))
    {
        return DataplaneError::XdpTaken(ifname.to_owned());
    }
    // EOPNOTSUPP of drivers without XDP; others for what the device is set to: its MTU, its queues.
    if [Errno::OPNOTSUPP, Errno::INVAL, Errno::RANGE, Errno::NOSPC]
        .into_iter()
        .any(|code| is_errno(&error, code))
        || matches!(error, ProgramError::XdpError(_))
    {
        return unsupported(ifname, error);
    }
    DataplaneError::new(format!("attaching {PROGRAM_SHIELD_XDP} to {ifname}"), error)
}

fn unsupported(
    ifname: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> DataplaneError {
    DataplaneError::NoNativeXdp {
        ifname: ifname.to_owned(),
        source: Box::new(error),
    }
}
