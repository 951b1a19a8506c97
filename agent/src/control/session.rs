//! The life of the control client: connect, become authorised, follow the map; start again when that breaks.

use std::sync::Arc;
use std::time::Duration;

use control_proto::tailcfg::MapResponse;
use http::StatusCode;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::connection::Connection;
use super::login::{self, Attempt, Outcome, Progress};
use super::task::{Running, next};
use super::{Command, ControlError, Event, HostState, Login, ServerUrl, key, ping, stream, update};
use crate::backoff::Backoff;
use crate::state::{Identity, StateDir};

/// Answers to ping requests under way at once.
const MAX_PINGS: usize = 4;
/// A connection that still brings frames after this long is a good one. One that ends sooner may end over
/// what the server says first, and would again.
const STEADY: Duration = Duration::from_secs(30);

type Frames = Running<Result<Box<MapResponse>, ControlError>>;

/// What the client is after.
#[derive(Debug)]
enum Goal {
    /// Nothing: the last login was refused and the operator has to say something new.
    Wait,
    /// Have the node key authorised. While it lasts, a map stream of the present key may go on.
    Authorise(Login),
    /// Follow the map with the present key.
    Follow,
}

/// Owns the keys and the way to the server.
pub(super) struct Session {
    server: ServerUrl,
    accept_new_key: bool,
    state: Arc<StateDir>,
    identity: Identity,
    host: watch::Receiver<HostState>,
    events: mpsc::Sender<Event>,
    commands: mpsc::Receiver<Command>,
    /// Packets leave the host another way.
    moved: Arc<Notify>,
    goal: Goal,
    backoff: Backoff,
    pings: Arc<Semaphore>,
    last_ping_url: String,
}

/// Everything that lives as long as one connection.
struct Connected {
    connection: Connection,
    since: Instant,
    /// The login under way, if any.
    login: Option<Running<Progress>>,
    /// A new key has been asked for during this login; a second time would go round in circles.
    renewed: bool,
    stream: Option<Frames>,
    /// No frame of this stream came yet.
    first: bool,
    _update: Option<Running<()>>,
}

/// Why a connection is given up without an error.
enum End {
    /// The membership is given up, or nobody is interested any more.
    Done,
    /// Same keys, other state: connect again at once.
    Again,
}

