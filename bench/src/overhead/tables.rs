//! Tables of nftables: the agent's, and those that the kernel's own forwarding is measured with.

use super::lab::{LAN, PORT};

/// Where the agent's own UDP socket would be.
const AGENT_PORT: u16 = 41700;

/// The chains of [`demux`] without their rules: what it costs that there are chains.
pub(super) const HOOKS: &str = "table inet bench-hooks {
    chain in { type filter hook input priority 300; policy accept; }
    chain out { type filter hook output priority -300; policy accept; }
}
";

/// Of the agent's table (`agent/src/firewall`), what shares WireGuard's port: what is not WireGuard's goes
/// to the agent, whose own port is closed.
pub(super) fn demux() -> String {
    table(&demux_chains())
}

/// All of it, on a subnet router.
pub(super) fn whole(device: &str) -> String {
    let demux = demux_chains();
    table(&format!(
        "chain spoof {{
            iifname \"{device}\" return
            iiftype 65534 return
            iifname \"lo\" return
            ip saddr 100.115.92.0/23 return
            ip saddr 100.64.0.0/10 counter drop
        }}
        chain input {{ type filter hook input priority 0; policy accept; jump spoof; }}
        chain forward {{
            type filter hook forward priority 0; policy accept;
            jump spoof
            iifname \"{device}\" meta mark set meta mark & 0xff00ffff | 0x00040000
            oifname \"{device}\" ct state established,related accept
            oifname \"{device}\" iifname \"{device}\" accept
            oifname \"{device}\" ip saddr {LAN} accept
            oifname \"{device}\" counter drop
            iifname \"{device}\" ct state established,related accept
            iifname \"{device}\" ct status dnat accept
            iifname \"{device}\" ip daddr {LAN} accept
            iifname \"{device}\" counter drop
        }}
        chain prerouting {{
            type filter hook prerouting priority -150; policy accept;
            ct state established,related ct mark & 0x00ff0000 == 0x00080000 meta mark set meta mark & 0xff00ffff | 0x00080000
        }}
        chain output {{
            type filter hook output priority -150; policy accept;
            meta mark & 0x00ff0000 == 0x00080000 ct mark set ct mark & 0xff00ffff | 0x00080000
        }}
        {demux}
        chain postrouting {{
            type nat hook postrouting priority 100; policy accept;
            meta mark & 0x00ff0000 == 0x00040000 counter masquerade
        }}"
    ))
}

fn table(chains: &str) -> String {
    format!("table inet tailrace-bench {{\n{chains}\n}}\n")
}

fn demux_chains() -> String {
    format!(
        "chain junk {{ counter drop; }}
        chain sort {{
            @th,64,48 0x5453f09f92ac counter udp dport set {AGENT_PORT} return
            @th,96,32 0x2112a442 counter udp dport set {AGENT_PORT} return
            jump junk
        }}
        chain demux-in {{
            type filter hook input priority 300; policy accept;
            udp dport {AGENT_PORT} counter drop
            udp dport {PORT} @th,64,32 & 0xf8ffffff != 0 jump sort
        }}
        chain demux-out {{
            type filter hook output priority -300; policy accept;
            udp sport {AGENT_PORT} counter udp sport set {PORT}
        }}"
    )
}

/// Drops what comes in by the underlay, before the stack looks at it.
pub(super) const INGRESS: &str = r#"table netdev bench-ingress {
    chain in { type filter hook ingress device "wan" priority 0; policy accept; meta protocol ip udp dport 41641 counter drop; }
}
"#;

/// What goes to the LAN gets the router's address.
pub(super) const MASQUERADE: &str = r#"table ip bench-nat {
    chain post { type nat hook postrouting priority 100; oifname "lan" masquerade; }
}
"#;

/// Table of [`flowtable`].
pub(super) const FLOWS: &str = "bench-flows";

/// A flowtable for all that is forwarded, and a chain that counts what did not go through it.
pub(super) fn flowtable(tunnel: &str) -> String {
    format!(
        "table inet {FLOWS} {{
            flowtable known {{ hook ingress priority 0; devices = {{ {tunnel}, lan }}; }}
            chain forwarded {{
                type filter hook forward priority 0;
                meta l4proto {{ tcp, udp }} flow add @known
                counter
            }}
        }}\n"
    )
}
