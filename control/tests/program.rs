//! The program as it is run: certificates, the embedded relay, sudden death, administrators.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use control_proto::tailcfg::{MapResponse, RegisterRequest};
use keys::{MachinePublic, NodePrivate};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;

mod common;

use common::client::{Client, Identity, MapStream, server_key, server_key_over};
use common::derp::{self, Trust};
use common::program::Program;
use common::soon;

/// A node that is in.
struct Node {
    identity: Identity,
    client: Client,
    stream: MapStream,
    first: MapResponse,
}

impl Node {
    async fn join(program: &Program, hostname: &str, key_flags: &[&str]) -> Self {
        let key = server_key(program.address).await.unwrap();
        let secret = program.auth_key(key_flags);
        let identity = Identity::new(hostname);
        Self::enter(program.address, &key, identity, Some(&secret)).await
    }

    /// Registers and takes the first frame.
    async fn enter(
        address: SocketAddr,
        key: &MachinePublic,
        identity: Identity,
        secret: Option<&str>,
    ) -> Self {
        let client = Client::connect(address, key, &identity.machine)
            .await
            .unwrap();
        let answer = client.register(&identity.register(secret)).await.unwrap();
        assert!(answer.machine_authorized, "{answer:?}");
        let mut stream = client.map(&identity.stream()).await.unwrap();
        let first = soon(stream.next()).await.unwrap();
        Self {
            identity,
            client,
            stream,
            first,
        }
    }

    fn address(&self) -> String {
        self.first.node.as_ref().unwrap().addresses[0]
            .addr()
            .to_string()
    }
}

/// Host name and trust of the relay, as a map frame tells.
fn relay_of(frame: &MapResponse) -> (String, Option<String>) {
    let regions = frame.derp_map.as_ref().unwrap().regions.as_ref().unwrap();
    let region = regions.values().next().unwrap().as_ref().unwrap();
    let node = &region.nodes[0];
    let pin = Some(node.cert_name.clone()).filter(|name| !name.is_empty());
    (node.host_name.clone(), pin)
}

#[tokio::test]
async fn the_relay_serves_nodes_and_drops_those_that_lose_their_place() {
    let program = Program::start("http", &[]);
    let mut nodes = Vec::new();
    for name in ["deleted", "expired", "rekeyed", "stays"] {
        nodes.push(Node::join(&program, name, &[]).await);
    }
    let (host, pin) = relay_of(&nodes[0].first);
    let trust = Trust::Pin(pin.unwrap());
    let stranger = NodePrivate::generate();
    let refused = derp::Client::connect(program.derp, &host, &trust, &stranger).await;
    assert!(refused.is_none(), "nobody knows this key");

    let mut connections = Vec::new();
    for node in &nodes {
        let key = &node.identity.node;
        let connection = derp::Client::connect(program.derp, &host, &trust, key).await;
        connections.push(connection.expect("a node's key is admitted"));
    }
    let stays = connections.pop().unwrap();
    program.ok(&["nodes", "delete", "deleted"]);
    program.ok(&["nodes", "expire", "expired"]);
    let rekeyed = &mut nodes[2];
    let old = std::mem::replace(&mut rekeyed.identity.node, NodePrivate::generate());
    let secret = program.auth_key(&[]);
    let request = RegisterRequest {
        old_node_key: old.public(),
        ..rekeyed.identity.register(Some(&secret))
    };
    let answer = rekeyed.client.register(&request).await.unwrap();
    assert!(answer.machine_authorized, "{answer:?}");
    for connection in connections {
        connection.until_closed().await;
    }

    let mut keys = nodes.iter().map(|node| &node.identity.node);
    for admitted in [false, false, true, true] {
        let key = keys.next().unwrap();
        let connection = derp::Client::connect(program.derp, &host, &trust, key).await;
        assert_eq!(connection.is_some(), admitted);
    }
    let again = derp::Client::connect(program.derp, &host, &trust, &old).await;
    assert!(again.is_none(), "the key before the rotation is gone");
    drop(stays);
}

