//! The versions of the policy.

use sqlx::{Sqlite, Transaction};

use super::SqliteStore;
use super::rows::{self, refine, to_json};
use crate::store::{Committed, NewPolicy, PolicyEntry, StoreError, StoredPolicy};

/// How many versions are kept.
const KEPT: i64 = 100;

impl SqliteStore {
    /// All versions, newest first, without their texts: those may be long.
    pub(super) async fn policy_entries(&self) -> Result<Vec<PolicyEntry>, StoreError> {
        let rows = sqlx::query(
            "SELECT version, author, created_at FROM policies WHERE tailnet_id = ? \
             ORDER BY version DESC",
        )
        .bind(self.tailnet.0)
        .fetch_all(&self.pool)
        .await
        .map_err(refine)?;
        rows.iter().map(rows::policy_entry).collect()
    }

    pub(super) async fn policy_version(
        &self,
        version: Option<i64>,
    ) -> Result<Option<StoredPolicy>, StoreError> {
        let row = sqlx::query(
            "SELECT * FROM policies WHERE tailnet_id = ?1 AND version = \
             COALESCE(?2, (SELECT MAX(version) FROM policies WHERE tailnet_id = ?1))",
        )
        .bind(self.tailnet.0)
        .bind(version)
        .fetch_optional(&self.pool)
        .await
        .map_err(refine)?;
        row.as_ref().map(rows::policy).transpose()
    }

    pub(super) async fn add_policy(
        &self,
        new: &NewPolicy,
    ) -> Result<Committed<StoredPolicy>, StoreError> {
        let mut tx = self.begin().await?;
        let current = self.current_version(&mut tx).await?;
        if new.replaces.is_some_and(|expected| expected != current) {
            return Err(StoreError::Superseded { current });
        }
        let row = sqlx::query(
            "INSERT INTO policies (tailnet_id, version, text, domains, known_groups, author, \
             created_at) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING *",
        )
        .bind(self.tailnet.0)
        .bind(current + 1)
        .bind(&new.text)
        .bind(to_json("domains", &new.context.domains)?)
        .bind(to_json("known_groups", &new.context.known_groups)?)
        .bind(&new.author)
        .bind(new.created.unix_timestamp())
        .fetch_one(&mut *tx)
        .await
        .map_err(refine)?;
        let value = rows::policy(&row)?;
        sqlx::query("DELETE FROM policies WHERE tailnet_id = ? AND version <= ?")
            .bind(self.tailnet.0)
            .bind(value.version - KEPT)
            .execute(&mut *tx)
            .await
            .map_err(refine)?;
        for (node, routes) in &new.approvals {
            sqlx::query("UPDATE nodes SET approved_routes = ? WHERE tailnet_id = ? AND id = ?")
                .bind(to_json("approved_routes", routes)?)
                .bind(self.tailnet.0)
                .bind(node.0)
                .execute(&mut *tx)
                .await
                .map_err(refine)?;
        }
        let number = self.commit(tx, "policy", value.version).await?;
        Ok(Committed { value, number })
    }

    async fn current_version(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
    ) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM policies WHERE tailnet_id = ?")
            .bind(self.tailnet.0)
            .fetch_one(&mut **tx)
            .await
            .map_err(refine)
    }
}
