//! `serve`: binds everything, runs it until SIGTERM or Ctrl-C, and leaves it in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::ServeConfig;
use crate::engine::MapSettings;
use crate::http::{Front, tls};
use crate::model::DEFAULT_TAILNET;
use crate::policy_file::PolicyFile;
use crate::service::{Control, OpenError, Settings};
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;
use crate::{admin, derp, state};

/// How often reports of nodes are written.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// How often, at least, expired keys and abandoned nodes are looked for.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(10);
/// How often the policy file is looked at; a change counts when it is seen twice.
const POLICY_INTERVAL: Duration = Duration::from_millis(200);
/// How often a policy file that could not be put in force is tried again: the tailnet, the rights
/// or the disk may have changed, and not the file.
const POLICY_RETRY: Duration = Duration::from_secs(5);
/// What streams get to flush their last frame at the end.
const LAST_FRAMES: Duration = Duration::from_millis(200);

/// Why the server does not run; one line each.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The policy, or the database again.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database holds a policy that this version refuses.
    #[error("{source}; a copy to correct is in {}", copy.display())]
    StoredPolicy {
        /// What is wrong with it.
        source: OpenError,
        /// Where its text is.
        copy: PathBuf,
    },
    /// A port.
    #[error(transparent)]
    Bind(#[from] relay::net::BindError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The relay or its map.
    #[error(transparent)]
    Derp(#[from] derp::DerpError),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] admin::SocketError),
    /// The system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl ServeError {
    /// What is wrong with the policy, if it is the policy: for excerpts.
    #[must_use]
    pub fn diagnostics(&self) -> Option<&policy::Diagnostics> {
        match self {
            ServeError::Open(error) | ServeError::StoredPolicy { source: error, .. } => {
                error.diagnostics()
            }
            _ => None,
        }
    }
}

/// Runs the server until it is told to stop. Nothing is changed before every port is bound and
/// every file is read.
///
/// # Errors
///
/// See [`ServeError`].
pub async fn run(config: ServeConfig) -> Result<(), ServeError> {
    relay::net::raise_file_limit();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // From here on it reloads the policy and ends nothing.
    let hangup = signal(SignalKind::hangup())?;

    state::prepare(&config.state_dir)?;
    let tls = match &config.tls {
        Some((cert, key)) => Some(tls::acceptor(cert, key)?),
        None => None,
    };
    let listener = relay::net::bind_tcp(config.listen, "TCP", "--listen").await?;
    // The lock on the database comes before anything else of the folder is touched.
    let database = state::database(&config.state_dir);
    let store = Arc::new(SqliteStore::open(&database, DEFAULT_TAILNET).await?);
    let noise_key = state::noise_key(&config.state_dir)?;
    let embedded = derp::Embedded::bind(&config).await?;
    let own_map = embedded.as_ref().map(|embedded| embedded.map.clone());
    let derp_map = derp::merged_map(own_map, config.derp_map.as_deref())?;

    let mut settings = Settings::new(&config.server_url.text);
    settings.key_expiry = config.key_expiry.unwrap_or(settings.key_expiry);
    settings.ephemeral_timeout = config
        .ephemeral_timeout
        .unwrap_or(settings.ephemeral_timeout);
    settings.policy_file.clone_from(&config.policy);
    // Nodes with a short life are looked for more often.
    let housekeeping = settings
        .ephemeral_timeout
        .clamp(Duration::from_secs(1), HOUSEKEEPING_INTERVAL);
    let map = MapSettings::new(&config.base_domain, &derp_map);
    let control = match Control::open(store, settings, map).await {
        Ok(control) => control,
        Err(source @ OpenError::StoredPolicy(_)) => {
            let text = source.diagnostics().map_or("", |list| &*list.text);
            let copy = state::refused_policy(&config.state_dir, text)?;
            return Err(ServeError::StoredPolicy { source, copy });
        }
        Err(error) => return Err(error.into()),
    };
    let relay = embedded
        .map(|embedded| embedded.start(&control))
        .transpose()?;
    let admin = admin::Socket::bind(&state::socket(&config.state_dir))?;

    let address = listener.local_addr()?;
    tracing::info!(%address, url = %config.server_url.text, "serving nodes");
    let front = Front::new(Arc::clone(&control), noise_key);
    tokio::select! {
        () = front.serve(listener, tls) => {}
        () = admin.serve(Arc::clone(&control)) => {}
        () = follow_policy(&control, config.policy, hangup) => {}
        () = periodically(SAVE_INTERVAL, || control.save_reports()) => {}
        () = periodically(housekeeping, || control.housekeep()) => {}
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("Ctrl-C: stopping"),
    }
    control.shut_down().await;
    if let Some(relay) = relay {
        relay.close_and_wait().await;
    }
    tokio::time::sleep(LAST_FRAMES).await;
    Ok(())
}

/// Reads the policy file anew when it changed, and on SIGHUP.
async fn follow_policy(control: &Control, path: Option<PathBuf>, mut hangup: Signal) {
    let Some(path) = path else {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: there is no policy file to read again");
        }
        return std::future::pending().await;
    };
    let mut file = PolicyFile::new(path);
    let mut looks = tokio::time::interval(POLICY_INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tried = tokio::time::Instant::now();
    loop {
        let asked = tokio::select! {
            // Signals that come while the file is read count as one.
            _ = hangup.recv() => true,
            _ = looks.tick() => {
                tried.elapsed() >= POLICY_RETRY && control.policy_standing().failure.is_some()
            }
        };
        // A file system may take its time.
        let looking = tokio::task::spawn_blocking(move || {
            let read = (asked || file.changed()).then(|| file.read());
            (file, read)
        });
        let read;
        (file, read) = match looking.await {
            Ok(seen) => seen,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        if let Some(read) = read {
            control.reload_policy(file.path(), read).await;
            tried = tokio::time::Instant::now();
        }
    }
}

async fn periodically<F: Future<Output = ()>>(interval: Duration, mut work: impl FnMut() -> F) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        work().await;
    }
}