#[tokio::test]
async fn certificate_files_serve_nodes_and_the_relay_without_a_pin() {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let pair = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let leaf = params.signed_by(&pair, &ca).unwrap();
    let cert = folder.path().join("cert.pem");
    let key = folder.path().join("key.pem");
    std::fs::write(&cert, leaf.pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let program = Program::start("https", &["--tls-cert", cert, "--tls-key", key]);

    let trust = Trust::Root(ca.der().clone());
    let host = "127.0.0.1";
    let connect = || async { derp::tls(program.address, host, &trust).await.unwrap() };
    let noise_key = server_key_over(connect().await, host).await.unwrap();
    let identity = Identity::new("node");
    let client = Client::over(connect().await, host, &noise_key, &identity.machine)
        .await
        .unwrap();
    let waiting = client.register(&identity.register(None)).await.unwrap();
    let url = waiting.auth_url;
    assert!(url.starts_with(&format!("https://{}/", program.address)));
    program.ok(&["nodes", "approve", &url, "--user", "ann"]);
    let mut stream = client.map(&identity.stream()).await.unwrap();
    let first = soon(stream.next()).await.unwrap();

    let (name, pin) = relay_of(&first);
    assert_eq!((name.as_str(), pin), (host, None));
    let relay = derp::Client::connect(program.derp, &name, &trust, &identity.node).await;
    assert!(relay.is_some());
    assert!(
        derp::tls(program.address, "other.example", &trust)
            .await
            .is_err(),
        "this client checks names"
    );
}

#[tokio::test]
async fn a_new_host_brings_a_new_pin_and_nodes_are_told() {
    let mut program = Program::start("http", &[]);
    let node = Node::join(&program, "node", &[]).await;
    let (host, old_pin) = relay_of(&node.first);
    assert_eq!(host, "127.0.0.1");

    let port = program.address.port();
    program.kill_and_restart(&format!("http://localhost:{port}"), &[]);
    let key = server_key(program.address).await.unwrap();
    let node = Node::enter(program.address, &key, node.identity, None).await;

    let (host, pin) = relay_of(&node.first);
    assert_eq!(host, "localhost");
    assert_ne!(pin, old_pin);
    let trust = Trust::Pin(pin.unwrap());
    let relay = derp::Client::connect(program.derp, &host, &trust, &node.identity.node).await;
    assert!(relay.is_some(), "the pin is the certificate's");
    let outdated = Trust::Pin(old_pin.unwrap());
    assert!(derp::tls(program.derp, &host, &outdated).await.is_err());

    program.kill_and_restart(&format!("http://localhost:{port}"), &[]);
    let node = Node::enter(program.address, &key, node.identity, None).await;
    let (_, kept) = relay_of(&node.first);
    assert!(matches!(trust, Trust::Pin(pin) if Some(&pin) == kept.as_ref()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sudden_death_in_a_burst_of_joins_loses_nothing_acknowledged() {
    const NODES: usize = 60;
    const ENOUGH: usize = 20;
    let mut program = Program::start("http", &[]);
    let key = server_key(program.address).await.unwrap();
    let reusable = program.auth_key(&["--reusable"]);
    let address = program.address;
    let (acknowledged, mut acknowledgements) = tokio::sync::mpsc::unbounded_channel();
    let killed = Arc::new(AtomicBool::new(false));
    let joining: Vec<_> = (0..NODES)
        .map(|number| {
            let (reusable, acknowledged) = (reusable.clone(), acknowledged.clone());
            let killed = Arc::clone(&killed);
            tokio::spawn(async move {
                let identity = Identity::new(&format!("node{number}"));
                let join = async {
                    let client = Client::connect(address, &key, &identity.machine).await?;
                    let answer = client.register(&identity.register(Some(&reusable))).await?;
                    assert!(answer.machine_authorized, "{answer:?}");
                    let mut stream = client.map(&identity.stream()).await?;
                    let frame = stream.next().await?;
                    anyhow::Ok(frame.node.unwrap().addresses[0].addr().to_string())
                };
                match join.await {
                    Ok(address) => acknowledged.send((identity, address)).unwrap(),
                    Err(error) => assert!(killed.load(Ordering::SeqCst), "{error:#}"),
                }
            })
        })
        .collect();
    drop(acknowledged);
    let mut members = Vec::new();
    while members.len() < ENOUGH {
        members.push(soon(acknowledgements.recv()).await.unwrap());
    }
    killed.store(true, Ordering::SeqCst);
    program.kill();
    for join in joining {
        soon(join).await.unwrap();
    }
    while let Some(member) = soon(acknowledgements.recv()).await {
        members.push(member);
    }

    let url = format!("http://{address}");
    program.kill_and_restart(&url, &[]);
    assert!(members.len() >= ENOUGH);
    for (identity, before) in members {
        let node = Node::enter(address, &key, identity, None).await;
        assert_eq!(node.address(), before);
    }
    // Those that were not acknowledged are in or not; either way the key still lets them in.
    let late = Identity::new("late");
    Node::enter(address, &key, late, Some(&reusable)).await;
}

#[tokio::test]
async fn an_ephemeral_node_goes_once_it_has_been_offline_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("control.toml");
    std::fs::write(&config, "ephemeral_timeout = '1s'").unwrap();
    let program = Program::start("http", &["--config", config.to_str().unwrap()]);
    let mut stays = Node::join(&program, "stays", &[]).await;
    let goes = Node::join(&program, "goes", &["--ephemeral"]).await;
    let connected = Node::join(&program, "connected", &["--ephemeral"]).await;
    let id = goes.first.node.as_ref().unwrap().id;
    drop(goes);
    let gone = async {
        while !stays
            .stream
            .next()
            .await
            .unwrap()
            .peers_removed
            .contains(&id)
        {}
    };
    // The grace period and the timers take a while.
    tokio::time::timeout(3 * common::PATIENCE, gone)
        .await
        .unwrap();
    let names = names(&program);
    assert_eq!(names, ["stays", "connected"]);
    drop(connected);
}

fn names(program: &Program) -> Vec<String> {
    let list: Value = serde_json::from_str(&program.ok(&["nodes", "list", "--json"])).unwrap();
    let nodes = list["nodes"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| node["name"].as_str().unwrap().to_owned())
        .collect()
}

/// The command fails with one line that has all these words.
fn refused(program: &Program, args: &[&str], words: &[&str]) {
    let Output {
        status,
        stdout,
        stderr,
    } = program.command(args);
    let said = String::from_utf8(stderr).unwrap();
    assert!(!status.success(), "{args:?} succeeds");
    assert!(stdout.is_empty(), "{args:?} prints a result");
    assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
    assert!(said.starts_with("tailrace-control: "), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: {word:?} is not in {said}");
    }
}

#[tokio::test]
async fn mistakes_of_administrators_get_one_line_with_cause_and_remedy() {
    let program = Program::start("http", &[]);
    let node = Node::join(&program, "web", &[]).await;
    let other = Node::join(&program, "db", &[]).await;
    let client = &node.client;
    let waiting = Identity::new("laptop");
    let key = server_key(program.address).await.unwrap();
    let asking = Client::connect(program.address, &key, &waiting.machine)
        .await
        .unwrap();
    let url = asking
        .register(&waiting.register(None))
        .await
        .unwrap()
        .auth_url;
    let code = url.rsplit('/').next().unwrap().to_owned();

    let cases: &[(&[&str], &[&str])] = &[
        (&["users", "create", "ann"], &["ann", "exists already"]),
        (&["users", "create", "a b"], &["\"a b\"", "letters"]),
        (&["users", "delete", "bob"], &["no user bob", "users list"]),
        (&["users", "delete", "ann"], &["ann", "delete"]),
        (
            &["keys", "create", "--user", "bob"],
            &["no user bob", "users create bob"],
        ),
        (&["keys", "create"], &["--user"]),
        (
            &["keys", "create", "--user", "ann", "--expiry", "5x"],
            &["\"5x\"", "24h"],
        ),
        (
            &[
                "keys",
                "create",
                "--user",
                "ann",
                "--expiry",
                "99999999999d",
            ],
            &["--expiry"],
        ),
        (
            &["keys", "create", "--user", "ann", "--tags", "1a"],
            &["\"1a\"", "letter"],
        ),
        (&["keys", "revoke", "77"], &["77", "keys list"]),
        (&["keys", "revoke", "seven"], &["seven", "number"]),
        (&["nodes", "expire", "nas"], &["no node nas", "nodes list"]),
        (&["nodes", "delete", "100.64.0.99"], &["100.64.0.99"]),
        (&["nodes", "rename", "web", "db"], &["named db"]),
        (
            &["nodes", "rename", "web", "We b"],
            &["\"We b\"", "letters"],
        ),
        (&["nodes", "tag", "web", "tag:"], &["\"tag:\"", "letter"]),
        (
            &["nodes", "approve", "nonsense", "--user", "ann"],
            &["nonsense", "up"],
        ),
        (
            &["nodes", "approve", &code, "--user", "bob"],
            &["no user bob"],
        ),
        (&["nodes", "frobnicate"], &["frobnicate"]),
        (&["frobnicate"], &["frobnicate"]),
    ];
    for (args, words) in cases {
        refused(&program, args, words);
    }

    let list: Value = serde_json::from_str(&program.ok(&["keys", "list", "--json"])).unwrap();
    let id = list[0]["id"].to_string();
    program.ok(&["keys", "revoke", &id]);
    refused(&program, &["keys", "revoke", &id], &["revoked before"]);
    program.ok(&["nodes", "approve", &code, "--user", "ann"]);
    let again = ["nodes", "approve", &code, "--user", "ann"];
    refused(&program, &again, &["approved already", "up"]);
    assert_eq!(names(&program), ["web", "db", "laptop"]);
    // None of it did any harm to those who are in.
    client
        .update(&node.identity.lite(Vec::new()))
        .await
        .unwrap();
    drop(other);
}

#[tokio::test]
async fn every_reading_command_has_a_table_and_json() {
    let program = Program::start("http", &[]);
    let node = Node::join(&program, "web", &["--tags", "prod"]).await;
    program.ok(&["keys", "create", "--user", "ann", "--reusable"]);
    for command in [
        &["status"][..],
        &["users", "list"],
        &["keys", "list"],
        &["nodes", "list"],
    ] {
        let json = program.ok(&[command, &["--json"]].concat());
        let value: Value = serde_json::from_str(&json).unwrap();
        assert!(value.is_object() || value.is_array(), "{json}");
        let table = program.ok(command);
        assert!(table.lines().count() >= 2, "{table}");
        for line in table.lines() {
            assert_eq!(line.trim_end(), line, "no blanks at the end");
        }
    }
    let table = program.ok(&["nodes", "list"]);
    let columns: Vec<_> = ["web", "100.64.0.1", "tag:prod", "online", "linux"]
        .iter()
        .map(|cell| table.find(cell).expect(cell))
        .collect();
    assert!(columns.is_sorted(), "{table}");
    drop(node);
}
