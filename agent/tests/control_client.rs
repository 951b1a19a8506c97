//! The control client against the real coordination server, on loopback.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::control::{Control, ControlConfig, ControlError, Event, Login, ServerUrl, hostinfo};
use agent::state::StateDir;
use control::engine::MapSettings;
use control::http::Front;
use control::model::DEFAULT_TAILNET;
use control::service::{AuthKeyRequest, Settings};
use control::store::sqlite::SqliteStore;
use control_proto::Timestamp;
use control_proto::netmap::NetMap;
use control_proto::tailcfg::{DerpMap, NetInfo};
use keys::{MachinePrivate, NodePublic};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_node_joins_and_comes_back_when_the_server_does() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", server.auth_key().await);
    node.until_authorised().await;
    let before = node.until_map(|_| true).await;
    assert_eq!(before.node.label(), "alice");

    let server = server.restart().await;
    let after = node.until_first_map().await;
    assert_eq!(after.node.addresses, before.node.addresses);
    assert_eq!(after.node.key, before.node.key);
    drop(server);
}

#[tokio::test]
async fn peers_hear_of_the_home_relay_by_a_lite_update() {
    let server = Server::start().await;
    let mut alice = Node::start(&server, "alice", server.auth_key().await);
    alice.until_map(|_| true).await;
    let mut bob = Node::start(&server, "bob", server.auth_key().await);
    bob.until_map(|map| map.peers.values().any(|peer| peer.label() == "alice"))
        .await;

    alice.control.set_net_info(NetInfo {
        preferred_derp: 900,
        ..NetInfo::default()
    });
    let disco = alice.disco;
    bob.until_map(|map| {
        let alice = map.peers.values().find(|peer| peer.label() == "alice");
        alice.is_some_and(|alice| alice.home_derp() == Some(900) && alice.disco_key == disco)
    })
    .await;
}

#[tokio::test]
async fn a_wrong_auth_key_is_refused_once_and_leaves_the_keys_alone() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", Some("wrong".to_owned()));
    let identity = std::fs::read(node.folder.path().join("identity.json")).unwrap();
    match node.event().await {
        Event::LoginRefused(words) => assert!(!words.is_empty()),
        other => panic!("{other:?}"),
    }
    let servers_aside = |text: &[u8]| {
        let mut value: serde_json::Value = serde_json::from_slice(text).unwrap();
        value.as_object_mut().unwrap().remove("Servers");
        value
    };
    let now = std::fs::read(node.folder.path().join("identity.json")).unwrap();
    assert_eq!(servers_aside(&identity), servers_aside(&now));

    let auth_key = server.auth_key().await;
    assert!(node.control.login(Login {
        auth_key,
        fresh_key: false
    }));
    node.until_authorised().await;
    node.until_map(|_| true).await;
}

#[tokio::test]
async fn without_an_auth_key_a_person_approves() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", None);
    let url = node.until_url().await;
    let code = url.rsplit('/').next().unwrap();
    server.control.approve(code, "ann").await.unwrap();
    node.until_authorised().await;
    let map = node.until_map(|_| true).await;
    assert_eq!(map.node.label(), "alice");
}

#[tokio::test]
async fn the_old_key_works_until_the_new_one_is_authorised() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", server.auth_key().await);
    let old = node.until_map(|_| true).await;

    assert!(node.control.login(Login {
        auth_key: None,
        fresh_key: true
    }));
    let url = node.until_url().await;
    assert_eq!(node.stored_key(), old.node.key, "nothing is authorised yet");
    // The stream of the old key goes on meanwhile.
    server
        .control
        .rename_node("alice", "still-here")
        .await
        .unwrap();
    node.until_map(|map| map.node.label() == "still-here" && map.node.key == old.node.key)
        .await;

    server
        .control
        .approve(url.rsplit('/').next().unwrap(), "ann")
        .await
        .unwrap();
    node.until_authorised().await;
    let new = node.until_first_map().await;
    assert_ne!(new.node.key, old.node.key);
    assert_eq!(new.node.addresses, old.node.addresses);
    assert_eq!(node.stored_key(), new.node.key);
}

