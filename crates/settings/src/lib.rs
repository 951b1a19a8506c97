//! Files and values of settings and secrets, handled alike by all programs.
//!
//! A settings file is TOML. Its type derives `Deserialize` with `deny_unknown_fields`, so that a
//! misspelt name is refused; here the refusal gets a line number and a suggestion. Durations are
//! written as operators write them. What programs keep for themselves is a [`private_file`].
#![forbid(unsafe_code)]

mod duration;
mod file;
pub mod private_file;

pub use duration::parse_duration;
pub use file::{FileError, parse, read};
