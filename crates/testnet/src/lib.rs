//! Network namespaces, veth, bridges and NAT as RAII guards, and real daemons inside them.
//!
//! ```text
//!             control  relay              public hosts, 203.0.113.0/24
//!                │       │
//!          ──────┴───┬───┴────── internet a bridge in a namespace of its own
//!                    │
//!        ┌───────────┴────────────┐
//!     router                   router     masquerade; nothing unasked comes in
//!        │ 192.168.1.0/24         │ 192.168.2.0/24
//!      alice                     bob
//! ```
//!
//! Every guard removes what it made when it is dropped, a panicking test included. What a killed
//! process leaves behind is swept by the next [`Lab::new`]: names carry the process id.
//!
//! Processes die with the *thread* that spawned them (`PR_SET_PDEATHSIG`), so spawn them from the
//! thread that also runs the test.
#![deny(unsafe_code)]

mod cable;
mod firewalls;
mod folder;
mod lab;
mod lan;
mod link;
mod mapper;
mod namespace;
mod nat;
mod process;
mod prometheus;
mod skip;
mod sweep;
pub mod tailnet;
mod terminal;
mod tun;
mod tunnel;
mod wait;

pub use cable::Line;
pub use firewalls::{Firewalld, Ufw, cache, firewalls_tree};
pub use folder::Folder;
pub use lab::{Host, Lab};
pub use lan::Lan;
pub use link::{Bridge, veth};
pub use mapper::{PortMapper, Speaks};
pub use namespace::Namespace;
pub use nat::{Carrier, Nat, NatKind, model as nat_model};
pub use process::{Process, run};
pub use prometheus::{Prometheus, Target, prometheus_tree};
pub use skip::unavailable;
pub use sweep::sweep;
pub use terminal::Terminal;
pub use tun::tun;
pub use tunnel::Tunnel;
pub use wait::{scaled, time_scale, wait_until};
