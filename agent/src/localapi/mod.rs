//! The local API: HTTP on a unix socket, with upstream's `/localapi/v0` paths and shapes.
//!
//! Everybody on this host may read; root, the user the daemon runs as, and the operator named in the
//! preferences may write. The kernel tells who is asking (SO_PEERCRED).
//!
//! | Path | |
//! |---|---|
//! | `GET status?peers=false` | [`Status`] |
//! | `GET prefs`, `PATCH prefs` | [`Prefs`](crate::prefs::Prefs); the body is upstream's MaskedPrefs |
//! | `POST start` | [`StartOptions`]: joins, or changes how |
//! | `POST login-interactive` | a login URL appears in status and notifications |
//! | `POST logout` | expires the node key |
//! | `POST ping?ip=&type=disco\|TSMP\|ICMP\|peerapi` | [`PingResult`] |
//! | `GET netcheck` | [`NetcheckResult`] |
//! | `GET whois?addr=` | [`WhoIs`] |
//! | `GET watch-ipn-bus` | [`Notify`] lines, the first at once |
//! | `GET tailrace-top` | [`Sample`] (ours) |
//! | `GET usermetrics`, `GET metrics` | Prometheus text |
//! | `POST debug-endpoint?ip=&endpoint=` | a peer's endpoint by hand (ours) |
//! | `GET debug-drops`, `GET debug-rules` | what the filter drops, what each rule admitted (ours) |
//! | `GET serve-config` | empty: there is no Serve yet |

mod client;
mod debug;
mod netcheck;
mod peerapi;
mod ping;
mod query;
mod server;
mod slots;
mod status;
mod top;
mod types;

pub use client::{Client, ClientError, Lines};
pub use netcheck::NetcheckResult;
pub use server::{BindError, Server};
pub use status::{status, whois};
pub use top::{DropSample, ForwardedSample, NodeSample, PeerSample, RouteSample, Sample, sample};
pub use types::{
    BackendState, DroppedPacket, ErrorBody, Notify, OffloadStatus, OverlayTraffic, PeerStatus,
    PingResult, RelayStatus, RuleHits, StartOptions, Status, TailnetStatus, TailraceStatus, WhoIs,
};

/// What every path begins with.
pub(crate) const PREFIX: &str = "/localapi/v0/";
/// Value of the `Host` header that upstream's clients send.
pub(crate) const HOST: &str = "local-tailscaled.sock";
