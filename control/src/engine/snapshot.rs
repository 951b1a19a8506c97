//! The full frame: all that a viewer has to know, gathered under the lock, rendered outside it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use control_proto::tailcfg::{Compress, SshPolicy};
use policy::compile::Filter;
use time::OffsetDateTime;

use super::{render, wire};
use crate::model::NodeId;

/// What one node is told in full, as of one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) prelude: Bytes,
    pub(super) relays: Bytes,
    pub(super) own: Bytes,
    pub(super) filter: Arc<Filter>,
    pub(super) ssh: Arc<SshPolicy>,
    pub(super) peers: Vec<Bytes>,
    pub(super) profiles: Vec<Bytes>,
    pub(super) removed: BTreeSet<NodeId>,
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
            .chain([&self.relays, &self.own])
            .map(|part| part.len() + 1)
            .sum();
        let mut out = wire::Writer::continuing(&self.prelude, room + 256);
        out.raw("DERPMap", &self.relays);
        out.raw("Node", &self.own);
        out.filter(&self.filter);
        out.value("SSHPolicy", self.ssh.as_ref());
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
