//! Challenge keys: part of the early payload, answered by nobody today.

use crate::text;

text::public_key! {
    /// Public challenge key (`chalpub:`).
    ChallengePublic, "chalpub:", text::short_base64
}
