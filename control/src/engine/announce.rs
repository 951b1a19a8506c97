//! Tells streams what is new: one small delta each, shared by those that are told the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use control_proto::tailcfg::{PeerChange, SshPolicy};
use policy::compile::Filter;

use super::delta::{Delta, Parts};
use super::known::{Before, Edits};
use super::{MapSettings, State, render};
use crate::model::{NodeId, UserId};

/// Peers that one delta adds, replaces or removes at most; beyond it the viewer gets a full frame,
/// made when it has time for it. Bounds what a change of policy keeps in the queues.
const MOST_CHANGED: usize = 1000;
/// Larger deltas are hardly ever the same for two viewers.
const MOST_SHARED: usize = 64;

/// What is new about a node besides how the policy shows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// Nothing that peers see.
    Nothing,
    /// A small change.
    Patch(PeerChange),
    /// Anything else.
    Whole {
        /// Peers may not know the owner.
        new_owner: bool,
    },
}

/// What a stream was told, or will be with what is in its queue.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) filter: Arc<Filter>,
    pub(super) ssh: Arc<SshPolicy>,
    /// Its own node, rendered.
    pub(super) own: Bytes,
    /// Whose it is.
    pub(super) owner: UserId,
}

/// Says what is in a delta; equal ones make equal deltas, within one change.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
struct Outline {
    removed: Vec<NodeId>,
    /// Peers, and which of their renderings.
    changed: Vec<(NodeId, usize)>,
    owners: Vec<UserId>,
    patched: bool,
    filter: Option<usize>,
    ssh: Option<usize>,
    relays: bool,
}

/// The deltas of one change.
pub(super) struct Post<'a> {
    settings: &'a MapSettings,
    /// The node that has news.
    news: Option<(NodeId, &'a News)>,
    /// The DERP map is another.
    pub(super) new_relays: bool,
    made: HashMap<Outline, Arc<Delta>>,
}

impl<'a> Post<'a> {
    pub(super) fn new(settings: &'a MapSettings, news: Option<(NodeId, &'a News)>) -> Self {
        Self {
            settings,
            news,
            new_relays: false,
            made: HashMap::new(),
        }
    }

    fn new_owner(&self, id: NodeId) -> bool {
        self.news == Some((id, &News::Whole { new_owner: true }))
    }
}

impl State {
    /// Tells every stream what follows for it from a change of the network.
    pub(super) fn follow(&mut self, mut post: Post<'_>, before: &Before) {
        let streaming = self
            .members
            .iter()
            .filter(|(_, member)| member.stream.is_some());
        let viewers: Vec<NodeId> = streaming.map(|(id, _)| *id).collect();
        for viewer in viewers {
            let edits = before.edits(&self.network, viewer);
            self.tell(&mut post, viewer, edits, before.covers(viewer));
        }
    }

    /// Tells the viewers of a node its news, which change nothing in the network.
    pub(super) fn announce(&mut self, settings: &MapSettings, id: NodeId, news: &News) {
        if let News::Patch(patch) = news {
            let parts = Parts {
                patches: [(id, patch.clone())].into(),
                ..Parts::default()
            };
            let delta = Arc::new(Delta::new(parts));
            for viewer in self.network.peers(id) {
                if let Some(stream) = self.stream(viewer) {
                    stream.session.push(Some(&delta), None);
                }
            }
            return;
        }
        if *news == News::Nothing {
            return;
        }
        let mut post = Post::new(settings, Some((id, news)));
        for viewer in self.network.peers(id) {
            let same = Edits {
                same: vec![id],
                ..Edits::default()
            };
            self.tell_peers(&mut post, viewer, same, Outline::default(), None);
        }
    }

    /// Tells a node of itself, if it has a stream and does not know it.
    pub(super) fn tell_own(&mut self, settings: &MapSettings, id: NodeId) {
        let mut post = Post::new(settings, None);
        let mut outline = Outline::default();
        let own = self.new_own(settings, id, &mut outline);
        if own.is_some() {
            self.tell_peers(&mut post, id, Edits::default(), outline, own);
        }
    }

    /// Takes it that a node knows what it just said of itself: nobody tells it that.
    pub(super) fn knows_itself(&mut self, settings: &MapSettings, id: NodeId) {
        if let Some(own) = self.own(settings, id)
            && let Some(stream) = self.stream(id)
        {
            stream.told.own = own;
        }
    }

