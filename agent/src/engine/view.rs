//! What the engine shows: state, notices, snapshots, health.

use std::collections::BTreeSet;
use std::time::SystemTime;

use keys::NodePublic;

use super::backend::{Facts, backend_state};
use super::core::Engine;
use super::{Notice, Snapshot, routing};
use crate::localapi::BackendState;

impl Engine {
    pub(super) fn backend_state(&self) -> BackendState {
        let map = self.map.as_ref();
        let has_relays = map.is_some_and(|map| map.derp_map.regions().next().is_some());
        backend_state(Facts {
            want_running: self.prefs.want_running,
            logged_out: self.prefs.logged_out,
            has_server: !self.prefs.control_url.is_empty(),
            has_map: map.is_some(),
            expired: self.is_expired(),
            machine_authorized: map.is_some_and(|map| map.node.machine_authorized),
            needs_person: self.auth_url.is_some() || (self.error.is_some() && map.is_none()),
            login_under_way: self.login_under_way,
            tunnel_up: self.tunnel_up,
            relay_ready: self.relay_connected || !has_relays,
        })
    }

    pub(super) fn publish(&mut self) {
        let notice = Notice {
            state: self.backend_state(),
            auth_url: self.auth_url.clone(),
            error: self.error.clone().or_else(|| self.net_error.clone()),
        };
        self.notices.send_if_modified(|old| {
            if *old == notice {
                return false;
            }
            if old.state != notice.state {
                tracing::info!(
                    from = old.state.as_str(),
                    to = notice.state.as_str(),
                    "state"
                );
            }
            *old = notice;
            true
        });
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.backend_state(),
            prefs: self.prefs.clone(),
            auth_url: self.auth_url.clone(),
            health: self.health(),
            map: self.map.clone(),
            node_key: self.own_key(),
            net: None,
            control_connected: *self.control_connected.borrow(),
            map_stale: self.map_stale,
            map_age: self
                .map_confirmed
                .and_then(|at| SystemTime::now().duration_since(at).ok()),
            now: self.now(),
        }
    }

    pub(super) fn own_key(&self) -> NodePublic {
        self.map
            .as_ref()
            .map_or_else(|| self.node_key.public(), |map| map.node.key)
    }

    pub(super) fn health(&self) -> Vec<String> {
        let mut health = Vec::new();
        health.extend(self.error.clone());
        health.extend(self.net_error.clone());
        health.extend(self.control_problem.as_ref().map(ToString::to_string));
        health.extend(self.key_change.as_ref().map(ToString::to_string));
        if self.prefs.want_running && self.is_expired() {
            health.push("the node key expired: log in again with `tailrace up`".to_owned());
        }
        health.extend(self.filter_warnings.iter().cloned());
        if self.prefs.want_running
            && let Some(map) = &self.map
        {
            health.extend(routing::health(&self.prefs, map));
        }
        health.extend(self.net_health.values().cloned());
        if let Some(map) = &self.map {
            health.extend(map.health.iter().cloned());
            health.extend(
                map.display_messages
                    .values()
                    .map(|message| [message.title.as_str(), message.text.as_str()].join(": ")),
            );
        }
        let mut seen = BTreeSet::new();
        health.retain(|text| seen.insert(text.clone()));
        health
    }
}
