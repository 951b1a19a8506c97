//! The service layer: everything that can be asked of the server, by nodes and administrators.
//!
//! Each write goes to the database, gets its change number, and reaches the engine, in that order
//! and one at a time; what a caller is told is on disk. Who may be dropped in the middle, as those
//! that answer requests are, runs writes by [`complete`].

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::policy::Diagnostics;
use ::policy::diagnostic::Severity;

use keys::NodePublic;
use time::OffsetDateTime;
use tokio::sync::{Mutex, MutexGuard};

use crate::engine::{Absence, Engine, MapSettings, Session};
use crate::login::Logins;
use crate::metrics::Metrics;
use crate::policy_file::{ReadError, read_policy};
use crate::store::measured::Measured;
use crate::store::{Store, StoreError, StoredPolicy, Unique};

mod auth_keys;
mod map;
mod nodes;
mod policy;
mod register;
mod routes;
mod ssh;
mod tags;
mod users;
mod work;

pub use auth_keys::{AuthKeyRequest, IssuedKey};
pub use map::MapRefusal;
pub use policy::{Accepted, Adopted, Draft, Failure, Standing, TestReport, Version};
pub use register::RegisterRefusal;
pub use routes::Route;
use work::Queue;
pub(crate) use work::complete;

/// How long metrics wait for the database's word on its size.
const SIZE_PATIENCE: Duration = Duration::from_millis(500);
/// What a write that is under way gets when the server stops.
const LAST_WRITE: Duration = Duration::from_secs(5);

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
    /// The file that the policy comes from; without, administrators set it.
    pub policy_file: Option<PathBuf>,
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
            policy_file: None,
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
    /// Who asks may not have it.
    #[error("{0}")]
    Denied(String),
    /// The policy is refused, for all these reasons.
    #[error("{}", policy_summary(.0))]
    Policy(Box<Diagnostics>),
    /// The database failed.
    #[error(transparent)]
    Store(StoreError),
}

/// Why a server cannot start on what it finds.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The policy file cannot be read.
    #[error(transparent)]
    PolicyFile(#[from] ReadError),
    /// The policy file cannot be put in force.
    #[error("{0}")]
    Policy(ServiceError),
    /// The database holds a policy that this version refuses. Neither allowing nor denying all would
    /// be right; nodes that are connected keep what they were told last.
    #[error(
        "{}, though it was accepted when it was set: start the version of this server that accepted \
         it, or give a corrected copy with --policy FILE", policy_summary(.0)
    )]
    StoredPolicy(Box<Diagnostics>),
}

impl OpenError {
    /// What is wrong with the policy, if it is the policy.
    #[must_use]
    pub fn diagnostics(&self) -> Option<&Diagnostics> {
        match self {
            OpenError::Policy(ServiceError::Policy(list)) | OpenError::StoredPolicy(list) => {
                Some(list)
            }
            OpenError::Policy(_) | OpenError::Store(_) | OpenError::PolicyFile(_) => None,
        }
    }
}

/// What is written next goes here: serialises the writers.
#[derive(Debug)]
struct Writer {
    address_cursor: u32,
    /// Like it, in the pools of the policy; for this process.
    pool_cursor: u32,
}

/// The coordination server without its sockets.
pub struct Control {
    engine: Arc<Engine>,
    store: Arc<dyn Store>,
    writer: Mutex<Writer>,
    long_questions: Queue,
    logins: Logins,
    settings: Settings,
    metrics: Metrics,
    started: OffsetDateTime,
    standing: std::sync::Mutex<Standing>,
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
    /// Reads the tailnet from the database, and puts its policy in force: the file of
    /// `settings.policy_file`, else the one that was set last, else *allow all*.
    ///
    /// # Errors
    ///
    /// What the database says, or what is wrong with the policy.
    pub async fn open(
        store: Arc<dyn Store>,
        settings: Settings,
        map: MapSettings,
    ) -> Result<Arc<Self>, OpenError> {
        let metrics = Metrics::default();
        let store: Arc<dyn Store> = Arc::new(Measured::new(store, metrics.database.clone()));
        let mut loaded = store.load().await?;
        let stored = loaded.policy.take();
        let started = now();
        let logins = Logins::new(settings.login_timeout);
        let control = Self {
            writer: Mutex::new(Writer {
                address_cursor: loaded.address_cursor,
                pool_cursor: 0,
            }),
            engine: Arc::new(Engine::new(map, loaded, started)),
            store,
            long_questions: Queue::default(),
            logins,
            settings,
            metrics,
            started,
            standing: Default::default(),
            on_key_gone: OnceLock::new(),
        };
        control.first_policy(stored).await?;
        Ok(Arc::new(control))
    }

    async fn first_policy(&self, stored: Option<StoredPolicy>) -> Result<(), OpenError> {
        let file = match &self.settings.policy_file {
            Some(path) => Some((path.display().to_string(), read_policy(path)?)),
            None => None,
        };
        match (file, stored) {
            (None, None) => Ok(()),
            (Some((name, text)), stored) if stored.as_ref().is_none_or(|it| it.text != text) => {
                let current = stored.map_or(0, |it| it.version);
                let draft = Draft {
                    name: name.clone(),
                    text,
                };
                let adopted = self.adopt(draft, &name, Some(current)).await;
                adopted.map(drop).map_err(OpenError::Policy)
            }
            // A file that was accepted before is not tested anew: a restart must not fail because
            // of what changed in the tailnet since.
            (_, Some(stored)) => {
                let restored = self.restore_policy(stored).await;
                restored.map_err(|list| OpenError::StoredPolicy(Box::new(list)))
            }
            (Some(_), None) => Ok(()),
        }
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

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// They cannot be encoded.
    pub async fn metrics_text(&self) -> Result<String, prometheus::Error> {
        let size = tokio::time::timeout(SIZE_PATIENCE, self.store.size()).await;
        let size = size.ok().and_then(Result::ok);
        self.metrics.encode(self.engine.counts(), size)
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
        self.engine.end_grace(absence);
    }

    /// Does what is due: expired keys, abandoned ephemeral nodes, forgotten logins.
    pub async fn housekeep(&self) {
        let now = now();
        self.engine.stop_awaiting(now);
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

    /// Ends the streams and closes the database, after the write that is under way; no other
    /// begins. One that takes too long is left to the database, which has all of it or nothing.
    pub async fn shut_down(&self) {
        self.engine.end_sessions();
        let last = tokio::time::timeout(LAST_WRITE, self.writer()).await;
        if last.is_err() {
            tracing::warn!("a change is still being written; not waiting for it any longer");
        }
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

/// A refusal in one line; the excerpts say the rest.
pub(crate) fn policy_summary(diagnostics: &Diagnostics) -> String {
    let errors = diagnostics.list.iter();
    let errors = errors.filter(|it| it.severity == Severity::Error).count() + diagnostics.omitted;
    let s = if errors == 1 { "" } else { "s" };
    format!("{} is refused: {errors} error{s}", diagnostics.name)
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
