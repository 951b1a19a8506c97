//! The database as one SQLite file.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use policy::tailnet::Role;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Row, Sqlite, SqlitePool, Transaction};
use time::OffsetDateTime;

use super::{
    Committed, Loaded, NewAuthKey, NewPolicy, Pending, PolicyEntry, Store, StoreError, StoredPolicy,
};
use crate::model::{
    AuthKey, AuthKeyId, ChangeNumber, KeyRefusal, Node, NodeId, TailnetId, User, UserId,
};
use rows::{auth_key, node, refine, to_json, user};

mod policies;
mod rows;

/// How many change numbers are kept for replicas that have to catch up.
const CHANGES_KEPT: i64 = 10_000;

/// A tailnet in a SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    tailnet: TailnetId,
}

impl SqliteStore {
    /// Opens or creates the file, and brings its schema up to date.
    ///
    /// Commits reach the disk before they are acknowledged (WAL, `synchronous=FULL`). The file is
    /// locked for the life of the process: two servers on one file would give out addresses twice.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if another server has the file; else what SQLite says.
    pub async fn open(path: &Path, tailnet: TailnetId) -> Result<Self, StoreError> {
        // Made here for its mode; SQLite gives the files beside it the same.
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(sqlx::Error::Io)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .locking_mode(SqliteLockingMode::Exclusive)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(std::time::Duration::from_millis(500));
        // One connection: the lock is per connection, and the engine answers all reads.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(refine)?;
        sqlx::migrate!("./migrations")
            .run(&pool)
            .await
            .map_err(|error| match error {
                sqlx::migrate::MigrateError::Execute(inner) => refine(inner),
                other => StoreError::Migration(other),
            })?;
        Ok(Self { pool, tailnet })
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.pool.begin().await.map_err(refine)
    }

    /// Takes the next change number and commits.
    async fn commit(
        &self,
        mut tx: Transaction<'static, Sqlite>,
        kind: &'static str,
        subject: i64,
    ) -> Result<ChangeNumber, StoreError> {
        let number: i64 = sqlx::query_scalar(
            "UPDATE tailnets SET change_number = change_number + 1 WHERE id = ? RETURNING change_number",
        )
        .bind(self.tailnet.0)
        .fetch_one(&mut *tx)
        .await
        .map_err(refine)?;
        sqlx::query("INSERT INTO changes (tailnet_id, number, kind, subject) VALUES (?, ?, ?, ?)")
            .bind(self.tailnet.0)
            .bind(number)
            .bind(kind)
            .bind(subject)
            .execute(&mut *tx)
            .await
            .map_err(refine)?;
        sqlx::query("DELETE FROM changes WHERE tailnet_id = ? AND number <= ?")
            .bind(self.tailnet.0)
            .bind(number - CHANGES_KEPT)
            .execute(&mut *tx)
            .await
            .map_err(refine)?;
        tx.commit().await.map_err(refine)?;
        Ok(ChangeNumber(number))
    }

    /// Marks an auth key used, if it admits a node at `now`: decided by the database, so that a
    /// one-shot key admits one node however many ask at once.
    async fn spend(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        key: AuthKeyId,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let spent = sqlx::query(
            "UPDATE auth_keys SET used_at = ? WHERE tailnet_id = ? AND id = ? \
             AND revoked_at IS NULL AND (reusable OR used_at IS NULL) \
             AND (expires_at IS NULL OR expires_at > ?)",
        )
        .bind(now.unix_timestamp())
        .bind(self.tailnet.0)
        .bind(key.0)
        .bind(now.unix_timestamp())
        .execute(&mut **tx)
        .await
        .map_err(refine)?;
        if spent.rows_affected() == 1 {
            return Ok(());
        }
        let row = sqlx::query("SELECT * FROM auth_keys WHERE tailnet_id = ? AND id = ?")
            .bind(self.tailnet.0)
            .bind(key.0)
            .fetch_optional(&mut **tx)
            .await
            .map_err(refine)?;
        let refusal = match row {
            None => KeyRefusal::Unknown,
            Some(row) => auth_key(&row)?.check(now).err().unwrap_or(KeyRefusal::Used),
        };
        Err(refusal.into())
    }
}

