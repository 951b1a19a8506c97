//! Joining, leaving, and what the coordination server says: the engine's dealings with [`Control`].

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control_proto::Timestamp;
use control_proto::netmap::NetMap;
use control_proto::tailcfg::{Hostinfo, MapResponse};
use keys::NodePrivate;
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::core::{Clock, Engine};
use super::disco_keys::ToldKeys;
use super::{Refusal, routing};
use crate::control::{Control, ControlConfig, ControlError, Event, Login, ServerUrl, hostinfo};
use crate::prefs::{Prefs, PrefsError};
use crate::state::{CachedMapRef, StateError};

/// A changed map is stored at the latest this much later; the first of a stream at once. Short, since a
/// peer that joined within it is unknown after a power cut while control is away.
pub(super) const CACHE_DELAY: Duration = Duration::from_secs(1);

impl Engine {
    pub(super) async fn edit_prefs(
        &mut self,
        masked: &Map<String, Value>,
    ) -> Result<Prefs, Refusal> {
        let prefs = self.prefs.patched(masked)?;
        if prefs.want_running && prefs.control_url.is_empty() {
            return Err(Refusal::NoServer);
        }
        self.adopt(prefs, Login::default(), false).await?;
        if !self.prefs.want_running && masked.contains_key("WantRunningSet") {
            self.take_down().await?;
        }
        Ok(self.prefs.clone())
    }

    pub(super) async fn start(&mut self, prefs: Prefs, login: Login) -> Result<(), Refusal> {
        self.error = None;
        // What failed before is tried again now, not when its pause is over.
        self.net_error = None;
        self.net_retry_at = None;
        self.dirty = true;
        self.adopt(prefs, login, true).await
    }

