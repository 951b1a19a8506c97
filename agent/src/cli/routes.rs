//! The flags of `up` and `set` about subnet routes and exit nodes.

use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;
use node_core::DEFAULT_ROUTES;

use super::CliError;
use super::show::find;
use crate::localapi::{PeerStatus, Status};
use crate::prefs::{NetfilterMode, Prefs};

/// Flags that `up` and `set` share; what is not named stays.
#[derive(Args, Clone, Debug, Default)]
pub struct RouteArgs {
    /// Offer routes to the tailnet; empty for none.
    #[arg(long, value_name = "CIDR,...")]
    pub advertise_routes: Option<String>,
    /// Offer to be an exit node.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub advertise_exit_node: Option<bool>,
    /// Reach subnets that peers offer.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub accept_routes: Option<bool>,
    /// Send all traffic to the Internet through this peer; empty for none.
    #[arg(long, value_name = "IP|NAME")]
    pub exit_node: Option<String>,
    /// Reach this host's own networks while an exit node is used.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub exit_node_allow_lan_access: Option<bool>,
    /// Give packets toward served routes this host's address [default: true].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub snat_subnet_routes: Option<bool>,
    /// How far the host's netfilter is touched [default: on].
    #[arg(long, value_name = "MODE")]
    pub netfilter_mode: Option<NetfilterMode>,
    /// Let the daemon switch IP forwarding on while it serves routes; `down` puts it back.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub enable_ip_forward: Option<bool>,
}

impl RouteArgs {
    /// Changes preferences as the flags say; returns the names of the fields that they are about.
    ///
    /// # Errors
    ///
    /// What is wrong with a flag, in upstream's words.
    pub fn apply(&self, prefs: &mut Prefs, status: &Status) -> Result<Vec<&'static str>, CliError> {
        let mut fields = Vec::new();
        let mut set = |field: &mut bool, flag: Option<bool>, name: &'static str| {
            if let Some(value) = flag {
                *field = value;
                fields.push(name);
            }
        };
        set(&mut prefs.route_all, self.accept_routes, "RouteAll");
        set(
            &mut prefs.exit_node_allow_lan_access,
            self.exit_node_allow_lan_access,
            "ExitNodeAllowLANAccess",
        );
        let no_snat = self.snat_subnet_routes.map(|snat| !snat);
        set(&mut prefs.no_snat, no_snat, "NoSNAT");
        set(
            &mut prefs.enable_ip_forward,
            self.enable_ip_forward,
            "EnableIPForward",
        );
        if let Some(mode) = self.netfilter_mode {
            prefs.netfilter_mode = mode;
            fields.push("NetfilterMode");
        }
        if self.advertise_routes.is_some() || self.advertise_exit_node.is_some() {
            prefs.advertise_routes = self.advertised(prefs)?;
            fields.push("AdvertiseRoutes");
        }
        if let Some(wanted) = &self.exit_node {
            (prefs.exit_node_id, prefs.exit_node_ip) = match wanted.as_str() {
                "" => (String::new(), None),
                wanted => exit_node(wanted, status)?,
            };
            fields.extend(["ExitNodeID", "ExitNodeIP"]);
        }
        Ok(fields)
    }

    /// The routes to offer: each of the two flags leaves what the other is about.
    fn advertised(&self, prefs: &Prefs) -> Result<Vec<IpNet>, CliError> {
        let is_default = |net: &IpNet| DEFAULT_ROUTES.contains(net);
        let mut routes = match &self.advertise_routes {
            Some(text) => parse_routes(text)?,
            None => {
                let stored = prefs.advertise_routes.iter().copied();
                stored.filter(|net| !is_default(net)).collect()
            }
        };
        if self
            .advertise_exit_node
            .unwrap_or_else(|| prefs.advertises_exit_node())
        {
            routes.extend(DEFAULT_ROUTES);
        }
        Ok(routes)
    }
}

fn parse_routes(text: &str) -> Result<Vec<IpNet>, CliError> {
    let texts = text
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty());
    texts
        .map(|text| {
            text.parse().map_err(|_| {
                CliError::Other(format!("{text:?} is not a valid IP address or CIDR prefix"))
            })
        })
        .collect()
}

