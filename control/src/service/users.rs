//! Users.

use super::{Control, ServiceError, conflict, now};
use crate::model::{Role, User};
use crate::names;
use crate::store::StoreError;

impl Control {
    /// Adds a user. The first one owns the tailnet, the others are members.
    ///
    /// # Errors
    ///
    /// The name is not one, or taken.
    pub async fn create_user(&self, name: &str) -> Result<User, ServiceError> {
        if !names::is_user(name) {
            return Err(ServiceError::Invalid(format!(
                "{name:?} is not a user name: use up to 128 letters, digits and . _ - + @"
            )));
        }
        let _writer = self.writer().await;
        let committed = self
            .store
            .create_user(name, now())
            .await
            .map_err(|error| conflict(error, name))?;
        self.engine
            .put_user(committed.number, committed.value.clone());
        Ok(committed.value)
    }

    /// Gives a user a role. A new owner makes the former one an admin. Returns all that changed.
    ///
    /// # Errors
    ///
    /// There is no such user, or the tailnet would lose its owner.
    pub async fn set_role(&self, name: &str, role: Role) -> Result<Vec<User>, ServiceError> {
        let _writer = self.writer().await;
        let user = self.find_user(name)?;
        if user.role == role {
            return Ok(Vec::new());
        }
        if user.role == Role::Owner {
            return Err(owner_needed(name));
        }
        let committed = self.store.set_role(user.id, role).await?;
        for user in &committed.value {
            self.engine.put_user(committed.number, user.clone());
        }
        Ok(committed.value)
    }

    /// Deletes a user and its auth keys.
    ///
    /// # Errors
    ///
    /// There is no such user, nodes belong to it, or it owns a tailnet that has other users.
    pub async fn delete_user(&self, name: &str) -> Result<(), ServiceError> {
        let _writer = self.writer().await;
        let user = self.find_user(name)?;
        if user.role == Role::Owner && self.engine.counts().users > 1 {
            return Err(owner_needed(name));
        }
        let committed = self
            .store
            .delete_user(user.id)
            .await
            .map_err(|error| match error {
                StoreError::InUse => ServiceError::Conflict(format!(
                    "user {name} still has nodes: delete them first (`tailrace-control nodes list`)"
                )),
                other => ServiceError::Store(other),
            })?;
        self.engine.remove_user(committed.number, user.id);
        Ok(())
    }

    pub(super) fn find_user(&self, name: &str) -> Result<User, ServiceError> {
        self.engine.user_named(name).ok_or_else(|| {
            ServiceError::NotFound(format!(
                "there is no user {name}: see `tailrace-control users list`, or make it with \
                 `tailrace-control users create {name}`"
            ))
        })
    }
}

fn owner_needed(name: &str) -> ServiceError {
    ServiceError::Conflict(format!(
        "user {name} owns the tailnet: make another user its owner first (`tailrace-control users role \
         NAME owner`)"
    ))
}
