//! Which pairs of nodes find a direct path.

use crate::nat::{Behaviour, Dependence};
use crate::net::Net;
use crate::world::Node;

/// Says whether a ping of `a` to the address that STUN told `b` comes back as a pong.
fn answers(a: Option<Behaviour>, b: Option<Behaviour>) -> bool {
    use Dependence::{AddressAndPort, Independent};
    let stable = |side: Option<Behaviour>| side.is_none_or(|s| s.mapping == Independent);
    let arrives = match b {
        None => true,
        Some(b) if b.filtering == Independent => true,
        Some(b) if b.mapping != Independent => false,
        Some(b) => b.filtering == Dependence::Address || stable(a),
    };
    arrives && (a.is_none_or(|a| a.filtering != AddressAndPort) || stable(b))
}

/// Says whether at least one of two nodes gets a direct path to the other.
pub(crate) fn one_direct(a: Option<Behaviour>, b: Option<Behaviour>) -> bool {
    answers(a, b) || answers(b, a)
}

/// Says whether both do.
pub(crate) fn both_direct(a: Option<Behaviour>, b: Option<Behaviour>) -> bool {
    one_direct(a, b)
}

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
    hairpin && both_direct(a, b)
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
