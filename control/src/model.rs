//! What the server remembers: users, auth keys and nodes, as valid types.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use control_proto::tailcfg::{Hostinfo, RegionId};
pub use control_proto::tailcfg::{NodeId, UserId};
use ipnet::IpNet;
use keys::{DiscoPublic, MachinePublic, NodePublic};
pub use policy::tailnet::{Owner, Role};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::address::Addresses;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Names a tailnet in the database.
    TailnetId
}
id! {
    /// Names an auth key; never used twice.
    AuthKeyId
}
/// The one tailnet that a server has until it is told otherwise.
pub const DEFAULT_TAILNET: TailnetId = TailnetId(1);

/// Orders the committed changes of one tailnet.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct ChangeNumber(pub i64);

/// A person (or an account) that owns nodes and auth keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// Its number.
    pub id: UserId,
    /// Unique in the tailnet.
    pub name: String,
    /// What it may do with the tailnet; there is at most one owner.
    pub role: Role,
    /// Groups that the identity provider puts it in, with the `group:` prefix.
    pub groups: BTreeSet<String>,
    /// When an administrator made it.
    pub created: OffsetDateTime,
}

/// An auth key without its secret: only a hash of that is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthKey {
    /// Its number.
    pub id: AuthKeyId,
    /// On whose behalf it admits nodes.
    pub user: UserId,
    /// The part that people recognise it by; not secret.
    pub prefix: String,
    /// Admits any number of nodes.
    pub reusable: bool,
    /// Its nodes are deleted once they have been offline for a while.
    pub ephemeral: bool,
    /// Its nodes carry these tags, and so no owner.
    pub tags: Vec<String>,
    /// When it was made.
    pub created: OffsetDateTime,
    /// When it stops admitting nodes; `None` = never.
    pub expires: Option<OffsetDateTime>,
    /// When it last admitted one.
    pub used: Option<OffsetDateTime>,
    /// When an administrator withdrew it.
    pub revoked: Option<OffsetDateTime>,
}

/// Why an auth key admits nobody (any more).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyRefusal {
    /// No such key.
    #[error(
        "invalid auth key: this server does not know it; check for a typing error, or make a new \
         one with `tailrace-control keys create`"
    )]
    Unknown,
    /// One-shot and spent.
    #[error(
        "auth key was already used: it admits one node only; make a new one with \
         `tailrace-control keys create` (`--reusable` for several nodes)"
    )]
    Used,
    /// Past its expiry.
    #[error("auth key has expired: make a new one with `tailrace-control keys create`")]
    Expired,
    /// Withdrawn.
    #[error(
        "auth key was revoked by an administrator: make a new one with `tailrace-control keys create`"
    )]
    Revoked,
}

impl AuthKey {
    /// Does the key admit a node at `now`?
    ///
    /// # Errors
    ///
    /// The reason why not.
    pub fn check(&self, now: OffsetDateTime) -> Result<(), KeyRefusal> {
        if self.revoked.is_some() {
            Err(KeyRefusal::Revoked)
        } else if !self.reusable && self.used.is_some() {
            Err(KeyRefusal::Used)
        } else if self.expires.is_some_and(|at| at <= now) {
            Err(KeyRefusal::Expired)
        } else {
            Ok(())
        }
    }
}

/// A machine in the tailnet.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Opaque name for its whole life.
    pub stable_id: String,
    /// Who brought it in; owns it unless it carries tags.
    pub user: UserId,
    /// Identity of the computer.
    pub machine: MachinePublic,
    /// Identity on the overlay; changes when the node logs in again.
    pub key: NodePublic,
    /// Of the process that runs now, if it told.
    pub disco: Option<DiscoPublic>,
    /// DNS label, unique in the tailnet.
    pub name: String,
    /// An administrator chose the name: the host name no longer decides.
    pub renamed: bool,
    /// On the overlay.
    pub addresses: Addresses,
    /// `tag:…`; a node with tags has no owner.
    pub tags: Vec<String>,
    /// Routes that an administrator or the policy approved, advertised or not; exit routes are
    /// `0.0.0.0/0` and `::/0`, both or neither. Host bits are zero.
    pub approved_routes: BTreeSet<IpNet>,
    /// Deleted at logout, or after a while offline.
    pub ephemeral: bool,
    /// Capability version that it announced last.
    pub capver: u16,
    /// As it told in full.
    pub hostinfo: Hostinfo,
    /// Region of its home relay; 0 = not told yet.
    pub home_derp: RegionId,
    /// Where it can be reached on the underlay.
    pub endpoints: Vec<SocketAddr>,
    /// When it joined.
    pub created: OffsetDateTime,
    /// When its key expires; `None` = never.
    pub expires: Option<OffsetDateTime>,
    /// When its last map stream ended.
    pub last_seen: Option<OffsetDateTime>,
}

impl Node {
    /// Does the node belong to its tags instead of a user?
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        !self.tags.is_empty()
    }

    /// Whose it is, as policies see it.
    #[must_use]
    pub fn owner(&self) -> Owner {
        owner(self.user, &self.tags)
    }

    /// Has its key expired at `now`?
    #[must_use]
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

/// Whose a node of `user` with these tags is, as policies see it.
#[must_use]
pub fn owner(user: UserId, tags: &[String]) -> Owner {
    if tags.is_empty() {
        Owner::User(user)
    } else {
        Owner::Tags(tags.iter().cloned().collect())
    }
}