/// Id of the exit node, or its address as long as no map tells its id.
fn exit_node(wanted: &str, status: &Status) -> Result<(String, Option<IpAddr>), CliError> {
    let ip = wanted.parse::<IpAddr>().ok();
    if let Some(ip) = ip
        && status.peer.as_ref().is_none_or(|peers| peers.is_empty())
    {
        return Ok((String::new(), Some(ip)));
    }
    let node: &PeerStatus = find(status, wanted).map_err(|_| {
        CliError::Other(match ip {
            Some(ip) => format!("no node found in netmap with IP {ip}"),
            None => {
                format!("invalid value {wanted:?} for --exit-node; must be IP or unique node name")
            }
        })
    })?;
    if node.public_key == status.self_node.public_key {
        return Err(CliError::Other(format!(
            "cannot use {wanted} as an exit node as it is this machine itself"
        )));
    }
    if !node.exit_node_option {
        return Err(CliError::Other(format!(
            "node {wanted} is not advertising an exit node"
        )));
    }
    Ok((node.id.clone(), None))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keys::NodePublic;

    use super::*;

    fn texts(prefs: &Prefs) -> Vec<String> {
        let routes = prefs.advertise_routes.iter();
        routes.map(ToString::to_string).collect()
    }

    fn status() -> Status {
        let peer = |number: u8, name: &str, exit: bool| {
            let key = NodePublic::from_bytes([number; 32]);
            let peer = PeerStatus {
                id: format!("n{number}"),
                public_key: key,
                dns_name: format!("{name}.tail.example."),
                tailscale_ips: Some(vec![format!("100.64.0.{number}")]),
                exit_node_option: exit,
                ..PeerStatus::default()
            };
            (key, peer)
        };
        Status {
            peer: Some(BTreeMap::from([
                peer(1, "exit", true),
                peer(2, "plain", false),
            ])),
            ..Status::default()
        }
    }

    #[test]
    fn each_flag_leaves_what_the_other_is_about() {
        let mut prefs = Prefs::default();
        let routes = RouteArgs {
            advertise_routes: Some("10.0.0.0/8, fd00::/64".into()),
            ..RouteArgs::default()
        };
        let exit = RouteArgs {
            advertise_exit_node: Some(true),
            ..RouteArgs::default()
        };
        let status = Status::default();
        exit.apply(&mut prefs, &status).unwrap();
        routes.apply(&mut prefs, &status).unwrap();
        assert_eq!(
            texts(&prefs),
            ["10.0.0.0/8", "fd00::/64", "0.0.0.0/0", "::/0"]
        );
        let no_exit = RouteArgs {
            advertise_exit_node: Some(false),
            ..RouteArgs::default()
        };
        no_exit.apply(&mut prefs, &status).unwrap();
        assert_eq!(texts(&prefs), ["10.0.0.0/8", "fd00::/64"]);
    }

    #[test]
    fn an_exit_node_is_found_by_name_or_address_and_must_be_one() {
        let choose = |wanted: &str, status: &Status| {
            let mut prefs = Prefs::default();
            let args = RouteArgs {
                exit_node: Some(wanted.to_owned()),
                ..RouteArgs::default()
            };
            let applied = args.apply(&mut prefs, status);
            applied.map(|_| (prefs.exit_node_id, prefs.exit_node_ip))
        };
        let found = ("n1".to_owned(), None);
        assert_eq!(choose("exit", &status()).unwrap(), found);
        assert_eq!(choose("100.64.0.1", &status()).unwrap(), found);
        assert_eq!(choose("", &status()).unwrap(), (String::new(), None));
        for (wanted, words) in [
            ("plain", "not advertising an exit node"),
            ("nobody", "must be IP or unique node name"),
            ("100.64.0.9", "no node found in netmap"),
        ] {
            let error = choose(wanted, &status()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        // Before the first map an address has to be believed.
        let (id, ip) = choose("100.64.0.9", &Status::default()).unwrap();
        assert_eq!((id.as_str(), ip), ("", "100.64.0.9".parse().ok()));
    }
}
