//! The machine against a router and a clock of the test's own.

use super::*;
use crate::portmap::upnp::Location;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const PORT: u16 = 41641;
const NONCE: pcp::Nonce = *b"twelve bytes";
const DEVICE: &str = "http://192.168.1.1:5000/rootDesc.xml";

fn site() -> Site {
    Site {
        gateway: GATEWAY,
        own: Ipv4Addr::new(192, 168, 1, 2),
    }
}

/// A router, and the machine that asks it; the clock is theirs.
struct World {
    now: Instant,
    machine: Machine,
    router: Router,
    /// What was sent, but for probes.
    asked: Vec<Asked>,
    /// What was to be mapped by UPnP.
    orders: Vec<Map>,
}

#[derive(Clone, Debug)]
struct Router {
    pmp: bool,
    pcp: bool,
    upnp: bool,
    refuses: bool,
    address: Ipv4Addr,
    /// Of another's mapping.
    taken: Option<u16>,
    lifetime: u32,
    began: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asked {
    Pmp { external: u16, lifetime: u32 },
    Pcp { external: u16, lifetime: u32 },
    Upnp { external: u16 },
    UpnpEnd { external: u16 },
}

impl World {
    fn new(pmp: bool, pcp: bool, upnp: bool) -> Self {
        let now = Instant::now();
        Self {
            now,
            machine: Machine::new(PORT, NONCE, now),
            router: Router {
                pmp,
                pcp,
                upnp,
                refuses: false,
                address: PUBLIC,
                taken: None,
                lifetime: 7200,
                began: now,
            },
            asked: Vec::new(),
            orders: Vec::new(),
        }
    }

    fn arrive(&mut self) {
        self.machine.handle_site(self.now, Some(site()));
        self.settle();
    }

    /// Lets `time` pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= end) {
            assert!(due >= self.now, "due in the past");
            self.now = due;
            self.machine.handle_timeout(self.now);
            self.settle();
            let next = self.machine.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "it spins");
        }
        self.now = end;
    }

    /// Carries out what the machine wants until it wants nothing more.
    fn settle(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Send(datagram) => {
                    if let Some(answer) = self.answer(&datagram) {
                        self.machine.handle_datagram(self.now, &answer);
                    }
                }
                Action::Search => {
                    if self.router.upnp {
                        let boot = self.router.boot();
                        // With another start it listens elsewhere.
                        let url = DEVICE.replace(":5000", &format!(":{}", 5000 + boot));
                        let found = Found {
                            location: Location::parse(&url).unwrap(),
                            device: "uuid:7".to_owned(),
                            boot: Some(boot),
                        };
                        self.machine.handle_found(self.now, Some(found));
                    }
                }
                Action::Upnp(Order::Map(map)) => {
                    let external = map.external;
                    self.orders.push(map);
                    self.asked.push(Asked::Upnp { external });
                    let mapped = Mapped {
                        service: service(),
                        external: SocketAddrV4::new(self.router.address, external),
                        lifetime: None,
                    };
                    let ended = if self.router.refuses {
                        Err(UpnpError::Fault(718))
                    } else {
                        Ok(mapped)
                    };
                    self.machine.handle_upnp(self.now, ended);
                }
                Action::Upnp(Order::Unmap(Lease { external, .. })) => {
                    self.asked.push(Asked::UpnpEnd { external });
                }
            }
        }
    }

    fn answer(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let router = self.router.clone();
        let epoch = u32::try_from((self.now - router.began).as_secs()).unwrap();
        match (datagram[0], datagram[1]) {
            (pmp::VERSION, 0) => router.pmp.then(|| {
                let mut answer = vec![0, 128, 0, 0];
                answer.extend(epoch.to_be_bytes());
                answer.extend(router.address.octets());
                answer
            }),
            (pmp::VERSION, _) => {
                let external = u16::from_be_bytes([datagram[6], datagram[7]]);
                let lifetime = u32::from_be_bytes(*datagram[8..].first_chunk().unwrap());
                self.asked.push(Asked::Pmp { external, lifetime });
                let code = if router.refuses { 2 } else { 0 };
                router.pmp.then(|| {
                    let mut answer = vec![0, 129, 0, code];
                    answer.extend(epoch.to_be_bytes());
                    answer.extend(&datagram[4..6]);
                    answer.extend(router.choose(external).to_be_bytes());
                    answer.extend(lifetime.min(router.lifetime).to_be_bytes());
                    answer
                })
            }
            (_, 0) => router.pcp.then(|| pcp::here(epoch)),
            (_, _) => {
                let external = u16::from_be_bytes([datagram[42], datagram[43]]);
                let lifetime = u32::from_be_bytes(*datagram[4..].first_chunk().unwrap());
                self.asked.push(Asked::Pcp { external, lifetime });
                let granted = pcp::Map {
                    own: site().own,
                    nonce: *datagram[24..].first_chunk().unwrap(),
                    internal: PORT,
                    external: router.choose(external),
                    lifetime: lifetime.min(router.lifetime),
                };
                let mut answer = pcp::mapped(granted, router.address, epoch);
                if router.refuses {
                    answer[3] = 2;
                }
                router.pcp.then_some(answer)
            }
        }
    }

    fn restart_router(&mut self) {
        self.router.began = self.now;
    }
}

