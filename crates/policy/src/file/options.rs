//! Options of the whole network.

use control_proto::tailcfg::DerpMap;

use super::json::plain;
use super::reader::{Fields, Reader};
use crate::diagnostic::Cause;
use crate::syntax::{Json, Node};

/// Options of the whole network.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Nodes choose a random port.
    pub randomize_client_port: bool,
    /// Nobody has an IPv4 address.
    pub disable_ipv4: bool,
    /// How clients route 100.64.0.0/10.
    pub one_cgnat_route: OneCgnatRoute,
    /// Relays.
    pub derp_map: Option<DerpMap>,
}

/// `OneCGNATRoute`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OneCgnatRoute {
    /// The client decides.
    #[default]
    Default,
    /// One route on macOS.
    MacAlways,
    /// Never on macOS.
    MacNever,
}

const MAP_KEYS: &[&str] = &["HomeParams", "Regions", "omitDefaultRegions"];
const HOME_KEYS: &[&str] = &["RegionScore"];
const REGION_KEYS: &[&str] = &[
    "RegionID",
    "RegionCode",
    "RegionName",
    "Latitude",
    "Longitude",
    "Avoid",
    "NoMeasureNoHome",
    "Nodes",
];
const NODE_KEYS: &[&str] = &[
    "Name",
    "RegionID",
    "HostName",
    "CertName",
    "IPv4",
    "IPv6",
    "STUNPort",
    "STUNOnly",
    "DERPPort",
    "InsecureForTests",
    "STUNTestIP",
    "CanPort80",
];

impl<'n> Reader<'n> {
    /// `randomizeClientPort`, `disableIPv4`, `OneCGNATRoute`, `derpMap`
    pub(super) fn options(&mut self, top: &Fields<'n>) -> Options {
        let randomize_client_port =
            self.flag(top.get("randomizeClientPort"), "randomizeClientPort");
        let disable_ipv4 = self.flag(top.get("disableIPv4"), "disableIPv4");
        let one_cgnat_route = top
            .get("OneCGNATRoute")
            .map(|node| self.one_cgnat_route(node));
        let derp_map = top.get("derpMap").and_then(|node| self.derp_map(node));
        let one_cgnat_route = one_cgnat_route.unwrap_or_default();
        Options {
            randomize_client_port,
            disable_ipv4,
            one_cgnat_route,
            derp_map,
        }
    }

    fn one_cgnat_route(&mut self, node: &'n Node<'n>) -> OneCgnatRoute {
        let Some(text) = self.text(node, "OneCGNATRoute") else {
            return OneCgnatRoute::Default;
        };
        match text.value {
            "" => OneCgnatRoute::Default,
            "mac-always" => OneCgnatRoute::MacAlways,
            "mac-never" => OneCgnatRoute::MacNever,
            other => {
                let message = format!("{other:?} is not a value of OneCGNATRoute");
                let help = "values are \"\", \"mac-always\" and \"mac-never\"";
                self.error_help(Cause::BadOption, &text.span, message, "unknown value", help);
                OneCgnatRoute::Default
            }
        }
    }

    fn derp_map(&mut self, node: &'n Node<'n>) -> Option<DerpMap> {
        let before = self.errors();
        let canonical = self.canonical_derp_map(node);
        if self.errors() > before {
            return None;
        }
        match serde_json::from_value(canonical) {
            Ok(map) => Some(map),
            Err(error) => {
                let message = format!("derpMap is not a map of relays: {error}");
                let span = node.span.start..node.span.start + 1;
                self.error(Cause::BadDerpMap, &span, message, "in here");
                None
            }
        }
    }

    /// The map with its keys as the wire has them, and no others.
    fn canonical_derp_map(&mut self, node: &'n Node<'n>) -> serde_json::Value {
        let mut map = serde_json::Map::new();
        let Some(fields) = self.fields(node, "derpMap", MAP_KEYS) else {
            return map.into();
        };
        if let Some(node) = fields.get("HomeParams") {
            map.insert(
                "HomeParams".to_owned(),
                self.canonical(node, "HomeParams", HOME_KEYS),
            );
        }
        if let Some(node) = fields.get("omitDefaultRegions") {
            map.insert(
                "omitDefaultRegions".to_owned(),
                self.flag(Some(node), "OmitDefaultRegions").into(),
            );
        }
        if let Some(node) = fields.get("Regions") {
            let regions = self
                .map(node, "Regions")
                .iter()
                .map(|region| (region.name.clone(), self.canonical_region(&region.node)));
            let regions: serde_json::Map<_, _> = regions.collect();
            map.insert("Regions".to_owned(), regions.into());
        }
        map.into()
    }

    fn canonical_region(&mut self, node: &'n Node<'n>) -> serde_json::Value {
        if matches!(node.value, Json::Null) {
            return serde_json::Value::Null;
        }
        let mut region = self.canonical(node, "a region", REGION_KEYS);
        if let Some(nodes) = self.fields_quietly(node, "Nodes") {
            let nodes = self.list(nodes, "Nodes").iter();
            let nodes = nodes
                .map(|node| self.canonical(node, "a relay", NODE_KEYS))
                .collect();
            region["Nodes"] = serde_json::Value::Array(nodes);
        }
        region
    }

    fn fields_quietly(&self, node: &'n Node<'n>, key: &str) -> Option<&'n Node<'n>> {
        let Json::Object(members) = &node.value else {
            return None;
        };
        members
            .iter()
            .find(|member| member.name.eq_ignore_ascii_case(key))
            .map(|member| &member.node)
    }

    fn canonical(
        &mut self,
        node: &'n Node<'n>,
        what: &str,
        known: &'static [&'static str],
    ) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        if let Some(fields) = self.fields(node, what, known) {
            for key in known {
                if let Some(node) = fields.get(key) {
                    object.insert((*key).to_owned(), plain(node));
                }
            }
        }
        object.into()
    }
}
