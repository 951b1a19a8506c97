//! The policy in a server: versions, approvals, tags, roles, restarts.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use control::engine::MapSettings;
use control::model::{DEFAULT_TAILNET, Node, Role};
use control::service::{Adopted, Control, Draft, OpenError, ServiceError, Settings};
use control::store::sqlite::SqliteStore;
use control::store::{NewPolicy, Store as _};
use control_proto::json;
use control_proto::tailcfg::{DerpMap, Hostinfo, RegisterRequest, RegisterResponse, SshAction};
use http::{Method, StatusCode};
use policy::Cause;
use policy::file::Context;
use time::OffsetDateTime;

mod common;

use common::Server;
use common::client::{Identity, finish};

const DENY_ALL: &str = "// nobody\n{\"acls\": []}\n";
const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

fn draft(text: &str) -> Draft {
    Draft {
        name: "policy.hujson".to_owned(),
        text: text.to_owned(),
    }
}

async fn set(server: &Server, text: &str) -> Adopted {
    let setting = server.control.set_policy(draft(text), "root", None);
    setting.await.unwrap()
}

/// The causes for which a policy is refused.
fn causes(refusal: ServiceError) -> Vec<Cause> {
    match refusal {
        ServiceError::Policy(diagnostics) => diagnostics.list.iter().map(|it| it.cause).collect(),
        other => panic!("{other}"),
    }
}

/// Registers a node whose host says more.
async fn register(
    server: &Server,
    identity: &Identity,
    key: Option<&str>,
    adjust: impl FnOnce(&mut Hostinfo),
) -> RegisterResponse {
    let client = server.connect(identity).await;
    let mut host = identity.hostinfo();
    adjust(&mut host);
    let request = RegisterRequest {
        hostinfo: Some(host),
        ..identity.register(key)
    };
    client.register(&request).await.unwrap()
}

fn node(server: &Server, name: &str) -> Node {
    server.control.find_node(name).unwrap().node
}

fn approved(server: &Server, name: &str) -> Vec<String> {
    let node = node(server, name);
    node.approved_routes
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// Joins as a router of `routes`, with a key of ann's.
async fn router(server: &Server, name: &str, routes: &[&str]) -> Identity {
    let identity = Identity::new(name);
    let key = server.auth_key(|_| {}).await;
    let answer = register(server, &identity, Some(&key), |host| {
        host.routable_ips = prefixes(routes);
    });
    assert_eq!(answer.await.error, "");
    identity
}

/// Tells the server of other routes, as a running node does.
async fn advertise(server: &Server, identity: &Identity, routes: &[&str]) {
    let client = server.connect(identity).await;
    let mut update = identity.lite(Vec::new());
    update.hostinfo.as_mut().unwrap().routable_ips = prefixes(routes);
    client.update(&update).await.unwrap();
}

fn prefixes(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_policy_is_in_force_when_it_is_acknowledged_and_nodes_are_told() {
    let server = Server::start(|_| {}).await;
    let mut web = server.join("web").await;
    let db = server.join("db").await;
    let id = db.id();
    let adopted = set(&server, DENY_ALL).await;
    assert_eq!((adopted.version, adopted.accepted.rules), (1, Some(0)));
    assert!(adopted.difference.gained.is_empty());
    assert!(!adopted.difference.lost.is_empty());
    web.until(|frame| frame.peers_removed.contains(&id)).await;
    let adopted = set(&server, ALLOW_ALL).await;
    assert_eq!(adopted.version, 2);
    web.until(|frame| frame.peers_changed.iter().any(|peer| peer.id == id))
        .await;
}

#[tokio::test]
async fn names_without_a_domain_mean_the_base_domain_alone() {
    let server = Server::start(|_| {}).await;
    let other = server.control.create_user("ann@aaa.example").await.unwrap();
    assert_eq!(other.name, "ann@aaa.example");
    server.join("web").await;
    let of_ann = r#"{"acls": [{"action": "accept", "src": ["ann@"], "dst": ["*:*"]}]}"#;
    set(&server, of_ann).await;
    let allowed = async |from| server.control.why(from, "web").await.unwrap().allowed;
    assert!(allowed("ann@tailnet.internal").await && allowed("ann@").await);
    assert!(!allowed("ann@aaa.example").await);
}

/// A check rule; the policy allows all else.
const CHECK: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}], "ssh": [
    {"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]},
]}"#;

