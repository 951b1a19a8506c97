//! The engine's task: [`Engine`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control_proto::Timestamp;
use control_proto::netmap::NetMap;
use control_proto::tailcfg::NetInfo;
use keys::NodePrivate;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::disco_keys::ToldKeys;
use super::expiry::Expiry;
use super::{Command, Handle, Notice, Refusal, SharedNet};
use crate::control::{Control, ControlError, Event, Login};
use crate::net::{EndpointKind, EngineChoice, NetEvent, ShieldMode};
use crate::prefs::Prefs;
use crate::state::{StateDir, StateError};

/// A server's clock that differs by less is taken for ours (protocol/control.md §4.4).
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// How long nothing has to happen.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// Commands that may wait.
const COMMANDS: usize = 64;

/// Settings of the engine that do not change while it runs.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Name of the overlay device.
    pub device: String,
    /// UDP port of WireGuard.
    pub port: u16,
    /// Which WireGuard, if the preferences name none.
    pub wireguard: EngineChoice,
    /// Where floods of handshakes are held off.
    pub shield: ShieldMode,
    /// Direct paths are looked for.
    pub direct: bool,
    /// The router is asked for a port that leads to ours.
    pub port_mapping: bool,
    /// Endpoints at which we can be reached, as the operator knows.
    pub endpoints: Vec<SocketAddr>,
}

/// Decides what this node does; see the module.
#[derive(Debug)]
pub struct Engine {
    pub(super) config: EngineConfig,
    pub(super) state: Arc<StateDir>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) notices: watch::Sender<Notice>,

    pub(super) prefs: Prefs,
    pub(super) log_id: String,
    pub(super) node_key: Arc<NodePrivate>,

    pub(super) control: Option<(Control, mpsc::Receiver<Event>)>,
    /// Read by the data plane, too.
    pub(super) control_connected: watch::Sender<bool>,
    pub(super) control_problem: Option<ControlError>,
    pub(super) key_change: Option<ControlError>,
    pub(super) auth_url: Option<String>,
    /// The operator asked for a login that is not over.
    pub(super) login_under_way: bool,
    pub(super) error: Option<String>,
    /// Who waits for a logout that the control client was asked for.
    pub(super) logout: Option<oneshot::Sender<Result<(), Refusal>>>,

    pub(super) map: Option<Arc<NetMap>>,
    pub(super) map_stale: bool,
    /// A frame was refused: until the whole map comes again, no other frame fits.
    pub(super) map_refused: bool,
    /// Disco keys that peers told themselves.
    pub(super) told_keys: ToldKeys,
    /// When the map was last known to be right, by our clock.
    pub(super) map_confirmed: Option<SystemTime>,
    pub(super) cache_at: Option<Instant>,
    pub(super) expiry: Expiry,
    /// How far the server's clock is ahead, or behind.
    pub(super) clock: Clock,

    pub(super) net: SharedNet,
    /// An earlier run of the daemon may have left a data plane that this one knows nothing of.
    pub(super) leftovers: bool,
    pub(super) net_events: Option<mpsc::Receiver<NetEvent>>,
    pub(super) net_health: BTreeMap<&'static str, String>,
    pub(super) net_info: Option<NetInfo>,
    /// Where we can be reached, as the data plane told last.
    pub(super) own_endpoints: Vec<(SocketAddr, EndpointKind)>,
    pub(super) net_error: Option<String>,
    pub(super) net_retry_at: Option<Instant>,
    pub(super) relay_connected: bool,
    pub(super) tunnel_up: bool,
    /// What is wrong with the packet filter.
    pub(super) filter_warnings: Vec<String>,
    /// What the host looks like does not follow from the map any more.
    pub(super) dirty: bool,
}

/// The difference between the server's clock and ours.
#[derive(Clone, Copy, Debug)]
pub(super) enum Clock {
    Ahead(Duration),
    Behind(Duration),
}

impl Default for Clock {
    fn default() -> Self {
        Self::Ahead(Duration::ZERO)
    }
}

