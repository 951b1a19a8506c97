//! Filters as they are kept and sent: source lists and destinations are shared, a node's own
//! addresses are filled in at the end.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use control_proto::tailcfg::{CapGrant, FilterRule, NetPortRange, PortRange};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::rules::Capabilities;
use super::sources::SourceList;

/// A node's filter. Cheap to hold: source lists are shared between all filters that name them.
#[derive(Debug)]
pub struct Filter {
    pub(super) template: Arc<Template>,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

/// Filters of a class of nodes.
#[derive(Debug)]
pub(crate) struct Template {
    parts: Vec<Part>,
    /// It speaks of the addresses of its node.
    personal: bool,
    /// The filter, if it does not.
    common: Mutex<Weak<Filter>>,
}

/// A rule on the wire.
#[derive(Debug, Eq, Hash, PartialEq)]
pub(crate) struct Part {
    pub(crate) sources: Arc<SourceList>,
    pub(crate) what: What,
}

/// What the sources may do.
#[derive(Debug, Eq, Hash, PartialEq)]
pub(crate) enum What {
    /// Send packets of these protocols to these addresses and ports.
    Ports(Arc<[u8]>, Vec<(Address, u16, u16)>),
    /// Use capabilities towards these addresses.
    Capabilities(Vec<(Vec<Address>, Arc<Capabilities>)>),
}

/// A destination.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Address {
    /// `*`
    Any,
    /// The IPv4 address of the node.
    V4,
    /// The IPv6 address of the node.
    V6,
    /// As it is written.
    Text(Arc<str>),
    /// A prefix.
    Net(IpNet),
}

impl Hash for Capabilities {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.json.hash(state);
    }
}

impl Template {
    pub(crate) fn new(parts: Vec<Part>) -> Self {
        let own = |address: &Address| matches!(address, Address::V4 | Address::V6);
        let personal = parts.iter().any(|part| match &part.what {
            What::Ports(_, targets) => targets.iter().any(|(address, _, _)| own(address)),
            What::Capabilities(grants) => grants.iter().any(|(to, _)| to.iter().any(own)),
        });
        Self {
            parts,
            personal,
            common: Mutex::default(),
        }
    }

    /// The filter of a node with these addresses.
    pub(crate) fn filter(self: &Arc<Self>, v4: Ipv4Addr, v6: Ipv6Addr) -> Arc<Filter> {
        let template = Arc::clone(self);
        if self.personal {
            return Arc::new(Filter { template, v4, v6 });
        }
        let mut common = self.common.lock().unwrap_or_else(PoisonError::into_inner);
        common.upgrade().unwrap_or_else(|| {
            let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
            let filter = Arc::new(Filter { template, v4, v6 });
            *common = Arc::downgrade(&filter);
            filter
        })
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        let same = Arc::ptr_eq(&self.template, &other.template)
            || self.template.parts == other.template.parts;
        same && self.v4 == other.v4 && self.v6 == other.v6
    }
}

impl Eq for Filter {}

impl Filter {
    /// The rules as they go on the wire.
    #[must_use]
    pub fn rules(&self) -> Vec<FilterRule> {
        let rule = |part: &Part| {
            let src_ips = part
                .sources
                .items()
                .iter()
                .map(|it| it.to_string())
                .collect();
            let mut rule = FilterRule {
                src_ips,
                ..FilterRule::default()
            };
            match &part.what {
                What::Ports(protocols, targets) => {
                    rule.ip_proto = protocols.iter().map(|it| i32::from(*it)).collect();
                    let target = |(address, first, last): &(Address, u16, u16)| NetPortRange {
                        ip: self.text(address),
                        bits: None,
                        ports: PortRange {
                            first: *first,
                            last: *last,
                        },
                    };
                    rule.dst_ports = targets.iter().map(target).collect();
                }
                What::Capabilities(grants) => {
                    let grant = |(to, capabilities): &(Vec<Address>, Arc<Capabilities>)| CapGrant {
                        dsts: to.iter().filter_map(|address| self.net(address)).collect(),
                        caps: Vec::new(),
                        cap_map: capabilities.map.clone(),
                    };
                    rule.cap_grant = grants.iter().map(grant).collect();
                }
            }
            rule
        };
        self.template.parts.iter().map(rule).collect()
    }

