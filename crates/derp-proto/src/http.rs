//! Names in the HTTP request that opens a DERP connection (derp.md section 1).

/// Path of the upgrade request.
pub const PATH: &str = "/derp";

/// Token of the `Upgrade` header, in both directions.
pub const UPGRADE: &str = "DERP";

/// Request header: `1` if the client knows the server's key and wants no HTTP response.
pub const FAST_START: &str = "Derp-Fast-Start";

/// Request header: name of the region's first node, if the client had to go to another one.
pub const IDEAL_NODE: &str = "Ideal-Node";

/// Response header: the protocol version.
pub const VERSION: &str = "Derp-Version";

/// Response header: the server's public key as 64 hex digits.
pub const PUBLIC_KEY: &str = "Derp-Public-Key";
