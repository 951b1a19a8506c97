//! What stands before every packet of a TUN device with offloads: [`VnetHeader`].

/// The checksum is still to be computed.
pub(crate) const NEEDS_CSUM: u8 = 1;

/// Which packets a super-packet is made of: `VIRTIO_NET_HDR_GSO_*`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Gso {
    /// It is one packet.
    None = 0,
    Tcp4 = 1,
    Tcp6 = 4,
    Udp = 5,
}

/// `struct virtio_net_hdr`, in native byte order as a TUN device has it by default.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct VnetHeader {
    pub(crate) flags: u8,
    pub(crate) gso: Gso,
    /// Length of the headers; what the kernel writes here is not to be relied on.
    pub(crate) header_len: u16,
    /// Payload bytes of each packet but the last.
    pub(crate) gso_size: u16,
    /// Where the checksummed part begins, and where in it the checksum is.
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
}

impl VnetHeader {
    /// Its bytes.
    pub(crate) const LEN: usize = 10;

    /// A single packet, whole as it is.
    pub(crate) const PLAIN: VnetHeader = VnetHeader {
        flags: 0,
        gso: Gso::None,
        header_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Reads a header; `None` if the kind of super-packet is none that was asked for.
    pub(crate) fn parse(bytes: &[u8; Self::LEN]) -> Option<VnetHeader> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            _ => return None,
        };
        Some(VnetHeader {
            flags: bytes[0],
            gso,
            header_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    /// As the device wants it.
    pub(crate) fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [self.flags, self.gso as u8, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [
            self.header_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ];
        for (field, word) in bytes[2..].as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *field = word.to_ne_bytes();
        }
        bytes
    }
}
