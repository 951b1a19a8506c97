//! A home router: masquerades its LAN and lets nothing unasked in.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::link::{Bridge, veth};
use crate::namespace::Namespace;

/// Masquerade outwards; inwards only answers to what went out.
const RULES: &str = r#"
table ip nat {
    chain postrouting { type nat hook postrouting priority 100; policy accept
        oifname "wan" masquerade
    }
}
table ip guard {
    chain input { type filter hook input priority 0; policy accept
        iifname "wan" ct state established,related accept
        iifname "wan" drop
    }
    chain forward { type filter hook forward priority 0; policy drop
        iifname "lan" accept
        iifname "wan" ct state established,related accept
    }
}
"#;

/// A router in a namespace of its own: `wan` on the internet, `lan` towards one host.
#[derive(Debug)]
pub struct Nat {
    namespace: Namespace,
}

impl Nat {
    /// Puts `host` behind a new router with the public address `public` (in a /24).
    ///
    /// The host's interface is `eth0` with `192.168.<site>.2/24`, the router its default gateway.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn new(
        label: &str,
        internet: &mut Bridge,
        public: Ipv4Addr,
        host: &Namespace,
        site: u8,
    ) -> Result<Nat> {
        let namespace = Namespace::new(label)?;
        internet.plug(&namespace, "wan")?;
        namespace.ip(&format!("addr add {public}/24 dev wan"))?;
        veth((&namespace, "lan"), (host, "eth0"))?;
        namespace.ip(&format!("addr add 192.168.{site}.1/24 dev lan"))?;
        host.ip(&format!("addr add 192.168.{site}.2/24 dev eth0"))?;
        host.ip(&format!("route add default via 192.168.{site}.1"))?;
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.nft(RULES)?;
        Ok(Nat { namespace })
    }

    /// The router's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}
