//! Simulated nodes against a real server: TCP, Noise, HTTP/2, SQLite.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

use std::time::Duration;

use control::model::NodeId;
use control_proto::capver::CapabilityVersion;
use control_proto::tailcfg::{Compress, MapRequest, MapResponse, RegisterRequest};
use control_proto::{Timestamp, json};
use http::StatusCode;
use keys::{MachinePrivate, NodePrivate};

mod common;

use common::client::{Client, Identity, finish, server_key};
use common::{Server, soon};

fn mentions(frame: &MapResponse, id: NodeId) -> bool {
    frame.peers_changed.iter().any(|peer| peer.id == id)
        || frame
            .peers_changed_patch
            .iter()
            .any(|patch| patch.node_id == id)
}

#[tokio::test]
async fn the_first_frame_brings_a_node_to_running() {
    let server = Server::start(|_| {}).await;
    let node = server.join("Web Server.local").await;

    let own = node.first.node.as_ref().unwrap();
    assert_eq!(own.key, node.identity.node.public());
    assert_eq!(own.name, "web-server.tailnet.internal.");
    assert_eq!(own.addresses[0].to_string(), "100.64.0.1/32");
    assert_eq!(own.addresses.len(), 2);
    assert!(own.machine_authorized && !own.key_expiry.is_zero());
    let filters = node.first.packet_filters.value().unwrap();
    let base = filters["base"].as_ref().unwrap();
    assert!(control_proto::tailcfg::allows_everything(base));
    assert_eq!(
        node.first.user_profiles[0].login_name,
        "ann@tailnet.internal"
    );
    assert!(node.first.debug.as_ref().unwrap().disable_log_tail);
    assert_eq!(node.first.collect_services.value(), Some(&false));
    assert!(node.first.ssh_policy.as_ref().unwrap().rules.is_empty());
    assert!(node.first.control_time.is_some());
    assert!(node.first.dns_config.as_ref().unwrap().routes["tailnet.internal."].is_empty());
    assert!(
        node.first.peers.is_absent(),
        "an empty list costs clients a rebuild"
    );
}

#[tokio::test]
async fn a_second_node_appears_and_its_endpoints_follow() {
    let server = Server::start(|_| {}).await;
    let mut first = server.join("first").await;
    let second = server.join("second").await;
    let id = second.id();
    let peers = second.first.peers.value().unwrap();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].online, Some(true));

    let added = first.until(|frame| mentions(frame, id)).await;
    assert_eq!(added.peers_changed[0].key, second.identity.node.public());
    assert!(
        added
            .user_profiles
            .iter()
            .any(|profile| profile.id == added.peers_changed[0].user)
    );

    let endpoint = "192.0.2.7:41641".parse().unwrap();
    second
        .client
        .update(&second.identity.lite(vec![endpoint]))
        .await
        .unwrap();
    let patched = |frame: &MapResponse| {
        frame
            .peers_changed_patch
            .iter()
            .any(|patch| patch.endpoints.is_some())
    };
    let frame = first.until(patched).await;
    let patch = frame
        .peers_changed_patch
        .iter()
        .find(|patch| patch.node_id == id)
        .unwrap();
    assert_eq!(patch.endpoints.as_deref(), Some(&[endpoint][..]));
    assert_eq!(
        patch.derp_region, 0,
        "the home relay was known from the registration"
    );
    assert_eq!(patch.disco_key, Some(second.identity.disco.public()));
    assert!(frame.node.is_none() && frame.derp_map.is_none() && frame.packet_filters.is_absent());
}

#[tokio::test]
async fn an_update_that_changes_nothing_reaches_nobody() {
    let server = Server::start(|_| {}).await;
    let mut first = server.join("first").await;
    let second = server.join("second").await;
    let endpoints = vec!["192.0.2.7:41641".parse().unwrap()];
    second
        .client
        .update(&second.identity.lite(endpoints.clone()))
        .await
        .unwrap();
    for _ in 0..3 {
        second
            .client
            .update(&second.identity.lite(endpoints.clone()))
            .await
            .unwrap();
    }
    // What comes after them is next in the queue: nothing of them is in between.
    let third = server.join("third").await;

    let mut patches = 0;
    loop {
        let frame = soon(first.stream.next()).await.unwrap();
        patches += frame
            .peers_changed_patch
            .iter()
            .filter(|p| p.endpoints.is_some())
            .count();
        if mentions(&frame, third.id()) {
            break;
        }
    }
    assert_eq!(patches, 1);
}

