//! `tailrace daemon`: settings, locks and sockets first, then the engine until a signal comes.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::args::DaemonArgs;
use crate::config::{Config, ConfigError, Settings};
use crate::engine::{Engine, EngineConfig};
use crate::localapi::{BindError, Server};
use crate::metrics;
use crate::state::{StateDir, StateError};

/// Environment variable that says what to log, as tracing-subscriber's EnvFilter.
const LOG_VARIABLE: &str = "TAILRACE_LOG";
/// Bit of CAP_NET_ADMIN in a capability set (capabilities(7)).
const CAP_NET_ADMIN: u64 = 1 << 12;

/// Why the daemon does not run. The message names cause and fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// A setting is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The local API's socket cannot be used.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The process may not configure the network.
    #[error("the daemon configures the network and needs root (CAP_NET_ADMIN): start it with sudo")]
    NotRoot,
    /// The UDP port is taken.
    #[error("UDP port {port} is in use ({source}): choose another with --port")]
    Port {
        /// The port.
        port: u16,
        /// What the system answered.
        source: io::Error,
    },
    /// The metrics address cannot be used.
    #[error("cannot serve metrics on {address} ({source}): choose another with --metrics")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the system answered.
        source: io::Error,
    },
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(#[source] io::Error),
}

/// Runs the daemon until SIGTERM or SIGINT; a kernel data plane outlives it.
///
/// # Errors
///
/// [`DaemonError`] before anything was changed.
pub async fn run(args: DaemonArgs, socket: Option<PathBuf>) -> Result<(), DaemonError> {
    let config = configure(args, socket)?;
    start_log();
    if !may_configure_network() {
        return Err(DaemonError::NotRoot);
    }
    let state = StateDir::open(&config.state_dir)?;
    let server = Server::bind(&config.socket).await?;
    let metrics_listener = match config.metrics {
        Some(address) => Some(
            metrics::bind(address)
                .await
                .map_err(|source| DaemonError::Metrics { address, source })?,
        ),
        None => None,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;

    let engine_config = EngineConfig {
        device: config.device.clone(),
        port: config.port,
        wireguard: config.engine,
    };
    let (engine, handle) = Engine::new(engine_config, state)?;
    tracing::info!(
        version = crate::cli::VERSION,
        state = %config.state_dir.display(),
        socket = %config.socket.display(),
        "tailrace daemon started"
    );
    let writers = BTreeSet::from([0, rustix::process::geteuid().as_raw()]);
    let api = tokio::spawn(server.serve(handle.clone(), writers));
    let exporter =
        metrics_listener.map(|listener| tokio::spawn(metrics::serve(listener, handle.clone())));
    let running = tokio::spawn(engine.run());

    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping, a kernel data plane stays"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping, a kernel data plane stays"),
    }
    handle.shutdown().await;
    api.abort();
    if let Some(exporter) = exporter {
        exporter.abort();
    }
    if let Err(error) = running.await {
        tracing::error!(%error, "the engine failed");
    }
    // The socket's file goes with the task that holds it.
    match api.await {
        Err(error) if error.is_panic() => tracing::error!(%error, "the local API failed"),
        _ => {}
    }
    Ok(())
}

/// Flag > environment (both in `args`) > file > default.
fn configure(args: DaemonArgs, socket: Option<PathBuf>) -> Result<Config, ConfigError> {
    let file = match &args.config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    let flags = Settings {
        state_dir: args.state_dir,
        socket,
        device: args.device,
        port: args.port,
        wireguard: args.wireguard,
        metrics: args.metrics,
    };
    flags.or(file).into_config()
}

fn start_log() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .try_init();
    if let Err(error) = started {
        eprintln!("tailrace: no log: {error}");
    }
}

/// Whether CAP_NET_ADMIN is among our effective capabilities.
fn may_configure_network() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & CAP_NET_ADMIN != 0)
}
