//! `POST /machine/map`: opening the map stream, and lite updates about oneself.

use std::net::SocketAddr;

use keys::{DiscoPublic, NodePublic};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Base64Bytes, Hostinfo, is_default};
use crate::{Timestamp, capver::CapabilityVersion};

/// Kinds of endpoints in [`MapRequest::endpoint_types`].
pub mod endpoint_type {
    /// Not known.
    pub const UNKNOWN: i32 = 0;
    /// An address of one of the node's interfaces.
    pub const LOCAL: i32 = 1;
    /// What a STUN server saw.
    pub const STUN: i32 = 2;
    /// A port mapped by the router.
    pub const PORT_MAPPED: i32 = 3;
    /// The STUN address with the local port.
    pub const STUN4_LOCAL_PORT: i32 = 4;
    /// Set by an administrator.
    pub const EXPLICIT: i32 = 5;
}

/// How map frames are compressed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compress {
    /// Plain JSON; also stands for names we do not know.
    #[default]
    None,
    /// One zstd frame per map frame.
    Zstd,
}

impl Serialize for Compress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::None => "",
            Self::Zstd => "zstd",
        })
    }
}

impl<'de> Deserialize<'de> for Compress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(if name == "zstd" {
            Self::Zstd
        } else {
            Self::None
        })
    }
}

/// A node's request for its map, or its news about itself (control.md 4.1).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct MapRequest {
    /// The node's capability version.
    #[serde(rename = "Version")]
    pub version: CapabilityVersion,
    /// How it wants frames.
    #[serde(rename = "Compress", skip_serializing_if = "is_default")]
    pub compress: Compress,
    /// It understands keepalives.
    #[serde(rename = "KeepAlive", skip_serializing_if = "is_default")]
    pub keep_alive: bool,
    /// Who asks; must belong to the machine key of the channel.
    #[serde(rename = "NodeKey")]
    pub node_key: NodePublic,
    /// Its current disco key; zero says nothing.
    #[serde(rename = "DiscoKey", skip_serializing_if = "is_default")]
    pub disco_key: DiscoPublic,
    /// Hardware attestation: public key as text, or empty.
    #[serde(rename = "HardwareAttestationKey", skip_serializing_if = "is_default")]
    pub hardware_attestation_key: String,
    /// Hardware attestation: signature.
    #[serde(
        rename = "HardwareAttestationKeySignature",
        skip_serializing_if = "is_default"
    )]
    pub hardware_attestation_key_signature: Base64Bytes,
    /// Hardware attestation: when it was signed.
    #[serde(
        rename = "HardwareAttestationKeySignatureTimestamp",
        skip_serializing_if = "is_default"
    )]
    pub hardware_attestation_key_signature_timestamp: Timestamp,
    /// Keep the answer open and send changes.
    #[serde(rename = "Stream", skip_serializing_if = "is_default")]
    pub stream: bool,
    /// About the node; a missing `NetInfo` says nothing.
    #[serde(rename = "Hostinfo", skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// Resume of a session; unused.
    #[serde(rename = "MapSessionHandle", skip_serializing_if = "is_default")]
    pub map_session_handle: String,
    /// Resume of a session; unused.
    #[serde(rename = "MapSessionSeq", skip_serializing_if = "is_default")]
    pub map_session_seq: i64,
    /// Where the node may be reached; entries that are not `ip:port` are dropped when read.
    #[serde(
        rename = "Endpoints",
        skip_serializing_if = "is_default",
        deserialize_with = "super::node::lenient_endpoints"
    )]
    pub endpoints: Vec<SocketAddr>,
    /// Kinds of `endpoints`, in the same order; see [`endpoint_type`].
    #[serde(rename = "EndpointTypes", skip_serializing_if = "is_default")]
    pub endpoint_types: Vec<i32>,
    /// Tailnet lock head, or empty.
    #[serde(rename = "TKAHead", skip_serializing_if = "is_default")]
    pub tka_head: String,
    /// Legacy: read without being marked online.
    #[serde(rename = "ReadOnly", skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// With `stream` false: a lite update, the answer may be empty.
    #[serde(rename = "OmitPeers", skip_serializing_if = "is_default")]
    pub omit_peers: bool,
    /// Such as `warn-ip-forwarding-off`.
    #[serde(rename = "DebugFlags", skip_serializing_if = "is_default")]
    pub debug_flags: Vec<String>,
}