#[tokio::test]
async fn an_expired_node_returns_with_a_new_key_and_the_same_address() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", server.auth_key().await);
    let old = node.until_map(|_| true).await;
    server.control.expire_node("alice").await.unwrap();
    let expired = |map: &NetMap| {
        map.node
            .is_expired(Timestamp::from(std::time::SystemTime::now()))
    };
    node.until_map(expired).await;

    let auth_key = server.auth_key().await;
    assert!(node.control.login(Login {
        auth_key,
        fresh_key: true
    }));
    node.until_authorised().await;
    let new = node.until_first_map().await;
    assert_ne!(new.node.key, old.node.key);
    assert_eq!(new.node.addresses, old.node.addresses);
}

#[tokio::test]
async fn another_server_key_over_plain_http_is_refused_until_the_operator_agrees() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", server.auth_key().await);
    node.until_map(|_| true).await;

    let server = server.restart_with(MachinePrivate::generate()).await;
    let problem = loop {
        if let Event::Problem(error @ ControlError::KeyChanged { .. }) = node.event().await {
            break error;
        }
    };
    assert!(problem.to_string().contains("tailrace up"), "{problem}");

    let mut node = node.again(&server, true).await;
    assert!(matches!(node.event().await, Event::KeyChanged(_)));
    node.until_map(|_| true).await;
}

#[tokio::test]
async fn logging_out_expires_the_node_and_forgets_its_key() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", server.auth_key().await);
    let map = node.until_map(|_| true).await;
    assert!(node.control.logout());
    loop {
        if let Event::LoggedOut(stored) = node.event().await {
            stored.unwrap();
            break;
        }
    }
    assert_ne!(node.stored_key(), map.node.key);
}

#[tokio::test]
async fn a_logout_that_the_server_cannot_hear_changes_nothing() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", server.auth_key().await);
    let map = node.until_map(|_| true).await;
    let _stopped = server.stop().await;
    loop {
        if let Event::Problem(_) = node.event().await {
            break;
        }
    }
    assert!(node.control.logout());
    let error = loop {
        if let Event::LogoutFailed(error) = node.event().await {
            break error;
        }
    };
    assert!(error.to_string().contains("cannot reach"), "{error}");
    assert_eq!(node.stored_key(), map.node.key);
}

#[tokio::test]
async fn maps_that_are_refused_are_asked_for_ever_more_slowly() {
    let server = Server::start().await;
    let mut node = Node::start(&server, "alice", server.auth_key().await);
    node.until_first_map().await;
    let start = Instant::now();
    for _ in 0..3 {
        assert!(node.control.reconnect("a map that makes no sense"));
        let problem = loop {
            if let Event::Problem(problem) = node.event().await {
                break problem;
            }
        };
        assert!(problem.to_string().contains("makes no sense"), "{problem}");
        node.until_first_map().await;
    }
    // At least half of 0.5, 1 and 2 s.
    assert!(start.elapsed() >= Duration::from_millis(1750));
}

#[tokio::test]
async fn a_stranger_on_the_port_is_called_no_coordination_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stranger = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 mail.example ESMTP\r\n")
            .await
            .unwrap();
        stream
    });
    let error = agent::control::fetch_server_key(&ServerUrl::parse(&url).unwrap())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not look like a coordination server"),
        "{error}"
    );
    drop(stranger);
}

