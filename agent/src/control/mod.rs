//! The node's side of the control protocol, ts2021: joins, keeps the map stream open, tells news about itself.
//!
//! ```text
//! key        GET /key: the server's Noise key, compared with the one we trusted before
//! dial       TCP (+ TLS), outside the overlay
//! connection upgrade + Noise + HTTP/2: every request below shares one
//! login      POST /machine/register until the node key is authorised
//! stream     POST /machine/map, the endless answer, frame by frame
//! update     POST /machine/map, lite: host and home relay, whenever they change
//! session    ties these together and starts again when they break
//! ```
//!
//! Source: protocol/control.md §0 to §5 and §11.

mod connection;
mod dial;
mod error;
mod hostinfo;
mod key;
mod login;
mod ping;
mod session;
mod stream;
mod task;
mod update;
mod url;

use std::net::SocketAddr;
use std::sync::Arc;

use control_proto::tailcfg::{Hostinfo, MapResponse, NetInfo};
use keys::{DiscoPublic, NodePrivate};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::net::EndpointKind;
use crate::state::{Identity, StateDir, StateError};

pub use error::ControlError;
pub use hostinfo::hostinfo;
pub use key::fetch as fetch_server_key;
pub use url::ServerUrl;

/// Events that may wait for the engine; then the stream waits too.
const EVENTS: usize = 16;
/// Commands that may wait for the session.
const COMMANDS: usize = 16;

/// What the client needs to know before it starts.
#[derive(Debug)]
pub struct ControlConfig {
    /// The server.
    pub server: ServerUrl,
    /// This host, in full.
    pub hostinfo: Hostinfo,
    /// Accept a server whose Noise key is another than before: the operator just named it.
    pub accept_new_key: bool,
    /// How to begin.
    pub start: Login,
    /// Where this node can be reached, as far as that is known.
    pub endpoints: Vec<(SocketAddr, EndpointKind)>,
}

/// How to become, or stay, authorised.
#[derive(Clone, Default)]
pub struct Login {
    /// Proof that needs no person.
    pub auth_key: Option<String>,
    /// Ask for a new node key; the present one is used until the new one is authorised.
    pub fresh_key: bool,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("auth_key", &self.auth_key.as_ref().map(|_| ".."))
            .field("fresh_key", &self.fresh_key)
            .finish()
    }
}

/// What the server, or the way to it, brought.
#[derive(Debug)]
pub enum Event {
    /// The server's Noise key is another than before; it was accepted because TLS or the operator vouches for it.
    KeyChanged(ControlError),
    /// The node key is not authorised: a person has to visit the URL.
    LoginUrl(String),
    /// The login was refused for good; the server's words.
    LoginRefused(String),
    /// The node key is authorised.
    Authorised,
    /// A frame of the map stream.
    Map {
        /// The first of a stream: it replaces all that was known.
        first: bool,
        /// The key this stream belongs to.
        node_key: Arc<NodePrivate>,
        /// The frame; never a keepalive.
        response: Box<MapResponse>,
    },
    /// A keepalive: what we know is still right.
    KeepAlive,
    /// The server cannot be used now; it is tried again.
    Problem(ControlError),
    /// The membership is given up; an error says that this host could not store its new key.
    LoggedOut(Result<(), StateError>),
    /// The server could not be told of the logout, or refused it: the node is still a member.
    LogoutFailed(ControlError),
}

/// What the engine asks of the client.
#[derive(Debug)]
pub(crate) enum Command {
    Login(Login),
    Logout,
    Reconnect(ControlError),
}

/// News about this host, sent as lite updates.
#[derive(Clone, Debug, PartialEq)]
struct HostState {
    hostinfo: Hostinfo,
    disco: DiscoPublic,
    endpoints: Vec<(SocketAddr, EndpointKind)>,
}

/// A running client; dropping it stops it.
#[derive(Debug)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    host: watch::Sender<HostState>,
    moved: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Control {
    /// Starts the client on its own task.
    #[must_use]
    pub fn start(
        config: ControlConfig,
        state: Arc<StateDir>,
        identity: Identity,
    ) -> (Self, mpsc::Receiver<Event>) {
        let (events, event_receiver) = mpsc::channel(EVENTS);
        let (commands, command_receiver) = mpsc::channel(COMMANDS);
        let disco = identity.disco.public();
        let (host, host_receiver) = watch::channel(HostState {
            hostinfo: config.hostinfo,
            disco,
            endpoints: config.endpoints,
        });
        let moved = Arc::new(Notify::new());
        let session = session::Session::new(
            config.server,
            config.accept_new_key,
            config.start,
            state,
            identity,
            host_receiver,
            events,
            command_receiver,
            Arc::clone(&moved),
        );
        (
            Self {
                commands,
                host,
                moved,
                task: tokio::spawn(session.run()),
            },
            event_receiver,
        )
    }

    /// Asks for authorisation anew. False if the client is too busy to hear.
    #[must_use]
    pub fn login(&self, login: Login) -> bool {
        self.commands.try_send(Command::Login(login)).is_ok()
    }

    /// Gives the membership up; [`Event::LoggedOut`] or [`Event::LogoutFailed`] tells how that went. False if
    /// the client is too busy to hear.
    #[must_use]
    pub fn logout(&self) -> bool {
        self.commands.try_send(Command::Logout).is_ok()
    }

    /// Gives the connection up because of a frame that makes no sense: after a pause another one brings all
    /// of the map again. False if the client is too busy to hear.
    #[must_use]
    pub fn reconnect(&self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> bool {
        let why = ControlError::Answer {
            request: "the map stream",
            source: why.into(),
        };
        self.commands.try_send(Command::Reconnect(why)).is_ok()
    }

    /// Connects again at once: the connection may have died with the host's way out, and would take a quarter of a
    /// minute to notice.
    pub fn handle_move(&self) {
        self.moved.notify_one();
    }

    /// Tells the server about this host, now and after every reconnect. What it knows of the network stays.
    pub fn set_hostinfo(&self, hostinfo: Hostinfo) {
        self.host.send_if_modified(|state| {
            let net_info = state.hostinfo.net_info.take();
            let new = Hostinfo {
                net_info,
                ..hostinfo
            };
            let old = std::mem::replace(&mut state.hostinfo, new);
            state.hostinfo
                != Hostinfo {
                    net_info: state.hostinfo.net_info.clone(),
                    ..old
                }
        });
    }

    /// Tells the server about this host's network, above all its home relay.
    pub fn set_net_info(&self, net_info: NetInfo) {
        self.host.send_if_modified(|state| {
            let changed = state.hostinfo.net_info.as_ref() != Some(&net_info);
            state.hostinfo.net_info = Some(net_info);
            changed
        });
    }

    /// Tells the server where this node can be reached, in the order in which peers should try.
    pub fn set_endpoints(&self, endpoints: Vec<(SocketAddr, EndpointKind)>) {
        self.host.send_if_modified(|state| {
            let changed = state.endpoints != endpoints;
            state.endpoints = endpoints;
            changed
        });
    }

    /// Stops the client; afterwards it touches neither state folder nor network.
    pub async fn stop(mut self) {
        self.task.abort();
        if let Err(error) = (&mut self.task).await
            && !error.is_cancelled()
        {
            tracing::error!(%error, "the control client had failed");
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}
