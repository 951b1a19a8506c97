//! The host's netfilter: our own table, and marked rules in the chains of a host that drops by default.
//!
//! ```text
//! Config ──table, foreign (pure)──► nft ──► inet tailrace0; ip filter, ip6 filter: INPUT, FORWARD
//!                                    ▲                │ flushed, reloaded, restarted by others
//!                                    ├── repair ◄─────┤
//!                              firewalld, warning ◄── survey (pure): other tables that still drop our packets
//! ```
//!
//! Only what bears our table's name or our comment is ever changed; of firewalld, only which zone our device is in.

pub mod demux;
mod firewalld;
mod rules;
mod survey;
mod watch;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netlink::Error;
use netlink::nft::{Chain, Foreign, Layer, Nft, Snapshot};
use tokio::sync::{Mutex, watch as status};
use tokio::task::AbortHandle;

use crate::error_text::error_text;

use rules::{FOREIGN_LAYERS, FOREIGN_TABLE, JUNK};
pub use rules::{FORWARD_MARK, foreign, marker, table, table_name};
pub use survey::{Obstacle, Traffic, survey, warning};

/// An empty chain of our table that says: the device is in firewalld's zone because of us. It lives as long
/// as what it speaks of, and an agent that was killed leaves it.
const ZONE_NOTE: &str = "firewalld-zone";

/// What the rules depend on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Overlay device.
    pub device: String,
    /// Whether the host's other firewalls are told to let us pass: rules in chains of iptables (nft), firewalld's zone.
    pub divert: bool,
    /// UDP port of WireGuard, the one that others see.
    pub wireguard_port: u16,
    /// UDP port of the agent's own socket, hidden behind WireGuard's; `None` leaves both ports alone.
    pub agent_port: Option<u16>,
    /// Sources whose WireGuard packets go to the agent's port as well.
    pub detoured: BTreeSet<SocketAddr>,
    /// Whether this host forwards anything, for peers or for its containers.
    pub forwards: bool,
    /// Whether this node's own traffic goes through a peer.
    pub uses_exit_node: bool,
    /// Whether hosts behind us see our address in place of the peers'.
    pub masquerade: bool,
    /// Approved prefixes behind us: peers reach their hosts, and those may call peers.
    pub served: Vec<IpNet>,
    /// Whether peers reach the world through us, whatever `served` says.
    pub exit_node: bool,
}

/// What differs in a configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Change {
    Nothing,
    /// Only which sources are detoured, which nobody's rules depend on but our table's.
    Detours,
    Other,
}

impl Config {
    fn change_from(&self, before: &Self) -> Change {
        if self == before {
            return Change::Nothing;
        }
        let detours = Self {
            detoured: self.detoured.clone(),
            ..before.clone()
        };
        match *self == detours {
            true => Change::Detours,
            false => Change::Other,
        }
    }
}

/// Keeps the rules of one device in place until dropped; [`Firewall::remove`] takes them away.
#[derive(Debug)]
pub struct Firewall {
    state: Arc<Mutex<State>>,
    trouble: status::Receiver<Option<String>>,
    obstacles: status::Receiver<Option<String>>,
    task: AbortHandle,
}

impl Firewall {
    /// Opens the sockets in the calling thread's network namespace and begins to watch on the current
    /// tokio runtime. Changes nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without `CAP_NET_ADMIN`; [`Error::Failed`] if the kernel has no nftables.
    pub fn new() -> Result<Self, Error> {
        let nft = Nft::open()?;
        let watcher = netlink::nft::Watcher::open(&nft)?;
        let (warn, obstacles) = status::channel(None);
        let state = Arc::new(Mutex::new(State {
            nft,
            wanted: None,
            junk_before: 0,
            warn,
        }));
        let (report, trouble) = status::channel(None);
        let task = tokio::spawn(watch::run(Arc::downgrade(&state), watcher, report)).abort_handle();
        Ok(Self {
            state,
            trouble,
            obstacles,
            task,
        })
    }

