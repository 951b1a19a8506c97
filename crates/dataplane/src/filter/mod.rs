//! The packet filter of one overlay device: rules in, tables of the kernel's programs out.

pub(crate) mod bulk;
mod classes;
mod rules;
mod tables;

use std::time::Duration;

use ebpf_abi::{Nanos, POLICY_LINEAR, POLICY_SHIELDS_UP, Policy};

pub use classes::TooLarge;
pub use rules::{Rule, RuleHits, Rules};
pub(crate) use tables::RuleTables;

use crate::{DataplaneError, Drops, peer::boot_clock};

/// What is in force, and the tables that say so to the programs.
pub(crate) struct Enforced {
    tables: RuleTables,
    policy: Policy,
    /// What this process put in force; what an earlier one did is not known.
    rules: Option<Rules>,
    /// The last rules, if they were too large, and in what: then none are in force.
    refused: Option<(Rules, TooLarge)>,
    limits: classes::Limits,
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
            refused: None,
            limits: classes::LIMITS,
        }
    }

    pub(crate) fn set_rules(&mut self, rules: &Rules) -> Result<(), DataplaneError> {
        if self.rules.as_ref() == Some(rules) {
            return Ok(());
        }
        if let Some((refused, too_large)) = &self.refused
            && refused == rules
        {
            // To find it out again would take as long as the first time.
            return Err((*too_large).into());
        }
        match classes::compile(rules, self.limits) {
            Ok(tables) => {
                self.put_in_force(rules, &tables)?;
                self.refused = None;
                Ok(())
            }
            Err(too_large) => {
                // Not even the old ones: they admit what the new ones are there to stop.
                let none = Rules {
                    rules: Vec::new(),
                    ..rules.clone()
                };
                let tables = classes::compile(&none, self.limits)?;
                self.put_in_force(&none, &tables)?;
                self.refused = Some((rules.clone(), too_large));
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
        let shields = if rules.shields_up {
            POLICY_SHIELDS_UP
        } else {
            0
        };
        let linear = if tables.linear.is_some() {
            POLICY_LINEAR
        } else {
            0
        };
        let policy = Policy {
            generation: self.next_generation(),
            flags: shields | linear,
            rules: u32::try_from(rules.rules.len()).unwrap_or(u32::MAX),
            member_words: tables
                .linear
                .as_ref()
                .map_or(0, |linear| linear.member_words),
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
        if expires == self.policy.expires {
            return Ok(());
        }
        // What is known of flows carries the expiry.
        self.amend(Policy {
            generation: self.next_generation(),
            expires,
            ..self.policy
        })
    }

    /// What each rule in force has admitted, in the order of the rules.
    pub(crate) fn rule_hits(&self) -> Result<Vec<RuleHits>, DataplaneError> {
        let Some(rules) = &self.rules else {
            return Ok(Vec::new());
        };
        let counts = self.tables.hits()?.into_iter();
        let hits = rules.rules.iter().zip(counts);
        Ok(hits
            .map(|(rule, count)| RuleHits { id: rule.id, count })
            .collect())
    }

    /// The reports of dropped packets, for the first who asks.
    pub(crate) fn take_drops(&mut self) -> Option<Drops> {
        self.tables.take_drops()
    }

    /// Whether rule ends are tried one after the other.
    pub(crate) fn is_linear(&self) -> bool {
        self.policy.flags & POLICY_LINEAR != 0
    }

    /// Has rules compiled to what fits into `pairs`, from the next on.
    pub(crate) fn limit_pairs(&mut self, pairs: usize) {
        self.limits.pairs = pairs;
        self.refused = None;
    }

    /// Makes the programs judge known flows anew after peers were set, also if that failed half-way;
    /// not if nothing changed.
    pub(crate) fn renew_after(
        &mut self,
        set: Result<bool, DataplaneError>,
    ) -> Result<(), DataplaneError> {
        match set {
            Ok(false) => Ok(()),
            Ok(true) => self.renew(),
            Err(error) => {
                self.renew()?;
                Err(error)
            }
        }
    }

    fn renew(&mut self) -> Result<(), DataplaneError> {
        self.amend(Policy {
            generation: self.next_generation(),
            ..self.policy
        })
    }

    /// Changes what the policy says beside its rules; before there are any, it says so with them. What
    /// an earlier process put in force stays, and judges known flows anew.
    fn amend(&mut self, policy: Policy) -> Result<(), DataplaneError> {
        if self.rules.is_some() {
            self.tables.amend(policy)?;
        } else {
            self.tables.forget()?;
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