impl Clock {
    pub(super) fn new(server: SystemTime, ours: SystemTime) -> Self {
        let tolerate = |skew: Duration| {
            if skew > CLOCK_TOLERANCE {
                skew
            } else {
                Duration::ZERO
            }
        };
        match server.duration_since(ours) {
            Ok(ahead) => Self::Ahead(tolerate(ahead)),
            Err(error) => Self::Behind(tolerate(error.duration())),
        }
    }

    /// A time of the server's by our clock.
    pub(super) fn ours(self, server: SystemTime) -> SystemTime {
        match self {
            Self::Ahead(skew) => Self::Behind(skew).correct(server),
            Self::Behind(skew) => Self::Ahead(skew).correct(server),
        }
    }

    /// A time of ours by the server's clock.
    pub(super) fn correct(self, ours: SystemTime) -> SystemTime {
        match self {
            Self::Ahead(skew) => ours.checked_add(skew).unwrap_or(ours),
            Self::Behind(skew) => ours.checked_sub(skew).unwrap_or(ours),
        }
    }
}

impl Engine {
    /// Reads the state folder.
    ///
    /// # Errors
    ///
    /// [`StateError`] if keys or preferences cannot be read.
    pub fn new(config: EngineConfig, state: StateDir) -> Result<(Self, Handle), StateError> {
        let prefs = state.prefs()?;
        let identity = state.identity()?;
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (notices, notice_receiver) = watch::channel(Notice::default());
        let net: SharedNet = Arc::new(RwLock::new(None));
        let mut engine = Self {
            config,
            // Without a server there was never a network.
            leftovers: !prefs.control_url.is_empty(),
            commands,
            notices,
            prefs,
            log_id: identity.log_id,
            node_key: identity.node,
            control: None,
            control_connected: watch::Sender::new(false),
            control_problem: None,
            key_change: None,
            auth_url: None,
            login_under_way: false,
            error: None,
            logout: None,
            map: None,
            map_stale: false,
            map_refused: false,
            told_keys: ToldKeys::default(),
            map_confirmed: None,
            cache_at: None,
            expiry: Expiry::default(),
            clock: Clock::default(),
            net: Arc::clone(&net),
            net_events: None,
            net_health: BTreeMap::new(),
            net_info: None,
            own_endpoints: Vec::new(),
            net_error: None,
            net_retry_at: None,
            relay_connected: false,
            tunnel_up: false,
            filter_warnings: Vec::new(),
            dirty: true,
            state: Arc::new(state),
        };
        engine.load_cached_map();
        Ok((
            engine,
            Handle {
                commands: sender,
                notices: notice_receiver,
                net,
            },
        ))
    }