#[tokio::test]
async fn a_wrong_auth_key_is_answered_with_a_reason() {
    let server = Server::start(|_| {}).await;
    let spent = server.auth_key(|_| {}).await;
    let identity = Identity::new("first");
    let client = server.connect(&identity).await;
    client
        .register(&identity.register(Some(&spent)))
        .await
        .unwrap();
    let revoked = server.auth_key(|_| {}).await;
    let id = server.control.auth_keys().await.unwrap().last().unwrap().id;
    server.control.revoke_auth_key(id).await.unwrap();

    for (key, reason) in [
        ("trkey-auth-nonsense", "invalid"),
        (&*spent, "already used"),
        (&*revoked, "revoked"),
    ] {
        let identity = Identity::new("other");
        let client = server.connect(&identity).await;
        let answer = client
            .register(&identity.register(Some(key)))
            .await
            .unwrap();
        assert!(answer.error.contains(reason), "{}", answer.error);
        assert!(answer.error.contains("keys create"), "{}", answer.error);
        assert!(answer.auth_url.is_empty() && !answer.machine_authorized);
    }
}

#[tokio::test]
async fn a_one_shot_key_admits_one_of_many_that_ask_at_once() {
    let server = Server::start(|_| {}).await;
    let key = server.auth_key(|_| {}).await;
    let asking = (0..8).map(|number| {
        let identity = Identity::new(&format!("node{number}"));
        let (server, key) = (&server, &key);
        async move {
            let client = server.connect(&identity).await;
            client
                .register(&identity.register(Some(key)))
                .await
                .unwrap()
        }
    });
    let answers = futures_util::future::join_all(asking).await;
    let admitted = answers
        .iter()
        .filter(|answer| answer.error.is_empty())
        .count();
    assert_eq!(admitted, 1);
    assert_eq!(server.control.engine().counts().nodes, 1);
}

#[tokio::test]
async fn a_restart_with_the_spent_key_succeeds_and_changes_nothing() {
    let server = Server::start(|_| {}).await;
    let key = server.auth_key(|_| {}).await;
    let identity = Identity::new("container");
    let client = server.connect(&identity).await;
    client
        .register(&identity.register(Some(&key)))
        .await
        .unwrap();
    let before = server.control.engine().nodes();

    for auth in [Some(&*key), None, Some("rubbish")] {
        let client = server.connect(&identity).await;
        let answer = client.register(&identity.register(auth)).await.unwrap();
        assert!(
            answer.error.is_empty() && answer.machine_authorized,
            "{answer:?}"
        );
        assert_eq!(answer.login.login_name, "ann@tailnet.internal");
    }
    let after = server.control.engine().nodes();
    assert_eq!(before[0].node, after[0].node);
    assert_eq!(after.len(), 1);
}

#[tokio::test]
async fn a_login_is_held_until_an_administrator_approves() {
    let server = Server::start(|_| {}).await;
    let identity = Identity::new("laptop");
    let client = server.connect(&identity).await;
    let answer = client.register(&identity.register(None)).await.unwrap();
    let url = answer.auth_url.clone();
    let code = url
        .strip_prefix(&format!("http://{}/register/", server.address))
        .unwrap();
    let again = client.register(&identity.register(None)).await.unwrap();
    assert_eq!(again.auth_url, url, "a repetition starts no second login");

    let waiting = {
        let request = RegisterRequest {
            followup: url.clone(),
            ..identity.register(None)
        };
        let client = client.clone();
        tokio::spawn(async move { client.register(&request).await.unwrap() })
    };
    assert!(server.control.approve(code, "nobody").await.is_err());
    server.control.approve(code, "ann").await.unwrap();

    let answer = soon(waiting).await.unwrap();
    assert_eq!(answer.auth_url, "");
    assert!(answer.machine_authorized);
    let mut stream = client.map(&identity.stream()).await.unwrap();
    assert!(soon(stream.next()).await.unwrap().node.is_some());
}

#[tokio::test]
async fn an_unknown_followup_and_another_machines_get_a_fresh_url() {
    let server = Server::start(|_| {}).await;
    let identity = Identity::new("laptop");
    let client = server.connect(&identity).await;
    let url = client
        .register(&identity.register(None))
        .await
        .unwrap()
        .auth_url;

    let stranger = Identity::new("stranger");
    let strangers = server.connect(&stranger).await;
    for followup in [
        url.clone(),
        format!("http://{}/register/unknown", server.address),
    ] {
        let request = RegisterRequest {
            followup,
            ..stranger.register(None)
        };
        let answer = soon(strangers.register(&request)).await.unwrap();
        assert!(!answer.auth_url.is_empty() && answer.auth_url != url);
    }
}

