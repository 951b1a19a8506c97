//! The wire types of the control protocol, owned, under Go's field names.
//!
//! Absent fields are left out when written and take their default when read. Decode with
//! [`crate::json::from_slice`], which also accepts null for any field and any case of names.
//! Source: protocol facts of tailscale/tailscale `tailcfg/tailcfg.go`, capability version 145.

mod base64_bytes;
mod derp;
mod dns;
mod filter;
mod hostinfo;
mod ids;
mod map_request;
mod map_response;
mod node;
mod other;
mod ping;
mod register;
mod ssh;
mod user;

pub use base64_bytes::Base64Bytes;
pub use derp::{DerpHomeParams, DerpMap, DerpNode, DerpRegion};
pub use dns::{DnsConfig, DnsRecord, Resolver};
pub use filter::{CapGrant, FilterRule, NetPortRange, PortRange, allows_everything};
pub use hostinfo::{Hostinfo, Location, NetInfo, Service};
pub use ids::{NodeId, RegionId, StableNodeId, UserId};
pub use map_request::{Compress, MapRequest, endpoint_type};
pub use map_response::{
    ClientVersion, ControlDialPlan, ControlIpCandidate, Debug, DisplayMessage,
    DisplayMessageAction, MapResponse, TkaInfo,
};
pub use node::{CapMap, Node, PeerChange, Prefix};
pub use other::{DerpAdmitRequest, DerpAdmitResponse, ServerKeys};
pub use ping::{PingRequest, PingResponse};
pub use register::{RegisterAuth, RegisterRequest, RegisterResponse};
pub use ssh::{SshAction, SshPolicy, SshPrincipal, SshRecorderFailureAction, SshRule};
pub use user::{Login, User, UserProfile};

/// For `skip_serializing_if`: what equals its default is left out.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
