//! Access policy: from a HuJSON file to what every node may do (control.md section 8).
//!
//! ```text
//! text ──syntax──► document ──file──► Policy ──compile──► Network ──► per viewer: filter rules,
//!              (spans)        (typed)              (+ users, nodes)     peers, routes, SSH, attributes
//! ```
//!
//! - [`file`]: the typed policy. Whatever it holds is valid; everything else was refused with a
//!   [`Diagnostics`] that names all errors of the file at once.
//! - [`edit`]: changes that the program makes to the text, comments and layout kept.
//! - [`tailnet`]: the users and nodes that a policy is compiled for.
//! - [`compile`]: [`Network`], a policy in force, kept up to date node by node.
//! - [`check`]: the tests in a policy, `why` and `diff`.
//! - [`filter`]: what a node does with the rules: packet and flow state to verdict. The oracle of
//!   the eBPF programs, and the filter where there is no BPF.
//!
//! Nothing here reads a clock, a file or a socket.
#![forbid(unsafe_code)]

pub mod check;
pub mod compile;
pub mod diagnostic;
pub mod edit;
pub mod file;
pub mod filter;
mod syntax;
pub mod tailnet;
#[cfg(test)]
mod testing;

pub use compile::Network;
pub use diagnostic::{Cause, Diagnostics};
pub use file::Policy;
