//! When to ask the router for what: sans-IO. Feed it with `handle_*`, then drain [`Machine::poll_action`]
//! and sleep until [`Machine::poll_timeout`].
//!
//! ```text
//! a site ──► probe (250 ms) ──► mapping asked for ──► mapped ──► renewed at half its life
//!              ▲   ▲                 │ refused, silent             │ router restarted: renewed at once
//!              │   └── 5 min ────────┘ next protocol, then wait     │ not renewed until it ends
//!              └──────────────────────────────────────────────────┘
//! ```
//!
//! Source: protocol/disco.md §10.

mod answers;
mod clock;

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::upnp::{Found, Lease, Map, Mapped, Order, Service, UpnpError};
use super::{Services, pcp, pmp};
use clock::Clock;

/// Time for the answers to a probe.
const PROBE_WINDOW: Duration = Duration::from_millis(250);
/// Within the window, what has not answered is asked once more: Wi-Fi loses packets.
const PROBE_AGAIN: Duration = Duration::from_millis(100);
/// Between probes.
const PROBE_EVERY: Duration = Duration::from_secs(5 * 60);
/// How long a service that answered is taken to be there.
const TRUST: Duration = Duration::from_secs(10 * 60);
/// Between looks whether the router that holds our mapping has restarted.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// Between questions because of announcements, of which there are ten.
const NEWS_GAP: Duration = Duration::from_secs(1);
/// Life time asked for.
const LIFETIME: Duration = Duration::from_secs(7200);
/// A mapping of less is of no use: peers would be told one place after the other.
const MIN_LIFETIME: Duration = Duration::from_secs(30);
/// A renewal that failed is tried again when half of what is left has passed, but not sooner.
const RENEW_GAP: Duration = Duration::from_secs(10);
/// What a router that has restarted has most likely forgotten is asked for again for so long.
const LOST_FOR: Duration = Duration::from_secs(60);
/// Wait for the first answer to a request by datagram; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// How often a request by datagram is sent.
const TRIES: u32 = 4;
/// Wait for the end of an order by UPnP, which has shorter times of its own.
const UPNP_WAIT: Duration = Duration::from_secs(30);
/// Devices that are remembered: a router answers for each of its services.
const MAX_DEVICES: usize = 8;

/// How a router is asked, best first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Protocol {
    NatPmp,
    Pcp,
    Upnp,
}

/// Where we are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Site {
    /// The router that leads out.
    pub(super) gateway: Ipv4Addr,
    /// Our address as it sees it.
    pub(super) own: Ipv4Addr,
}

/// What the shell has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Send this to the router's port for NAT-PMP and PCP.
    Send(Vec<u8>),
    /// Look for UPnP devices.
    Search,
    /// Talk to one.
    Upnp(Order),
}

/// A mapping that we hold.
#[derive(Debug)]
struct Mapping {
    protocol: Protocol,
    external: SocketAddrV4,
    granted_at: Instant,
    renew_at: Instant,
    ends_at: Instant,
    /// Of UPnP: whom to ask, of which device, and which boot of that it was.
    service: Option<Service>,
    device: Option<String>,
    boot: Option<u32>,
}

/// A mapping that is asked for.
#[derive(Debug)]
struct Attempt {
    protocol: Protocol,
    tries: u32,
    again_at: Instant,
    /// What we hold is lost if this is refused.
    is_last: bool,
}

/// A probe under way, and who has answered.
#[derive(Debug)]
struct Probe {
    ends_at: Instant,
    again_at: Option<Instant>,
    answered: BTreeSet<Protocol>,
}

/// Holds a mapping of one UDP port at the router, as long as there is one that grants it.
#[derive(Debug)]
pub(super) struct Machine {
    port: u16,
    nonce: pcp::Nonce,
    site: Option<Site>,
    probe: Option<Probe>,
    next_probe: Instant,
    next_check: Instant,
    /// Announcements are heeded from then on.
    next_news: Instant,
    /// Asked of services, and found; unknown before the first probe.
    services: Option<Services>,
    /// When each service was last heard.
    heard: [Option<Instant>; 3],
    clocks: [Clock; 2],
    /// What NAT-PMP says of the router's address.
    public: Option<Ipv4Addr>,
    /// Found by the last search that was answered.
    devices: Vec<Found>,
    /// A search has begun since, which has not been answered.
    devices_are_old: bool,
    /// Would not or could not, this time.
    refused: BTreeSet<Protocol>,
    attempt: Option<Attempt>,
    mapping: Option<Mapping>,
    /// The router's port that we would like.
    wish: u16,
    actions: VecDeque<Action>,
    ignored: u64,
}

