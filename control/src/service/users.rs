//! Users.

use super::{Control, ServiceError, conflict, now};
use crate::model::User;
use crate::names;
use crate::store::StoreError;

impl Control {
    /// Adds a user.
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

    /// Deletes a user and its auth keys.
    ///
    /// # Errors
    ///
    /// There is no such user, or nodes belong to it.
    pub async fn delete_user(&self, name: &str) -> Result<(), ServiceError> {
        let _writer = self.writer().await;
        let user = self.find_user(name)?;
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
