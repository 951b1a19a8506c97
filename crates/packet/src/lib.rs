//! Header parsing and classification shared by eBPF programs and host tests.
//!
//! Packets are those of the overlay device: they begin with their IP header. The same code runs in
//! the kernel, where the verifier proves it, and in host tests, which cut packets at every byte.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "build"))]
pub mod build;
pub mod cache;
mod datagram;
mod family;
pub mod flat;
mod flow;
mod header;
mod initiation;
mod overlay;
mod quick;
mod size;
#[cfg(test)]
mod tests;

pub use datagram::{Content, Datagram, Fragment, Packet, parse};
pub use ebpf_abi::{Count, Direction, DropReason, Reason};
pub use family::Family;
pub use flat::{MAX_EXTENSION_BYTES, MAX_EXTENSIONS, MIN_LATER_OFFSET};
pub use flow::{FRAGMENT_AGE, Flow, FragmentKey, REFRESH, SECOND, idle};
pub use header::protocol;
pub use initiation::{INITIATION_LEN, Initiation, InitiationFamily};
pub use overlay::{Address, remote_address};
pub use quick::Quick;
pub use size::{Gso, count};

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Read access to a packet, wherever its bytes live.
pub trait Window {
    /// Length of the whole packet in bytes, readable here or not.
    fn len(&self) -> u32;

    /// Whether the packet has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the `T` at `offset`, or `None` where it is not wholly readable.
    fn at<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, offset: usize) -> Option<&T>;

    /// Returns the first `N` words of four bytes, as they lie in memory, or `None` where they are not
    /// wholly readable.
    fn words<const N: usize>(&self) -> Option<[u32; N]>;
}

impl Window for [u8] {
    fn len(&self) -> u32 {
        u32::try_from(<[u8]>::len(self)).unwrap_or(u32::MAX)
    }

    fn at<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, offset: usize) -> Option<&T> {
        let (value, _) = T::ref_from_prefix(self.get(offset..)?).ok()?;
        Some(value)
    }

    fn words<const N: usize>(&self) -> Option<[u32; N]> {
        let (words, _) = <[u32; N]>::read_from_prefix(self).ok()?;
        Some(words)
    }
}
