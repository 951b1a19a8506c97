//! The database: one trait, a module per kind of database.
//!
//! Every write is one transaction that ends with a new [`ChangeNumber`]; the caller hands the
//! result to the engine in that order. Reads happen once, at start: the engine holds the state.

use std::collections::BTreeSet;

use futures_util::future::BoxFuture;
use ipnet::IpNet;
use policy::file::Context;
use time::OffsetDateTime;

use crate::address::Addresses;
use crate::model::{
    AuthKey, AuthKeyId, ChangeNumber, KeyRefusal, Node, NodeId, Role, User, UserId,
};

pub(crate) mod measured;
pub mod sqlite;
#[cfg(test)]
mod tests;

/// Result of a [`Store`] operation, to be awaited.
pub type Pending<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Everything that outlives the process, for one tailnet.
pub trait Store: Send + Sync {
    /// Reads the whole tailnet.
    fn load(&self) -> Pending<'_, Loaded>;

    /// Adds a user; [`StoreError::Taken`] if the name exists. The first one owns the tailnet, others
    /// are members.
    fn create_user<'a>(
        &'a self,
        name: &'a str,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<User>>;

    /// Gives a user a role; a new owner makes the former one an admin. Returns all users that changed.
    fn set_role(&self, id: UserId, role: Role) -> Pending<'_, Committed<Vec<User>>>;

    /// Deletes a user and its auth keys; [`StoreError::InUse`] while nodes belong to it.
    fn delete_user(&self, id: UserId) -> Pending<'_, Committed<()>>;

    /// Adds an auth key, known from now on by `secret_hash` (hex of SHA-256).
    fn create_auth_key<'a>(
        &'a self,
        key: &'a NewAuthKey,
        secret_hash: &'a str,
    ) -> Pending<'a, Committed<AuthKey>>;

    /// All auth keys, revoked and spent ones included.
    fn auth_keys(&self) -> Pending<'_, Vec<AuthKey>>;

    /// The auth key with this hash.
    fn find_auth_key<'a>(&'a self, secret_hash: &'a str) -> Pending<'a, Option<AuthKey>>;

    /// Withdraws an auth key; `false` if there is none with that number, or it was withdrawn before.
    fn revoke_auth_key(&self, id: AuthKeyId, now: OffsetDateTime) -> Pending<'_, Committed<bool>>;

    /// Adds a node; its `id` is ignored and chosen by the database. With `spend`, in the same
    /// transaction, marks that auth key used: [`StoreError::Refused`] if it admits nobody now.
    fn insert_node<'a>(
        &'a self,
        node: &'a Node,
        address_cursor: u32,
        spend: Option<AuthKeyId>,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<NodeId>>;

    /// Replaces a node, all but what it reports, see [`Store::save_reports`]; `spend` as for
    /// [`Store::insert_node`].
    fn update_node<'a>(
        &'a self,
        node: &'a Node,
        spend: Option<AuthKeyId>,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<()>>;

    /// Deletes a node.
    fn delete_node(&self, id: NodeId) -> Pending<'_, Committed<()>>;

    /// Writes what nodes report all the time (endpoints, home relay, disco key, host details,
    /// capability version, last seen) for many nodes at once. Without a change number: it is written behind.
    fn save_reports<'a>(&'a self, nodes: &'a [Node]) -> Pending<'a, ()>;

    /// Adds a version of the policy, and approves routes with it: all or nothing.
    /// [`StoreError::Superseded`] if it is not the expected version's successor.
    fn set_policy<'a>(&'a self, new: &'a NewPolicy) -> Pending<'a, Committed<StoredPolicy>>;

    /// The versions of the policy that are kept (100), newest first.
    fn policies(&self) -> Pending<'_, Vec<PolicyEntry>>;

    /// A version of the policy, if it is kept; `None` = the newest.
    fn policy(&self, version: Option<i64>) -> Pending<'_, Option<StoredPolicy>>;

    /// Does the database answer?
    fn check(&self) -> Pending<'_, ()>;

    /// Bytes that the database takes.
    fn size(&self) -> Pending<'_, u64>;

    /// Writes everything to the main file and closes.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A value, and the number under which it was committed.
