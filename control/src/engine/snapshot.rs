//! The full frame: all that a viewer has to know, gathered under the lock, rendered outside it.

use bytes::Bytes;
use control_proto::tailcfg::Compress;
use time::OffsetDateTime;

use super::{render, wire};
use crate::model::NodeId;

/// What one node is told in full, as of one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) prelude: Bytes,
    pub(super) own: Bytes,
    pub(super) peers: Vec<Bytes>,
    pub(super) profiles: Vec<Bytes>,
    pub(super) removed: Vec<NodeId>,
}

impl Snapshot {
    /// Does the node see nobody?
    pub(super) fn is_lonely(&self) -> bool {
        self.peers.is_empty()
    }

    /// Renders and frames it (protocol digest 4.2, 4.5).
    /// `None`, logged, without memory for it.
    #[must_use]
    pub fn frame(&self, compress: Compress, now: OffsetDateTime) -> Option<Bytes> {
        let room: usize = self
            .peers
            .iter()
            .chain(&self.profiles)
            .map(|part| part.len() + 1)
            .sum();
        let mut out = wire::Writer::continuing(&self.prelude, room + self.own.len() + 256);
        out.raw("Node", &self.own);
        // An empty list would clear nothing and cost the client a rebuild.
        if !self.peers.is_empty() {
            out.array("Peers", self.peers.iter());
        }
        if !self.removed.is_empty() {
            out.value("PeersRemoved", &self.removed);
        }
        out.array("UserProfiles", self.profiles.iter());
        out.value("ControlTime", &render::timestamp(now));
        out.frame(compress)
    }
}
