//! The programs on devices other than the overlay's.
//!
//! Several agents may attach to one device. By tcx each has a link of its own; by clsact each has a
//! filter, whose handle derives from the name of its overlay device.

use std::{collections::BTreeMap, fs, path::Path};

use aya::{Ebpf, programs::tc::TcHandle};
use ebpf_abi::{Direction, PROGRAM_NIC_IN, PROGRAM_NIC_IN_IP};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use crate::{
    Attachment, DataplaneError,
    attach::{self, Hook, Place},
    pins::{self, Pins},
};

/// What packets of a device begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    /// An Ethernet header.
    Ethernet,
    /// Their IP header: PPP, tunnels.
    Ip,
}

/// A device that leads to networks that this node forwards for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// What its packets begin with.
    pub layer: Layer,
}

/// By number of the device: our attachments.
#[derive(Default)]
pub(super) struct Nics {
    hooks: BTreeMap<u32, (String, Hook)>,
}

impl Nics {
    /// Attaches to `nics` and to nothing else, replacing programs of an earlier process.
    pub(super) fn set(
        &mut self,
        ebpf: &mut Ebpf,
        overlay: &str,
        kind: Attachment,
        pins: Option<&Pins>,
        nics: &[Nic],
    ) -> Result<(), DataplaneError> {
        let mut present = BTreeMap::new();
        for nic in nics {
            match index(&nic.name) {
                Ok(index) => {
                    present.insert(index, nic);
                }
                Err(error) => tracing::debug!(nic = nic.name, %error, "left out"),
            }
        }
        self.detach_others(&present, overlay, kind, pins)?;
        for (index, nic) in present {
            let place = place(&nic.name, overlay, nic.layer);
            if pins.is_none() {
                // Two of ours at once would be told apart by nothing.
                self.hooks.remove(&index);
            }
            let pin = pins.map(|pins| pins.nic(index));
            match attach::attach_at(ebpf, place, kind, pin.as_deref()) {
                Ok(hook) => {
                    self.hooks.insert(index, (nic.name.clone(), hook));
                }
                Err(DataplaneError::NoInterface(name)) => {
                    tracing::debug!(nic = name, "gone before it was attached to");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Names of the devices that are attached to.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.hooks.values().map(|(name, _)| name.as_str())
    }

    fn detach_others(
        &mut self,
        wanted: &BTreeMap<u32, &Nic>,
        overlay: &str,
        kind: Attachment,
        pins: Option<&Pins>,
    ) -> Result<(), DataplaneError> {
        self.hooks.retain(|index, _| wanted.contains_key(index));
        if let Some(pins) = pins {
            for (index, path) in pins.nics()? {
                if !wanted.contains_key(&index) {
                    pins::remove_file(&path)?;
                }
            }
        }
        if kind == Attachment::Clsact {
            detach_filters(overlay, |name| {
                wanted.values().any(|wanted| wanted.name == name)
            })?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Nics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Removes the clsact filters of this overlay device from every device; links go with their pins.
pub(crate) fn detach_everywhere(overlay: &str) -> Result<(), DataplaneError> {
    detach_filters(overlay, |_| false)
}

fn detach_filters(overlay: &str, stays: impl Fn(&str) -> bool) -> Result<(), DataplaneError> {
    // The calling thread's network namespace, which need not be the process's.
    let path = Path::new("/proc/thread-self/net/dev");
    let devices = fs::read_to_string(path)
        .map_err(|error| DataplaneError::new(format!("reading {}", path.display()), error))?;
    let names = devices.lines().filter_map(|line| line.split_once(':'));
    for (name, _) in names {
        let name = name.trim();
        if name != overlay && !stays(name) {
            attach::detach_filter(place(name, overlay, Layer::Ethernet))?;
        }
    }
    Ok(())
}

/// After all others, whose verdicts hold.
fn place<'a>(nic: &'a str, overlay: &str, layer: Layer) -> Place<'a> {
    Place {
        ifname: nic,
        program: match layer {
            Layer::Ethernet => PROGRAM_NIC_IN,
            Layer::Ip => PROGRAM_NIC_IN_IP,
        },
        direction: Direction::In,
        first: false,
        handle: handle(overlay),
    }
}

/// FNV-1a of the overlay device's name, within the upper half of handles.
fn handle(overlay: &str) -> TcHandle {
    let hash = overlay.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    TcHandle::new((hash >> 16) as u16 | 0x8000, hash as u16)
}

fn index(name: &str) -> rustix::io::Result<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    name_to_index(&socket, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_on_one_host_have_filters_of_their_own() {
        assert_ne!(handle("tailrace0"), handle("tailrace1"));
        assert_eq!(handle("tailrace0"), handle("tailrace0"));
    }
}
