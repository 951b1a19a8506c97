//! The system calls that have no safe wrapper: TUN devices with offloads, UDP in batches, and a network namespace to
//! try both in.
//!
//! Nothing else in this crate is unsafe.
#![expect(
    unsafe_code,
    reason = "ioctl, sendmmsg, recvmmsg, unshare, and what the kernel writes"
)]

mod space;
mod tun;
mod udp;

use std::io;
use std::mem::zeroed;

pub(crate) use space::Space;
pub(crate) use tun::Tun;
pub(crate) use udp::{RX_SLOTS, Run, RxRing, SendScratch, Udp};

/// What an ioctl asks of the device of this name.
///
/// # Errors
///
/// `InvalidInput` if the name is too long.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// Why an offload is not used that the kernel was asked for.
fn not_offered(error: &io::Error) -> String {
    format!("this kernel does not offer it: {error}")
}
