//! A database of which is known how long it takes: [`Measured`].

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use time::OffsetDateTime;

use super::{
    Committed, Loaded, NewAuthKey, NewPolicy, Pending, PolicyEntry, Store, StoreError, StoredPolicy,
};
use crate::metrics::DatabaseMetrics;
use crate::model::{AuthKey, AuthKeyId, Node, NodeId, Role, User, UserId};

/// Passes everything on and measures it.
pub(crate) struct Measured {
    store: Arc<dyn Store>,
    metrics: DatabaseMetrics,
}

impl Measured {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: DatabaseMetrics) -> Self {
        Self { store, metrics }
    }

    fn measure<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        pending: Pending<'a, T>,
    ) -> Pending<'a, T> {
        Box::pin(async move {
            let start = Instant::now();
            let result = pending.await;
            // The others are answers to who asked, not failures of the database.
            let failed = matches!(
                result,
                Err(StoreError::Database(_) | StoreError::Corrupt { .. } | StoreError::Locked)
            );
            self.metrics.observe(operation, start.elapsed(), failed);
            result
        })
    }

    fn read<'a, T: Send + 'a>(&'a self, pending: Pending<'a, T>) -> Pending<'a, T> {
        self.measure("read", pending)
    }

    fn commit<'a, T: Send + 'a>(&'a self, pending: Pending<'a, T>) -> Pending<'a, T> {
        self.measure("commit", pending)
    }
}

impl Store for Measured {
    fn load(&self) -> Pending<'_, Loaded> {
        self.read(self.store.load())
    }

    fn create_user<'a>(
        &'a self,
        name: &'a str,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<User>> {
        self.commit(self.store.create_user(name, now))
    }

    fn set_role(&self, id: UserId, role: Role) -> Pending<'_, Committed<Vec<User>>> {
        self.commit(self.store.set_role(id, role))
    }

    fn delete_user(&self, id: UserId) -> Pending<'_, Committed<()>> {
        self.commit(self.store.delete_user(id))
    }

    fn create_auth_key<'a>(
        &'a self,
        key: &'a NewAuthKey,
        secret_hash: &'a str,
    ) -> Pending<'a, Committed<AuthKey>> {
        self.commit(self.store.create_auth_key(key, secret_hash))
    }

    fn auth_keys(&self) -> Pending<'_, Vec<AuthKey>> {
        self.read(self.store.auth_keys())
    }

    fn find_auth_key<'a>(&'a self, secret_hash: &'a str) -> Pending<'a, Option<AuthKey>> {
        self.read(self.store.find_auth_key(secret_hash))
    }

    fn revoke_auth_key(&self, id: AuthKeyId, now: OffsetDateTime) -> Pending<'_, Committed<bool>> {
        self.commit(self.store.revoke_auth_key(id, now))
    }

    fn insert_node<'a>(
        &'a self,
        node: &'a Node,
        address_cursor: u32,
        spend: Option<AuthKeyId>,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<NodeId>> {
        self.commit(self.store.insert_node(node, address_cursor, spend, now))
    }

    fn update_node<'a>(
        &'a self,
        node: &'a Node,
        spend: Option<AuthKeyId>,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<()>> {
        self.commit(self.store.update_node(node, spend, now))
    }

    fn delete_node(&self, id: NodeId) -> Pending<'_, Committed<()>> {
        self.commit(self.store.delete_node(id))
    }

    fn save_reports<'a>(&'a self, nodes: &'a [Node]) -> Pending<'a, ()> {
        self.measure("report", self.store.save_reports(nodes))
    }

    fn set_policy<'a>(&'a self, new: &'a NewPolicy) -> Pending<'a, Committed<StoredPolicy>> {
        self.commit(self.store.set_policy(new))
    }

    fn policies(&self) -> Pending<'_, Vec<PolicyEntry>> {
        self.read(self.store.policies())
    }

    fn policy(&self, version: Option<i64>) -> Pending<'_, Option<StoredPolicy>> {
        self.read(self.store.policy(version))
    }

    fn check(&self) -> Pending<'_, ()> {
        self.measure("check", self.store.check())
    }

    fn size(&self) -> Pending<'_, u64> {
        self.read(self.store.size())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.store.close()
    }
}
