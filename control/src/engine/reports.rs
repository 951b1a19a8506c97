//! What nodes say about themselves all the time; it is written behind.

use std::net::SocketAddr;

use control_proto::tailcfg::{Hostinfo, PeerChange, RegionId};
use keys::{DiscoPublic, NodePublic};
use time::OffsetDateTime;

use super::{Engine, News, render};
use crate::model::{Node, NodeId};

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
    /// Has the node not reported since the server started?
    #[must_use]
    pub fn is_unheard(&self, id: NodeId) -> bool {
        self.state().unheard.contains(&id)
    }

    /// Takes in what a node says about itself; tells viewers what really changed.
    pub fn report(&self, id: NodeId, report: Report) {
        let mut state = self.state();
        // A registration brings no disco key; it is not the report that peers wait for.
        if report.disco.is_some() {
            state.unheard.remove(&id);
        }
        let Some(member) = state.members.get_mut(&id) else {
            return;
        };
        let before = member.node.clone();
        take_in(&mut member.node, report);
        let node = &member.node;
        if *node == before {
            return;
        }

        let whole = node.capver != before.capver
            || render::peer_hostinfo(&node.hostinfo) != render::peer_hostinfo(&before.hostinfo);
        let nothing = PeerChange {
            node_id: id,
            ..PeerChange::default()
        };
        let mut patch = nothing.clone();
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
        let news = if whole {
            News::Whole { new_owner: false }
        } else if patch != nothing {
            News::Patch(patch)
        } else {
            News::Nothing
        };
        let new_hostinfo = node.hostinfo != before.hostinfo;
        state.unsaved.insert(id);
        if new_hostinfo {
            state.knows_itself(&self.settings, id);
        }
        state.changed(&self.settings, id, &news);
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
        let ids = nodes.iter().map(|node| node.id);
        self.state().unsaved.extend(ids);
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
                keys.push(member.node.key);
                state.changed(&self.settings, id, &News::Whole { new_owner: false });
            }
        }
        keys
    }
}

fn take_in(node: &mut Node, report: Report) {
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
}

/// The home relay that a host tells of; none is not "no home" (pitfall 35).
pub(crate) fn home_derp(hostinfo: &Hostinfo) -> Option<RegionId> {
    hostinfo
        .net_info
        .as_ref()
        .map(|net| net.preferred_derp)
        .filter(|region| *region > 0)
}
