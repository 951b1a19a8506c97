//! The local API on its socket: who may do what, and how bad requests are answered.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use agent::engine::{Engine, EngineConfig, Handle};
use agent::localapi::{BackendState, BindError, Client, ClientError, Server, Status};
use agent::net::{EngineChoice, ShieldMode};
use agent::prefs::Prefs;
use agent::state::StateDir;
use bytes::Bytes;
use http::{Method, StatusCode};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::task::JoinHandle;

#[tokio::test]
async fn everybody_reads_but_only_writers_write() {
    let daemon = Daemon::start(BTreeSet::new());
    let status: Status = daemon
        .client
        .json(Method::GET, "status", Bytes::new())
        .await
        .unwrap();
    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    for (method, path) in [
        (Method::PATCH, "prefs"),
        (Method::POST, "start"),
        (Method::POST, "login-interactive"),
        (Method::POST, "logout"),
    ] {
        let (status, message) = daemon.refusal(method, path, "{}").await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
        assert!(message.contains("--operator"), "{path}: {message}");
    }
    assert_eq!(daemon.prefs().await, Prefs::default());
}

#[tokio::test]
async fn the_operator_in_the_preferences_writes_too() {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective())
        .unwrap()
        .unwrap();
    let daemon = Daemon::start(BTreeSet::new());
    let patch = serde_json::json!({"OperatorUser": user.name, "OperatorUserSet": true});
    let serde_json::Value::Object(patch) = patch else {
        unreachable!("an object")
    };
    daemon.engine.edit_prefs(patch).await.unwrap();

    daemon
        .patch(r#"{"Hostname": "new", "HostnameSet": true}"#)
        .await;
    assert_eq!(daemon.prefs().await.hostname, "new");
}

#[tokio::test]
async fn a_changed_preference_is_on_disk() {
    let daemon = Daemon::start(own_uid());
    daemon
        .patch(r#"{"Hostname": "kept", "HostnameSet": true}"#)
        .await;
    let text = std::fs::read_to_string(daemon.folder.path().join("state/prefs.json")).unwrap();
    assert_eq!(
        serde_json::from_str::<Prefs>(&text).unwrap().hostname,
        "kept"
    );
}

#[tokio::test]
async fn a_request_that_makes_no_sense_says_why() {
    let daemon = Daemon::start(own_uid());
    for (method, path, body, status, word) in [
        (
            Method::GET,
            "nothing-here",
            "",
            StatusCode::NOT_FOUND,
            "not supported",
        ),
        (
            Method::POST,
            "status",
            "",
            StatusCode::METHOD_NOT_ALLOWED,
            "POST",
        ),
        (
            Method::PATCH,
            "prefs",
            "{",
            StatusCode::BAD_REQUEST,
            "not understood",
        ),
        (
            Method::PATCH,
            "prefs",
            r#"{"RunSSH":true,"RunSSHSet":true}"#,
            StatusCode::BAD_REQUEST,
            "RunSSH",
        ),
        (
            Method::PATCH,
            "prefs",
            r#"{"WantRunning":true,"WantRunningSet":true}"#,
            StatusCode::BAD_REQUEST,
            "--login-server",
        ),
        (
            Method::POST,
            "start",
            "{}",
            StatusCode::BAD_REQUEST,
            "--login-server",
        ),
        (
            Method::POST,
            "ping?ip=100.64.0.9&type=disco",
            "",
            StatusCode::NOT_FOUND,
            "100.64.0.9",
        ),
        (
            Method::POST,
            "ping?ip=x&type=disco",
            "",
            StatusCode::BAD_REQUEST,
            "address",
        ),
        (
            Method::GET,
            "whois?addr=100.64.0.9",
            "",
            StatusCode::NOT_FOUND,
            "100.64.0.9",
        ),
    ] {
        let (found, message) = daemon.refusal(method, path, body).await;
        assert_eq!(found, status, "{path} {body}: {message}");
        assert!(message.contains(word), "{path} {body}: {message}");
    }
}

#[tokio::test]
async fn an_unreachable_server_changes_nothing() {
    let daemon = Daemon::start(own_uid());
    // Bound and dropped: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let prefs = Prefs {
        control_url: format!("http://127.0.0.1:{port}"),
        want_running: true,
        ..Prefs::default()
    };
    let body = serde_json::json!({"UpdatePrefs": prefs}).to_string();
    let (status, message) = daemon.refusal(Method::POST, "start", &body).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(message.contains("cannot reach"), "{message}");
    assert_eq!(daemon.prefs().await, Prefs::default());
}