#[tokio::test]
async fn sessions_that_must_be_confirmed_are_refused_at_once_and_the_policy_warns_of_it() {
    let server = Server::start(|_| {}).await;
    let adopted = set(&server, CHECK).await;
    let warnings = adopted.accepted.warnings.unwrap();
    let mut list = warnings.list.iter();
    let check = list.find(|it| it.cause == Cause::CheckNotServed).unwrap();
    assert_eq!(warnings.position(check.span.start), (2, 17));

    let web = server.join("web").await;
    let db = server.join("db").await;
    let ask = async |asking: &common::Joined, path: String| {
        let asking = asking.client.send(Method::GET, &path, Vec::new()).await;
        finish(asking.unwrap()).await.unwrap()
    };
    // What nodes fill in for themselves (control.md 5.6).
    let url = |destination| {
        let id = node(&server, destination).id;
        format!("/machine/ssh/action/1/to/{id}?local_user=root")
    };
    let (status, body) = ask(&web, url("web")).await;
    assert_eq!(status, StatusCode::OK);
    let action: SshAction = json::from_slice(&body).unwrap();
    assert!(action.reject && !action.accept && action.hold_and_delegate.is_empty());
    assert!(action.message.contains("confirm"), "{}", action.message);
    // Nobody asks for another node.
    assert_eq!(ask(&db, url("web")).await.0, StatusCode::NOT_FOUND);
    for path in ["", "1", "1/to/", "1/to/x", "1/to/99999999999999999999"] {
        let path = format!("/machine/ssh/action/{path}");
        assert_eq!(ask(&web, path).await.0, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn what_is_refused_changes_nothing_and_says_everything_at_once() {
    let server = Server::start(|_| {}).await;
    set(&server, ALLOW_ALL).await;
    let number = server.control.engine().counts().number;

    let bad = r#"{"acls": [{"action": "deny", "src": ["tag:none"], "dst": ["*:0"]}], "aclz": 1}"#;
    let setting = server.control.set_policy(draft(bad), "root", None);
    let causes_of_bad = causes(setting.await.unwrap_err());
    for cause in [
        Cause::BadAction,
        Cause::TagNotFound,
        Cause::PortZero,
        Cause::UnknownKey,
    ] {
        assert!(
            causes_of_bad.contains(&cause),
            "{cause:?}: {causes_of_bad:?}"
        );
    }
    let failing =
        r#"{"acls": [], "tests": [{"src": "ann@tailnet.internal", "accept": ["100.64.0.9:22"]}]}"#;
    for checked in [false, true] {
        let refusal = if checked {
            server.control.check_policy(draft(failing)).await.map(drop)
        } else {
            let setting = server.control.set_policy(draft(failing), "root", None);
            setting.await.map(drop)
        };
        assert_eq!(causes(refusal.unwrap_err()), [Cause::TestFailed]);
    }

    assert_eq!(*server.control.engine().policy().text, *ALLOW_ALL);
    assert_eq!(server.control.engine().counts().number, number);
    assert_eq!(server.control.policies().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_policy_is_kept_word_for_word_with_who_and_when_over_restarts() {
    let server = Server::start(|_| {}).await;
    set(&server, ALLOW_ALL).await;
    let setting = server.control.set_policy(draft(DENY_ALL), "eve", Some(1));
    assert_eq!(setting.await.unwrap().version, 2);
    let again = set(&server, DENY_ALL).await;
    assert!(
        again.unchanged && again.version == 2,
        "no version for nothing"
    );

    let server = Server::start_in(server.stop().await, |_| {}).await;
    assert_eq!(*server.control.engine().policy().text, *DENY_ALL);
    let version = server.control.policy_standing().version.unwrap();
    assert_eq!((version.number, version.author.as_str()), (2, "eve"));
    let kept = server.control.policies().await.unwrap();
    let authors: Vec<_> = kept.iter().map(|it| (it.version, &*it.author)).collect();
    assert_eq!(authors, [(2, "eve"), (1, "root")]);
    let web = server.join("web").await;
    let db = server.join("db").await;
    let peers = db.first.peers.clone().into_value().unwrap_or_default();
    assert_eq!(peers, [], "in force before the first node");
    drop(web);
}

#[tokio::test]
async fn of_two_who_change_the_same_version_the_second_is_told() {
    let server = Server::start(|_| {}).await;
    for (text, replaces) in [(ALLOW_ALL, 0), (DENY_ALL, 1)] {
        let setting = server
            .control
            .set_policy(draft(text), "root", Some(replaces));
        setting.await.unwrap();
    }
    for outdated in [0, 1, 3] {
        let setting = server
            .control
            .set_policy(draft("{}"), "root", Some(outdated));
        let refusal = setting.await.unwrap_err();
        assert!(matches!(&refusal, ServiceError::Conflict(_)), "{refusal}");
        assert!(refusal.to_string().contains("version 2"), "{refusal}");
    }
    assert_eq!(*server.control.engine().policy().text, *DENY_ALL);
}

#[tokio::test]
async fn a_policy_outlives_the_last_user_of_a_domain_that_it_names() {
    let server = Server::start(|_| {}).await;
    server.control.create_user("bob@example.com").await.unwrap();
    let text = r#"{"acls": [{"action": "accept", "src": ["user:*@example.com"], "dst": ["*:*"]}]}"#;
    set(&server, text).await;
    server.control.delete_user("bob@example.com").await.unwrap();
    let refusal = server.control.check_policy(draft(text)).await.unwrap_err();
    assert_eq!(
        causes(refusal),
        [Cause::ForeignDomain],
        "set anew, it is a mistake"
    );
    let server = Server::start_in(server.stop().await, |_| {}).await;
    assert_eq!(*server.control.engine().policy().text, *text);
}

async fn open(
    folder: &tempfile::TempDir,
    adjust: impl FnOnce(&mut Settings),
) -> Result<Arc<Control>, OpenError> {
    let path = folder.path().join("control.db");
    let store = SqliteStore::open(&path, DEFAULT_TAILNET).await.unwrap();
    let mut settings = Settings::new("http://192.0.2.1");
    adjust(&mut settings);
    let map = MapSettings::new("tailnet.internal", &DerpMap::default());
    Control::open(Arc::new(store), settings, map).await
}

#[tokio::test]
async fn a_stored_policy_that_cannot_be_read_any_more_stops_the_start_until_a_file_replaces_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.db");
    let store = SqliteStore::open(&path, DEFAULT_TAILNET).await.unwrap();
    let of_another_version = NewPolicy {
        text: r#"{"rulez": []}"#.to_owned(),
        context: Context::default(),
        author: "root".to_owned(),
        created: OffsetDateTime::UNIX_EPOCH,
        replaces: None,
        approvals: Vec::new(),
    };
    store.set_policy(&of_another_version).await.unwrap();
    store.close().await;

    let refusal = open(&folder, |_| {}).await.unwrap_err();
    let told = refusal.to_string();
    assert!(
        told.contains("version 1") && told.contains("--policy"),
        "{told}"
    );
    let cause = refusal.diagnostics().unwrap().cause();
    assert_eq!(cause, Some(Cause::UnknownKey));

    let file = folder.path().join("policy.hujson");
    std::fs::write(&file, DENY_ALL).unwrap();
    let control = open(&folder, |settings| settings.policy_file = Some(file)).await;
    let control = control.unwrap();
    assert_eq!(*control.engine().policy().text, *DENY_ALL);
    control.shut_down().await;
}

#[tokio::test]
async fn a_policy_file_is_read_at_start_and_nobody_else_sets_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.hujson");
    let with_file = |settings: &mut Settings| settings.policy_file = Some(file.clone());
    let missing = open(&folder, with_file).await.unwrap_err().to_string();
    assert!(
        missing.contains("cannot read") && missing.contains("policy.hujson"),
        "{missing}"
    );

    std::fs::write(&file, "{\"acls\": [}").unwrap();
    let broken = open(&folder, with_file).await.unwrap_err();
    assert_eq!(broken.diagnostics().unwrap().cause(), Some(Cause::Syntax));

    std::fs::write(&file, DENY_ALL).unwrap();
    let control = open(&folder, with_file).await.unwrap();
    let version = control.policy_standing().version.unwrap();
    assert_eq!(version.number, 1);
    assert_eq!(version.author, file.display().to_string());
    let setting = control.set_policy(draft(ALLOW_ALL), "root", None);
    let refusal = setting.await.unwrap_err().to_string();
    assert!(refusal.contains(file.to_str().unwrap()), "{refusal}");
    control.shut_down().await;

    let control = open(&folder, with_file).await.unwrap();
    let kept = control.policies().await.unwrap();
    assert_eq!(kept.len(), 1, "the same file is the same version");
    control.shut_down().await;
    let control = open(&folder, |_| {}).await.unwrap();
    assert_eq!(
        *control.engine().policy().text,
        *DENY_ALL,
        "no file is not no policy"
    );
    control.shut_down().await;
}

#[tokio::test]
async fn a_policy_file_that_was_accepted_is_not_tested_anew_at_a_restart() {
    let server = Server::start(|_| {}).await;
    let key = server.auth_key(|_| {}).await;
    let identity = Identity::new("web");
    register(&server, &identity, Some(&key), |_| {}).await;
    let text = r#"{
        "acls": [{"action": "accept", "src": ["ann@tailnet.internal"], "dst": ["*:22"]}],
        "tests": [{"src": "ann@tailnet.internal", "accept": ["100.64.0.1:22"]}],
    }"#;
    set(&server, text).await;
    server.control.delete_node("web").await.unwrap();
    let folder = server.stop().await;
    let file = folder.path().join("policy.hujson");
    std::fs::write(&file, text).unwrap();
    let control = open(&folder, |settings| {
        settings.policy_file = Some(file.clone());
    });
    let control = control.await.unwrap();
    control.reload_policy(&file, Ok(text.to_owned())).await;
    assert!(
        control.policy_standing().failure.is_none(),
        "it is what is in force"
    );
    control.shut_down().await;
}

#[tokio::test]
async fn the_first_user_owns_the_tailnet_until_somebody_else_does() {
    let server = Server::start(|_| {}).await;
    let control = &server.control;
    let bob = control.create_user("bob").await.unwrap();
    assert_eq!(bob.role, Role::Member);
    assert_eq!(
        control.engine().user_named("ann").unwrap().role,
        Role::Owner
    );
    for refused in [
        control.set_role("ann", Role::Member).await.map(drop),
        control.delete_user("ann").await,
    ] {
        let refusal = refused.unwrap_err().to_string();
        assert!(refusal.contains("owns the tailnet"), "{refusal}");
    }
    let changed = control.set_role("bob", Role::Owner).await.unwrap();
    let roles: Vec<_> = changed
        .iter()
        .map(|user| (&*user.name, user.role))
        .collect();
    assert_eq!(roles, [("ann", Role::Admin), ("bob", Role::Owner)]);
    assert!(
        control
            .set_role("bob", Role::Owner)
            .await
            .unwrap()
            .is_empty()
    );
    control.delete_user("ann").await.unwrap();
    control.delete_user("bob").await.unwrap();
    let eve = control.create_user("eve").await.unwrap();
    assert_eq!(eve.role, Role::Owner, "nobody owned it");

    let server = Server::start_in(server.stop().await, |_| {}).await;
    assert_eq!(server.control.engine().users(), [eve]);
}

#[tokio::test]
async fn a_role_decides_what_a_policy_gives() {
    let server = Server::start(|_| {}).await;
    let web = server.join("web").await;
    let text = r#"{
        "tagOwners": {"tag:db": ["ann@tailnet.internal"]},
        "acls": [{"action": "accept", "src": ["autogroup:auditor"], "dst": ["tag:db:22"]}],
    }"#;
    set(&server, text).await;
    let key = server
        .auth_key(|ask| ask.tags = vec!["tag:db".to_owned()])
        .await;
    let identity = Identity::new("db");
    register(&server, &identity, Some(&key), |_| {}).await;
    let allowed = async || server.control.why("web", "db:22").await.unwrap().allowed;
    assert!(!allowed().await);
    server.control.create_user("bob").await.unwrap();
    server.control.set_role("bob", Role::Owner).await.unwrap();
    server.control.set_role("ann", Role::Auditor).await.unwrap();
    assert!(allowed().await);
    drop(web);
}

const APPROVERS: &str = r#"{
    "tagOwners": {"tag:router": ["ann@tailnet.internal"]},
    "autoApprovers": {
        "routes": {"10.0.0.0/8": ["ann@tailnet.internal"]},
        "exitNode": ["tag:router"],
    },
    "acls": [],
}"#;

