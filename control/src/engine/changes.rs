//! Changes: each finds its viewers and is in their queues when the call returns.

use std::net::SocketAddr;

use control_proto::tailcfg::{Hostinfo, PeerChange, RegionId};
use keys::{DiscoPublic, NodePublic};
use time::OffsetDateTime;

use super::delta::Parts;
use super::{Engine, Member, REMOVALS_KEPT, render};
use crate::model::{ChangeNumber, Node, NodeId, User, UserId};

/// What a node says about itself; `None` and empty values leave the stored ones alone.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Capability version of the request.
    pub capver: u16,
    /// All of it: there is no partial form.
    pub hostinfo: Option<Hostinfo>,
    /// All of them.
    pub endpoints: Option<Vec<SocketAddr>>,
    /// Not zero.
    pub disco: Option<DiscoPublic>,
}

impl Engine {
    /// Takes note of a change that no map shows, such as an auth key.
    pub fn put_nothing(&self, number: ChangeNumber) {
        self.state().number = number;
    }

    /// Takes in a new user.
    pub fn put_user(&self, number: ChangeNumber, user: User) {
        let mut state = self.state();
        state.number = number;
        state.users.insert(user.id, user);
    }

    /// Forgets a user, who has no nodes.
    pub fn remove_user(&self, number: ChangeNumber, id: UserId) {
        let mut state = self.state();
        state.number = number;
        state.users.remove(&id);
    }

    /// Takes in a new node, or a node that was renamed, tagged, re-keyed, expired or given to
    /// another owner. What it reports is kept as the engine has it: that is newer.
    pub fn put_node(&self, number: ChangeNumber, node: Node, now: OffsetDateTime) {
        let mut state = self.state();
        state.number = number;
        let id = node.id;
        state.by_key.insert(node.key, id);
        if let Some(member) = state.members.get_mut(&id) {
            let old_key = member.node.key;
            let rekeyed = old_key != node.key;
            member.node = Node {
                capver: member.node.capver,
                hostinfo: std::mem::take(&mut member.node.hostinfo),
                endpoints: std::mem::take(&mut member.node.endpoints),
                disco: member.node.disco,
                home_derp: member.node.home_derp,
                last_seen: member.node.last_seen,
                ..node
            };
            member.told_expired = member.node.is_expired(now);
            member.rendered(&self.settings, now);
            if rekeyed {
                // Its stream speaks for the old key; the node opens another with the new one.
                if let Some(session) = member.session.take() {
                    session.end();
                }
                state.by_key.remove(&old_key);
            } else {
                state.tell_own(&self.settings, id);
            }
        } else {
            let member = Member::new(&self.settings, node, now);
            state.members.insert(id, member);
        }
        state.announce_whole(&self.settings, id);
    }

    /// Forgets a node. Its own stream is told that its key is expired, so that it asks for a new
    /// login instead of retrying (pitfall 18), and then ends.
    pub fn remove_node(&self, number: ChangeNumber, id: NodeId, now: OffsetDateTime) {
        let mut state = self.state();
        state.number = number;
        state.unsaved.remove(&id);
        state.unheard.remove(&id);
        let Some(member) = state.members.remove(&id) else {
            return;
        };
        state.by_key.remove(&member.node.key);
        state.removals.push_back(id);
        if state.removals.len() > REMOVALS_KEPT {
            state.removals.pop_front();
            state.removals_forgotten += 1;
        }
        if let Some(session) = &member.session {
            let gone = Node {
                expires: Some(now - time::Duration::seconds(1)),
                ..member.node
            };
            session.push_own(state.own(&self.settings, &gone));
            session.end();
        }
        let parts = Parts {
            removed: [id].into(),
            ..Parts::default()
        };
        state.announce(id, parts);
    }

    // ---- Changes that are written behind ----

    /// Has the node not reported since the server started?
    #[must_use]
    pub fn is_unheard(&self, id: NodeId) -> bool {
        self.state().unheard.contains(&id)
    }

