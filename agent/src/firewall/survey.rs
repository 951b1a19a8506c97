//! What other tables of the host do with our packets: pure, from a dump to [`Obstacle`]s.
//!
//! A packet passes only if every table lets it, so nothing we write can override another table's drop.
//! Rules that ask what we do not read are passed over: they may admit or drop part of the traffic, but
//! decide nothing about the rest.

use std::collections::BTreeSet;
use std::fmt;

use netlink::Family;
use netlink::nft::{Condition, Hook, HostChain, HostRule, HostVerdict, Layer, state};

use super::{Config, table_name};

/// As deep as the kernel lets chains jump.
const DEEPEST: u32 = 16;
/// firewalld's table, where it does not write to iptables'.
const FIREWALLD: &str = "firewalld";
/// Of a table whose whole chains we decide ourselves: its own agent knows what it drops.
const OURS: &str = "tailrace";

/// A chain of the host that drops what it has to let pass.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Obstacle {
    /// Family of the table.
    pub layer: Layer,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What it drops.
    pub traffic: Traffic,
}

/// What a gateway's host has to let pass.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Traffic {
    /// From peers to this host.
    In,
    /// From peers through this host.
    Through,
    /// To peers through this host: answers, or calls of served networks.
    Back,
}

/// One kind of packet, as far as chains tell it apart.
#[derive(Clone, Copy, Debug)]
struct Sample<'a> {
    hook: Hook,
    family: Family,
    device: &'a str,
    /// Came in by the device.
    inward: bool,
    /// Leaves by the device.
    outward: bool,
    state: u32,
}

/// What becomes of a packet in a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Passes,
    Dropped,
    /// Goes on behind the rule that jumped here.
    Returns,
}

/// Returns the chains that drop what `config` needs. Pure.
#[must_use]
pub fn survey(config: &Config, chains: &[HostChain]) -> Vec<Obstacle> {
    let ours = table_name(&config.device);
    let foreign = |chain: &&HostChain| {
        chain.hook.is_some() && chain.table != ours && !chain.table.starts_with(OURS)
    };
    let mut found = BTreeSet::new();
    for base in chains.iter().filter(foreign) {
        for (sample, traffic) in samples(config) {
            let families = match base.layer {
                Layer::Inet => true,
                Layer::Ip(family) => family == sample.family,
            };
            if base.hook != Some(sample.hook) || !families {
                continue;
            }
            let fate = match fate(&sample, chains, base, DEEPEST) {
                Fate::Returns if base.drops => Fate::Dropped,
                fate => fate,
            };
            if fate == Fate::Dropped {
                found.insert(Obstacle {
                    layer: base.layer,
                    table: base.table.clone(),
                    chain: base.name.clone(),
                    traffic,
                });
            }
        }
    }
    found.into_iter().collect()
}

/// What has to pass, in both families where both are served.
fn samples(config: &Config) -> Vec<(Sample<'_>, Traffic)> {
    let mut samples = Vec::new();
    for family in Family::BOTH {
        let v4 = family == Family::V4;
        let sample = |hook, inward: bool, state| Sample {
            hook,
            family,
            device: &config.device,
            inward,
            outward: !inward,
            state,
        };
        samples.push((sample(Hook::Input, true, state::NEW), Traffic::In));
        let of_family = |net: &&ipnet::IpNet| net.addr().is_ipv4() == v4;
        let served: Vec<_> = config.served.iter().filter(of_family).collect();
        if served.is_empty() {
            continue;
        }
        samples.push((sample(Hook::Forward, true, state::NEW), Traffic::Through));
        let answers = sample(Hook::Forward, false, state::ESTABLISHED);
        samples.push((answers, Traffic::Back));
        // Only where hosts behind us see peers as they are, they know whom to call.
        if !config.masquerade && served.iter().any(|net| net.prefix_len() != 0) {
            let calls = sample(Hook::Forward, false, state::NEW);
            samples.push((calls, Traffic::Back));
        }
    }
    samples
}

fn fate(sample: &Sample<'_>, chains: &[HostChain], chain: &HostChain, depth: u32) -> Fate {
    for rule in &chain.rules {
        let Some(verdict) = sample.verdict(rule) else {
            continue;
        };
        let (target, comes_back) = match verdict {
            HostVerdict::Accept => return Fate::Passes,
            HostVerdict::Drop => return Fate::Dropped,
            HostVerdict::Return => return Fate::Returns,
            HostVerdict::Jump(target) => (target, true),
            HostVerdict::Goto(target) => (target, false),
            HostVerdict::Map(_) => continue,
        };
        let is_target = |other: &&HostChain| {
            other.layer == chain.layer && other.table == chain.table && other.name == *target
        };
        let next = chains.iter().find(is_target).filter(|_| depth > 0);
        match next.map(|next| fate(sample, chains, next, depth - 1)) {
            Some(Fate::Returns) | None if comes_back => {}
            Some(fate) => return fate,
            None => return Fate::Returns,
        }
    }
    Fate::Returns
}