    /// Appends the rules as a JSON array. Source lists are rendered once for all filters.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut write = |text: &str| out.extend_from_slice(text.as_bytes());
        write("[");
        for (index, part) in self.template.parts.iter().enumerate() {
            write(if index == 0 {
                "{\"SrcIPs\":"
            } else {
                ",{\"SrcIPs\":"
            });
            write(part.sources.json());
            match &part.what {
                What::Ports(protocols, targets) => {
                    write(",\"DstPorts\":[");
                    for (index, (address, first, last)) in targets.iter().enumerate() {
                        let comma = if index == 0 { "" } else { "," };
                        let ip = self.text(address);
                        write(&format!(
                            "{comma}{{\"IP\":\"{ip}\",\"Ports\":{{\"First\":{first},\"Last\":{last}}}}}"
                        ));
                    }
                    write("]");
                    if !protocols.is_empty() {
                        let numbers = protocols.iter().map(u8::to_string).collect::<Vec<_>>();
                        write(&format!(",\"IPProto\":[{}]", numbers.join(",")));
                    }
                }
                What::Capabilities(grants) => {
                    write(",\"CapGrant\":[");
                    for (index, (to, capabilities)) in grants.iter().enumerate() {
                        let comma = if index == 0 { "" } else { "," };
                        let nets = to.iter().filter_map(|address| self.net(address));
                        let nets = nets.map(|net| format!("\"{net}\"")).collect::<Vec<_>>();
                        write(&format!(
                            "{comma}{{\"Dsts\":[{}],\"CapMap\":",
                            nets.join(",")
                        ));
                        write(&capabilities.json);
                        write("}");
                    }
                    write("]");
                }
            }
            write("}");
        }
        write("]");
    }

    fn text(&self, address: &Address) -> String {
        match address {
            Address::Any => "*".to_owned(),
            Address::V4 => self.v4.to_string(),
            Address::V6 => self.v6.to_string(),
            Address::Text(text) => text.to_string(),
            Address::Net(net) => net.to_string(),
        }
    }

    /// Capabilities are granted towards prefixes.
    fn net(&self, address: &Address) -> Option<IpNet> {
        match address {
            Address::V4 => Some(Ipv4Net::from(self.v4).into()),
            Address::V6 => Some(Ipv6Net::from(self.v6).into()),
            Address::Net(net) => Some(*net),
            Address::Any | Address::Text(_) => None,
        }
    }
}

/// Templates in use, each content once: whoever asks again and gets the same answer can tell.
#[derive(Debug, Default)]
pub(crate) struct Templates(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_hash: HashMap<u64, Vec<Weak<Template>>>,
    /// How many there may be before those no longer in use are looked for.
    limit: usize,
}

impl Templates {
    /// The one with this content.
    pub(crate) fn intern(&self, template: Template) -> Arc<Template> {
        let mut hasher = DefaultHasher::new();
        template.parts.hash(&mut hasher);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.by_hash.len() > known.limit {
            known
                .by_hash
                .retain(|_, list| list.iter().any(|it| it.strong_count() > 0));
            known.limit = 2 * known.by_hash.len() + 64;
        }
        let list = known.by_hash.entry(hasher.finish()).or_default();
        list.retain(|it| it.strong_count() > 0);
        let mut alive = list.iter().filter_map(Weak::upgrade);
        if let Some(same) = alive.find(|it| it.parts == template.parts) {
            return same;
        }
        let template = Arc::new(template);
        list.push(Arc::downgrade(&template));
        template
    }
}
