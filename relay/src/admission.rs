//! Who may use the relay.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use keys::NodePublic;

pub use verify::{VerifyUrl, VerifyUrlError};

mod verify;

/// Decides about a key whose owner has just proved to hold it, and again at every sweep.
#[derive(Clone)]
pub enum Admission {
    /// Everybody.
    Open,
    /// Whom an HTTP service allows; nobody new while it does not answer.
    VerifyUrl(VerifyUrl),
    /// Whom a function allows; must not block. Control answers from memory.
    Callback(Arc<dyn Fn(NodePublic) -> bool + Send + Sync>),
}

/// Why a key was not let in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The answer was no.
    #[error("{0} is not allowed here")]
    Denied(NodePublic),
    /// There was no answer.
    #[error("cannot verify {key}: {source}")]
    Unverified {
        /// Who asked.
        key: NodePublic,
        /// Why there is no answer.
        source: VerifyUrlError,
    },
}

impl Admission {
    /// Whether `key`, connecting from `source`, may come in.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: keep it out. At a sweep only [`Refusal::Denied`] puts anybody out.
    pub(crate) async fn admit(&self, key: NodePublic, source: IpAddr) -> Result<(), Refusal> {
        let allowed = match self {
            Self::Open => true,
            Self::Callback(allow) => allow(key),
            Self::VerifyUrl(url) => url
                .allows(key, source)
                .await
                .map_err(|source| Refusal::Unverified { key, source })?,
        };
        allowed.then_some(()).ok_or(Refusal::Denied(key))
    }

    /// Asks once more about a key that has just become visible to [`crate::Server::kick`]: who was
    /// removed since [`Self::admit`] could not be kicked yet.
    ///
    /// Only for what answers from memory; a verification service is asked again at the next sweep.
    ///
    /// # Errors
    ///
    /// [`Refusal::Denied`]: keep it out.
    pub(crate) fn confirm(&self, key: NodePublic) -> Result<(), Refusal> {
        match self {
            Self::Callback(allow) if !allow(key) => Err(Refusal::Denied(key)),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("Open"),
            Self::VerifyUrl(url) => f.debug_tuple("VerifyUrl").field(url).finish(),
            Self::Callback(_) => f.write_str("Callback"),
        }
    }
}