#[tokio::test]
async fn the_login_page_shows_the_command_and_escapes_the_host_name() {
    let server = Server::start(|_| {}).await;
    let identity = Identity::new("<script>");
    let client = server.connect(&identity).await;
    let url = client
        .register(&identity.register(None))
        .await
        .unwrap()
        .auth_url;
    let code = url.rsplit('/').next().unwrap();

    let (status, page) = get(&server, &format!("/register/{code}")).await;
    assert_eq!(status, StatusCode::OK);
    let command = format!("tailrace-control nodes approve {code} --user NAME");
    assert!(page.contains(&command), "{page}");
    assert!(page.contains(&identity.node.public().to_string()));
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
    assert_eq!(
        get(&server, "/register/nonsense").await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_rotation_keeps_the_node_and_its_address() {
    let server = Server::start(|_| {}).await;
    let mut peer = server.join("peer").await;
    let mut node = server.join("node").await;
    let old = node.identity.node.public();
    node.identity.node = NodePrivate::generate();

    let key = server.auth_key(|_| {}).await;
    let request = RegisterRequest {
        old_node_key: old,
        ..node.identity.register(Some(&key))
    };
    let answer = node.client.register(&request).await.unwrap();
    assert!(answer.error.is_empty() && answer.machine_authorized);

    let view = server.control.engine().node(node.id()).unwrap();
    assert_eq!(view.node.key, node.identity.node.public());
    assert_eq!(server.control.engine().counts().nodes, 2);
    node.until_closed().await;
    let new = node.identity.node.public();
    let frame = peer
        .until(|frame| frame.peers_changed.iter().any(|changed| changed.key == new))
        .await;
    assert_eq!(frame.peers_changed[0].id, node.id());
    let refused = node
        .client
        .map(&MapRequest {
            node_key: old,
            ..node.identity.stream()
        })
        .await;
    assert!(refused.unwrap_err().to_string().contains("404"));
}

#[tokio::test]
async fn an_expired_node_is_told_and_comes_back_with_a_new_key() {
    let server = Server::start(|_| {}).await;
    let mut peer = server.join("peer").await;
    let mut node = server.join("node").await;
    server.control.expire_node("node").await.unwrap();

    let frame = node.until(|frame| frame.node.is_some()).await;
    let now = Timestamp::from(std::time::SystemTime::now());
    assert!(frame.node.unwrap().key_expiry <= now);
    let id = node.id();
    let frame = peer
        .until(|frame| frame.peers_changed.iter().any(|p| p.expired))
        .await;
    assert_eq!(frame.peers_changed[0].id, id);
    assert!(
        !server.control.admits(&node.identity.node.public()),
        "the relay lets it in no more"
    );
    let answer = node
        .client
        .register(&node.identity.register(None))
        .await
        .unwrap();
    assert!(answer.node_key_expired && answer.auth_url.is_empty());

    let old = node.identity.node.public();
    node.identity.node = NodePrivate::generate();
    let request = RegisterRequest {
        old_node_key: old,
        ..node.identity.register(None)
    };
    let url = node.client.register(&request).await.unwrap().auth_url;
    server.control.approve(&url, "ann").await.unwrap();
    let view = server.control.engine().node(id).unwrap();
    assert_eq!(view.node.key, node.identity.node.public());
    assert!(server.control.admits(&view.node.key));
}

#[tokio::test]
async fn a_key_that_runs_out_is_handed_to_the_relay() {
    let server = Server::start(|settings| settings.key_expiry = Duration::from_secs(2)).await;
    let (gone, mut told) = tokio::sync::mpsc::unbounded_channel();
    server
        .control
        .on_key_gone(move |key| gone.send(key).unwrap());
    let node = server.join("node").await;
    let key = node.identity.node.public();
    assert!(server.control.admits(&key));
    let housekeeping = async {
        while told.is_empty() {
            server.control.housekeep().await;
            tokio::task::yield_now().await;
        }
        told.recv().await
    };
    assert_eq!(soon(housekeeping).await, Some(key));
    assert!(!server.control.admits(&key));
}

#[tokio::test]
async fn a_login_that_timed_out_cannot_be_approved_and_the_next_one_can() {
    let server = Server::start(|settings| settings.login_timeout = Duration::ZERO).await;
    let identity = Identity::new("laptop");
    let client = server.connect(&identity).await;
    let request = identity.register(None);
    let url = client.register(&request).await.unwrap().auth_url;
    let refused = server.control.approve(&url, "ann").await.unwrap_err();
    assert!(refused.to_string().contains("timed out"), "{refused}");
    let followup = RegisterRequest {
        followup: url.clone(),
        ..request
    };
    let fresh = soon(client.register(&followup)).await.unwrap().auth_url;
    assert!(!fresh.is_empty() && fresh != url);
    assert_eq!(server.control.engine().counts().nodes, 0);
}

#[tokio::test]
async fn of_two_administrators_who_approve_at_once_one_is_told_that_it_is_done() {
    let server = Server::start(|_| {}).await;
    server.control.create_user("bob").await.unwrap();
    let identity = Identity::new("laptop");
    let client = server.connect(&identity).await;
    let url = client
        .register(&identity.register(None))
        .await
        .unwrap()
        .auth_url;
    let (first, second) = tokio::join!(
        server.control.approve(&url, "ann"),
        server.control.approve(&url, "bob"),
    );
    let node = first.unwrap();
    assert!(second.unwrap_err().to_string().contains("approved already"));
    let view = server.control.engine().node(node.id).unwrap();
    assert_eq!(
        server.control.engine().user(view.node.user).unwrap().name,
        "ann"
    );
}

#[tokio::test]
async fn an_expired_key_lives_on_with_a_valid_auth_key() {
    let server = Server::start(|_| {}).await;
    let node = server.join("node").await;
    server.control.expire_node("node").await.unwrap();
    let key = server.auth_key(|_| {}).await;
    let answer = node
        .client
        .register(&node.identity.register(Some(&key)))
        .await
        .unwrap();
    assert!(answer.machine_authorized && !answer.node_key_expired);
    assert!(server.control.admits(&node.identity.node.public()));
}

#[tokio::test]
async fn a_logout_expires_a_node_and_deletes_an_ephemeral_one() {
    let server = Server::start(|_| {}).await;
    let kept = server.join("kept").await;
    let goes = Identity::new("goes");
    let key = server.auth_key(|ask| ask.ephemeral = true).await;
    let client = server.connect(&goes).await;
    client.register(&goes.register(Some(&key))).await.unwrap();

    let past = Timestamp::from_unix_seconds(123);
    for (identity, client) in [(&kept.identity, &kept.client), (&goes, &client)] {
        // The auth key comes along with a logout, too, and must not count.
        let request = RegisterRequest {
            expiry: past,
            ..identity.register(Some(&key))
        };
        client.register(&request).await.unwrap();
    }
    let nodes = server.control.engine().nodes();
    assert_eq!(nodes.len(), 1);
    let expiry = nodes[0].node.expires.unwrap();
    assert!(
        expiry.unix_timestamp() > 1_000_000,
        "never the client's 1970"
    );
}

#[tokio::test]
async fn a_deleted_node_is_told_and_its_peers_forget_it() {
    let server = Server::start(|_| {}).await;
    let mut peer = server.join("peer").await;
    let mut node = server.join("node").await;
    let id = node.id();
    server.control.delete_node("100.64.0.2").await.unwrap();

    let last = node.until(|frame| frame.node.is_some()).await;
    assert!(!last.node.unwrap().key_expiry.is_zero());
    node.until_closed().await;
    let frame = peer.until(|frame| !frame.peers_removed.is_empty()).await;
    assert_eq!(frame.peers_removed, [id]);
    let refused = node.client.map(&node.identity.stream()).await.unwrap_err();
    assert!(refused.to_string().contains("404"), "{refused}");
}

#[tokio::test]
async fn a_node_that_leaves_is_offline_after_the_grace_period() {
    let server = Server::start(|settings| settings.offline_grace = Duration::from_millis(50)).await;
    let mut peer = server.join("peer").await;
    let node = server.join("node").await;
    let id = node.id();
    drop(node);
    let frame = peer
        .until(|frame| {
            frame
                .peers_changed_patch
                .iter()
                .any(|p| p.online == Some(false))
        })
        .await;
    let patch = frame
        .peers_changed_patch
        .iter()
        .find(|patch| patch.node_id == id)
        .unwrap();
    assert!(patch.last_seen.is_some());
}

#[tokio::test]
async fn a_new_stream_supersedes_the_old_one_without_an_offline_blip() {
    let server = Server::start(|settings| settings.offline_grace = Duration::ZERO).await;
    let mut peer = server.join("peer").await;
    let mut node = server.join("node").await;
    let second = server.connect(&node.identity).await;
    let mut stream = second.map(&node.identity.stream()).await.unwrap();
    soon(stream.next()).await.unwrap();
    node.until_closed().await;

    let third = server.join("third").await;
    loop {
        let frame = soon(peer.stream.next()).await.unwrap();
        assert!(
            frame
                .peers_changed_patch
                .iter()
                .all(|patch| patch.online != Some(false))
        );
        if mentions(&frame, third.id()) {
            break;
        }
    }
}

#[tokio::test]
async fn a_machine_cannot_speak_for_another_ones_node() {
    let server = Server::start(|_| {}).await;
    let victim = server.join("victim").await;
    let thief = MachinePrivate::generate();
    let client = Client::connect(server.address, &server.key, &thief)
        .await
        .unwrap();

    let refused = client.map(&victim.identity.stream()).await.unwrap_err();
    assert!(refused.to_string().contains("404"), "{refused}");
    let refused = client
        .update(&victim.identity.lite(Vec::new()))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("404"), "{refused}");
    let key = server.auth_key(|_| {}).await;
    let refused = client
        .register(&victim.identity.register(Some(&key)))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("401"), "{refused}");
}

