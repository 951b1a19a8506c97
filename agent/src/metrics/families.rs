//! Every family that the agent shows. Names, kinds and labels are frozen: see `docs/metrics.txt`.

use super::page::{Family, Kind};

macro_rules! families {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) static $constant: Family = Family {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*
        /// All of them.
        pub static FAMILIES: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    BUILD_INFO: Gauge "tailrace_build_info" ["version"] "1 for the version of this program.";
    STATE: Gauge "tailrace_state" ["state"] "1 for the state this node is in.";
    CONTROL_CONNECTED: Gauge "tailrace_control_connected" []
        "1 while the coordination server answers.";
    HEALTH_WARNINGS: Gauge "tailrace_health_warnings" []
        "Health warnings now; `tailrace status` shows their text.";
    MAP_AGE: Gauge "tailrace_map_age_seconds" []
        "Time since the network map was last known to be right.";
    MAP_STALE: Gauge "tailrace_map_stale" []
        "1 while the network map is the cached one of an earlier run.";
    ENGINE: Gauge "tailrace_engine" ["engine", "device"] "1 for the WireGuard in use.";

    TUNNEL_OFFLOAD: Gauge "tailrace_tunnel_offload" ["offload"]
        "1 for what the kernel splits and joins for the embedded tunnel.";
    TUNNEL_PACKETS: Counter "tailrace_tunnel_packets_total" ["direction"]
        "Packets that the embedded tunnel exchanged with peers.";
    TUNNEL_SUPER_PACKETS: Counter "tailrace_tunnel_super_packets_total" ["direction"]
        "Writes and reads of the TUN device that they took: fewer, the more packets are in one.";
    TUNNEL_DROPPED: Counter "tailrace_tunnel_dropped_packets_total" ["reason"]
        "Packets that the embedded tunnel did not carry.";

    FILTER: Gauge "tailrace_filter" ["place"] "1 for where packets are filtered.";
    FILTER_RULES: Gauge "tailrace_filter_rules" [] "Rules that admit packets.";
    FILTER_DROPPED: Counter "tailrace_filter_dropped_packets_total" ["direction", "reason"]
        "Packets that the filter dropped, as this host sees their direction.";
    RULE_PACKETS: Counter "tailrace_rule_packets_total" ["rule"]
        "Packets that a rule of the network map admitted since it came in force.";
    RULE_BYTES: Counter "tailrace_rule_bytes_total" ["rule"] "IP bytes of those packets.";

    FORWARDED_PACKETS: Counter "tailrace_forwarded_packets_total" ["from", "outcome"]
        "Packets of known forwarded flows, by where they came in and what became of them.";
    FORWARDED_BYTES: Counter "tailrace_forwarded_bytes_total" ["from", "outcome"]
        "IP bytes of those packets.";
    OFFLOADED_FLOWS: Gauge "tailrace_offloaded_flows" []
        "Forwarded flows whose packets go past the network stack.";
    ROUTE_PACKETS: Counter "tailrace_route_packets_total" ["route", "role", "direction"]
        "Overlay packets by subnet route, used or served.";
    ROUTE_BYTES: Counter "tailrace_route_bytes_total" ["route", "role", "direction"]
        "IP bytes of those packets.";
    EXIT_PACKETS: Counter "tailrace_exit_packets_total" ["role", "direction"]
        "Overlay packets by way of an exit node: one that this node uses, or itself.";
    EXIT_BYTES: Counter "tailrace_exit_bytes_total" ["role", "direction"]
        "IP bytes of those packets.";

    SHIELD_FLOODED: Gauge "tailrace_shield_flooded" []
        "1 while more handshakes come than peers begin.";
    SHIELD_INITIATIONS: Counter "tailrace_shield_initiations_total" ["verdict"]
        "WireGuard handshake initiations from the underlay, by what became of them.";
    JUNK: Counter "tailrace_junk_datagrams_total" ["reason"]
        "Datagrams that are not WireGuard's and led to nothing.";
    PORT_MAPPED: Gauge "tailrace_port_mapped" []
        "1 while the router maps a port to this node.";

    DERP_CONNECTED: Gauge "tailrace_derp_connected" ["region"]
        "1 while the relay region is connected.";
    DERP_HOME: Gauge "tailrace_derp_home" ["region"] "1 for the home relay region.";
    DERP_DROPPED: Counter "tailrace_derp_dropped_packets_total" ["region"]
        "Packets that did not leave for a relay: too slow, not there, or allowing no more.";

    PEERS: Gauge "tailrace_peers" ["path"]
        "Peers by path: of those with a live session, the way they are reached; idle the others.";
    PATH_PACKETS: Counter "tailrace_path_packets_total" ["path", "region", "direction"]
        "Packets exchanged with peers, by path and relay region.";
    PATH_BYTES: Counter "tailrace_path_bytes_total" ["path", "region", "direction"]
        "Bytes exchanged with peers as WireGuard counts them, by path and relay region.";
    PATH_CHANGES: Counter "tailrace_path_changes_total" ["to"]
        "Changes of the path to a peer, by the new path.";
    PEER_BYTES: Counter "tailrace_peer_bytes_total" ["peer", "direction"]
        "Bytes exchanged with a peer, as WireGuard counts them.";
    PEER_PACKETS: Counter "tailrace_peer_packets_total" ["peer", "direction"]
        "Overlay packets exchanged with a peer, as the eBPF programs count them.";
    PEER_OVERLAY_BYTES: Counter "tailrace_peer_overlay_bytes_total" ["peer", "direction"]
        "IP bytes of those packets, without the tunnel's own.";
    PEER_HANDSHAKE_AGE: Gauge "tailrace_peer_handshake_age_seconds" ["peer"]
        "Time since the last completed WireGuard handshake with a peer.";
    PEER_PATH: Gauge "tailrace_peer_path" ["peer", "path", "region"]
        "1 for the way by which a peer with a live session is reached.";

    MAP_ENTRIES: Gauge "tailrace_ebpf_map_entries" ["map"] "Entries of an eBPF map in use.";
    MAP_MAX_ENTRIES: Gauge "tailrace_ebpf_map_max_entries" ["map"]
        "Entries that an eBPF map has room for.";
    MAP_BYTES: Gauge "tailrace_ebpf_map_bytes" ["map"] "Kernel memory that an eBPF map takes.";

    INBOUND_PACKETS: Counter "tailscaled_inbound_packets_total" ["path"]
        "Counts the number of packets received from other peers";
    INBOUND_BYTES: Counter "tailscaled_inbound_bytes_total" ["path"]
        "Counts the number of bytes received from other peers";
    OUTBOUND_PACKETS: Counter "tailscaled_outbound_packets_total" ["path"]
        "Counts the number of packets sent to other peers";
    OUTBOUND_BYTES: Counter "tailscaled_outbound_bytes_total" ["path"]
        "Counts the number of bytes sent to other peers";
    INBOUND_DROPPED: Counter "tailscaled_inbound_dropped_packets_total" ["reason"]
        "Counts the number of dropped packets received by the node from other peers";
    OUTBOUND_DROPPED: Counter "tailscaled_outbound_dropped_packets_total" ["reason"]
        "Counts the number of packets dropped while being sent to other peers";
    ADVERTISED_ROUTES: Gauge "tailscaled_advertised_routes" []
        "Number of advertised network routes (e.g. by a subnet router)";
    APPROVED_ROUTES: Gauge "tailscaled_approved_routes" []
        "Number of approved network routes (e.g. by a subnet router)";
    HEALTH_MESSAGES: Gauge "tailscaled_health_messages" ["type"]
        "Number of health messages broken down by type.";
    HOME_DERP: Gauge "tailscaled_home_derp_region_id" []
        "DERP region ID of this node's home relay server";
}