    /// Takes in what a node says about itself; tells viewers what really changed.
    pub fn report(&self, id: NodeId, report: Report, now: OffsetDateTime) {
        let mut state = self.state();
        // A registration brings no disco key; it is not the report that peers wait for.
        if report.disco.is_some() {
            state.unheard.remove(&id);
        }
        let Some(member) = state.members.get_mut(&id) else {
            return;
        };
        let before = member.node.clone();
        let node = &mut member.node;
        node.capver = report.capver;
        if let Some(mut hostinfo) = report.hostinfo {
            // No NetInfo does not mean that the home relay is lost (pitfall 35).
            if hostinfo.net_info.is_none() {
                hostinfo.net_info = node.hostinfo.net_info.take();
            }
            node.home_derp = home_derp(&hostinfo).unwrap_or(node.home_derp);
            node.hostinfo = hostinfo;
        }
        if let Some(endpoints) = report.endpoints {
            node.endpoints = endpoints;
        }
        if let Some(disco) = report.disco {
            node.disco = Some(disco);
        }
        if *node == before {
            return;
        }

        let whole = node.capver != before.capver
            || render::peer_hostinfo(&node.hostinfo) != render::peer_hostinfo(&before.hostinfo);
        let mut patch = PeerChange {
            node_id: id,
            ..PeerChange::default()
        };
        if node.endpoints != before.endpoints {
            patch.endpoints = Some(node.endpoints.clone());
        }
        if node.home_derp != before.home_derp {
            patch.derp_region = node.home_derp;
        }
        let new_disco = node.disco != before.disco;
        if new_disco && member.online {
            // Clients ignore a key that comes without an honest word on liveness (4.4).
            patch.disco_key = node.disco;
            patch.online = Some(true);
        } else if new_disco {
            // Of a node that is offline they ignore it, and all that comes with it.
            member.disco_untold = true;
        }
        let visible = patch
            != PeerChange {
                node_id: id,
                ..PeerChange::default()
            };
        if whole || visible || new_disco {
            member.rendered(&self.settings, now);
        }
        state.unsaved.insert(id);
        if whole {
            state.announce_whole(&self.settings, id);
        } else if visible {
            state.announce(
                id,
                Parts {
                    patches: [(id, patch)].into(),
                    ..Parts::default()
                },
            );
        }
    }

    /// Takes the nodes whose reports have to be written.
    #[must_use]
    pub fn take_unsaved(&self) -> Vec<Node> {
        let mut state = self.state();
        let ids = std::mem::take(&mut state.unsaved);
        let saved = ids.iter().filter_map(|id| state.members.get(id));
        saved.map(|member| member.node.clone()).collect()
    }

    /// Puts nodes back whose reports could not be written.
    pub fn put_back_unsaved(&self, nodes: &[Node]) {
        self.state()
            .unsaved
            .extend(nodes.iter().map(|node| node.id));
    }

    /// Tells viewers of keys that expired by themselves since the last call. Returns those keys.
    pub fn announce_expired(&self, now: OffsetDateTime) -> Vec<NodePublic> {
        let mut state = self.state();
        let expired: Vec<NodeId> = state
            .members
            .values()
            .filter(|member| !member.told_expired && member.node.is_expired(now))
            .map(|member| member.node.id)
            .collect();
        let mut keys = Vec::with_capacity(expired.len());
        for id in expired {
            if let Some(member) = state.members.get_mut(&id) {
                member.told_expired = true;
                member.rendered(&self.settings, now);
                keys.push(member.node.key);
                state.announce_whole(&self.settings, id);
            }
        }
        keys
    }
}

/// The home relay that a host tells of; none is not "no home" (pitfall 35).
pub(crate) fn home_derp(hostinfo: &Hostinfo) -> Option<RegionId> {
    hostinfo
        .net_info
        .as_ref()
        .map(|net| net.preferred_derp)
        .filter(|region| *region > 0)
}