impl Session {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, by the handle that makes the channels"
    )]
    pub(super) fn new(
        server: ServerUrl,
        accept_new_key: bool,
        start: Login,
        state: Arc<StateDir>,
        identity: Identity,
        host: watch::Receiver<HostState>,
        events: mpsc::Sender<Event>,
        commands: mpsc::Receiver<Command>,
        moved: Arc<Notify>,
    ) -> Self {
        Self {
            server,
            accept_new_key,
            state,
            identity,
            host,
            events,
            commands,
            moved,
            goal: Goal::Authorise(start),
            backoff: Backoff::default(),
            pings: Arc::new(Semaphore::new(MAX_PINGS)),
            last_ping_url: String::new(),
        }
    }

    /// Runs until the membership is given up or the engine goes away.
    pub(super) async fn run(mut self) {
        loop {
            match self.connect_and_follow().await {
                Ok(End::Done) => return,
                Ok(End::Again) => continue,
                Err(error) => {
                    tracing::debug!(%error, "the coordination server cannot be used now");
                    if self.events.send(Event::Problem(error)).await.is_err() {
                        return;
                    }
                }
            }
            if let End::Done = self.pause().await {
                return;
            }
        }
    }

    /// Waits until it is time for the next attempt, or until the operator wants one.
    async fn pause(&mut self) -> End {
        let wait = tokio::time::sleep(self.backoff.next(rand::random()));
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => return End::Again,
                // What failed by the old way may go by the new one.
                () = self.moved.notified() => {
                    self.backoff.reset();
                    return End::Again;
                }
                command = self.commands.recv() => match command {
                    None => return End::Done,
                    Some(Command::Login(login)) => {
                        self.goal = Goal::Authorise(login);
                        return End::Again;
                    }
                    Some(Command::Logout) => return self.log_out(None).await,
                    // About a stream that ended by itself meanwhile.
                    Some(Command::Reconnect(_)) => {}
                },
            }
        }
    }

    async fn connect_and_follow(&mut self) -> Result<End, ControlError> {
        if let Goal::Wait = self.goal {
            // Nothing to do until told; no reason to keep the server busy either.
            match self.commands.recv().await {
                None => return Ok(End::Done),
                Some(Command::Login(login)) => self.goal = Goal::Authorise(login),
                Some(Command::Logout) => return Ok(self.log_out(None).await),
                Some(Command::Reconnect(_)) => return Ok(End::Again),
            }
        }
        let moved = Arc::clone(&self.moved);
        let connection = tokio::select! {
            connection = self.connect() => connection?,
            () = moved.notified() => return Ok(End::Again),
        };
        let mut live = Connected {
            connection,
            since: Instant::now(),
            login: None,
            renewed: false,
            stream: None,
            first: true,
            _update: None,
        };
        match &self.goal {
            Goal::Wait => {}
            Goal::Follow => self.open_stream(&mut live),
            Goal::Authorise(_) => self.start_login(&mut live)?,
        }
        let ended = live.connection.clone();
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => return Ok(End::Done),
                    Some(Command::Login(login)) => {
                        self.goal = Goal::Authorise(login);
                        live.renewed = false;
                        self.start_login(&mut live)?;
                    }
                    Some(Command::Logout) => return Ok(self.log_out(Some(&live.connection)).await),
                    Some(Command::Reconnect(why)) => return Err(why),
                },
                progress = next(&mut live.login) => self.handle_progress(&mut live, progress).await?,
                frame = next(&mut live.stream) => match frame {
                    Ok(response) => self.handle_frame(&mut live, response).await?,
                    Err(error) => {
                        self.reconsider(&error);
                        return Err(error);
                    }
                },
                () = moved.notified() => {
                    // A login would begin anew, with another URL; it has a patience of its own.
                    if live.login.is_none() {
                        return Ok(End::Again);
                    }
                }
                () = ended.closed() => {
                    return Err(ControlError::broken("the server closed it"));
                }
            }
            if let Goal::Wait = self.goal
                && live.stream.is_none()
            {
                return Ok(End::Again);
            }
        }
    }

    /// Checks the server's key and opens a connection.
    async fn connect(&mut self) -> Result<Connection, ControlError> {
        let found = key::fetch(&self.server).await?;
        let url = self.server.to_string();
        let known = self.identity.servers.get(&url).copied();
        if known != Some(found) {
            if let Some(old) = known {
                let change = ControlError::KeyChanged {
                    server: url.clone(),
                    old,
                    new: found,
                };
                // TLS vouches for the new key; over plain HTTP only the operator can.
                if !self.server.tls && !self.accept_new_key {
                    return Err(change);
                }
                tracing::warn!(%old, new = %found, server = url, "the server's key changed");
                self.tell(Event::KeyChanged(change)).await;
            }
            self.identity.servers.insert(url, found);
            self.state.save_identity(&self.identity)?;
        }
        self.accept_new_key = false;
        Connection::open(&self.server, &found, &self.identity.machine).await
    }

    /// Begins, or begins again, what [`Goal::Authorise`] asks for.
    fn start_login(&mut self, live: &mut Connected) -> Result<(), ControlError> {
        let Goal::Authorise(login) = &self.goal else {
            return Ok(());
        };
        let auth_key = login.auth_key.clone();
        if login.fresh_key && self.identity.next_node.is_none() {
            self.make_next_key()?;
        }
        let attempt = self.attempt(auth_key);
        let connection = live.connection.clone();
        live.login = Some(Running::spawn(|progress| {
            login::run(connection, attempt, progress)
        }));
        Ok(())
    }

    /// The next key if there is one, else the present one.
    fn attempt(&self, auth_key: Option<String>) -> Attempt {
        let hostinfo = self.host.borrow().hostinfo.clone();
        match &self.identity.next_node {
            Some(next) => Attempt {
                node_key: Arc::clone(next),
                old_node_key: Some(self.identity.node.public()),
                auth_key,
                hostinfo,
            },
            None => Attempt {
                node_key: Arc::clone(&self.identity.node),
                old_node_key: self.identity.old_node,
                auth_key,
                hostinfo,
            },
        }
    }

    /// Stored before it is sent: if we die after the server authorised it, we still have it.
    fn make_next_key(&mut self) -> Result<(), ControlError> {
        self.identity.next_node = Some(Arc::new(keys::NodePrivate::generate()));
        Ok(self.state.save_identity(&self.identity)?)
    }

    async fn handle_progress(
        &mut self,
        live: &mut Connected,
        progress: Progress,
    ) -> Result<(), ControlError> {
        let asked_for_fresh = matches!(&self.goal, Goal::Authorise(login) if login.fresh_key);
        match progress {
            Progress::Visit(_)
                if self.identity.next_node.is_some() && !asked_for_fresh && !live.renewed =>
            {
                // A rotation that a crash interrupted before it was authorised: the present key still counts.
                self.drop_next_key()?;
                self.start_login(live)?;
            }
            Progress::Visit(url) => self.tell(Event::LoginUrl(url)).await,
            Progress::Over(Ok(Outcome::Authorised)) => {
                live.login = None;
                if let Some(next) = self.identity.next_node.take() {
                    self.identity.old_node = Some(self.identity.node.public());
                    self.identity.node = next;
                    self.state.save_identity(&self.identity)?;
                }
                self.goal = Goal::Follow;
                self.tell(Event::Authorised).await;
                self.open_stream(live);
            }
            Progress::Over(Ok(Outcome::KeyExpired)) if live.renewed => {
                return Err(ControlError::Refused(
                    "it calls every node key expired".to_owned(),
                ));
            }
            Progress::Over(Ok(Outcome::KeyExpired)) => {
                live.renewed = true;
                self.make_next_key()?;
                if let Goal::Authorise(login) = &mut self.goal {
                    // So that a reconnect waits on with the same key, and with the same URL.
                    login.fresh_key = true;
                }
                self.start_login(live)?;
            }
            Progress::Over(Ok(Outcome::Refused(words))) => {
                live.login = None;
                self.drop_next_key()?;
                let had_auth_key =
                    matches!(&self.goal, Goal::Authorise(login) if login.auth_key.is_some());
                if !had_auth_key && live.stream.is_none() {
                    // Not something the operator just said: it may pass, so try again later.
                    return Err(ControlError::Refused(words));
                }
                self.goal = if live.stream.is_some() {
                    Goal::Follow
                } else {
                    Goal::Wait
                };
                self.tell(Event::LoginRefused(words)).await;
            }
            Progress::Over(Err(error)) => return Err(error),
        }
        Ok(())
    }

    fn drop_next_key(&mut self) -> Result<(), ControlError> {
        if self.identity.next_node.take().is_some() {
            self.state.save_identity(&self.identity)?;
        }
        Ok(())
    }

    /// Opens the map stream of the present key, instead of any other, and sends the lite update beside it.
    fn open_stream(&self, live: &mut Connected) {
        let host = self.host.borrow().clone();
        let node_key = &self.identity.node;
        live.first = true;
        live.stream = Some(Running::spawn(|frames| {
            stream::run(
                live.connection.clone(),
                Arc::clone(node_key),
                host.disco,
                host.hostinfo,
                frames,
            )
        }));
        live._update = Some(Running::spawn(|_| {
            update::run(
                live.connection.clone(),
                Arc::clone(node_key),
                self.host.clone(),
            )
        }));
    }

    async fn handle_frame(
        &mut self,
        live: &mut Connected,
        mut response: Box<MapResponse>,
    ) -> Result<(), ControlError> {
        if live.since.elapsed() >= STEADY {
            self.backoff.reset();
        }
        if let Some(request) = response.ping_request.take()
            && request.url != self.last_ping_url
        {
            self.last_ping_url.clone_from(&request.url);
            if let Ok(slot) = Arc::clone(&self.pings).try_acquire_owned() {
                let connection = live.connection.clone();
                tokio::spawn(async move {
                    ping::answer(connection, request).await;
                    drop(slot);
                });
            }
        }
        if response.keep_alive {
            self.tell(Event::KeepAlive).await;
            return Ok(());
        }
        let node_key = Arc::clone(&self.identity.node);
        self.tell(Event::Map {
            first: live.first,
            node_key,
            response,
        })
        .await;
        live.first = false;
        Ok(())
    }

    /// A refused map stream may mean that the server forgot us: ask to be authorised again.
    fn reconsider(&mut self, error: &ControlError) {
        let forgotten = [
            StatusCode::NOT_FOUND,
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
        ];
        if let ControlError::Status { status, .. } = error
            && forgotten.contains(status)
            && let Goal::Follow = self.goal
        {
            self.goal = Goal::Authorise(Login::default());
        }
    }

    /// Gives the membership up, over `connection` or a new one, and tells how that went.
    async fn log_out(&mut self, connection: Option<&Connection>) -> End {
        if let Err(error) = self.expire_key(connection).await {
            self.tell(Event::LogoutFailed(error)).await;
            return End::Again;
        }
        // The node key is of no use any more; on this side too.
        self.identity.old_node = Some(self.identity.node.public());
        self.identity.node = Arc::new(keys::NodePrivate::generate());
        let stored = self.state.save_identity(&self.identity);
        self.tell(Event::LoggedOut(stored)).await;
        End::Done
    }

    async fn expire_key(&mut self, connection: Option<&Connection>) -> Result<(), ControlError> {
        self.drop_next_key()?;
        let opened;
        let connection = match connection {
            Some(connection) => connection,
            None => {
                opened = self.connect().await?;
                &opened
            }
        };
        login::logout(connection, &self.attempt(None)).await
    }

    /// The engine may be gone; then this task ends at its next command.
    async fn tell(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}