    fn tell(&mut self, post: &mut Post<'_>, viewer: NodeId, edits: Edits, covered: bool) {
        let mut outline = Outline {
            relays: post.new_relays,
            ..Outline::default()
        };
        let own = if covered {
            self.new_own(post.settings, viewer, &mut outline)
        } else {
            None
        };
        let filter = self.network.filter(viewer);
        let ssh = self.network.ssh(viewer);
        if let Some(stream) = self.stream(viewer) {
            if stream.told.filter != filter {
                outline.filter = Some(Arc::as_ptr(&filter) as usize);
            }
            if stream.told.ssh != ssh {
                outline.ssh = Some(Arc::as_ptr(&ssh) as usize);
            }
            stream.told.filter = filter;
            stream.told.ssh = ssh;
        }
        self.tell_peers(post, viewer, edits, outline, own);
    }

    /// The viewer's own node if it is told something new by it.
    fn new_own(
        &mut self,
        settings: &MapSettings,
        viewer: NodeId,
        outline: &mut Outline,
    ) -> Option<Bytes> {
        self.stream(viewer)?;
        let own = self.own(settings, viewer)?;
        let owner = render::owner(&self.members.get(&viewer)?.node);
        let told = &mut self.stream(viewer)?.told;
        if told.own == own {
            return None;
        }
        if told.owner != owner {
            outline.owners.push(owner);
        }
        told.own = own.clone();
        told.owner = owner;
        Some(own)
    }

    /// Completes the outline with what is new about peers, and queues the delta.
    fn tell_peers(
        &mut self,
        post: &mut Post<'_>,
        viewer: NodeId,
        edits: Edits,
        mut outline: Outline,
        own: Option<Bytes>,
    ) {
        let Some(stream) = self.stream(viewer) else {
            return;
        };
        if edits.changed.len().max(edits.removed.len()) > MOST_CHANGED {
            stream.session.start_over();
            return;
        }
        outline.removed = edits.removed;
        for edit in &edits.changed {
            let at = self.rendering(post.settings, edit.peer, &edit.view);
            outline.changed.extend(at.map(|at| (edit.peer, at)));
            if (edit.is_new || post.new_owner(edit.peer))
                && let Some(member) = self.members.get(&edit.peer)
            {
                outline.owners.push(render::owner(&member.node));
            }
        }
        for id in edits.same {
            match post.news {
                Some((new, News::Patch(_))) if new == id => outline.patched = true,
                Some((new, News::Whole { .. })) if new == id => {
                    let view = self.network.peer_view(viewer, id);
                    let at = self.rendering(post.settings, id, &view);
                    outline.changed.extend(at.map(|at| (id, at)));
                    if post.new_owner(id)
                        && let Some(member) = self.members.get(&id)
                    {
                        outline.owners.push(render::owner(&member.node));
                    }
                }
                _ => {}
            }
        }
        outline.owners.sort_unstable();
        outline.owners.dedup();
        let delta = (outline != Outline::default()).then(|| self.delta(post, viewer, outline));
        if (delta.is_some() || own.is_some())
            && let Some(stream) = self.stream(viewer)
        {
            stream.session.push(delta.as_ref(), own);
        }
    }

    /// The delta with this outline, made at most once.
    fn delta(&self, post: &mut Post<'_>, viewer: NodeId, outline: Outline) -> Arc<Delta> {
        if let Some(made) = post.made.get(&outline) {
            return Arc::clone(made);
        }
        let told = self
            .members
            .get(&viewer)
            .and_then(|member| member.stream.as_ref());
        let told = told.map(|stream| &stream.told);
        let rendered = |(id, at): &(NodeId, usize)| {
            let (_, peer) = self.members.get(id)?.renderings.get(*at)?;
            Some((*id, peer.clone()))
        };
        let patch = post.news.filter(|_| outline.patched);
        let patches = match patch {
            Some((id, News::Patch(patch))) => [(id, patch.clone())].into(),
            _ => BTreeMap::new(),
        };
        let profile = |id: &UserId| (*id, self.profile(post.settings, *id));
        let parts = Parts {
            removed: outline.removed.iter().copied().collect(),
            changed: outline.changed.iter().filter_map(rendered).collect(),
            patches,
            profiles: outline.owners.iter().map(profile).collect(),
            filter: told
                .filter(|_| outline.filter.is_some())
                .map(|told| told.filter.clone()),
            ssh: told
                .filter(|_| outline.ssh.is_some())
                .map(|told| told.ssh.clone()),
            relays: outline.relays.then(|| self.relays.clone()),
        };
        let delta = Arc::new(Delta::new(parts));
        if outline.removed.len() + outline.changed.len() <= MOST_SHARED {
            post.made.insert(outline, Arc::clone(&delta));
        }
        delta
    }
}