#[derive(Clone, Debug)]
pub struct Committed<T> {
    /// What the operation made.
    pub value: T,
    /// Its place among the changes of the tailnet.
    pub number: ChangeNumber,
}

/// A tailnet as read at start.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Number of the last change.
    pub number: ChangeNumber,
    /// Where the search for a free address goes on, see [`Addresses::next`].
    pub address_cursor: u32,
    /// All users.
    pub users: Vec<User>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// The newest policy, if there ever was one.
    pub policy: Option<StoredPolicy>,
}

/// A version of the policy.
#[derive(Clone, Debug)]
pub struct StoredPolicy {
    /// From 1.
    pub version: i64,
    /// As it was set, comments and all.
    pub text: String,
    /// Domains and groups of the tailnet when it was accepted.
    pub context: Context,
    /// Who set it.
    pub author: String,
    /// When.
    pub created: OffsetDateTime,
}

/// A version of the policy, as listed.
#[derive(Clone, Debug)]
pub struct PolicyEntry {
    /// See [`StoredPolicy::version`].
    pub version: i64,
    /// See [`StoredPolicy::author`].
    pub author: String,
    /// See [`StoredPolicy::created`].
    pub created: OffsetDateTime,
}

/// A policy to be put in force.
#[derive(Clone, Debug)]
pub struct NewPolicy {
    /// See [`StoredPolicy::text`].
    pub text: String,
    /// See [`StoredPolicy::context`].
    pub context: Context,
    /// See [`StoredPolicy::author`].
    pub author: String,
    /// See [`StoredPolicy::created`].
    pub created: OffsetDateTime,
    /// The version that it must succeed, 0 = none; `None` = whichever there is.
    pub replaces: Option<i64>,
    /// Nodes that get routes approved by it, with all their approved routes.
    pub approvals: Vec<(NodeId, BTreeSet<IpNet>)>,
}

/// What an administrator asks of a new auth key.
#[derive(Clone, Debug)]
pub struct NewAuthKey {
    /// See [`AuthKey::user`].
    pub user: UserId,
    /// See [`AuthKey::prefix`].
    pub prefix: String,
    /// See [`AuthKey::reusable`].
    pub reusable: bool,
    /// See [`AuthKey::ephemeral`].
    pub ephemeral: bool,
    /// See [`AuthKey::tags`].
    pub tags: Vec<String>,
    /// See [`AuthKey::created`].
    pub created: OffsetDateTime,
    /// See [`AuthKey::expires`].
    pub expires: Option<OffsetDateTime>,
}

/// Why the database did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A uniqueness constraint spoke: someone else was first.
    #[error("{0} is already taken")]
    Taken(Unique),
    /// Others refer to it.
    #[error("still in use")]
    InUse,
    /// No row with that number.
    #[error("does not exist (any more)")]
    Missing,
    /// The auth key admits nobody.
    #[error(transparent)]
    Refused(#[from] KeyRefusal),
    /// Somebody else set another policy meanwhile.
    #[error(
        "the policy is at version {current} by now: look at it (`tailrace-control policy get`), then \
         set yours again"
    )]
    Superseded {
        /// The newest version.
        current: i64,
    },
    /// Another process has the database.
    #[error(
        "the database is in use by another tailrace-control: stop it first, or choose another --state-dir"
    )]
    Locked,
    /// A row does not hold what this version writes.
    #[error("the database holds a bad {column}: {reason}; restore a backup")]
    Corrupt {
        /// Column of the row.
        column: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Anything else the database says.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("database migration: {0}; was this state folder used by a newer version?")]
    Migration(#[from] sqlx::migrate::MigrateError),
}

/// What the database keeps unique.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unique {
    /// Name of a user.
    UserName,
    /// Name of a node.
    NodeName,
    /// Key of a node.
    NodeKey,
    /// Address of a node.
    Address,
    /// Anything else.
    Other,
}

impl std::fmt::Display for Unique {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Unique::UserName => "that user name",
            Unique::NodeName => "that node name",
            Unique::NodeKey => "that node key",
            Unique::Address => "that address",
            Unique::Other => "that value",
        })
    }
}

/// Offset of an address pair in the range, for stores that keep only the IPv4 text.
pub(crate) fn addresses_from_v4(text: &str) -> Option<Addresses> {
    Addresses::with_v4(text.parse().ok()?)
}
