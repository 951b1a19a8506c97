//! Small bodies outside the Noise channel: server keys and DERP admission.

use keys::{MachinePublic, NodePublic};
use serde::{Deserialize, Serialize};

/// Answer of `GET /key?v=…`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ServerKeys {
    /// Zero: nobody speaks the legacy protocol any more.
    #[serde(rename = "legacyPublicKey")]
    pub legacy_public_key: MachinePublic,
    /// The server's static Noise key.
    #[serde(rename = "publicKey")]
    pub public_key: MachinePublic,
}

/// A relay's question whether a node may use it (`POST /verify`).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct DerpAdmitRequest {
    /// Who wants in.
    #[serde(rename = "NodePublic")]
    pub node_public: NodePublic,
    /// The address it comes from.
    #[serde(rename = "Source")]
    pub source: String,
}

/// The answer to [`DerpAdmitRequest`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct DerpAdmitResponse {
    /// Whether it may.
    #[serde(rename = "Allow")]
    pub allow: bool,
}
