//! The network map as a node holds it: the client half of the map session.
//!
//! The server sends one full frame, then differences; absent always means unchanged. Feed every
//! frame of one stream to one [`MapSession`]; a new stream starts a new session.
//! Source: control.md 4.4 and 5.7.

mod apply;
mod changes;

use std::collections::BTreeMap;

use keys::NodePublic;
use serde::{Deserialize, Serialize};

pub use changes::Changes;

use crate::{
    Timestamp,
    tailcfg::{
        self, CapMap, ClientVersion, ControlDialPlan, DerpMap, DisplayMessage, DnsConfig,
        FilterRule, MapResponse, Node, NodeId, SshPolicy, TkaInfo, UserId, UserProfile,
    },
};

/// Most peers that are held; more is an error.
pub const MAX_PEERS: usize = 100_000;
/// Most named filters and messages together that are held; more is an error.
pub const MAX_NAMED: usize = 10_000;

/// Everything a node knows about its tailnet.
///
/// Serialisable, so that a node can start from the last map while the server is away; read it back
/// with [`crate::json::from_slice`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct NetMap {
    /// The node itself.
    pub node: Node,
    /// Peers by number.
    pub peers: BTreeMap<NodeId, Node>,
    /// Relays, merged over all frames.
    pub derp_map: DerpMap,
    /// Names.
    pub dns_config: DnsConfig,
    /// Name of the tailnet.
    pub domain: String,
    /// Filter rules by filter name; use [`NetMap::packet_filter`].
    pub packet_filters: BTreeMap<String, Vec<FilterRule>>,
    /// Owners of nodes, by number.
    pub user_profiles: BTreeMap<UserId, UserProfile>,
    /// SSH rules; `None` until the server sent some.
    pub ssh_policy: Option<SshPolicy>,
    /// Warnings of the server.
    pub health: Vec<String>,
    /// Messages of the server, by id.
    pub display_messages: BTreeMap<String, DisplayMessage>,
    /// Whether to report services; `None` is unknown.
    pub collect_services: Option<bool>,
    /// Tailnet lock.
    pub tka_info: Option<TkaInfo>,
    /// How to find the server.
    pub control_dial_plan: ControlDialPlan,
    /// What the server says about our version.
    pub client_version: Option<ClientVersion>,
}

impl NetMap {
    /// The effective filter: all named filters, concatenated in the order of their names.
    /// Nothing at all denies everything.
    pub fn packet_filter(&self) -> impl Iterator<Item = &FilterRule> {
        self.packet_filters.values().flatten()
    }

    /// Whether somebody must be kept out: the filter is not allow-all, or a peer is restricted by
    /// itself (jailed, or allowed to reach the PeerAPI only).
    #[must_use]
    pub fn needs_filter(&self) -> bool {
        !tailcfg::allows_everything(self.packet_filter())
            || self
                .peers
                .values()
                .any(|peer| peer.is_jailed || peer.unsigned_peer_api_only)
    }

    /// The peer with this key.
    #[must_use]
    pub fn peer_by_key(&self, key: &NodePublic) -> Option<&Node> {
        self.peers.values().find(|peer| peer.key == *key)
    }

    /// What is known about a node's owner.
    #[must_use]
    pub fn owner(&self, node: &Node) -> Option<&UserProfile> {
        self.user_profiles.get(&node.user)
    }

    /// Capabilities of the node itself.
    #[must_use]
    pub fn caps(&self) -> &CapMap {
        &self.node.cap_map
    }

    /// DNS suffix of the tailnet: our own name without its first label and the final dot.
    #[must_use]
    pub fn magic_dns_suffix(&self) -> &str {
        let name = self.node.name.trim_end_matches('.');
        name.split_once('.').map_or("", |(_, suffix)| suffix)
    }
}

/// Why a frame was refused; the map stays as it was.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The first frame has no `Node`.
    #[error("the server's first map frame lacks the node itself")]
    NoSelf,
    /// `Node` is about another key than the one that asked.
    #[error("the server sent a map for the node key {found:?}, ours is {ours:?}")]
    OtherKey {
        /// The key that asked.
        ours: NodePublic,
        /// The key in the frame.
        found: NodePublic,
    },
    /// More of something than we hold.
    #[error("the server sent {count} {what}, at most {most} are supported")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
}

/// One map stream: its map, once the first frame came, and what must not be repeated.
#[derive(Clone, Debug)]
pub struct MapSession {
    node_key: NodePublic,
    map: Option<NetMap>,
    last_ping_url: String,
    last_browser_url: String,
}

impl MapSession {
    /// Starts a stream that was asked for with `node_key`.
    #[must_use]
    pub fn new(node_key: NodePublic) -> Self {
        Self {
            node_key,
            map: None,
            last_ping_url: String::new(),
            last_browser_url: String::new(),
        }
    }

    /// The map; `None` until the first frame that is not a keepalive.
    #[must_use]
    pub fn map(&self) -> Option<&NetMap> {
        self.map.as_ref()
    }

    /// Applies one frame; returns what changed and what the server asks for.
    ///
    /// `now` is when the frame arrived, by the server's clock if that is known.
    ///
    /// # Errors
    ///
    /// [`ApplyError`]; the map stays as it was. Close the stream and start a new one.
    pub fn apply(
        &mut self,
        mut response: MapResponse,
        now: Timestamp,
    ) -> Result<Changes, ApplyError> {
        let mut asked = self.take_requests(&mut response);
        if response.keep_alive {
            return Ok(asked);
        }
        let changes = match &mut self.map {
            Some(map) => map.apply(response, now)?,
            None => {
                let (map, changes) = NetMap::first(self.node_key, response, now)?;
                self.map = Some(map);
                changes
            }
        };
        asked.merge(changes);
        Ok(asked)
    }

    /// What is looked at even in keepalives, without repeating a URL.
    fn take_requests(&mut self, response: &mut MapResponse) -> Changes {
        let ping = response
            .ping_request
            .take()
            .filter(|ping| ping.url != self.last_ping_url);
        if let Some(ping) = &ping {
            self.last_ping_url.clone_from(&ping.url);
        }
        let url = std::mem::take(&mut response.pop_browser_url);
        let pop_browser_url = (!url.is_empty() && url != self.last_browser_url).then_some(url);
        if let Some(url) = &pop_browser_url {
            self.last_browser_url.clone_from(url);
        }
        let mut client_version = false;
        let mut control_dial_plan = false;
        if response.keep_alive
            && let Some(map) = &mut self.map
        {
            client_version = response.client_version.is_some();
            map.client_version = response.client_version.take().or(map.client_version.take());
            if let Some(plan) = response.control_dial_plan.take() {
                control_dial_plan = true;
                map.control_dial_plan = plan;
            }
        }
        Changes {
            ping,
            pop_browser_url,
            control_time: response.control_time,
            client_version,
            control_dial_plan,
            ..Changes::default()
        }
    }
}
