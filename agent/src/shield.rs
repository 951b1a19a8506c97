//! The shields of WireGuard's port: one on each underlay device, while the operator wants them.
//!
//! They cost what they save only in a flood; without them everything works as before. So what goes wrong
//! here is told and not fatal.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dataplane::{DataplaneError, ShieldKind, ShieldLimits, ShieldReason, Trusted};
use ipnet::IpNet;
use netlink::links::{self, Link};
use netlink::{Error, Netlink, addresses};

use crate::error_text::error_text;

/// Most devices that get a shield: a host of more is one of many containers.
const MAX_DEVICES: usize = 32;

/// Where shields run (`--shield`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ShieldMode {
    /// Nowhere.
    Off,
    /// Behind the driver: on every device, beside others' programs.
    #[default]
    Tcx,
    /// In the driver, by XDP.
    Native,
}

impl ShieldMode {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Tcx => "tcx",
            Self::Native => "native",
        }
    }
}

/// What shields do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ShieldStatus {
    /// Where they run.
    pub mode: ShieldMode,
    /// Names of the devices that have one.
    pub devices: Vec<String>,
    /// There is a flood on one of them.
    pub flooded: bool,
    /// Handshake initiations, by what became of them.
    pub initiations: BTreeMap<ShieldReason, u64>,
    /// Why a device has none.
    pub problem: Option<String>,
}

/// The shields of one UDP port.
#[derive(Debug)]
pub(crate) struct Shields {
    mode: ShieldMode,
    port: u16,
    /// By number of the device.
    attached: BTreeMap<u32, dataplane::Shield>,
    problem: Option<String>,
}

impl Shields {
    /// None yet: [`arrange`](Self::arrange) attaches them.
    pub(crate) fn new(mode: ShieldMode, port: u16) -> Self {
        Self {
            mode,
            port,
            attached: BTreeMap::new(),
            problem: None,
        }
    }

    /// Has a shield on each device of the underlay, and nowhere else, in a flood passing what comes from
    /// `trusted`. With `pins` they outlive the process.
    pub(crate) fn arrange(
        &mut self,
        devices: &BTreeMap<u32, String>,
        trusted: &[SocketAddr],
        pins: Option<&Path>,
    ) {
        self.problem = self
            .try_arrange(devices, trusted, pins)
            .err()
            .map(|error| format!("the WireGuard port is not shielded: {}", error_text(&error)));
    }

