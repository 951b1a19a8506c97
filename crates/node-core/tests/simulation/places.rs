//! Networks of any kind, and nodes in them.

use testnet::nat_model::{Behaviour, Dependence};

use crate::SECOND;
use crate::net::Realm;
use crate::world::World;

fn behaviour(world: &mut World) -> Behaviour {
    Behaviour {
        mapping: world.random.pick(&[
            Dependence::Independent,
            Dependence::Independent,
            Dependence::Address,
            Dependence::AddressAndPort,
        ]),
        filtering: world.random.pick(&Dependence::ALL),
        lifetime: SECOND * world.random.pick(&[30, 30, 120]),
        hairpin: world.random.per_mille(500),
    }
}

/// A network of any kind: the internet, a home, a home behind a carrier's NAT.
pub(crate) fn somewhere(world: &mut World) -> Realm {
    let behaviour = behaviour(world);
    match world.random.below(5) {
        0 => Realm::Internet,
        1 => {
            let carrier = world.net.gateway(Realm::Internet, behaviour);
            world.net.gateway(carrier, behaviour)
        }
        _ => world.net.gateway(Realm::Internet, behaviour),
    }
}

/// So many nodes, all of which know each other, up to `slowest` milliseconds from the middle of the internet, `v6` of
/// a thousand with IPv6. `at_home` says which are in the network of the one before.
pub(crate) fn populated(
    seed: u64,
    nodes: usize,
    slowest: u32,
    v6: u32,
    at_home: impl Fn(&mut World, usize) -> bool,
) -> World {
    let mut world = World::new(seed);
    for number in 0..nodes {
        let realm = if at_home(&mut world, number) {
            world.nodes[number - 1].realm
        } else {
            somewhere(&mut world)
        };
        let delay = world.random.millis(1, slowest);
        world.node(realm, delay);
        if world.random.per_mille(v6) {
            world.give_v6(number);
        }
    }
    world.introduce();
    world
}
