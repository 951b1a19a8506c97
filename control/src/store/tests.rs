//! Tests of the stores.

use std::path::Path;

use keys::{MachinePublic, NodePublic};

use super::sqlite::SqliteStore;
use super::*;
use crate::model::DEFAULT_TAILNET;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

async fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(&folder.join("control.db"), DEFAULT_TAILNET)
        .await
        .unwrap()
}

fn node(user: UserId, seed: u8) -> Node {
    Node {
        id: NodeId(0),
        stable_id: format!("n{seed}"),
        user,
        machine: MachinePublic::from_bytes([seed; 32]),
        key: NodePublic::from_bytes([seed; 32]),
        disco: None,
        name: format!("node{seed}"),
        renamed: false,
        addresses: Addresses::at(u32::from(seed)).unwrap(),
        tags: vec!["tag:a".to_owned()],
        approved_routes: ["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()].into(),
        ephemeral: true,
        capver: 117,
        hostinfo: Default::default(),
        home_derp: 900,
        endpoints: vec!["[2001:db8::1]:41641".parse().unwrap()],
        created: now(),
        expires: Some(now()),
        last_seen: None,
    }
}

fn one_shot(user: UserId) -> NewAuthKey {
    NewAuthKey {
        user,
        prefix: "p".to_owned(),
        reusable: false,
        ephemeral: false,
        tags: Vec::new(),
        created: now(),
        expires: Some(now() + time::Duration::HOUR),
    }
}

#[tokio::test]
async fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = store.create_user("ann", now()).await.unwrap().value;
    let mut written = node(user.id, 7);
    let committed = store.insert_node(&written, 41, None, now()).await.unwrap();
    written.id = committed.value;
    store.close().await;

    let loaded = open(folder.path()).await.load().await.unwrap();
    assert_eq!(loaded.users, [user]);
    assert_eq!(loaded.nodes, [written]);
    assert_eq!(loaded.address_cursor, 41);
    assert_eq!(loaded.number, committed.number);
}

#[tokio::test]
async fn change_numbers_grow_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut numbers = Vec::new();
    for name in ["ann", "bob", "eve"] {
        numbers.push(store.create_user(name, now()).await.unwrap().number.0);
    }
    assert_eq!(numbers, [1, 2, 3]);
    assert!(matches!(
        store.create_user("ann", now()).await,
        Err(StoreError::Taken(Unique::UserName))
    ));
    assert_eq!(
        store.load().await.unwrap().number.0,
        3,
        "what failed took no number"
    );
}

#[tokio::test]
async fn the_database_guards_addresses_names_and_keys() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = store.create_user("ann", now()).await.unwrap().value.id;
    let first = node(user, 1);
    store.insert_node(&first, 1, None, now()).await.unwrap();
    for (clash, expected) in [
        (
            Node {
                addresses: first.addresses,
                ..node(user, 2)
            },
            Unique::Address,
        ),
        (
            Node {
                name: first.name.clone(),
                ..node(user, 2)
            },
            Unique::NodeName,
        ),
        (
            Node {
                key: first.key,
                ..node(user, 2)
            },
            Unique::NodeKey,
        ),
    ] {
        let refused = store.insert_node(&clash, 2, None, now()).await;
        assert!(
            matches!(refused, Err(StoreError::Taken(what)) if what == expected),
            "{refused:?}"
        );
    }
    assert_eq!(
        store.load().await.unwrap().address_cursor,
        1,
        "nothing of them was kept"
    );
}

#[tokio::test]
async fn a_one_shot_key_is_spent_with_the_node_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = store.create_user("ann", now()).await.unwrap().value.id;
    let key = store
        .create_auth_key(&one_shot(user), "hash")
        .await
        .unwrap()
        .value;
    store
        .insert_node(&node(user, 1), 1, None, now())
        .await
        .unwrap();

    // Fails on the address: the key must stay good.
    let clash = Node {
        addresses: node(user, 1).addresses,
        ..node(user, 2)
    };
    store
        .insert_node(&clash, 1, Some(key.id), now())
        .await
        .unwrap_err();
    store
        .insert_node(&node(user, 2), 2, Some(key.id), now())
        .await
        .unwrap();
    let again = store
        .insert_node(&node(user, 3), 3, Some(key.id), now())
        .await;
    assert!(
        matches!(again, Err(StoreError::Refused(KeyRefusal::Used))),
        "{again:?}"
    );
    assert_eq!(store.load().await.unwrap().nodes.len(), 2);
}

