//! A network namespace of the calling thread's own: [`Space`].

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::request;

/// The calling thread's own network namespace, which ends with the thread and with what was opened in it.
#[derive(Debug)]
pub(crate) struct Space {
    /// Asks for changes.
    v4: UdpSocket,
}

impl Space {
    /// Moves the calling thread, and no other, to a new network namespace for good.
    ///
    /// # Errors
    ///
    /// EPERM without CAP_SYS_ADMIN; ENOSPC if there are too many.
    pub(crate) fn enter() -> io::Result<Space> {
        // SAFETY: of a thread's namespaces nothing in this process depends on but what the thread opens itself; its
        // descriptors stay those of the process.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        let v4 = control(libc::AF_INET)?;
        Ok(Space { v4 })
    }

    /// Switches a device on.
    ///
    /// # Errors
    ///
    /// Whatever the system answered, and so below.
    pub(crate) fn up(&self, device: &str) -> io::Result<()> {
        let mut request = request(device)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        ask(&self.v4, libc::SIOCSIFFLAGS, &mut request)
    }

    /// Gives a device an address in a network of 24 bits, in place of one that it has.
    pub(crate) fn set_v4(&self, device: &str, address: Ipv4Addr) -> io::Result<()> {
        let mask = Ipv4Addr::new(255, 255, 255, 0);
        for (what, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(value.octets()),
                },
                sin_zero: [0; 8],
            };
            let mut request = request(device)?;
            // SAFETY: both are structs of 16 bytes that begin with the family, and any bytes are valid for either.
            request.ifr_ifru.ifru_addr =
                unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(name) };
            ask(&self.v4, what, &mut request)?;
        }
        Ok(())
    }

    /// Gives a device an address in a network of 64 bits. Also fails on hosts without IPv6.
    pub(crate) fn add_v6(&self, device: &str, address: Ipv6Addr) -> io::Result<()> {
        let v6 = control(libc::AF_INET6)?;
        let mut index = request(device)?;
        ask(&v6, libc::SIOCGIFINDEX, &mut index)?;
        let mut request = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr {
                s6_addr: address.octets(),
            },
            ifr6_prefixlen: 64,
            // SAFETY: the kernel has written this variant.
            ifr6_ifindex: unsafe { index.ifr_ifru.ifru_ifindex },
        };
        ask(&v6, libc::SIOCSIFADDR, &mut request)
    }
}

/// A socket of this family, to ask by.
fn control(family: libc::c_int) -> io::Result<UdpSocket> {
    // SAFETY: takes numbers, returns a descriptor or -1.
    match unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor is new, and nobody else's.
        fd => Ok(UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) })),
    }
}

/// `request` is of the type that `what` takes.
fn ask<T>(socket: &UdpSocket, what: libc::c_ulong, request: &mut T) -> io::Result<()> {
    // SAFETY: the kernel reads and writes one request of the type that all callers above give for `what`; it lives
    // through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), what as _, ptr::from_mut(request)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
