//! `nodeAttrs`: attributes of nodes, and where they get their addresses from.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde_json::Value;

use super::Located;
use super::json::plain;
use super::reader::{Fields, Reader, Text};
use super::rule::Place;
use super::selector::{Position, Selector};
use crate::diagnostic::Cause;
use crate::syntax::Node;

/// An entry of `nodeAttrs`.
#[derive(Clone, Debug)]
pub struct NodeAttr {
    /// Where it stands.
    pub place: Place,
    /// Which nodes.
    pub targets: Vec<Located<Selector>>,
    /// Attributes without values.
    pub attributes: Vec<Located<String>>,
    /// Attributes with values.
    pub app: BTreeMap<String, Vec<Value>>,
    /// Where new nodes of the targets get their addresses from.
    pub ip_pool: Vec<Ipv4Net>,
}

const KEYS: &[&str] = &["target", "attr", "app", "ipPool"];

/// Where overlay addresses come from, and what in it has a meaning of its own: the resolver of
/// every node, and containers of ChromeOS (control.md 9).
const CGNAT: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(100, 64, 0, 0), 10);
const RESERVED: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(100, 100, 100, 0), 24),
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(100, 115, 92, 0), 23),
];

impl<'n> Reader<'n> {
    /// `nodeAttrs`
    pub(super) fn node_attrs(&mut self, top: &Fields<'n>) -> Vec<NodeAttr> {
        let Some(node) = top.get("nodeAttrs") else {
            return Vec::new();
        };
        let elements = self.list(node, "nodeAttrs").iter().enumerate();
        elements
            .filter_map(|(index, element)| self.node_attr(element, index))
            .collect()
    }

    fn node_attr(&mut self, node: &'n Node<'n>, index: usize) -> Option<NodeAttr> {
        let fields = self.fields(node, "an entry of nodeAttrs", KEYS)?;
        let targets = self.texts(fields.get("target"), "target");
        let targets = self.selectors(&targets, Position::Target);
        let attributes = self.texts(fields.get("attr"), "attr");
        let attributes = attributes
            .iter()
            .filter_map(|text| self.attribute(text))
            .collect();
        let app = fields
            .get("app")
            .map(|node| self.app(node, Reader::value))
            .unwrap_or_default();
        let pools = self.texts(fields.get("ipPool"), "ipPool");
        let ip_pool = pools
            .iter()
            .filter_map(|text| self.ip_pool(&text.trim()))
            .collect();
        let place = Place {
            section: "nodeAttrs",
            index,
            span: node.span.clone(),
        };
        Some(NodeAttr {
            place,
            targets,
            attributes,
            app,
            ip_pool,
        })
    }

    fn value(&mut self, node: &'n Node<'n>) -> Option<Value> {
        let before = self.errors();
        self.check_duplicates(node);
        (self.errors() == before).then(|| plain(node))
    }

    fn attribute(&mut self, text: &Text<'n>) -> Option<Located<String>> {
        let text = text.trim();
        if text.value.is_empty() || text.value.contains(char::is_whitespace) {
            let message = format!("{:?} is not the name of an attribute", text.value);
            self.error(
                Cause::BadAttribute,
                &text.span,
                message,
                "expected a name without blanks",
            );
            return None;
        }
        Some(text.located(text.value.to_owned()))
    }

    fn ip_pool(&mut self, text: &Text<'n>) -> Option<Ipv4Net> {
        let Ok(pool) = text.value.parse::<Ipv4Net>() else {
            let message = format!("{:?} is not an IPv4 prefix", text.value);
            let help = "pools look like 100.81.0.0/16";
            self.error_help(
                Cause::InvalidAddress,
                &text.span,
                message,
                "expected a prefix",
                help,
            );
            return None;
        };
        let pool = pool.trunc();
        if !CGNAT.contains(&pool) {
            let message = format!("{pool} is not within {CGNAT}");
            self.error(
                Cause::IpPoolOutOfRange,
                &text.span,
                message,
                "not an overlay address",
            );
            return None;
        }
        if let Some(reserved) = RESERVED
            .iter()
            .find(|it| it.contains(&pool) || pool.contains(*it))
        {
            let message = format!("{pool} overlaps {reserved}, which is reserved");
            self.error(Cause::IpPoolReserved, &text.span, message, "reserved");
            return None;
        }
        Some(pool)
    }
}