#[tokio::test]
async fn expired_and_revoked_keys_admit_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = store.create_user("ann", now()).await.unwrap().value.id;
    let key = store
        .create_auth_key(&one_shot(user), "hash")
        .await
        .unwrap()
        .value;
    let late = now() + time::Duration::HOUR;
    let refused = store
        .insert_node(&node(user, 1), 1, Some(key.id), late)
        .await;
    assert!(
        matches!(refused, Err(StoreError::Refused(KeyRefusal::Expired))),
        "{refused:?}"
    );
    assert!(store.revoke_auth_key(key.id, now()).await.unwrap().value);
    let refused = store
        .insert_node(&node(user, 1), 1, Some(key.id), now())
        .await;
    assert!(
        matches!(refused, Err(StoreError::Refused(KeyRefusal::Revoked))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_user_with_nodes_cannot_be_deleted_and_one_with_keys_can() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = store.create_user("ann", now()).await.unwrap().value.id;
    store
        .create_auth_key(&one_shot(user), "hash")
        .await
        .unwrap();
    let id = store
        .insert_node(&node(user, 1), 1, None, now())
        .await
        .unwrap()
        .value;
    assert!(matches!(
        store.delete_user(user).await,
        Err(StoreError::InUse)
    ));
    assert_eq!(
        store.auth_keys().await.unwrap().len(),
        1,
        "its keys are still there"
    );
    store.delete_node(id).await.unwrap();
    store.delete_user(user).await.unwrap();
    assert!(store.auth_keys().await.unwrap().is_empty());
}

#[tokio::test]
async fn node_numbers_are_never_used_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = store.create_user("ann", now()).await.unwrap().value.id;
    let first = store
        .insert_node(&node(user, 1), 1, None, now())
        .await
        .unwrap()
        .value;
    store.delete_node(first).await.unwrap();
    let second = store
        .insert_node(&node(user, 1), 2, None, now())
        .await
        .unwrap()
        .value;
    assert!(second > first);
}

#[tokio::test]
async fn a_second_server_on_the_same_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(folder.path()).await;
    let second = SqliteStore::open(&folder.path().join("control.db"), DEFAULT_TAILNET).await;
    assert!(matches!(second, Err(StoreError::Locked)), "{second:?}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.db");
    std::fs::write(&path, "not a database, but precious".repeat(100)).unwrap();
    SqliteStore::open(&path, DEFAULT_TAILNET).await.unwrap_err();
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .starts_with("not a database")
    );
}

fn new_policy(text: &str, replaces: Option<i64>) -> NewPolicy {
    NewPolicy {
        text: text.to_owned(),
        context: Context {
            domains: vec!["example.com".to_owned()],
            known_groups: vec!["group:idp".to_owned()],
            ssh_check: false,
        },
        author: "root".to_owned(),
        created: now(),
        replaces,
        approvals: Vec::new(),
    }
}

