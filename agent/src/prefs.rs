//! What the operator wants of this node: [`Prefs`], with the field names of the upstream local API.

use std::net::IpAddr;

use control_proto::tailcfg::StableNodeId;
use ipnet::IpNet;
use node_core::{DEFAULT_ROUTES, ExitNode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::EngineName;
use crate::net::EngineChoice;

/// Longest host name that the coordination server is asked for.
const MAX_HOSTNAME_LEN: usize = 253;

/// Preferences, stored in the state folder.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Prefs {
    /// URL of the coordination server; empty until the first `up`.
    #[serde(rename = "ControlURL")]
    pub control_url: String,
    /// The overlay should be up.
    pub want_running: bool,
    /// The operator logged out; only a new login brings the node back.
    pub logged_out: bool,
    /// Name to ask for; empty means the host's own.
    pub hostname: String,
    /// User who may change preferences beside root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator_user: String,
    /// Peers may answer but not initiate.
    pub shields_up: bool,
    /// Subnets behind peers are reached through them (`--accept-routes`).
    pub route_all: bool,
    /// Stable id of the exit node; empty for none.
    #[serde(rename = "ExitNodeID")]
    pub exit_node_id: String,
    /// Overlay address of the exit node, as long as its id is not known.
    #[serde(rename = "ExitNodeIP", with = "optional_ip")]
    pub exit_node_ip: Option<IpAddr>,
    /// This host's own networks stay reachable while an exit node is used.
    #[serde(rename = "ExitNodeAllowLANAccess")]
    pub exit_node_allow_lan_access: bool,
    /// Routes offered to the tailnet; both default routes make an exit node. Sorted, each once.
    pub advertise_routes: Vec<IpNet>,
    /// Packets from the tailnet keep their source when they leave toward served routes.
    #[serde(rename = "NoSNAT")]
    pub no_snat: bool,
    /// How far the host's netfilter is touched.
    pub netfilter_mode: NetfilterMode,
    /// The daemon may switch the host's IP forwarding on while it serves routes (ours; upstream only warns).
    #[serde(rename = "EnableIPForward")]
    pub enable_ip_forward: bool,
    /// Which WireGuard, instead of the one that the daemon was started with (ours).
    #[serde(rename = "WireGuard", skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<EngineName>,
}

/// How far the host's netfilter is touched (`--netfilter-mode`); upstream's numbers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(into = "u8", try_from = "u8")]
pub enum NetfilterMode {
    /// Not at all.
    Off,
    /// Chains of our own only: nothing is done to those of others.
    #[value(name = "nodivert")]
    NoDivert,
    /// Everything is set up.
    #[default]
    On,
}

impl From<NetfilterMode> for u8 {
    fn from(mode: NetfilterMode) -> Self {
        match mode {
            NetfilterMode::Off => 0,
            NetfilterMode::NoDivert => 1,
            NetfilterMode::On => 2,
        }
    }
}

impl TryFrom<u8> for NetfilterMode {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            0 => Ok(Self::Off),
            1 => Ok(Self::NoDivert),
            2 => Ok(Self::On),
            _ => Err(format!("netfilter mode {number} is none of 0, 1, 2")),
        }
    }
}

/// An address that is an empty string if there is none, as upstream writes it.
mod optional_ip {
    use std::net::IpAddr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        ip: &Option<IpAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match ip {
            Some(ip) => serializer.collect_str(ip),
            None => serializer.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

/// Why a change of preferences is refused.
#[derive(Debug, thiserror::Error)]
pub enum PrefsError {
    /// Not JSON, or a field has the wrong type.
    #[error("preferences are not understood: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A feature this version does not have.
    #[error("{0} is not supported by this version of tailrace")]
    Unsupported(String),
    /// The server URL cannot be used.
    #[error("{url:?} is not a coordination server URL: {problem}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The host name cannot be used.
    #[error("{0:?} is not a host name: use letters, digits, '-' and '.', at most 253 of them")]
    Hostname(String),
    /// A route with host bits.
    #[error("{given} has non-address bits set; expected {}", given.trunc())]
    HostBits {
        /// What was given.
        given: IpNet,
    },
    /// Half an exit node.
    #[error(
        "{given} advertised without its {} counterpart, please also advertise {missing}",
        if missing.addr().is_ipv4() { "IPv4" } else { "IPv6" }
    )]
    HalfExit {
        /// What was given.
        given: IpNet,
        /// What is missing.
        missing: IpNet,
    },
    /// An exit node that uses another.
    #[error("cannot advertise an exit node and use an exit node at the same time")]
    ExitBothWays,
}

