//! A TUN device: what is written into it arrives on it.

use std::{
    fs::{File, OpenOptions},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use anyhow::{Context as _, Result, ensure};

/// `TUNSETIFF` in `linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;

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
#[expect(unsafe_code, reason = "ioctl")]
pub fn tun(name: &str) -> Result<File> {
    ensure!(name.len() < 16, "{name} is too long for a device");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
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