#[tokio::test]
async fn policies_are_versions_and_the_newest_is_loaded_with_what_it_approved() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    assert!(store.load().await.unwrap().policy.is_none());
    let user = store.create_user("ann", now()).await.unwrap().value.id;
    let id = store.insert_node(&node(user, 7), 7, None, now()).await;
    let id = id.unwrap().value;
    let text = "// with a comment\n{}\n";
    let first = store.set_policy(&new_policy("{}", None)).await.unwrap();
    let routes = BTreeSet::from(["192.0.2.0/24".parse().unwrap()]);
    let second = NewPolicy {
        approvals: vec![(id, routes.clone())],
        ..new_policy(text, Some(1))
    };
    let second = store.set_policy(&second).await.unwrap();
    assert_eq!((first.value.version, second.value.version), (1, 2));
    assert_eq!(second.number.0, first.number.0 + 1, "one change");
    store.close().await;

    let store = open(folder.path()).await;
    let loaded = store.load().await.unwrap();
    let policy = loaded.policy.unwrap();
    assert_eq!((policy.version, policy.text.as_str()), (2, text));
    assert_eq!((policy.author.as_str(), policy.created), ("root", now()));
    assert_eq!(policy.context.domains, ["example.com"]);
    assert_eq!(policy.context.known_groups, ["group:idp"]);
    assert_eq!(loaded.nodes[0].approved_routes, routes);
    let kept = store.policies().await.unwrap();
    let versions: Vec<_> = kept.iter().map(|policy| policy.version).collect();
    assert_eq!(versions, [2, 1], "the newest first");
    for (version, expected) in [(None, Some(text)), (Some(1), Some("{}")), (Some(3), None)] {
        let policy = store.policy(version).await.unwrap();
        assert_eq!(policy.as_ref().map(|it| it.text.as_str()), expected);
    }
}

#[tokio::test]
async fn a_policy_replaces_the_version_that_its_author_saw_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.set_policy(&new_policy("{}", Some(0))).await.unwrap();
    let number = store.load().await.unwrap().number;
    for outdated in [0, 2] {
        let refused = store.set_policy(&new_policy("[]", Some(outdated))).await;
        assert!(matches!(
            refused,
            Err(StoreError::Superseded { current: 1 })
        ));
    }
    let loaded = store.load().await.unwrap();
    assert_eq!(loaded.policy.unwrap().text, "{}");
    assert_eq!(loaded.number, number, "what was refused took no number");
}

#[tokio::test]
async fn the_newest_hundred_policies_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for _ in 0..103 {
        store.set_policy(&new_policy("{}", None)).await.unwrap();
    }
    let kept = store.policies().await.unwrap();
    let versions = kept.iter().map(|policy| policy.version);
    assert_eq!(
        versions.collect::<Vec<_>>(),
        Vec::from_iter((4..=103).rev())
    );
}

#[tokio::test]
async fn there_is_one_owner_and_ownership_is_handed_over_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let ann = store.create_user("ann", now()).await.unwrap().value;
    let bob = store.create_user("bob", now()).await.unwrap().value;
    assert_eq!((ann.role, bob.role), (Role::Owner, Role::Member));

    let changed = store.set_role(bob.id, Role::Owner).await.unwrap().value;
    let roles: Vec<_> = changed.iter().map(|user| (user.id, user.role)).collect();
    assert_eq!(roles, [(ann.id, Role::Admin), (bob.id, Role::Owner)]);
    let changed = store.set_role(ann.id, Role::Auditor).await.unwrap().value;
    assert_eq!(changed.len(), 1);
    let unknown = store.set_role(UserId(99), Role::Owner).await;
    assert!(matches!(unknown, Err(StoreError::Missing)));
    let loaded = store.load().await.unwrap().users;
    let roles: Vec<_> = loaded.iter().map(|user| user.role).collect();
    assert_eq!(
        roles,
        [Role::Auditor, Role::Owner],
        "and a refusal changes nobody"
    );
}

#[tokio::test]
async fn the_oldest_user_of_a_database_without_roles_becomes_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let mut migrations = sqlx::migrate!("./migrations");
    let first = migrations.migrations.to_mut();
    first.truncate(1);
    migrations.run(&pool).await.unwrap();
    for name in ["ann", "bob"] {
        sqlx::query("INSERT INTO users (tailnet_id, name, created_at) VALUES (1, ?, 0)")
            .bind(name)
            .execute(&pool)
            .await
            .unwrap();
    }
    pool.close().await;
    let users = open(folder.path()).await.load().await.unwrap().users;
    let roles: Vec<_> = users.iter().map(|user| (&*user.name, user.role)).collect();
    assert_eq!(roles, [("ann", Role::Owner), ("bob", Role::Member)]);
}
