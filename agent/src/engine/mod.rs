//! The one task that decides what this node does.
//!
//! It owns preferences, network map and data plane, hears the control client, the data plane and the
//! local API, and makes the host agree with what it knows. The rest of the agent holds a [`Handle`].

mod backend;
mod core;
mod dataplane;
mod disco_keys;
mod expiry;
mod filter;
mod membership;
mod routing;
mod snapshot;
mod view;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::dataplane::Count;
use serde_json::{Map, Value};
use tokio::sync::{RwLock, mpsc, oneshot, watch};

use crate::control::{ControlError, Login, ServerUrl, fetch_server_key};
use crate::error_text::error_text;
use crate::localapi::{BackendState, PingResult, StartOptions};
use crate::net::{Measures, Net, NetError, Netcheck, PingPath, Pinger, Reports};
use crate::prefs::{Prefs, PrefsError};
use crate::state::StateError;

pub use self::core::{Engine, EngineConfig};
pub use snapshot::Snapshot;
pub(crate) use snapshot::node_name;

/// The data plane while there is one; readers ask it, only the engine changes it.
type SharedNet = Arc<RwLock<Option<Net>>>;

/// What everybody may want to hear of the moment it changes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Notice {
    /// How far the node is.
    pub state: BackendState,
    /// Where a person has to log in.
    pub auth_url: Option<String>,
    /// Why the last `up` cannot succeed as things are.
    pub error: Option<String>,
}