impl Router {
    fn choose(&self, wish: u16) -> u16 {
        if self.taken == Some(wish) { 5000 } else { wish }
    }

    fn boot(&self) -> u32 {
        u32::from(self.taken.is_some())
    }
}

fn service() -> Service {
    Service {
        control: Location::parse("http://192.168.1.1:5000/ctl").unwrap(),
        kind: "urn:schemas-upnp-org:service:WANIPConnection:1".into(),
    }
}

fn at(port: u16) -> Option<SocketAddrV4> {
    Some(SocketAddrV4::new(PUBLIC, port))
}

const PMP: Asked = Asked::Pmp {
    external: PORT,
    lifetime: 7200,
};
const PCP: Asked = Asked::Pcp {
    external: PORT,
    lifetime: 7200,
};
const UPNP: Asked = Asked::Upnp { external: PORT };
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn nat_pmp_maps_at_once_and_our_own_port() {
    let mut world = World::new(true, true, true);
    world.arrive();
    assert_eq!(world.machine.external(), at(PORT));
    assert_eq!(world.asked, [PMP]);
    let all = Services {
        upnp: true,
        pmp: true,
        pcp: true,
    };
    assert_eq!(world.machine.services(), Some(all));
}

#[test]
fn pcp_is_asked_if_it_alone_answered_and_upnp_last() {
    let mut world = World::new(false, true, false);
    world.arrive();
    assert_eq!(world.machine.external(), None);
    world.pass(PROBE_WINDOW);
    assert_eq!(
        (world.machine.external(), &*world.asked),
        (at(PORT), &[PCP][..])
    );

    let mut world = World::new(false, false, true);
    world.arrive();
    world.pass(PROBE_WINDOW);
    assert_eq!(
        (world.machine.external(), &*world.asked),
        (at(PORT), &[UPNP][..])
    );
    let only = Services {
        upnp: true,
        ..Services::default()
    };
    assert_eq!(world.machine.services(), Some(only));
}

#[test]
fn a_router_that_speaks_nothing_is_asked_each_five_minutes() {
    let mut world = World::new(false, false, false);
    world.arrive();
    assert_eq!(world.machine.services(), None);
    world.pass(PROBE_WINDOW);
    assert_eq!(world.machine.services(), Some(Services::default()));
    world.router.pmp = true;
    world.pass(PROBE_EVERY - PROBE_WINDOW - SECOND);
    assert_eq!(world.machine.external(), None);
    world.pass(2 * SECOND);
    assert_eq!(world.machine.external(), at(PORT));
}

#[test]
fn a_protocol_that_refuses_gives_way_to_the_next() {
    let mut world = World::new(true, true, true);
    world.router.refuses = true;
    world.arrive();
    world.pass(SECOND);
    assert_eq!(world.machine.external(), None);
    assert_eq!(world.asked, [PMP, PCP, UPNP]);
    // They are not bothered before the next probe.
    world.pass(60 * SECOND);
    assert_eq!(world.asked.len(), 3);
    world.pass(PROBE_EVERY);
    assert_eq!(world.asked.len(), 6);
}

#[test]
fn a_request_without_an_answer_is_sent_four_times() {
    let mut world = World::new(true, false, false);
    world.arrive();
    world.machine.handle_site(world.now, None);
    world.settle();
    world.asked.clear();
    // It tells its address, and then is silent.
    world.machine.handle_site(world.now, Some(site()));
    let public = world.answer(&pmp::PUBLIC_ADDRESS).unwrap();
    world.router.pmp = false;
    world.machine.handle_datagram(world.now, &public);
    world.settle();
    world.pass(Duration::from_millis(3749));
    assert_eq!(world.asked, [PMP; 4]);
    world.pass(SECOND * 10);
    assert_eq!(world.asked.len(), 4);
    assert_eq!(world.machine.external(), None);
}

