//! `autoApprovers`: whose routes need no administrator (control.md 8.7).

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Located;
use super::reader::{Fields, Reader, Text};
use super::selector::{Address, Position, Selector, parse_address};
use crate::diagnostic::Cause;

const KEYS: &[&str] = &["routes", "exitNode", "services"];

/// Approvers of routes and of exit nodes.
#[derive(Default)]
pub(super) struct Approvers {
    pub(super) routes: BTreeMap<IpNet, Vec<Located<Selector>>>,
    pub(super) exit: Vec<Located<Selector>>,
}

impl<'n> Reader<'n> {
    /// `autoApprovers`
    pub(super) fn approvers(&mut self, top: &Fields<'n>) -> Approvers {
        let mut approvers = Approvers::default();
        let Some(node) = top.get("autoApprovers") else {
            return approvers;
        };
        let Some(fields) = self.fields(node, "autoApprovers", KEYS) else {
            return approvers;
        };
        if let Some(span) = fields.key_span("services") {
            let message = "services are not supported by this server";
            self.error(Cause::Unsupported, &span, message, "not supported");
        }
        if let Some(node) = fields.get("routes") {
            for member in self.map(node, "routes") {
                let route = Text::new(&member.name, &member.name_span).trim();
                let who = self.texts(Some(&member.node), route.value);
                let who = self.selectors(&who, Position::Approver);
                if let Some(Address::Prefix(net)) = parse_address(route.value) {
                    let net = self.without_host_bits(net, &route);
                    approvers.routes.entry(net).or_default().extend(who);
                } else {
                    let message = format!("{:?} is not a route", route.value);
                    let help = "routes are prefixes: 10.1.0.0/16, fd00::/64";
                    self.error_help(
                        Cause::InvalidAddress,
                        &route.span,
                        message,
                        "expected a prefix",
                        help,
                    );
                }
            }
        }
        let exit = self.texts(fields.get("exitNode"), "exitNode");
        approvers.exit = self.selectors(&exit, Position::Approver);
        approvers
    }
}
