//! `tailrace daemon`: settings, locks and sockets first, then the engine until a signal comes.
//!
//! [`prepare`] does with all of root's privileges what needs them, drops the rest, and only then threads
//! are started: they inherit what is left.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;

use crate::cli::args::DaemonArgs;
use crate::config::{Config, ConfigError, Settings};
use crate::engine::{Engine, EngineConfig};
use crate::localapi::{BindError, Server};
use crate::net::Net;
use crate::state::{StateDir, StateError};
use crate::{metrics, privileges};

/// Environment variable that says what to log, as tracing-subscriber's EnvFilter.
const LOG_VARIABLE: &str = "TAILRACE_LOG";

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
    /// The task that decides everything ended by itself: a bug.
    #[error(
        "the daemon's engine ended unexpectedly ({problem}): start the daemon again; a kernel data plane \
         goes on meanwhile"
    )]
    Engine {
        /// How it ended.
        problem: String,
    },
}

/// A daemon that holds all it needs, and no more privileges than that.
#[derive(Debug)]
pub struct Daemon {
    config: Config,
    state: StateDir,
    server: Server,
    metrics: Option<TcpListener>,
}

/// Takes state folder and sockets, and drops the privileges that are not needed any more.
///
/// Call it while the process has one thread.
///
/// # Errors
///
/// [`DaemonError`] before anything was changed.
pub fn prepare(args: DaemonArgs, socket: Option<PathBuf>) -> Result<Daemon, DaemonError> {
    let config = configure(args, socket)?;
    start_log();
    if !privileges::may_configure_network() {
        return Err(DaemonError::NotRoot);
    }
    let state = StateDir::open(&config.state_dir)?;
    let server = Server::bind(&config.socket)?;
    let bind =
        |address| metrics::bind(address).map_err(|source| DaemonError::Metrics { address, source });
    let metrics = config.metrics.map(bind).transpose()?;
    let engine = state.prefs()?.engine(config.engine);
    let prepared = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| {
            runtime.block_on(Net::prepare(&config.device, engine, &config.state_dir));
        });
    if let Err(error) = prepared {
        tracing::warn!(%error, "the host could not be prepared for pinned counters");
    }
    // It takes a privilege that goes with the others; the engine may be another than today's later.
    tunnel::verdicts();
    match privileges::reduce(config.port, || state.is_writable()) {
        Ok(kept) => tracing::info!(%kept, "privileges dropped"),
        Err(error) => tracing::warn!(%error, "privileges could not be dropped"),
    }
    Ok(Daemon {
        config,
        state,
        server,
        metrics,
    })
}

/// Runs the daemon until SIGTERM or SIGINT; a kernel data plane outlives it.
///
/// # Errors
///
/// [`DaemonError`] before anything was changed, and [`DaemonError::Engine`].
pub async fn run(daemon: Daemon) -> Result<(), DaemonError> {
    let Daemon {
        config,
        state,
        server,
        metrics: metrics_listener,
    } = daemon;
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;

    let engine_config = EngineConfig {
        device: config.device.clone(),
        port: config.port,
        wireguard: config.engine,
        shield: config.shield,
        direct: config.direct,
        port_mapping: config.port_mapping,
        endpoints: config.endpoints.clone(),
    };
    let wireguard = state.prefs()?.engine(config.engine);
    if !Net::outlived(&config.device, wireguard).await {
        state.renew_disco()?;
    }
    let (engine, handle) = Engine::new(engine_config, state)?;
    tracing::info!(
        version = crate::VERSION,
        state = %config.state_dir.display(),
        socket = %config.socket.display(),
        "tailrace daemon started"
    );
    let writers = BTreeSet::from([0, rustix::process::geteuid().as_raw()]);
    let api = tokio::spawn(server.serve(handle.clone(), writers));
    let exporter =
        metrics_listener.map(|listener| tokio::spawn(metrics::serve(listener, handle.clone())));
    let running = tokio::spawn(engine.run());
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping, a kernel data plane stays"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping, a kernel data plane stays"),
        }
        handle.shutdown().await;
    };
    let ended = supervise(running, stop).await;
    api.abort();
    if let Some(exporter) = exporter {
        exporter.abort();
    }
    // The socket's file goes with the task that holds it.
    match api.await {
        Err(error) if error.is_panic() => tracing::error!(%error, "the local API failed"),
        _ => {}
    }
    ended
}

/// Waits for the engine's end, which only `stop` may bring about.
async fn supervise(
    mut engine: JoinHandle<()>,
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let early = tokio::select! {
        biased;
        () = stop => None,
        ended = &mut engine => Some(ended),
    };
    let stopped = early.is_none();
    let ended = match early {
        Some(ended) => ended,
        None => engine.await,
    };
    let problem = match ended {
        Ok(()) if stopped => return Ok(()),
        Ok(()) => "it returned".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(DaemonError::Engine { problem })
}

/// Flag > environment (both in `args`) > file > default.
fn configure(args: DaemonArgs, socket: Option<PathBuf>) -> Result<Config, ConfigError> {
    let file = match &args.config {
        Some(path) => settings::read(path).map_err(ConfigError::File)?,
        None => Settings::default(),
    };
    let flags = Settings {
        state_dir: args.state_dir,
        socket,
        device: args.device,
        port: args.port,
        wireguard: args.wireguard,
        shield: args.shield,
        metrics: args.metrics,
        direct: args.direct,
        port_mapping: args.port_mapping,
        endpoint: Some(args.endpoint).filter(|endpoints| !endpoints.is_empty()),
    };
    flags.or(file).into_config()
}

/// With feature `ebpf-log` this carries the eBPF programs' own records too: they come through the `log`
/// crate, which the subscriber listens to (`TAILRACE_LOG=info,ebpf=debug`).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_ends_by_itself_ends_the_daemon_with_an_error() {
        let failing = tokio::spawn(async { panic!("a bug") });
        let error = supervise(failing, std::future::pending()).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains("a bug"), "{text}");

        let returning = tokio::spawn(async {});
        let ended = supervise(returning, std::future::pending()).await;
        assert!(matches!(ended, Err(DaemonError::Engine { .. })));
    }

    #[tokio::test]
    async fn an_engine_that_was_stopped_is_no_error() {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let engine = tokio::spawn(async {
            let _ = stopped.await;
        });
        let stop = async {
            let _ = stop.send(());
        };
        supervise(engine, stop).await.unwrap();
    }
}