    fn try_arrange(
        &mut self,
        devices: &BTreeMap<u32, String>,
        trusted: &[SocketAddr],
        pins: Option<&Path>,
    ) -> Result<(), DataplaneError> {
        let none = BTreeMap::new();
        let devices = if self.mode == ShieldMode::Off {
            &none
        } else {
            devices
        };
        self.attached.retain(|index, shield| {
            devices
                .get(index)
                .is_some_and(|name| name == shield.ifname())
        });
        if let Some(pins) = pins {
            let port = self.port;
            let wanted = |name: &str, at| at == port && devices.values().any(|known| known == name);
            dataplane::Shield::remove_others(pins, wanted)?;
        }
        let trusted: Vec<Trusted> = trusted.iter().map(|at| (*at).into()).collect();
        let mut failed = None;
        for (index, name) in devices {
            if let Err(error) = self.shield(*index, name, &trusted, pins) {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn shield(
        &mut self,
        index: u32,
        name: &str,
        trusted: &[Trusted],
        pins: Option<&Path>,
    ) -> Result<(), DataplaneError> {
        let kind = match self.mode {
            ShieldMode::Native => ShieldKind::Native,
            ShieldMode::Off | ShieldMode::Tcx => ShieldKind::tcx(),
        };
        let attached = match self.attached.remove(&index) {
            Some(attached) => Ok(attached),
            None => {
                let limits = ShieldLimits::default();
                dataplane::Shield::attach(name, kind, self.port, limits, pins)
            }
        };
        match attached {
            Ok(mut shield) => {
                let told = shield.set_trusted(trusted);
                self.attached.insert(index, shield);
                told
            }
            // Gone meanwhile; or one that carries no UDP that WireGuard would see.
            Err(DataplaneError::NoInterface(_)) => Ok(()),
            Err(error @ DataplaneError::UnknownLinkLayer { .. }) => {
                tracing::debug!(%error, "not shielded");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Has what comes from `trusted` pass in a flood, on every device that has a shield.
    pub(crate) fn trust(&mut self, trusted: &[SocketAddr]) {
        let trusted: Vec<Trusted> = trusted.iter().map(|at| (*at).into()).collect();
        for shield in self.attached.values_mut() {
            if let Err(error) = shield.set_trusted(&trusted) {
                let reason = error_text(&error);
                tracing::warn!(
                    reason,
                    device = shield.ifname(),
                    "a shield trusts as it did before"
                );
            }
        }
    }

    /// Takes all shields away, also those that an earlier process left.
    pub(crate) fn remove(&mut self, pins: Option<&Path>) -> Result<(), DataplaneError> {
        self.problem = None;
        let mut failed = None;
        for shield in std::mem::take(&mut self.attached).into_values() {
            if let Err(error) = shield.remove() {
                failed.get_or_insert(error);
            }
        }
        if let Some(pins) = pins
            && let Err(error) = dataplane::Shield::remove_all(pins)
        {
            failed.get_or_insert(error);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Reads what they count.
    pub(crate) fn status(&self) -> ShieldStatus {
        let mut status = ShieldStatus {
            mode: self.mode,
            problem: self.problem.clone(),
            ..ShieldStatus::default()
        };
        for shield in self.attached.values() {
            status.devices.push(shield.ifname().to_owned());
            let read = shield.counts().and_then(|counts| {
                status.flooded |= shield.is_flooded()?;
                Ok(counts)
            });
            match read {
                Ok(counts) => {
                    for (reason, count) in counts {
                        *status.initiations.entry(reason).or_default() += count;
                    }
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a shield's counters not read");
                }
            }
        }
        status
    }

    /// Why a device has none.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

/// The folder of the pins of all shields of the node with this overlay device.
///
/// # Errors
///
/// As [`dataplane::pin_folder`].
pub(crate) fn pin_folder(device: &str, state_dir: &Path) -> Result<PathBuf, DataplaneError> {
    dataplane::pin_folder(&format!("{device}.shield"), state_dir)
}

/// The devices of the underlay: all that have an address, but the overlay's.
///
/// # Errors
///
/// Whatever the kernel answered.
pub(crate) async fn devices(
    netlink: &Netlink,
    overlay: u32,
) -> Result<BTreeMap<u32, String>, Error> {
    let links = links::dump(netlink).await?;
    let networks = addresses::dump_others(netlink, overlay).await?;
    Ok(pick(&links, &networks, overlay))
}

fn pick(links: &[Link], networks: &[(u32, IpNet)], overlay: u32) -> BTreeMap<u32, String> {
    let has_address = |index: u32| networks.iter().any(|(at, _)| *at == index);
    links
        .iter()
        .filter(|link| link.up && !link.loopback && link.index != overlay)
        .filter(|link| has_address(link.index))
        // Other tunnels bring packets that an underlay device has brought before.
        .filter(|link| !matches!(link.kind, links::Kind::WireGuard | links::Kind::Tun))
        .map(|link| (link.index, link.name.clone()))
        .take(MAX_DEVICES)
        .collect()
}

#[cfg(test)]
mod tests {
    use netlink::links::{Kind, Layer};

    use super::*;

    #[test]
    fn devices_with_an_address_are_the_underlay() {
        let link = |index, name: &str, kind, up| Link {
            index,
            name: name.to_owned(),
            kind,
            mtu: 1500,
            up,
            loopback: name == "lo",
            master: None,
            layer: Layer::Ethernet,
        };
        let links = [
            link(1, "lo", Kind::Other, true),
            link(2, "eth0", Kind::Other, true),
            link(3, "port0", Kind::Other, true),
            link(4, "down0", Kind::Other, false),
            link(5, "wg0", Kind::WireGuard, true),
            link(9, "tailrace0", Kind::Tun, true),
        ];
        let networks: Vec<(u32, IpNet)> = [1, 2, 4, 5, 9]
            .map(|index| (index, "192.0.2.1/24".parse().unwrap()))
            .to_vec();
        let picked = pick(&links, &networks, 9);
        assert_eq!(picked, [(2, "eth0".to_owned())].into());
    }
}
