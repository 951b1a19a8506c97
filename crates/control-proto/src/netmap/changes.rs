//! What one frame did to the map, and what the server asks for.

use std::collections::BTreeSet;

use crate::{
    Timestamp,
    tailcfg::{Debug, NodeId, PingRequest},
};

/// What one frame changed: the receiver touches only what is named here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// This was the first frame of the stream: everything is new.
    pub first: bool,
    /// The node itself.
    pub node: bool,
    /// Peers that are new or changed.
    pub peers: BTreeSet<NodeId>,
    /// Peers that are gone.
    pub removed: BTreeSet<NodeId>,
    /// Relays.
    pub derp_map: bool,
    /// The effective packet filter.
    pub filter: bool,
    /// Names.
    pub dns: bool,
    /// Name of the tailnet.
    pub domain: bool,
    /// Owners of nodes.
    pub users: bool,
    /// SSH rules.
    pub ssh: bool,
    /// Warnings or messages for people.
    pub health: bool,
    /// What the server says about our version.
    pub client_version: bool,
    /// How to find the server.
    pub control_dial_plan: bool,
    /// Anything else in the map (tailnet lock, collection of services).
    pub other: bool,
    /// The server asks for a proof of reachability; not repeated for the same URL.
    pub ping: Option<PingRequest>,
    /// The server asks to show a page; not repeated for the same URL.
    pub pop_browser_url: Option<String>,
    /// The server's clock.
    pub control_time: Option<Timestamp>,
    /// Instructions to the process, untouched.
    pub debug: Option<Debug>,
}

impl Changes {
    /// Whether any part of the map itself changed.
    #[must_use]
    pub fn is_any(&self) -> bool {
        let Self {
            first,
            node,
            peers,
            removed,
            derp_map,
            filter,
            dns,
            domain,
            users,
            ssh,
            health,
            client_version,
            control_dial_plan,
            other,
            ping: _,
            pop_browser_url: _,
            control_time: _,
            debug: _,
        } = self;
        *first
            || *node
            || !peers.is_empty()
            || !removed.is_empty()
            || *derp_map
            || *filter
            || *dns
            || *domain
            || *users
            || *ssh
            || *health
            || *client_version
            || *control_dial_plan
            || *other
    }

    /// Adds what a later frame did: for receivers that fall behind.
    pub fn merge(&mut self, later: Self) {
        self.first |= later.first;
        self.node |= later.node;
        for id in &later.peers {
            self.removed.remove(id);
        }
        for id in &later.removed {
            self.peers.remove(id);
        }
        self.peers.extend(later.peers);
        self.removed.extend(later.removed);
        self.derp_map |= later.derp_map;
        self.filter |= later.filter;
        self.dns |= later.dns;
        self.domain |= later.domain;
        self.users |= later.users;
        self.ssh |= later.ssh;
        self.health |= later.health;
        self.client_version |= later.client_version;
        self.control_dial_plan |= later.control_dial_plan;
        self.other |= later.other;
        self.ping = later.ping.or(self.ping.take());
        self.pop_browser_url = later.pop_browser_url.or(self.pop_browser_url.take());
        self.control_time = later.control_time.or(self.control_time);
        self.debug = later.debug.or(self.debug.take());
    }
}
