//! The service layer: everything that can be asked of the server, by nodes and administrators.
//!
//! Each write goes to the database, gets its change number, and reaches the engine, in that order
//! and one at a time; what a caller is told is on disk.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keys::NodePublic;
use time::OffsetDateTime;
use tokio::sync::{Mutex, MutexGuard};

use crate::engine::{Absence, Engine, MapSettings, Session};
use crate::login::Logins;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError, Unique};

mod auth_keys;
mod map;
mod nodes;
mod register;
mod users;

pub use auth_keys::{AuthKeyRequest, IssuedKey};
pub use map::MapRefusal;
pub use register::RegisterRefusal;

/// How the server behaves; durations with their defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Scheme, host and port under which nodes reach the server; no trailing slash.
    pub server_url: String,
    /// Life of a node key that belongs to a user; 180 days.
    pub key_expiry: Duration,
    /// How long a node without a stream still counts as online; 10 s.
    pub offline_grace: Duration,
    /// How long an ephemeral node may be offline before it is deleted; 30 min.
    pub ephemeral_timeout: Duration,
    /// How long a login waits for approval; 15 min.
    pub login_timeout: Duration,
    /// How long one followup request is held; 2 min.
    pub followup_hold: Duration,
}

impl Settings {
    /// Defaults, for a server at `server_url`.
    #[must_use]
    pub fn new(server_url: &str) -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            server_url: server_url.trim_end_matches('/').to_owned(),
            key_expiry: 180 * 24 * 60 * MINUTE,
            offline_grace: Duration::from_secs(10),
            ephemeral_timeout: 30 * MINUTE,
            login_timeout: 15 * MINUTE,
            followup_hold: 2 * MINUTE,
        }
    }
}

/// What an administrator or a node is told when it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Nothing has that name, address or number.
    #[error("{0}")]
    NotFound(String),
    /// It would clash with what exists.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is written next goes here: serialises the writers.
#[derive(Debug)]
struct Writer {
    address_cursor: u32,
}

/// The coordination server without its sockets.
pub struct Control {
    engine: Engine,
    store: Arc<dyn Store>,
    writer: Mutex<Writer>,
    logins: Logins,
    settings: Settings,
    metrics: Metrics,
    started: OffsetDateTime,
    on_key_gone: OnceLock<KeyGone>,
}

/// Told of each node key that lost its place in the tailnet.
type KeyGone = Box<dyn Fn(NodePublic) + Send + Sync>;

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Reads the tailnet from the database.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn open(
        store: Arc<dyn Store>,
        settings: Settings,
        map: MapSettings,
    ) -> Result<Arc<Self>, StoreError> {
        let loaded = store.load().await?;
        let started = now();
        let logins = Logins::new(settings.login_timeout);
        Ok(Arc::new(Self {
            writer: Mutex::new(Writer {
                address_cursor: loaded.address_cursor,
            }),
            engine: Engine::new(map, loaded, started),
            store,
            logins,
            settings,
            metrics: Metrics::default(),
            started,
            on_key_gone: OnceLock::new(),
        }))
    }

    /// The map engine, for reading.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How the server behaves.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Logins that wait for approval.
    #[must_use]
    pub fn logins(&self) -> &Logins {
        &self.logins
    }

    /// When the server started.
    #[must_use]
    pub fn started(&self) -> OffsetDateTime {
        self.started
    }

    /// Has `hook` called with every node key that is deleted, replaced or expires, so that the
    /// relay drops its connections. Only the first call counts.
    pub fn on_key_gone(&self, hook: impl Fn(NodePublic) + Send + Sync + 'static) {
        if self.on_key_gone.set(Box::new(hook)).is_err() {
            tracing::warn!("a second relay wants to hear of removed keys; ignored");
        }
    }

    fn key_gone(&self, key: NodePublic) {
        if let Some(hook) = self.on_key_gone.get() {
            hook(key);
        }
    }

    /// Does the database answer?
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.store.check().await
    }

    /// May this node key use the relay?
    #[must_use]
    pub fn admits(&self, key: &NodePublic) -> bool {
        self.engine.admits(key, now())
    }

    /// A stream's connection is gone: the node is offline after the grace period, unless it is back.
    pub fn disconnected(self: &Arc<Self>, session: &Session) {
        let Some(absence) = self.engine.disconnect(session, now()) else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let control = Arc::clone(self);
        runtime.spawn(async move { control.grace(absence).await });
    }

    async fn grace(&self, absence: Absence) {
        tokio::time::sleep(self.settings.offline_grace).await;
        self.engine.end_grace(absence, now());
    }

    /// Does what is due: expired keys, abandoned ephemeral nodes, forgotten logins.
    pub async fn housekeep(&self) {
        let now = now();
        for key in self.engine.announce_expired(now) {
            self.key_gone(key);
        }
        for id in self.engine.abandoned(now - self.settings.ephemeral_timeout) {
            if let Err(error) = self.remove_node(id).await {
                tracing::error!(node = %id, %error, "an ephemeral node could not be deleted");
            }
        }
        self.logins.sweep();
    }

    /// Writes what nodes reported since the last call.
    pub async fn save_reports(&self) {
        let nodes = self.engine.take_unsaved();
        if nodes.is_empty() {
            return;
        }
        if let Err(error) = self.store.save_reports(&nodes).await {
            tracing::error!(%error, "reports of nodes could not be written; trying again");
            self.engine.put_back_unsaved(&nodes);
        }
    }

    /// Ends the streams and closes the database.
    pub async fn shut_down(&self) {
        self.engine.end_sessions();
        self.save_reports().await;
        self.store.close().await;
    }

    async fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().await
    }
}

/// The time, in whole seconds as it is stored.
#[must_use]
pub fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now)
}

/// Names what is taken in the words of the person who asked.
fn conflict(error: StoreError, wanted: &str) -> ServiceError {
    match error {
        StoreError::Taken(Unique::UserName) => {
            ServiceError::Conflict(format!("user {wanted} exists already"))
        }
        StoreError::Taken(Unique::NodeName) => ServiceError::Conflict(format!(
            "another node is named {wanted}: choose another name, or rename that one first"
        )),
        other => ServiceError::Store(other),
    }
}

/// Random text from letters and digits that cannot be taken for one another; 4.95 bits each.
pub(crate) fn random_text(length: usize) -> String {
    use rand::Rng;
    const LETTERS: &[u8; 31] = b"abcdefghjkmnpqrstuvwxyz23456789";
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
        .collect()
}