/// A coordination server with a user named ann.
struct Server {
    control: Arc<control::service::Control>,
    address: SocketAddr,
    noise_key: MachinePrivate,
    folder: tempfile::TempDir,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let server = Self::start_in(folder, any, MachinePrivate::generate()).await;
        server.control.create_user("ann").await.unwrap();
        server
    }

    async fn start_in(
        folder: tempfile::TempDir,
        address: SocketAddr,
        noise_key: MachinePrivate,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let path = folder.path().join("control.db");
        let store = Arc::new(SqliteStore::open(&path, DEFAULT_TAILNET).await.unwrap());
        let map = MapSettings::new("tailnet.internal", &DerpMap::default());
        let settings = Settings::new(&format!("http://{address}"));
        let control = control::service::Control::open(store, settings, map)
            .await
            .unwrap();
        let front = Front::new(Arc::clone(&control), noise_key.clone());
        let serving = tokio::spawn(front.serve(listener, None));
        Self {
            control,
            address,
            noise_key,
            folder,
            serving,
        }
    }

    async fn stop(self) -> (tempfile::TempDir, SocketAddr, MachinePrivate) {
        self.serving.abort();
        // Waits for its end, so that the port is free.
        let _ = self.serving.await;
        self.control.shut_down().await;
        (self.folder, self.address, self.noise_key)
    }

    async fn restart(self) -> Self {
        let (folder, address, noise_key) = self.stop().await;
        Self::start_in(folder, address, noise_key).await
    }

    async fn restart_with(self, noise_key: MachinePrivate) -> Self {
        let (folder, address, _) = self.stop().await;
        Self::start_in(folder, address, noise_key).await
    }

    async fn auth_key(&self) -> Option<String> {
        let ask = AuthKeyRequest {
            user: "ann".to_owned(),
            reusable: false,
            ephemeral: false,
            tags: Vec::new(),
            valid_for: Duration::from_secs(3600),
        };
        Some(self.control.create_auth_key(ask).await.unwrap().secret)
    }
}

/// A control client and what it keeps.
struct Node {
    control: Control,
    events: mpsc::Receiver<Event>,
    state: Arc<StateDir>,
    folder: tempfile::TempDir,
    disco: keys::DiscoPublic,
    map: Option<NetMap>,
}

impl Node {
    fn start(server: &Server, hostname: &str, auth_key: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(folder.path()).unwrap());
        Self::start_in(
            server,
            hostname,
            folder,
            state,
            Login {
                auth_key,
                fresh_key: false,
            },
            false,
        )
    }

    fn start_in(
        server: &Server,
        hostname: &str,
        folder: tempfile::TempDir,
        state: Arc<StateDir>,
        start: Login,
        accept_new_key: bool,
    ) -> Self {
        let identity = state.identity().unwrap();
        let disco = identity.disco.public();
        let config = ControlConfig {
            endpoints: Vec::new(),
            server: ServerUrl::parse(&format!("http://{}", server.address)).unwrap(),
            hostinfo: hostinfo(hostname, &identity.log_id),
            accept_new_key,
            start,
        };
        let (control, events) = Control::start(config, Arc::clone(&state), identity);
        Self {
            control,
            events,
            state,
            folder,
            disco,
            map: None,
        }
    }

    /// Stops the client and starts another on the same state.
    async fn again(self, server: &Server, accept_new_key: bool) -> Self {
        self.control.stop().await;
        Self::start_in(
            server,
            "alice",
            self.folder,
            self.state,
            Login::default(),
            accept_new_key,
        )
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("in time")
            .expect("a live client")
    }

    async fn until_authorised(&mut self) {
        while !matches!(self.next_applied().await, Event::Authorised) {}
    }

    async fn until_url(&mut self) -> String {
        loop {
            if let Event::LoginUrl(url) = self.next_applied().await {
                return url;
            }
        }
    }

    async fn until_first_map(&mut self) -> NetMap {
        self.map = None;
        self.until_map(|_| true).await
    }

    async fn until_map(&mut self, fits: impl Fn(&NetMap) -> bool) -> NetMap {
        loop {
            if let Some(map) = &self.map
                && fits(map)
            {
                return map.clone();
            }
            self.next_applied().await;
        }
    }

    /// The next event; a frame of the map is applied on the way, a later one of a stream we dropped is not.
    async fn next_applied(&mut self) -> Event {
        let event = self.event().await;
        let now = Timestamp::from(std::time::SystemTime::now());
        if let Event::Map {
            first,
            node_key,
            response,
        } = &event
        {
            let frame = response.as_ref().clone();
            if *first {
                self.map = Some(NetMap::first(node_key.public(), frame, now).unwrap().0);
            } else if let Some(map) = &mut self.map {
                map.apply(frame, now).unwrap();
            }
        }
        event
    }

    fn stored_key(&self) -> NodePublic {
        node_key_in(self.state.path())
    }
}

/// The node key in the state folder, read past the program.
fn node_key_in(folder: &Path) -> NodePublic {
    let text = std::fs::read(folder.join("identity.json")).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
    value["Node"]
        .as_str()
        .unwrap()
        .parse::<keys::NodePrivate>()
        .unwrap()
        .public()
}