impl Prefs {
    /// Applies upstream's MaskedPrefs: for every `XSet: true`, the value of `X`.
    ///
    /// # Errors
    ///
    /// Any [`PrefsError`]; `self` is then unchanged.
    pub fn patched(&self, masked: &Map<String, Value>) -> Result<Self, PrefsError> {
        let Value::Object(mut merged) = serde_json::to_value(self)? else {
            return Err(PrefsError::Unsupported(
                "an empty preference set".to_owned(),
            ));
        };
        for (key, set) in masked {
            let Some(name) = key.strip_suffix("Set") else {
                continue;
            };
            if set != &Value::Bool(true) {
                continue;
            }
            let value = masked.get(name).cloned().unwrap_or(Value::Null);
            if Self::FIELDS.contains(&name) {
                if value.is_null() {
                    merged.remove(name);
                } else {
                    merged.insert(name.to_owned(), value);
                }
            } else if !is_off(&value) {
                return Err(PrefsError::Unsupported(name.to_owned()));
            }
        }
        let prefs: Self = serde_json::from_value(Value::Object(merged))?;
        prefs.checked()
    }

    /// Returns the preferences if every value is usable.
    ///
    /// # Errors
    ///
    /// The [`PrefsError`] of the first unusable value.
    pub fn checked(mut self) -> Result<Self, PrefsError> {
        if !self.control_url.is_empty() {
            crate::control::ServerUrl::parse(&self.control_url).map_err(|problem| {
                PrefsError::Url {
                    url: self.control_url.clone(),
                    problem,
                }
            })?;
        }
        self.advertise_routes.sort_unstable();
        self.advertise_routes.dedup();
        self.check_routes()?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
        if self.hostname.len() > MAX_HOSTNAME_LEN || !self.hostname.bytes().all(plain) {
            return Err(PrefsError::Hostname(self.hostname));
        }
        Ok(self)
    }

    fn check_routes(&self) -> Result<(), PrefsError> {
        let routes = &self.advertise_routes;
        if let Some(given) = routes.iter().find(|net| net.trunc() != **net) {
            return Err(PrefsError::HostBits { given: *given });
        }
        let [ipv4, ipv6] = DEFAULT_ROUTES;
        match (routes.contains(&ipv4), routes.contains(&ipv6)) {
            (true, false) => Err(PrefsError::HalfExit {
                given: ipv4,
                missing: ipv6,
            }),
            (false, true) => Err(PrefsError::HalfExit {
                given: ipv6,
                missing: ipv4,
            }),
            (true, true) if self.exit_node().is_some() => Err(PrefsError::ExitBothWays),
            _ => Ok(()),
        }
    }

    /// Returns the chosen exit node.
    #[must_use]
    pub fn exit_node(&self) -> Option<ExitNode> {
        if self.exit_node_id.is_empty() {
            self.exit_node_ip.map(ExitNode::Ip)
        } else {
            Some(ExitNode::Id(StableNodeId(self.exit_node_id.clone())))
        }
    }

    /// Whether this node offers to be an exit node.
    #[must_use]
    pub fn advertises_exit_node(&self) -> bool {
        DEFAULT_ROUTES
            .iter()
            .all(|net| self.advertise_routes.contains(net))
    }

    /// Which WireGuard the operator wants, if the daemon was started with `configured`.
    #[must_use]
    pub fn engine(&self, configured: EngineChoice) -> EngineChoice {
        self.wireguard.map_or(configured, EngineChoice::from)
    }

    const FIELDS: [&'static str; 15] = [
        "RouteAll",
        "ExitNodeID",
        "ExitNodeIP",
        "ExitNodeAllowLANAccess",
        "AdvertiseRoutes",
        "NoSNAT",
        "NetfilterMode",
        "EnableIPForward",
        "ControlURL",
        "WantRunning",
        "LoggedOut",
        "Hostname",
        "OperatorUser",
        "ShieldsUp",
        "WireGuard",
    ];
}