/// Why the engine does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A preference is not usable.
    #[error(transparent)]
    Prefs(#[from] PrefsError),
    /// There is no server to join.
    #[error("no coordination server is known yet: name it with `tailrace up --login-server URL`")]
    NoServer,
    /// The server cannot be used; nothing was changed.
    #[error(transparent)]
    Server(#[from] ControlError),
    /// The state folder cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The data plane could not do it.
    #[error(transparent)]
    Net(#[from] NetError),
    /// No node has this address.
    #[error("no node of the tailnet has or routes {0}: `tailrace status` lists them")]
    UnknownPeer(IpAddr),
    /// Too much was asked at once.
    #[error("the daemon is still busy with what it was asked before: try again in a moment")]
    Busy,
    /// Another command took back what this one had begun.
    #[error("the logout was cut short by another command: run `tailrace logout` again")]
    CutShort,
    /// The daemon is on its way out.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// What a [`Handle`] asks.
#[derive(Debug)]
enum Command {
    Snapshot(oneshot::Sender<Snapshot>),
    EditPrefs(Map<String, Value>, oneshot::Sender<Result<Prefs, Refusal>>),
    Start(Box<Prefs>, Login, oneshot::Sender<Result<(), Refusal>>),
    Logout(oneshot::Sender<Result<(), Refusal>>),
    Shutdown(oneshot::Sender<()>),
}

/// Speaks with the engine; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    notices: watch::Receiver<Notice>,
    net: SharedNet,
}

impl Handle {
    /// Returns everything there is to know at this moment.
    ///
    /// # Errors
    ///
    /// [`Refusal::ShuttingDown`].
    pub async fn snapshot(&self) -> Result<Snapshot, Refusal> {
        let mut snapshot = self.ask(Command::Snapshot).await?;
        if let Some(net) = self.net.read().await.as_ref() {
            snapshot.net = Some(net.status().await);
        }
        Ok(snapshot)
    }

    /// Returns everything there is to know at this moment, and all that is counted.
    ///
    /// # Errors
    ///
    /// As [`Handle::snapshot`].
    pub async fn measure(&self) -> Result<(Snapshot, Option<Measures>), Refusal> {
        let snapshot = self.ask(Command::Snapshot).await?;
        let measures = match self.net.read().await.as_ref() {
            Some(net) => Some(net.measure().await),
            None => None,
        };
        Ok((snapshot, measures))
    }

    /// Follows state, login URL and errors.
    #[must_use]
    pub fn notices(&self) -> watch::Receiver<Notice> {
        self.notices.clone()
    }

    /// Changes preferences (upstream's MaskedPrefs) and returns them.
    ///
    /// # Errors
    ///
    /// [`Refusal::Prefs`]; nothing changed then. [`Refusal::Net`] if the node was told to stop and its data
    /// plane could not be removed; that is tried again.
    pub async fn edit_prefs(&self, masked: Map<String, Value>) -> Result<Prefs, Refusal> {
        self.ask(|reply| Command::EditPrefs(masked, reply)).await?
    }

    /// Starts the node, or changes how it runs. Returns before it is up: follow [`Handle::notices`].
    ///
    /// # Errors
    ///
    /// [`Refusal::Server`] if a server it was not joined to yet does not answer; nothing changed then.
    pub async fn start(&self, options: StartOptions) -> Result<(), Refusal> {
        let now = self.snapshot().await?;
        let prefs = match options.update_prefs {
            Some(prefs) => prefs.checked()?,
            None => Prefs {
                want_running: true,
                logged_out: false,
                ..now.prefs.clone()
            },
        };
        if prefs.control_url.is_empty() {
            return Err(Refusal::NoServer);
        }
        if now.map.is_none() || prefs.control_url != now.prefs.control_url {
            let server =
                ServerUrl::parse(&prefs.control_url).map_err(|problem| PrefsError::Url {
                    url: prefs.control_url.clone(),
                    problem,
                })?;
            fetch_server_key(&server).await?;
        }
        let login = Login {
            auth_key: Some(options.auth_key).filter(|key| !key.is_empty()),
            fresh_key: options.force_reauth,
        };
        self.ask(|reply| Command::Start(Box::new(prefs), login, reply))
            .await?
    }

    /// Asks for a login by a person with a new node key; the present key works until that is done.
    ///
    /// # Errors
    ///
    /// As [`Handle::start`].
    pub async fn login_interactive(&self) -> Result<(), Refusal> {
        let joined = self.snapshot().await?.map.is_some();
        self.start(StartOptions {
            force_reauth: joined,
            ..StartOptions::default()
        })
        .await
    }

    /// Gives the membership up.
    ///
    /// # Errors
    ///
    /// [`Refusal::Server`] if the server could not be told; the node is then still a member.
    /// [`Refusal::State`] and [`Refusal::Net`] if it is not, but this host could not be tidied up.
    pub async fn logout(&self) -> Result<(), Refusal> {
        self.ask(Command::Logout).await?
    }

    /// Finds the node that an address leads to, as the frame of a ping's result.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownPeer`].
    pub async fn ping_target(&self, ip: IpAddr) -> Result<PingResult, Refusal> {
        let snapshot = self.ask(Command::Snapshot).await?;
        snapshot
            .ping_target(ip)
            .map(|(result, _)| result)
            .ok_or(Refusal::UnknownPeer(ip))
    }

    /// Asks a peer's agent for a sign of life, in a message of `size` bytes if that is longer than one without padding. No answer is a result, not an error.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownPeer`].
    pub async fn ping(
        &self,
        ip: IpAddr,
        size: u16,
        timeout: Duration,
    ) -> Result<PingResult, Refusal> {
        let snapshot = self.ask(Command::Snapshot).await?;
        let (mut result, key) = snapshot.ping_target(ip).ok_or(Refusal::UnknownPeer(ip))?;
        if result.is_local_ip {
            return Ok(result);
        }
        let reply = match self.pinger().await {
            Ok(pinger) => pinger.ping(&key, size, timeout).await,
            Err(error) => Err(error),
        };
        match reply {
            Ok(reply) => {
                result.latency_seconds = reply.latency.as_secs_f64();
                match reply.path {
                    PingPath::Direct(endpoint) => result.endpoint = endpoint.to_string(),
                    PingPath::Relay { region, code } => {
                        result.derp_region_id = u32::from(region.0);
                        result.derp_region_code = code;
                    }
                }
            }
            Err(error) => result.err = error_text(&error),
        }
        Ok(result)
    }

    /// Asks the agent behind a peer's address for a sign of life through the tunnel (TSMP). No answer is a
    /// result, not an error.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownPeer`].
    pub async fn ping_inside(&self, ip: IpAddr, timeout: Duration) -> Result<PingResult, Refusal> {
        let mut result = self.ping_target(ip).await?;
        if result.is_local_ip {
            return Ok(result);
        }
        let reply = match self.pinger().await {
            Ok(pinger) => pinger.ping_inside(ip, timeout).await,
            Err(error) => Err(error),
        };
        match reply {
            Ok(pong) => {
                result.latency_seconds = pong.latency.as_secs_f64();
                result.peer_api_port = pong.peer_api_port;
            }
            Err(error) => result.err = error_text(&error),
        }
        Ok(result)
    }

    /// What pings peers; not under the lock: `down` must not wait for a pong.
    async fn pinger(&self) -> Result<Pinger, NetError> {
        match self.net.read().await.as_ref() {
            Some(net) => net.pinger().await,
            None => Err(NetError::Down),
        }
    }

    /// Where the peer with this address serves its PeerAPI, if it does.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownPeer`].
    pub async fn peer_api(&self, ip: IpAddr) -> Result<Option<SocketAddr>, Refusal> {
        let snapshot = self.ask(Command::Snapshot).await?;
        let node = snapshot.node_by_ip(ip).ok_or(Refusal::UnknownPeer(ip))?;
        Ok(snapshot::peer_api(node, ip))
    }

    /// Sends what is for the peer with this address straight to `endpoint`, or by the relays again.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownPeer`], [`Refusal::Net`].
    pub async fn set_endpoint(
        &self,
        ip: IpAddr,
        endpoint: Option<SocketAddr>,
    ) -> Result<(), Refusal> {
        let snapshot = self.ask(Command::Snapshot).await?;
        let (target, key) = snapshot.ping_target(ip).ok_or(Refusal::UnknownPeer(ip))?;
        if target.is_local_ip {
            return Err(Refusal::UnknownPeer(ip));
        }
        match self.net.read().await.as_ref() {
            Some(net) => Ok(net.set_endpoint(key, endpoint).await?),
            None => Err(NetError::Down.into()),
        }
    }

    /// Measures the relays, and how this host looks from there.
    ///
    /// # Errors
    ///
    /// [`Refusal::Net`] while the overlay is down.
    pub async fn netcheck(&self) -> Result<Netcheck, Refusal> {
        // Not under the lock: `down` must not wait for a measurement.
        let checker = match self.net.read().await.as_ref() {
            Some(net) => net.checker().await?,
            None => return Err(NetError::Down.into()),
        };
        Ok(checker.run().await)
    }

    /// Where dropped packets are reported.
    ///
    /// # Errors
    ///
    /// [`Refusal::Net`] while the overlay is down.
    pub async fn drop_reports(&self) -> Result<Reports, Refusal> {
        match self.net.read().await.as_ref() {
            Some(net) => Ok(net.reports()),
            None => Err(NetError::Down.into()),
        }
    }

    /// What each rule of the network map has admitted, by its number there, since it came in force.
    ///
    /// # Errors
    ///
    /// [`Refusal::Net`] while the overlay is down, or if the kernel does not tell.
    pub async fn rule_hits(&self) -> Result<BTreeMap<u32, Count>, Refusal> {
        match self.net.read().await.as_ref() {
            Some(net) => Ok(net.rule_hits().await?),
            None => Err(NetError::Down.into()),
        }
    }

    /// Ends the engine: the control client stops, a kernel data plane stays.
    pub async fn shutdown(&self) {
        if self.ask(Command::Shutdown).await.is_err() {
            tracing::debug!("the engine had ended before");
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Refusal::ShuttingDown)?;
        answer.await.map_err(|_| Refusal::ShuttingDown)
    }
}
