//! One change as viewers see it: small, rendered and compressed once, shared by all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use control_proto::tailcfg::{Compress, PeerChange, SshPolicy};
use policy::compile::Filter;

use super::wire;
use crate::model::{NodeId, UserId};

/// What a frame says beyond the viewer itself. Later parts override earlier ones when absorbed, so
/// that a viewer that is behind gets the sum of what it missed in one frame.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    /// Gone for this viewer.
    pub(super) removed: BTreeSet<NodeId>,
    /// New or replaced: the rendered peer.
    pub(super) changed: BTreeMap<NodeId, Bytes>,
    /// Small changes, on top of `changed`.
    pub(super) patches: BTreeMap<NodeId, PeerChange>,
    /// Rendered profiles of owners that come with new peers.
    pub(super) profiles: BTreeMap<UserId, Bytes>,
    /// Who may reach the viewer.
    pub(super) filter: Option<Arc<Filter>>,
    /// Who may open SSH sessions on it.
    pub(super) ssh: Option<Arc<SshPolicy>>,
    /// The rendered DERP map.
    pub(super) relays: Option<Bytes>,
}

impl Parts {
    /// Adds what happened later. Order on the client: removed, changed, patches.
    pub(super) fn absorb(&mut self, later: &Parts) {
        for id in &later.removed {
            self.changed.remove(id);
            self.patches.remove(id);
            self.removed.insert(*id);
        }
        for (id, peer) in &later.changed {
            self.patches.remove(id);
            self.removed.remove(id);
            self.changed.insert(*id, peer.clone());
        }
        for (id, patch) in &later.patches {
            match self.patches.get_mut(id) {
                Some(earlier) => merge(earlier, patch),
                None => {
                    self.patches.insert(*id, patch.clone());
                }
            }
        }
        for (id, profile) in &later.profiles {
            self.profiles.insert(*id, profile.clone());
        }
        newer(&mut self.filter, &later.filter);
        newer(&mut self.ssh, &later.ssh);
        newer(&mut self.relays, &later.relays);
    }

    /// Writes the members of the response that carry these parts, each with a leading comma.
    pub(super) fn render(&self, out: &mut wire::Writer) {
        if let Some(relays) = &self.relays {
            out.raw("DERPMap", relays);
        }
        if let Some(filter) = &self.filter {
            out.filter(filter);
        }
        if !self.profiles.is_empty() {
            out.array("UserProfiles", self.profiles.values());
        }
        if !self.removed.is_empty() {
            out.value("PeersRemoved", &self.removed);
        }
        if !self.changed.is_empty() {
            out.array("PeersChanged", self.changed.values());
        }
        if !self.patches.is_empty() {
            out.value(
                "PeersChangedPatch",
                &self.patches.values().collect::<Vec<_>>(),
            );
        }
        if let Some(ssh) = &self.ssh {
            out.value("SSHPolicy", ssh.as_ref());
        }
    }
}

fn newer<T: Clone>(earlier: &mut Option<T>, later: &Option<T>) {
    if later.is_some() {
        earlier.clone_from(later);
    }
}

/// Lays `later` over `earlier`, field by field.
fn merge(earlier: &mut PeerChange, later: &PeerChange) {
    if later.derp_region != 0 {
        earlier.derp_region = later.derp_region;
    }
    newer(&mut earlier.endpoints, &later.endpoints);
    newer(&mut earlier.disco_key, &later.disco_key);
    newer(&mut earlier.online, &later.online);
    if later.online == Some(true) {
        earlier.last_seen = None;
    }
    newer(&mut earlier.last_seen, &later.last_seen);
}

/// One change, with the frame that carries it made at most once per encoding.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) parts: Parts,
    compressed: OnceLock<Option<Bytes>>,
    plain: OnceLock<Option<Bytes>>,
}

impl Delta {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            ..Self::default()
        }
    }

    /// The frame for a viewer that is sent this change alone.
    pub(super) fn frame(&self, compress: Compress) -> Option<Bytes> {
        let slot = match compress {
            Compress::Zstd => &self.compressed,
            Compress::None => &self.plain,
        };
        slot.get_or_init(|| {
            let mut out = wire::Writer::new();
            self.parts.render(&mut out);
            out.frame(compress)
        })
        .clone()
    }
}
