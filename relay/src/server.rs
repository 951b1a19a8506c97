//! The DERP server: admits connections and runs them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use derp_proto::{ClientInfo, HandshakeError, Progress, ServerHandshake, ServerInfo};
use keys::{NodePrivate, NodePublic};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::admission::{Admission, Refusal};
use crate::metrics::Metrics;

pub use connection::Ended;
pub use mesh::{MeshKey, MeshKeyError};

use connection::Connection;
pub(crate) use outbox::Class;
use outbox::Outbox;
use registry::{Client, Registry, Traits};

mod connection;
mod mesh;
mod outbox;
mod registry;

/// How often admitted keys are checked again.
const SWEEP_INTERVAL: Duration = Duration::from_secs(300);

/// Time for connections to end when the server closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// Settings of a [`Server`].
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Who may connect. Default: everybody.
    pub admission: Admission,
    /// Key that proves another server of the same region. Default: none, so there is no mesh.
    pub mesh_key: Option<MeshKey>,
    /// Most bytes of data that wait for one client; the oldest packets go first. Default: 512 KiB,
    /// 40 ms at 100 Mbit/s. At least 128 KiB.
    pub queue_bytes: usize,
    /// A client that takes nothing for this long is disconnected. Default: 2 s; mesh servers get
    /// 30 s.
    pub write_timeout: Duration,
    /// Time between keepalives; each connection adds up to 5 s of its own. Default: 60 s.
    pub keepalive: Duration,
    /// Time for the handshake after the HTTP upgrade. Default: 10 s.
    pub handshake_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            admission: Admission::Open,
            mesh_key: None,
            queue_bytes: 512 << 10,
            write_timeout: Duration::from_secs(2),
            keepalive: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// A DERP server: one region's meeting point of connections. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    key: NodePrivate,
    config: ServerConfig,
    registry: Registry,
    metrics: Metrics,
    next_id: AtomicU64,
}

