//! Why the coordination server could not be used: [`ControlError`].

use std::io;
use std::time::Duration;

use http::StatusCode;
use keys::MachinePublic;

/// A failure on the way to, or an answer of, the coordination server. The message names cause and fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The host name has no address.
    #[error("cannot resolve {host} ({source}): check the server URL and this host's DNS")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver answered.
        source: io::Error,
    },
    /// Nobody answers.
    #[error(
        "cannot reach {server} ({source}): check the URL, and that the server runs and is not blocked"
    )]
    Connect {
        /// The server.
        server: String,
        /// What the system answered.
        source: io::Error,
    },
    /// Nobody answers in time.
    #[error("{server} does not answer within {limit:?}: check the URL and the network")]
    Timeout {
        /// The server.
        server: String,
        /// How long we waited.
        limit: Duration,
    },
    /// TLS failed.
    #[error("no trusted TLS with {server} ({source}): {advice}")]
    Tls {
        /// The server.
        server: String,
        /// What is wrong.
        source: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// The server speaks HTTP, but is not a coordination server.
    #[error(
        "{server} does not look like a coordination server ({problem}): check the server URL: http or https, host, port"
    )]
    NotControl {
        /// The server.
        server: String,
        /// What gave it away.
        problem: String,
    },
    /// The server is another than before, and nothing but its key could tell.
    #[error(
        "the key of {server} changed from {old} to {new}: if it was reinstalled, accept the new key with \
         `tailrace up --login-server {server}`; if not, somebody is in between"
    )]
    KeyChanged {
        /// The server.
        server: String,
        /// What we trusted so far.
        old: MachinePublic,
        /// What it says now.
        new: MachinePublic,
    },
    /// The Noise handshake or a record failed.
    #[error("no secure channel with {server} ({source})")]
    Noise {
        /// The server.
        server: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection broke.
    #[error("the connection to the coordination server broke ({0})")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer other than 200.
    #[error("the coordination server answered {status} to {request}: {body}")]
    Status {
        /// What was asked.
        request: &'static str,
        /// The answer.
        status: StatusCode,
        /// What it said, shortened.
        body: String,
    },
    /// An answer that is not understood.
    #[error("the coordination server's answer to {request} is not understood ({source})")]
    Answer {
        /// What was asked.
        request: &'static str,
        /// Where it stopped making sense.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for too long.
    #[error("the coordination server was silent for {0:?}")]
    Silent(Duration),
    /// The server refuses this node; its own words.
    #[error("the coordination server refused this node: {0}")]
    Refused(String),
    /// New keys could not be stored, so they must not be used.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
}

impl ControlError {
    pub(super) fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}