    fn load_cached_map(&mut self) {
        let cached = match self.state.netmap() {
            Ok(Some(cached)) => cached,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the cached network map is of no use");
                return;
            }
        };
        if cached.control_url == self.prefs.control_url
            && cached.node_key == self.node_key.public()
            && cached.map.node.key == cached.node_key
        {
            self.map = Some(Arc::new(cached.map));
            self.map_stale = true;
            self.map_confirmed =
                SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(cached.confirmed_at));
        }
    }

    /// Runs until [`Handle::shutdown`], or until every handle is gone.
    pub async fn run(mut self) {
        if self.prefs.want_running
            && !self.prefs.logged_out
            && let Err(error) = self.start_control(Login::default(), false)
        {
            self.error = Some(error.to_string());
        }
        self.reconcile().await;
        loop {
            let timer = tokio::time::sleep_until(self.next_timer());
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => break,
                    Some(Command::Shutdown(done)) => {
                        self.shut_down().await;
                        // Whoever asked may not wait for it.
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.handle_command(command).await,
                },
                event = next_event(&mut self.control) => {
                    self.handle_control(event).await;
                    // More may have come meanwhile: the host is made to agree once for all.
                    while let Some(event) = self.try_event() {
                        self.handle_control(event).await;
                    }
                }
                event = next_net_event(&mut self.net_events) => self.handle_net(event).await,
                () = timer => self.handle_timer(),
            }
            self.reconcile().await;
        }
        self.shut_down().await;
    }

    fn try_event(&mut self) -> Option<Event> {
        self.control.as_mut()?.1.try_recv().ok()
    }

    async fn handle_command(&mut self, command: Command) {
        match command {
            Command::Snapshot(reply) => {
                // An asker that went away does not want the answer; the same below.
                let _ = reply.send(self.snapshot());
            }
            Command::EditPrefs(masked, reply) => {
                let result = self.edit_prefs(&masked).await;
                self.reconcile().await;
                let _ = reply.send(result);
            }
            Command::Start(prefs, login, reply) => {
                let result = self.start(*prefs, login).await;
                self.publish();
                let _ = reply.send(result);
            }
            Command::Logout(reply) => self.log_out(reply),
            Command::Shutdown(_) => {}
        }
    }

    async fn handle_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::NetInfo(net_info) => {
                if let Some((control, _)) = &self.control {
                    control.set_net_info((*net_info).clone());
                }
                self.net_info = Some(*net_info);
            }
            NetEvent::Endpoints(endpoints) => {
                if let Some((control, _)) = &self.control {
                    control.set_endpoints(endpoints.clone());
                }
                self.own_endpoints = endpoints;
            }
            NetEvent::DiscoKey { peer, key } => self.take_disco_key(peer, key).await,
            NetEvent::DerpConnected(region) => {
                tracing::debug!(%region, "relay connected");
                self.relay_connected = true;
            }
            NetEvent::Moved => {
                if let Some((control, _)) = &self.control {
                    control.handle_move();
                    // Until it is back nobody can be told of another home relay.
                    self.set_control_connected(false);
                }
            }
            NetEvent::Health {
                key,
                text: Some(text),
            } => {
                self.net_health.insert(key, text);
            }
            NetEvent::Health { key, text: None } => {
                self.net_health.remove(key);
            }
        }
    }

    fn handle_timer(&mut self) {
        let now = Instant::now();
        if self.cache_at.is_some_and(|at| at <= now) {
            self.save_map();
        }
        if self.net_retry_at.is_some_and(|at| at <= now) {
            self.net_retry_at = None;
            self.dirty = true;
        }
        // What follows from the map follows from the time too.
        self.dirty |= self.expiry.take(now);
    }

    fn next_timer(&self) -> Instant {
        [self.cache_at, self.net_retry_at, self.expiry.at()]
            .into_iter()
            .flatten()
            .fold(Instant::now() + LONGEST_SLEEP, Instant::min)
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.correct(SystemTime::now())
    }

    pub(super) fn is_expired(&self) -> bool {
        let now = Timestamp::from(self.now());
        self.map
            .as_ref()
            .is_some_and(|map| map.node.is_expired(now))
    }

    /// Makes the host agree with what we know, then tells everybody.
    pub(super) async fn reconcile(&mut self) {
        if self.net_retry_at.is_none() {
            if !self.prefs.want_running {
                if let Err(error) = self.take_down().await {
                    tracing::debug!(%error, "tried again later");
                }
            } else if self.dirty {
                self.dirty = false;
                self.apply_map().await;
            }
        }
        self.publish();
    }

    async fn shut_down(&mut self) {
        self.stop_control().await;
        if let Some(net) = self.net.write().await.take() {
            net.detach().await;
        }
    }
}

async fn next_event(control: &mut Option<(Control, mpsc::Receiver<Event>)>) -> Event {
    if let Some((_, events)) = control
        && let Some(event) = events.recv().await
    {
        return event;
    }
    std::future::pending().await
}

async fn next_net_event(events: &mut Option<mpsc::Receiver<NetEvent>>) -> NetEvent {
    if let Some(receiver) = events
        && let Some(event) = receiver.recv().await
    {
        return event;
    }
    std::future::pending().await
}
