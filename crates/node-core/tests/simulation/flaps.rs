//! A few nodes for an hour of virtual time, in which links, NATs, relays and processes come and go.

use std::time::Duration;

use node_core::RegionId;

use crate::places::{populated, somewhere};
use crate::predict::{certain, wavering};
use crate::world::{Weather, World};
use crate::{SECOND, more_seeds};

const SEEDS: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
/// Seeds that once failed: two NATs by port, whose packets moved each other's endpoint on and on (1002).
const REGRESSIONS: [u64; 1] = [1002];
/// Trust, and half a second more. Three seconds are the aim, which several troubles at once miss; of the seeds
/// 1000 to 1099 none sees more than this.
const SILENCE: Duration = Duration::from_secs(7);
const NODES: usize = 8;
const INTERVAL: Duration = Duration::from_millis(250);

fn build(seed: u64) -> World {
    // Now and then two at home in one network.
    let mut world = populated(seed, NODES, 60, 250, |_, number| matches!(number, 1 | 5));
    for number in 0..NODES {
        world.flow(number, (number + 1) % NODES, INTERVAL);
        world.flow(number, (number + 3) % NODES, INTERVAL);
    }
    world
}

fn flap(world: &mut World) {
    let node = world.random.index(NODES);
    match world.random.below(9) {
        0 | 1 => world.block_udp(node, true),
        2 | 3 => world.block_udp(node, false),
        4 => {
            let realm = world.nodes[node].realm;
            if world.random.per_mille(500) {
                world.net.reboot(realm);
            } else {
                world.net.exchange(realm);
            }
        }
        5 => {
            let realm = somewhere(world);
            world.roam(node, realm);
            // Everybody else has to hear of it over the relays.
            world.excuse(node, world.now + SECOND);
        }
        6 => {
            let realm = world.nodes[node].realm;
            world.roam(node, realm);
            world.excuse(node, world.now + SECOND);
        }
        7 => {
            let away = world.random.millis(200, 2000);
            let keeps_key = world.random.per_mille(300);
            world.restart(node, away, keeps_key);
            world.excuse(node, world.now + away + SECOND);
        }
        _ => {
            let region = RegionId(u16::try_from(world.random.below(2) + 1).unwrap());
            let up = !world.relays_up();
            for region in [1, 2].map(RegionId) {
                world.set_relay(region, true);
            }
            world.set_relay(region, up);
        }
    }
    world.weather = Weather {
        lost: world.random.pick(&[0, 0, 10, 50]),
        doubled: world.random.pick(&[0, 0, 20]),
        jitter_ms: world.random.pick(&[0, 5, 40]),
    };
}

fn an_hour(seed: u64, repeats: u32) {
    let mut world = build(seed);
    world.thief.repeats = repeats;
    world.run(SECOND * 30);
    while world.now < SECOND * 3600 {
        flap(&mut world);
        let pause = world.random.millis(200, 10_000);
        let mut passed = Duration::ZERO;
        while passed < pause {
            // Without the relay there is nothing to fall back on.
            world.excuse_cut_off(world.now + INTERVAL * 2);
            world.run(INTERVAL);
            passed += INTERVAL;
        }
    }
    world.settle_silence();
    for (number, flow) in world.flows.iter().enumerate() {
        let (longest, at) = flow.longest;
        assert!(
            longest <= SILENCE + world.thief.patience(),
            "seed {seed}: flow {number} from {} to {} got nothing for {longest:?} until {at:?}",
            flow.from,
            flow.to
        );
    }
    world.weather = Weather::default();
    for node in 0..NODES {
        world.block_udp(node, false);
    }
    for region in [1, 2].map(RegionId) {
        world.set_relay(region, true);
    }
    world.run(SECOND * 40);
    let before: Vec<(u64, u64)> = world
        .flows
        .iter()
        .map(|f| (f.requests, f.replies))
        .collect();
    world.run(SECOND * 20);
    for (number, flow) in world.flows.iter().enumerate() {
        let (requests, replies) = before[number];
        let (requests, replies) = (flow.requests - requests, flow.replies - replies);
        let (a, b) = (&world.nodes[flow.from], &world.nodes[flow.to]);
        // Whose the many ports of a wavering pair are is not always clear if somebody meddles.
        let tenths = if repeats == 0 { 8 } else { 3 };
        assert!(
            requests.abs_diff(replies) <= 2
                || wavering(&world.net, a, b) && replies * 10 >= requests * tenths,
            "seed {seed}: flow {number} lost {} of {requests} packets",
            requests - replies
        );
        if certain(&world.net, a, b) {
            let direct = [
                world.is_direct(flow.from, flow.to),
                world.is_direct(flow.to, flow.from),
            ];
            assert_eq!(direct, [true; 2], "seed {seed}: flow {number}");
        }
    }
}

#[test]
fn an_hour_of_flaps_kills_no_tunnel_and_silences_none_beyond_its_trust() {
    for seed in SEEDS.into_iter().chain(REGRESSIONS).chain(more_seeds()) {
        an_hour(seed, 0);
    }
}

#[test]
fn somebody_who_repeats_datagrams_from_anywhere_silences_nobody() {
    for seed in SEEDS.into_iter().chain(more_seeds()) {
        an_hour(seed, 100);
    }
}
