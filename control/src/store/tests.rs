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
