//! Packets that the agent itself sends to peers, past the programs on the device: [`Direct`].

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A socket that hands packets straight to a device's driver. Nobody on the host sees them go: neither its
/// firewall nor our programs, which keep host programs from speaking TSMP.
#[derive(Debug)]
pub struct Direct {
    socket: OwnedFd,
    index: libc::c_int,
}

impl Direct {
    /// Opens it for the device that bears the name now; it is of no use once that is gone.
    ///
    /// # Errors
    ///
    /// `NotFound` without such a device; `PermissionDenied` without CAP_NET_RAW.
    pub fn open(device: &str) -> io::Result<Self> {
        let name = CString::new(device)?;
        // SAFETY: the name is a C string that lives through the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let index = libc::c_int::try_from(index).map_err(io::Error::other)?;
        if index == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Protocol 0: it receives nothing.
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes no pointers.
        let descriptor = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is fresh and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let on: libc::c_int = 1;
        // SAFETY: the value is an int that lives through the call, and its size is right.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        match set {
            0 => Ok(Self { socket, index }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends an IP packet, header included.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered: ENXIO or ENODEV once the device is gone, ENETDOWN while it is down.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let family = match packet.first().map(|byte| byte >> 4) {
            Some(6) => libc::ETH_P_IPV6,
            _ => libc::ETH_P_IP,
        };
        // SAFETY: all fields are integers, for which zero is a value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = (family as u16).to_be();
        to.sll_ifindex = self.index;
        // SAFETY: packet and address live through the call, and their sizes are right.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        match sent {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
