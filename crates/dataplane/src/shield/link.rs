//! What packets of a device begin with.
#![expect(unsafe_code, reason = "ioctl")]

use std::{io, os::fd::AsRawFd as _};

use rustix::net::{AddressFamily, SocketType, socket};

use crate::DataplaneError;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// `ARPHRD_RAWIP` in `linux/if_arp.h`, which the C library lacks.
const ARPHRD_RAWIP: u16 = 519;

/// Returns how many bytes there are before the IP header in packets of `ifname`.
pub(super) fn header(ifname: &str) -> Result<u32, DataplaneError> {
    let kind = hardware(ifname).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => DataplaneError::NoInterface(ifname.to_owned()),
        _ => DataplaneError::new(format!("asking for the link layer of {ifname}"), error),
    })?;
    match kind {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(ETHERNET),
        libc::ARPHRD_NONE
        | libc::ARPHRD_PPP
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_IPGRE
        | ARPHRD_RAWIP => Ok(0),
        kind => Err(DataplaneError::UnknownLinkLayer {
            ifname: ifname.to_owned(),
            kind,
        }),
    }
}

/// `ARPHRD_*` of the device.
fn hardware(ifname: &str) -> io::Result<u16> {
    let name = ifname.as_bytes();
    // SAFETY: numbers and a union of numbers, of which zero is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: the request is what SIOCGIFHWADDR takes, and lives through the call (netdevice(7)).
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled in this member.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}