#[tokio::test]
async fn the_first_notification_is_the_present_state() {
    let daemon = Daemon::start(own_uid());
    let mut notices = daemon.client.watch().await.unwrap();
    let notice = notices.next().await.unwrap().unwrap();
    assert_eq!(notice.state, Some(BackendState::NeedsLogin.number()));
}

#[tokio::test]
async fn metrics_name_the_state() {
    let daemon = Daemon::start(own_uid());
    let text = daemon
        .client
        .request(Method::GET, "usermetrics", Bytes::new())
        .await
        .unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(
        text.contains(r#"tailrace_state{state="NeedsLogin"} 1"#),
        "{text}"
    );
}

#[tokio::test]
async fn a_second_daemon_on_the_socket_is_refused_and_a_dead_ones_is_replaced() {
    let daemon = Daemon::start(own_uid());
    assert!(matches!(
        Server::bind(&daemon.socket),
        Err(BindError::InUse(_))
    ));

    let stale = daemon.folder.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    Server::bind(&stale).unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let precious = folder.path().join("precious");
    std::fs::write(&precious, "text").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    for path in [&precious, &link] {
        let error = Server::bind(path).unwrap_err();
        assert!(matches!(&error, BindError::NotASocket(_)), "{error}");
        assert!(error.to_string().contains("--socket"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "text");
}

#[tokio::test]
async fn a_daemon_that_does_not_accept_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("busy.sock");
    let address = SockAddr::unix(&path).unwrap();
    let open = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let busy = open();
    busy.bind(&address).unwrap();
    busy.listen(0).unwrap();
    let waiting: Vec<Socket> = std::iter::repeat_with(open)
        .take_while(|socket| socket.connect(&address).is_ok())
        .collect();
    assert!(!waiting.is_empty());
    assert!(matches!(Server::bind(&path), Err(BindError::InUse(_))));
}

#[tokio::test]
async fn a_user_who_watches_too_often_is_refused_until_one_watch_ends() {
    let daemon = Daemon::start(BTreeSet::new());
    let mut watches = Vec::new();
    while let Ok(mut watch) = daemon.client.watch().await {
        // Served for sure, so its slot is taken.
        watch.next().await.unwrap().unwrap();
        watches.push(watch);
        assert!(watches.len() < 100, "no limit");
    }
    let served = daemon.client.request(Method::GET, "status", Bytes::new());
    assert!(served.await.is_err());

    watches.pop();
    let patience = tokio::time::Instant::now() + Duration::from_secs(10);
    while daemon
        .client
        .request(Method::GET, "status", Bytes::new())
        .await
        .is_err()
    {
        assert!(tokio::time::Instant::now() < patience, "no room was made");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn without_a_daemon_the_fix_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(&folder.path().join("none.sock"));
    let error = client
        .request(Method::GET, "status", Bytes::new())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("tailrace daemon --state-dir"),
        "{error}"
    );
}

/// An engine that never joined, and its socket.
struct Daemon {
    folder: tempfile::TempDir,
    socket: PathBuf,
    client: Client,
    engine: Handle,
    tasks: [JoinHandle<()>; 2],
}

impl Daemon {
    fn start(writers: BTreeSet<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let config = EngineConfig {
            direct: false,
            port_mapping: false,
            endpoints: Vec::new(),
            device: "unused0".to_owned(),
            port: 0,
            wireguard: EngineChoice::Embedded,
            shield: ShieldMode::Off,
        };
        let (engine, handle) = Engine::new(config, state).unwrap();
        let socket = folder.path().join("api.sock");
        let server = Server::bind(&socket).unwrap();
        let tasks = [
            tokio::spawn(engine.run()),
            tokio::spawn(server.serve(handle.clone(), writers)),
        ];
        Self {
            client: Client::new(&socket),
            folder,
            socket,
            engine: handle,
            tasks,
        }
    }

    async fn prefs(&self) -> Prefs {
        self.client
            .json(Method::GET, "prefs", Bytes::new())
            .await
            .unwrap()
    }

    async fn patch(&self, body: &str) {
        let body = Bytes::from(body.to_owned());
        self.client
            .request(Method::PATCH, "prefs", body)
            .await
            .unwrap();
    }

    async fn refusal(&self, method: Method, path: &str, body: &str) -> (StatusCode, String) {
        match self
            .client
            .request(method, path, Bytes::from(body.to_owned()))
            .await
        {
            Err(ClientError::Refused { status, message }) => (status, message),
            other => panic!("{path}: {other:?}"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn own_uid() -> BTreeSet<u32> {
    BTreeSet::from([nix::unistd::Uid::effective().as_raw()])
}
