//! The packet filter of one overlay device: rules in, tables of the kernel's programs out.
//!
//! Not attached by the agent yet: it counts with [`Counters`] and admits everything or nothing.

mod bulk;
mod classes;
mod rules;
mod tables;

use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use ebpf_abi::{Count, Direction, DropReason, Nanos, POLICY_SHIELDS_UP, Policy};
use ipnet::IpNet;

pub use classes::TooLarge;
pub use rules::{Rule, Rules};
pub(crate) use tables::RuleTables;

use crate::{Attachment, Counters, DataplaneError, Peer, object::Features, peer::boot_clock};

/// The filtering programs on one overlay device, and their maps.
///
/// Until [`set_rules`](Self::set_rules) is called for the first time on a device nothing passes. With
/// a pin folder, rules stay in force and flows stay known when the process ends, and another
/// `attach` goes on with both. Everything else is as with [`Counters`].
pub struct Filter {
    counters: Counters,
    enforced: Enforced,
}

impl Filter {
    /// As [`Counters::attach`], with programs that filter. Counters in the same pin folder are taken
    /// over, and the other way round.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn attach(ifname: &str, pin_dir: Option<&Path>) -> Result<Self, DataplaneError> {
        Self::attach_as(ifname, pin_dir, Attachment::of_this_kernel())
    }

    /// As [`Counters::attach_as`], with programs that filter.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn attach_as(
        ifname: &str,
        pin_dir: Option<&Path>,
        kind: Attachment,
    ) -> Result<Self, DataplaneError> {
        let features = Features {
            filter: true,
            ..Features::default()
        };
        let (counters, tables) = Counters::attach_with(ifname, pin_dir, kind, features)?;
        Ok(Self {
            counters,
            enforced: Enforced::new(tables),
        })
    }

    /// What the programs count. Peers are set here, so that the filter learns of them.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// As [`Counters::set_peers`]. A peer that is jailed or released is treated so from the next
    /// packet on.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_peers(&mut self, peers: &[(IpNet, Peer)]) -> Result<(), DataplaneError> {
        self.counters.set_peers(peers)?;
        self.enforced.renew()
    }

    /// Puts `rules` in force, from the next packet of every flow on, those that are known included.
    /// The same rules again change nothing.
    ///
    /// Takes tens of milliseconds, for 10 000 rules less than 2 s; until then the old rules hold.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Filter`] if they are too large: then no rule at all is in force. After any
    /// other error the old rules are.
    pub fn set_rules(&mut self, rules: &Rules) -> Result<(), DataplaneError> {
        self.enforced.set_rules(rules)
    }

    /// Says when our own key expires, since boot (see [`since_boot`](crate::since_boot)): from then on
    /// nothing passes in either direction. `None` for never.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn set_expiry(&mut self, expires: Option<Duration>) -> Result<(), DataplaneError> {
        self.enforced.set_expiry(expires)
    }

    /// Reads what was dropped, by direction and reason.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn drops(&self) -> Result<BTreeMap<(Direction, DropReason), Count>, DataplaneError> {
        self.counters.drops()
    }

    /// As [`Counters::remove`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn remove(self) -> Result<(), DataplaneError> {
        self.counters.remove()
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.counters).finish()
    }
}

/// What is in force, and the tables that say so to the programs.
pub(crate) struct Enforced {
    tables: RuleTables,
    policy: Policy,
    /// What this process put in force; what an earlier one did is not known.
    rules: Option<Rules>,
}

impl Enforced {
    pub(crate) fn new(tables: RuleTables) -> Self {
        Self {
            tables,
            policy: Policy {
                expires: Nanos::MAX,
                ..Policy::default()
            },
            rules: None,
        }
    }

    pub(crate) fn set_rules(&mut self, rules: &Rules) -> Result<(), DataplaneError> {
        if self.rules.as_ref() == Some(rules) {
            return Ok(());
        }
        match classes::compile(rules, classes::LIMITS) {
            Ok(tables) => self.put_in_force(rules, &tables),
            Err(too_large) => {
                // Not even the old ones: they admit what the new ones are there to stop.
                let none = Rules {
                    rules: Vec::new(),
                    ..rules.clone()
                };
                let tables = classes::compile(&none, classes::LIMITS)?;
                self.put_in_force(&none, &tables)?;
                Err(too_large.into())
            }
        }
    }

    fn put_in_force(
        &mut self,
        rules: &Rules,
        tables: &classes::ClassTables,
    ) -> Result<(), DataplaneError> {
        let [v4, v6] = rules.peer_api.map(|port| port.unwrap_or(0).to_be_bytes());
        let policy = Policy {
            generation: self.next_generation(),
            flags: if rules.shields_up {
                POLICY_SHIELDS_UP
            } else {
                0
            },
            peer_api_v4: v4,
            peer_api_v6: v6,
            ..self.policy
        };
        self.tables.replace(tables, policy)?;
        self.policy = policy;
        self.rules = Some(rules.clone());
        Ok(())
    }

    pub(crate) fn set_expiry(&mut self, expires: Option<Duration>) -> Result<(), DataplaneError> {
        let nanos = |expires: Duration| Nanos::try_from(expires.as_nanos()).unwrap_or(Nanos::MAX);
        let expires = expires.map_or(Nanos::MAX, nanos);
        self.amend(Policy {
            expires,
            ..self.policy
        })
    }

    /// Makes the programs judge known flows anew.
    pub(crate) fn renew(&mut self) -> Result<(), DataplaneError> {
        self.amend(Policy {
            generation: self.next_generation(),
            ..self.policy
        })
    }

    /// Changes what the policy says beside its rules; before there are any, it says so with them.
    fn amend(&mut self, policy: Policy) -> Result<(), DataplaneError> {
        if self.rules.is_some() {
            self.tables.amend(policy)?;
        }
        self.policy = policy;
        Ok(())
    }

    /// Larger than any before, an earlier process's included: those took the time too.
    fn next_generation(&self) -> u64 {
        let now = Nanos::try_from(boot_clock().as_nanos()).unwrap_or(Nanos::MAX);
        now.max(self.policy.generation + 1)
    }
}