    /// Puts the rules for `config` in place of those of before, and keeps them there.
    ///
    /// # Errors
    ///
    /// What the kernel refused; the watch goes on trying.
    pub async fn apply(&self, config: &Config) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if let Some(mut before) = state.wanted.take() {
            match config.change_from(&before.config) {
                Change::Nothing => {
                    state.wanted = Some(before);
                    return state.repair(false).await;
                }
                // Often, and somebody waits: the rest stays as it was found, and is looked at now and then.
                Change::Detours => {
                    before.config.detoured.clone_from(&config.detoured);
                    before.snapshot = None;
                    state.wanted = Some(before);
                    return state.repair_table().await;
                }
                Change::Other => {}
            }
            if before.config.device != config.device || before.config.divert && !config.divert {
                state.clear(&before.config.device).await?;
            }
        }
        let chains = state
            .nft
            .chains(Layer::Inet, &table_name(&config.device))
            .await?;
        state.wanted = Some(Wanted {
            config: config.clone(),
            snapshot: None,
            foreign: false,
            zoned: chains.iter().any(|chain| chain == ZONE_NOTE),
        });
        state.repair(true).await
    }

    /// Datagrams to WireGuard's port that were neither its nor the agent's, since the start.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub async fn junk(&self) -> Result<u64, Error> {
        let mut state = self.state.lock().await;
        let State {
            nft,
            wanted,
            junk_before,
            ..
        } = &mut *state;
        let now = match wanted {
            Some(wanted) => {
                nft.counted(&table_name(&wanted.config.device), JUNK)
                    .await?
            }
            None => 0,
        };
        Ok(*junk_before + now)
    }

    /// Takes away all that bears the name of `device`, what a killed agent left included.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub async fn remove(&self, device: &str) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        state.wanted = None;
        state.warn.send_replace(None);
        state.clear(device).await
    }

    /// Why the rules could not be put back, while they could not.
    #[must_use]
    pub fn trouble(&self) -> status::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// What of the host's own firewall is in the way, and the commands against it.
    #[must_use]
    pub fn obstacles(&self) -> status::Receiver<Option<String>> {
        self.obstacles.clone()
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is in the kernel, and what should be.
#[derive(Debug)]
struct State {
    nft: Nft,
    wanted: Option<Wanted>,
    /// Counted by tables that were replaced.
    junk_before: u64,
    warn: status::Sender<Option<String>>,
}

#[derive(Debug)]
struct Wanted {
    config: Config,
    /// Our table as it was left; `None` before it was ever applied.
    snapshot: Option<Snapshot>,
    /// Whether the rules in chains of others are those of `config`.
    foreign: bool,
    /// Whether the device is in firewalld's zone because of us.
    zoned: bool,
}

impl State {
    /// Compares and puts right what differs; looks at the tables of others if told that they changed.
    async fn repair(&mut self, others: bool) -> Result<(), Error> {
        self.repair_table().await?;
        self.repair_foreign().await?;
        if others {
            self.survey().await?;
        }
        Ok(())
    }

    async fn repair_table(&mut self) -> Result<(), Error> {
        let Some(wanted) = &mut self.wanted else {
            return Ok(());
        };
        let name = table_name(&wanted.config.device);
        if wanted.snapshot.is_none() || self.nft.snapshot(&name).await? != wanted.snapshot {
            wanted.snapshot = None;
            let mut table = table(&wanted.config);
            if wanted.zoned {
                table.chains.push(Chain {
                    name: ZONE_NOTE.to_owned(),
                    base: None,
                    rules: Vec::new(),
                });
            }
            let counted = self.nft.counted(&name, JUNK).await?;
            self.nft.replace(&table).await?;
            self.junk_before += counted;
            wanted.snapshot = self.nft.snapshot(&name).await?;
        }
        Ok(())
    }

    /// Keeps our rules in the chains of iptables, which ufw and Docker use.
    async fn repair_foreign(&mut self) -> Result<(), Error> {
        let Some(wanted) = &mut self.wanted else {
            return Ok(());
        };
        if !wanted.config.divert {
            return Ok(());
        }
        let mark = marker(&wanted.config.device);
        for layer in FOREIGN_LAYERS {
            let chains = self.nft.chains(layer, FOREIGN_TABLE).await?;
            let mut rules = foreign(&wanted.config);
            rules.retain(|(chain, _)| chains.iter().any(|name| name == chain));
            let present = self.nft.marked(layer, FOREIGN_TABLE, &mark).await?;
            let in_place = wanted.foreign
                && rules.iter().all(|(chain, _)| {
                    let ours = rules.iter().filter(|(other, _)| other == chain).count();
                    count(&present, chain) == ours
                })
                && present.len() == rules.len();
            if !in_place {
                self.nft
                    .exchange(layer, FOREIGN_TABLE, &present, &rules)
                    .await?;
            }
        }
        wanted.foreign = true;
        Ok(())
    }

    /// Looks what other tables do with our packets: asks firewalld to let them pass, and warns of the rest.
    async fn survey(&mut self) -> Result<(), Error> {
        let mut asked = false;
        let text = loop {
            let Some(wanted) = &mut self.wanted else {
                return Ok(());
            };
            let obstacles = survey(&wanted.config, &self.nft.ruleset().await?);
            let device = &wanted.config.device;
            if asked || !wanted.config.divert || !obstacles.iter().any(Obstacle::is_of_a_zone) {
                break warning(&wanted.config, &obstacles);
            }
            asked = true;
            match firewalld::admit(device).await {
                Ok(true) => {
                    wanted.zoned = true;
                    wanted.snapshot = None;
                    self.repair_table().await?;
                }
                Ok(false) => {}
                Err(error) => {
                    let reason = error_text(&error);
                    tracing::warn!(reason, "firewalld was not told to let the overlay pass");
                }
            }
        };
        self.warn.send_if_modified(|before| {
            let changed = *before != text;
            *before = text;
            changed
        });
        Ok(())
    }

    async fn clear(&mut self, device: &str) -> Result<(), Error> {
        let name = table_name(device);
        let chains = self.nft.chains(Layer::Inet, &name).await?;
        if chains.iter().any(|chain| chain == ZONE_NOTE)
            && let Err(error) = firewalld::withdraw(device).await
        {
            // One that runs no more has forgotten it anyway.
            let reason = error_text(&error);
            tracing::warn!(reason, device, "left in firewalld's zone until it reloads");
        }
        self.nft.delete(&name).await?;
        let mark = marker(device);
        for layer in FOREIGN_LAYERS {
            let present = self.nft.marked(layer, FOREIGN_TABLE, &mark).await?;
            self.nft
                .exchange(layer, FOREIGN_TABLE, &present, &[])
                .await?;
        }
        Ok(())
    }
}

fn count(rules: &[Foreign], chain: &str) -> usize {
    rules.iter().filter(|rule| rule.chain == chain).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_detours_concern_no_firewall_but_ours() {
        let before = Config {
            device: "tailrace0".to_owned(),
            divert: true,
            wireguard_port: 41641,
            agent_port: Some(41700),
            detoured: BTreeSet::new(),
            forwards: false,
            uses_exit_node: false,
            masquerade: true,
            served: Vec::new(),
            exit_node: false,
        };
        assert_eq!(before.change_from(&before), Change::Nothing);
        let detoured = Config {
            detoured: BTreeSet::from([SocketAddr::from(([203, 0, 113, 1], 41641))]),
            ..before.clone()
        };
        assert_eq!(detoured.change_from(&before), Change::Detours);
        assert_eq!(before.change_from(&detoured), Change::Detours);
        let more = Config {
            forwards: true,
            ..detoured.clone()
        };
        assert_eq!(more.change_from(&before), Change::Other);
        // Our table depends on them, the chains of others do not.
        assert_ne!(table(&detoured), table(&before));
        assert_eq!(foreign(&detoured), foreign(&before));
    }
}