#[tokio::test]
async fn tags_come_from_keys_only() {
    let server = Server::start(|_| {}).await;
    let key = server
        .auth_key(|ask| ask.tags = vec!["web".to_owned()])
        .await;
    let identity = Identity::new("tagged");
    let client = server.connect(&identity).await;
    client
        .register(&identity.register(Some(&key)))
        .await
        .unwrap();
    let mut stream = client.map(&identity.stream()).await.unwrap();
    let own = soon(stream.next()).await.unwrap();
    let node = own.node.unwrap();
    assert_eq!(node.tags, ["tag:web"]);
    assert!(node.key_expiry.is_zero(), "tagged nodes do not expire");
    assert!(
        own.user_profiles
            .iter()
            .any(|profile| profile.id == node.user)
    );

    let wishful = Identity::new("wishful");
    let client = server.connect(&wishful).await;
    let key = server.auth_key(|_| {}).await;
    let mut request = wishful.register(Some(&key));
    if let Some(host) = request.hostinfo.as_mut() {
        host.request_tags = vec!["tag:admin".to_owned()];
    }
    let answer = client.register(&request).await.unwrap();
    assert!(answer.error.contains("tag:admin"), "{}", answer.error);
}

#[tokio::test]
async fn malformed_and_foreign_requests_get_a_status_and_a_text() {
    let server = Server::start(|_| {}).await;
    let node = server.join("node").await;
    let old = MapRequest {
        version: CapabilityVersion(112),
        ..node.identity.stream()
    };
    let no_key = RegisterRequest {
        node_key: Default::default(),
        ..node.identity.register(None)
    };
    for (path, body, expected) in [
        ("/machine/map", b"{".to_vec(), StatusCode::BAD_REQUEST),
        ("/machine/map", b"[]".to_vec(), StatusCode::BAD_REQUEST),
        (
            "/machine/register",
            b"\xff\xff".to_vec(),
            StatusCode::BAD_REQUEST,
        ),
        (
            "/machine/map",
            vec![b' '; (1 << 20) + 1],
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
        (
            "/machine/map",
            json::to_vec(&old).unwrap(),
            StatusCode::BAD_REQUEST,
        ),
        (
            "/machine/register",
            json::to_vec(&no_key).unwrap(),
            StatusCode::BAD_REQUEST,
        ),
        ("/machine/set-dns", Vec::new(), StatusCode::NOT_IMPLEMENTED),
        ("/elsewhere", Vec::new(), StatusCode::NOT_FOUND),
    ] {
        let response = node.client.post(path, body).await.unwrap();
        let (status, text) = finish(response).await.unwrap();
        assert_eq!(status, expected, "{path}");
        assert!(!text.is_empty());
    }
    // The connection, and with it the node's stream, survived all of them.
    node.client
        .update(&node.identity.lite(Vec::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_one_shot_map_request_is_one_full_frame() {
    let server = Server::start(|_| {}).await;
    let node = server.join("node").await;
    let request = MapRequest {
        omit_peers: false,
        compress: Compress::None,
        ..node.identity.lite(Vec::new())
    };
    let mut stream = node.client.map(&request).await.unwrap();
    assert!(soon(stream.next()).await.unwrap().node.is_some());
    assert!(soon(stream.next_raw()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_reader_that_fell_behind_gets_everything_anew() {
    let server = Server::start(|_| {}).await;
    let mut slow = server.join("slow").await;
    let busy = server.join("busy").await;
    let view = server.control.engine().node(busy.id()).unwrap();
    assert!(view.online);

    // Fills windows and socket buffers first, then the queue: endpoints make large patches.
    let resyncs = || server.control.metrics().resyncs.get();
    let mut port = 1000;
    while resyncs() == 0 && server.control.metrics().frames.get() < 100_000 {
        let batch = async {
            for _ in 0..64 {
                port += 1;
                let endpoints = (0..60)
                    .map(|n| format!("198.51.{}.{}:{}", port % 251, n, 1000 + port % 60_000))
                    .map(|text| text.parse().unwrap())
                    .collect();
                busy.client
                    .update(&busy.identity.lite(endpoints))
                    .await
                    .unwrap();
            }
        };
        soon(batch).await;
        if port > 40_000 {
            break;
        }
        // The overflow shows once the reader takes something again.
        if port % 4096 == 1000 + 64 {
            let _ = tokio::time::timeout(Duration::from_millis(1), slow.stream.next_raw()).await;
        }
    }
    let frame = slow.until(|frame| frame.node.is_some()).await;
    assert_eq!(frame.peers.value().unwrap().len(), 1);
    assert!(resyncs() >= 1);
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_restart() {
    let server = Server::start(|_| {}).await;
    let node = server.join("node").await;
    let endpoint = "192.0.2.9:41641".parse().unwrap();
    node.client
        .update(&node.identity.lite(vec![endpoint]))
        .await
        .unwrap();
    let spare = server.auth_key(|_| {}).await;
    let number = server.control.engine().counts().number;
    let folder = server.stop().await;

    let server = Server::start_in(folder, |_| {}).await;
    assert_eq!(server.control.engine().counts().number, number);
    let view = server.control.engine().node_named("node").unwrap();
    assert_eq!(view.node.addresses.v4.to_string(), "100.64.0.1");
    assert_eq!(view.node.endpoints, [endpoint]);
    assert_eq!(view.node.disco, Some(node.identity.disco.public()));
    let client = server.connect(&node.identity).await;
    let answer = client
        .register(&node.identity.register(None))
        .await
        .unwrap();
    assert!(answer.machine_authorized);
    let other = Identity::new("other");
    let client = server.connect(&other).await;
    let answer = client
        .register(&other.register(Some(&spare)))
        .await
        .unwrap();
    assert!(answer.machine_authorized, "{}", answer.error);
    let view = server.control.engine().node_named("other").unwrap();
    assert_eq!(view.node.addresses.v4.to_string(), "100.64.0.2");
}

#[tokio::test]
async fn relays_ask_and_are_told_who_is_a_node() {
    let server = Server::start(|_| {}).await;
    let node = server.join("node").await;
    for (key, allow) in [
        (node.identity.node.public(), true),
        (NodePrivate::generate().public(), false),
    ] {
        let body = format!(r#"{{"NodePublic":"{key}","Source":"192.0.2.1"}}"#);
        let (status, text) = request(&server, http::Request::post("/verify"), body).await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains(&format!("{allow}")), "{text}");
    }
    assert_eq!(
        request(&server, http::Request::post("/verify"), "{".into())
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn plain_pages_answer() {
    let server = Server::start(|_| {}).await;
    assert_eq!(
        get(&server, "/health").await,
        (StatusCode::OK, r#"{"status":"ok"}"#.into())
    );
    let (_, metrics) = get(&server, "/metrics").await;
    assert!(metrics.contains("tailrace_control_users 1"), "{metrics}");
    assert_eq!(server_key(server.address).await.unwrap(), server.key);
    assert_eq!(get(&server, "/key").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get(&server, "/key?v=9999").await.0, StatusCode::OK);
    assert_eq!(get(&server, "/ts2021").await.0, StatusCode::BAD_REQUEST);
}

async fn get(server: &Server, path: &str) -> (StatusCode, String) {
    request(server, http::Request::get(path), String::new()).await
}

async fn request(
    server: &Server,
    request: http::request::Builder,
    body: String,
) -> (StatusCode, String) {
    let socket = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let io = hyper_util::rt::TokioIo::new(socket);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = request.header("Host", "control").body(body).unwrap();
    let (status, body) = finish(sender.send_request(request).await.unwrap())
        .await
        .unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}
