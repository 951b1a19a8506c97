//! Benches: our programs under load, on loopback, beside others if wanted.
//!
//! Every bench prints a table, or JSON with `--json`, and says what its numbers mean in its help.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};

mod acl;
mod control;
mod counters;
mod figures;
mod forward;
mod memory;
mod overhead;
mod paths;
mod plot;
mod policy;
mod relay;
mod relayed;
mod tunnel;

#[derive(Parser)]
#[command(name = "bench", about = "Benches of Tailrace's programs")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Nanoseconds that the packet filter costs a packet, beside nftables.
    Acl(acl::Args),
    /// Joins and single changes of a coordination server.
    Control(control::Args),
    /// Nanoseconds that counting costs each packet, per eBPF program.
    Counters(counters::Args),
    /// Nanoseconds that a gateway takes to forward a packet, beside nftables.
    Forward(forward::Args),
    /// Resident memory of every program, with few and with many peers, nodes or clients.
    Memory(memory::Args),
    /// Instructions of a round trip on kernel WireGuard, with what we add, and on wireguard-go.
    Overhead(overhead::Args),
    /// CPU and memory of an agent with a thousand peers, ten of them active.
    Paths(paths::Args),
    /// Compilation, changes and questions of a big policy.
    Policy(policy::Args),
    /// Goodput per core, round trips and memory per idle client of a relay.
    Relay(relay::Args),
    /// Goodput, CPU and latency between two nodes that only a relay connects.
    Relayed(relayed::Args),
    /// Throughput, CPU and memory of the embedded tunnel, beside stock gotatun.
    Tunnel(tunnel::Args),
    /// One end of a tunnel.
    #[command(hide = true)]
    TunnelNode(tunnel::node::Args),
    /// Traffic from the namespace it runs in, and who answers it.
    #[command(hide = true)]
    TunnelLoad(agent::bench::load::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Acl(args) => acl::run(&args),
        Command::Control(args) => control::run(&args),
        Command::Counters(args) => counters::run(&args),
        Command::Forward(args) => forward::run(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Overhead(args) => overhead::run(&args),
        Command::Paths(args) => paths::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Relay(args) => relay::run(&args),
        Command::Relayed(args) => relayed::run(&args),
        Command::Tunnel(args) => tunnel::run(&args),
        Command::TunnelNode(args) => tunnel::node::run(&args),
        Command::TunnelLoad(args) => Ok(agent::bench::load::run(&args)?),
    }
}