#[tokio::test]
async fn routes_are_approved_by_the_policy_when_they_are_offered_or_it_arrives() {
    let server = Server::start(|_| {}).await;
    let before = router(&server, "before", &["10.1.0.0/16", "192.168.0.0/24"]).await;
    assert!(approved(&server, "before").is_empty());
    let adopted = set(&server, APPROVERS).await;
    assert_eq!(adopted.routes.len(), 1);
    assert_eq!(approved(&server, "before"), ["10.1.0.0/16"]);

    let after = router(&server, "after", &["10.2.0.0/16", "0.0.0.0/0", "::/0"]).await;
    assert_eq!(
        approved(&server, "after"),
        ["10.2.0.0/16"],
        "at registration"
    );
    advertise(&server, &after, &["10.3.0.0/16", "172.16.0.0/12"]).await;
    let both = ["10.2.0.0/16", "10.3.0.0/16"];
    assert_eq!(approved(&server, "after"), both, "and when it offers more");

    set(&server, DENY_ALL).await;
    assert_eq!(approved(&server, "after"), both, "no policy takes it away");
    set(&server, APPROVERS).await;
    server
        .control
        .remove_route("before", "10.1.0.0/16")
        .await
        .unwrap();
    advertise(&server, &before, &["10.1.0.0/16", "192.168.0.0/24"]).await;
    assert!(
        approved(&server, "before").is_empty(),
        "it offers nothing new"
    );

    let server = Server::start_in(server.stop().await, |_| {}).await;
    assert_eq!(approved(&server, "after"), both);
}