impl Sample<'_> {
    /// What the rule surely does with the packet.
    fn verdict<'a>(&self, rule: &'a HostRule) -> Option<&'a HostVerdict> {
        let answers: Vec<_> = rule
            .conditions
            .iter()
            .map(|asked| self.meets(asked))
            .collect();
        if answers.contains(&Some(false)) {
            return None;
        }
        if answers.contains(&None) {
            // Whoever names the device and lets some of its traffic pass means to keep the rest out.
            let deliberate = rule.verdict == Some(HostVerdict::Accept)
                && rule.conditions.iter().any(|asked| self.is_named_by(asked));
            return deliberate.then_some(&HostVerdict::Accept);
        }
        match rule.verdict.as_ref()? {
            HostVerdict::Map(entries) => {
                let entry = entries
                    .iter()
                    .find(|(asked, _)| self.meets(asked) == Some(true));
                entry.map(|(_, verdict)| verdict)
            }
            // So does whoever names it and drops.
            HostVerdict::Drop if rule.conditions.iter().any(|asked| self.is_named_by(asked)) => {
                Some(&HostVerdict::Accept)
            }
            verdict => Some(verdict),
        }
    }

    /// Whether the packet meets the condition; `None` if only some such packets do.
    fn meets(&self, condition: &Condition) -> Option<bool> {
        match condition {
            Condition::Input(names) => self.interface(self.inward, names),
            Condition::Output(names) if self.hook == Hook::Forward => {
                self.interface(self.outward, names)
            }
            Condition::State(states) => Some(states & self.state != 0),
            Condition::Family(family) => Some(*family == self.family),
            Condition::Output(_) | Condition::Other => None,
        }
    }

    fn interface(&self, ours: bool, names: &netlink::nft::Names) -> Option<bool> {
        let device = names.hold(self.device);
        match (ours, names.negated) {
            (true, _) => Some(device),
            // Some other interface: surely not one that is listed alone, surely one of all but ours.
            (false, false)
                if names
                    .patterns
                    .iter()
                    .all(|name| name == self.device || name == "lo") =>
            {
                Some(false)
            }
            (false, true)
                if names
                    .patterns
                    .iter()
                    .all(|name| name == self.device || name == "lo") =>
            {
                Some(true)
            }
            (false, _) => None,
        }
    }

    fn is_named_by(&self, condition: &Condition) -> bool {
        let names = match condition {
            Condition::Input(names) if self.inward => names,
            Condition::Output(names) if self.outward => names,
            _ => return false,
        };
        !names.negated && names.hold(self.device)
    }
}

impl Obstacle {
    /// Whether the device would have to be in a zone of firewalld's.
    pub(super) fn is_of_a_zone(&self) -> bool {
        self.table == FIREWALLD && self.traffic != Traffic::Back
    }

    /// The commands that let pass what it drops.
    #[must_use]
    pub fn remedy(&self, device: &str) -> String {
        if self.table == FIREWALLD {
            return self.remedy_by_firewalld(device);
        }
        let family = match self.layer {
            Layer::Inet => "inet",
            Layer::Ip(Family::V4) => "ip",
            Layer::Ip(Family::V6) => "ip6",
        };
        let interface = match self.traffic {
            Traffic::In | Traffic::Through => "iifname",
            Traffic::Back => "oifname",
        };
        let Self { table, chain, .. } = self;
        format!("nft insert rule {family} {table} {chain} {interface} {device} accept")
    }

    fn remedy_by_firewalld(&self, device: &str) -> String {
        match self.traffic {
            Traffic::In | Traffic::Through => {
                format!("firewall-cmd --zone=trusted --change-interface={device}")
            }
            // firewall-cmd takes one change of a policy at a time.
            Traffic::Back => {
                let change = format!("firewall-cmd --permanent --policy={device}");
                format!(
                    "firewall-cmd --permanent --new-policy={device} && {change} \
                     --add-ingress-zone=ANY && {change} --add-egress-zone=trusted && {change} \
                     --set-target=ACCEPT && firewall-cmd --reload"
                )
            }
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::In => "what peers send to this host",
            Self::Through => "what peers send through this host",
            Self::Back => "what is forwarded to peers",
        })
    }
}

/// All of it in one warning; `None` if nothing is in the way of what a gateway does. A host that serves
/// nothing may keep peers out as it likes.
#[must_use]
pub fn warning(config: &Config, obstacles: &[Obstacle]) -> Option<String> {
    if config.served.is_empty() {
        return None;
    }
    let device = &config.device;
    let mut places: Vec<String> = Vec::new();
    let mut remedies: Vec<String> = Vec::new();
    for obstacle in obstacles {
        let Obstacle {
            table,
            chain,
            traffic,
            ..
        } = obstacle;
        places.push(format!("chain {chain} of table {table} drops {traffic}"));
        let remedy = format!("`{}`", obstacle.remedy(device));
        if !remedies.contains(&remedy) {
            remedies.push(remedy);
        }
    }
    places.dedup();
    if places.is_empty() {
        return None;
    }
    Some(format!(
        "the host's own firewall is in the way: {}; run {}",
        places.join(", "),
        remedies.join(" and ")
    ))
}