impl Store for SqliteStore {
    fn load(&self) -> Pending<'_, Loaded> {
        async move {
            let tailnet =
                sqlx::query("SELECT change_number, address_cursor FROM tailnets WHERE id = ?")
                    .bind(self.tailnet.0)
                    .fetch_one(&self.pool)
                    .await
                    .map_err(refine)?;
            let users = sqlx::query("SELECT * FROM users WHERE tailnet_id = ? ORDER BY id")
                .bind(self.tailnet.0)
                .fetch_all(&self.pool)
                .await
                .map_err(refine)?;
            let nodes = sqlx::query("SELECT * FROM nodes WHERE tailnet_id = ? ORDER BY id")
                .bind(self.tailnet.0)
                .fetch_all(&self.pool)
                .await
                .map_err(refine)?;
            let policy = self.policy_version(None).await?;
            Ok(Loaded {
                number: ChangeNumber(tailnet.try_get("change_number")?),
                address_cursor: tailnet.try_get("address_cursor")?,
                users: users.iter().map(user).collect::<Result<_, _>>()?,
                nodes: nodes.iter().map(node).collect::<Result<_, _>>()?,
                policy,
            })
        }
        .boxed()
    }

    fn create_user<'a>(
        &'a self,
        name: &'a str,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<User>> {
        async move {
            let mut tx = self.begin().await?;
            let row = sqlx::query(
                "INSERT INTO users (tailnet_id, name, created_at, role) VALUES (?, ?, ?, CASE \
                 WHEN EXISTS (SELECT 1 FROM users WHERE tailnet_id = ? AND role = 'owner') \
                 THEN 'member' ELSE 'owner' END) RETURNING *",
            )
            .bind(self.tailnet.0)
            .bind(name)
            .bind(now.unix_timestamp())
            .bind(self.tailnet.0)
            .fetch_one(&mut *tx)
            .await
            .map_err(refine)?;
            let value = user(&row)?;
            let number = self.commit(tx, "user", value.id.0).await?;
            Ok(Committed { value, number })
        }
        .boxed()
    }

    fn set_role(&self, id: UserId, role: Role) -> Pending<'_, Committed<Vec<User>>> {
        async move {
            let mut tx = self.begin().await?;
            let mut changed = Vec::new();
            if role == Role::Owner {
                let former = sqlx::query(
                    "UPDATE users SET role = 'admin' \
                     WHERE tailnet_id = ? AND role = 'owner' AND id != ? RETURNING *",
                )
                .bind(self.tailnet.0)
                .bind(id.0)
                .fetch_optional(&mut *tx)
                .await
                .map_err(refine)?;
                changed.extend(former.as_ref().map(user).transpose()?);
            }
            let row = sqlx::query(
                "UPDATE users SET role = ? WHERE tailnet_id = ? AND id = ? RETURNING *",
            )
            .bind(role.as_str())
            .bind(self.tailnet.0)
            .bind(id.0)
            .fetch_optional(&mut *tx)
            .await
            .map_err(refine)?;
            changed.push(user(row.as_ref().ok_or(StoreError::Missing)?)?);
            let number = self.commit(tx, "user", id.0).await?;
            Ok(Committed {
                value: changed,
                number,
            })
        }
        .boxed()
    }

    fn delete_user(&self, id: UserId) -> Pending<'_, Committed<()>> {
        async move {
            let mut tx = self.begin().await?;
            sqlx::query("DELETE FROM auth_keys WHERE tailnet_id = ? AND user_id = ?")
                .bind(self.tailnet.0)
                .bind(id.0)
                .execute(&mut *tx)
                .await
                .map_err(refine)?;
            let deleted = sqlx::query("DELETE FROM users WHERE tailnet_id = ? AND id = ?")
                .bind(self.tailnet.0)
                .bind(id.0)
                .execute(&mut *tx)
                .await
                .map_err(refine)?;
            if deleted.rows_affected() == 0 {
                return Err(StoreError::Missing);
            }
            let number = self.commit(tx, "user", id.0).await?;
            Ok(Committed { value: (), number })
        }
        .boxed()
    }

    fn create_auth_key<'a>(
        &'a self,
        key: &'a NewAuthKey,
        secret_hash: &'a str,
    ) -> Pending<'a, Committed<AuthKey>> {
        async move {
            let mut tx = self.begin().await?;
            let row = sqlx::query(
                "INSERT INTO auth_keys (tailnet_id, user_id, prefix, secret_hash, reusable, \
                 ephemeral, tags, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) \
                 RETURNING *",
            )
            .bind(self.tailnet.0)
            .bind(key.user.0)
            .bind(&key.prefix)
            .bind(secret_hash)
            .bind(key.reusable)
            .bind(key.ephemeral)
            .bind(to_json("tags", &key.tags)?)
            .bind(key.created.unix_timestamp())
            .bind(key.expires.map(OffsetDateTime::unix_timestamp))
            .fetch_one(&mut *tx)
            .await
            .map_err(refine)?;
            let value = auth_key(&row)?;
            let number = self.commit(tx, "auth_key", value.id.0).await?;
            Ok(Committed { value, number })
        }
        .boxed()
    }

    fn auth_keys(&self) -> Pending<'_, Vec<AuthKey>> {
        async move {
            let rows = sqlx::query("SELECT * FROM auth_keys WHERE tailnet_id = ? ORDER BY id")
                .bind(self.tailnet.0)
                .fetch_all(&self.pool)
                .await
                .map_err(refine)?;
            rows.iter().map(auth_key).collect()
        }
        .boxed()
    }

    fn find_auth_key<'a>(&'a self, secret_hash: &'a str) -> Pending<'a, Option<AuthKey>> {
        async move {
            let row =
                sqlx::query("SELECT * FROM auth_keys WHERE tailnet_id = ? AND secret_hash = ?")
                    .bind(self.tailnet.0)
                    .bind(secret_hash)
                    .fetch_optional(&self.pool)
                    .await
                    .map_err(refine)?;
            row.as_ref().map(auth_key).transpose()
        }
        .boxed()
    }

    fn revoke_auth_key(&self, id: AuthKeyId, now: OffsetDateTime) -> Pending<'_, Committed<bool>> {
        async move {
            let mut tx = self.begin().await?;
            let revoked = sqlx::query(
                "UPDATE auth_keys SET revoked_at = ? \
                 WHERE tailnet_id = ? AND id = ? AND revoked_at IS NULL",
            )
            .bind(now.unix_timestamp())
            .bind(self.tailnet.0)
            .bind(id.0)
            .execute(&mut *tx)
            .await
            .map_err(refine)?;
            let number = self.commit(tx, "auth_key", id.0).await?;
            Ok(Committed {
                value: revoked.rows_affected() == 1,
                number,
            })
        }
        .boxed()
    }

    fn insert_node<'a>(
        &'a self,
        node: &'a Node,
        address_cursor: u32,
        spend: Option<AuthKeyId>,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<NodeId>> {
        async move {
            let mut tx = self.begin().await?;
            if let Some(key) = spend {
                self.spend(&mut tx, key, now).await?;
            }
            let id: i64 = sqlx::query_scalar(
                "INSERT INTO nodes (tailnet_id, stable_id, user_id, machine_key, node_key, \
                 disco_key, name, renamed, ipv4, ipv6, tags, approved_routes, ephemeral, capver, \
                 hostinfo, home_derp, endpoints, created_at, expires_at, last_seen) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            )
            .bind(self.tailnet.0)
            .bind(&node.stable_id)
            .bind(node.user.0)
            .bind(node.machine.to_string())
            .bind(node.key.to_string())
            .bind(node.disco.map(|key| key.to_string()))
            .bind(&node.name)
            .bind(node.renamed)
            .bind(node.addresses.v4.to_string())
            .bind(node.addresses.v6.to_string())
            .bind(to_json("tags", &node.tags)?)
            .bind(to_json("approved_routes", &node.approved_routes)?)
            .bind(node.ephemeral)
            .bind(node.capver)
            .bind(to_json("hostinfo", &node.hostinfo)?)
            .bind(node.home_derp)
            .bind(to_json("endpoints", &node.endpoints)?)
            .bind(node.created.unix_timestamp())
            .bind(node.expires.map(OffsetDateTime::unix_timestamp))
            .bind(node.last_seen.map(OffsetDateTime::unix_timestamp))
            .fetch_one(&mut *tx)
            .await
            .map_err(refine)?;
            sqlx::query("UPDATE tailnets SET address_cursor = ? WHERE id = ?")
                .bind(address_cursor)
                .bind(self.tailnet.0)
                .execute(&mut *tx)
                .await
                .map_err(refine)?;
            let number = self.commit(tx, "node", id).await?;
            Ok(Committed {
                value: NodeId(id),
                number,
            })
        }
        .boxed()
    }

    fn update_node<'a>(
        &'a self,
        node: &'a Node,
        spend: Option<AuthKeyId>,
        now: OffsetDateTime,
    ) -> Pending<'a, Committed<()>> {
        async move {
            let mut tx = self.begin().await?;
            if let Some(key) = spend {
                self.spend(&mut tx, key, now).await?;
            }
            let updated = sqlx::query(
                "UPDATE nodes SET user_id = ?, node_key = ?, name = ?, renamed = ?, tags = ?, \
                 approved_routes = ?, ephemeral = ?, expires_at = ? \
                 WHERE tailnet_id = ? AND id = ?",
            )
            .bind(node.user.0)
            .bind(node.key.to_string())
            .bind(&node.name)
            .bind(node.renamed)
            .bind(to_json("tags", &node.tags)?)
            .bind(to_json("approved_routes", &node.approved_routes)?)
            .bind(node.ephemeral)
            .bind(node.expires.map(OffsetDateTime::unix_timestamp))
            .bind(self.tailnet.0)
            .bind(node.id.0)
            .execute(&mut *tx)
            .await
            .map_err(refine)?;
            if updated.rows_affected() == 0 {
                return Err(StoreError::Missing);
            }
            let number = self.commit(tx, "node", node.id.0).await?;
            Ok(Committed { value: (), number })
        }
        .boxed()
    }

    fn delete_node(&self, id: NodeId) -> Pending<'_, Committed<()>> {
        async move {
            let mut tx = self.begin().await?;
            let deleted = sqlx::query("DELETE FROM nodes WHERE tailnet_id = ? AND id = ?")
                .bind(self.tailnet.0)
                .bind(id.0)
                .execute(&mut *tx)
                .await
                .map_err(refine)?;
            if deleted.rows_affected() == 0 {
                return Err(StoreError::Missing);
            }
            let number = self.commit(tx, "node", id.0).await?;
            Ok(Committed { value: (), number })
        }
        .boxed()
    }

    fn save_reports<'a>(&'a self, nodes: &'a [Node]) -> Pending<'a, ()> {
        async move {
            let mut tx = self.begin().await?;
            for node in nodes {
                sqlx::query(
                    "UPDATE nodes SET disco_key = ?, capver = ?, hostinfo = ?, home_derp = ?, \
                     endpoints = ?, last_seen = ? WHERE tailnet_id = ? AND id = ?",
                )
                .bind(node.disco.map(|key| key.to_string()))
                .bind(node.capver)
                .bind(to_json("hostinfo", &node.hostinfo)?)
                .bind(node.home_derp)
                .bind(to_json("endpoints", &node.endpoints)?)
                .bind(node.last_seen.map(OffsetDateTime::unix_timestamp))
                .bind(self.tailnet.0)
                .bind(node.id.0)
                .execute(&mut *tx)
                .await
                .map_err(refine)?;
            }
            tx.commit().await.map_err(refine)
        }
        .boxed()
    }

    fn set_policy<'a>(&'a self, new: &'a NewPolicy) -> Pending<'a, Committed<StoredPolicy>> {
        self.add_policy(new).boxed()
    }

    fn policies(&self) -> Pending<'_, Vec<PolicyEntry>> {
        self.policy_entries().boxed()
    }

    fn policy(&self, version: Option<i64>) -> Pending<'_, Option<StoredPolicy>> {
        self.policy_version(version).boxed()
    }

    fn check(&self) -> Pending<'_, ()> {
        async move {
            sqlx::query("SELECT 1")
                .execute(&self.pool)
                .await
                .map_err(refine)?;
            Ok(())
        }
        .boxed()
    }

    fn size(&self) -> Pending<'_, u64> {
        async move {
            let text = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
            let bytes: i64 = sqlx::query_scalar(text)
                .fetch_one(&self.pool)
                .await
                .map_err(refine)?;
            Ok(u64::try_from(bytes).unwrap_or(0))
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.pool.close().boxed()
    }
}