    /// Takes new preferences over. `explicit` is set if the operator asked to join.
    pub(super) async fn adopt(
        &mut self,
        prefs: Prefs,
        login: Login,
        explicit: bool,
    ) -> Result<(), Refusal> {
        if prefs.wireguard != self.prefs.wireguard
            && let Some(net) = self.net.write().await.as_ref()
        {
            net.use_engine(prefs.engine(self.config.wireguard)).await?;
        }
        let old = std::mem::replace(&mut self.prefs, prefs);
        if let Err(error) = self.state.save_prefs(&self.prefs) {
            self.prefs = old;
            return Err(error.into());
        }
        let moved = old.control_url != self.prefs.control_url;
        if moved {
            self.stop_control().await;
            self.forget_map()?;
        }
        self.dirty |= old.shields_up != self.prefs.shields_up;
        self.dirty |= routing::differ(&old, &self.prefs);
        if !self.prefs.want_running {
            self.error = None;
            self.stop_control().await;
            return Ok(());
        }
        let login_asked = explicit && (login.auth_key.is_some() || login.fresh_key);
        let expired = self.is_expired();
        let refused = matches!(self.control_problem, Some(ControlError::KeyChanged { .. }));
        let login = Login {
            fresh_key: login.fresh_key || (explicit && expired),
            ..login
        };
        if explicit && refused {
            self.stop_control().await;
        }
        match &self.control {
            None => {
                self.login_under_way = login_asked || expired;
                self.start_control(login, explicit)?;
            }
            Some((control, _)) => {
                control.set_hostinfo(self.hostinfo());
                let joined = self.map.is_some() && !expired && self.auth_url.is_none();
                // A good key needs no new proof: an auth key beside it is for the next time.
                if explicit && (!joined || login.fresh_key) {
                    self.login_under_way = joined || expired;
                    self.auth_url = None;
                    if !control.login(login) {
                        return Err(Refusal::Busy);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn start_control(
        &mut self,
        start: Login,
        accept_new_key: bool,
    ) -> Result<(), Refusal> {
        let url = &self.prefs.control_url;
        let server = ServerUrl::parse(url).map_err(|problem| PrefsError::Url {
            url: url.clone(),
            problem,
        })?;
        let mut hostinfo = self.hostinfo();
        hostinfo.net_info.clone_from(&self.net_info);
        let identity = self.state.identity()?;
        let config = ControlConfig {
            endpoints: self.own_endpoints.clone(),
            server,
            hostinfo,
            accept_new_key,
            start,
        };
        self.control_problem = None;
        self.control = Some(Control::start(config, Arc::clone(&self.state), identity));
        Ok(())
    }

    /// What the server is told of this host, and of its wishes.
    fn hostinfo(&self) -> Hostinfo {
        Hostinfo {
            routable_ips: self.prefs.advertise_routes.clone(),
            ..hostinfo(&self.prefs.hostname, &self.log_id)
        }
    }

    pub(super) async fn stop_control(&mut self) {
        if let Some((control, _)) = self.control.take() {
            control.stop().await;
            if self.map.is_some() && !self.map_stale {
                // Keepalives confirmed it since it was stored.
                self.cache_at = Some(Instant::now());
            }
        }
        self.answer_logout(Err(Refusal::CutShort));
        self.set_control_connected(false);
        self.control_problem = None;
        self.key_change = None;
        self.auth_url = None;
        self.login_under_way = false;
        self.save_map();
    }

    /// The server is told first: a node that only this host thinks gone would stay in everybody's map.
    pub(super) fn log_out(&mut self, reply: oneshot::Sender<Result<(), Refusal>>) {
        if self.prefs.control_url.is_empty() {
            // It never joined; whoever asked may have gone away, here and below.
            let _ = reply.send(Ok(()));
            return;
        }
        if self.logout.is_some() {
            let _ = reply.send(Err(Refusal::Busy));
            return;
        }
        if self.control.is_none()
            // The prefs keep want_running: until the server knows, nothing has changed.
            && let Err(error) = self.start_control(Login::default(), false)
        {
            let _ = reply.send(Err(error));
            return;
        }
        let asked = self
            .control
            .as_ref()
            .is_some_and(|(control, _)| control.logout());
        // The client may take its time to reach the server; the engine has other things to do.
        self.logout = Some(reply);
        if !asked {
            self.answer_logout(Err(Refusal::Busy));
        }
    }

    fn answer_logout(&mut self, result: Result<(), Refusal>) {
        if let Some(reply) = self.logout.take() {
            let _ = reply.send(result);
        }
    }

    pub(super) async fn handle_control(&mut self, event: Event) {
        match event {
            Event::KeyChanged(change) => self.key_change = Some(change),
            Event::LoginUrl(url) => {
                tracing::info!(url, "a person has to log this node in");
                self.set_control_connected(true);
                self.control_problem = None;
                self.auth_url = Some(url);
            }
            Event::LoginRefused(words) => {
                tracing::warn!(reason = words, "the coordination server refused the login");
                self.auth_url = None;
                self.login_under_way = false;
                self.error = Some(format!(
                    "the coordination server refused the login: {words}"
                ));
            }
            Event::Authorised => {
                self.set_control_connected(true);
                self.control_problem = None;
                self.auth_url = None;
                self.login_under_way = false;
                self.error = None;
            }
            Event::KeepAlive if self.map_refused => {}
            Event::KeepAlive => self.confirm_map(),
            Event::Map {
                first,
                node_key,
                response,
            } => {
                self.handle_map(first, node_key, response);
            }
            Event::Problem(problem) => {
                if *self.control_connected.borrow() || self.control_problem.is_none() {
                    tracing::warn!(%problem, "no connection to the coordination server");
                }
                self.set_control_connected(false);
                if matches!(problem, ControlError::KeyChanged { .. }) {
                    self.error = Some(problem.to_string());
                }
                self.control_problem = Some(problem);
            }
            Event::LoggedOut(stored) => {
                let reply = self.logout.take();
                let result = self.leave().await;
                if let Err(error) = &result {
                    let error = error as &dyn std::error::Error;
                    tracing::error!(
                        error,
                        "the node left the tailnet, but traces of it stay here"
                    );
                }
                if let Some(reply) = reply {
                    let _ = reply.send(stored.map_err(Refusal::from).and(result));
                }
            }
            Event::LogoutFailed(error) => {
                if !self.prefs.want_running {
                    // The client was there for the logout only.
                    let reply = self.logout.take();
                    self.stop_control().await;
                    self.logout = reply;
                }
                self.answer_logout(Err(Refusal::Server(error)));
            }
        }
    }

    /// Forgets the tailnet that this node is no member of any more.
    async fn leave(&mut self) -> Result<(), Refusal> {
        let prefs = Prefs {
            logged_out: true,
            want_running: false,
            ..self.prefs.clone()
        };
        let adopted = self.adopt(prefs, Login::default(), false).await;
        let forgotten = self.forget_map();
        self.error = None;
        adopted?;
        forgotten?;
        Ok(self.take_down().await?)
    }

    pub(super) fn handle_map(
        &mut self,
        first: bool,
        node_key: Arc<NodePrivate>,
        mut response: Box<MapResponse>,
    ) {
        if self.map_refused && !first {
            return;
        }
        self.map_refused = false;
        if let Some(time) = response.control_time.take() {
            self.clock = Clock::new(time.into(), SystemTime::now());
        }
        // Orders to this process (exit, sleep) are not the server's to give.
        response.debug = None;
        let now = Timestamp::from(self.now());
        let applied = if first {
            NetMap::first(node_key.public(), *response, now).map(|(map, _)| {
                self.map = Some(Arc::new(map));
                self.node_key = node_key;
                true
            })
        } else {
            match &mut self.map {
                Some(map) => Arc::make_mut(map)
                    .apply(*response, now)
                    .map(|changes| changes.is_any()),
                None => return,
            }
        };
        match applied {
            Ok(changed) => {
                self.keep_told_keys();
                self.confirm_map();
                self.dirty |= changed;
                if changed {
                    let delay = if first { Duration::ZERO } else { CACHE_DELAY };
                    self.cache_at.get_or_insert(Instant::now() + delay);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a frame of the network map was refused; asking for all of it again");
                self.map_refused = true;
                if let Some((control, _)) = &self.control
                    && !control.reconnect(error)
                {
                    // The stream ends by itself one day, and nothing of it is believed until then.
                    tracing::warn!("the control client is too busy");
                }
            }
        }
    }

    /// Tells the data plane, too, if that is news.
    pub(super) fn set_control_connected(&self, connected: bool) {
        self.control_connected.send_if_modified(|old| {
            let changed = *old != connected;
            *old = connected;
            changed
        });
    }

    pub(super) fn confirm_map(&mut self) {
        self.set_control_connected(true);
        self.control_problem = None;
        self.map_stale = false;
        self.map_confirmed = Some(SystemTime::now());
    }

    pub(super) fn save_map(&mut self) {
        if self.cache_at.take().is_none() {
            return;
        }
        let Some(map) = &self.map else { return };
        let confirmed = self.map_confirmed.unwrap_or(SystemTime::UNIX_EPOCH);
        let saved = self.state.save_netmap(&CachedMapRef {
            control_url: &self.prefs.control_url,
            node_key: map.node.key,
            confirmed_at: confirmed
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |age| age.as_secs()),
            map,
        });
        if let Err(error) = saved {
            tracing::error!(%error, "the network map could not be stored");
            self.cache_at = Some(Instant::now() + CACHE_DELAY);
        }
    }

    pub(super) fn forget_map(&mut self) -> Result<(), StateError> {
        self.map = None;
        self.told_keys = ToldKeys::default();
        self.map_stale = false;
        self.map_confirmed = None;
        self.cache_at = None;
        self.filter_warnings.clear();
        self.dirty = true;
        self.state.remove_netmap()
    }
}
