//! The packet filter of one overlay device: rules in, tables of the kernel's programs out.

mod bulk;
mod classes;
mod rules;
mod tables;

use std::time::Duration;

use ebpf_abi::{Nanos, POLICY_SHIELDS_UP, Policy};

pub use classes::TooLarge;
pub use rules::{Rule, Rules};
pub(crate) use tables::RuleTables;

use crate::{DataplaneError, peer::boot_clock};

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
