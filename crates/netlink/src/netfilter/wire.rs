//! Bytes of nfnetlink messages: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
//!
//! Headers are in host order, `res_id` and all integers of conntrack and nftables in network order.

const HEADER_LEN: usize = 16;
const FAMILY_HEADER_LEN: usize = 4;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: the kernel answers with an error code, 0 for success.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: the table changed under the dump.
pub(crate) const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;

/// `NLMSG_ERROR`.
pub(crate) const ERROR: u16 = 2;
/// `NLMSG_DONE`.
pub(crate) const DONE: u16 = 3;

/// Requests, back to back as one datagram takes them.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Writer {
    /// Appends a message; `kind` is subsystem and command, `body` writes the attributes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        (family, resource): (u8, u16),
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend([0; 4]); // length, below
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]); // port id: the kernel knows us
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        body(self);
        // A request is far below 4 GiB: names, a few rules, some prefixes.
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Has the kernel answer the last message even if all is well.
    pub(crate) fn acknowledge(&mut self) {
        let at = self.last + 6;
        if let Some(flags) = self.bytes.get_mut(at..at + 2) {
            let asked = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
            flags.copy_from_slice(&asked.to_ne_bytes());
        }
    }

    /// Appends an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(ATTRIBUTE_HEADER_LEN + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    /// Appends an integer in network order.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Appends a string with its closing zero.
    pub(crate) fn put_text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// Appends an attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        body(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// The datagram.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One message of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// Subsystem and command, or [`ERROR`], [`DONE`].
    pub(crate) kind: u16,
    /// `NLM_F_*`.
    pub(crate) flags: u16,
    /// That of the request; 0 in notifications that nobody asked for.
    pub(crate) sequence: u32,
    /// Netlink port of the socket whose request caused it.
    pub(crate) port: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits a datagram; a torn message at the end is left out.
    pub(crate) fn all(mut bytes: &'a [u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let len = u32_at(bytes, 0)? as usize;
            if len < HEADER_LEN || len > bytes.len() {
                return None;
            }
            let frame = Self {
                kind: u16_at(bytes, 4)?,
                flags: u16_at(bytes, 6)?,
                sequence: u32_at(bytes, 8)?,
                port: u32_at(bytes, 12)?,
                payload: &bytes[HEADER_LEN..len],
            };
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some(frame)
        })
    }

    /// The error number of an [`ERROR`] or [`DONE`] message, positive; 0 for success.
    pub(crate) fn errno(&self) -> i32 {
        u32_at(self.payload, 0).map_or(0, |code| -code.cast_signed())
    }

    /// `nfgen_family` of the `struct nfgenmsg`.
    pub(crate) fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or_default()
    }

    /// The attributes behind the `struct nfgenmsg`.
    pub(crate) fn attributes(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        Attribute::all(self.payload.get(FAMILY_HEADER_LEN..).unwrap_or_default())
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    /// What it is, without the flags for nesting and byte order.
    pub(crate) kind: u16,
    /// Its bytes.
    pub(crate) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// Splits a run of attributes; a torn one at the end is left out.
    pub(crate) fn all(mut bytes: &'a [u8]) -> impl Iterator<Item = Self> + use<'a> {
        std::iter::from_fn(move || {
            let len = usize::from(u16_at(bytes, 0)?);
            if len < ATTRIBUTE_HEADER_LEN || len > bytes.len() {
                return None;
            }
            let attribute = Self {
                kind: u16_at(bytes, 2)? & TYPE_MASK,
                value: &bytes[ATTRIBUTE_HEADER_LEN..len],
            };
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some(attribute)
        })
    }

    /// The attributes inside.
    pub(crate) fn inner(&self) -> impl Iterator<Item = Self> + use<'a> {
        Self::all(self.value)
    }

    /// The byte, if it is one.
    pub(crate) fn u8(&self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// The integer in network order, if it is one.
    pub(crate) fn u16(&self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The integer in network order, if it is one.
    pub(crate) fn u32(&self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The string without its closing zero.
    pub(crate) fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.value)
            .ok()
            .map(|text| text.trim_end_matches('\0'))
    }

    /// The value as that many bytes.
    pub(crate) fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.value.try_into().ok()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut writer = Writer::default();
        writer.message(0x0a03, ACK, 7, (1, 10), |message| {
            message.put_text(1, "table");
            message.nest(2, |inner| inner.put_u32(3, 0x0102_0304));
        });
        writer.message(0x0a04, 0, 8, (2, 0), |_| {});
        writer.acknowledge();

        let frames: Vec<_> = Frame::all(writer.as_bytes()).collect();
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].kind, frames[0].sequence), (0x0a03, 7));
        assert_eq!(frames[0].family(), 1);
        assert_eq!(frames[0].flags, ACK | REQUEST);
        let attributes: Vec<_> = frames[0].attributes().collect();
        assert_eq!(attributes[0].text(), Some("table"));
        let inner = attributes[1].inner().next().unwrap();
        assert_eq!((inner.kind, inner.u32()), (3, Some(0x0102_0304)));
        assert_eq!((frames[1].sequence, frames[1].flags), (8, ACK | REQUEST));
    }

    #[test]
    fn torn_messages_end_the_walk() {
        let mut writer = Writer::default();
        writer.message(1, 0, 1, (0, 0), |message| message.put_u32(1, 5));
        let bytes = writer.as_bytes();
        for cut in 0..bytes.len() {
            assert_eq!(Frame::all(&bytes[..cut]).count(), 0);
        }
        for cut in 1..8 {
            let payload = &bytes[20..20 + cut];
            assert_eq!(Attribute::all(payload).count(), 0);
        }
    }
}