/// Why a connection never became a client's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The connection broke.
    #[error("connection broke during the DERP handshake: {0}")]
    Io(#[from] std::io::Error),
    /// The client does not speak DERP as it should.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The client took too long.
    #[error("no DERP handshake within the time for it")]
    Timeout,
    /// The client may not come in.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Server {
    /// A server that proves its identity by `key`.
    #[must_use]
    pub fn new(key: NodePrivate, config: ServerConfig) -> Self {
        let metrics = Metrics::new();
        Self(Arc::new(Inner {
            key,
            config,
            registry: Registry::new(metrics.clone()),
            metrics,
            next_id: AtomicU64::new(1),
        }))
    }

    /// The server's public key.
    #[must_use]
    pub fn public_key(&self) -> NodePublic {
        self.0.key.public()
    }

    /// Counters and gauges.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// How many keys are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.registry.len()
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all connections of `key`, such as a node that control removed; returns how many.
    ///
    /// Admission keeps it from coming back, not this.
    pub fn kick(&self, key: &NodePublic) -> usize {
        self.0.registry.kick(key)
    }

    /// Ends all connections.
    pub fn close(&self) {
        self.0.registry.close_all();
    }

    /// Ends all connections and waits, at most two seconds, until they are gone.
    pub async fn close_and_wait(&self) {
        self.close();
        let gone = async {
            while !self.is_empty() {
                tokio::time::sleep(CLOSE_POLL).await;
            }
        };
        if timeout(CLOSE_TIMEOUT, gone).await.is_err() {
            tracing::warn!(clients = self.len(), "connections left open");
        }
    }

    /// Asks admission again about everybody who is connected, and ends the connections of those
    /// that it denies; returns how many. A verification service that does not answer puts nobody
    /// out.
    pub async fn sweep(&self) -> usize {
        let mut ended = 0;
        for (key, remote) in self.0.registry.clients() {
            match self.0.config.admission.admit(key, remote.ip()).await {
                Ok(()) => {}
                Err(Refusal::Denied(_)) => ended += self.kick(&key),
                Err(refusal @ Refusal::Unverified { .. }) => {
                    tracing::warn!(%refusal, "sweep broken off");
                    break;
                }
            }
        }
        ended
    }

    /// Sweeps every five minutes, for ever.
    pub async fn sweep_forever(&self) {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        interval.tick().await;
        loop {
            interval.tick().await;
            let ended = self.sweep().await;
            if ended > 0 {
                tracing::info!(ended, "admission withdrawn");
            }
        }
    }

    /// Runs one connection after its HTTP upgrade until it ends.
    ///
    /// `buffered` is what was read behind the HTTP request. `remote` goes to admission and to mesh
    /// watchers.
    ///
    /// # Errors
    ///
    /// [`ServeError`] if it never became a client's. Otherwise tells how it [`Ended`].
    pub async fn serve<T>(
        &self,
        io: T,
        remote: SocketAddr,
        buffered: Bytes,
    ) -> Result<Ended, ServeError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_hinted(io, remote, buffered, false).await
    }

    /// Like [`Server::serve`]; `not_ideal` if the client had to take this server for another.
    pub(crate) async fn serve_hinted<T>(
        &self,
        mut io: T,
        remote: SocketAddr,
        buffered: Bytes,
        not_ideal: bool,
    ) -> Result<Ended, ServeError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Inner {
            config, metrics, ..
        } = &*self.0;
        let mut incoming = BytesMut::from(buffered);
        // Boxed, so that the long life of a connection does not keep room for its short beginning.
        let admitted = Box::pin(timeout(
            config.handshake_timeout,
            self.handshake(&mut io, remote, &mut incoming),
        ))
        .await;
        // The greeting goes out once others reach the client: it is what the client waits for.
        let (key, info, greeting) = match admitted.map_err(|_| ServeError::Timeout).flatten() {
            Ok(admitted) => admitted,
            Err(error) => {
                match error {
                    ServeError::Refused(_) => metrics.refused.inc(),
                    _ => metrics.failed_handshakes.inc(),
                }
                return Err(error);
            }
        };
        let traits = Traits {
            mesh: self.is_mesh(&info),
            prober: info.is_prober,
            not_ideal,
        };
        let client = Arc::new(Client::new(
            self.0.next_id.fetch_add(1, Ordering::Relaxed),
            key,
            remote,
            traits,
            Outbox::new(config.queue_bytes.max(128 << 10)).timed(metrics.queue_times.clone()),
        ));
        let connection = Connection::new(self.clone(), client, io, incoming, greeting);
        if !traits.mesh
            && let Err(refusal) = config.admission.confirm(key)
        {
            metrics.refused.inc();
            return Err(refusal.into());
        }
        metrics.accepted.inc();
        Ok(connection.run().await)
    }

    async fn handshake<T>(
        &self,
        io: &mut T,
        remote: SocketAddr,
        incoming: &mut BytesMut,
    ) -> Result<(NodePublic, ClientInfo, Bytes), ServeError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let mut outgoing = BytesMut::new();
        let mut handshake = ServerHandshake::new(&self.0.key, &mut outgoing);
        io.write_all_buf(&mut outgoing).await?;
        io.flush().await?;
        let (key, info) = loop {
            match handshake.handle_input(incoming)? {
                Progress::Done { consumed, result } => {
                    incoming.advance(consumed);
                    break result;
                }
                Progress::NeedMore { consumed } => incoming.advance(consumed),
            }
            if io.read_buf(incoming).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        };
        if !self.is_mesh(&info) {
            self.0.config.admission.admit(key, remote.ip()).await?;
        }
        handshake.accept(&key, &ServerInfo::unlimited(), &mut outgoing)?;
        Ok((key, info, outgoing.freeze()))
    }

    fn is_mesh(&self, info: &ClientInfo) -> bool {
        let ours = self.0.config.mesh_key.as_ref();
        ours.is_some_and(|ours| ours.matches(&info.mesh_key))
    }
}
