//! The two boxed JSON documents of the handshake.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PROTOCOL_VERSION;

/// What a client says about itself; travels boxed to the server's key.
#[derive(Clone, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ClientInfo {
    /// Key of the mesh as 64 hex digits: proves another server of the region.
    #[serde(
        rename = "meshKey",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub mesh_key: String,
    /// Protocol version.
    pub version: u32,
    /// Whether the client answers Pings.
    #[serde(rename = "CanAckPings")]
    pub can_ack_pings: bool,
    /// Whether the client only measures.
    #[serde(rename = "IsProber", skip_serializing_if = "std::ops::Not::not")]
    pub is_prober: bool,
}

impl ClientInfo {
    /// An ordinary client that answers Pings.
    #[must_use]
    pub fn node() -> Self {
        Self {
            version: PROTOCOL_VERSION.into(),
            can_ack_pings: true,
            ..Self::default()
        }
    }
}

impl fmt::Debug for ClientInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientInfo")
            .field("has_mesh_key", &!self.mesh_key.is_empty())
            .field("version", &self.version)
            .field("can_ack_pings", &self.can_ack_pings)
            .field("is_prober", &self.is_prober)
            .finish()
    }
}

/// What a server says about itself; travels boxed to the client's key.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Protocol version.
    pub version: u32,
    /// Rate at which the client may send, in bytes per second; it drops what exceeds it. 0: any.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "is_zero")]
    pub bytes_per_second: u64,
    /// Burst that goes with the rate, in bytes.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "is_zero")]
    pub bytes_burst: u64,
}

impl ServerInfo {
    /// A server without a rate limit.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            version: PROTOCOL_VERSION.into(),
            ..Self::default()
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn null_as_default<'de, D>(deserializer: D) -> Result<String, D::Error>
where
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
