//! Machine, node and disco keys: X25519, typed by role, redacted and zeroized.
//!
//! Every role has its own pair of types, so that a node key can never stand where a machine key
//! belongs. Text forms are those of the Go client (`mkey:`, `nodekey:`, `discokey:`, `chalpub:`,
//! `privkey:` and 64 hex digits).
#![forbid(unsafe_code)]

mod challenge;
mod disco;
mod error;
mod machine;
mod node;
pub mod private_text;
mod seal;
mod secret;
mod text;

pub use challenge::ChallengePublic;
pub use disco::{DiscoPrivate, DiscoPublic, DiscoShared};
pub use error::{KeyTextError, OpenError};
pub use machine::{MachinePrivate, MachinePublic};
pub use node::{NodePrivate, NodePublic};
pub use seal::{NONCE_LEN, SEAL_OVERHEAD};

/// Length of every key, private or public, in bytes.
pub const KEY_LEN: usize = 32;
