//! The keys of this node: [`Identity`].

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use keys::{DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate, NodePublic};
use serde::{Deserialize, Serialize};

/// The keys of this node and of the servers it trusts.
#[derive(Debug)]
pub struct Identity {
    /// Identifies this installation to the coordination server.
    pub machine: Arc<MachinePrivate>,
    /// WireGuard and DERP identity; authorised by the server once the node has joined.
    pub node: Arc<NodePrivate>,
    /// The key that replaces `node` as soon as the server has authorised it.
    pub next_node: Option<Arc<NodePrivate>>,
    /// The key before `node`; names the node in a rotation.
    pub old_node: Option<NodePublic>,
    /// Key of path discovery; kept as long as the sessions are.
    pub disco: DiscoPrivate,
    /// Random label of this installation (`Hostinfo.BackendLogID`); nothing is logged under it.
    pub log_id: String,
    /// Noise keys of coordination servers by URL: trusted on first use.
    pub servers: BTreeMap<String, MachinePublic>,
}

impl Identity {
    /// Makes the keys of a new node.
    pub(super) fn generate() -> Self {
        Self {
            machine: Arc::new(MachinePrivate::generate()),
            node: Arc::new(NodePrivate::generate()),
            next_node: None,
            old_node: None,
            disco: DiscoPrivate::generate(),
            log_id: hex::encode(rand::random::<[u8; 32]>()),
            servers: BTreeMap::new(),
        }
    }
}

/// [`Identity`] as it lies in the file: all private keys are `privkey:` + hex, told apart by field name.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Stored {
    machine: String,
    node: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_node: Option<NodePublic>,
    disco: String,
    #[serde(rename = "BackendLogID")]
    log_id: String,
    #[serde(default)]
    servers: BTreeMap<String, MachinePublic>,
}

impl From<&Identity> for Stored {
    fn from(identity: &Identity) -> Self {
        Self {
            machine: identity.machine.to_text().to_string(),
            node: identity.node.to_text().to_string(),
            next_node: identity
                .next_node
                .as_ref()
                .map(|key| key.to_text().to_string()),
            old_node: identity.old_node,
            disco: identity.disco.to_text().to_string(),
            log_id: identity.log_id.clone(),
            servers: identity.servers.clone(),
        }
    }
}

impl TryFrom<Stored> for Identity {
    /// What is wrong, without the text that is wrong: it may be most of a key.
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        fn key<T: FromStr>(field: &str, text: &str) -> Result<T, String> {
            text.parse()
                .map_err(|_| format!("{field} is not a private key"))
        }
        Ok(Self {
            machine: Arc::new(key("Machine", &stored.machine)?),
            node: Arc::new(key("Node", &stored.node)?),
            next_node: match &stored.next_node {
                Some(text) => Some(Arc::new(key("NextNode", text)?)),
                None => None,
            },
            old_node: stored.old_node,
            disco: key("Disco", &stored.disco)?,
            log_id: stored.log_id,
            servers: stored.servers,
        })
    }
}