#[tokio::test]
async fn a_node_that_gets_a_tag_gets_the_routes_of_that_tag() {
    let server = Server::start(|_| {}).await;
    router(&server, "gate", &["0.0.0.0/0", "::/0", "10.1.0.0/16"]).await;
    set(&server, APPROVERS).await;
    server
        .control
        .tag_node("gate", &["router".to_owned()])
        .await
        .unwrap();
    assert_eq!(
        approved(&server, "gate"),
        ["0.0.0.0/0", "10.1.0.0/16", "::/0"]
    );
}

#[tokio::test]
async fn routes_are_approved_and_removed_by_hand_exits_both_at_once() {
    let server = Server::start(|_| {}).await;
    router(&server, "gate", &["0.0.0.0/0", "::/0", "10.1.0.0/16"]).await;
    let control = &server.control;
    control.approve_route("gate", "::/0").await.unwrap();
    control.approve_route("gate", "10.9.0.0/16").await.unwrap();
    let listed = control.routes(None).unwrap();
    let (_, routes) = &listed[0];
    let told: Vec<_> = routes
        .iter()
        .map(|it| {
            (
                it.prefix.to_string(),
                it.advertised,
                it.approved,
                it.serving,
            )
        })
        .collect();
    let expected = [
        ("0.0.0.0/0", true, true, true),
        ("10.1.0.0/16", true, false, false),
        ("10.9.0.0/16", false, true, false),
        ("::/0", true, true, true),
    ];
    assert_eq!(told, expected.map(|it| (it.0.to_owned(), it.1, it.2, it.3)));
    control.remove_route("gate", "0.0.0.0/0").await.unwrap();
    assert_eq!(approved(&server, "gate"), ["10.9.0.0/16"]);
    let twice = control
        .remove_route("gate", "::/0")
        .await
        .unwrap_err()
        .to_string();
    assert!(twice.contains("not approved"), "{twice}");
}

