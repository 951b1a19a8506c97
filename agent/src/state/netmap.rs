//! The network map on disk: a node that starts while the coordination server is down uses it.

use control_proto::netmap::NetMap;
use keys::NodePublic;
use serde::{Deserialize, Serialize};

/// A network map as it was when it was stored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CachedMap {
    /// The server that sent it.
    #[serde(rename = "ControlURL")]
    pub control_url: String,
    /// Our node key it was made for.
    pub node_key: NodePublic,
    /// When it was last known to be right, Unix seconds.
    pub confirmed_at: u64,
    /// The map.
    pub map: NetMap,
}

/// [`CachedMap`] for writing, without a copy of the map.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CachedMapRef<'a> {
    /// The server that sent it.
    #[serde(rename = "ControlURL")]
    pub control_url: &'a str,
    /// Our node key it was made for.
    pub node_key: NodePublic,
    /// When it was last known to be right, Unix seconds.
    pub confirmed_at: u64,
    /// The map.
    pub map: &'a NetMap,
}
