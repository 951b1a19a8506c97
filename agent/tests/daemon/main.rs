//! The daemon as a process, with a coordination server that says whatever a test wants it to say.

mod filter;
mod leaving;
mod membership;
mod memory;
mod neighbours;
mod node;
mod privileges;
mod protocol;
mod server;
mod tls;
