//! `serve`: binds everything, runs it until SIGTERM or Ctrl-C, and leaves it in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::ServeConfig;
use crate::engine::MapSettings;
use crate::http::{Front, tls};
use crate::model::DEFAULT_TAILNET;
use crate::service::{Control, Settings};
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;
use crate::{admin, derp, state};

/// How often reports of nodes are written.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// How often, at least, expired keys and abandoned nodes are looked for.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(10);
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
    // Nodes with a short life are looked for more often.
    let housekeeping = settings
        .ephemeral_timeout
        .clamp(Duration::from_secs(1), HOUSEKEEPING_INTERVAL);
    let map = MapSettings::new(&config.base_domain, &derp_map);
    let control = Control::open(store, settings, map).await?;
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

async fn periodically<F: Future<Output = ()>>(interval: Duration, mut work: impl FnMut() -> F) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        work().await;
    }
}
