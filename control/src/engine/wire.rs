//! Writes map frames out of parts that are rendered already.

use std::cell::RefCell;

use bytes::Bytes;
use control_proto::frame::Encoder;
use control_proto::tailcfg::Compress;
use policy::compile::Filter;
use serde::Serialize;

/// A MapResponse under construction.
#[derive(Debug)]
pub(super) struct Writer {
    json: Vec<u8>,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self { json: vec![b'{'] }
    }

    /// Continues an object that [`Writer::into_open`] left open.
    pub(super) fn continuing(open: &[u8], room: usize) -> Self {
        let mut json = Vec::with_capacity(open.len() + room);
        json.extend_from_slice(open);
        Self { json }
    }

    /// The object so far, to be continued.
    pub(super) fn into_open(self) -> Vec<u8> {
        self.json
    }

    /// Adds a member whose value is JSON already.
    pub(super) fn raw(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.json.extend_from_slice(value);
    }

    /// Adds a member. The types that reach this have no value that JSON cannot carry.
    pub(super) fn value<T: Serialize>(&mut self, name: &str, value: &T) {
        self.raw(name, &to_json(value));
    }

    /// Adds an array of values that are JSON already.
    pub(super) fn array<'a>(&mut self, name: &str, items: impl Iterator<Item = &'a Bytes>) {
        self.name(name);
        let mut separator = b'[';
        for item in items {
            self.json.push(separator);
            self.json.extend_from_slice(item);
            separator = b',';
        }
        if separator == b'[' {
            self.json.push(b'[');
        }
        self.json.push(b']');
    }

    /// Adds a filter, deny all included (pitfall 26).
    pub(super) fn filter(&mut self, filter: &Filter) {
        self.name("PacketFilters");
        self.json.extend_from_slice(b"{\"base\":");
        filter.write_json(&mut self.json);
        self.json.push(b'}');
    }

    /// Closes the object and frames it: `u32` little-endian length, then one zstd frame or JSON
    /// (protocol digest 4.2).
    pub(super) fn frame(mut self, compress: Compress) -> Option<Bytes> {
        self.json.push(b'}');
        encode(&self.json, compress)
    }

    fn name(&mut self, name: &str) {
        if self.json.len() > 1 {
            self.json.push(b',');
        }
        self.json.push(b'"');
        self.json.extend_from_slice(name.as_bytes());
        self.json.extend_from_slice(b"\":");
    }
}

/// Frames one JSON document. `None`, logged, if there is no memory for it: end the stream.
pub(super) fn encode(json: &[u8], compress: Compress) -> Option<Bytes> {
    thread_local! {
        // A compressor holds about a megabyte: one per worker thread, not one per stream.
        static ENCODER: RefCell<Option<Encoder>> = const { RefCell::new(None) };
    }
    let encoded = ENCODER.with_borrow_mut(|slot| {
        let encoder = match slot {
            Some(encoder) => encoder,
            None => slot.insert(Encoder::new()?),
        };
        encoder.encode_json(json, compress)
    });
    match encoded {
        Ok(frame) => Some(frame.into()),
        Err(error) => {
            tracing::error!(%error, "a map frame could not be encoded");
            None
        }
    }
}

/// JSON of a value that cannot fail to serialise: string keys, finite numbers.
pub(super) fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::error!(%error, "a map part could not be rendered: report this as a bug");
        b"null".to_vec()
    })
}