const TAGS: &str = r#"{
    "tagOwners": {"tag:web": ["ann@tailnet.internal"], "tag:db": ["autogroup:admin"]},
    "acls": [],
}"#;

/// What the server says to a node of bob's that asks for tags.
async fn ask_for(server: &Server, user: &str, name: &str, tags: &[&str]) -> RegisterResponse {
    let key = server.auth_key(|ask| ask.user = user.to_owned()).await;
    let identity = Identity::new(name);
    register(server, &identity, Some(&key), |host| {
        host.request_tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    })
    .await
}

#[tokio::test]
async fn nodes_get_the_tags_that_their_user_owns_and_no_others() {
    let server = Server::start(|_| {}).await;
    server.control.create_user("bob").await.unwrap();
    let answer = ask_for(&server, "ann", "early", &["tag:web"]).await;
    assert!(answer.error.contains("keys create --tags"), "{answer:?}");
    set(&server, TAGS).await;

    let answer = ask_for(&server, "bob", "bobs", &["tag:web"]).await;
    assert!(
        answer.error.contains("bob") && answer.error.contains("tag:web"),
        "{answer:?}"
    );
    let answer = ask_for(&server, "ann", "typo", &["tag:wep", "tag:web"]).await;
    assert!(
        answer.error.contains("tag:wep") && !answer.error.contains("tag:web"),
        "{answer:?}"
    );
    assert!(server.control.engine().nodes().is_empty());

    let answer = ask_for(&server, "ann", "web", &["tag:web", "tag:web"]).await;
    assert_eq!(answer.error, "");
    let web = node(&server, "web");
    assert_eq!(web.tags, ["tag:web"]);
    assert_eq!(web.expires, None);
    assert_eq!(answer.login.login_name, "tagged-devices");
}