#[test]
fn a_mapping_is_renewed_at_half_its_life_for_ever() {
    let mut world = World::new(true, false, false);
    world.arrive();
    world.pass(Duration::from_secs(3599));
    assert_eq!(world.asked.len(), 1);
    world.pass(SECOND);
    assert_eq!(world.asked, [PMP; 2]);
    world.router.lifetime = 600;
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.asked.len(), 3);
    world.pass(Duration::from_secs(300));
    assert_eq!(world.asked.len(), 4);
    assert_eq!(world.machine.external(), at(PORT));
}

#[test]
fn a_mapping_that_is_not_renewed_ends_and_not_sooner() {
    let mut world = World::new(true, false, false);
    world.arrive();
    world.router.pmp = false;
    world.pass(Duration::from_secs(7199));
    assert_eq!(world.machine.external(), at(PORT));
    let tries = world.asked.len();
    assert!((20..80).contains(&tries), "{tries}");
    world.pass(SECOND);
    assert_eq!(world.machine.external(), None);
}

#[test]
fn the_port_that_the_router_chose_is_asked_for_again() {
    let mut world = World::new(true, false, false);
    world.router.taken = Some(PORT);
    world.arrive();
    assert_eq!(world.machine.external(), at(5000));
    world.pass(Duration::from_secs(3600));
    let again = Asked::Pmp {
        external: 5000,
        lifetime: 7200,
    };
    assert_eq!(world.asked, [PMP, again]);
}

#[test]
fn a_router_that_restarted_is_asked_again_within_a_minute() {
    for pmp in [true, false] {
        let mut world = World::new(pmp, !pmp, false);
        world.arrive();
        world.pass(Duration::from_secs(1000));
        assert_eq!(world.asked.len(), 1);
        world.restart_router();
        world.pass(CHECK_EVERY);
        assert_eq!(world.asked.len(), 2);
        assert_eq!(world.machine.external(), at(PORT));
        // Once is enough.
        world.pass(Duration::from_secs(600));
        assert_eq!(world.asked.len(), 2);
    }
}

#[test]
fn a_router_that_announces_a_restart_is_asked_at_once() {
    for pmp in [true, false] {
        let mut world = World::new(pmp, !pmp, false);
        world.arrive();
        world.pass(Duration::from_secs(1000));
        assert_eq!(world.asked.len(), 1);
        world.restart_router();
        world.pass(Duration::from_millis(1));
        let news = if pmp {
            world.answer(&pmp::PUBLIC_ADDRESS).unwrap()
        } else {
            pcp::here(0)
        };
        world.machine.handle_news(world.now, &news);
        world.pass(Duration::ZERO);
        assert_eq!(world.asked.len(), 2);
        assert_eq!(world.machine.external(), at(PORT));
    }

    // One that was not there is found.
    let mut world = World::new(false, false, false);
    world.arrive();
    world.pass(10 * SECOND);
    world.router.pmp = true;
    let news = world.answer(&pmp::PUBLIC_ADDRESS).unwrap();
    world.machine.handle_news(world.now, &news);
    world.settle();
    assert_eq!(world.machine.external(), at(PORT));
}

#[test]
fn announcements_of_whomever_do_no_more_than_have_the_router_asked() {
    let mut world = World::new(true, false, false);
    world.arrive();
    world.pass(Duration::from_secs(1000));
    // The router has not restarted, nor has it another address.
    let news = [0, 128, 0, 0, 0, 0, 0, 0, 203, 0, 113, 66];
    for _ in 0..1000 {
        world.machine.handle_news(world.now, &news);
        world.machine.handle_timeout(world.now);
    }
    let mut questions = 0;
    while let Some(action) = world.machine.poll_action() {
        assert_eq!(action, Action::Send(pmp::PUBLIC_ADDRESS.to_vec()));
        questions += 1;
    }
    assert_eq!(questions, 1);
    assert_eq!(world.machine.external(), at(PORT));
    assert_eq!(world.machine.ignored(), 0);
    world.machine.handle_news(world.now, b"junk");
    assert_eq!(world.machine.ignored(), 1);
}

#[test]
fn announcements_where_nothing_is_mapped_have_the_network_searched_seldom() {
    for upnp in [false, true] {
        let mut world = World::new(false, false, upnp);
        world.arrive();
        world.pass(Duration::from_secs(400));
        let news = [0, 128, 0, 0, 0, 0, 0, 0, 203, 0, 113, 66];
        let mut searches = 0;
        // One a second for two minutes.
        for _ in 0..120 {
            world.machine.handle_news(world.now, &news);
            while let Some(action) = world.machine.poll_action() {
                searches += usize::from(action == Action::Search);
            }
            world.pass(Duration::from_secs(1));
        }
        assert!((1..=6).contains(&searches), "{searches}");
    }
}

