//! `POST /machine/register`: joining, rotating keys, logging out.

use keys::NodePublic;
use serde::{Deserialize, Serialize};

use super::{Base64Bytes, Hostinfo, Login, User, is_default};
use crate::{Timestamp, capver::CapabilityVersion};

/// What a node asks for (control.md 3.1).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RegisterRequest {
    /// The node's capability version.
    #[serde(rename = "Version")]
    pub version: CapabilityVersion,
    /// The key to be authorised; zero is refused.
    #[serde(rename = "NodeKey")]
    pub node_key: NodePublic,
    /// The key before, or zero.
    #[serde(rename = "OldNodeKey")]
    pub old_node_key: NodePublic,
    /// Tailnet lock key as text (`nlpub:…`), or empty.
    #[serde(rename = "NLKey", skip_serializing_if = "is_default")]
    pub nl_key: String,
    /// Proof of permission.
    #[serde(rename = "Auth", skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegisterAuth>,
    /// Zero: the server's choice; past: log out; nearer future: expire sooner.
    #[serde(rename = "Expiry")]
    pub expiry: Timestamp,
    /// The `AuthURL` being waited for, or empty.
    #[serde(rename = "Followup")]
    pub followup: String,
    /// About the node.
    #[serde(rename = "Hostinfo", skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// Asks to be deleted when offline.
    #[serde(rename = "Ephemeral", skip_serializing_if = "is_default")]
    pub ephemeral: bool,
    /// Tailnet lock signature of `node_key`.
    #[serde(rename = "NodeKeySignature", skip_serializing_if = "is_default")]
    pub node_key_signature: Base64Bytes,
    /// Enterprise certificates: `signature-none`, `-v1`, `-v2`, or empty.
    #[serde(rename = "SignatureType", skip_serializing_if = "is_default")]
    pub signature_type: String,
    /// Enterprise certificates: when it was signed.
    #[serde(rename = "Timestamp", skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// Enterprise certificates: the certificate.
    #[serde(rename = "DeviceCert", skip_serializing_if = "is_default")]
    pub device_cert: Base64Bytes,
    /// Enterprise certificates: the signature.
    #[serde(rename = "Signature", skip_serializing_if = "is_default")]
    pub signature: Base64Bytes,
    /// A tailnet name, `required:` + name, or empty.
    #[serde(rename = "Tailnet", skip_serializing_if = "is_default")]
    pub tailnet: String,
}

/// Proof of permission to join.
#[derive(Clone, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct RegisterAuth {
    /// An auth key, opaque.
    #[serde(rename = "AuthKey", skip_serializing_if = "is_default")]
    pub auth_key: String,
    /// Legacy token, kept as it came.
    #[serde(rename = "Oauth2Token", skip_serializing_if = "Option::is_none")]
    pub oauth2_token: Option<serde_json::Value>,
}

impl std::fmt::Debug for RegisterAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegisterAuth(redacted)")
    }
}

/// What the server decided (control.md 3.2); HTTP status 200 in every case.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct RegisterResponse {
    /// The owner.
    #[serde(rename = "User")]
    pub user: User,
    /// How the owner logged in.
    #[serde(rename = "Login")]
    pub login: Login,
    /// Make a new node key and register again.
    #[serde(rename = "NodeKeyExpired")]
    pub node_key_expired: bool,
    /// For information; the gate is `MachineAuthorized` of the own node.
    #[serde(rename = "MachineAuthorized")]
    pub machine_authorized: bool,
    /// Non-empty: show it, then follow up.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Tailnet lock: sign and register again. Empty otherwise.
    #[serde(rename = "NodeKeySignature", skip_serializing_if = "is_default")]
    pub node_key_signature: Base64Bytes,
    /// Non-empty: shown to the person as it is.
    #[serde(rename = "Error", skip_serializing_if = "is_default")]
    pub error: String,
}
