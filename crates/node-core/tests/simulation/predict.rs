//! Which pairs of nodes find a direct path.

use testnet::nat_model::{Behaviour, Dependence, are_direct};

use crate::net::Net;
use crate::world::Node;

/// Says whether both of two nodes get a direct path, as far as that is certain.
pub(crate) fn certain(net: &Net, a: &Node, b: &Node) -> bool {
    if a.udp_blocked || b.udp_blocked {
        return false;
    }
    if a.realm == b.realm || (a.v6.is_some() && b.v6.is_some()) {
        return true;
    }
    let (way_a, way_b) = (net.way_out(a.realm), net.way_out(b.realm));
    let (a, b) = (combined(&way_a), combined(&way_b));
    let shared = way_a.iter().find(|one| way_b.contains(one));
    let hairpin = shared.is_none_or(|(_, nat)| nat.hairpin);
    hairpin && are_direct(a, b)
}

/// Says whether a path between two nodes ends by itself: where each NAT gives every remote end another port, pings
/// come in at ports from which nothing goes out, and whose mappings nobody keeps alive.
pub(crate) fn wavering(net: &Net, a: &Node, b: &Node) -> bool {
    let stable = |node: &Node| {
        let nat = combined(&net.way_out(node.realm));
        nat.is_none_or(|nat| nat.mapping == Dependence::Independent)
    };
    !stable(a) && !stable(b)
}

/// NATs behind each other depend on what any of them depends on.
fn combined(way: &[(usize, Behaviour)]) -> Option<Behaviour> {
    let all = way.iter().map(|(_, behaviour)| *behaviour);
    all.reduce(|a, b| Behaviour {
        mapping: a.mapping.max(b.mapping),
        filtering: a.filtering.max(b.filtering),
        ..a
    })
}
