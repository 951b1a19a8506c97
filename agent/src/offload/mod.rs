//! Forwarded flows past the network stack: conntrack is watched, and what it decided about a flow is
//! written into the data plane's forward table.
//!
//! ```text
//! conntrack ──events──► Core ──commands──► forward table   (make_liberal, announce back to conntrack)
//!     └─ dump, at the start, after lost events, when routes or devices change ─► resync
//! ```
//!
//! Without this task, or while it is behind, flows take the stack: slower, and otherwise the same.

mod core;
mod nics;
mod survey;
#[cfg(test)]
mod tests;

use std::fs;
use std::ops::DerefMut;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dataplane::{Dataplane, DataplaneError, Forward, Nic, Offload};
use netlink::conntrack::{Conntrack, Watcher};
use netlink::{Error, Family};
use packet::protocol;
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;

pub use self::core::{Command, Core, Places, Timeouts};
pub use survey::survey;

/// Between attempts where the last one failed.
const RETRY: Duration = Duration::from_secs(5);
/// Where the kernel tells conntrack's timeouts.
const SYSCTLS: &str = "/proc/sys/net/netfilter";

/// What is to be offloaded. Whatever changes in it has all flows looked at anew.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Config {
    /// Tells attachments of programs to the overlay device apart: each is brought in line.
    pub attachment: u64,
    /// What this host forwards; `None` for nothing.
    pub forwards: Option<Forwards>,
}

/// What this host forwards.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Forwards {
    /// What decides about flows.
    pub places: Places,
    /// The devices other than the overlay's.
    pub nics: Vec<Nic>,
}

/// Who has the data plane.
pub trait Holder: Send + 'static {
    /// The data plane, while there is one.
    fn dataplane(&mut self) -> Option<impl DerefMut<Target = Dataplane>>;

    /// Hears how many flows there are whose packets go past the stack.
    fn offloaded(&mut self, flows: usize) {
        let _ = flows;
    }
}