/// Whether a value asks for nothing: tools send the zero value of features they do not use.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_off),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("not an object: {other}"),
        }
    }

    #[test]
    fn only_masked_fields_change() {
        let prefs = Prefs {
            hostname: "old".into(),
            want_running: true,
            ..Prefs::default()
        };
        let patch = object(serde_json::json!({
            "Hostname": "new", "HostnameSet": true, "WantRunning": false,
        }));
        let patched = prefs.patched(&patch).unwrap();
        assert_eq!(patched.hostname, "new");
        assert!(patched.want_running);
    }

    #[test]
    fn a_feature_we_lack_is_refused_unless_it_is_switched_off() {
        let prefs = Prefs::default();
        let on = object(serde_json::json!({"RunSSH": true, "RunSSHSet": true}));
        assert!(
            matches!(prefs.patched(&on), Err(PrefsError::Unsupported(name)) if name == "RunSSH")
        );
        let off = object(serde_json::json!({
            "RunSSH": false, "RunSSHSet": true, "AdvertiseRoutes": null, "AdvertiseRoutesSet": true,
        }));
        assert_eq!(prefs.patched(&off).unwrap(), prefs);
    }

    #[test]
    fn stored_names_are_upstreams() {
        let prefs = Prefs {
            control_url: "http://c:1".into(),
            ..Prefs::default()
        };
        let value = serde_json::to_value(&prefs).unwrap();
        assert_eq!(value["ControlURL"], "http://c:1");
        assert_eq!(value["WantRunning"], false);
        assert_eq!(serde_json::from_value::<Prefs>(value).unwrap(), prefs);
    }

    #[test]
    fn an_unusable_value_leaves_the_reason() {
        for (field, value) in [("ControlURL", "ftp://x"), ("Hostname", "two words")] {
            let mut patch = Map::new();
            patch.insert(field.to_owned(), value.into());
            patch.insert(format!("{field}Set"), true.into());
            let error = Prefs::default().patched(&patch).unwrap_err();
            assert!(error.to_string().contains(value), "{error}");
        }
    }

    #[test]
    fn routes_are_refused_in_upstreams_words() {
        for (patch, words) in [
            (
                serde_json::json!({"AdvertiseRoutes": ["10.0.0.1/8"]}),
                "10.0.0.1/8 has non-address bits set; expected 10.0.0.0/8",
            ),
            (
                serde_json::json!({"AdvertiseRoutes": ["0.0.0.0/0"]}),
                "0.0.0.0/0 advertised without its IPv6 counterpart, please also advertise ::/0",
            ),
            (
                serde_json::json!({"AdvertiseRoutes": ["0.0.0.0/0", "::/0"], "ExitNodeID": "n1"}),
                "cannot advertise an exit node and use an exit node at the same time",
            ),
        ] {
            let mut patch = object(patch);
            let names: Vec<String> = patch.keys().cloned().collect();
            for name in names {
                patch.insert(format!("{name}Set"), true.into());
            }
            let error = Prefs::default().patched(&patch).unwrap_err();
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn the_exit_node_is_its_id_or_else_its_address() {
        let prefs = |json| serde_json::from_value::<Prefs>(json).unwrap();
        assert_eq!(
            prefs(serde_json::json!({"ExitNodeIP": ""})).exit_node(),
            None
        );
        let by_ip = prefs(serde_json::json!({"ExitNodeIP": "100.64.0.2"}));
        assert_eq!(
            by_ip.exit_node(),
            Some(ExitNode::Ip("100.64.0.2".parse().unwrap()))
        );
        let by_id = Prefs {
            exit_node_id: "n1".into(),
            ..by_ip
        };
        assert_eq!(
            by_id.exit_node(),
            Some(ExitNode::Id(StableNodeId("n1".into())))
        );
    }

    #[test]
    fn a_field_can_be_emptied() {
        let prefs = Prefs {
            shields_up: true,
            ..Prefs::default()
        };
        let patch = object(serde_json::json!({"ShieldsUp": null, "ShieldsUpSet": true}));
        assert!(!prefs.patched(&patch).unwrap().shields_up);
    }

    #[test]
    fn the_engine_is_the_daemons_until_another_is_chosen_and_again_after_that() {
        let change = |prefs: &Prefs, value: Value| {
            prefs.patched(&object(
                serde_json::json!({"WireGuard": value, "WireGuardSet": true}),
            ))
        };
        let prefs = Prefs::default();
        assert_eq!(prefs.engine(EngineChoice::Kernel), EngineChoice::Kernel);
        let prefs = change(&prefs, "embedded".into()).unwrap();
        assert_eq!(prefs.engine(EngineChoice::Kernel), EngineChoice::Embedded);
        assert!(change(&prefs, "userspace".into()).is_err());
        let prefs = change(&prefs, Value::Null).unwrap();
        assert_eq!(prefs.engine(EngineChoice::Auto), EngineChoice::Auto);
    }

    #[test]
    fn what_an_older_version_stored_is_read() {
        let stored = r#"{"ControlURL": "http://c", "AcceptedRisks": ["no-filter"]}"#;
        let prefs: Prefs = serde_json::from_str(stored).unwrap();
        assert_eq!(prefs.control_url, "http://c");
    }
}
