//! From the network map to the host: the engine's dealings with [`Net`].

use std::time::{Duration, SystemTime};

use control_proto::netmap::NetMap;
use node_core::{DEFAULT_MTU, Desired, Options};
use tokio::time::Instant;

use super::FilterState;
use super::core::{Engine, describe};
use crate::net::{Net, NetConfig, NetError};

/// Pause before a data plane that failed is tried again.
const NET_RETRY: Duration = Duration::from_secs(5);

const NO_FILTER_RISK: &str = "the tailnet's policy restricts who may reach this node, and this version of \
     tailrace cannot enforce that: the overlay stays down; to run it open to all peers nevertheless, use \
     `tailrace up --accept-risk=no-filter`";

impl Engine {
    pub(super) async fn apply_map(&mut self) {
        let Some(map) = self.map.clone() else {
            // Nothing is known: a data plane that an earlier run left goes on as it was.
            return;
        };
        let filter = if !map.needs_filter() {
            FilterState::AllowAll
        } else if self.prefs.accepts_no_filter() {
            FilterState::RiskAccepted
        } else {
            FilterState::Refused
        };
        if self.filter != Some(filter) {
            tracing::info!(filter = filter.as_str(), "packet filter");
            if self.filter == Some(FilterState::Refused)
                && self.error.as_deref() == Some(NO_FILTER_RISK)
            {
                self.error = None;
            }
            self.filter = Some(filter);
        }
        if filter == FilterState::Refused {
            self.error = Some(NO_FILTER_RISK.to_owned());
        }
        let usable = filter != FilterState::Refused
            && !self.is_expired()
            && map.node.machine_authorized
            && !self.prefs.logged_out;
        let result = self.configure(&map, usable).await;
        self.tunnel_up = usable && result.is_ok();
        match result {
            Ok(()) => self.net_error = None,
            Err(error) => {
                let text = describe(&error);
                tracing::error!(error = text, "the data plane could not be configured");
                self.error = Some(text.clone());
                self.net_error = Some(text);
                self.net_retry_at = Some(Instant::now() + NET_RETRY);
                self.dirty = true;
            }
        }
    }

    pub(super) async fn configure(&mut self, map: &NetMap, usable: bool) -> Result<(), NetError> {
        let mut slot = self.net.write().await;
        let net = match &mut *slot {
            Some(net) => net,
            slot => {
                let identity = self.state.identity().map_err(|error| NetError::Socket {
                    operation: "reading the disco key",
                    source: std::io::Error::other(error),
                })?;
                let (net, events) = Net::start(NetConfig {
                    device: self.config.device.clone(),
                    port: self.config.port,
                    engine: self.config.wireguard,
                    state_dir: self.state.path().to_owned(),
                    disco: identity.disco,
                })
                .await?;
                self.net_events = Some(events);
                slot.insert(net)
            }
        };
        if usable {
            let now = self.clock.correct(SystemTime::now());
            let desired = Desired::from_netmap(
                map,
                &Options {
                    mtu: DEFAULT_MTU,
                    now,
                },
            );
            net.apply(&self.node_key, &desired).await
        } else {
            net.idle().await
        }
    }

    /// Removes the data plane from the host, if there is one.
    pub(super) async fn take_down(&mut self) {
        let net = self.net.write().await.take();
        self.net_events = None;
        self.net_health.clear();
        self.net_error = None;
        self.net_retry_at = None;
        self.relay_connected = false;
        self.tunnel_up = false;
        self.dirty = true;
        if let Some(net) = net
            && let Err(error) = net.down().await
        {
            let text = describe(&error);
            tracing::error!(error = text, "the data plane could not be removed");
            self.error = Some(text);
        }
    }
}
