//! A packet in the kernel's buffer, as `packet` reads it.
#![expect(unsafe_code, reason = "direct packet access")]

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use packet::{Gso, Window};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bytes of headers that parsing may want: IPv6, its extensions and ICMPv6, twice, for an error quotes
/// a packet with as many, and the first of the quoted packet's ports.
const HEADERS: u32 = 2 * (40 + packet::MAX_EXTENSION_BYTES + 8) + 8;
/// No header begins farther into a packet.
const FARTHEST: usize = 1023;

/// The linear part of a buffer, read in place.
pub(crate) struct Frame<'a> {
    ctx: &'a TcContext,
}

impl<'a> Frame<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Self {
        Self { ctx }
    }

    /// Segmentation state of the buffer.
    #[inline(always)]
    pub(crate) fn gso(&self) -> Gso {
        let skb = self.skb();
        Gso {
            size: skb.gso_size,
            segments: skb.gso_segs,
        }
    }

    /// What `read` makes of the packet; if it fails, and bytes of headers were out of its reach, then
    /// what it makes of it with those.
    #[inline(always)]
    pub(crate) fn read<T, E>(&self, mut read: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        match read() {
            Err(_) if self.pull_headers() => read(),
            result => result,
        }
    }

    /// Makes the headers readable in place. Returns whether more bytes may be readable than before.
    ///
    /// Costly, and seldom needed: WireGuard, TUN and the kernel's own TCP keep them there.
    #[inline(always)]
    pub(crate) fn pull_headers(&self) -> bool {
        let wanted = self.len().min(HEADERS);
        let readable = self.ctx.data() + wanted as usize <= self.ctx.data_end();
        !readable && self.ctx.pull_data(wanted).is_ok()
    }

    /// Adds one to the source port of an IPv4 packet without options, if it is in reach.
    #[inline(always)]
    pub(crate) fn next_source_port(&self) {
        const PORT: usize = 20;
        let start = self.ctx.data();
        if start + PORT + size_of::<u16>() > self.ctx.data_end() {
            return;
        }
        // SAFETY: in bounds by the check above; of bytes, hence aligned.
        unsafe {
            let port = (start + PORT) as *mut [u8; 2];
            *port = (u16::from_be_bytes(*port).wrapping_add(1)).to_be_bytes();
        }
    }

    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        // SAFETY: the kernel passes a valid context, which lives as long as the program runs.
        unsafe { &*self.ctx.skb.skb }
    }
}

impl Window for Frame<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn at<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, offset: usize) -> Option<&T> {
        // Headers end far below; beyond this the verifier takes no offset that it cannot foresee.
        if offset > FARTHEST {
            return None;
        }
        let start = self.ctx.data() + offset;
        if start + size_of::<T>() > self.ctx.data_end() {
            return None;
        }
        // SAFETY: in bounds by the check above, hence not null (said aloud, or the compiler compares
        // the pointer with 0); `T` accepts any bytes at any alignment. Only `pull_headers` moves the
        // packet, and no reference is held across it.
        unsafe {
            core::hint::assert_unchecked(start != 0);
            Some(&*(start as *const T))
        }
    }

    #[inline(always)]
    fn words<const N: usize>(&self) -> Option<[u32; N]> {
        let start = self.ctx.data();
        if start + size_of::<[u32; N]>() > self.ctx.data_end() {
            return None;
        }
        // SAFETY: in bounds by the check above. The kernel takes word loads from packets on machines
        // that need no alignment; the verifier refuses the program on others.
        Some(unsafe { *(start as *const [u32; N]) })
    }
}
