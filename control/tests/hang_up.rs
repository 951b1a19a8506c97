//! Whoever hangs up between the commit of a change and its answer: what is in the database reaches
//! the nodes all the same.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use control::admin::Socket;
use control::engine::MapSettings;
use control::model::{AuthKey, AuthKeyId, DEFAULT_TAILNET, Node, NodeId, Role, User, UserId};
use control::service::{AuthKeyRequest, Control, Settings};
use control::store::sqlite::SqliteStore;
use control::store::{
    Committed, Loaded, NewAuthKey, NewPolicy, Pending, PolicyEntry, Store, StoredPolicy,
};
use control_proto::tailcfg::DerpMap;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Notify;

mod common;

use common::client::Identity;
use common::soon;

/// A database that takes its time to say that nodes and policies are committed.
struct Slow {
    inner: SqliteStore,
    committed: Notify,
    go_on: Notify,
}

impl Slow {
    async fn pause(&self) {
        self.committed.notify_one();
        self.go_on.notified().await;
    }
}

impl Store for Slow {
    fn insert_node<'a>(
        &'a self,
        node: &'a Node,
        address_cursor: u32,
        spend: Option<AuthKeyId>,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<NodeId>> {
        async move {
            let inserting = self.inner.insert_node(node, address_cursor, spend, now);
            let inserted = inserting.await;
            self.pause().await;
            inserted
        }
        .boxed()
    }

    fn set_policy<'a>(&'a self, new: &'a NewPolicy) -> Pending<'a, Committed<StoredPolicy>> {
        async move {
            let set = self.inner.set_policy(new).await;
            self.pause().await;
            set
        }
        .boxed()
    }

    fn load(&self) -> Pending<'_, Loaded> {
        self.inner.load()
    }

    fn create_user<'a>(
        &'a self,
        name: &'a str,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<User>> {
        self.inner.create_user(name, now)
    }

    fn set_role(&self, id: UserId, role: Role) -> Pending<'_, Committed<Vec<User>>> {
        self.inner.set_role(id, role)
    }

    fn delete_user(&self, id: UserId) -> Pending<'_, Committed<()>> {
        self.inner.delete_user(id)
    }

    fn create_auth_key<'a>(
        &'a self,
        key: &'a NewAuthKey,
        secret_hash: &'a str,
    ) -> Pending<'a, Committed<AuthKey>> {
        self.inner.create_auth_key(key, secret_hash)
    }

    fn auth_keys(&self) -> Pending<'_, Vec<AuthKey>> {
        self.inner.auth_keys()
    }

    fn find_auth_key<'a>(&'a self, secret_hash: &'a str) -> Pending<'a, Option<AuthKey>> {
        self.inner.find_auth_key(secret_hash)
    }

    fn revoke_auth_key(&self, id: AuthKeyId, now: OffsetDateTime) -> Pending<'_, Committed<bool>> {
        self.inner.revoke_auth_key(id, now)
    }

    fn update_node<'a>(
        &'a self,
        node: &'a Node,
        spend: Option<AuthKeyId>,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<()>> {
        self.inner.update_node(node, spend, now)
    }

    fn delete_node(&self, id: NodeId) -> Pending<'_, Committed<()>> {
        self.inner.delete_node(id)
    }

    fn save_reports<'a>(&'a self, nodes: &'a [Node]) -> Pending<'a, ()> {
        self.inner.save_reports(nodes)
    }

    fn policies(&self) -> Pending<'_, Vec<PolicyEntry>> {
        self.inner.policies()
    }

    fn policy(&self, version: Option<i64>) -> Pending<'_, Option<StoredPolicy>> {
        self.inner.policy(version)
    }

    fn check(&self) -> Pending<'_, ()> {
        self.inner.check()
    }

    fn size(&self) -> Pending<'_, u64> {
        self.inner.size()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

/// A server on a slow database, with a user named ann.
async fn start(folder: &tempfile::TempDir) -> (Arc<Slow>, Arc<Control>) {
    let path = folder.path().join("control.db");
    let store = Arc::new(Slow {
        inner: SqliteStore::open(&path, DEFAULT_TAILNET).await.unwrap(),
        committed: Notify::new(),
        go_on: Notify::new(),
    });
    let settings = Settings::new("http://127.0.0.1");
    let map = MapSettings::new("tailnet.internal", &DerpMap::default());
    let opening = Control::open(Arc::clone(&store) as Arc<dyn Store>, settings, map);
    let control = opening.await.unwrap();
    control.create_user("ann").await.unwrap();
    (store, control)
}

/// Returns when the write that is under way is done with: this one waits for its turn.
async fn settled(control: &Control) {
    soon(control.create_user("bob")).await.unwrap();
}

#[tokio::test]
async fn a_node_that_hangs_up_while_it_is_let_in_is_in() {
    let folder = tempfile::tempdir().unwrap();
    let (store, control) = start(&folder).await;
    let ask = AuthKeyRequest {
        user: "ann".to_owned(),
        reusable: false,
        ephemeral: false,
        tags: Vec::new(),
        valid_for: std::time::Duration::from_secs(60),
    };
    let key = control.create_auth_key(ask).await.unwrap().secret;
    let identity = Identity::new("web");
    let request = identity.register(Some(&key));
    let mut registering = Box::pin(control.register(identity.machine.public(), request));
    tokio::select! {
        answer = &mut registering => panic!("{answer:?}"),
        () = soon(store.committed.notified()) => {}
    }
    drop(registering);
    store.go_on.notify_one();
    settled(&control).await;
    let stored = store.load().await.unwrap().nodes;
    let stored: BTreeSet<_> = stored.iter().map(|node| &*node.name).collect();
    assert_eq!(stored, BTreeSet::from(["web"]));
    control.find_node("web").unwrap();
    control.shut_down().await;
}

/// Sends a request to the admin socket.
async fn ask(folder: &tempfile::TempDir, head: &str, body: &str) -> UnixStream {
    let path = folder.path().join("admin.sock");
    let mut socket = UnixStream::connect(path).await.unwrap();
    let request = format!(
        "{head} HTTP/1.1\r\nHost: control\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn a_policy_whose_author_hangs_up_is_in_force_if_it_is_stored() {
    const DENY_ALL: &str = r#"{"acls": []}"#;
    let folder = tempfile::tempdir().unwrap();
    let (store, control) = start(&folder).await;
    let socket = Socket::bind(&folder.path().join("admin.sock")).unwrap();
    let serving = Arc::clone(&control);
    let serving = tokio::spawn(async move { socket.serve(serving).await });

    let draft = serde_json::json!({"name": "policy", "text": DENY_ALL}).to_string();
    let setting = ask(&folder, "POST /v1/policy", &draft).await;
    soon(store.committed.notified()).await;
    drop(setting);
    // It is served after the end of the other connection was seen.
    let mut status = ask(&folder, "GET /v1/status", "").await;
    let mut answer = String::new();
    soon(status.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    store.go_on.notify_one();
    settled(&control).await;
    assert_eq!(store.load().await.unwrap().policy.unwrap().text, DENY_ALL);
    assert_eq!(*control.engine().policy().text, *DENY_ALL);
    let standing = control.policy_standing();
    assert_eq!(standing.version.unwrap().number, 1);
    serving.abort();
    control.shut_down().await;
}
