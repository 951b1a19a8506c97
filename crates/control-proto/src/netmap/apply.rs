//! One frame applied to the map, in the order that control.md 4.4 prescribes.

use std::collections::BTreeMap;

use keys::NodePublic;

use super::{ApplyError, Changes, MAX_NAMED, MAX_PEERS, NetMap};
use crate::{
    Presence, Timestamp,
    tailcfg::{DerpMap, FilterRule, MapResponse, Node, NodeId, PeerChange},
};

/// The name of the filter in `PacketFilter`.
const BASE_FILTER: &str = "base";
/// In maps of named things: with null, deletes all of them first.
const EVERY_NAME: &str = "*";

impl NetMap {
    /// Makes a map of the first frame of a stream that was asked for with `node_key`.
    ///
    /// # Errors
    ///
    /// [`ApplyError`] if the frame lacks the node itself or is about another key.
    pub fn first(
        node_key: NodePublic,
        response: MapResponse,
        now: Timestamp,
    ) -> Result<(Self, Changes), ApplyError> {
        let node = response.node.as_ref().ok_or(ApplyError::NoSelf)?;
        check_key(node_key, node.key)?;
        let mut map = Self {
            node: node.clone(),
            ..Self::default()
        };
        let mut changes = map.apply(response, now)?;
        changes.first = true;
        Ok((map, changes))
    }

    /// Applies one later frame; a keepalive changes nothing.
    ///
    /// `now` is what `PeerSeenChange` calls now. Requests in the frame (`PingRequest`,
    /// `PopBrowserURL`) are returned as they are: [`super::MapSession`] drops repeated ones.
    ///
    /// # Errors
    ///
    /// [`ApplyError`]; the map stays as it was.
    pub fn apply(&mut self, response: MapResponse, now: Timestamp) -> Result<Changes, ApplyError> {
        if let Some(node) = &response.node {
            check_key(self.node.key, node.key)?;
        }
        self.check_sizes(&response)?;

        let mut changes = Changes {
            ping: response.ping_request.clone(),
            pop_browser_url: Some(response.pop_browser_url.clone()).filter(|url| !url.is_empty()),
            control_time: response.control_time,
            ..Changes::default()
        };
        if response.keep_alive {
            return Ok(changes);
        }
        changes.debug.clone_from(&response.debug);

        let mut response = response;
        if let Some(node) = response.node.take() {
            self.node = node;
            changes.node = true;
        }
        if let Some(derp_map) = response.derp_map.take() {
            self.merge_derp_map(derp_map);
            changes.derp_map = true;
        }
        changes.filter = self.apply_filters(
            std::mem::take(&mut response.packet_filter),
            std::mem::take(&mut response.packet_filters),
        );
        self.apply_peers(&mut response, now, &mut changes);
        for profile in response.user_profiles.drain(..) {
            changes.users |= self.user_profiles.get(&profile.id) != Some(&profile);
            self.user_profiles.insert(profile.id, profile);
        }
        self.apply_rest(response, &mut changes);
        Ok(changes)
    }

    /// Refuses a frame after which the map would be too large to hold.
    fn check_sizes(&self, response: &MapResponse) -> Result<(), ApplyError> {
        let listed = response.peers.value().map_or(0, Vec::len);
        let added = response
            .peers_changed
            .iter()
            .filter(|peer| !self.peers.contains_key(&peer.id));
        let peers = listed.max(self.peers.len() + added.count());
        let users = self.user_profiles.len() + response.user_profiles.len();
        let named = response.packet_filters.value().map_or(0, BTreeMap::len)
            + response.display_messages.value().map_or(0, BTreeMap::len)
            + self.packet_filters.len()
            + self.display_messages.len();
        // Profiles of everybody may come again in any frame, hence the double bound.
        let sizes = [
            ("peers", peers, MAX_PEERS),
            ("users", users, 2 * MAX_PEERS),
            ("names", named, MAX_NAMED),
        ];
        match sizes.into_iter().find(|(_, count, most)| count > most) {
            Some((what, count, most)) => Err(ApplyError::TooMany { what, count, most }),
            None => Ok(()),
        }
    }

    /// Fields that simply replace what was.
    fn apply_rest(&mut self, response: MapResponse, changes: &mut Changes) {
        if let Some(dns_config) = response.dns_config {
            self.dns_config = dns_config;
            changes.dns = true;
        }
        if !response.domain.is_empty() && response.domain != self.domain {
            self.domain = response.domain;
            changes.domain = true;
        }
        if let Some(ssh_policy) = response.ssh_policy {
            self.ssh_policy = Some(ssh_policy);
            changes.ssh = true;
        }
        if let Presence::Value(health) = response.health {
            changes.health |= health != self.health;
            self.health = health;
        }
        if let Presence::Value(messages) = response.display_messages {
            changes.health |= patch(&mut self.display_messages, messages);
        }
        match response.collect_services {
            Presence::Absent => {}
            Presence::Null => {
                self.collect_services = None;
                changes.other = true;
            }
            Presence::Value(collect) => {
                self.collect_services = Some(collect);
                changes.other = true;
            }
        }
        if let Some(tka_info) = response.tka_info {
            self.tka_info = Some(tka_info);
            changes.other = true;
        }
        if let Some(plan) = response.control_dial_plan {
            self.control_dial_plan = plan;
            changes.control_dial_plan = true;
        }
        if let Some(version) = response.client_version {
            self.client_version = Some(version);
            changes.client_version = true;
        }
    }

