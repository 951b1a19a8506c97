//! Rows of the database as valid types, and what SQLite says as errors that callers can act on.

use std::str::FromStr;

use policy::file::Context;
use policy::tailnet::Role;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use crate::model::{AuthKey, AuthKeyId, Node, NodeId, User, UserId};
use crate::store::{PolicyEntry, StoreError, StoredPolicy, Unique, addresses_from_v4};

/// Turns what SQLite says about constraints and locks into what the caller can act on.
pub(super) fn refine(error: sqlx::Error) -> StoreError {
    let Some(database) = error.as_database_error() else {
        return StoreError::Database(error);
    };
    if database.is_foreign_key_violation() {
        return StoreError::InUse;
    }
    let message = database.message();
    if message.contains("database is locked") {
        return StoreError::Locked;
    }
    if !database.is_unique_violation() {
        return StoreError::Database(error);
    }
    // SQLite names the columns: "UNIQUE constraint failed: nodes.node_key".
    StoreError::Taken(if message.contains("users.name") {
        Unique::UserName
    } else if message.contains("nodes.name") {
        Unique::NodeName
    } else if message.contains("nodes.node_key") {
        Unique::NodeKey
    } else if message.contains("nodes.ipv4") || message.contains("nodes.ipv6") {
        Unique::Address
    } else {
        Unique::Other
    })
}

pub(super) fn user(row: &SqliteRow) -> Result<User, StoreError> {
    Ok(User {
        id: UserId(row.try_get("id")?),
        name: row.try_get("name")?,
        role: from_text::<Role>("role", row.try_get("role")?)?,
        groups: from_json("user_groups", row.try_get("user_groups")?)?,
        created: instant("created_at", row.try_get("created_at")?)?,
    })
}

pub(super) fn policy(row: &SqliteRow) -> Result<StoredPolicy, StoreError> {
    Ok(StoredPolicy {
        version: row.try_get("version")?,
        text: row.try_get("text")?,
        context: Context {
            domains: from_json("domains", row.try_get("domains")?)?,
            known_groups: from_json("known_groups", row.try_get("known_groups")?)?,
            ..Context::default()
        },
        author: row.try_get("author")?,
        created: instant("created_at", row.try_get("created_at")?)?,
    })
}

pub(super) fn policy_entry(row: &SqliteRow) -> Result<PolicyEntry, StoreError> {
    Ok(PolicyEntry {
        version: row.try_get("version")?,
        author: row.try_get("author")?,
        created: instant("created_at", row.try_get("created_at")?)?,
    })
}

pub(super) fn auth_key(row: &SqliteRow) -> Result<AuthKey, StoreError> {
    Ok(AuthKey {
        id: AuthKeyId(row.try_get("id")?),
        user: UserId(row.try_get("user_id")?),
        prefix: row.try_get("prefix")?,
        reusable: row.try_get("reusable")?,
        ephemeral: row.try_get("ephemeral")?,
        tags: from_json("tags", row.try_get("tags")?)?,
        created: instant("created_at", row.try_get("created_at")?)?,
        expires: maybe_instant("expires_at", row.try_get("expires_at")?)?,
        used: maybe_instant("used_at", row.try_get("used_at")?)?,
        revoked: maybe_instant("revoked_at", row.try_get("revoked_at")?)?,
    })
}

pub(super) fn node(row: &SqliteRow) -> Result<Node, StoreError> {
    let v4: String = row.try_get("ipv4")?;
    Ok(Node {
        id: NodeId(row.try_get("id")?),
        stable_id: row.try_get("stable_id")?,
        user: UserId(row.try_get("user_id")?),
        machine: from_text("machine_key", row.try_get("machine_key")?)?,
        key: from_text("node_key", row.try_get("node_key")?)?,
        disco: row
            .try_get::<Option<&str>, _>("disco_key")?
            .map(|text| from_text("disco_key", text))
            .transpose()?,
        name: row.try_get("name")?,
        renamed: row.try_get("renamed")?,
        addresses: addresses_from_v4(&v4).ok_or_else(|| StoreError::Corrupt {
            column: "ipv4",
            reason: format!("{v4} is not an address of the overlay"),
        })?,
        tags: from_json("tags", row.try_get("tags")?)?,
        approved_routes: from_json("approved_routes", row.try_get("approved_routes")?)?,
        ephemeral: row.try_get("ephemeral")?,
        capver: row.try_get("capver")?,
        hostinfo: from_json("hostinfo", row.try_get("hostinfo")?)?,
        home_derp: row.try_get("home_derp")?,
        endpoints: from_json("endpoints", row.try_get("endpoints")?)?,
        created: instant("created_at", row.try_get("created_at")?)?,
        expires: maybe_instant("expires_at", row.try_get("expires_at")?)?,
        last_seen: maybe_instant("last_seen", row.try_get("last_seen")?)?,
    })
}

fn instant(column: &'static str, seconds: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| corrupt(column, &error))
}

fn maybe_instant(
    column: &'static str,
    seconds: Option<i64>,
) -> Result<Option<OffsetDateTime>, StoreError> {
    seconds.map(|seconds| instant(column, seconds)).transpose()
}

fn from_text<T: FromStr<Err: std::fmt::Display>>(
    column: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse()
        .map_err(|error: T::Err| corrupt(column, &error))
}

fn from_json<T: DeserializeOwned>(column: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt(column, &error))
}

pub(super) fn to_json<T: Serialize>(column: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| corrupt(column, &error))
}

fn corrupt(column: &'static str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt {
        column,
        reason: error.to_string(),
    }
}