#[test]
fn what_a_restarted_router_does_not_grant_again_is_lost() {
    let mut world = World::new(true, false, false);
    world.arrive();
    world.pass(Duration::from_secs(1000));
    world.restart_router();
    world.router.refuses = true;
    world.pass(CHECK_EVERY);
    assert_eq!(world.machine.external(), None);
}

#[test]
fn a_restarted_router_that_is_silent_is_asked_for_a_minute() {
    let mut world = World::new(true, false, false);
    world.arrive();
    world.pass(Duration::from_secs(1000));
    world.restart_router();
    let told = world.answer(&pmp::PUBLIC_ADDRESS).unwrap();
    world.router.pmp = false;
    world.machine.handle_datagram(world.now, &told);
    world.settle();
    world.pass(10 * SECOND);
    assert_eq!(world.machine.external(), at(PORT), "answers get lost");
    world.router.pmp = true;
    world.pass(LOST_FOR);
    assert_eq!(world.machine.external(), at(PORT));

    world.restart_router();
    let told = world.answer(&pmp::PUBLIC_ADDRESS).unwrap();
    world.router.pmp = false;
    world.machine.handle_datagram(world.now, &told);
    world.settle();
    world.pass(LOST_FOR);
    assert_eq!(world.machine.external(), None);
}

#[test]
fn a_renewal_by_upnp_names_the_devices_that_are_there_now() {
    let mut world = World::new(false, false, true);
    world.arrive();
    world.pass(SECOND);
    assert_eq!(world.orders[0].held, None);
    assert_eq!(world.orders[0].devices.len(), 1);
    // It does not answer any more, but what was found before may.
    world.router.upnp = false;
    world.pass(Duration::from_secs(3600));
    let renewal = world.orders.last().unwrap();
    assert_eq!(renewal.held, Some(service()));
    assert_eq!(renewal.devices, world.orders[0].devices);
    // It is back on another port, which the next search finds: the old one is no longer asked.
    let moved = Found {
        location: Location::parse(&DEVICE.replace("5000", "5005")).unwrap(),
        device: "uuid:7".to_owned(),
        boot: None,
    };
    world.pass(PROBE_EVERY);
    world.machine.handle_found(world.now, Some(moved.clone()));
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.orders.last().unwrap().devices, [moved.location]);
}

#[test]
fn another_boot_of_the_upnp_device_is_a_restart() {
    let mut world = World::new(false, false, true);
    world.arrive();
    world.pass(SECOND);
    assert_eq!(world.asked, [UPNP]);
    // Another number is told from now on.
    world.router.taken = Some(1);
    world.pass(PROBE_EVERY);
    assert_eq!(world.asked, [UPNP; 2]);
    world.pass(2 * PROBE_EVERY);
    assert_eq!(world.asked.len(), 2);
}

#[test]
fn ever_new_boots_of_a_device_do_not_make_ever_new_orders() {
    let mut world = World::new(false, false, true);
    world.arrive();
    world.pass(20 * SECOND);
    let found = |boot| Found {
        location: Location::parse(DEVICE).unwrap(),
        device: "uuid:7".to_owned(),
        boot: Some(boot),
    };
    let mut orders = 0;
    for boot in 1..100 {
        world.machine.handle_found(world.now, Some(found(boot)));
        while let Some(action) = world.machine.poll_action() {
            assert!(matches!(action, Action::Upnp(Order::Map(_))), "{action:?}");
            orders += 1;
        }
    }
    assert_eq!(orders, 1);
}

#[test]
fn ever_new_clocks_of_a_router_do_not_make_ever_new_requests() {
    let mut world = World::new(true, false, false);
    world.arrive();
    world.pass(Duration::from_secs(1000));
    world.asked.clear();
    for second in 0..100 {
        for epoch in [u32::MAX, second] {
            let mut told = world.answer(&pmp::PUBLIC_ADDRESS).unwrap();
            told[4..8].copy_from_slice(&epoch.to_be_bytes());
            world.machine.handle_datagram(world.now, &told);
            world.settle();
        }
        world.pass(SECOND);
    }
    assert!((5..=11).contains(&world.asked.len()), "{:?}", world.asked);
    assert_eq!(world.machine.external(), at(PORT));
}

#[test]
fn another_address_of_the_router_is_told() {
    let mut world = World::new(true, false, false);
    world.arrive();
    world.router.address = Ipv4Addr::new(198, 51, 100, 8);
    world.pass(CHECK_EVERY);
    let expected = SocketAddrV4::new(world.router.address, PORT);
    assert_eq!(world.machine.external(), Some(expected));
}