    /// Regions present replace all regions, absent keep them; likewise the scores (control.md 5.7).
    fn merge_derp_map(&mut self, new: DerpMap) {
        if let Some(mut regions) = new.regions {
            regions.retain(|_, region| region.is_some());
            self.derp_map.regions = Some(regions);
            self.derp_map.omit_default_regions = new.omit_default_regions;
        }
        if let Some(home_params) = new.home_params {
            let kept = self.derp_map.home_params.get_or_insert_default();
            if let Some(region_score) = home_params.region_score {
                kept.region_score = Some(region_score);
            }
        }
    }

    /// `PacketFilter` first, then the named ones; returns whether anything changed.
    fn apply_filters(
        &mut self,
        base: Presence<Vec<FilterRule>>,
        named: Presence<BTreeMap<String, Option<Vec<FilterRule>>>>,
    ) -> bool {
        let mut changed = false;
        if let Presence::Value(rules) = base {
            changed |= self.packet_filters.get(BASE_FILTER) != Some(&rules);
            self.packet_filters.insert(BASE_FILTER.to_owned(), rules);
        }
        if let Presence::Value(named) = named {
            changed |= patch(&mut self.packet_filters, named);
        }
        changed
    }

    /// A full list wins over all peer differences in the same frame.
    fn apply_peers(&mut self, response: &mut MapResponse, now: Timestamp, changes: &mut Changes) {
        match std::mem::take(&mut response.peers) {
            Presence::Value(peers) if !peers.is_empty() => {
                self.replace_peers(peers, changes);
                return;
            }
            Presence::Value(_) | Presence::Null | Presence::Absent => {}
        }
        for id in response.peers_removed.drain(..) {
            if self.peers.remove(&id).is_some() {
                changes.removed.insert(id);
            }
        }
        for peer in response.peers_changed.drain(..) {
            changes.removed.remove(&peer.id);
            changes.peers.insert(peer.id);
            self.peers.insert(peer.id, peer);
        }
        for (id, seen) in std::mem::take(&mut response.peer_seen_change) {
            self.change(id, changes, |peer| peer.last_seen = seen.then_some(now));
        }
        for (id, online) in std::mem::take(&mut response.online_change) {
            self.change(id, changes, |peer| peer.online = Some(online));
        }
        for patch in response.peers_changed_patch.drain(..) {
            if !self.is_stale(&patch) {
                self.change(patch.node_id, changes, |peer| patch.apply_to(peer));
            }
        }
    }

    fn replace_peers(&mut self, peers: Vec<Node>, changes: &mut Changes) {
        let peers: BTreeMap<NodeId, Node> = peers.into_iter().map(|peer| (peer.id, peer)).collect();
        let gone = self.peers.keys().filter(|id| !peers.contains_key(id));
        changes.removed.extend(gone);
        let changed = peers
            .iter()
            .filter(|(id, peer)| self.peers.get(id) != Some(peer));
        changes.peers.extend(changed.map(|(id, _)| id));
        self.peers = peers;
    }

    /// Changes a peer if it is known.
    fn change(&mut self, id: NodeId, changes: &mut Changes, change: impl FnOnce(&mut Node)) {
        if let Some(peer) = self.peers.get_mut(&id) {
            change(peer);
            changes.peers.insert(id);
        }
    }

    /// A new disco key of a peer that is offline and was not seen since what we know is old news
    /// (control.md 4.4, disco rule).
    fn is_stale(&self, patch: &PeerChange) -> bool {
        let Some(peer) = self.peers.get(&patch.node_id) else {
            return false;
        };
        patch.disco_key.is_some_and(|key| key != peer.disco_key)
            && patch.online == Some(false)
            && patch
                .last_seen
                .zip(peer.last_seen)
                .is_some_and(|(new, known)| new <= known)
    }
}

fn check_key(ours: NodePublic, found: NodePublic) -> Result<(), ApplyError> {
    if ours == found {
        Ok(())
    } else {
        Err(ApplyError::OtherKey { ours, found })
    }
}

/// Applies named values: `None` deletes a name, `"*"` with `None` deletes all first. Returns
/// whether anything changed.
fn patch<T: PartialEq>(
    named: &mut BTreeMap<String, T>,
    mut news: BTreeMap<String, Option<T>>,
) -> bool {
    let mut changed = false;
    if let Some(None) = news.get(EVERY_NAME) {
        news.remove(EVERY_NAME);
        // Cleared and set again to the same is no change.
        let same = named.len() == news.len()
            && named
                .iter()
                .all(|(name, old)| news.get(name).is_some_and(|new| new.as_ref() == Some(old)));
        if same {
            return false;
        }
        changed = !named.is_empty();
        named.clear();
    }
    for (name, new) in news {
        match new {
            None => changed |= named.remove(&name).is_some(),
            Some(new) => {
                changed |= named.get(&name) != Some(&new);
                named.insert(name, new);
            }
        }
    }
    changed
}