#[tokio::test]
async fn a_login_that_asks_for_tags_is_approved_for_their_owner_only() {
    let server = Server::start(|_| {}).await;
    server.control.create_user("bob").await.unwrap();
    set(&server, TAGS).await;
    let identity = Identity::new("web");
    let tag = |host: &mut Hostinfo| host.request_tags = vec!["tag:web".to_owned()];
    let url = register(&server, &identity, None, tag).await.auth_url;
    let refusal = server
        .control
        .approve(&url, "bob")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refusal.contains("bob") && refusal.contains("tag:web"),
        "{refusal}"
    );
    let approved = server.control.approve(&url, "ann").await.unwrap();
    assert_eq!(approved.tags, ["tag:web"]);
    let other = Identity::new("typo");
    let unknown = |host: &mut Hostinfo| host.request_tags = vec!["tag:wep".to_owned()];
    let answer = register(&server, &other, None, unknown).await;
    assert!(
        answer.auth_url.is_empty() && answer.error.contains("tag:wep"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn tags_that_the_policy_does_not_know_are_given_to_nobody() {
    let server = Server::start(|_| {}).await;
    let early = server
        .auth_key(|ask| ask.tags = vec!["old".to_owned()])
        .await;
    server.join("mine").await;
    set(&server, TAGS).await;
    let tagging = server.control.tag_node("mine", &["wep".to_owned()]).await;
    let refusal = tagging.unwrap_err().to_string();
    assert!(
        refusal.contains("tag:wep") && refusal.contains("tagOwners"),
        "{refusal}"
    );
    let identity = Identity::new("old");
    let answer = register(&server, &identity, Some(&early), |_| {}).await;
    assert!(answer.error.contains("tag:old"), "{answer:?}");
    set(&server, ALLOW_ALL).await;
    let answer = register(&server, &identity, Some(&early), |_| {}).await;
    assert_eq!(
        answer.error, "",
        "a policy without tagOwners leaves tags alone"
    );
}

#[tokio::test]
async fn new_nodes_get_addresses_from_the_pool_of_their_owner() {
    let server = Server::start(|_| {}).await;
    server.control.create_user("bob").await.unwrap();
    let text = r#"{
        "nodeAttrs": [{"target": ["ann@tailnet.internal"], "ipPool": ["100.81.0.0/30"]}],
        "acls": [],
    }"#;
    set(&server, text).await;
    let mut addresses = BTreeSet::new();
    for number in 0..3 {
        let answer = ask_for(&server, "ann", &format!("n{number}"), &[]).await;
        assert_eq!(answer.error, "");
        addresses.insert(node(&server, &format!("n{number}")).addresses.v4);
    }
    let pool = [1, 2, 3].map(|last| Ipv4Addr::new(100, 81, 0, last));
    assert_eq!(addresses, pool.into());
    ask_for(&server, "bob", "bobs", &[]).await;
    assert_eq!(
        node(&server, "bobs").addresses.v4,
        Ipv4Addr::new(100, 64, 0, 1)
    );

    let key = server.auth_key(|_| {}).await;
    let identity = Identity::new("full");
    let client = server.connect(&identity).await;
    let refusal = client.register(&identity.register(Some(&key))).await;
    let told = format!("{refusal:?}");
    assert!(told.contains("ipPool"), "{told}");
}