impl Machine {
    /// `nonce` tells our mappings from those of others: random.
    pub(super) fn new(port: u16, nonce: pcp::Nonce, now: Instant) -> Self {
        Self {
            port,
            nonce,
            site: None,
            probe: None,
            next_probe: now,
            next_check: now,
            next_news: now,
            services: None,
            heard: [None; 3],
            clocks: Default::default(),
            public: None,
            devices: Vec::new(),
            devices_are_old: false,
            refused: BTreeSet::new(),
            attempt: None,
            mapping: None,
            wish: port,
            actions: VecDeque::new(),
            ignored: 0,
        }
    }

    /// Where our port can be reached.
    pub(super) fn external(&self) -> Option<SocketAddrV4> {
        self.mapping.as_ref().map(|mapping| mapping.external)
    }

    /// What the router speaks; unknown before the first probe.
    pub(super) fn services(&self) -> Option<Services> {
        self.services
    }

    /// True until the answers to the last probe are in, or its time is over.
    pub(super) fn is_probing(&self) -> bool {
        self.probe.is_some()
    }

    /// Messages that made no sense, so far.
    pub(super) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes note of where we are. Between two sites comes nowhere (`None`): what we held is released, and
    /// the actions that are due then are for the old router.
    pub(super) fn handle_site(&mut self, now: Instant, site: Option<Site>) {
        if self.site == site {
            return;
        }
        self.release();
        let (actions, ignored) = (std::mem::take(&mut self.actions), self.ignored);
        *self = Self {
            actions,
            ignored,
            ..Self::new(self.port, self.nonce, now)
        };
        self.site = site;
        self.start_probe(now);
    }

    /// Asks the router anew what it speaks, unless that is being done.
    pub(super) fn start_probe(&mut self, now: Instant) {
        if self.site.is_none() || self.probe.is_some() {
            return;
        }
        if self.mapping.is_none() {
            self.refused.clear();
        }
        self.devices_are_old = true;
        self.next_probe = now + PROBE_EVERY;
        self.probe = Some(Probe {
            ends_at: now + PROBE_WINDOW,
            again_at: Some(now + PROBE_AGAIN),
            answered: BTreeSet::new(),
        });
        self.ask_who_is_there();
    }

