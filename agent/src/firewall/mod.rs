//! The host's netfilter: our own table, and marked rules in the chains of a host that drops by default.
//!
//! ```text
//! Config ──table, foreign (pure)──► nft ──► inet tailrace0; ip filter, ip6 filter: INPUT, FORWARD
//!                                    ▲                │ flushed, reloaded, restarted by others
//!                                    └── repair ◄─────┘
//! ```
//!
//! Only what bears our table's name or our comment is ever changed.

pub mod demux;
mod rules;
mod watch;

use std::sync::Arc;

use ipnet::IpNet;
use netlink::Error;
use netlink::nft::{Foreign, Nft, Snapshot};
use tokio::sync::{Mutex, watch as status};
use tokio::task::AbortHandle;

use rules::{FOREIGN_LAYERS, FOREIGN_TABLE};
pub use rules::{FORWARD_MARK, foreign, marker, table, table_name};

/// What the rules depend on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Overlay device.
    pub device: String,
    /// UDP port of WireGuard, the one that others see.
    pub wireguard_port: u16,
    /// UDP port of the agent's own socket, hidden behind WireGuard's; `None` leaves both ports alone.
    pub agent_port: Option<u16>,
    /// Whether hosts behind us see our address in place of the peers'.
    pub masquerade: bool,
    /// Approved prefixes behind us: peers reach their hosts, and those may call peers.
    pub served: Vec<IpNet>,
    /// Whether peers reach the world through us, whatever `served` says.
    pub exit_node: bool,
}

/// Keeps the rules of one device in place until dropped; [`Firewall::remove`] takes them away.
#[derive(Debug)]
pub struct Firewall {
    state: Arc<Mutex<State>>,
    trouble: status::Receiver<Option<String>>,
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
        let state = Arc::new(Mutex::new(State { nft, wanted: None }));
        let (report, trouble) = status::channel(None);
        let task = tokio::spawn(watch::run(Arc::downgrade(&state), watcher, report)).abort_handle();
        Ok(Self {
            state,
            trouble,
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
        if let Some(before) = state.wanted.take() {
            if before.config == *config {
                state.wanted = Some(before);
                return state.repair().await;
            }
            if before.config.device != config.device {
                state.clear(&before.config.device).await?;
            }
        }
        state.wanted = Some(Wanted {
            config: config.clone(),
            snapshot: None,
            foreign: false,
        });
        state.repair().await
    }

    /// Takes away all that bears the name of `device`, what a killed agent left included.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub async fn remove(&self, device: &str) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        state.wanted = None;
        state.clear(device).await
    }

    /// Why the rules could not be put back, while they could not.
    #[must_use]
    pub fn trouble(&self) -> status::Receiver<Option<String>> {
        self.trouble.clone()
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
}

#[derive(Debug)]
struct Wanted {
    config: Config,
    /// Our table as it was left; `None` before it was ever applied.
    snapshot: Option<Snapshot>,
    /// Whether the rules in chains of others are those of `config`.
    foreign: bool,
}

impl State {
    /// Compares and puts right what differs.
    async fn repair(&mut self) -> Result<(), Error> {
        let Some(wanted) = &mut self.wanted else {
            return Ok(());
        };
        let name = table_name(&wanted.config.device);
        if wanted.snapshot.is_none() || self.nft.snapshot(&name).await? != wanted.snapshot {
            wanted.snapshot = None;
            self.nft.replace(&table(&wanted.config)).await?;
            wanted.snapshot = self.nft.snapshot(&name).await?;
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

    async fn clear(&mut self, device: &str) -> Result<(), Error> {
        self.nft.delete(&table_name(device)).await?;
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