#[cfg(test)]
mod tests {
    use netlink::nft::Names;

    use super::*;

    fn config() -> Config {
        Config {
            forwards: true,
            uses_exit_node: false,
            device: "tailrace0".to_owned(),
            divert: true,
            wireguard_port: 41641,
            agent_port: None,
            detoured: Default::default(),
            masquerade: true,
            served: vec!["10.1.0.0/16".parse().unwrap()],
            exit_node: false,
        }
    }

    fn names(pattern: &str) -> Names {
        Names {
            negated: false,
            patterns: vec![pattern.to_owned()],
        }
    }

    fn rule(conditions: Vec<Condition>, verdict: HostVerdict) -> HostRule {
        HostRule {
            conditions,
            verdict: Some(verdict),
        }
    }

    fn forward(drops: bool, rules: Vec<HostRule>) -> HostChain {
        HostChain {
            layer: Layer::Inet,
            table: "filter".to_owned(),
            name: "forward".to_owned(),
            hook: Some(Hook::Forward),
            drops,
            rules,
        }
    }

    fn dropped(config: &Config, chains: &[HostChain]) -> Vec<Traffic> {
        let found = survey(config, chains).into_iter();
        found.map(|obstacle| obstacle.traffic).collect()
    }

    fn answers() -> HostRule {
        let states = Condition::State(state::ESTABLISHED | state::RELATED);
        rule(vec![states], HostVerdict::Accept)
    }

    #[test]
    fn a_policy_that_drops_is_in_the_way_until_rules_admit_us() {
        let admitted =
            |pattern: &str| rule(vec![Condition::Input(names(pattern))], HostVerdict::Accept);
        let cases = [
            (vec![], vec![Traffic::Through, Traffic::Back]),
            (vec![answers()], vec![Traffic::Through]),
            (vec![answers(), admitted("eth0")], vec![Traffic::Through]),
            (vec![answers(), admitted("tailrace0")], vec![]),
            (vec![answers(), admitted("tail*")], vec![]),
        ];
        for (rules, expected) in cases {
            let chains = [forward(true, rules)];
            assert_eq!(dropped(&config(), &chains), expected, "{chains:?}");
        }
        assert_eq!(dropped(&config(), &[forward(false, vec![])]), []);
        let nothing_served = Config {
            served: vec![],
            ..config()
        };
        assert_eq!(dropped(&nothing_served, &[forward(true, vec![])]), []);
    }

    #[test]
    fn a_rule_that_drops_everything_counts_as_the_policy_does() {
        let last = rule(vec![], HostVerdict::Drop);
        let some = rule(vec![Condition::Other], HostVerdict::Drop);
        let chains = [forward(false, vec![answers(), some.clone(), last])];
        assert_eq!(dropped(&config(), &chains), [Traffic::Through]);
        assert_eq!(dropped(&config(), &[forward(false, vec![some])]), []);
    }

    #[test]
    fn whoever_names_the_device_means_what_the_rule_says() {
        for verdict in [HostVerdict::Accept, HostVerdict::Drop] {
            let named = Condition::Input(names("tailrace0"));
            let mut conditions = vec![named];
            if verdict == HostVerdict::Accept {
                conditions.push(Condition::Other);
            }
            let chains = [forward(true, vec![answers(), rule(conditions, verdict)])];
            assert_eq!(dropped(&config(), &chains), []);
        }
    }

    #[test]
    fn jumps_and_maps_are_followed() {
        let map = HostVerdict::Map(vec![
            (Condition::State(state::ESTABLISHED), HostVerdict::Accept),
            (Condition::State(state::INVALID), HostVerdict::Drop),
        ]);
        let target = HostChain {
            hook: None,
            name: "zones".to_owned(),
            ..forward(
                false,
                vec![rule(
                    vec![Condition::Input(names("tailrace0"))],
                    HostVerdict::Accept,
                )],
            )
        };
        let base = |verdict| {
            forward(
                false,
                vec![
                    rule(vec![], map.clone()),
                    rule(vec![], verdict),
                    rule(vec![], HostVerdict::Drop),
                ],
            )
        };
        let zones = "zones".to_owned();
        let chains = [base(HostVerdict::Jump(zones.clone())), target.clone()];
        assert_eq!(dropped(&config(), &chains), []);
        let calls = Config {
            masquerade: false,
            ..config()
        };
        assert_eq!(dropped(&calls, &chains), [Traffic::Back]);
        // What a chain that was gone to does not decide, the policy does.
        let chains = [base(HostVerdict::Goto(zones)), target];
        assert_eq!(dropped(&calls, &chains), []);
    }

    #[test]
    fn the_warning_names_the_place_and_the_command() {
        let found = survey(&config(), &[forward(true, vec![])]);
        let text = warning(&config(), &found).unwrap();
        assert!(text.contains("chain forward of table filter"), "{text}");
        for rule in ["iifname", "oifname"] {
            let command = format!("`nft insert rule inet filter forward {rule} tailrace0 accept`");
            assert!(text.contains(&command), "{text}");
        }
        assert_eq!(warning(&config(), &[]), None);
    }
}
