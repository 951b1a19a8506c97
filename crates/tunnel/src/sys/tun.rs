//! TUN devices with offloads: [`Tun`].

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::ptr;

use super::{not_offered, request};
use crate::offloads::{Offload, Switches};

/// `IFF_VNET_HDR`, `IFF_MULTI_QUEUE`, and `TUN_F_*` of `linux/if_tun.h`.
const IFF_VNET_HDR: i32 = 0x4000;
const IFF_MULTI_QUEUE: i32 = 0x0100;
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// A queue of a TUN device whose packets stand behind a [`VnetHeader`](crate::vnet::VnetHeader); the device goes with
/// the last one. Neither reads nor writes block.
#[derive(Debug)]
pub(crate) struct Tun(File);

impl Tun {
    /// Creates the device, down and without addresses, with so many queues. The kernel deals flows out to them, and
    /// keeps each where its answers come in. Offloads that it does not have are switched off.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub(crate) fn create(name: &str, queues: usize, switches: &Switches) -> io::Result<Vec<Tun>> {
        let tuns = (0..queues).map(|_| Tun::open(name, queues > 1));
        let tuns: Vec<Tun> = tuns.collect::<io::Result<_>>()?;
        for tun in &tuns {
            tun.set_up(switches)?;
        }
        Ok(tuns)
    }

    /// Opens the device, or one more queue of it; the kernel hands over single packets as yet.
    ///
    /// # Errors
    ///
    /// EBUSY if another process holds it, EPERM without CAP_NET_ADMIN, ENOENT without `/dev/net/tun`, EINVAL
    /// if the name is none or that of another kind of device.
    pub(crate) fn open(name: &str, one_of_several: bool) -> io::Result<Tun> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = request(name)?;
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | IFF_VNET_HDR;
        if one_of_several {
            flags |= IFF_MULTI_QUEUE;
        }
        request.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: the kernel reads and writes one `ifreq`, which lives through the call.
        let result = unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                libc::TUNSETIFF,
                ptr::from_mut(&mut request),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Tun(file))
    }

    /// Sets the offloads that are on, and switches off those that the kernel does not have, the newest first.
    fn set_up(&self, switches: &Switches) -> io::Result<()> {
        let on = |offload| switches.is_on(offload);
        let set = self.set_offloads(on(Offload::TunTcp), on(Offload::TunUdp));
        let Err(error) = set else { return Ok(()) };
        let mut newest = [Offload::TunUdp, Offload::TunTcp].into_iter();
        let Some(offload) = newest.find(|offload| on(*offload)) else {
            return Err(error);
        };
        switches.turn_off(offload, not_offered(&error));
        self.set_up(switches)
    }

    /// Says which packets the kernel may hand over joined. What we write is not affected.
    ///
    /// # Errors
    ///
    /// EINVAL where the kernel has no such offload: datagrams before 6.2.
    pub(crate) fn set_offloads(&self, tcp: bool, udp: bool) -> io::Result<()> {
        let mut flags = 0;
        if tcp {
            flags |= TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
        }
        if udp {
            // Both bits or none.
            flags |= TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6;
        }
        self.set(libc::TUNSETOFFLOAD, flags.into())
    }

    /// Has the device go with its network namespace rather than with its last queue: closing does not wait for it
    /// then, which is what takes longest of all.
    ///
    /// # Errors
    ///
    /// Whatever the system answered.
    pub(crate) fn leave_to_namespace(&self) -> io::Result<()> {
        self.set(libc::TUNSETPERSIST, 1)
    }

    /// `request` takes a number.
    fn set(&self, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
        // SAFETY: both requests that are made above take a number, no pointer.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, value) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Reads one packet or super-packet, its header first; returns its length.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none; EBADFD once the device was deleted.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Writes one packet or super-packet, its header first.
    ///
    /// # Errors
    ///
    /// EIO while the device is down; EBADFD once it was deleted; EINVAL if the kernel cannot make sense of the header.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.0).write_vectored(parts).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
