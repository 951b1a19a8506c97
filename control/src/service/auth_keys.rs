//! Auth keys: made once, shown once, kept as a hash.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Control, ServiceError, now, random_text};
use crate::model::{AuthKey, AuthKeyId, KeyRefusal};
use crate::store::{NewAuthKey, StoreError};

/// What every auth key starts with.
const KIND: &str = "trkey-auth-";
/// Characters of the part that is kept and shown in lists.
const PREFIX_LEN: usize = 8;
/// Characters of the secret part: 198 bits.
const SECRET_LEN: usize = 40;

/// What an administrator asks of a new auth key.
#[derive(Clone, Debug)]
pub struct AuthKeyRequest {
    /// Name of the user on whose behalf it admits nodes.
    pub user: String,
    /// Admits any number of nodes.
    pub reusable: bool,
    /// Its nodes are deleted after a while offline.
    pub ephemeral: bool,
    /// `tag:a` or just `a`.
    pub tags: Vec<String>,
    /// How long it admits nodes.
    pub valid_for: Duration,
}

/// A new auth key, the only time that its text is known.
#[derive(Clone, Debug)]
pub struct IssuedKey {
    /// What is kept of it.
    pub key: AuthKey,
    /// What the node needs.
    pub secret: String,
}

impl Control {
    /// Makes an auth key.
    ///
    /// # Errors
    ///
    /// There is no such user, a tag is not one or unknown to the policy, or the key would not live for a second.
    pub async fn create_auth_key(&self, ask: AuthKeyRequest) -> Result<IssuedKey, ServiceError> {
        if ask.valid_for < Duration::from_secs(1) {
            let text = "--expiry must be a second at least, such as 24h";
            return Err(ServiceError::Invalid(text.to_owned()));
        }
        let _writer = self.writer().await;
        let tags = self.parse_tags(&ask.tags)?;
        let user = self.find_user(&ask.user)?;
        let created = now();
        let expires = created
            .checked_add(ask.valid_for.try_into().unwrap_or(time::Duration::MAX))
            .ok_or_else(|| ServiceError::Invalid("--expiry is too far in the future".to_owned()))?;
        let prefix = format!("{KIND}{}", random_text(PREFIX_LEN));
        let secret = format!("{prefix}-{}", random_text(SECRET_LEN));
        let new = NewAuthKey {
            user: user.id,
            prefix,
            reusable: ask.reusable,
            ephemeral: ask.ephemeral,
            tags,
            created,
            expires: Some(expires),
        };
        let committed = self.store.create_auth_key(&new, &hash(&secret)).await?;
        self.engine.put_nothing(committed.number);
        Ok(IssuedKey {
            key: committed.value,
            secret,
        })
    }

    /// All auth keys, without their secrets.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn auth_keys(&self) -> Result<Vec<AuthKey>, ServiceError> {
        Ok(self.store.auth_keys().await?)
    }

    /// Withdraws an auth key; nodes that it admitted stay.
    ///
    /// # Errors
    ///
    /// There is no such key, or it was withdrawn before.
    pub async fn revoke_auth_key(&self, id: AuthKeyId) -> Result<(), ServiceError> {
        let _writer = self.writer().await;
        let revoked = self.store.revoke_auth_key(id, now()).await?;
        self.engine.put_nothing(revoked.number);
        if revoked.value {
            Ok(())
        } else {
            Err(ServiceError::NotFound(format!(
                "there is no auth key {id} to revoke, or it was revoked before: see \
                 `tailrace-control keys list`"
            )))
        }
    }

    /// The auth key with this text, if it admits a node now.
    pub(super) async fn check_auth_key(&self, secret: &str) -> Result<AuthKey, StoreError> {
        let key = self
            .store
            .find_auth_key(&hash(secret))
            .await?
            .ok_or(KeyRefusal::Unknown)?;
        key.check(now())?;
        Ok(key)
    }
}

fn hash(secret: &str) -> String {
    let digest = Sha256::digest(secret.trim().as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
