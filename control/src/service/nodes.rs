//! Nodes, as administrators handle them.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Control, ServiceError, conflict, now};
use crate::engine::NodeView;
use crate::model::{AuthKeyId, Node, NodeId};
use crate::names;
use crate::store::StoreError;

impl Control {
    /// Finds a node by name, overlay address, number or stable id.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub fn find_node(&self, text: &str) -> Result<NodeView, ServiceError> {
        let text = text.trim().trim_end_matches('.');
        let suffix = format!(".{}", self.engine.settings().base_domain());
        let label = text.strip_suffix(&suffix).unwrap_or(text);
        let found = if let Ok(address) = text.parse::<IpAddr>() {
            self.engine.node_at(address)
        } else {
            self.engine
                .node_named(&label.to_lowercase())
                .or_else(|| self.engine.node(NodeId(text.parse().ok()?)))
                .or_else(|| {
                    self.engine
                        .nodes()
                        .into_iter()
                        .find(|v| v.node.stable_id == text)
                })
        };
        found.ok_or_else(|| {
            ServiceError::NotFound(format!(
                "there is no node {text}: give a name, an address or an id from \
                 `tailrace-control nodes list`"
            ))
        })
    }

    /// Lets in the machine that waits with this code, as a node of `user`. A code works once.
    ///
    /// # Errors
    ///
    /// The code is unknown, used or too old, or there is no such user.
    pub async fn approve(self: &Arc<Self>, code: &str, user: &str) -> Result<Node, ServiceError> {
        let user = self.find_user(user)?;
        // People paste the whole URL, too.
        let code = code.trim().trim_end_matches('/');
        let code = code.rsplit('/').next().unwrap_or_default();
        let unknown = || {
            ServiceError::NotFound(format!(
                "no login waits with the code {code:?}: it timed out or was approved already, see \
                 `tailrace-control nodes list`; run `up` on the node again for a new code"
            ))
        };
        let login = self.logins.get(code).ok_or_else(unknown)?;
        let node = self.admit_login(&login, &user).await?;
        // Of two administrators who approve at once, the second hears that it is done.
        if !self.logins.finish(&login) {
            return Err(unknown());
        }
        Ok(node)
    }

    /// Ends the validity of a node's key now: it has to log in again.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub async fn expire_node(&self, text: &str) -> Result<Node, ServiceError> {
        let id = self.find_node(text)?.node.id;
        let node = self
            .change_node(id, None, |node| {
                node.expires = Some(now());
                Ok(())
            })
            .await?;
        self.key_gone(node.key);
        Ok(node)
    }

    /// Gives a node a name that its host name no longer overrides.
    ///
    /// # Errors
    ///
    /// There is no such node, or the name is not one or taken.
    pub async fn rename_node(&self, text: &str, name: &str) -> Result<Node, ServiceError> {
        if !names::is_label(name) {
            return Err(ServiceError::Invalid(format!(
                "{name:?} is not a node name: use up to 63 lower-case letters, digits and - \
                 (not at the ends)"
            )));
        }
        let id = self.find_node(text)?.node.id;
        self.change_node(id, None, |node| {
            name.clone_into(&mut node.name);
            node.renamed = true;
            Ok(())
        })
        .await
    }

    /// Replaces a node's tags. With tags it has no owner and its key does not expire; without, it
    /// is its user's again, with a fresh key life. Routes that the policy approves for its new owner
    /// are approved; none is taken away.
    ///
    /// # Errors
    ///
    /// There is no such node, or a tag is not one or unknown to the policy.
    pub async fn tag_node(&self, text: &str, tags: &[String]) -> Result<Node, ServiceError> {
        let fresh = now() + self.settings.key_expiry;
        let id = self.find_node(text)?.node.id;
        self.change_node(id, None, |node| {
            let was_tagged = node.is_tagged();
            node.tags = self.parse_tags(tags)?;
            if node.is_tagged() {
                // What was expired stays so: tagging is not a login.
                if !node.is_expired(now()) {
                    node.expires = None;
                }
            } else if was_tagged && node.expires.is_none() {
                node.expires = Some(fresh);
            }
            node.approved_routes.extend(self.approved_now(node));
            Ok(())
        })
        .await
    }

    /// Deletes a node.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub async fn delete_node(&self, text: &str) -> Result<Node, ServiceError> {
        let node = self.find_node(text)?.node;
        self.remove_node(node.id).await?;
        Ok(node)
    }

    pub(super) async fn remove_node(&self, id: NodeId) -> Result<(), ServiceError> {
        let _writer = self.writer().await;
        let Some(view) = self.engine.node(id) else {
            return Ok(());
        };
        let committed = self.store.delete_node(id).await?;
        self.engine.remove_node(committed.number, id, now());
        self.key_gone(view.node.key);
        Ok(())
    }

    /// Changes a node as it is when its turn has come, by what is in force then; with `spend`, an
    /// auth key pays for it.
    pub(super) async fn change_node(
        &self,
        id: NodeId,
        spend: Option<AuthKeyId>,
        change: impl FnOnce(&mut Node) -> Result<(), ServiceError>,
    ) -> Result<Node, ServiceError> {
        let _writer = self.writer().await;
        let view = self.engine.node(id).ok_or(StoreError::Missing)?;
        let mut node = view.node.clone();
        change(&mut node)?;
        if node == view.node && spend.is_none() {
            return Ok(node);
        }
        let committed = self.store.update_node(&node, spend, now()).await;
        let committed = committed.map_err(|error| conflict(error, &node.name))?;
        self.engine.put_node(committed.number, node.clone(), now());
        Ok(node)
    }
}
