//! The path machine of several nodes in one deterministic world with NATs, weather and a virtual clock.
//!
//! `SIMULATION_SEEDS=n` runs `n` seeds more than the fixed ones. A seed that fails goes into the list
//! `REGRESSIONS` of its test.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "simulation/crowd.rs"]
mod crowd;
#[path = "simulation/flaps.rs"]
mod flaps;
#[path = "simulation/flow.rs"]
mod flow;
#[path = "simulation/net.rs"]
mod net;
#[path = "simulation/places.rs"]
mod places;
#[path = "simulation/predict.rs"]
mod predict;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/thief.rs"]
mod thief;
#[path = "simulation/tunnel.rs"]
mod tunnel;
#[path = "simulation/watch.rs"]
mod watch;
#[path = "simulation/world.rs"]
mod world;

use std::time::Duration;

use net::Realm;
use node_core::paths::Route;
use testnet::nat_model::{Behaviour, Dependence, are_direct};
use world::World;

const SECOND: Duration = Duration::from_secs(1);
const TENTH: Duration = Duration::from_millis(100);
const DELAY: Duration = Duration::from_millis(5);

fn behaviours() -> Vec<Option<Behaviour>> {
    let mut all = vec![None];
    for mapping in Dependence::ALL {
        for filtering in Dependence::ALL {
            all.push(Some(Behaviour {
                mapping,
                filtering,
                lifetime: SECOND * 30,
                hairpin: false,
            }));
        }
    }
    all
}

/// Two nodes behind these NATs, where there is one, and a flow between them ten times a second.
fn pair(a: Option<Behaviour>, b: Option<Behaviour>) -> World {
    let mut world = World::new(0);
    for behaviour in [a, b] {
        let realm = behaviour.map_or(Realm::Internet, |behaviour| {
            world.net.gateway(Realm::Internet, behaviour)
        });
        world.node(realm, DELAY);
    }
    world.introduce();
    world.flow(0, 1, TENTH);
    world
}

/// Seeds to run besides the fixed ones.
fn more_seeds() -> std::ops::Range<u64> {
    let wanted = std::env::var("SIMULATION_SEEDS").ok();
    1000..1000 + wanted.map_or(0, |n| n.parse().unwrap())
}

#[test]
fn every_pair_of_nats_ends_as_the_table_predicts() {
    for a in behaviours() {
        for b in behaviours() {
            let mut world = pair(a, b);
            world.run(SECOND * 20);
            let sides = [world.is_direct(0, 1), world.is_direct(1, 0)];
            let predicted = (are_direct(a, b), are_direct(a, b));
            let found = (sides != [false; 2], sides == [true; 2]);
            assert_eq!(found, predicted, "{a:?} and {b:?}");
        }
    }
}

#[test]
fn the_upgrade_loses_no_packet_and_takes_three_round_trips_and_two_packets() {
    let usual = Some(Behaviour {
        mapping: Dependence::Independent,
        filtering: Dependence::AddressAndPort,
        lifetime: SECOND * 30,
        hairpin: false,
    });
    for (a, b) in [(None, None), (usual, usual), (None, usual), (usual, None)] {
        let mut world = pair(a, b);
        world.run(SECOND * 10);
        world.set_flow(0, false);
        world.run(SECOND);
        let flow = &world.flows[0];
        assert_eq!(flow.requests, flow.replies);
        // A round trip of 26 ms at most; up to 50 ms to the first packet, and up to 100 ms to the next one.
        let limit = SECOND * 26 / 1000 * 3 + SECOND * 3 / 20;
        let took = flow.direct_after.unwrap();
        assert!(took <= limit, "{took:?} with {a:?} and {b:?}");
    }
}

