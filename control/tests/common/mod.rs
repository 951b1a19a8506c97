//! A server on loopback, and simulated nodes that speak to it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control::engine::MapSettings;
use control::http::Front;
use control::model::DEFAULT_TAILNET;
use control::service::{AuthKeyRequest, Control, Settings};
use control::store::sqlite::SqliteStore;
use control_proto::tailcfg::{DerpMap, MapResponse};
use keys::{MachinePrivate, MachinePublic};
use tokio::net::TcpListener;

// The same simulated node that the bench measures with.
#[path = "../../../bench/src/control/client.rs"]
pub(crate) mod client;
pub(crate) mod derp;
pub(crate) mod program;

use client::{Client, Identity, MapStream};

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub(crate) struct Server {
    pub(crate) control: Arc<Control>,
    pub(crate) address: SocketAddr,
    pub(crate) key: MachinePublic,
    pub(crate) folder: tempfile::TempDir,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Starts one with a user named ann; `adjust` changes its settings.
    pub(crate) async fn start(adjust: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Self::start_in(folder, adjust).await;
        server.control.create_user("ann").await.unwrap();
        server
    }

    /// Starts one on what an earlier one left.
    pub(crate) async fn start_in(
        folder: tempfile::TempDir,
        adjust: impl FnOnce(&mut Settings),
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let path = folder.path().join("control.db");
        let store = Arc::new(SqliteStore::open(&path, DEFAULT_TAILNET).await.unwrap());
        let mut settings = Settings::new(&format!("http://{address}"));
        adjust(&mut settings);
        let map = MapSettings::new("tailnet.internal", &DerpMap::default());
        let control = Control::open(store, settings, map).await.unwrap();
        let private = MachinePrivate::generate();
        let key = private.public();
        let front = Front::new(Arc::clone(&control), private);
        let serving = tokio::spawn(front.serve(listener, None));
        Self {
            control,
            address,
            key,
            folder,
            serving,
        }
    }

    /// Stops it and returns its state.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.serving.abort();
        self.control.shut_down().await;
        self.folder
    }

    /// An auth key of ann's.
    pub(crate) async fn auth_key(&self, adjust: impl FnOnce(&mut AuthKeyRequest)) -> String {
        let mut ask = AuthKeyRequest {
            user: "ann".to_owned(),
            reusable: false,
            ephemeral: false,
            tags: Vec::new(),
            valid_for: Duration::from_secs(3600),
        };
        adjust(&mut ask);
        self.control.create_auth_key(ask).await.unwrap().secret
    }

    pub(crate) async fn connect(&self, identity: &Identity) -> Client {
        Client::connect(self.address, &self.key, &identity.machine)
            .await
            .unwrap()
    }

    /// A node that is in, with its stream and first frame.
    pub(crate) async fn join(&self, hostname: &str) -> Joined {
        let identity = Identity::new(hostname);
        let client = self.connect(&identity).await;
        let key = self.auth_key(|_| {}).await;
        let answer = client
            .register(&identity.register(Some(&key)))
            .await
            .unwrap();
        assert_eq!(answer.error, "");
        let mut stream = client.map(&identity.stream()).await.unwrap();
        let first = soon(stream.next()).await.unwrap();
        Joined {
            identity,
            client,
            stream,
            first,
        }
    }
}

/// A node that is in.
pub(crate) struct Joined {
    pub(crate) identity: Identity,
    pub(crate) client: Client,
    pub(crate) stream: MapStream,
    pub(crate) first: MapResponse,
}

impl Joined {
    pub(crate) fn id(&self) -> control::model::NodeId {
        self.first.node.as_ref().unwrap().id
    }

    /// Reads frames until one fits.
    pub(crate) async fn until(&mut self, fits: impl Fn(&MapResponse) -> bool) -> MapResponse {
        let reading = async {
            loop {
                let frame = self.stream.next().await.unwrap();
                if fits(&frame) {
                    return frame;
                }
            }
        };
        soon(reading).await
    }

    /// Reads to the end of the stream.
    pub(crate) async fn until_closed(&mut self) {
        soon(async { while let Ok(Some(_)) = self.stream.next_raw().await {} }).await;
    }
}

/// Fails a test that would hang.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
}