#[test]
fn a_mapping_is_given_back_when_we_leave() {
    let end = [
        Asked::Pmp {
            external: 0,
            lifetime: 0,
        },
        Asked::Pcp {
            external: PORT,
            lifetime: 0,
        },
        Asked::UpnpEnd { external: PORT },
    ];
    for (number, end) in end.into_iter().enumerate() {
        let mut world = World::new(number == 0, number == 1, number == 2);
        world.arrive();
        world.pass(SECOND);
        assert_eq!(world.machine.external(), at(PORT));
        world.asked.clear();
        world.machine.handle_site(world.now, None);
        world.settle();
        assert_eq!(world.asked, [end]);
        assert_eq!(world.machine.external(), None);
        assert_eq!(world.machine.services(), None);
        assert_eq!(world.machine.poll_timeout(), None);
    }
}

#[test]
fn nothing_is_asked_where_there_is_no_router() {
    let mut world = World::new(true, true, true);
    world.machine.start_probe(world.now);
    world.machine.handle_timeout(world.now);
    assert_eq!(world.machine.poll_action(), None);
    assert_eq!(world.machine.poll_timeout(), None);
}

#[test]
fn answers_that_nobody_asked_for_map_nothing_and_are_counted() {
    let mut world = World::new(false, false, false);
    world.arrive();
    world.pass(SECOND);
    let map = pcp::Map {
        own: site().own,
        nonce: NONCE,
        internal: PORT,
        external: 666,
        lifetime: 7200,
    };
    let mut pmp = vec![0, 129, 0, 0, 0, 0, 0, 9, 0xa2, 0xa9, 2, 154, 0, 0, 28, 32];
    let hostile: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0],
        vec![1; 60],
        vec![2; 59],
        pmp.clone(),
        pcp::mapped(map, PUBLIC, 9),
        vec![0; 2000],
    ];
    for (count, datagram) in (1..).zip(&hostile) {
        world.machine.handle_datagram(world.now, datagram);
        assert_eq!(world.machine.ignored(), count, "{datagram:?}");
    }
    assert_eq!(world.machine.external(), None);

    // While something is asked for, it must be the answer to that.
    let mut world = World::new(true, true, false);
    world.arrive();
    world.pass(Duration::from_secs(3600));
    let held = world.machine.external();
    pmp[8] = 0;
    world.machine.handle_datagram(world.now, &pmp);
    let other = pcp::Map {
        nonce: *b"another one!",
        ..map
    };
    let other = pcp::mapped(other, PUBLIC, 9);
    world.machine.handle_datagram(world.now, &other);
    assert_eq!(world.machine.external(), held);
    assert_eq!(world.machine.ignored(), 2);
}

#[test]
fn a_router_without_an_address_maps_nothing() {
    let mut world = World::new(true, true, false);
    world.router.address = Ipv4Addr::UNSPECIFIED;
    world.arrive();
    world.pass(SECOND * 10);
    assert_eq!(world.machine.external(), None);
    assert!(world.machine.ignored() > 0);
}

#[test]
fn a_mapping_for_a_moment_is_of_no_use() {
    let mut world = World::new(true, false, false);
    world.router.lifetime = 1;
    world.arrive();
    world.pass(SECOND * 100);
    assert_eq!(world.machine.external(), None);
    assert_eq!(world.asked.len(), 1);
}

#[test]
fn devices_elsewhere_are_not_asked() {
    let mut world = World::new(false, false, false);
    world.arrive();
    let elsewhere = Found {
        location: Location::parse("http://192.168.1.66:5000/rootDesc.xml").unwrap(),
        device: String::new(),
        boot: None,
    };
    world.machine.handle_found(world.now, Some(elsewhere));
    world.machine.handle_found(world.now, None);
    world.settle();
    world.pass(SECOND);
    assert_eq!(world.asked, []);
    assert_eq!(world.machine.ignored(), 2);
    assert_eq!(world.machine.services(), Some(Services::default()));
}

#[test]
fn a_slow_upnp_device_is_asked_once_it_has_answered() {
    let mut world = World::new(false, false, false);
    world.arrive();
    world.pass(SECOND);
    let found = Found {
        location: Location::parse(DEVICE).unwrap(),
        device: String::new(),
        boot: None,
    };
    world.machine.handle_found(world.now, Some(found));
    world.settle();
    assert_eq!(world.asked, [UPNP]);
    assert!(world.machine.services().unwrap().upnp);
}
