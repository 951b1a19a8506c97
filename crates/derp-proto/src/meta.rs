//! The meta certificate: how a server tells its DERP key inside the TLS handshake.
//!
//! A server appends one more certificate to its chain: self-signed Ed25519, common name `derpkey`
//! and 64 hex digits, serial number the protocol version. It proves nothing by itself (the chain
//! in front of it does that) and is only sent where TLS encrypts certificates, from TLS 1.3 on. A
//! client that finds it knows the server's key before the first DERP byte and leaves out one round
//! trip: the fast start (derp.md section 2).

use keys::NodePublic;

/// Prefix of the common name.
pub const COMMON_NAME_PREFIX: &str = "derpkey";

/// The common name that carries `key`.
#[must_use]
pub fn common_name(key: &NodePublic) -> String {
    use std::fmt::Write as _;

    let mut name = String::from(COMMON_NAME_PREFIX);
    for byte in key.as_bytes() {
        // Writing into a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The key in a certificate's common name, if it is a meta certificate's.
#[must_use]
pub fn key_from_common_name(name: &str) -> Option<NodePublic> {
    format!("nodekey:{}", name.strip_prefix(COMMON_NAME_PREFIX)?)
        .parse()
        .ok()
}
