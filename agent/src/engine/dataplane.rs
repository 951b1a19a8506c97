//! From the network map to the host: the engine's dealings with [`Net`].

use std::time::{Duration, SystemTime};

use control_proto::netmap::NetMap;
use node_core::{Desired, RegionId};
use tokio::time::Instant;

use super::core::Engine;
use super::filter::{self, Facts};
use super::routing;
use crate::error_text::error_text;
use crate::net::{Net, NetConfig, NetError, Netfilter};
use crate::prefs::NetfilterMode;

/// Pause before a data plane that failed is tried again.
const NET_RETRY: Duration = Duration::from_secs(5);

impl Engine {
    pub(super) async fn apply_map(&mut self) {
        let Some(map) = self.map.clone() else {
            // Nothing is known: a data plane that an earlier run left goes on as it was.
            self.net_error = None;
            return;
        };
        // Set for the same present that the host is made for.
        self.expiry.arm(&map, self.now(), Instant::now());
        let usable = !self.is_expired() && map.node.machine_authorized && !self.prefs.logged_out;
        let result = self.configure(&map, usable).await;
        self.tunnel_up = usable && result.is_ok();
        match result {
            Ok(()) => self.net_error = None,
            Err(error) => self.net_failed(&error, "the data plane could not be configured"),
        }
    }

    /// Notes what failed, so that everybody sees it, and that it is to be tried again.
    pub(super) fn net_failed(&mut self, error: &NetError, what: &str) {
        let text = error_text(error);
        tracing::error!(error = text, "{what}");
        self.net_error = Some(text);
        self.net_retry_at = Some(Instant::now() + NET_RETRY);
        self.dirty = true;
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
                    engine: self.prefs.engine(self.config.wireguard),
                    state_dir: self.state.path().to_owned(),
                    shield: self.config.shield,
                    disco: identity.disco,
                    direct: self.config.direct,
                    port_mapping: self.config.port_mapping,
                    endpoints: self.config.endpoints.clone(),
                    control: self.control_connected.subscribe(),
                    home: map
                        .node
                        .home_derp()
                        .and_then(|home| u16::try_from(home).ok().map(RegionId)),
                })
                .await?;
                self.net_events = Some(events);
                // They are this one's now.
                self.leftovers = false;
                slot.insert(net)
            }
        };
        if usable {
            let now = self.clock.correct(SystemTime::now());
            let desired = Desired::from_netmap(map, &routing::options(&self.prefs, now));
            let facts = Facts {
                shields_up: self.prefs.shields_up,
                served_routes: desired.served_routes.clone(),
                interfaces: net.interfaces().await?,
                clock: self.clock,
            };
            let (filter, mut warnings) = filter::read(map, facts);
            let netfilter = Netfilter {
                manage: self.prefs.netfilter_mode != NetfilterMode::Off,
                divert: self.prefs.netfilter_mode == NetfilterMode::On,
                masquerade: !self.prefs.no_snat,
            };
            let applied = net.apply(&self.node_key, &desired, filter, netfilter).await;
            warnings.extend(net.problems().await);
            self.filter_warnings = warnings;
            applied
        } else {
            // Once the overlay may come up again, its relay has to be dialled anew.
            self.relay_connected = false;
            self.filter_warnings.clear();
            net.idle().await
        }
    }

    /// Removes the data plane from the host, also one that an earlier run left; nothing to do is fine.
    ///
    /// # Errors
    ///
    /// Whatever could not be removed; it is tried again later.
    pub(super) async fn take_down(&mut self) -> Result<(), NetError> {
        self.relay_connected = false;
        self.tunnel_up = false;
        self.dirty = true;
        let removed = self.remove().await;
        match &removed {
            Ok(()) => {
                self.net_events = None;
                self.net_health.clear();
                self.filter_warnings.clear();
                self.net_error = None;
                self.net_retry_at = None;
            }
            Err(error) => self.net_failed(error, "the data plane could not be removed"),
        }
        removed
    }

    async fn remove(&mut self) -> Result<(), NetError> {
        let mut slot = self.net.write().await;
        if let Some(net) = &mut *slot {
            // It is let go of only once nothing is left that it would have to remove.
            net.idle().await?;
            *slot = None;
        }
        if self.leftovers {
            Net::remove_leftovers(&self.config.device, self.config.port, self.state.path()).await?;
            self.leftovers = false;
        }
        Ok(())
    }
}