/// Whose packets come from an address is whose they were only until somebody else's come from there.
#[test]
fn a_port_that_a_nat_gives_to_another_node_silences_nobody() {
    let usual = Behaviour {
        mapping: Dependence::Independent,
        filtering: Dependence::AddressAndPort,
        lifetime: SECOND * 30,
        hairpin: false,
    };
    for offset in 0..50 {
        let mut world = World::new(0);
        let home = world.net.gateway(Realm::Internet, usual);
        for realm in [home, home, Realm::Internet] {
            world.node(realm, DELAY);
        }
        world.introduce();
        for (from, to) in [(0, 2), (1, 2), (2, 0), (2, 1)] {
            world.flow(from, to, TENTH);
        }
        world.run(SECOND * 10);
        world.block_udp(2, true);
        world.run(Duration::from_millis(190) * offset);
        world.net.exchange(home);
        world.block_udp(2, false);
        world.run(SECOND * 30);
        world.settle_silence();
        for flow in &world.flows {
            let (longest, at) = flow.longest;
            let (from, to) = (flow.from, flow.to);
            let dead = format!("{offset}: {from} to {to} got nothing for {longest:?} until {at:?}");
            assert!(longest <= SECOND * 3, "{dead}");
            assert!(world.is_direct(from, to), "{offset}: {from} to {to}");
        }
    }
}

/// However their heartbeats lie to each other.
#[test]
fn without_endpoints_in_the_map_calls_alone_find_the_path() {
    let usual = Some(Behaviour {
        mapping: Dependence::Independent,
        filtering: Dependence::AddressAndPort,
        lifetime: SECOND * 30,
        hairpin: false,
    });
    for offset in 0..30 {
        let mut world = pair(usual, usual);
        world.silent_map = true;
        world.run(TENTH * offset);
        world.flow(1, 0, TENTH);
        world.run(SECOND * 15);
        let sides = [world.is_direct(0, 1), world.is_direct(1, 0)];
        assert_eq!(sides, [true; 2], "{offset} tenths");
    }
}

#[test]
fn after_a_rest_both_sides_are_direct_again() {
    let mut world = pair(None, None);
    world.run(SECOND * 5);
    world.set_flow(0, false);
    world.run(SECOND * 60);
    world.set_flow(0, true);
    // Longer than a path is trusted that a call alone proved.
    world.run(SECOND * 20);
    assert!(world.is_direct(0, 1));
    // The first packet went both ways, and the straight copy moved the other side's endpoint.
    assert!(world.is_direct(1, 0));
}

#[test]
fn blocked_udp_brings_the_relay_back_in_three_seconds_and_the_path_when_it_ends() {
    let mut world = pair(None, None);
    world.run(SECOND);
    assert!(world.is_direct(0, 1));
    world.block_udp(1, true);
    world.run(SECOND * 3);
    assert!(!world.is_direct(0, 1));
    assert!(!world.is_direct(1, 0));
    world.run(SECOND * 10);
    assert_eq!(world.route(0, 1), Route::Relayed);
    let (longest, _) = world.flows[0].longest;
    assert!(longest <= SECOND * 3, "{longest:?}");
    world.block_udp(1, false);
    world.run(SECOND * 10);
    assert!(world.is_direct(0, 1));
    assert!(world.is_direct(1, 0));
}

#[test]
fn with_blocked_udp_nothing_is_ever_direct() {
    let mut world = pair(None, None);
    world.block_udp(0, true);
    world.run(SECOND * 20);
    assert!(!world.is_direct(0, 1));
    assert!(!world.is_direct(1, 0));
}

#[test]
fn hairpin_decides_between_two_homes_behind_one_carrier_nat() {
    for hairpin in [true, false] {
        let usual = Behaviour {
            mapping: Dependence::Independent,
            filtering: Dependence::AddressAndPort,
            lifetime: SECOND * 30,
            hairpin,
        };
        let mut world = World::new(0);
        let carrier = world.net.gateway(Realm::Internet, usual);
        for _ in 0..2 {
            let home = world.net.gateway(carrier, usual);
            world.node(home, DELAY);
        }
        world.introduce();
        world.flow(0, 1, TENTH);
        world.run(SECOND * 20);
        let direct = world.is_direct(0, 1) && world.is_direct(1, 0);
        assert_eq!(direct, hairpin);
    }
}