/// Why offloading does not go on.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("watching connections")]
    Conntrack(#[from] Error),
    #[error("writing the forward table")]
    Table(#[from] DataplaneError),
}

/// Follows `configs` until their sender is gone. Run it in the network namespace of the overlay device.
pub async fn run<H: Holder>(holder: Weak<Mutex<H>>, mut configs: watch::Receiver<Config>) {
    loop {
        let Config { forwards, .. } = configs.borrow_and_update().clone();
        let trouble = tokio::select! {
            changed = configs.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            result = follow(&holder, forwards) => result.err(),
        };
        let broken = trouble.is_some();
        if let Some(trouble) = trouble {
            let error = &trouble as &dyn std::error::Error;
            tracing::warn!(error, "forwarded packets take the network stack");
        }
        tokio::select! {
            changed = configs.changed() => if changed.is_err() { return },
            () = sleep(RETRY), if broken => {}
        }
    }
}

/// Keeps the forward table what conntrack says; returns where there is nothing to keep. May be called off
/// at any time: the next one begins with a look at everything.
async fn follow<H: Holder>(
    holder: &Weak<Mutex<H>>,
    forwards: Option<Forwards>,
) -> Result<(), Trouble> {
    let Some(Forwards { places, nics }) = forwards else {
        note(holder, 0).await;
        let disabled = with_forward(holder, |forward| forward.disable()).await;
        return Ok(disabled.unwrap_or(Ok(()))?);
    };
    // Before the dump: what happens meanwhile is told after it.
    let mut watcher = Watcher::open()?;
    let mut conntrack = Conntrack::open()?;
    let enabled = |forward: &mut Forward<'_>| {
        forward.count_routes(&places.served)?;
        forward.enable(places.mtu, &nics)
    };
    match with_forward(holder, enabled).await {
        Some(enabled) => enabled?,
        // No programs, nothing to forward by.
        None => return Ok(()),
    }
    let mut core = Core::new(places);
    resync(holder, &mut core, &mut conntrack).await?;
    tracing::debug!(flows = core.len(), ?nics, "forwarding past the stack");
    let mut noted = core.len();
    note(holder, noted).await;
    loop {
        let commands = match watcher.next().await {
            Ok(event) => core.handle(&event),
            Err(Error::Overrun { .. }) => {
                tracing::debug!("events of connections were lost");
                resync(holder, &mut core, &mut conntrack).await?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        execute(holder, &mut core, &mut conntrack, commands).await?;
        if core.len() != noted {
            noted = core.len();
            note(holder, noted).await;
        }
    }
}

/// Tells how many flows there are.
async fn note<H: Holder>(holder: &Weak<Mutex<H>>, flows: usize) {
    if let Some(holder) = holder.upgrade() {
        holder.lock().await.offloaded(flows);
    }
}

async fn resync<H: Holder>(
    holder: &Weak<Mutex<H>>,
    core: &mut Core,
    conntrack: &mut Conntrack,
) -> Result<(), Trouble> {
    let mut flows = Vec::new();
    for family in Family::BOTH {
        flows.extend(conntrack.dump(family).await?);
    }
    let Some(table) = with_forward(holder, |forward| forward.dump()).await else {
        return Ok(());
    };
    let commands = core.resync(&flows, &table?);
    execute(holder, core, conntrack, commands).await
}

async fn execute<H: Holder>(
    holder: &Weak<Mutex<H>>,
    core: &mut Core,
    conntrack: &mut Conntrack,
    commands: Vec<Command>,
) -> Result<(), Trouble> {
    for command in commands {
        match command {
            Command::Remove(key) => {
                let removed = with_forward(holder, |forward| forward.remove(&key)).await;
                removed.unwrap_or(Ok(()))?;
            }
            Command::Announce(flow) => match conntrack.announce(&flow).await {
                Err(error) if !error.is_gone() => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "a connection stays on the stack");
                }
                _ => {}
            },
            Command::Offload(flow, entries) => {
                if flow.original.protocol == protocol::TCP
                    && let Err(error) = conntrack.make_liberal(&flow).await
                {
                    if !error.is_gone() {
                        let error = &error as &dyn std::error::Error;
                        tracing::debug!(error, "a connection stays on the stack");
                    }
                    core.give_up(&flow);
                    continue;
                }
                let written = with_forward(holder, |forward| write(forward, &entries)).await;
                match written.unwrap_or(Ok(())) {
                    Ok(()) => {}
                    Err(DataplaneError::TableFull { table, .. }) => {
                        tracing::debug!(
                            table,
                            "a connection stays on the stack: the table is full"
                        );
                        core.give_up(&flow);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(())
}

/// Writes both directions, or neither.
fn write(forward: &mut Forward<'_>, entries: &[Offload; 2]) -> Result<(), DataplaneError> {
    for entry in entries {
        if let Err(error) = forward.offload(entry) {
            for entry in entries {
                forward.remove(&entry.key)?;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Runs `act` on the data plane; `None` if there is none.
async fn with_forward<H: Holder, T>(
    holder: &Weak<Mutex<H>>,
    act: impl FnOnce(&mut Forward<'_>) -> T,
) -> Option<T> {
    let holder: Arc<Mutex<H>> = holder.upgrade()?;
    let mut holder = holder.lock().await;
    let mut dataplane = holder.dataplane()?;
    Some(act(&mut dataplane.forward()))
}

impl Timeouts {
    /// Reads those of the calling thread's network namespace; where one cannot be read, it is the
    /// kernel's default.
    #[must_use]
    pub fn read() -> Self {
        let default = Self::default();
        let read = |name: &str, default: Duration| {
            let text = fs::read_to_string(format!("{SYSCTLS}/nf_conntrack_{name}")).ok();
            let seconds = text.and_then(|text| text.trim().parse().ok());
            seconds.map_or(default, Duration::from_secs)
        };
        Self {
            tcp: read("tcp_timeout_established", default.tcp),
            udp: read("udp_timeout", default.udp),
            udp_stream: read("udp_timeout_stream", default.udp_stream),
            icmp: read("icmp_timeout", default.icmp),
            icmpv6: read("icmpv6_timeout", default.icmpv6),
        }
    }
}