    /// Takes a datagram from the router's port for NAT-PMP and PCP.
    pub(super) fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        let taken = match datagram.first() {
            _ if datagram.len() > pcp::MAX_LEN => false,
            Some(&pmp::VERSION) => {
                pmp::parse(datagram).is_some_and(|answer| self.handle_pmp(now, answer))
            }
            Some(&pcp::VERSION) => {
                pcp::parse(datagram).is_some_and(|answer| self.handle_pcp(now, answer))
            }
            _ => false,
        };
        if !taken {
            self.ignore("answer from port 5351");
        }
    }

    /// Takes the end of [`Order::Map`].
    pub(super) fn handle_upnp(&mut self, now: Instant, ended: Result<Mapped, UpnpError>) {
        if !self.asks(Protocol::Upnp) {
            return;
        }
        match ended {
            Ok(Mapped {
                service,
                external,
                lifetime,
            }) => {
                // Without an end of its own it lives as long as we asked for, and is renewed all the same.
                let lifetime = lifetime.unwrap_or(LIFETIME);
                self.hold(now, Protocol::Upnp, external, lifetime);
                if let Some(mapping) = &mut self.mapping {
                    let at = service.control.address;
                    let device = self
                        .devices
                        .iter()
                        .find(|known| known.location.address == at);
                    mapping.device = device.map(|device| device.device.clone());
                    mapping.boot = device.and_then(|device| device.boot);
                    mapping.service = Some(service);
                }
            }
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "no port mapping by UPnP"
                );
                self.fail(now, matches!(error, UpnpError::Fault(_)));
            }
        }
    }

    /// Does what is due at `now`.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.site.is_none() {
            return;
        }
        if let Some(probe) = &mut self.probe {
            if probe.again_at.take_if(|at| *at <= now).is_some() {
                self.ask_who_is_there();
            }
            self.end_probe(now);
        } else if self.next_probe <= now {
            self.start_probe(now);
        }
        if self
            .mapping
            .as_ref()
            .is_some_and(|mapping| mapping.ends_at <= now)
        {
            tracing::info!("port mapping ended");
            self.mapping = None;
            self.attempt = None;
            self.start_probe(now);
        }
        match (&self.attempt, &self.mapping) {
            (Some(attempt), _) if attempt.again_at <= now => self.try_again(now),
            (None, Some(mapping)) if mapping.renew_at <= now => {
                let protocol = mapping.protocol;
                self.begin(now, protocol, false);
            }
            _ => {}
        }
        if let Some(mapping) = &self.mapping
            && self.next_check <= now
        {
            self.next_check = now + CHECK_EVERY;
            match mapping.protocol {
                Protocol::NatPmp => self.send(pmp::PUBLIC_ADDRESS.to_vec()),
                Protocol::Pcp => self.send_announce(),
                // Every probe searches.
                Protocol::Upnp => {}
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.site?;
        let probe = match &self.probe {
            Some(probe) => probe.again_at.unwrap_or(probe.ends_at),
            None => self.next_probe,
        };
        let attempt = self.attempt.as_ref().map(|attempt| attempt.again_at);
        let mapping = self.mapping.as_ref().map(|mapping| {
            let renewal = if attempt.is_none() {
                mapping.renew_at
            } else {
                mapping.ends_at
            };
            renewal.min(mapping.ends_at).min(self.next_check)
        });
        [Some(probe), attempt, mapping].into_iter().flatten().min()
    }

    /// What to do next.
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Renews at once what a router that has restarted has forgotten.
    fn watch_epoch(&mut self, now: Instant, protocol: Protocol, epoch: u32) {
        let restarted = self.clocks[protocol as usize].set(now, epoch);
        let ours = self
            .mapping
            .as_ref()
            .is_some_and(|mapping| mapping.protocol == protocol);
        if restarted && ours {
            self.renew_lost(now);
        }
    }

    fn renew_lost(&mut self, now: Instant) {
        let Some(mapping) = &mut self.mapping else {
            return;
        };
        let protocol = mapping.protocol;
        mapping.ends_at = mapping.ends_at.min(now + LOST_FOR);
        // Whoever tells of ever new restarts is not asked more often for that.
        let earliest = mapping.granted_at + RENEW_GAP;
        if let Some(attempt) = &mut self.attempt
            && attempt.protocol == protocol
        {
            attempt.is_last = true;
        } else if now < earliest {
            mapping.renew_at = earliest;
        } else {
            tracing::info!("the router has restarted: its port mapping is asked for again");
            self.begin(now, protocol, true);
        }
    }

    /// Asks for a mapping, if there is none, of the best service that has not refused.
    fn advance(&mut self, now: Instant) {
        self.end_probe(now);
        if self.site.is_none() || self.mapping.is_some() || self.attempt.is_some() {
            return;
        }
        let usable = |protocol: Protocol| {
            let ready = match protocol {
                Protocol::NatPmp => self.public.is_some(),
                Protocol::Pcp => true,
                Protocol::Upnp => !self.devices.is_empty(),
            };
            ready && self.is_there(now, protocol) && !self.refused.contains(&protocol)
        };
        let protocols = [Protocol::NatPmp, Protocol::Pcp, Protocol::Upnp];
        let best = protocols.into_iter().find(|protocol| usable(*protocol));
        // A better one may answer yet.
        let is_early = best != Some(Protocol::NatPmp) && self.probe.is_some();
        if let Some(best) = best.filter(|_| !is_early) {
            self.begin(now, best, false);
        }
    }

    /// Ends the probe if all have answered or its time is over.
    fn end_probe(&mut self, now: Instant) {
        let over = |probe: &mut Probe| probe.ends_at <= now || probe.answered.len() == 3;
        if self.probe.take_if(over).is_none() {
            return;
        }
        self.services = Some(Services {
            upnp: self.is_there(now, Protocol::Upnp),
            pmp: self.is_there(now, Protocol::NatPmp),
            pcp: self.is_there(now, Protocol::Pcp),
        });
        self.advance(now);
    }

    /// It was heard not long ago.
    fn is_there(&self, now: Instant, protocol: Protocol) -> bool {
        let heard = self.heard[protocol as usize];
        heard.is_some_and(|at| now.saturating_duration_since(at) < TRUST)
    }

    fn begin(&mut self, now: Instant, protocol: Protocol, is_last: bool) {
        self.attempt = Some(Attempt {
            protocol,
            tries: 0,
            again_at: now,
            is_last,
        });
        self.try_again(now);
    }

    /// Sends the request that is due, or gives up.
    fn try_again(&mut self, now: Instant) {
        let (Some(attempt), Some(site)) = (&mut self.attempt, self.site) else {
            return;
        };
        let tries = match attempt.protocol {
            Protocol::Upnp => 1,
            Protocol::NatPmp | Protocol::Pcp => TRIES,
        };
        if attempt.tries >= tries {
            tracing::debug!(protocol = ?attempt.protocol, "no answer about a port mapping");
            self.fail(now, false);
            return;
        }
        attempt.again_at = now + FIRST_WAIT * 2_u32.pow(attempt.tries);
        attempt.tries += 1;
        match attempt.protocol {
            Protocol::NatPmp => self.send(pmp::map(self.port, self.wish, seconds(LIFETIME))),
            Protocol::Pcp => self.send_pcp_map(self.wish, LIFETIME),
            Protocol::Upnp => {
                attempt.again_at = now + UPNP_WAIT;
                let devices = self.devices.iter();
                self.actions.push_back(Action::Upnp(Order::Map(Map {
                    held: self.mapping.as_ref().and_then(|held| held.service.clone()),
                    devices: devices.map(|device| device.location.clone()).collect(),
                    own: site.own,
                    internal: self.port,
                    external: self.wish,
                    lifetime: LIFETIME,
                })));
            }
        }
    }

    /// Takes a mapping that was granted.
    fn hold(
        &mut self,
        now: Instant,
        protocol: Protocol,
        external: SocketAddrV4,
        lifetime: Duration,
    ) {
        if external.port() == 0 || lifetime < MIN_LIFETIME {
            tracing::debug!(%external, ?lifetime, "a port mapping of no use");
            self.fail(now, true);
            return;
        }
        let lifetime = lifetime.min(LIFETIME);
        if self.external() != Some(external) {
            tracing::info!(?protocol, "port mapped at the router");
            tracing::debug!(%external, ?lifetime, "port mapping");
        }
        self.attempt = None;
        self.refused.remove(&protocol);
        self.wish = external.port();
        self.next_check = now + CHECK_EVERY;
        self.mapping = Some(Mapping {
            protocol,
            external,
            granted_at: now,
            renew_at: now + lifetime / 2,
            ends_at: now + lifetime,
            service: None,
            device: None,
            boot: None,
        });
    }

    /// Ends an attempt: what we hold is kept to its end, unless the router has forgotten it and has `refused` it
    /// now, and the next best protocol has its turn if we hold nothing.
    fn fail(&mut self, now: Instant, refused: bool) {
        let Some(Attempt {
            protocol, is_last, ..
        }) = self.attempt.take()
        else {
            return;
        };
        self.refused.insert(protocol);
        if is_last && refused {
            self.mapping = None;
        }
        match &mut self.mapping {
            Some(mapping) => {
                let left = mapping.ends_at.saturating_duration_since(now);
                mapping.renew_at = now + (left / 2).max(RENEW_GAP);
            }
            None => self.advance(now),
        }
    }

    /// Gives back what we hold, or may hold.
    fn release(&mut self) {
        let asked = self.attempt.take().map(|attempt| attempt.protocol);
        let held = self.mapping.take();
        let external = held.as_ref().map_or(0, |held| held.external.port());
        match held.as_ref().map(|held| held.protocol).or(asked) {
            Some(Protocol::NatPmp) => self.send(pmp::map(self.port, 0, 0)),
            Some(Protocol::Pcp) => self.send_pcp_map(external, Duration::ZERO),
            Some(Protocol::Upnp) => {
                // What an order under way may map is the shell's, which ends it.
                let service = held.and_then(|held| held.service);
                let lease = service.map(|service| Lease { service, external });
                self.actions
                    .extend(lease.map(|lease| Action::Upnp(Order::Unmap(lease))));
            }
            None => {}
        }
    }

    /// Asks each service that has not answered the probe.
    fn ask_who_is_there(&mut self) {
        let Some(probe) = &self.probe else { return };
        let silent = |protocol| !probe.answered.contains(&protocol);
        let (pmp, pcp, upnp) = (
            silent(Protocol::NatPmp),
            silent(Protocol::Pcp),
            silent(Protocol::Upnp),
        );
        if pmp {
            self.send(pmp::PUBLIC_ADDRESS.to_vec());
        }
        if pcp {
            self.send_announce();
        }
        if upnp {
            self.actions.push_back(Action::Search);
        }
    }

    fn send_announce(&mut self) {
        if let Some(site) = self.site {
            self.send(pcp::announce(site.own));
        }
    }

    fn send_pcp_map(&mut self, external: u16, lifetime: Duration) {
        let Some(site) = self.site else { return };
        self.send(pcp::map(pcp::Map {
            own: site.own,
            nonce: self.nonce,
            internal: self.port,
            external,
            lifetime: seconds(lifetime),
        }));
    }

    fn send(&mut self, datagram: Vec<u8>) {
        self.actions.push_back(Action::Send(datagram));
    }

    fn ignore(&mut self, what: &'static str) {
        self.ignored += 1;
        tracing::trace!(what, "ignored");
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
