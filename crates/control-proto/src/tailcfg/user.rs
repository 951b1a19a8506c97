//! People: accounts, logins and what others see of them.

use serde::{Deserialize, Serialize};

use super::{UserId, is_default};
use crate::Timestamp;

/// An account.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct User {
    /// Number of the account.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Name shown to people.
    #[serde(rename = "DisplayName")]
    pub display_name: String,
    /// Picture, or empty.
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "is_default")]
    pub profile_pic_url: String,
    /// When the account was made.
    #[serde(rename = "Created", skip_serializing_if = "is_default")]
    pub created: Timestamp,
}

/// A way into an account.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Login {
    /// Number of the login.
    #[serde(rename = "ID")]
    pub id: i64,
    /// Who vouches for it, such as `google` or `cli`.
    #[serde(rename = "Provider")]
    pub provider: String,
    /// Looks like an e-mail address.
    #[serde(rename = "LoginName")]
    pub login_name: String,
    /// Name shown to people.
    #[serde(rename = "DisplayName")]
    pub display_name: String,
    /// Picture, or empty.
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "is_default")]
    pub profile_pic_url: String,
}

/// What nodes learn about the owner of a peer.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct UserProfile {
    /// Number of the account.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Looks like an e-mail address.
    #[serde(rename = "LoginName")]
    pub login_name: String,
    /// Name shown to people.
    #[serde(rename = "DisplayName")]
    pub display_name: String,
    /// Picture, or empty.
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "is_default")]
    pub profile_pic_url: String,
    /// Groups the server tells about.
    #[serde(rename = "Groups", skip_serializing_if = "is_default")]
    pub groups: Vec<String>,
}
