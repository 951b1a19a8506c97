//! The path machine of several nodes in one deterministic world with NATs and a virtual clock.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "simulation/nat.rs"]
mod nat;
#[path = "simulation/world.rs"]
mod world;

use std::time::Duration;

use nat::{Behaviour, Dependence};
use node_core::paths::Route;
use world::World;

const SECOND: Duration = Duration::from_secs(1);

fn behaviours() -> Vec<Option<Behaviour>> {
    let mut all = vec![None];
    for mapping in Dependence::ALL {
        for filtering in Dependence::ALL {
            all.push(Some(Behaviour {
                mapping,
                filtering,
                lifetime: SECOND * 120,
            }));
        }
    }
    all
}

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
fn predicted_direct(a: Option<Behaviour>, b: Option<Behaviour>) -> bool {
    answers(a, b) || answers(b, a)
}

fn talk(world: &mut World, time: Duration) {
    let step = Duration::from_millis(100);
    let mut passed = Duration::ZERO;
    while passed < time {
        world.traffic(0, 1);
        world.traffic(1, 0);
        world.run(step);
        passed += step;
    }
}

fn is_direct(world: &World, from: usize, to: usize) -> bool {
    matches!(world.route(from, to), Route::Direct(_))
}

#[test]
fn every_pair_of_nats_ends_as_the_table_predicts() {
    for a in behaviours() {
        for b in behaviours() {
            let mut world = World::new(&[a, b]);
            talk(&mut world, SECOND * 20);
            let direct = is_direct(&world, 0, 1) || is_direct(&world, 1, 0);
            assert_eq!(direct, predicted_direct(a, b), "{a:?} and {b:?}");
        }
    }
}

#[test]
fn blocked_udp_brings_the_relay_back_in_three_seconds_and_the_path_when_it_ends() {
    let mut world = World::new(&[None, None]);
    talk(&mut world, SECOND);
    assert!(is_direct(&world, 0, 1));
    world.block_udp(1, true);
    // The data plane needs a second to call it silence.
    talk(&mut world, SECOND);
    world.unanswered(0, 1);
    world.unanswered(1, 0);
    talk(&mut world, SECOND * 2);
    assert!(!is_direct(&world, 0, 1));
    assert!(!is_direct(&world, 1, 0));
    talk(&mut world, SECOND * 10);
    assert_eq!(world.route(0, 1), Route::Relayed);
    world.block_udp(1, false);
    talk(&mut world, SECOND * 10);
    assert!(is_direct(&world, 0, 1));
}

#[test]
fn with_blocked_udp_nothing_is_ever_direct() {
    let mut world = World::new(&[None, None]);
    world.block_udp(0, true);
    talk(&mut world, SECOND * 20);
    assert!(!is_direct(&world, 0, 1));
    assert!(!is_direct(&world, 1, 0));
}
