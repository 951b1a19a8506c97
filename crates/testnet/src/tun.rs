//! A TUN device: what is written into it arrives on it.

use std::{
    fs::{File, OpenOptions},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use anyhow::{Context as _, Result, ensure};

/// `TUNSETIFF` in `linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TUN: u16 = 0x0001;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// `TUNSETOFFLOAD`, and what is offloaded: checksums, TCP segmentation of both families.
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUN_F_CSUM_TSO4_TSO6: libc::c_ulong = 7;

/// `struct ifreq`, as far as this ioctl uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

/// Makes a TUN device of this name in the calling thread's network namespace; it goes with the file.
///
/// Each write is one packet, which begins with its IP header, and each read too; neither blocks.
///
/// # Errors
///
/// Without root, or if there is no TUN driver or already such a device.
pub fn tun(name: &str) -> Result<File> {
    open(name, IFF_TUN, libc::O_NONBLOCK)
}

/// As [`tun`], but each packet is an Ethernet frame.
pub(crate) fn tap(name: &str) -> Result<File> {
    open(name, IFF_TAP, libc::O_NONBLOCK)
}

/// As [`tun`], but reads block, each packet stands behind a `virtio_net_hdr`, and the kernel leaves
/// checksums and segmentation of TCP to whoever reads.
#[expect(unsafe_code, reason = "ioctl")]
pub(crate) fn offloading_tun(name: &str) -> Result<File> {
    let file = open(name, IFF_TUN | IFF_VNET_HDR, 0)?;
    // SAFETY: this request takes a number, no pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, TUN_F_CSUM_TSO4_TSO6) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error).with_context(|| format!("setting offloads of {name}"));
    }
    Ok(file)
}

#[expect(unsafe_code, reason = "ioctl")]
fn open(name: &str, flags: u16, open_flags: i32) -> Result<File> {
    ensure!(name.len() < 16, "{name} is too long for a device");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(open_flags)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_NO_PI | flags,
        padding: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request is as large as `struct ifreq` and lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const request) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error).with_context(|| format!("making the TUN device {name}"));
    }
    Ok(file)
}
