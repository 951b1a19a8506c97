//! Hundreds of nodes that all know each other, few of which talk at a time.

use std::time::Duration;

use crate::places::{populated, somewhere};
use crate::predict::certain;
use crate::world::{Weather, World};
use crate::{SECOND, more_seeds};

const SEEDS: [u64; 3] = [1, 2, 3];
/// Seeds that once failed.
const REGRESSIONS: [u64; 0] = [];
const NODES: usize = 220;
const FLOWS: usize = 60;
const INTERVAL: Duration = Duration::from_millis(500);

fn build(seed: u64) -> World {
    let at_home = |world: &mut World, number: usize| {
        !number.is_multiple_of(2) && !world.random.per_mille(700)
    };
    let mut world = populated(seed, NODES, 80, 200, at_home);
    for _ in 0..FLOWS {
        let from = world.random.index(NODES);
        let to = (from + 1 + world.random.index(NODES - 1)) % NODES;
        world.flow(from, to, INTERVAL);
    }
    world
}

fn live(seed: u64) {
    let mut world = build(seed);
    world.weather = Weather {
        lost: 10,
        doubled: 10,
        jitter_ms: 20,
    };
    for _ in 0..30 {
        world.run(SECOND * 4);
        let node = world.random.index(NODES);
        match world.random.below(4) {
            0 => {
                let away = world.random.millis(200, 2000);
                let keeps_key = world.random.per_mille(300);
                world.restart(node, away, keeps_key);
            }
            1 => {
                let realm = somewhere(&mut world);
                world.roam(node, realm);
            }
            2 => {
                let realm = world.nodes[node].realm;
                world.net.reboot(realm);
            }
            _ => {
                let flow = world.random.index(FLOWS);
                world.set_flow(flow, false);
            }
        }
    }
    world.weather = Weather::default();
    for flow in 0..FLOWS {
        world.set_flow(flow, flow % 2 == 0);
    }
    world.run(SECOND * 40);
    for (number, flow) in world.flows.iter().enumerate().step_by(2) {
        let (a, b) = (&world.nodes[flow.from], &world.nodes[flow.to]);
        let direct = [
            world.is_direct(flow.from, flow.to),
            world.is_direct(flow.to, flow.from),
        ];
        if certain(&world.net, a, b) {
            assert_eq!(direct, [true; 2], "seed {seed}: flow {number}");
        }
    }
    // With every flow ended, the world falls silent.
    for flow in 0..FLOWS {
        world.set_flow(flow, false);
    }
    world.run(SECOND * 60);
    let pings: u64 = (0..NODES).map(|node| world.pings(node)).sum();
    world.run(SECOND * 600);
    let later: u64 = (0..NODES).map(|node| world.pings(node)).sum();
    assert_eq!(pings, later);
    for node in &world.nodes {
        assert_eq!(node.paths.next_timeout(), None);
    }
}

#[test]
fn a_crowd_finds_its_paths_and_falls_silent_when_nobody_talks() {
    for seed in SEEDS.into_iter().chain(REGRESSIONS).chain(more_seeds()) {
        live(seed);
    }
}
